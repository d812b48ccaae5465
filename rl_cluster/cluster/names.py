"""Names of actors, as people read them in Ray's dashboard and in incidents."""

from __future__ import annotations

SUPERVISOR = "supervisor"
WEIGHTS = "weights"


def replay_name(task: str) -> str:
    """Name of a task's replay."""
    return f"replay:{task}"


def learner_name(task: str) -> str:
    """Name of a task's learner."""
    return f"learner:{task}"


def evaluator_name(task: str) -> str:
    """Name of a task's evaluator."""
    return f"evaluator:{task}"


def rollout_name(task: str, index: int) -> str:
    """Name of one of a task's rollouts."""
    return f"rollout:{task}/{index}"


def reader_name(task: str) -> str:
    """Name of the reader of a fleet's stream."""
    return f"reader:{task}"


def courier_name(task: str) -> str:
    """Name of who takes policies to a fleet."""
    return f"courier:{task}"


def field_name(task: str) -> str:
    """Name of a fleet's simulated field."""
    return f"field:{task}"

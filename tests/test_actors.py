"""Asking an actor that Ray brings back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, GetTimeoutError

from rl_cluster.cluster.actors import ask, spawn


class Mortal:
    """Dies of its first question, once."""

    def __init__(self, mark: str) -> None:
        self._mark = Path(mark)

    def version(self) -> int:
        """Answer, in a second life."""
        if not self._mark.exists():
            self._mark.touch()
            os._exit(1)
        return 7


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray, for the tests of this module."""
    paths = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(address="local", include_dashboard=False, log_to_driver=False, runtime_env=paths)
    yield
    ray.shutdown()


def version_of(actor: Any) -> Any:
    return lambda: actor.version.remote()


def test_who_is_brought_back_is_asked_again(cluster: None, tmp_path: Path) -> None:
    actor = spawn(Mortal, "mortal", str(tmp_path / "died"), restarted_by_ray=True)
    assert ask(version_of(actor), 60.0) == 7
    assert (tmp_path / "died").exists()


def test_who_is_not_brought_back_has_died(cluster: None, tmp_path: Path) -> None:
    actor = spawn(Mortal, "mortal_once", str(tmp_path / "died"))
    with pytest.raises(ActorDiedError):
        ask(version_of(actor), 60.0)


def test_no_answer_in_time_is_no_answer(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "died").touch()
    actor = spawn(Slow, "slow")
    with pytest.raises(GetTimeoutError):
        ask(version_of(actor), 0.5)


class Slow:
    """Takes its time."""

    def version(self) -> int:
        """Answer too late."""
        time.sleep(30)
        return 7

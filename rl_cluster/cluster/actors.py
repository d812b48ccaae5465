"""Ray calls that every part of the cluster makes: start an actor, look at a reference, read it.

Invariant: no read waits without a limit; every actor is detached, so that it outlives whoever
started it; and an actor with state is never restarted by Ray, which knows neither window nor
back-off and brings it back empty: the supervisor replaces it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ActorAlreadyExistsError, ActorUnavailableError

Actor = ActorHandle[Any]
Ref = ObjectRef[Any]
_ASK_AGAIN_S = 0.2


class NameTaken(RuntimeError):
    """An actor of that name has not gone yet."""


def spawn(
    cls: type,
    name: str,
    *arguments: Any,
    placement: Mapping[str, Any] | None = None,
    max_concurrency: int | None = None,
    num_gpus: float = 0.0,
    restarted_by_ray: bool = False,
) -> Actor:
    """Start an actor in the background.

    Args:
      cls: the plain class that it runs.
      name: unique within the run.
      arguments: of the class's constructor.
      placement: Ray's options that say where (see `placement`); None: wherever Ray likes.
      max_concurrency: calls that it answers at once; None: Ray's default for the class.
      num_gpus: share of a GPU that it holds.
      restarted_by_ray: whenever it dies, with the same arguments; one of that name that is there
        already is taken. For actors whose state is elsewhere.

    Raises:
      NameTaken: one of that name is still there.
      ValueError: options that Ray does not take.
    """
    options: dict[str, Any] = {
        "name": name,
        "num_cpus": 0,
        **(placement or {}),
        "num_gpus": num_gpus,
        "lifetime": "detached",
        "max_restarts": -1 if restarted_by_ray else 0,
        "get_if_exists": restarted_by_ray,
    }
    if max_concurrency is not None:
        options["max_concurrency"] = max_concurrency
    remote: Any = ray.remote(cls)
    try:
        actor: Actor = remote.options(**options).remote(*arguments)
    except ActorAlreadyExistsError as error:
        raise NameTaken(name) from error
    return actor


def end_named(names: Iterable[str]) -> None:
    """Kill actors of this process's namespace for good, in the order given.

    Raises:
      RayError: the control store does not answer.
    """
    for name in names:
        with suppress(ValueError):  # it has gone by itself
            ray.kill(ray.get_actor(name))


def is_here(ref: Ref) -> bool:
    """Whether reading a reference would not wait."""
    ready, _ = ray.wait([ref], timeout=0)
    return bool(ready)


def not_here(refs: list[Ref], timeout_s: float) -> list[Ref]:
    """Wait until all can be read or the time is over; those that still cannot."""
    _, missing = ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
    return missing


def read(ref: Ref, timeout_s: float) -> Any:
    """The value of a reference.

    Raises:
      RayError: it did not come in time (GetTimeoutError), or what made it failed.
    """
    return ray.get(ref, timeout=timeout_s)


def ask(call: Callable[[], Ref], timeout_s: float) -> Any:
    """The answer of an actor that Ray restarts: asked again where it is on its way back.

    Raises:
      RayError: it did not come in time, or what made it failed.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return read(call(), timeout_s)
        except ActorUnavailableError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_ASK_AGAIN_S)


def cause_of(error: BaseException) -> str:
    """The last line of an error's text, with its kind: Ray's texts hold whole tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"[:500]

"""A few threads that do the same thing to parts of a whole, and wait for each other.

Invariant: which part a thread gets depends on nothing but its number, so results are the same on
every call. Each thread computes alone: an update that is cut once into large parts waits twice,
where torch's own threads wait for each other at every operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


class Team:
    """`size` threads; of one, the caller's own."""

    def __init__(self, size: int) -> None:
        self.size = size
        # The caller takes a part itself; torch's own threads would only fight with these.
        self._helpers = ThreadPoolExecutor(
            max(1, size - 1), "team", initializer=torch.set_num_threads, initargs=(1,)
        )

    def begin(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Start `work` beside the caller; the call that is returned waits for its result.

        In a team of one, that call does the work.
        """
        if self.size == 1:
            return work
        return self._helpers.submit(work).result

    def map(self, work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """Results of `work` on at most `size` parts, in their order; the first error is raised."""
        others = [self._helpers.submit(work, part) for part in parts[1:]]
        try:
            mine = work(parts[0])
        finally:
            errors = [each.exception() for each in others]  # waits, so that none works on alone
        for error in errors:
            if error is not None:
                raise error
        return [mine, *(each.result() for each in others)]

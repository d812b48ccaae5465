"""One replay as a side of B1: what it must offer, how it is checked, how it is filled and served.

Runs in every side's own environment and needs only numpy. Invariant: all sides are fed the same
chunks of the same tape and hand out the same arrays; a batch is held against transitions derived
from the tape row by row, and the rows drawn against p^α, before anything is timed.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from serve import arguments, serve
from tape import CHUNK, STACK, Chunk, Tape, load

BATCH = 512
N_STEP = 3
DISCOUNT = 0.99
ALPHA = 0.6
BETA = 0.4
MAX_CHI2 = 1.2
"""Of χ² per degree of freedom: with some 4,000 of them, 1 ± 0.02 where the distribution is right
(less where the draw is stratified)."""

_CHECK_CAPACITY = 4_096
_CHECK_CHUNKS = 2 * _CHECK_CAPACITY // CHUNK
_CHECK_BATCHES = 100
_COMPARED_BATCHES = 10
_WARM_UP_CHUNKS = 2 * BATCH // CHUNK


class Batch(NamedTuple):
    """BATCH transitions, in contiguous arrays (or tensors) ready for a learner."""

    s_tm1: Any
    """(B, STACK, 84, 84) uint8."""
    a_tm1: Any
    """(B,) integers: the row on the tape."""
    r_t: Any
    """(B,) floats: return of up to N_STEP steps."""
    discount_t: Any
    """(B,) floats: DISCOUNT to the power of the steps, 0 where s_t is terminal."""
    s_t: Any
    """(B, STACK, 84, 84) uint8."""
    weights: Any
    """(B,) floats, None where the replay is uniform."""


class Replay(Protocol):
    """What a side does."""

    heads: int
    """How the tape is read for it (see `Tape.play`): what it takes fastest."""
    alpha: float
    """Exponent of its priorities: ALPHA, or 0 where it draws uniformly."""
    differs: str
    """Where its transitions differ from the tape's by design; empty: nowhere."""
    tolerance: float
    """Share of samples that may therefore differ in the check."""

    def insert(self, chunks: list[Chunk]) -> None:
        """Add CHUNK transitions."""
        ...

    def sample(self) -> tuple[Batch, Any]:
        """Draw BATCH transitions; with them comes what `update` must be told."""
        ...

    def update(self, where: Any, priorities: np.ndarray) -> None:
        """Set the (B,) float32 priorities (|TD error|) of what was sampled."""
        ...


R = TypeVar("R", bound=Replay)


def run(
    make: Callable[[int], R],
    packages: tuple[str, ...],
    more: Callable[[R], dict[str, Any]] = lambda replay: {},
) -> None:
    """Fill a replay, then work and answer for it: the whole program of a side of B1.

    Args:
      make: makes an empty replay for so many transitions.
      packages: distributions whose versions are reported.
      more: what else is a fact of the full replay.
    """
    asked = arguments()
    tape, capacity = load(Path(asked["tape"])), int(asked["capacity"])
    with _prints_to_standard_error():
        _warm_up(make(_CHECK_CAPACITY), tape)
        before = anonymous_bytes()
        replay = make(capacity)
        chunks = tape.play(replay.heads)
        inserts = capacity // CHUNK
        for _ in range(inserts):
            replay.insert(next(chunks))
        grown, known = anonymous_bytes() - before, more(replay)
    priorities = np.random.default_rng(0).uniform(0.1, 1.0, BATCH).astype(np.float32)

    def iteration() -> float:
        replay.insert(next(chunks))
        _, where = replay.sample()
        replay.update(where, priorities)
        return 1.0

    def facts() -> dict[str, Any]:
        held = inserts * CHUNK
        return {"bytes_per_transition": grown / held, **known, **check(make, tape)}

    serve(iteration, packages, facts)


def _warm_up(replay: Replay, tape: Tape) -> None:
    """Do everything once, so that what is compiled or cached counts as memory of no transition."""
    chunks = tape.play(replay.heads)
    for _ in range(_WARM_UP_CHUNKS):
        replay.insert(next(chunks))
    _, where = replay.sample()
    replay.update(where, np.ones(BATCH, np.float32))


@contextmanager
def _prints_to_standard_error() -> Iterator[None]:
    """Until `serve` does the same for good: standard output belongs to its answers."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def anonymous_bytes() -> int:
    """Memory of this process alone, without files that it maps, such as the tape."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what is free, but kept, counts as used before
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def check(make: Callable[[int], Replay], tape: Tape) -> dict[str, Any]:
    """Hold a small replay against the tape, and its draws against p^α; return what was seen.

    Raises:
      ValueError: transitions, distribution or weights are wrong.
    """
    replay = make(_CHECK_CAPACITY)
    chunks = tape.play(replay.heads)
    for _ in range(_CHECK_CHUNKS):
        replay.insert(next(chunks))
    priorities = np.random.default_rng(1).uniform(0.2, 1.0, len(tape.first)).astype(np.float32)
    counts = np.zeros(len(tape.first), np.int64)
    for _ in range(_CHECK_BATCHES):  # until every row has its priority
        batch, where = replay.sample()
        counts[rows_of(batch)] = 1
        replay.update(where, priorities[rows_of(batch)])
    held, counts = counts > 0, np.zeros_like(counts)
    wrong = 0
    for i in range(_CHECK_BATCHES):
        batch, where = replay.sample()
        np.add.at(counts, rows_of(batch), 1)
        if i < _COMPARED_BATCHES:
            wrong += len(wrong_rows(batch, tape))
            _check_weights(batch, priorities[rows_of(batch)])
        replay.update(where, priorities[rows_of(batch)])
    chi2 = _chi2(counts[held], priorities[held] ** replay.alpha)
    if chi2 > MAX_CHI2 or counts[~held].any():
        raise ValueError(f"draws do not follow p^{replay.alpha:g}: χ² per degree is {chi2:.2f}")
    share = wrong / (_COMPARED_BATCHES * BATCH)
    if share > replay.tolerance:
        raise ValueError(f"{share:.2%} of its transitions differ from the tape's")
    return {"held": int(held.sum()), "chi2": chi2, "differing": share, "differs": replay.differs}


def rows_of(batch: Batch) -> np.ndarray:
    """(B,) int64: rows of the tape that a batch came from."""
    return np.asarray(batch.a_tm1).reshape(-1).astype(np.int64)


def wrong_rows(batch: Batch, tape: Tape) -> list[int]:
    """Rows whose transition differs from the tape's; s_t is not read where nothing bootstraps."""
    arrays = [np.asarray(array) for array in batch[:5]]
    for name, array in zip(Batch._fields, arrays, strict=False):
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} is not contiguous: strides {array.strides}")
    return [
        int(row)
        for i, row in enumerate(rows_of(batch))
        if not _same([array[i] for array in arrays], tape, int(row))
    ]


def _same(sampled: list[np.ndarray], tape: Tape, row: int) -> bool:
    s_tm1, _, r_t, discount_t, s_t = sampled
    wanted_r, wanted_discount, last = _return(tape, row)
    return (
        np.array_equal(s_tm1, tape.frames[_stack(tape, row)])
        and abs(float(r_t) - wanted_r) < 1e-4
        and abs(float(discount_t) - wanted_discount) < 1e-4
        and (wanted_discount == 0 or np.array_equal(s_t, tape.frames[_stack(tape, last)]))
    )


def _return(tape: Tape, row: int) -> tuple[float, float, int]:
    """Return of the transition that starts at a row, its discount, and the row it leads to."""
    total = 0.0
    for step in range(1, N_STEP + 1):
        total += DISCOUNT ** (step - 1) * float(tape.rewards[row + step])
        if tape.terminated[row + step]:
            return total, 0.0, row + step
        if tape.truncated[row + step]:
            break
    return total, DISCOUNT**step, row + step


def _stack(tape: Tape, row: int) -> list[int]:
    """Rows of the stack at a row, oldest first: its episode's first row fills what is missing."""
    rows = [row]
    while len(rows) < STACK:
        rows.insert(0, rows[0] if tape.first[rows[0]] else rows[0] - 1)
    return rows


def _chi2(counts: np.ndarray, masses: np.ndarray) -> float:
    """Pearson's χ² of (k,) counts against (k,) relative masses, per degree of freedom."""
    expected = counts.sum() * masses / masses.sum()
    return float(((counts - expected) ** 2 / expected).sum() / (len(counts) - 1))


def _check_weights(batch: Batch, priorities: np.ndarray) -> None:
    if batch.weights is None:
        return
    constant = np.asarray(batch.weights).reshape(-1) * priorities ** (ALPHA * BETA)
    if constant.max() > 1.02 * constant.min():
        raise ValueError(
            f"weights are not p^-αβ up to a constant: {constant.min()} to {constant.max()}"
        )

"""Which policies rovers get: none that is clearly worse than the one they have.

Invariant: pure decisions from returns. A policy is worse when its mean return is below the
incumbent's by more than a margin: a share of the incumbent's return, or of 1 where that is smaller,
so that a return about 0 does not make every difference count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """What evaluation episodes of one policy returned."""

    mean_return: float
    episodes: int


@dataclass(frozen=True)
class Verdict:
    """Whether a policy goes out, and why not."""

    send: bool
    reason: str


def threshold(incumbent: Score, margin: float) -> float:
    """Mean return below which a policy is worse than the incumbent."""
    return incumbent.mean_return - margin * max(1.0, abs(incumbent.mean_return))


def judge(candidate: Score | None, incumbent: Score | None, margin: float) -> Verdict:
    """Whether a policy that was judged before it is sent goes out; one that nobody judged does."""
    if candidate is None or incumbent is None:
        return Verdict(True, "nothing to compare with")
    low = threshold(incumbent, margin)
    compared = f"mean return {candidate.mean_return:.3g} over {candidate.episodes} episodes"
    if candidate.mean_return < low:
        return Verdict(
            False, f"{compared}; the policy on the rovers has {incumbent.mean_return:.3g}"
        )
    return Verdict(True, compared)


def go_back_to(
    scores: Mapping[int, Score], flying: int, margin: float, min_episodes: int
) -> int | None:
    """The version to send again instead of the one on the rovers; None: it may stay.

    Args:
      scores: by version, of the rovers' own evaluation episodes.
      flying: version on the rovers.
      margin: as above.
      min_episodes: with fewer, a version is not judged, nor compared with.
    """
    judged = {v: s for v, s in scores.items() if s.episodes >= min_episodes}
    earlier = {v: s for v, s in judged.items() if v < flying}
    if flying not in judged or not earlier:
        return None
    best = max(earlier, key=lambda version: earlier[version].mean_return)
    worse = judged[flying].mean_return < threshold(earlier[best], margin)
    return best if worse else None

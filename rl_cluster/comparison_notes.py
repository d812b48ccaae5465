"""What one should know before one trusts a comparison, in sentences.

Invariant: whatever makes runs less comparable than their grouping says is said, and none is left
out for it: who compares decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rl_cluster.comparison_runs import ComparedRun, Group, differing
from rl_cluster.telemetry.formatting import short_count

_UNEQUAL_SHARE = 0.1
"""Of the most steps: by how much runs may differ in length before it is said."""
_MOST_NAMED = 3


def notes_on(groups: Sequence[Group], scale: str | None) -> list[str]:
    """Return the notes on groups of runs that are put beside each other.

    Args:
      groups: of the same tasks.
      scale: of the aggregates; None: there is none.
    """
    notes = [note for group in groups for note in _on_group(group)]
    notes += _on_length(groups)
    if scale is None:
        notes.append("no aggregate: not every task has published human and random scores")
    if scale == "return":
        notes.append("the aggregate is of plain returns: the task has no published scores")
    return notes


def _on_group(group: Group) -> Iterator[str]:
    if len(group.runs) == 1:
        yield f"{group.name} is one run: it has no interval"
    for directory in group.not_begun:
        yield f"{directory.name} has not begun yet: {group.name} is without it"
    for run in group.runs:
        yield from _on_run(run)
    if len({run.seed for run in group.runs}) < len(group.runs):
        yield f"{group.name} has a seed twice"
    if keys := differing(run.settings for run in group.runs):
        more = len(keys) - _MOST_NAMED
        others = f" and {more} more" if more > 0 else ""
        yield f"runs of {group.name} differ in {', '.join(keys[:_MOST_NAMED])}{others}"


def _on_run(run: ComparedRun) -> Iterator[str]:
    name = run.directory.name
    if run.state != "completed":
        yield f"{name} is {run.state}, not completed: its newest evaluation counts"
    for task in run.failed if run.state != "failed" else ():
        steps = short_count(run.evaluations[task][-1].env_steps)
        yield f"{name}/{task} is failed: its newest evaluation, at {steps} env steps, counts"
    if run.changes:
        kinds = ", ".join(run.changes)
        yield f"{name} was changed while it trained ({kinds}): its incidents say how"


def _on_length(groups: Sequence[Group]) -> Iterator[str]:
    runs = [run for group in groups for run in group.runs]
    for task in runs[0].evaluations:
        steps = [run.evaluations[task][-1].env_steps for run in runs]
        least, most = min(steps), max(steps)
        if most - least > _UNEQUAL_SHARE * most:
            yield (
                f"the newest evaluations of {task} are after {short_count(least)} to "
                f"{short_count(most)} env steps: compare its curves at the same step"
            )

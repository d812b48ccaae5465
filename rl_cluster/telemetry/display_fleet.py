"""What a fleet shows on the terminal beside what every task does: its stream and its rovers."""

from __future__ import annotations

from rich.text import Text

from rl_cluster.telemetry.formatting import UNKNOWN, duration, number
from rl_cluster.telemetry.summary import Rover, Stream, Summary, TaskSummary

_SHOWN = 8


def fleets(summary: Summary) -> list[Text]:
    """The streams of a run, each with its rovers."""
    return [
        Text("\n".join(_lines(name, task["stream"])))
        for name, task in summary["tasks"].items()
        if "stream" in task
    ]


def fleet_parts(task: TaskSummary) -> list[str]:
    """A fleet's part of a plain line; none for a game."""
    if "stream" not in task:
        return []
    stream = task["stream"]
    versions = " ".join(
        f"{name} v{_version(rover)}" for name, rover in list(stream["rovers"].items())[:_SHOWN]
    )
    server = stream["url"] or "no server yet"
    return [server, *_health(stream), f"rovers {len(stream['rovers'])}: {versions}"]


def _lines(name: str, stream: Stream) -> list[str]:
    head = f"{name}  {stream['url'] or 'no server yet'}  " + "  ".join(_health(stream))
    rovers = list(stream["rovers"].items())
    more = len(rovers) - _SHOWN
    return [
        head,
        *(_rover_line(*each) for each in rovers[:_SHOWN]),
        *([f"  and {more} more"] if more > 0 else []),
    ]


def _health(stream: Stream) -> list[str]:
    age_s = stream["newest_age_s"]
    parts = [
        f"messages {number(stream['messages_per_s'])}/s",
        f"newest {UNKNOWN if age_s is None else f'{age_s:.1f} s'} old",
        f"policy sent v{stream['sent_version'] or 0}",
        f"quarantined {stream['quarantined']}",
    ]
    if stream["held_back"]:
        parts.append(f"held back {stream['held_back']}")
    return parts + ([f"no connection: {stream['trouble']}"] if not stream["connected"] else [])


def _rover_line(name: str, rover: Rover) -> str:
    return (
        f"  {name}  policy v{_version(rover)}  return {number(rover['mean_return'])} over "
        f"{rover['episodes']} episodes  seen {duration(rover['last_seen_age_s'])} ago"
    )


def _version(rover: Rover) -> str:
    version = rover["policy_version"]
    return UNKNOWN if version is None else str(max(0, version))

"""What the watch page shows of a fleet, worded: plain texts, which the page only places.

Invariant: an age goes on from when its file was written, and of a reader that is silent nothing is
said that only it could know, so old news never look fresh. What is not known is a dash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypedDict
from urllib.parse import quote

from rl_cluster.policy_shelf import PolicyRecord
from rl_cluster.telemetry.formatting import (
    UNKNOWN,
    count,
    data_size,
    duration,
    number,
    percent,
    score,
)
from rl_cluster.telemetry.summary import TaskSummary
from rl_cluster.telemetry.watch_files import QUIET_S, FleetFiles, modified_s, view_file

POLICY_HEADS = ("policy", "sent", "updates", "evaluation", "in the field", "on", "why", "size")

_GONE_S = 60.0
_SKEW_S = 5.0
_BEHIND = 2

Kind = Literal["", "good", "warn", "bad"]


class Fact(TypedDict):
    """One figure."""

    label: str
    value: str
    note: str
    kind: Kind


class Notice(TypedDict):
    """A sentence about the whole."""

    text: str
    kind: Kind


class RoverCard(TypedDict):
    """One rover."""

    name: str
    kind: Kind
    seen: str
    view: str | None
    """Address of the picture of what it saw last, another one for each; None: there is none."""
    view_note: str
    sent: str
    facts: list[Fact]


class View(TypedDict):
    """All that the page shows."""

    run: str
    task: str
    state: Notice
    notices: list[Notice]
    stream: list[Fact]
    learning: list[Fact]
    returns: list[float]
    """Of the newest training episodes, the newest last."""
    rovers: list[RoverCard]
    policies: list[list[str]]
    """Under `POLICY_HEADS`, the newest first."""


def view_of(files: FleetFiles) -> View:
    """Word what the files say."""
    task = files.task
    return {
        "run": files.summary["run"] if files.summary else files.task_dir.parent.resolve().name,
        "task": files.task_dir.name,
        "state": _state(files),
        "notices": [*_run_notices(files), *_reader_notices(files)],
        "stream": _stream_facts(files),
        "learning": [] if task is None else _learning_facts(task, files),
        "returns": [] if task is None else task["returns"]["last"],
        "rovers": [_card(rover, files) for rover in files.rovers],
        "policies": [_policy_row(record, files) for record in files.policies],
    }


def _state(files: FleetFiles) -> Notice:
    summary, task = files.summary, files.task
    if summary is None:
        return _notice("no summary yet")
    if files.stale:
        return _notice("no sign of life", "bad")
    state = task["state"] if task is not None and files.live else summary["state"]
    kinds: dict[str, Kind] = {"running": "good", "completed": "good", "failed": "bad"}
    return _notice(state.replace("_", " "), kinds.get(state, ""))


def _run_notices(files: FleetFiles) -> Iterator[Notice]:
    summary, task = files.summary, files.task
    if summary is None:
        yield _notice("The run has no summary.json that can be read: it may have just begun.")
        return
    age = duration(files.now_s - summary["updated_at"])
    if files.stale:
        yield _notice(
            f"Nothing was heard of the run for {age}: it died, or its machine hangs. To go on: "
            f"rl-cluster train CONFIG --run {files.task_dir.parent} --resume",
            "bad",
        )
    elif not files.live:
        yield _notice(f"The run ended {age} ago: {summary['state']}. This was its last state.")
    if task is not None and task["failure"]:
        yield _notice(f"The task is parked: {task['failure']}", "bad")


def _reader_notices(files: FleetFiles) -> Iterator[Notice]:
    """What stands between rovers and learner, unless the run is over."""
    if files.summary is not None and not files.live:
        return
    stream, source = files.stream, files.status.get("stream", {}).get("source", {})
    silent_s, trouble = files.age_now_s(source.get("silent_s")), source.get("trouble")
    if files.status_age_s is None:
        why = _why(stream["trouble"]) if stream else ""
        yield _notice(f"The reader has written nothing yet{why}.")
    elif not files.reader_speaks:
        yield _silent_reader(files, duration(files.status_age_s))
    elif not source.get("connected"):
        yield _notice(f"There is no connection to the server{_why(trouble)}.", "bad")
    elif silent_s is not None and silent_s > QUIET_S:
        yield _notice(f"No message came for {duration(silent_s)}{_why(trouble)}.", "warn")
    if not files.rovers:
        place = f" They join at {stream['url']}." if stream and stream["url"] else ""
        yield _notice(f"No rover was heard of yet.{place}")


def _silent_reader(files: FleetFiles, age: str) -> Notice:
    text = f"The reader is silent: it wrote nothing for {age}, so below is what was."
    if files.task is not None and files.task["state"] in ("paused", "queued"):
        return _notice(f"{text} The task is {files.task['state']}.")
    return _notice(text, "bad")


def _why(trouble: str | None) -> str:
    return f": {trouble}" if trouble else ""


def _stream_facts(files: FleetFiles) -> list[Fact]:
    intake, stream = files.status.get("stream", {}), files.stream
    source, newest_s = intake.get("source", {}), intake.get("newest_published_s")
    age_s = None if newest_s is None else max(0.0, files.now_s - newest_s)
    speaks = files.live and files.reader_speaks
    rate = f"{number(stream['messages_per_s'])}/s" if stream and speaks else ""
    return [
        _fact("messages", count(intake.get("messages")), rate),
        _fact("newest message", _age(age_s), "since it was published",
              "warn" if files.live and (age_s or 0.0) > QUIET_S else ""),
        _fact("at the server", count(source.get("pending")), "wait to be read"),
        _fact("in flight", count(intake.get("in_flight")), "not stored yet"),
        _fault("quarantined", source.get("quarantined"), "malformed", "warn"),
        _fault("expired", source.get("expired"), "before they were read", "bad"),
        _fault("over quota", intake.get("over_quota"), "not learned from", "warn"),
        _fact("came again", count(source.get("redelivered")),
              f"{count(stream['doubles'])} blocks taken once" if stream else ""),
        _fact("reconnects", count(source.get("reconnects"))),
    ]  # fmt: skip


def _learning_facts(task: TaskSummary, files: FleetFiles) -> list[Fact]:
    returns, ratio, replay = task["returns"], task["samples_per_insert"], task["replay"]
    evaluation, best, stream = task["evaluation"], task["best"], files.stream
    return [
        _fact("return", score(returns["mean"]), f"{len(returns['last'])} newest episodes"),
        _fact("evaluation", score(evaluation and evaluation["mean_return"]),
              evaluation and f"random {score(evaluation['random_mean_return'])}"),
        _fact("best", score(best and best["mean_return"]),
              best and f"at update {count(best['step'])}"),
        _fact("episodes", count(returns["episodes"]), f"{count(task['env_steps'])} steps"),
        _fact("updates", count(task["learner_updates"]),
              f"waits {percent(task['learner_wait_share'])} of its time"),
        _fact("samples per insert", number(ratio["actual"]), f"wanted {number(ratio['wanted'])}"),
        _fact("replay", percent(replay["fill"]), f"{count(replay['transitions'])} steps"),
        _fact("policy sent", _version(files.sent_version),
              f"{stream['held_back']} held back" if stream and stream["held_back"] else ""),
    ]  # fmt: skip


def _card(rover: Mapping[str, Any], files: FleetFiles) -> RoverCard:
    name = rover["rover"]
    kind, seen = _seen(files.age_now_s(rover.get("last_seen_age_s")), files)
    view_s = modified_s(view_file(files.task_dir, name))
    age_s = None if view_s is None else max(0.0, files.now_s - view_s)
    return {
        "name": name,
        "kind": kind,
        "seen": seen,
        "view": None if view_s is None else f"rovers/{quote(name, safe='')}.png?{view_s}",
        "view_note": "no view yet" if age_s is None else f"view {_age(age_s)} old",
        "sent": f"{count(rover.get('messages'))} messages",
        "facts": _rover_facts(rover, files.sent_version),
    }


def _seen(age_s: float | None, files: FleetFiles) -> tuple[Kind, str]:
    if age_s is None or not files.live or not files.reader_speaks:
        return "", f"last heard {_age(age_s)} ago"
    if age_s <= QUIET_S:
        return "good", f"seen {_age(age_s)} ago"
    return "warn" if age_s <= _GONE_S else "bad", f"silent for {_age(age_s)}"


def _rover_facts(rover: Mapping[str, Any], sent_version: int | None) -> list[Fact]:
    get, skew_s = rover.get, rover.get("clock_skew_s")
    kind: Kind = "warn" if abs(skew_s or 0.0) >= _SKEW_S else ""
    refused = get("refused_steps")
    over_quota = _fault("over quota", refused, "steps not learned from", "warn")
    return [
        _fact("return", score(get("mean_return")), f"{count(get('episodes'))} episodes"),
        _fact("evaluation", score(get("mean_eval_return")),
              f"{count(get('eval_episodes'))} episodes"),
        _fact("this episode", score(get("episode_return")), f"{count(get('episode_steps'))} steps"),
        _policy_fact(get("policy_version"), sent_version),
        _fact("clock", *_skew(skew_s), kind),
        _fault("lost", get("lost_messages"), f"messages, {get('gaps')} gaps", "warn"),
        *([over_quota] if refused else []),
    ]  # fmt: skip


def _policy_fact(version: int | None, sent_version: int | None) -> Fact:
    if version is None:
        return _fact("policy", UNKNOWN, "it names none")
    if version < 0:
        return _fact("policy", "none", "drives at random")
    behind = max(0, (sent_version or 0) - version)
    note = f"{behind} behind" if behind else "the newest"
    return _fact("policy", _version(version), note, "warn" if behind >= _BEHIND else "")


def _policy_row(record: PolicyRecord, files: FleetFiles) -> list[str]:
    returns = files.status.get("eval_returns", {}).get(str(record.version))
    carriers = Counter(rover.get("policy_version") for rover in files.rovers)[record.version]
    return [
        _version(record.version),
        f"{_age(max(0.0, files.now_s - record.time))} ago",
        count(record.learner_updates),
        _of_episodes(record.mean_return, record.episodes),
        _of_episodes(sum(returns) / len(returns), len(returns)) if returns else UNKNOWN,
        f"{carriers} rover{'' if carriers == 1 else 's'}" if carriers else UNKNOWN,
        record.reason,
        data_size(record.nbytes),
    ]


def _of_episodes(mean: float | None, episodes: int) -> str:
    return UNKNOWN if mean is None else f"{score(mean)} ({episodes})"


def _skew(skew_s: float | None) -> tuple[str, str]:
    """How far a rover's clock is from the server's."""
    if skew_s is None:
        return UNKNOWN, "it sends no time"
    size_s = abs(skew_s)
    if size_s < 0.001:
        return "in step", ""
    size = f"{1000 * size_s:.0f} ms" if size_s < 1 else _age(size_s)
    return size, "ahead" if skew_s > 0 else "behind"


def _version(version: int | None) -> str:
    return UNKNOWN if version is None else f"v{version}"


def _age(seconds: float | None) -> str:
    """An age; a short one moves while one watches."""
    return f"{seconds:.1f} s" if seconds is not None and seconds < QUIET_S else duration(seconds)


def _fact(label: str, value: str, note: str | None = "", kind: Kind = "") -> Fact:
    return {"label": label, "value": value, "note": note or "", "kind": kind}


def _fault(label: str, times: int | None, note: str, kind: Kind) -> Fact:
    """A count that is best at 0."""
    return _fact(label, count(times), note if times else "", kind if times else "")


def _notice(text: str, kind: Kind = "") -> Notice:
    return {"text": text, "kind": kind}

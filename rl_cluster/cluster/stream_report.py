"""A fleet's part of the summary: from what reader, courier and field said last."""

from __future__ import annotations

from rl_cluster.cluster.rates import Rate
from rl_cluster.cluster.reader_actor import ReaderStatus
from rl_cluster.cluster.task_group import TaskGroup
from rl_cluster.fleet_settings import stream_url
from rl_cluster.streams.fleet import RoverStatus
from rl_cluster.telemetry.summary import Rover, Stream


class StreamReport:
    """Turns the statuses of one fleet into its part of the summary."""

    def __init__(self, group: TaskGroup) -> None:
        self._group = group
        self._messages = Rate()

    def refresh(self, now_s: float) -> None:
        """Read the newest statuses."""
        reader = self._group.reader_status
        if reader is None:
            self._messages.hold(now_s)
        else:
            self._messages.add(now_s, reader.intake.messages)

    def summary(self) -> Stream:
        """The fleet's stream."""
        group, reader = self._group, self._group.reader_status
        source = reader.intake.source if reader else None
        replay, courier = group.replay_status, group.courier_status
        return {
            "url": stream_url(group.plan.run_dir, group.plan.task, group.config),
            "connected": source is not None and source.connected,
            "trouble": source.trouble if source else "not connected yet",
            "messages": reader.intake.messages if reader else 0,
            "messages_per_s": self._messages.per_second,
            "newest_age_s": reader.newest_age_s if reader else None,
            "silent_s": source.silent_s if source else None,
            "quarantined": source.quarantined if source else 0,
            "doubles": replay.doubles if replay else 0,
            "sent_version": courier.sent_version if courier else None,
            "held_back": courier.held_back if courier else 0,
            "rovers": _rovers(reader),
        }

    def metrics(self) -> dict[str, float | None]:
        """The fleet's own figures in its row of metrics."""
        stream = self.summary()
        return {
            "stream_messages_per_s": stream["messages_per_s"],
            "stream_newest_age_s": stream["newest_age_s"],
            "stream_quarantined": stream["quarantined"],
            "rovers": len(stream["rovers"]),
            "sent_version": stream["sent_version"],
        }


def _rovers(reader: ReaderStatus | None) -> dict[str, Rover]:
    return {} if reader is None else {each.rover: _rover(each) for each in reader.rovers}


def _rover(status: RoverStatus) -> Rover:
    return {
        "policy_version": status.policy_version,
        "last_seen_age_s": status.last_seen_age_s,
        "mean_return": status.mean_return,
        "episodes": status.episodes,
    }

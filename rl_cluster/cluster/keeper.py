"""The keeper of a run: starts its cluster and its supervisor, and brings back what died of them.

A process of its own in a session of its own, so that no terminal, notebook or job takes it along;
it calls Ray's start-up and nothing else of Ray, since whoever is connected to a cluster dies with
it. The supervisor watches the keeper as the keeper watches it, and each replaces the other.
Invariant: it holds the run directory's lock; when it returns, how the run ended is written down and
no process of the run is left.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_cluster.cluster import runtime
from rl_cluster.cluster.cluster_guard import ClusterGuard
from rl_cluster.config_file import load
from rl_cluster.control import NO_ROOM, REFUSED, RUN_MARK, Control, PulseReader
from rl_cluster.orphan import launch_orphan
from rl_cluster.run_directory import ClusterAddress, RunDirectory, RunDirectoryError, read_cluster
from rl_cluster.service import IN_USE, RUN_FAILED, Notifier
from rl_cluster.signals import StopFlag
from rl_cluster.supervision.health import Watch
from rl_cluster.supervision.spacing import Spacing
from rl_cluster.telemetry.incidents import Incident, IncidentLog
from rl_cluster.telemetry.summary import RunState

_log = logging.getLogger(__name__)
_LOOK_S = 0.25
_HURRY_S = 7.0
"""Longest that a run may take to save when it is asked to stop."""
_SILENT_S = 13.0
_STARTING_S = 90.0
_SHOT_LATELY_S = 60.0
"""A supervisor that falls silent again so soon needs more than another life: a new cluster."""
_MAX_VAIN_RESTARTS = 5
"""Restarts of the cluster in a row after none of which the supervisor came back."""
_LONGEST_BACKOFF_S = 30.0
_DISMISSAL_S = 12.0  # whoever stops a run waits for 20 s
_RECYCLING_S = (20.0, 600.0, 1800.0)
"""Between clusters that the supervisor asks for: first gap, longest gap, and calm."""
_ENLIST = (sys.executable, "-m", "rl_cluster.cluster.enlist")


class Keeper:
    """Keeps one run until it is over."""

    def __init__(self, directory: RunDirectory, stop: StopFlag, systemd: Notifier) -> None:
        self._directory, self._stop, self._systemd = directory, stop, systemd
        self._control = Control(directory.path)
        self._watch = Watch(longest_tick_s=2.0)
        self._supervisor = PulseReader(self._control, "supervisor", 0.0)
        self._starter: subprocess.Popen[bytes] | None = None
        self._seen_alive, self._shot_s, self._start_error = False, -math.inf, ""
        self._stop_asked_s: float | None = None
        self._guard: ClusterGuard | None = None
        self._unannounced: ClusterAddress | None = None
        """The cluster, as long as a full disk does not take its address."""
        self._restarts, self._vain_restarts = 0, 0
        """Since the supervisor last lived: all, and those that a full disk does not explain."""
        self._recycling, self._recycle_put_off = Spacing(*_RECYCLING_S), False
        self._said_no_room = False

    def run(self, adopt: bool) -> int:
        """Keep the run; return the exit code of its end.

        Args:
          adopt: go on with the cluster that a keeper before this one left.
        """
        os.environ[RUN_MARK] = str(self._directory.path)  # `rl-cluster keep` comes without it
        self._sign()
        if not adopt:
            self._start_cluster()
        elif self._cluster is None or not self._cluster.alive:
            # Its address must not be read, and what is left of it may still hold fences.
            self._restart("the cluster that was left is gone")
        self._systemd.ready()
        state, reason = self._keep()
        self._write_end(state, reason)
        left = self._leave_cluster()
        if left:
            _log.error("processes that do not die: %s", left)
        self._directory.mark_ended(state)
        self._directory.release()
        return {"completed": 0, "interrupted": 130}.get(state, RUN_FAILED)

    def _keep(self) -> tuple[RunState, str | None]:
        """Look, and look again, until the run is over; say how it ended."""
        while True:
            if self._stop.wait(_LOOK_S):
                self._ask_to_stop()
            now_s = self._watch.look(time.monotonic())
            self._control.beat("keeper")
            if (end := self._control.read("end")) is not None:
                return end["state"], end["reason"]
            if self._stop_overdue(now_s):
                return "interrupted", "it did not save in time: its last checkpoints stand"
            if (failure := self._starter_failure()) is not None:
                return "failed", failure
            if self._control.requested("recycled") and self._may_recycle(now_s):
                self._restart("the supervisor asked for a new cluster")
            elif (cause := self._lost_because(now_s)) is not None:
                if self._vain_restarts >= _MAX_VAIN_RESTARTS:
                    return "failed", f"{self._vain_restarts} restarts in vain: {cause}"
                self._restart_after_a_while(cause)

    def _ask_to_stop(self) -> None:
        """Pass a signal on: SIGTERM comes from a host that shuts down, or from its systemd."""
        if not self._control.requested("stop"):
            if self._stop.came == signal.SIGTERM:
                self._control.request("leave")
            self._control.request("stop")

    def _may_recycle(self, now_s: float) -> bool:
        """Whether a new cluster may be made because it was asked for; says so once, where not."""
        wait_s = self._recycling.wait_s(now_s)
        if wait_s == 0:
            self._recycling.done(now_s)
            self._recycle_put_off = False
            return True
        if not self._recycle_put_off:
            self._recycle_put_off = True
            cause = "the supervisor asked for a new cluster soon after the one before"
            self._say(cause, f"it is made in {wait_s:.0f} s", "recycling_put_off")
        return False

    def _restart_after_a_while(self, cause: str) -> None:
        """Make another cluster, later each time that none lived."""
        self._stop.wait(min(2.0 ** min(self._restarts, 10) - 1, _LONGEST_BACKOFF_S))
        self._restarts += 1
        if self._starter is not None and self._starter.poll() == NO_ROOM:
            if not self._said_no_room:
                self._say(cause, "tried again, until there is room", "store_taken")
            self._said_no_room = True
        else:
            # Nothing that a full disk brings about says that the run is hopeless.
            self._vain_restarts += self._directory.has_room and runtime.has_room()
            self._say(cause)
        self._restart(cause)

    def _sign(self) -> None:
        """Say who keeps the run; on a full disk the pulse alone does."""
        try:
            self._control.sign("keeper", os.getpid())
        except OSError as error:
            _log.error("not signed: %s", error)

    def _write_end(self, state: RunState, reason: str | None) -> None:
        """Say how it ended; on a full disk in the room of what nobody reads any more."""
        end = {"state": state, "reason": reason}
        try:
            self._control.write("ended", end)
        except OSError:
            self._control.forget("supervisor_state")
            try:
                self._control.write("ended", end)
            except OSError as error:
                _log.error("its end (%s) is not written: %s", end, error)

    @property
    def _cluster(self) -> ClusterAddress | None:
        return self._unannounced or read_cluster(self._directory.path)

    def _start_cluster(self) -> None:
        """Start an empty cluster and, beside it, the program that enlists the supervisor."""
        self._seen_alive, self._shot_s, self._start_error = False, -math.inf, ""
        self._control.clear("recycled")
        config, session = load(self._directory.path / "config.yaml"), self._control.read("session")
        assert session is not None
        self._enlist()
        namespace, store_bytes = self._directory.namespace, session["object_store_bytes"]
        try:
            self._unannounced = (
                runtime.start(config.cluster, namespace, store_bytes)
                if config.cluster.address == "local"
                else ClusterAddress(config.cluster.address, namespace, ())
            )
        except Exception as error:  # noqa: BLE001 - Ray's start-up raises whatever it likes
            # Without a cluster the next look finds none, and another start is counted.
            _log.exception("Ray did not start")
            self._start_error = str(error)
        else:
            self._announce()

    def _enlist(self) -> None:
        """Start the program that waits for the cluster and enlists the supervisor."""
        self._control.forget("enlist")
        command = [*_ENLIST, str(self._directory.path)]
        self._starter = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._supervisor.reset(self._watch.look(time.monotonic()))

    def _announce(self) -> bool:
        """Say where the cluster is; on a full disk, each look tries again.

        Returns:
          Whether everybody can know.
        """
        if self._unannounced is None:
            return True
        try:
            self._directory.write_address(self._unannounced)
        except OSError as error:
            _log.error("the cluster lives, its address is not written: %s", error)
            return False
        self._unannounced = None
        if self._starter_is_done:  # it has not waited as long as the room took to come
            self._enlist()
        return True

    def _restart(self, cause: str) -> None:
        _log.warning("new cluster: %s", cause)
        self._leave_cluster()
        self._start_cluster()

    def _leave_cluster(self) -> list[int]:
        """End everything that the run has on its cluster, and the cluster where it is its own.

        Returns:
          Processes on this host that do not die.
        """
        if self._starter is not None:  # else it might enlist another behind us
            self._starter.kill()
            self._starter.wait()
        cluster = self._cluster
        if cluster is not None and not cluster.daemons:
            self._dismiss()
        self._unannounced = None
        self._directory.forget_address()
        return runtime.end_processes(self._directory.path, cluster)

    def _dismiss(self) -> None:
        """End the run's actors; where nobody answers, a supervisor that comes back does it."""
        dismissal = [*_ENLIST, str(self._directory.path), "--dismiss"]
        try:
            subprocess.run(dismissal, check=False, timeout=_DISMISSAL_S)
        except subprocess.TimeoutExpired:
            _log.error("the cluster does not answer: the run's actors there are not ended")

    def _lost_because(self, now_s: float) -> str | None:
        """Why the cluster has to be made anew; None while it lives."""
        cluster = self._cluster
        if cluster is None or not cluster.alive:
            return self._start_error or "a process of the cluster itself died"
        if self._guard is None or self._guard.cluster != cluster:
            self._guard = ClusterGuard(cluster)
        if (standstill := self._guard.lost_because(now_s)) is not None:
            return standstill
        if not self._announce():
            return None
        if self._starter is not None and self._starter.poll():
            said = (self._control.read("enlist") or {}).get("error", "see keeper.log")
            return f"the supervisor could not be started: {said}"
        silence_s = self._supervisor.silence_s(now_s)
        if silence_s < 2.0:
            if self._starter_is_done:
                self._seen_alive, self._restarts, self._vain_restarts = True, 0, 0
                self._said_no_room = False
            self._systemd.alive()
        limit_s = _SILENT_S if self._seen_alive else _STARTING_S
        if silence_s < limit_s:
            return None
        process = self._control.signed("supervisor")
        shot_lately = now_s - self._shot_s < _SHOT_LATELY_S
        if self._seen_alive and not shot_lately and process is not None:
            # Ray brings it back, in a cluster that works: nothing of the run is lost by it.
            self._shot_s = now_s
            self._supervisor.reset(now_s)
            self._say_and_shoot(process.pid if process.alive else None, silence_s)
            return None
        return f"the supervisor has been silent for {silence_s:.0f} s"

    @property
    def _starter_is_done(self) -> bool:
        return self._starter is None or self._starter.poll() is not None

    def _starter_failure(self) -> str | None:
        """Why the run cannot be, whatever is tried again."""
        if self._starter is None or self._starter.poll() != REFUSED:
            return None
        said = self._control.read("enlist") or {}
        return str(said.get("error") or f"see {self._directory.path}/keeper.log")

    def _stop_overdue(self, now_s: float) -> bool:
        if not self._control.requested("stop"):
            return False
        if self._stop_asked_s is None:
            self._stop_asked_s = now_s
        return not self._seen_alive or now_s - self._stop_asked_s > _HURRY_S

    def _say_and_shoot(self, pid: int | None, silence_s: float) -> None:
        self._say(
            f"the supervisor has been silent for {silence_s:.0f} s", "killed; Ray restarts it"
        )
        if pid is not None:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                return

    def _say(
        self,
        cause: str,
        action: str = "a new cluster, and every task resumes",
        kind: str = "cluster_lost",
    ) -> None:
        incident = Incident(time.time(), None, "keeper", kind, cause, action)
        try:
            log = IncidentLog(self._directory.path)
            log.append(incident)
            log.close()
        except OSError as error:
            _log.error("incident not written (%s): %s", error, incident)


def launch(run_dir: Path, lock_fd: int | None = None) -> None:
    """Start a keeper that is nobody's child; with `lock_fd` it is handed the run's lock."""
    handed = [] if lock_fd is None else ["--lock-fd", str(lock_fd)]
    command = [sys.executable, "-m", "rl_cluster.cluster.keeper", str(run_dir), *handed]
    kept = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") or name in kept
    } | {RUN_MARK: str(run_dir)}
    pass_fds = [] if lock_fd is None else [lock_fd]
    launch_orphan(command, run_dir / "keeper.log", environment, pass_fds)


def main(argv: Sequence[str] | None = None) -> int:
    """Keep the run in a directory."""
    parser = argparse.ArgumentParser(prog="rl-cluster-keeper", description=main.__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--lock-fd", type=int)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    stop, systemd = StopFlag(), Notifier()
    stop.install()
    directory = RunDirectory(arguments.run, arguments.lock_fd)
    if arguments.lock_fd is None and (code := _take_up(directory)) is not None:
        systemd.ready()  # one that ends without would be started again
        return code
    try:
        directory.sign()
    except OSError as error:
        _log.error("the lock is held, and not signed: %s", error)
    return Keeper(directory, stop, systemd).run(adopt=arguments.lock_fd is None)


def _take_up(directory: RunDirectory) -> int | None:
    """Take a run that was cut off; the exit code where there is none, or another keeps it."""
    control = Control(directory.path)
    ended, session = control.read("ended"), control.read("session")
    leaves = control.requested("leave")
    if session is None or control.is_over:
        damage = None if session is not None else control.put_aside("session")
        _log.info("%s: %s", directory.path, damage or "no run that was cut off: nothing to keep")
        return 0 if damage is None else RUN_FAILED
    try:
        directory.take_lock()
    except RunDirectoryError as error:
        _log.info("%s", error)
        return IN_USE
    cluster = read_cluster(directory.path)
    if leaves and not (cluster and cluster.daemons and cluster.alive):
        control.clear("stop")
        control.clear("leave")
    if ended is not None:
        if ended["state"] == "failed":
            _try_all_again(directory, control, session)
        control.forget("end")
        control.forget("ended")
    return None


def _try_all_again(directory: RunDirectory, control: Control, session: dict[str, Any]) -> None:
    """Begin a session, in which nothing counts as given up."""
    summary = directory.earlier_summary()
    wall_s = summary["wall_s"] if summary else session["wall_before_s"]
    began = {"id": uuid.uuid4().hex, "began_at": time.time(), "wall_before_s": wall_s}
    control.write("session", session | began)


if __name__ == "__main__":
    sys.exit(main())

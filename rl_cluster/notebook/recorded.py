"""What a run's directory tells a person: the part of a run's handle that ended runs have too.

Invariant: files are read and none is written; neither Ray nor the run is asked for anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rl_cluster.notebook.names import Names
from rl_cluster.telemetry.summary import Summary, read_summary

if TYPE_CHECKING:
    import pandas

    from rl_cluster.notebook.curves import Curves
    from rl_cluster.notebook.pictures import Blocks, Videos

NO_RUN = "holds no run: there is no config.yaml in it"
CURVES = ("return_mean", "evaluation_mean_return", "loss", "env_frames_per_s")


class RecordedRun:
    """A run's directory, read; shown in a notebook it is a table of its state.

    Args:
      run_dir: a run's, live or ended.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self.tasks = Names("task", self._task_names)
        """Names of its tasks: `run.tasks.Pong` is "Pong"."""

    def summary(self) -> Summary:
        """State and figures, as in summary.json.

        Raises:
          FileNotFoundError: the run has not written one yet.
        """
        return read_summary(self._run_dir)

    def frame(self, task: str | None = None) -> pandas.DataFrame:
        """Every row of metrics.jsonl as a table; docs/metrics.md says what each column means.

        Args:
          task: of one task; None: of all, and of the run itself, where `task` is missing.

        Returns:
          Columns `time` (UTC), `wall_s` (seconds at work), `task`, `env_steps`, and one a metric;
          what is not known is NaN.
        """
        from rl_cluster.notebook.frames import metrics_frame

        return metrics_frame(self._run_dir, self._known(task))

    def incidents(self) -> pandas.DataFrame:
        """What happened to the run: one row an incident, the oldest first."""
        from rl_cluster.notebook.frames import incidents_frame

        return incidents_frame(self._run_dir)

    def curves(self, *metrics: str, task: str | None = None) -> Curves:
        """Curves against environment frames; `run.curves().live()` draws them anew as it trains.

        Args:
          metrics: names in docs/metrics.md; none: returns, evaluation, loss and speed.
          task: of one task; None: a line for each.

        Raises:
          ValueError: there is no such metric of a task; the message names the nearest.
        """
        from rl_cluster.notebook.curves import Curves

        return Curves(self._run_dir, metrics or CURVES, self._known(task))

    def videos(self, task: str) -> Videos:
        """The films of a game's evaluations, shown beside each other, the newest first."""
        from rl_cluster.notebook.pictures import Videos

        return Videos(self._run_dir / self.tasks[task])

    def blocks(self, task: str, count: int = 4) -> Blocks:
        """The newest blocks of a task's replay, as pictures of what was observed.

        They are read from the journal on disk, which is some two seconds behind.

        Args:
          count: how many blocks.
        """
        from rl_cluster.notebook.pictures import Blocks

        return Blocks(self._run_dir / self.tasks[task], count)

    def __repr__(self) -> str:
        """Where it is, and its tasks."""
        return f"<run {self._run_dir.name} in {self._run_dir}; {self.tasks!r}>"

    def _repr_html_(self) -> str:
        from rl_cluster.notebook.status import status_html

        return status_html(self._run_dir)

    def _known(self, task: str | None) -> str | None:
        return None if task is None else self.tasks[task]

    def _task_names(self) -> list[str]:
        try:
            return list(read_summary(self._run_dir)["tasks"])
        except FileNotFoundError:
            return []


def open_run(run_dir: str | Path) -> RecordedRun:
    """Read a run's directory, of a live run or of one that has ended.

    Raises:
      FileNotFoundError: there is no run.
    """
    path = Path(run_dir).expanduser().absolute()
    if not (path / "config.yaml").is_file():
        raise FileNotFoundError(f"{path} {NO_RUN}")
    return RecordedRun(path)

"""Runs the notebooks from top to bottom, each in a kernel of its own, and makes pages of them.

`make notebooks` writes docs/notebooks/NAME.md with pictures beside it; what wants a cluster is run
where RAY_ADDRESS names one. Invariant: a notebook is run in a copy of this directory, so that its
file keeps no outputs, and no run of it is left behind.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from notebook_page import write_page

from rl_cluster.cluster.runtime import end_processes

HERE = Path(__file__).resolve().parent
PAGES = HERE.parent / "docs" / "notebooks"
WANT_A_CLUSTER = ("05_on_a_cluster",)
_CELL_TIMEOUT_S = 480


def notebooks() -> list[Path]:
    """Of this directory, in their order."""
    return sorted(HERE.glob("*.ipynb"))


def execute(path: Path, work_dir: Path, environment: Mapping[str, str] | None = None) -> Any:
    """Run a notebook in `work_dir`, beside a link to the experiments; return it with its outputs.

    Args:
      path: of the notebook.
      work_dir: empty, absolute; runs are made below it, and none is left at work.
      environment: further variables of its kernel.

    Raises:
      CellExecutionError: a cell failed; the message has its code and its error.
    """
    place = work_dir / HERE.name
    place.mkdir(parents=True)
    (work_dir / "experiments").symlink_to(HERE.parent / "experiments")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=_CELL_TIMEOUT_S,
        startup_timeout=_CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(place)}},
    )
    try:
        client.execute(env=os.environ | {"PYTHONPATH": str(HERE.parent), **(environment or {})})
    finally:
        for run_dir in runs_below(place):
            end_processes(run_dir)
    return notebook


def runs_below(place: Path) -> list[Path]:
    """Run directories that a notebook has made, those of a sweep included."""
    return sorted(config.parent for config in place.rglob("runs/**/effective.yaml"))


def main() -> int:
    """Run all notebooks, or those that are named, and write their pages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 01_first_run")
    names = parser.parse_args().names
    for path in notebooks():
        if (names and path.stem not in names) or (
            path.stem in WANT_A_CLUSTER and "RAY_ADDRESS" not in os.environ
        ):
            continue
        with tempfile.TemporaryDirectory() as work_dir:
            notebook = execute(path, Path(work_dir))
            print(write_page(notebook, path.stem, PAGES, Path(work_dir) / HERE.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())

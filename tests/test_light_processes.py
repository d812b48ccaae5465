"""Processes that compute nothing stay small: torch is some 180 MB and two seconds of a start."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_TORCH = ("keeper", "replay_actor", "weights_actor", "reader_actor", "field_actor", "handle")


def test_who_computes_nothing_does_not_import_torch() -> None:
    modules = ", ".join(f"rl_cluster.cluster.{name}" for name in WITHOUT_TORCH)
    look = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], timeout=120).returncode == 0

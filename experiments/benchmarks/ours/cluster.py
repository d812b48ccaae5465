"""A Ray cluster as a run of ours has it, for a side that needs no run.

Invariant: the cluster ends with the process that asked for it.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from pathlib import Path

from rl_cluster.cluster import runtime
from rl_cluster.config import ClusterConfig
from rl_cluster.control import RUN_MARK


def start_cluster(namespace: str, object_store_bytes: int) -> None:
    """Start a cluster, and connect this process to it."""
    mark = Path(tempfile.mkdtemp(prefix="side-"))
    os.environ[RUN_MARK] = str(mark)
    atexit.register(runtime.end_processes, mark)
    atexit.register(runtime.leave)
    runtime.join(runtime.start(ClusterConfig(), namespace, object_store_bytes))

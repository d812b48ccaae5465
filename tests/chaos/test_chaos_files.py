"""Disks that fill and files that rot: nothing torn is left, nothing damaged is used, all go on."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import test_checkpoint
import test_replay_journal
from counts import FULL, number
from figures import record_figure
from live_run import EXPERIMENTS, LiveRun, lines
from small_disk import small_disk
from support import check_row_end, wait_until

from rl_cluster.checkpoint import CheckpointStore
from rl_cluster.control import Control
from rl_cluster.replay.journal_segments import RefusedRecord, list_segments, newest_first

pytestmark = pytest.mark.chaos
CATCH = EXPERIMENTS / "catch.yaml"
DISK_MIB, RESERVE_MIB = 96, 48
SETTINGS = (
    "max_seconds=600",
    "defaults.checkpoint.period_s=2",
    "defaults.evaluation.period_s=4",
    "telemetry.period_s=1",
    "load.pressure.disk_free_low_bytes=0",
    "load.pressure.disk_free_high_bytes=0",
)

"""What a server has acknowledged to rovers is in the journal once, whoever dies on the way."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from chaos.counts import count
from chaos.figures import keep_figures
from nats.js.errors import NotFoundError
from nats_server import NatsServer
from numbered_stream import Sender, in_journal, wanted
from ray.exceptions import RayActorError
from small_disk import fill, small_disk

from rl_cluster.cluster.actors import Actor, read, spawn
from rl_cluster.cluster.messages import ReplayStatus
from rl_cluster.cluster.reader_actor import ReaderActor
from rl_cluster.cluster.replay_actor import ReplayActor
from rl_cluster.config import ReplayConfig, RolloutConfig, TaskConfig
from rl_cluster.config_rovers import StreamConfig
from rl_cluster.replay.block import schema_of
from rl_cluster.replay.journal import JournalPlace
from rl_cluster.rover_learning import ROVER_SPEC
from rl_cluster.streams.nats_settings import EXPERIENCE

TIMEOUT_S = 120.0
LENGTH, PLACES = 4, 4000

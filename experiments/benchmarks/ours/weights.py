"""Our way of weights to rollouts: the learner's publisher, the weights actor, rollouts' inbox.

Invariant: all parts are the real ones, in a cluster started as a run starts its own. Receivers are
actors that look into the inbox between two environment steps, as a rollout does, and load what came
into their policy; the learner makes an update before each publication. In place of environment
steps they sleep, so that what is timed is the way of the weights and not the load of emulators.

Asked: receivers (a list of how many).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from cluster import start_cluster
from serve import arguments, serve
from weights_seen import GAP_S, Arrivals, digest, publications_in

from rl_cluster.agents.dqn import Transitions
from rl_cluster.agents.policy import GreedyPolicy
from rl_cluster.cluster.actors import Actor, Ref, read, spawn
from rl_cluster.cluster.publisher import WeightsPublisher
from rl_cluster.cluster.rollout_actor import WeightsInbox
from rl_cluster.cluster.weights_actor import WeightsActor
from rl_cluster.config import LearnerConfig, TaskConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.learner import Learner, build_agent, build_network, checkpoint_schema

TASK = "Pong"
SPEC = EnvironmentSpec((84, 84), np.dtype(np.uint8), num_actions=6, frame_skip=4)
CONFIG = TaskConfig(learner=LearnerConfig(threads=1, device="cpu"))
STORE_BYTES = 400_000_000
STEP_S = 0.004
"""Between two looks of a receiver: about what a batch of environments takes."""
TIMEOUT_S = 60.0
TIMED_UPDATES = 20


class Receiver:
    """A rollout without environments."""

    def __init__(self, weights: Actor) -> None:
        torch.set_num_threads(1)
        self._policy = GreedyPolicy(build_network(CONFIG.agent, SPEC), bfloat16=True)
        self._inbox = WeightsInbox(weights, TASK)
        self._version, self._flat = -1, np.empty(0, np.float32)

    def act(self, last_version: int) -> list[tuple[int, float]]:
        """Act until that version is here; return each one taken, and from when it acted with it.

        Raises:
          TimeoutError: the version did not come.
        """
        taken = []
        deadline_s = time.monotonic() + TIMEOUT_S
        while self._version < last_version:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"has version {self._version}, waits for {last_version}")
            newer = self._inbox()
            if newer is not None:
                self._policy.load(newer[1])
                taken.append((newer[0], time.monotonic()))
                self._version, self._flat = newer
            time.sleep(STEP_S)
        return taken

    def digest(self) -> int:
        """Checksum of the newest weights."""
        return digest([self._flat])


class Publishing:
    """The learner's end."""

    def __init__(self, counts: list[int]) -> None:
        torch.set_num_threads(1)
        start_cluster("weights", STORE_BYTES)
        self._arrivals = Arrivals(counts)
        device = torch.device(CONFIG.learner.device)
        agent = build_agent(CONFIG.agent, CONFIG.learner, SPEC, device)
        schema = checkpoint_schema(CONFIG.agent, SPEC)
        period = CONFIG.learner.publish_period
        self._learner = Learner(agent, device, period, self._publish, schema)
        self._updates, self._digest = 0, 0
        self._newest, self._bytes = np.empty(0, np.float32), 0
        self._batch = _batch(CONFIG.learner.batch)
        self._update_ms = self._time_updates()
        weights = spawn(WeightsActor, "weights", restarted_by_ray=True)
        self._publisher = WeightsPublisher(weights, TASK, epoch=1)
        self._receivers = [
            spawn(Receiver, f"rollout:{index}", weights) for index in range(max(counts))
        ]
        self.turn(GAP_S)

    def turn(self, seconds: float) -> float:
        """Publish to each number of receivers; return how many publications were measured."""
        self._arrivals.start_turn()
        for count in self._arrivals.counts:
            self._publish_to(count, publications_in(seconds))
        return float(publications_in(seconds) * len(self._arrivals.counts))

    def facts(self) -> dict[str, Any]:
        """The newest turn, and what a share of the learner's time is made from."""
        last = self._learner.counters.policy_version
        read_all([receiver.act.remote(last) for receiver in self._receivers])
        arrived = read_all([receiver.digest.remote() for receiver in self._receivers])
        return {
            **self._arrivals.facts(),
            "as_sent": set(arrived) == {self._digest},
            "bytes": self._bytes,
            "update_ms": self._update_ms,
            "publish_period": CONFIG.learner.publish_period,
        }

    def _publish_to(self, count: int, publications: int) -> None:
        """The first publication is not measured: a receiver that paused has an old one to take."""
        first = self._learner.counters.policy_version + 1
        last = first + publications
        acting = [receiver.act.remote(last) for receiver in self._receivers[:count]]
        started_s, own_s = [], []
        for _ in range(1 + publications):
            time.sleep(GAP_S)
            self._update()
            started_s.append(time.monotonic())
            self._learner.publish()
            own_s.append(time.monotonic() - started_s[-1])
        taken = read_all(acting)
        for version in range(first + 1, last + 1):
            place = version - first
            latencies = [_first_with(version, each) - started_s[place] for each in taken]
            self._arrivals.add(count, own_s[place], latencies)
        self._digest = digest([self._newest])

    def _publish(self, version: int, flat: np.ndarray) -> None:
        self._publisher.publish(version, flat)
        self._newest, self._bytes = flat, flat.nbytes

    def _update(self) -> None:
        self._learner.agent.begin(self._batch, self._updates).result()
        self._updates += 1

    def _time_updates(self) -> float:
        """Milliseconds of one update, alone."""
        self._update()
        start_s = time.monotonic()
        for _ in range(TIMED_UPDATES):
            self._update()
        return 1e3 * (time.monotonic() - start_s) / TIMED_UPDATES


def read_all(refs: Sequence[Ref]) -> list[Any]:
    """The values of references."""
    return [read(ref, 2 * TIMEOUT_S) for ref in refs]


def _first_with(version: int, taken: list[tuple[int, float]]) -> float:
    """When a receiver first acted with a version or a newer one."""
    return min(moment_s for found, moment_s in taken if found >= version)


def _batch(size: int) -> Transitions:
    frames = (size, CONFIG.agent.frame_stack, *SPEC.obs_shape)
    return Transitions(
        s_tm1=torch.randint(256, frames, dtype=torch.uint8),
        a_tm1=torch.zeros(size, dtype=torch.int64),
        r_t=torch.ones(size),
        discount_t=torch.ones(size),
        s_t=torch.randint(256, frames, dtype=torch.uint8),
        weights=torch.ones(size),
    )


if __name__ == "__main__":
    publishing = Publishing(arguments()["receivers"])
    serve(lambda: 0.0, ("rl-cluster", "ray", "torch", "numpy"), publishing.facts, publishing.turn)

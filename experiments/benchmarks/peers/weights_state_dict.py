"""The plain way of weights to actors: a torch state dict in one call to each of them.

Runs in our environment, with Ray and torch alone. Invariant: receivers have nothing else to do, so
each takes its call at once; the network is ours, so that the bytes are the same.

Asked: receivers (a list of how many).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray
import torch
from serve import arguments, serve
from weights_seen import Arrivals, digest, turn

from rl_cluster.agents.networks import QNetwork
from rl_cluster.config import AgentConfig
from rl_cluster.environments import EnvironmentSpec
from rl_cluster.learner import build_network

SPEC = EnvironmentSpec((84, 84), np.dtype(np.uint8), num_actions=6, frame_skip=4)
STORE_BYTES = 1_000_000_000
TIMEOUT_S = 120.0


def make_network() -> QNetwork:
    """The network whose weights travel: Nature, dueling."""
    return build_network(AgentConfig(), SPEC)


class Receiver:
    """An actor that acts with a network of its own."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._network = make_network()

    def set_weights(self, weights: dict[str, torch.Tensor]) -> float:
        """Take weights; return the time from which it acts with them."""
        self._network.load_state_dict(weights)
        return time.monotonic()

    def digest(self) -> int:
        """Checksum of the weights."""
        return digest(_arrays(self._network))


class Publishing:
    """The learner's end."""

    def __init__(self, counts: list[int]) -> None:
        torch.set_num_threads(1)
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=STORE_BYTES,
        )
        self._arrivals = Arrivals(counts)
        self._network = make_network()
        remote: Any = ray.remote(num_cpus=0)(Receiver)
        self._receivers = [remote.remote() for _ in range(max(counts))]
        self.publish(max(counts))

    def publish(self, count: int) -> tuple[float, list[float]]:
        """Send changed weights to the first `count` actors and wait for all."""
        with torch.no_grad():
            next(self._network.parameters()).add_(1e-3)
        start_s = time.monotonic()
        weights = self._network.state_dict()
        taken = [receiver.set_weights.remote(weights) for receiver in self._receivers[:count]]
        own_s = time.monotonic() - start_s
        return own_s, [moment_s - start_s for moment_s in ray.get(taken, timeout=TIMEOUT_S)]

    def turn(self, seconds: float) -> float:
        """Publish to each number of receivers; return how many publications that were."""
        return turn(self._arrivals, self.publish, seconds)

    def facts(self) -> dict[str, Any]:
        """The newest turn, and whether what arrived is what was sent."""
        found = self._arrivals.facts()
        self.publish(len(self._receivers))
        digests = [receiver.digest.remote() for receiver in self._receivers]
        sent = _arrays(self._network)
        return {
            **found,
            "as_sent": set(ray.get(digests, timeout=TIMEOUT_S)) == {digest(sent)},
            "bytes": sum(array.nbytes for array in sent),
        }


def _arrays(network: QNetwork) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in network.state_dict().values()]


if __name__ == "__main__":
    publishing = Publishing(arguments()["receivers"])
    serve(lambda: 0.0, ("ray", "torch", "numpy"), publishing.facts, publishing.turn)

"""RLlib's own way of weights: `EnvRunnerGroup.sync_weights`, one state put once for all runners.

Configuration: new API stack, as its algorithms call it (no waiting for the runners). Invariant: the
runners have nothing else to do, so each takes its call at once; the module has as many parameters
as our dueling Nature network.

Asked: receivers (a list of how many).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from serve import arguments, serve
from torch import nn
from weights_seen import Arrivals, digest, turn

STORE_BYTES = 1_000_000_000
NUM_ACTIONS = 6
TIMEOUT_S = 120.0


class DuelingModule(TorchRLModule):
    """The layers of the dueling Nature network; nobody asks it for actions."""

    def setup(self) -> None:
        """Build the layers."""
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(4, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1),
                nn.Linear(3136, 512), nn.Linear(512, NUM_ACTIONS),
                nn.Linear(3136, 512), nn.Linear(512, 1),
            ]
        )  # fmt: skip


class Runner(SingleAgentEnvRunner):
    """RLlib's runner, which remembers when it took weights."""

    taken_s = 0.0

    def set_state(self, state: Any) -> None:
        """Take weights."""
        super().set_state(state)
        self.taken_s = time.monotonic()


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
        dqn: Any = DQNConfig
        config = (
            dqn()
            .environment("CartPole-v1")
            .env_runners(
                env_runner_cls=Runner, num_env_runners=max(counts), num_cpus_per_env_runner=0
            )
            .rl_module(rl_module_spec=RLModuleSpec(module_class=DuelingModule))
        )
        self._group = EnvRunnerGroup(config=config, local_env_runner=True)
        local: Any = self._group.local_env_runner
        self._module: nn.Module = local.module
        self.publish(max(counts))

    def publish(self, count: int) -> tuple[float, list[float]]:
        """Sync changed weights to the first `count` runners and wait for all."""
        with torch.no_grad():
            next(self._module.parameters()).add_(1e-3)
        runners = list(range(1, count + 1))
        start_s = time.monotonic()
        self._group.sync_weights(to_worker_indices=runners)
        own_s = time.monotonic() - start_s
        taken_s = self._of_runners(_taken_s, runners)
        if min(taken_s) < start_s:
            raise RuntimeError("a runner was passed over: RLlib drops a sync while others wait")
        return own_s, [moment_s - start_s for moment_s in taken_s]

    def turn(self, seconds: float) -> float:
        """Publish to each number of receivers; return how many publications that were."""
        return turn(self._arrivals, self.publish, seconds)

    def facts(self) -> dict[str, Any]:
        """The newest turn, and whether what arrived is what was sent."""
        found = self._arrivals.facts()
        runners = list(range(1, max(self._arrivals.counts) + 1))
        self.publish(len(runners))
        sent = _arrays(self._module)
        return {
            **found,
            "as_sent": set(self._of_runners(_digest, runners)) == {digest(sent)},
            "bytes": sum(array.nbytes for array in sent),
        }

    def _of_runners(self, question: Any, runners: list[int]) -> list[Any]:
        """Answers of all runners, in the order of their calls behind what was asked before."""
        answers = self._group.foreach_env_runner(
            question, local_env_runner=False, remote_worker_ids=runners, timeout_seconds=TIMEOUT_S
        )
        if len(answers) != len(runners):
            raise RuntimeError(f"{len(answers)} of {len(runners)} runners answered")
        return list(answers)


def _taken_s(runner: Any) -> Any:
    return runner.taken_s


def _digest(runner: Any) -> int:
    return digest(_arrays(runner.module))


def _arrays(module: nn.Module) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in module.state_dict().values()]


if __name__ == "__main__":
    publishing = Publishing(arguments()["receivers"])
    serve(lambda: 0.0, ("ray", "torch", "numpy"), publishing.facts, publishing.turn)

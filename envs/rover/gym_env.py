"""One simulated rover as a plain Gymnasium environment, with a picture of it.

Invariant: after `reset(seed=s)` everything that follows is a function of s and the actions.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.base import MAX_SEED
from envs.rover.lidar import RANGE_M
from envs.rover.render import picture
from envs.rover.world import ACTIONS, BEV_SHAPE, MAX_SPEED_M_S, MAX_TURN_RAD_S, STEP_S, RoverWorld

Observation = dict[str, Any]
"""`bev` and `proprio`, float32 arrays."""

_PROPRIO_HIGH = np.array([RANGE_M, 1, 1, MAX_SPEED_M_S, MAX_TURN_RAD_S, np.pi], np.float32)
_PROPRIO_LOW = np.array([0, *-_PROPRIO_HIGH[1:]], np.float32)


class RoverEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """A rover that clears ground.

    Observations: `bev` float32 (2, 128, 128), each 0 or 1, and `proprio` float32 (6,): nearest
    range (m), previous forward and turning command, speed (m/s), turning rate (rad/s), heading
    of the widest gap (rad). Actions float32 (2,), left and right track. The infos tell
    `collision` (one began), `ground_m2` (newly cleared) and `driven` (commands after the dead
    zone).

    Args:
        render_mode: "rgb_array" or None.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": round(1 / STEP_S)}

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(
            {
                "bev": spaces.Box(0, 1, BEV_SHAPE, np.float32),
                "proprio": spaces.Box(_PROPRIO_LOW, _PROPRIO_HIGH, dtype=np.float32),
            }
        )
        self.action_space = spaces.Box(-1, 1, (ACTIONS,), np.float32)
        self._world: RoverWorld | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode in a new room; with a `seed` the first one of that seed."""
        super().reset(seed=seed)
        if self._world is None or seed is not None:
            self._world = RoverWorld(1, [int(self.np_random.integers(MAX_SEED))])
        else:
            self._world.reset()
        return self._observation(self._world), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Drive for 1/30 s."""
        world = self._started()
        result = world.step(np.asarray(action)[None])
        truncated = bool(result.truncated[0])
        infos = {
            "collision": bool(result.collisions[0]),
            "ground_m2": float(result.ground_m2[0]),
            "driven": result.driven[0],
        }
        terminated = bool(result.dones[0]) and not truncated
        return self._observation(world), float(result.rewards[0]), terminated, truncated, infos

    def render(self) -> NDArray[np.uint8] | None:
        """The room from above, uint8 (height, width, 3); None without a `render_mode`."""
        return None if self.render_mode is None else picture(self._started(), 0)

    def _started(self) -> RoverWorld:
        if self._world is None:
            raise gymnasium.error.ResetNeeded("call reset() before step() and render()")
        return self._world

    @staticmethod
    def _observation(world: RoverWorld) -> Observation:
        bev, proprio = world.observe()
        return {"bev": bev[0], "proprio": proprio[0]}

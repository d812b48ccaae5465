"""Simulated tracked rovers that clear ground in rooms with obstacles.

`world` is the simulation, `vector_env` and `gym_env` its Gymnasium faces, `baselines` two
policies to compare with. Looked up by entry string, `envs.rover:make`.
Invariant: episode k of a rover with seed s is a function of (s, k) and the actions alone.
"""

from envs.rover.vector_env import make

__all__ = ["make"]

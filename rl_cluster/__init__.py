"""rl-cluster: continuous, distributed actor/learner reinforcement learning on Ray."""

__version__ = "0.1.0"

"""The settings of tasks whose experience comes from outside: the stream, and what is learned.

Invariant: secrets are never settings. A setting names the file, or the environment variable, that
holds one.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from rl_cluster.settings import (
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Settings,
    Share,
)


@dataclasses.dataclass(frozen=True)
class StreamConfig(Settings):
    """Where experience comes from, and where policies go."""

    source: Literal["none", "nats"] = "none"
    """none: the task is a game, played by rollouts; nats: rovers that speak NATS JetStream."""
    url: str | None = None
    """The server, such as `nats://host:4222`; null: one of this run's own, on loopback."""
    port: NonNegativeInt = 0
    """Port of a server of one's own; 0: any, kept when the run resumes."""
    user: str | None = None
    """User name; the password comes from `password`."""
    password: str | None = None
    """File that holds the password, or `env:NAME` for an environment variable."""
    token: str | None = None
    """The same for a token."""
    nkey_seed: str | None = None
    """File with an nkey seed, or `env:NAME`."""
    credentials: str | None = None
    """File with a JWT and a seed (`.creds`), or `env:NAME`."""
    tls_ca: str | None = None
    """File with the authority that signed the server's certificate; null: those of the system."""
    tls_certificate: str | None = None
    """File with a certificate of our own, where the server asks for one."""
    tls_key: str | None = None
    """File with its key."""
    ack_wait_s: PositiveFloat = 30.0
    """Seconds after which the server delivers again what was not acknowledged."""
    max_in_flight: PositiveInt = 64
    """Messages delivered and not yet acknowledged."""
    max_message_bytes: PositiveInt = 200 * 2**20
    """A message that is larger, packed or unpacked, is refused."""
    quota_steps_per_s: PositiveFloat | None = None
    """Steps a second of one rover that are learned from; more are counted and left out."""
    silence_s: PositiveFloat = 30.0
    """Seconds without a message after which that is an incident."""
    simulated_rovers: NonNegativeInt = 0
    """Rovers that are simulated here, as processes of their own."""
    simulator: str = "envs.rover.process:main"
    """`module:function` of a simulated rover's program."""
    simulated_hz: NonNegativeFloat = 30.0
    """Steps a second of each; 0: as fast as they can."""
    policy_period_s: PositiveFloat = 30.0
    """Seconds between two policies sent to the rovers."""
    judged_in: Literal["simulator", "field"] = "field"
    """simulator: a policy plays `env` before it is sent; field: by the rovers' own evaluation
    episodes, after it was."""
    gate_margin: NonNegativeFloat = 0.2
    """A policy whose mean return is worse than the sent one's by more than this share of it (or
    of 1, where that is smaller) is not sent, or taken back."""
    gate_episodes: PositiveInt = 6
    """Evaluation episodes in the field from which a policy is judged."""


@dataclasses.dataclass(frozen=True)
class SACConfig(Settings):
    """What rovers learn: soft actor-critic (Haarnoja et al. 2018)."""

    core: Literal["lstm", "feed_forward"] = "lstm"
    """Memory of the actor; both have the same inputs and outputs on the rover."""
    burn_in: NonNegativeInt = 16
    """Steps before those learned from, which only fill the memory (Kapturowski et al. 2019)."""
    unroll: PositiveInt = 16
    """Steps of one sequence that are learned from."""
    n_step: PositiveInt = 1
    """Steps in one return."""
    discount: Share = 0.99
    """γ per step."""
    conv_channels: tuple[PositiveInt, ...] = (16, 32, 64)
    """Filters of the convolutions over the bird's-eye view."""
    features: PositiveInt = 1024
    """Numbers that the view is encoded to."""
    hidden: PositiveInt = 256
    """Units of the hidden layers of policy and critics."""
    critic_norm: Literal["none", "layer_norm", "dropout"] = "layer_norm"
    """What keeps critics steady at many updates a step (Hiraoka et al. 2022)."""
    target_entropy: FiniteFloat = -2.0
    """Entropy that the temperature is tuned for."""
    initial_alpha: PositiveFloat = 0.1
    """Temperature at the start."""
    alpha_learning_rate: PositiveFloat = 3e-4
    """Step size of the temperature."""
    tau: Share = 0.005
    """Share of the critics that each update mixes into their targets."""
    empty_cache_updates: NonNegativeInt = 0
    """Updates between two calls that give a GPU's cached memory back; 0: never."""

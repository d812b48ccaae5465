"""Atari 2600 games by their usual names (`Pong`, `MsPacman`), under published protocols.

EnvPool by default; ale-py's C++ vector environment as second backend (`backend="ale"`).
Invariant: every row is one single grey frame with its unclipped reward; what the backend was
really built with is in `config`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import envpool
from ale_py.vector_env import AtariVectorEnv
from envpool.atari import AtariEnvSpec
from envpool.registration import registry

from envs._ale import AleVectorEnv
from envs._envpool import AtariEnvPool, task_ids
from envs.base import AsyncVectorEnv, Layout, nearest_names


@dataclass(frozen=True)
class Protocol:
    """How a game is set up and ended, as a publication defines it.

    Attributes:
        repeat_action_probability: chance that the emulator repeats the last action ("sticky").
        episodic_life: a lost life is `terminated`; the same game then goes on.
        noop_max: EnvPool makes 1 to noop_max no-op frames after each reset, ale-py 0 to
            noop_max - 1.
        use_fire_reset: press FIRE after each reset, in games that have it.
        full_action_space: all 18 actions instead of those that the game uses.
        frame_skip: emulator frames in one step; the last two are pooled by their maximum.
        max_frames: emulator frames after which a game is truncated.
    """

    repeat_action_probability: float
    episodic_life: bool
    noop_max: int
    use_fire_reset: bool = False
    full_action_space: bool = False
    frame_skip: int = 4
    max_frames: int = 108_000


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        # Machado et al. 2018, "Revisiting the Arcade Learning Environment", section 5: sticky
        # actions, whole games, 30 minutes at 60 frames/s. They start without no-ops; EnvPool
        # needs one. They advise all 18 actions; Dopamine (Castro et al. 2018), whose curves the
        # field compares with, takes the game's own, and so do we.
        "machado": Protocol(repeat_action_probability=0.25, episodic_life=False, noop_max=1),
        # Mnih et al. 2015: up to 30 no-ops, a lost life is terminal in training. Their code did
        # the no-ops after each lost life too, as EnvPool does, and never pressed FIRE by itself
        # (that came with OpenAI's wrappers). Their evaluation ended a game after 18,000 frames;
        # 108,000 is what later work used.
        "nature": Protocol(repeat_action_probability=0.0, episodic_life=True, noop_max=30),
    }
)

_OWNED = {
    "num_envs": "pass num_envs= to make()",
    "batch_size": "pass batch_size= to make()",
    "num_threads": "pass threads= to make()",
    "seed": "pass seeds= to make()",
    "env_seed": "pass seeds= to make()",
    "task": "the game's name picks it",
    "game": "the game's name picks it",
    "base_path": "the ROMs are those of the envpool-assets package",
    "stack_num": "environments give single frames; the agent's frame stack is built from them",
    "gray_scale": "frames are stored as one grey plane",
    "grayscale": "frames are stored as one grey plane",
    "reward_clip": "scores are unclipped; the agent clips rewards for learning",
    "reward_clipping": "scores are unclipped; the agent clips rewards for learning",
    "zero_discount_on_life_loss": "the discount follows `terminated`; set episodic_life",
    "life_loss_info": "a row that ends is followed by a reset row, which ale-py would not give",
    "max_num_players": "games are for one player",
    "gym_reset_return_info": "EnvPool accepts no other value than its own",
    "autoreset_mode": "environments reset at the next step",
    "continuous": "actions are discrete",
    "continuous_action_threshold": "actions are discrete",
}
_AT_LEAST_ONE = frozenset(
    {"frame_skip", "frameskip", "max_episode_steps", "max_num_frames_per_episode"}
    | {"img_height", "img_width"}
)


def games() -> list[str]:
    """The games there are, by their usual names; both backends have them all."""
    return sorted(task.removesuffix("-v5") for task in task_ids("envpool.atari"))


def make(
    name: str,
    *,
    num_envs: int,
    batch_size: int | None = None,
    seeds: int | Sequence[int] = 0,
    threads: int = 0,
    protocol: str = "machado",
    backend: Literal["envpool", "ale"] = "envpool",
    options: Mapping[str, Any] = MappingProxyType({}),
) -> AsyncVectorEnv:
    """Make `num_envs` copies of a game; observations are uint8 (84, 84) frames.

    Args:
        name: the game, e.g. "Pong" (see `games`).
        num_envs: copies of the game.
        batch_size: rows one `recv` returns; None is `num_envs`.
        seeds: environment i gets `seeds + i`, or one seed each; 0..2^31-1.
        threads: emulator threads; 0 is the backend's default, min(batch_size, processors).
        protocol: a name in `PROTOCOLS`.
        backend: "envpool", or "ale" for ale-py's vector environment. The latter has no
            `episodic_life`: it would start a new game at each lost life.
        options: any option of the backend, by the backend's own name, over the protocol's.

    Raises:
        ValueError: for an unknown game, protocol, backend or option (naming the nearest), or
            for a value that the backend does not survive.
    """
    if name not in games():
        raise ValueError(f"unknown Atari game {name!r}; {nearest_names(name, games())}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; {nearest_names(protocol, PROTOCOLS)}")
    layout = Layout.checked(num_envs, batch_size, seeds, threads)
    if backend == "envpool":
        chosen = _envpool_options(name, PROTOCOLS[protocol], options)
        return AtariEnvPool(f"{name}-v5", layout, chosen)
    if backend == "ale":
        chosen = _ale_options(PROTOCOLS[protocol], options)
        return AleVectorEnv(registry.specs[f"{name}-v5"][2]["task"], layout, chosen)
    raise ValueError(f"unknown backend {backend!r}; known: envpool, ale")


def _envpool_options(name: str, protocol: Protocol, options: Mapping[str, Any]) -> dict[str, Any]:
    _check_options(options, AtariEnvSpec.gen_config()._asdict())
    if options.get("noop_max", 1) < 1:
        raise ValueError(f"option noop_max={options['noop_max']}: EnvPool crashes below 1")
    frame_skip = options.get("frame_skip", protocol.frame_skip)
    chosen = {
        "repeat_action_probability": protocol.repeat_action_probability,
        "episodic_life": protocol.episodic_life,
        "noop_max": protocol.noop_max,
        "use_fire_reset": protocol.use_fire_reset,
        "full_action_space": protocol.full_action_space,
        "frame_skip": frame_skip,
        "max_episode_steps": protocol.max_frames // frame_skip,
        **options,
        "stack_num": 1,
        "reward_clip": False,
    }
    if "mode" in options or "difficulty" in options:
        _check_mode(name, chosen)
    return chosen


def _check_mode(name: str, options: Mapping[str, Any]) -> None:
    try:
        envpool.make_spec(f"{name}-v5", **options)
    except RuntimeError as error:
        raise ValueError(
            f"{name} has no mode={options.get('mode')}, difficulty={options.get('difficulty')}: "
            f"{error}"
        ) from error


def _ale_options(protocol: Protocol, options: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(AtariVectorEnv).parameters.values()
    _check_options(options, {p.name: p.default for p in parameters})
    chosen = {
        "repeat_action_probability": protocol.repeat_action_probability,
        "episodic_life": protocol.episodic_life,
        "noop_max": protocol.noop_max,
        "use_fire_reset": protocol.use_fire_reset,
        "full_action_space": protocol.full_action_space,
        "frameskip": protocol.frame_skip,
        "max_num_frames_per_episode": protocol.max_frames,
        **options,
    }
    if chosen["episodic_life"]:
        raise ValueError(
            "backend 'ale' has no episodic_life: ale-py starts a new game at each lost life; use "
            "backend 'envpool', or set the option episodic_life to false"
        )
    return chosen


def _check_options(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that is owned, unknown, or of a wrong type or size."""
    settable = [name for name in defaults if name not in _OWNED]
    for name, value in options.items():
        if name in defaults and name in _OWNED:
            raise ValueError(f"option {name!r} cannot be set: {_OWNED[name]}")
        if name not in settable:
            raise ValueError(f"unknown option {name!r}; {nearest_names(name, settable)}")
        _check_value(name, value, type(defaults[name]))


def _check_value(name: str, value: Any, kind: type) -> None:
    given = type(value)
    if given is not kind and (given, kind) != (int, float):
        raise ValueError(f"option {name}={value!r} must be of type {kind.__name__}")
    if name in _AT_LEAST_ONE and value < 1:
        raise ValueError(f"option {name}={value} must be at least 1")
    if name == "repeat_action_probability" and not 0 <= value <= 1:
        raise ValueError(f"option {name}={value} must be within 0..1")

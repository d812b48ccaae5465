"""The settings of how much of a machine a run takes: tiers, and the pressure that lowers them."""

from __future__ import annotations

import dataclasses

from rl_cluster.settings import NonNegativeInt, PositiveFloat, PositiveInt, Settings, Share


@dataclasses.dataclass(frozen=True)
class TierConfig(Settings):
    """How much of a machine a run takes."""

    games: PositiveInt
    """Tasks that train at once; the others wait for their slice."""
    environments: PositiveInt
    """Environments of each task, over all its rollouts."""
    batch: PositiveInt
    """Transitions in one update."""


def _tiers() -> dict[str, TierConfig]:
    return {
        "light": TierConfig(2, 32, 512),
        "medium": TierConfig(4, 64, 1024),
        "heavy": TierConfig(8, 256, 2048),
    }


@dataclasses.dataclass(frozen=True)
class PressureConfig(Settings):
    """From which figures the load steps down, and below which it may step up again."""

    memory_available_low: Share = 0.07
    """Share of memory still available (host or cgroup) at which the load steps down."""
    memory_available_high: Share = 0.2
    """Share from which it may step up."""
    memory_stall_high: Share = 0.2
    """Share of time in which somebody waits for memory (PSI some, avg10): steps down."""
    memory_stall_low: Share = 0.02
    """Share below which it may step up."""
    store_used_high: Share = 0.985
    """Share of the object store in use at which the load steps down."""
    store_used_low: Share = 0.96
    """Share below which it may step up."""
    gpu_memory_free_low: Share = 0.03
    """Share of GPU memory free at which the load steps down."""
    gpu_memory_free_high: Share = 0.15
    """Share from which it may step up."""
    disk_free_low_bytes: NonNegativeInt = 500_000_000
    """Free disk below the run directory at which the load steps down."""
    disk_free_high_bytes: NonNegativeInt = 3_000_000_000
    """Free disk from which it may step up."""
    temperature_high_c: PositiveFloat = 92.0
    """Hottest sensor, °C, at which the load steps down."""
    temperature_low_c: PositiveFloat = 80.0
    """Hottest sensor, °C, below which it may step up."""
    others_cpu_low: Share = 0.4
    """Share of the cores that other programs use from which it does not step up."""


@dataclasses.dataclass(frozen=True)
class LoadConfig(Settings):
    """How much of the machine the run may take, and how that changes."""

    tier: str = "custom"
    """custom: every task as configured; light, medium, heavy or another of `tiers`; auto."""
    tiers: dict[str, TierConfig] = dataclasses.field(default_factory=_tiers)
    """Name to tier; one's own come beside light, medium and heavy, or change them."""
    dwell_s: PositiveFloat = 2_400.0
    """Seconds without pressure before the load steps up."""
    cooldown_s: PositiveFloat = 300.0
    """Seconds after a step down before anything but another step down."""
    settle_s: PositiveFloat = 15.0
    """Seconds between two steps down, in which the first can take effect."""
    slice_s: PositiveFloat = 1_800.0
    """Seconds that a task trains before one that waits takes its place."""
    boot_cap_s: PositiveFloat = 3_600.0
    """Seconds for which the load stays below what ran when the host rebooted; doubles each time."""
    pressure: PressureConfig = PressureConfig()
    """Thresholds."""

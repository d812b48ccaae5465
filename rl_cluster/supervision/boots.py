"""What reboots say about the load: after an unclean one, less for a while.

Invariant: only a change of the kernel's boot id is a reboot, and each is counted once, however
often the run was started since; a session that was killed within one boot caps nothing. Times are
of the wall clock, which may jump: no cap lasts longer than its own length from now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rl_cluster.settings import NonNegativeFloat
from rl_cluster.supervision.load import Cap, Load, below

LONGEST_CAP_S = 86_400.0
"""A cap doubles with each unclean boot of a day, up to a day."""
_WINDOW_S = 86_400.0


@dataclass(frozen=True)
class BootEntry:
    """One line of a run's boot journal: a session began, changed its load, or ended."""

    boot_id: str
    """The kernel's: another one after each boot."""
    time: NonNegativeFloat
    """Unix seconds."""
    load: Load
    """What runs from here on."""
    clean: bool
    """Whether the session ended here, in order."""


@dataclass(frozen=True)
class _Reboot:
    time: float
    """When the first session after it began."""
    load: Load
    """What ran before it."""


def cap_after(
    entries: Sequence[BootEntry], present_boot_id: str, now_s: float, cap_s: float
) -> Cap | None:
    """Return the cap that earlier boots leave to a session that begins now, or None.

    Args:
      entries: the journal, oldest first; it may already hold entries of the present boot.
      present_boot_id: the kernel's, now.
      now_s: present time, Unix seconds.
      cap_s: how long the load stays below what ran at the first unclean boot; each further one
        within a day doubles it, up to a day.
    """
    reboots = _unclean_reboots(entries, present_boot_id, now_s)
    if not reboots:
        return None
    last = reboots[-1]
    count = sum(abs(last.time - reboot.time) < _WINDOW_S for reboot in reboots)
    # The exponent is bounded: a float cannot hold the doublings of a host that reboots all day.
    length_s = min(cap_s * 2.0 ** min(count - 1, 64), LONGEST_CAP_S)
    left_s = min(last.time + length_s - now_s, length_s)
    if left_s <= 0:
        return None
    times = "once" if count == 1 else f"{count} times"
    reason = (
        f"the host rebooted uncleanly {times} within a day, last under {last.load}: "
        f"one step less for {length_s / 60:.0f} min"
    )
    return Cap(below(last.load), left_s, reason)


def _unclean_reboots(
    entries: Iterable[BootEntry], present_boot_id: str, now_s: float
) -> list[_Reboot]:
    boots = [list(group) for _, group in groupby(entries, key=lambda entry: entry.boot_id)]
    begins_s = [boot[0].time for boot in boots[1:]]
    if boots and boots[-1][-1].boot_id != present_boot_id:
        begins_s.append(now_s)
    return [
        _Reboot(time, boot[-1].load)
        for boot, time in zip(boots, begins_s, strict=False)
        if not boot[-1].clean
    ]

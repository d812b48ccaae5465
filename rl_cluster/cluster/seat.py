"""The seat of a role that one process at a time plays: who signed last has it.

Invariant: a process that was replaced while it was frozen, with its node for instance, learns of it
at its next look, and does nothing more for its role.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict

from rl_cluster.control import Control, ProcessId

_log = logging.getLogger(__name__)


class SeatLost(RuntimeError):
    """Another process plays this one's role now: end."""


class Seat:
    """This process's place in a role."""

    def __init__(self, control: Control, role: str) -> None:
        self._control, self._role = control, role
        self._me, self._signed = ProcessId.of(os.getpid()), False

    def hold(self) -> None:
        """Sign, where that is not done; afterwards, look whether another has signed since.

        Raises:
          SeatLost: another has.
        """
        if not self._signed:
            self._sign()
            return
        holder = self._control.signed(self._role)
        if holder is not None and holder != self._me:
            raise SeatLost(f"process {holder.pid} is the {self._role} now: this one ends")

    def _sign(self) -> None:
        try:
            self._control.write(self._role, asdict(self._me))
        except OSError as error:  # a full disk: the next look tries again
            _log.error("%s not written: %s", self._role, error)
        else:
            self._signed = True
        self._control.beat(self._role)  # who waits for an heir need wait no longer

"""Peers: where their environments are, how they are made, and why one is missing.

Invariant: each peer has an environment of its own, at the versions of `peers/NAME.txt`; one whose
environment cannot be made is reported with pip's last line, never left out.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from sides import HERE, ROOT

ENVIRONMENTS = ROOT / ".bench"
OURS = Path(sys.executable)
INSTALL_TIMEOUT_S = 1_800.0


def python_of(peer: str) -> Path:
    """Interpreter of a peer's environment."""
    return ENVIRONMENTS / peer / "bin" / "python"


def install(peers: Iterable[str]) -> dict[str, str]:
    """Make the environments that are not there; return why each missing one is missing."""
    missing = {}
    for peer in peers:
        if not _is_made(peer):
            print(f"installing {peer} into {ENVIRONMENTS / peer}", flush=True)
            if why := _make(peer):
                missing[peer] = why
    return missing


def our_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of packages in our own environment."""
    return {name: importlib.metadata.version(name) for name in packages}


def _stamp(peer: str) -> Path:
    """A file named after the requirements, so that changed ones install again."""
    text = (HERE / "peers" / f"{peer}.txt").read_bytes()
    return ENVIRONMENTS / peer / f".installed-{hashlib.sha256(text).hexdigest()[:12]}"


def _is_made(peer: str) -> bool:
    return _stamp(peer).exists()


def _make(peer: str) -> str | None:
    """Make one environment; return the last line of what went wrong, if anything did."""
    requirements = HERE / "peers" / f"{peer}.txt"
    steps = (
        [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENTS / peer)],
        [str(python_of(peer)), "-m", "pip", "install", "-q", "-r", str(requirements)],
    )
    for step in steps:
        try:
            done = subprocess.run(
                step, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return f"pip took more than {INSTALL_TIMEOUT_S:.0f} s"
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return lines[-1] if lines else f"pip ended with {done.returncode}"
    _stamp(peer).touch()
    return None

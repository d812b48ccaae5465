"""Extras: what a person does where a package that one of them brings is missing.

The program is on no index, and whoever took its name there would be installed instead: an extra
comes from the checkout.
"""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """What brings an extra, as the end of a message."""
    return f"in the checkout, run `make install`, or `pip install -e '.[{extra}]'`"

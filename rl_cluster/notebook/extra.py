"""The extra that notebooks need, named where it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rl_cluster.extras import how_to_install


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import what an extra brings.

    Raises:
      ModuleNotFoundError: it is not installed; the message says what installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed: {how_to_install(extra)}", name=error.name
        ) from error

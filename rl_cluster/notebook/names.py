"""Names that a person picks with TAB instead of typing them.

Invariant: what is offered is read when TAB is pressed, and what is picked is a plain string, so
that a typed name does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace


class Names:
    """Strings by themselves: `names.Pong` and `names["Pong"]` are both "Pong".

    Args:
      kind: what they name, for errors.
      read: those that there are now.
    """

    def __init__(self, kind: str, read: Callable[[], Iterable[str]]) -> None:
        self._kind, self._read = kind, read

    def __iter__(self) -> Iterator[str]:
        """In the run's order."""
        return iter(self._read())

    def __getitem__(self, name: str) -> str:
        """The name itself; KeyError names those that there are."""
        if name not in self:
            raise KeyError(self._unknown(name))
        return name

    def __getattr__(self, name: str) -> str:
        """The name itself; AttributeError names those that there are."""
        # What Jupyter asks every object for must not cost a look at the run's files.
        if name.startswith("_") or name not in self:
            raise AttributeError(name if name.startswith("_") else self._unknown(name))
        return name

    def __dir__(self) -> list[str]:
        """For TAB after a dot."""
        return [name for name in self if name.isidentifier()]

    def _ipython_key_completions_(self) -> list[str]:
        """For TAB after a bracket."""
        return list(self)

    def __repr__(self) -> str:
        """The names."""
        return f"{self._kind}: {', '.join(self) or 'none yet'}"

    def _unknown(self, name: str) -> str:
        return f"no {self._kind} {name!r}: there are {', '.join(self) or 'none yet'}"


def tree_of_names(names: Iterable[str]) -> SimpleNamespace:
    """Names like `learner.batch` as attributes of attributes, each of which is its full name."""
    tree: dict[str, dict[str, str]] = {}
    for name in names:
        group, _, last = name.partition(".")
        tree.setdefault(group, {})[last] = name
    return SimpleNamespace(**{group: SimpleNamespace(**part) for group, part in tree.items()})

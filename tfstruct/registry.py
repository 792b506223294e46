"""What is known by name: systems, presets, data sets, tables."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns how a message about an unknown name ends: the near names, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"{hint} There are {', '.join(known) or 'none'}."


def require_known(name: str, known: Iterable[str], kind: str) -> str:
    """Returns a name that is known; raises ValueError with the near ones and all of them for any other."""
    known = list(known)
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}{did_you_mean(name, known)}")
    return name


class Registry(Mapping[str, T]):
    """Values by name, sorted; a name is taken once.

    Args:
        kind: what a value is, for messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._values: dict[str, T] = {}

    def register(self, name: str, value: T) -> T:
        """Adds a value and returns it; raises ValueError when the name is taken."""
        if name in self._values:
            raise ValueError(f"{self.kind} {name!r} exists already")
        self._values[name] = value
        return value

    def __getitem__(self, name: str) -> T:
        """Raises ValueError with the near names for an unknown one."""
        return self._values[require_known(name, self, self.kind)]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._values))

    def __len__(self) -> int:
        return len(self._values)

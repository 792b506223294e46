"""What is known by name: systems, presets, tables, data sets.

A module of another package adds to them by calling `register` of `SYSTEMS`, `PRESETS`, `TABLES` or `SOURCES`. It is
found through the entry-point group `tfstruct`, or named by `--import=module` of every program.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import TypeVar

#: group of entry points whose modules register something when they are imported
ENTRY_POINTS = "tfstruct"

_MOST_NEAR = 5  # names that a message suggests
_MOST_LISTED = 20  # names that a message lists all of

T = TypeVar("T")
loaded_plugins: set[str] = set()
#: modules that were imported by name, in their order
imported: list[str] = []


def load_plugins() -> None:
    """Imports the modules of all installed packages that add to the registries, once.

    Raises:
        ImportError: a module that cannot be imported; the message names its package.
    """
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        if entry.value not in loaded_plugins:
            loaded_plugins.add(entry.value)
            try:
                entry.load()
            except Exception as error:
                package = entry.dist.name if entry.dist else "?"
                raise ImportError(f"{entry.value}, the tfstruct plugin {entry.name!r} of {package}: {error}") from error


def import_module(name: str) -> None:
    """Imports a module that adds to the registries, which may lie in the current folder.

    Raises:
        ValueError: no such module.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(name)
        imported.append(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no module {error.name!r} to import, looked for in {os.getcwd()} too") from None


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Returns at most five known names that are near one, the nearest first."""
    known = list(known)
    # What begins alike comes first: spvae/mnist is nearer to spvae/mnist_discrete than to graph_vae/mnist.
    near = difflib.get_close_matches(str(name), known, n=_MOST_NEAR, cutoff=0.4)
    alike = [other for other in known if other.startswith(str(name)) and name]
    return list(dict.fromkeys([*alike, *near]))[:_MOST_NEAR]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns how a message about an unknown name ends: at most five near names, and all of them where they are few."""
    known = list(known)
    near = near_names(name, known)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    if len(known) <= _MOST_LISTED:
        return f"{hint} There are {', '.join(known) or 'none'}."
    return hint if near else f"{hint} There are {len(known)}, such as {', '.join(known[:_MOST_NEAR])}."


def require_known(name: str, known: Iterable[str], kind: str) -> str:
    """Returns a name that is known; raises ValueError with the near ones and all of them for any other."""
    known = list(known)
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}{did_you_mean(name, known)}")
    return name


class Registry(Mapping[str, T]):
    """Values by name, sorted, those of installed plugins among them; a name is taken once.

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
        if name in self._values:
            return self._values[name]
        return self._values[require_known(name, self, self.kind)]

    def get(self, name: str, default: T | None = None) -> T | None:  # type: ignore[override]
        """Returns the default for an unknown name."""
        return self[name] if name in self else default

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(sorted(self._values))

    def __contains__(self, name: object) -> bool:
        load_plugins()
        return name in self._values

    def __len__(self) -> int:
        load_plugins()
        return len(self._values)

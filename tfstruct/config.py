"""Configs: overrides from the command line, and their form as JSON."""

import ast
import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import ml_collections


def keys(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all settings."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def apply_overrides(config: ml_collections.ConfigDict, overrides: Iterable[str]) -> None:
    """Sets `dotted.key=value` in place; values are Python literals, and what is none is taken as a string.

    Raises:
        ValueError: no `=`, an unknown key (the near ones are listed), or a value whose type is not that of the
            default (an integer will do for a float).
    """
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"an override has the form key=value, found {override!r}")
        known = list(keys(config))
        if name not in known:
            near = difflib.get_close_matches(name, known, n=4, cutoff=0.3)
            ends = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
            raise ValueError(f"unknown setting {name!r}; near it: {', '.join(dict.fromkeys(ends + near)) or known}")
        *path, last = name.split(".")
        node = config
        for part in path:
            node = node[part]
        node[last] = _convert(name, _literal(text), node[last])


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _convert(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, bool):
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        matches = isinstance(value, bool)
    elif isinstance(default, int):
        matches = isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(default, float):
        matches = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if matches else value
    elif isinstance(default, tuple):
        matches = isinstance(value, (tuple, list))
        value = _to_tuple(value)
    else:
        value, matches = str(value), True
    if not matches:
        raise ValueError(f"{name} takes a {type(default).__name__} such as {default!r}, found {value!r}")
    return value


def _to_tuple(value: Any) -> Any:
    return tuple(_to_tuple(item) for item in value) if isinstance(value, (list, tuple)) else value


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns a config as JSON text, keys sorted."""
    return json.dumps(_plain(config), indent=2, sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, (ml_collections.ConfigDict, ml_collections.FrozenConfigDict, dict)):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def from_json(text: str) -> ml_collections.ConfigDict:
    """Reads a config back; lists become tuples, so that config -> JSON -> config is the identity."""

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: restore(item) for key, item in value.items()}
        return _to_tuple(value) if isinstance(value, list) else value

    return ml_collections.ConfigDict(restore(json.loads(text)))


def differences(first: ml_collections.ConfigDict, second: ml_collections.ConfigDict) -> list[str]:
    """Returns one line for each setting in which two configs differ."""
    lines = []
    for name in sorted({*keys(first), *keys(second)}):
        values = []
        for config in (first, second):
            node: Any = config
            for part in name.split("."):
                node = node.get(part, "(absent)") if hasattr(node, "get") else "(absent)"
            values.append(node)
        if values[0] != values[1]:
            lines.append(f"{name}: {values[0]!r} / {values[1]!r}")
    return lines

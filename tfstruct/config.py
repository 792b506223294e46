"""Configs: overrides from the command line, and their form as JSON."""

import ast
import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import ml_collections


def keys(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all settings."""
    return (name for name, _ in _items(config, prefix))


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
        node[last] = _convert(name, text, node[last])


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _convert(name: str, text: str, default: Any) -> Any:
    if isinstance(default, str):
        # As typed: a file may be called 1e3. Quotes around the whole are for the shell's sake.
        is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
        return str(_literal(text)) if is_quoted else text
    value = _to_tuple(_literal(text))
    if isinstance(default, tuple):
        matches = isinstance(value, tuple) and all(not default or _has_type(item, default[0]) for item in value)
    else:
        matches = _has_type(value, default)
    if isinstance(default, bool) and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not matches:
        raise ValueError(f"{name} takes a {type(default).__name__} such as {default!r}, found {value!r}")
    return _as_float(value, default)


def _has_type(value: Any, default: Any) -> bool:
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(default)


def _as_float(value: Any, default: Any) -> Any:
    """Integers will do where the default holds floats."""
    if isinstance(default, tuple) and default and isinstance(default[0], float):
        return tuple(float(item) for item in value)
    return float(value) if isinstance(default, float) else value


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


def copy(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a deep, unfrozen copy; ConfigDict(config) would share the nested nodes."""
    return from_json(to_json(config))


def overrides(config: ml_collections.ConfigDict, base: ml_collections.ConfigDict) -> list[str]:
    """Returns `key=value` for each setting in which a config differs from a base that has the same settings.

    `apply_overrides` makes the config of the base with them.
    """
    found, expected = (dict(_items(node)) for node in (config, base))
    return [f"{name}={found[name]!r}" for name in sorted(found) if found[name] != expected[name]]


def _items(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _items(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(first: ml_collections.ConfigDict, second: ml_collections.ConfigDict) -> list[str]:
    """Returns one line for each setting in which two configs differ."""
    one, two = dict(_items(first)), dict(_items(second))
    values = {name: (one.get(name, "(absent)"), two.get(name, "(absent)")) for name in sorted({*one, *two})}
    return [f"{name}: {a!r} / {b!r}" for name, (a, b) in values.items() if a != b]

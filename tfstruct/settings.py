"""Settings: groups of named values with types, defaults, ranges and help, declared once and checked where they come in.

A group is a subclass of `Settings`; a group may hold others, and a setting's dotted name is its path. Groups are
immutable: `replace` and `apply_overrides` return changed ones.
"""

import ast
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

import pydantic
from pydantic import Field

_LARGEST = 1e38  # that float32 has

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
#: of what is built one by one
Repeats = Annotated[int, Field(ge=1, le=2**10)]
#: units of a layer
Width = Annotated[int, Field(ge=1, le=2**16)]
#: units of each of several layers
Widths = Annotated[tuple[Width, ...], Field(max_length=64)]
Index = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0.0, le=_LARGEST)]
Positive = Annotated[float, Field(gt=0.0, le=_LARGEST)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
#: a fraction that is not the whole
ProperFraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Settings(pydantic.BaseModel):
    """A group of settings. Integers will do for floats, lists for tuples; NaN and infinities are refused."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Returns the settings of nested mappings; what they lack has this group's defaults.

        Raises:
            ValueError: an unknown setting (the near ones are listed), or a value that cannot be; the message names the
                first.
        """
        return cls.model_construct().replace(values)

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """Returns settings with values changed by dotted name, or in nested mappings.

        Raises:
            ValueError: as `parse` does.
        """
        try:
            return self.validated(changes)
        except pydantic.ValidationError as error:
            raise ValueError(_sentence(type(self), error)) from None

    def validated(self, changes: Mapping[str, Any]) -> Self:
        """`replace` with the errors of pydantic, which hold more than the first."""
        return type(self).model_validate(_joined(self.model_dump(), nested(changes)))

    def names(self) -> Iterator[str]:
        """Yields the dotted names of all settings."""
        return (name for name, _ in self.items())

    def items(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Yields the dotted name and the value of every setting."""
        for name, value in self:
            if isinstance(value, Settings):
                yield from value.items(f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    def help(self, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
        """Yields the dotted name of every setting, its value, and what it is, with its choices or its range."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Settings):
                yield from value.help(f"{prefix}{name}.")
                continue
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            parts = [" or ".join(map(str, choices)), _range(field.metadata), field.description or ""]
            yield f"{prefix}{name}", value, "; ".join(part for part in parts if part)

    def to_json(self) -> str:
        """Returns the settings as JSON text, names sorted."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True)


def _range(metadata: Iterable[Any]) -> str:
    """The bounds of a setting in words; those that only keep numbers within what is computed with are left out."""
    bounds = [(words, getattr(part, key)) for part in metadata for words, key in _BOUNDS.values() if hasattr(part, key)]
    return " and ".join(f"{words} {value:,g}" for words, value in bounds if value < 2**31 - 1)


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values by dotted name as nested dictionaries; later ones count."""
    result: dict[str, Any] = {}
    for name, value in changes.items():
        *path, last = name.split(".")
        node = result
        for part in path:
            if isinstance(node.get(part), Settings):  # a group as a whole, of which a part is changed
                node[part] = node[part].model_dump()
            node = node.setdefault(part, {})
        node[last] = value
    return result


def _joined(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, those of `changes` counting; what an unknown name holds is kept, to be refused."""
    result = dict(values)
    for name, value in changes.items():
        if isinstance(value, Settings):
            value = value.model_dump()
        is_group = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = _joined(result[name], value) if is_group else _to_tuple(value)
    return result


def _to_tuple(value: Any) -> Any:
    return tuple(_to_tuple(item) for item in value) if isinstance(value, (list, tuple)) else value


S = TypeVar("S", bound=Settings)
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}


def _sentence(group: type[Settings], error: pydantic.ValidationError) -> str:
    """The first mistake in this package's words: "X must be Y, found Z"."""
    first = error.errors()[0]
    kind, found, context = first["type"], first["input"], first.get("ctx", {})
    name = _name(group, first["loc"])
    if kind == "value_error":
        text = _short(str(context["error"]), 500)
        return text if name in text else f"{name}: {text}"
    if kind == "extra_forbidden":
        return unknown_setting(name, list(group.model_construct().names()))
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"{name} must be {words} {context[key]:g}, found {_shown(found)}"
    if kind == "too_long":
        return f"{name} must have at most {context['max_length']} values, found {len(found)}"
    if kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ")
        return f"{name} must be {'one of ' if ',' in choices else ''}{choices}, found {_shown(found)}"
    if kind == "finite_number":
        return f"{name} must be a finite number, found {_shown(found)}"
    default = dict(group.model_construct().items()).get(name)
    what = type(default).__name__
    return f"{name} takes {'an' if what[0] in 'aeiou' else 'a'} {what} such as {default!r}, found {_shown(found)}"


def _name(group: type[Settings], location: tuple[int | str, ...]) -> str:
    """The dotted name of a place, without what lies within a setting."""
    parts: list[str] = []
    node: Any = group
    for part in map(str, location):
        parts.append(part)
        field = node.model_fields.get(part)
        node = field.annotation if field else None
        if not (isinstance(node, type) and issubclass(node, Settings)):
            break
    return ".".join(parts)


def unknown_setting(name: str, known: list[str]) -> str:
    """Returns the message for a setting that there is not: at most five, of the same last part and near ones."""
    ends = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    near = list(dict.fromkeys(ends + difflib.get_close_matches(name, known, n=5, cutoff=0.3)))[:5]
    others = ", ".join(near) if near else f"none of {len(known)}, such as {', '.join(known[:5])}"
    return f"unknown setting {_shown(name)}; near it: {others}"


def read_overrides(settings: Settings, overrides: Iterable[str]) -> dict[str, Any]:
    """Returns `key=value` texts as changes by dotted name; values are Python literals, and what is none is a string.

    Raises:
        ValueError: no `=`, or an unknown setting (the near ones are listed).
    """
    if isinstance(overrides, (str, Mapping)):
        raise ValueError(f"overrides are a list of 'key=value' strings, found {_shown(overrides)}")
    current, changes = dict(settings.items()), {}
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"an override has the form key=value, found {_shown(override)}")
        if name not in current:
            raise ValueError(unknown_setting(name, list(current)))
        if name in changes:  # a later one counts, and what cannot be is refused all the same
            _refuse_impossible(settings, {name: changes[name]})
        changes[name] = _value(text, current[name])
    return changes


def _refuse_impossible(settings: Settings, changes: Mapping[str, Any]) -> None:
    """Raises ValueError for values that cannot be, whatever other settings are."""
    try:
        settings.validated(changes)
    except pydantic.ValidationError as error:
        if error.errors()[0]["type"] != "value_error":
            raise ValueError(_sentence(type(settings), error)) from None


def apply_overrides(settings: S, overrides: Iterable[str]) -> S:
    """Returns settings changed by `key=value` texts; raises ValueError as `read_overrides` and `replace` do."""
    return settings.replace(read_overrides(settings, overrides))


def _value(text: str, current: Any) -> Any:
    if isinstance(current, str):
        # As typed: a file may be called 1e3. Quotes around the whole are for the shell's sake.
        is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
        return str(_literal(text)) if is_quoted else text
    if isinstance(current, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return _literal(text)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two of brackets in brackets
        return text


def overrides(settings: Settings, base: Settings) -> list[str]:
    """Returns `key=value` for each setting in which settings differ from a base that has the same names.

    `apply_overrides` makes the settings of the base with them.
    """
    found, expected = dict(settings.items()), dict(base.items())
    return [f"{name}={found[name]!r}" for name in sorted(found) if found[name] != expected[name]]


def _shown(value: Any) -> str:
    """A value as a message shows it."""
    try:
        return _short(repr(value), 100)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def differences(first: Settings, second: Settings) -> list[str]:
    """Returns one line for each setting in which two groups differ."""
    one, two = dict(first.items()), dict(second.items())
    values = {name: (one.get(name, "(absent)"), two.get(name, "(absent)")) for name in sorted({*one, *two})}
    return [f"{name}: {a!r} / {b!r}" for name, (a, b) in values.items() if a != b]

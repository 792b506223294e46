"""Tensors as JSON and as protocol buffers, in the way of TensorFlow Serving.

Texts are byte strings: arrays of dtype object, `{"b64": "..."}` in JSON. JSON has no numbers that are not finite.
Replies of `tfstruct-serve` have the texts "NaN", "Infinity" and "-Infinity" in their place, as all JSON of this library
has; TensorFlow Serving writes them bare. The reader here takes both, and `tfstruct-serve` takes bare ones in requests.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

_KINDS = {"f": "iuf", "i": "iu", "u": "iu", "b": "b"}  # of arrays that stand for one of a kind
_INFINITE = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}


def numpy_dtype(name: str) -> np.dtype:
    """Returns the NumPy type of one that a card or a signature names; texts are objects."""
    return np.dtype(object if name == "string" else name)


def check_shape(name: str, shape: tuple[int, ...], expected: list[int]) -> None:
    """Raises ValueError, which names the input, unless a shape is the expected one, where -1 is any size but 0."""
    fits = len(shape) == len(expected) and all(
        size > 0 if wanted < 0 else size == wanted for size, wanted in zip(shape, expected, strict=True)
    )
    if not fits:
        sizes = ", ".join("N" if size < 0 else str(size) for size in expected)
        raise ValueError(f"{name} must have shape [{sizes}] with N >= 1, found {list(shape)}")


def to_lists(values: np.ndarray, *, is_text: bool = False) -> Any:
    """Returns an array as what JSON can hold, with texts for numbers that are not finite.

    Args:
        values: numbers, Booleans, or byte strings.
        is_text: whether byte strings are texts in UTF-8; others stand as `{"b64": ...}`.
    """
    if values.dtype.kind in "OS":
        flat = [
            value.decode(errors="replace") if is_text else {"b64": base64.b64encode(value).decode()}
            for value in values.ravel().tolist()
        ]
        return _nested(flat, values.shape)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        texts = values.astype(object)
        for text, number in _INFINITE.items():
            texts[np.isnan(values) if text == "NaN" else values == number] = text
        return texts.tolist()
    return values.tolist()


def from_lists(name: str, lists: Any, dtype: str, *, texts: bool = False) -> np.ndarray:
    """Returns the array that stands in JSON.

    Args:
        name: of the tensor, for messages.
        lists: nested lists.
        dtype: as a card names it.
        texts: whether numbers that are not finite may stand as texts, as in replies of `tfstruct-serve`.

    Raises:
        ValueError: lists of unequal lengths, or values that are none of the dtype.
    """
    target = numpy_dtype(dtype)
    if target.kind == "O":
        return _from_texts(name, lists)
    try:
        found = np.array(lists)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} must be nested lists of equal lengths") from None
    if texts and target.kind == "f" and found.dtype.kind == "U":
        return np.array(lists, target)
    if found.dtype.kind not in _KINDS[target.kind] and found.size:
        raise ValueError(f"{name} must be {dtype}, found {_odd_one(lists, found.dtype.kind)!r}")
    if target.kind in "iu" and found.size:
        bounds = np.iinfo(target)
        if found.min() < bounds.min or found.max() > bounds.max:
            raise ValueError(f"{name} must be {dtype}, found {int(found.max())}")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which no support has
        return found.astype(target)


def _from_texts(name: str, lists: Any) -> np.ndarray:
    """Texts: `{"b64": ...}` and plain ones, as byte strings."""
    flat: list[bytes] = []

    def shape_of(part: Any) -> tuple[int, ...]:
        if isinstance(part, list):
            shapes = {shape_of(child) for child in part}
            if len(shapes) > 1:
                raise ValueError(f"{name} must be nested lists of equal lengths")
            return (len(part), *(shapes.pop() if shapes else ()))
        flat.append(_bytes(name, part))
        return ()

    shape = shape_of(lists)
    values = np.empty([len(flat)], object)
    values[:] = flat
    return values.reshape(shape)


def _bytes(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"{name} has a b64 that is not base64") from None
    raise ValueError(f"{name} must be texts or {{'b64': ...}}, found {str(value)[:40]!r}")


def _nested(flat: list, shape: tuple[int, ...]) -> Any:
    for size in reversed(shape[1:]):
        flat = [flat[start : start + size] for start in range(0, len(flat), size)]
    return flat


def _odd_one(lists: Any, kind: str) -> Any:
    """Returns the first value that is why nested lists became an array of texts or objects; else the first value."""
    values, first = [lists], None
    while values:
        value = values.pop()
        if isinstance(value, list):
            values += reversed(value)
            continue
        first = value if first is None else first
        if kind not in "UO" or not isinstance(value, (bool, int, float)):
            return str(value)[:40] if isinstance(value, (str, dict)) else value
    return first


def request_body(signature: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    """Returns the JSON of a request in column form.

    Numbers that are not finite stand bare, which is no JSON and is what both servers take.
    """
    columns = {
        name: values.tolist() if values.dtype.kind == "f" else to_lists(values) for name, values in inputs.items()
    }
    return json.dumps({"signature_name": signature, "inputs": columns}).encode()


def reply_body(outputs: Mapping[str, np.ndarray], *, rows: bool) -> bytes:
    """Returns the JSON of a reply, in row or column form; a single output goes without its name."""
    # As TensorFlow Serving: the names of outputs that are no texts end so.
    columns = {name: to_lists(values, is_text=not name.endswith("_bytes")) for name, values in outputs.items()}
    if len(columns) == 1:
        (columns,) = columns.values()
    elif rows:
        columns = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return json.dumps({"predictions" if rows else "outputs": columns}, allow_nan=False).encode()


def from_reply(reply: Any, outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Returns the outputs of a reply in column form.

    Args:
        reply: its JSON.
        outputs: of the signature, as on a card.

    Raises:
        ValueError: something else than these outputs.
    """
    columns = reply.get("outputs") if isinstance(reply, dict) else None
    if columns is None:
        raise ValueError(f"the reply has no outputs: {str(reply)[:200]}")
    if len(outputs) == 1:
        columns = {name: columns for name in outputs}
    if not isinstance(columns, dict) or columns.keys() != outputs.keys():
        found = ", ".join(columns) if isinstance(columns, dict) else str(columns)[:40]
        raise ValueError(f"the reply has the outputs {found}, expected {', '.join(outputs)}")
    return {name: from_lists(name, columns[name], outputs[name]["dtype"], texts=True) for name in outputs}

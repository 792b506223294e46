"""Makes a SavedModel smaller: short names for the nodes of its functions, and no shapes that are inferred anyway.

Traces of unrolled networks have names of a hundred characters for every node and every use of it. What a client sees,
the signatures, functions and variables, keeps its names.
"""

import itertools
import string
from collections.abc import Iterator, Mapping
from pathlib import Path

from tensorflow.core.framework import function_pb2
from tensorflow.core.protobuf import saved_model_pb2

_SAVED_MODEL = "saved_model.pb"
_FINGERPRINT = "fingerprint.pb"  # of the graph as it was saved first; nothing needs it
# Left from tracing: shapes, which loading infers, and wishes about devices by the names of nodes.
_DISPENSABLE = ("_output_shapes", "_class")


def slim(folder: Path) -> None:
    """Rewrites the graph of a SavedModel in place."""
    path = folder / _SAVED_MODEL
    model = saved_model_pb2.SavedModel()
    model.ParseFromString(path.read_bytes())
    for meta in model.meta_graphs:
        new = {function.signature.name: _shorten(function) for function in meta.graph_def.library.function}
        for node in meta.object_graph_def.nodes:
            if node.HasField("captured_tensor"):  # of one function, which an inner one reads
                captured = node.captured_tensor
                captured.name = _renamed(captured.name, new[captured.concrete_function])
    path.write_bytes(model.SerializeToString(deterministic=True))
    (folder / _FINGERPRINT).unlink(missing_ok=True)


def _shorten(function: "function_pb2.FunctionDef") -> dict[str, str]:  # pyright: ignore[reportAttributeAccessIssue]
    """Renames the nodes of a function; returns the new names."""
    taken = {argument.name for argument in function.signature.input_arg}
    fresh = (name for name in _names() if name not in taken)
    new = {node.name: next(fresh) for node in function.node_def}

    for node in function.node_def:
        node.name = new[node.name]
        for place, reference in enumerate(node.input):
            node.input[place] = _renamed(reference, new)
        for attribute in _DISPENSABLE:
            node.attr.pop(attribute, None)
    for output, reference in list(function.ret.items()):
        function.ret[output] = _renamed(reference, new)
    for output, name in list(function.control_ret.items()):
        function.control_ret[output] = new[name]
    return new


def _renamed(reference: str, new: Mapping[str, str]) -> str:
    """A reference `node:output:index`, `node:index`, `^node` or `argument` with the node's new name."""
    mark = "^" if reference.startswith("^") else ""
    name, colon, rest = reference[len(mark) :].partition(":")
    return f"{mark}{new.get(name, name)}{colon}{rest}"


def _names() -> Iterator[str]:
    """a, b, ... z, aa, ab, ..."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))

"""Makes a SavedModel smaller: short names inside its functions, each function and constant once, no inferred shapes.

Traces of unrolled networks have names of a hundred characters for every node and every use of it, and the loops of
signatures that score alike are the same. What a client sees, the signatures, their functions and variables, keeps its
names.
"""

import itertools
import string
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tensorflow.core.framework import function_pb2, node_def_pb2
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
        public = set(meta.object_graph_def.concrete_functions)
        functions = meta.graph_def.library.function
        new = {}
        for function in functions:
            merged = _merge_constants(function)
            short = _shorten(function, public)
            new[function.signature.name] = short | {name: short[kept] for name, kept in merged.items()}
        for node in meta.object_graph_def.nodes:
            if node.HasField("captured_tensor"):  # of one function, which an inner one reads
                captured = node.captured_tensor
                captured.name = _renamed(captured.name, new[captured.concrete_function])
        while same := _same(functions, public):
            for node in itertools.chain(meta.graph_def.node, *(function.node_def for function in functions)):
                _refer(node, same)
            kept = [function for function in functions if function.signature.name not in same]
            del functions[:]
            functions.extend(kept)
    path.write_bytes(model.SerializeToString(deterministic=True))
    (folder / _FINGERPRINT).unlink(missing_ok=True)


def _merge_constants(
    function: "function_pb2.FunctionDef",  # pyright: ignore[reportAttributeAccessIssue]
) -> dict[str, str]:
    """Keeps one node of those of a function that hold the same constant after the same nodes; returns it for each."""
    first: dict[tuple[bytes, ...], str] = {}
    same, kept = {}, []
    for node in function.node_def:
        if node.op == "Const":
            key = node.attr["value"].SerializeToString(deterministic=True), *(name.encode() for name in node.input)
            found = first.setdefault(key, node.name)
            if found != node.name:
                same[node.name] = found
                continue
        kept.append(node)
    for node in kept:
        for place, reference in enumerate(node.input):
            node.input[place] = _renamed(reference, same)
    for names in (function.ret, function.control_ret):
        for output, reference in list(names.items()):
            names[output] = _renamed(reference, same)
    del function.node_def[:]
    function.node_def.extend(kept)
    return same


def _shorten(
    function: "function_pb2.FunctionDef",  # pyright: ignore[reportAttributeAccessIssue]
    public: set[str],
) -> dict[str, str]:
    """Renames the nodes of a function, and its inputs and outputs unless it is public; returns the new names."""
    arguments = [argument.name for argument in function.signature.input_arg]
    is_public = function.signature.name in public
    fresh = (name for name in _names() if not (is_public and name in arguments))
    new = {name: name if is_public else next(fresh) for name in arguments}
    new |= {node.name: next(fresh) for node in function.node_def}

    for argument in function.signature.input_arg:
        argument.name = new[argument.name]
    if not is_public:
        for attributes in function.arg_attr.values():
            attributes.attr.pop("_user_specified_name", None)
    for node in function.node_def:
        node.name = new[node.name]
        for place, reference in enumerate(node.input):
            node.input[place] = _renamed(reference, new)
        for attribute in _DISPENSABLE:
            node.attr.pop(attribute, None)
    returned = {output: _renamed(reference, new) for output, reference in function.ret.items()}
    function.ret.clear()
    for place, argument in enumerate(function.signature.output_arg):
        output, argument.name = argument.name, argument.name if is_public else f"_{place}"
        function.ret[argument.name] = returned[output]
    for output, name in list(function.control_ret.items()):
        function.control_ret[output] = new[name]
    return new


def _same(functions: Iterable, public: set[str]) -> dict[str, str]:
    """Names of functions that are an earlier one under another name, with the name of that."""
    first: dict[bytes, str] = {}
    same = {}
    for function in functions:
        name = function.signature.name
        if name not in public:
            nameless = type(function)()
            nameless.CopyFrom(function)
            nameless.signature.name = ""
            found = first.setdefault(nameless.SerializeToString(deterministic=True), name)
            if found != name:
                same[name] = found
    return same


def _refer(node: "node_def_pb2.NodeDef", same: Mapping[str, str]) -> None:  # pyright: ignore[reportAttributeAccessIssue]
    """Makes a node call the first of functions that are the same."""
    for attribute in node.attr.values():
        for function in [attribute.func] if attribute.HasField("func") else attribute.list.func:
            function.name = same.get(function.name, function.name)


def _renamed(reference: str, new: Mapping[str, str]) -> str:
    """A reference `node:output:index`, `node:index`, `^node` or `argument` with the node's new name."""
    mark = "^" if reference.startswith("^") else ""
    name, colon, rest = reference[len(mark) :].partition(":")
    return f"{mark}{new.get(name, name)}{colon}{rest}"


def _names() -> Iterator[str]:
    """a, b, ... z, aa, ab, ..."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))

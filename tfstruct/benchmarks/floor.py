"""The least time that a computation could take on this machine: its matrix products and the bytes it must move."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

Shape = tuple[int, ...]
_SIDE, _BYTES, _REPEATS = 2_048, 2**28, 5


class Cost(NamedTuple):
    """What one unit of work takes at least.

    Attributes:
        operations: multiplications and additions of matrix products and convolutions.
        bytes: read from and written to memory by what is not a product.
    """

    operations: float
    bytes: float


class Machine(NamedTuple):
    """What the device does at most, as measured in this process.

    Attributes:
        operations_per_second: of a product of two float32 matrices of 2,048 x 2,048, under XLA.
        bytes_per_second: read and written by adding 1 to 256 MiB in place.
    """

    operations_per_second: float
    bytes_per_second: float

    def better(self, other: "Machine") -> "Machine":
        """The larger of two measurements: what else the machine did meanwhile makes them smaller."""
        return Machine(*map(max, zip(self, other, strict=True)))

    def least_seconds(self, cost: Cost) -> float:
        """Seconds that a unit of work takes if nothing waits and nothing else is computed."""
        return cost.operations / self.operations_per_second + cost.bytes / self.bytes_per_second


def measure() -> Machine:
    """Measures the device."""
    matrix, vector = tf.random.stateless_uniform([_SIDE, _SIDE], [0, 1]), tf.zeros([_BYTES // 4])

    @tf.function(jit_compile=True, autograph=False)
    def product(values: tf.Tensor) -> tf.Tensor:
        body = lambda place, x: (place + 1, x @ matrix)  # noqa: E731
        return tf.while_loop(lambda place, _: True, body, (0, values), maximum_iterations=_REPEATS)[1]

    @tf.function(jit_compile=True, autograph=False)
    def passes(values: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda place, _: place < _REPEATS, lambda place, x: (place + 1, x + 1.0), (0, values))[1]

    return Machine(
        count_operations(product, matrix) / _least_seconds(lambda: product(matrix)[0, 0].numpy()),
        _REPEATS * 2.0 * _BYTES / _least_seconds(lambda: passes(vector)[0].numpy()),
    )


def _least_seconds(run: Callable[[], object]) -> float:
    run()  # compiles
    taken = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def count_operations(function: Callable[..., Any], *arguments: Any) -> float:
    """Counts the multiplications and additions of all matrix products and convolutions of a function.

    Bodies of loops count as often as their `maximum_iterations`.

    Args:
        function: of tensors, traced once.
        *arguments: tensors, or nests of them, of known shapes.

    Raises:
        ValueError: a product of unknown shape, or a loop without a known end.
    """
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph.as_graph_def(add_shapes=True)
    functions = {part.signature.name: part for part in graph.library.function}

    def of_nodes(nodes: Iterable[Any], known: Mapping[str, Any]) -> float:
        by_name = {node.name: node for node in nodes}
        return sum(of_node(node, by_name, known) for node in by_name.values())

    def of_function(name: str) -> float:
        part = functions[name]
        places = {argument.name: place for place, argument in enumerate(part.signature.input_arg)}
        shapes = {name: part.arg_attr[place].attr["_output_shapes"] for name, place in places.items()}
        return of_nodes(part.node_def, shapes)

    def of_node(node: Any, by_name: Mapping[str, Any], known: Mapping[str, Any]) -> float:
        if node.op in ("While", "StatelessWhile"):
            # Inputs of TensorFlow's while_loop: a counter, the most iterations, the variables of the loop.
            limit = by_name.get(node.input[1].partition(":")[0])
            if limit is None or limit.op != "Const" or (most := int(tf.make_ndarray(limit.attr["value"].tensor))) < 0:
                raise ValueError(f"the loop {node.name} has no known number of iterations")
            return most * of_function(node.attr["body"].func.name)
        if node.op in ("PartitionedCall", "StatefulPartitionedCall"):
            return of_function(node.attr["f"].func.name)
        if node.op not in _COUNTS:
            return 0.0
        shapes = [_shape(source, by_name, known) for source in node.input if not source.startswith("^")]
        output = _dimensions(node.attr["_output_shapes"].list.shape[0])
        known_shapes = [shape for shape in shapes if shape is not None]
        if output is None or len(known_shapes) < len(shapes):
            raise ValueError(f"the shapes of {node.name} ({node.op}) are not known")
        return _COUNTS[node.op](node, known_shapes, output)

    return of_nodes(graph.node, {})


def _shape(source: str, by_name: Mapping[str, Any], known: Mapping[str, Any]) -> Shape | None:
    name, *places = source.split(":")
    shapes = by_name[name].attr["_output_shapes"] if name in by_name else known[name]
    # In a function `node:output:0`, in a graph `node:0`; nodes of products have inputs of one output each.
    place = int(places[-1]) if places else 0
    return _dimensions(shapes.list.shape[place])


def _dimensions(shape: Any) -> Shape | None:
    sizes = tuple(dimension.size for dimension in shape.dim)
    return None if shape.unknown_rank or any(size < 0 for size in sizes) else sizes


def _of_product(node: Any, shapes: list[Shape], output: Shape) -> float:
    transposed = node.attr["transpose_a"].b or node.attr["adj_x"].b
    return 2.0 * math.prod(output) * shapes[0][-2 if transposed else -1]


def _of_einsum(node: Any, shapes: list[Shape], output: Shape) -> float:
    labels = node.attr["equation"].s.decode().partition("->")[0].split(",")
    sizes = {}
    for names, shape in zip(labels, shapes, strict=True):
        before, dots, after = names.partition("...")
        sizes.update(zip(before, shape, strict=False))
        sizes.update(zip(reversed(after), reversed(shape), strict=False))
        if dots:  # the same axes in every input, or 1
            rest = math.prod(shape[len(before) : len(shape) - len(after)])
            sizes["..."] = max(sizes.get("...", 1), rest)
    return 2.0 * math.prod(sizes.values()) if len(labels) > 1 else 0.0


def _of_convolution(node: Any, shapes: list[Shape], output: Shape) -> float:
    kernel = shapes[1]
    return 2.0 * math.prod(output) * math.prod(kernel[:-1])


_COUNTS: dict[str, Callable[[Any, list[Shape], Shape], float]] = {
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), _of_product),
    "Einsum": _of_einsum,
    "Conv2D": _of_convolution,
    # Inputs: sizes or images, kernel or its sizes, gradient [B, H, W, O] of what the convolution gave.
    "Conv2DBackpropInput": lambda node, shapes, output: 2.0 * math.prod(shapes[2]) * math.prod(shapes[1][:-1]),
    "Conv2DBackpropFilter": lambda node, shapes, output: 2.0 * math.prod(shapes[2]) * math.prod(output[:-1]),
}

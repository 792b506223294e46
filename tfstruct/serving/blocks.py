"""Functions of rows that compute a few of them at a time, inside the graph, so that memory does not grow with all."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

#: rows computed at once; more than a client asks for unless it is told to
ROWS = 128


def in_blocks(function: Callable[..., Any], specs: Sequence[tf.TensorSpec], rows: int = ROWS) -> Callable[..., Any]:
    """Returns a function that calls another for blocks of rows; it is traced once, however often it is called.

    Args:
        function: of tensors [n, ...] to a structure of tensors [n, ...]; a row's answer depends on that row alone.
        specs: of its inputs, [None, ...].
        rows: of a block; the last one has what is left, so up to so many rows are computed as they would be without.
    """
    traced = tf.function(function, input_signature=specs, autograph=False)

    def blocked(*inputs: tf.Tensor) -> Any:
        outputs = traced.get_concrete_function().structured_outputs
        num_rows = tf.shape(inputs[0])[0]
        num_blocks = tf.maximum((num_rows + rows - 1) // rows, 1)  # an empty one gives the shapes of no rows
        arrays = [
            tf.TensorArray(spec.dtype, num_blocks, element_shape=spec.shape, infer_shape=False)
            for spec in tf.nest.flatten(outputs)
        ]

        def body(place: tf.Tensor, arrays: list[tf.TensorArray]) -> tuple[tf.Tensor, list[tf.TensorArray]]:
            found = traced(*(values[place * rows : (place + 1) * rows] for values in inputs))
            parts = tf.nest.flatten(found)
            return place + 1, [array.write(place, part) for array, part in zip(arrays, parts, strict=True)]

        # One after the other: blocks at the same time would take the memory that they are there to save.
        _, arrays = tf.while_loop(lambda place, _: place < num_blocks, body, (0, arrays), parallel_iterations=1)
        return tf.nest.pack_sequence_as(outputs, [array.concat() for array in arrays])

    return tf.function(blocked, input_signature=specs, autograph=False)


def signature(function: Callable[..., Any], specs: Sequence[tf.TensorSpec]) -> Callable[..., Any]:
    """Returns a tf.function of rows [N, ...] and of what goes with them, [N, ...] or [1, ...] for all; others fail.

    Args:
        function: of the inputs, all [N, ...], in the order of `specs`.
        specs: of the inputs, [None, ...]; their names are those of the arguments.
    """
    names = [spec.name for spec in specs]

    def spread(values: tf.Tensor, num_rows: tf.Tensor) -> tf.Tensor:
        full = tf.broadcast_to(values, tf.concat([num_rows, tf.shape(values)[1:]], axis=0))
        return tf.ensure_shape(full, values.shape)

    def called(*inputs: tf.Tensor, **named: tf.Tensor) -> Any:
        first, *others = *inputs, *(named[name] for name in names[len(inputs) :])
        return function(first, *(spread(values, tf.shape(first)[:1]) for values in others))

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    called.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return tf.function(called, input_signature=specs, autograph=False)

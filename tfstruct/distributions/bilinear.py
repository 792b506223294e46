"""Products of many small matrices by a vector each, with gradients that XLA computes fast on a CPU.

The gradient with respect to such a matrix is an outer product. XLA turns that into a product of two broadcasts inside
whatever loop uses it, which its code for CPUs runs five to ten times slower than memory allows. Outer products of
two columns are left alone, so all gradients here are such: what is added to the true one is zero, or is part of it.
"""

from collections.abc import Callable

import tensorflow as tf


def _outer(*pairs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """Sum of two outer products: pairs of [..., V] and [..., H] to [..., V, H]."""
    rows, columns = (tf.stack(parts, axis=-1) for parts in zip(*pairs, strict=True))
    return tf.matmul(rows, columns, transpose_b=True)


@tf.custom_gradient
def times_matrix(vectors: tf.Tensor, matrices: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Row vectors [..., V] times matrices [..., V, H]: [..., H]."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        nothing = tf.zeros_like(vectors), tf.zeros_like(upstream)
        return tf.linalg.matvec(matrices, upstream), _outer((vectors, upstream), nothing)

    return tf.linalg.matvec(matrices, vectors, transpose_a=True), gradient


@tf.custom_gradient
def matrix_times(matrices: tf.Tensor, vectors: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Matrices [..., V, H] times column vectors [..., H]: [..., V]."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        nothing = tf.zeros_like(upstream), tf.zeros_like(vectors)
        return _outer((upstream, vectors), nothing), tf.linalg.matvec(matrices, upstream, transpose_a=True)

    return tf.linalg.matvec(matrices, vectors), gradient


@tf.custom_gradient
def row_and_column_sums(matrices: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
    """Sums over the columns, [..., V], and over the rows, [..., H], of matrices [..., V, H]."""

    def gradient(of_rows: tf.Tensor, of_columns: tf.Tensor) -> tf.Tensor:
        return _outer((of_rows, tf.ones_like(of_columns)), (tf.ones_like(of_rows), of_columns))

    return (tf.reduce_sum(matrices, axis=-1), tf.reduce_sum(matrices, axis=-2)), gradient

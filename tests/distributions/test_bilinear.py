"""Products of small matrices by vectors: values and gradients are those of TensorFlow's own operations."""

import numpy as np
import pytest
import tensorflow as tf

from tfstruct.distributions import bilinear

CASES = {
    "times_matrix": (
        lambda vectors, matrices: bilinear.times_matrix(vectors, matrices),
        lambda vectors, matrices: tf.einsum("bi,bij->bj", vectors, matrices),
        ((5, 3), (5, 3, 4)),
    ),
    "matrix_times": (
        lambda matrices, vectors: bilinear.matrix_times(matrices, vectors),
        lambda matrices, vectors: tf.einsum("bij,bj->bi", matrices, vectors),
        ((5, 3, 4), (5, 4)),
    ),
    "sums": (
        lambda matrices: tf.concat(bilinear.row_and_column_sums(matrices), axis=-1),
        lambda matrices: tf.concat([tf.reduce_sum(matrices, -1), tf.reduce_sum(matrices, -2)], axis=-1),
        ((5, 3, 4),),
    ),
}


def _value_and_gradients(function, arguments, weigh):
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        value = function(*arguments)
        total = tf.reduce_sum(weigh * tf.sin(value))
    return value, *tape.gradient(total, arguments)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_values_and_gradients_are_those_of_plain_operations(name, jit_compile, rng):
    function, plain, shapes = CASES[name]
    arguments = [tf.constant(rng.normal(size=shape)) for shape in shapes]
    weigh = tf.constant(rng.normal(size=plain(*arguments).shape))
    run = tf.function(_value_and_gradients, jit_compile=jit_compile, autograph=False)
    found, expected = run(function, arguments, weigh), _value_and_gradients(plain, arguments, weigh)
    for one, two in zip(found, expected, strict=True):
        assert np.abs(two).max() > 0.1
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-12)


def test_replicas_are_mapped_over_like_any_operation(rng):
    vectors, matrices = tf.constant(rng.normal(size=[2, 5, 3])), tf.constant(rng.normal(size=[2, 5, 3, 4]))
    found = tf.vectorized_map(lambda pair: bilinear.times_matrix(*pair), (vectors, matrices))
    np.testing.assert_allclose(found, tf.einsum("rbi,rbij->rbj", vectors, matrices), rtol=1e-12)

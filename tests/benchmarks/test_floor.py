"""Operations of matrix products, counted from the traced graph, equal those counted by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tfstruct.benchmarks.floor import Cost, Machine, count_operations
from tfstruct.benchmarks.timing import Timing, exponent


def of(*shape):
    return tf.zeros(shape)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (lambda a, b: a @ b, [of(3, 5), of(5, 7)], 2 * 3 * 5 * 7),
        (lambda a, b: tf.matmul(a, b, transpose_a=True), [of(5, 3), of(5, 7)], 2 * 3 * 5 * 7),
        (lambda a, b: tf.matmul(a, b, adjoint_b=True), [of(4, 3, 5), of(4, 7, 5)], 4 * 2 * 3 * 5 * 7),
        (lambda a, b: tf.einsum("...gi,gio->...go", a, b), [of(2, 3, 4, 5), of(4, 5, 7)], 2 * 2 * 3 * 4 * 5 * 7),
        (lambda a, b: tf.nn.conv2d(a, b, 2, "SAME"), [of(2, 8, 8, 3), of(5, 5, 3, 4)], 2 * (2 * 4 * 4 * 4) * 75),
        (lambda a: tf.exp(a) + 1.0, [of(3, 5)], 0),
    ],
)
def test_operations_are_those_of_the_definition(function, arguments, expected):
    assert count_operations(function, *arguments) == expected


def test_gradients_count_the_two_products_of_each(rng):
    def loss(a, b):
        return tf.gradients(tf.reduce_sum(tf.square(a @ b)), [a, b])

    assert count_operations(loss, of(3, 5), of(5, 7)) == 3 * 2 * 3 * 5 * 7
    kernel = of(5, 5, 3, 4)
    convolve = lambda a, b: tf.gradients(tf.nn.conv2d(a, b, 2, "SAME"), [a, b])  # noqa: E731
    # What the convolution gives is not needed for its gradients, but it is traced.
    assert count_operations(convolve, of(2, 8, 8, 3), kernel) == 3 * 2 * (2 * 4 * 4 * 4) * 75


def test_bodies_of_loops_and_of_functions_inside_count_as_often_as_they_run():
    inner = tf.function(lambda x, b: x @ b)

    def loop(x, b):
        return tf.while_loop(lambda i, _: i < 6, lambda i, x: (i + 1, inner(x, b)), (0, x), maximum_iterations=6)[1]

    assert count_operations(loop, of(3, 5), of(5, 5)) == 6 * 2 * 3 * 5 * 5


def test_a_loop_without_a_known_end_is_refused():
    loop = lambda x: tf.while_loop(lambda x: x[0, 0] < 6.0, lambda x: (x @ x,), (x,))  # noqa: E731
    with pytest.raises(ValueError, match="no known number of iterations"):
        count_operations(loop, of(3, 3))


def test_the_least_time_adds_products_and_bytes():
    machine = Machine(2e9, 3e8).better(Machine(1e9, 1e9))
    assert machine.least_seconds(Cost(4e9, 5e8)) == pytest.approx(2.5)


def test_the_exponent_of_a_power_law_is_found_and_its_error_is_that_of_the_fit(rng):
    values = np.array([1.0, 2.0, 4.0, 8.0])
    timings = [Timing(10.0, tuple(10.0 * 3.0 * value**1.5 for _ in range(3)), 0.0, None, None) for value in values]
    slope, error = exponent(values, timings)
    assert (slope, error) == (pytest.approx(1.5), pytest.approx(0.0, abs=1e-12))
    # Seconds off by a factor of e^0.1 up, down, down, up: slope 0 of what is left, and 0.2^2 / 2 over sum of squares.
    factors = np.exp(0.1 * np.array([1, -1, -1, 1]))
    timings = [timing._replace(seconds=(timing.seconds[0] * f,)) for timing, f in zip(timings, factors, strict=True)]
    slope, error = exponent(values, timings)
    assert slope == pytest.approx(1.5)
    assert error == pytest.approx(np.sqrt(0.04 / 2 / (5.0 * np.log(2.0) ** 2)))

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tfstruct import math


def _gradient(function, values):
    values = tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch(values)
        result = function(values)
    return tape.gradient(result, values).numpy()


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_logsumexp_is_scipys_in_float64(axis, keepdims, rng, run):
    values = 300.0 * rng.normal(size=[3, 4, 5])
    found = run(lambda x: math.logsumexp(x, axis, keepdims=keepdims), tf.constant(values))
    expected = scipy.special.logsumexp(values, axis=axis, keepdims=keepdims)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_logsumexp_neither_overflows_nor_underflows(shift, run):
    found = run(lambda x: math.logsumexp(x, 0), tf.constant([shift, shift + np.log(3.0)], tf.float64))
    assert float(found) == pytest.approx(shift + np.log(4.0), rel=1e-15)


def test_logsumexp_of_nothing_but_minus_infinity_is_minus_infinity_with_gradient_zero(run):
    values = np.array([[-np.inf, -np.inf], [0.0, -np.inf]])
    np.testing.assert_array_equal(run(lambda x: math.logsumexp(x, 1), tf.constant(values)), [-np.inf, 0.0])
    np.testing.assert_array_equal(_gradient(lambda x: math.logsumexp(x, 1), values), [[0.0, 0.0], [1.0, 0.0]])


def test_logsumexp_has_the_softmax_as_gradient(rng):
    values = rng.normal(size=[4, 3])
    found = _gradient(lambda x: tf.reduce_sum(math.logsumexp(x, 1)), values)
    np.testing.assert_allclose(found, scipy.special.softmax(values, axis=1), rtol=1e-13)


def test_logsumexp_stays_finite_through_a_thousand_layers_of_impossible_pairs():
    # Each layer adds an impossible branch; the value stays 0 and the gradient 1.
    def circuit(x):
        for _ in range(1000):
            x = math.logsumexp(tf.stack([x, tf.fill(x.shape, tf.constant(-np.inf, x.dtype))]), 0)
        return x

    np.testing.assert_array_equal(circuit(tf.constant([0.0, -np.inf])), [0.0, -np.inf])
    np.testing.assert_array_equal(_gradient(circuit, [0.0, -np.inf]), [1.0, 0.0])


def test_logsumexp_hides_no_nan():
    assert np.isnan(math.logsumexp(tf.constant([0.0, np.nan]), 0))


def test_log_mean_exp_of_equal_values_is_that_value():
    np.testing.assert_allclose(
        math.log_mean_exp(tf.fill([7, 2], tf.constant(-3.5, tf.float64))), [-3.5, -3.5], rtol=1e-15
    )


def test_log_mean_exp_takes_the_mean_along_the_given_axis(rng):
    values = rng.normal(size=[3, 5])
    for axis in (0, 1, -1):
        expected = np.log(np.exp(values).mean(axis=axis))
        np.testing.assert_allclose(math.log_mean_exp(tf.constant(values), axis), expected, rtol=1e-13)


def test_log_mean_exp_counts_impossible_samples():
    values = tf.constant([0.0, -np.inf, -np.inf, 0.0], tf.float64)
    assert float(math.log_mean_exp(values)) == pytest.approx(np.log(0.5), rel=1e-15)


def test_bits_per_dim_by_hand():
    # 784 pixels at one bit each.
    assert math.bits_per_dim(-784 * np.log(2.0), 784) == pytest.approx(1.0, rel=1e-15)
    # A uniform density on [0, 1] is 8 bits on 256 levels.
    assert math.bits_per_dim(0.0, 3072, offset=8) == 8.0
    # A density of 4 in each dimension is worth two bits of the eight.
    assert math.bits_per_dim(3072 * np.log(4.0), 3072, offset=8) == pytest.approx(6.0, rel=1e-15)


def test_the_standard_error_is_that_of_the_mean():
    mean, error = math.mean_and_std_err(np.array([1.0, 2.0, 6.0], np.float32))
    assert mean == 3.0
    assert error == pytest.approx(np.sqrt(7.0 / 3.0), rel=1e-14)
    assert np.isnan(math.mean_and_std_err(np.array([1.0]))[1])


def test_the_log_mean_of_ratios_near_one_keeps_what_a_logarithm_of_the_count_rounds_away():
    log_ratios = (1e-6 * np.random.default_rng(17).normal(size=[3, 125])).astype(np.float32)
    expected = np.log(np.mean(np.exp(log_ratios.astype(np.float64)), axis=-1))
    np.testing.assert_allclose(math.log_mean_ratio(tf.constant(log_ratios)), expected, atol=1e-12)
    wide = np.array([[-700.0, 3.0, 5.0], [80.0, 80.0, 80.0]], np.float32)
    np.testing.assert_allclose(math.log_mean_ratio(tf.constant(wide)), math.log_mean_exp(wide, axis=-1), rtol=1e-6)


def test_a_compensated_sum_is_as_exact_as_its_result():
    total, lost = tf.constant(100.0), tf.constant(0.0)
    plain = total
    for _ in range(2_000):
        total, lost = math.compensated_add(total, lost, tf.constant(1.3e-5))
        plain += 1.3e-5
    assert abs(float(total) - 100.026) < 8e-6  # one unit of rounding
    assert abs(float(plain) - 100.026) > 1e-3


def test_soft_clip_keeps_what_is_inside_to_the_bit_and_levels_off_with_a_slope():
    inner, outer = 14.0, 15.0
    inside = np.linspace(-inner, inner, 1001).astype(np.float32)
    np.testing.assert_array_equal(math.soft_clip(tf.constant(inside), inner, outer), inside)
    beyond = tf.constant([14.25, 14.5, 15.0, 16.0, 20.0, 1e3, 1e6, 1e30, np.inf])
    with tf.GradientTape() as tape:
        tape.watch(beyond)
        found = math.soft_clip(beyond, inner, outer)
    expected = inner + 1.0 - 1.0 / (1.0 + beyond.numpy().astype(np.float64) - inner)
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    np.testing.assert_array_equal(math.soft_clip(-beyond, inner, outer), -found)
    slopes = tape.gradient(found, beyond).numpy()
    assert (slopes[:7] > 1e-13).all()
    assert (np.diff(slopes) <= 0.0).all()
    assert np.isfinite(slopes).all()

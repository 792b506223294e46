import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.reference import networks
from tfstruct.bijectors import inverse_autoregressive
from tfstruct.bijectors.inverse_autoregressive import InverseAutoregressive
from tfstruct.layers.flow import InverseAutoregressiveFlow
from tfstruct.layers.made import MADE

pytestmark = pytest.mark.usefixtures("float64")

ORDERS = pytest.mark.parametrize("order", ["forward", "reversed", (2, 0, 3, 1)])
CONTEXT = pytest.mark.parametrize("context_dim", [0, 3])
ACTIVATION = pytest.mark.parametrize("activation", ["relu", "elu", "tanh"])
B, D = 5, 4


def made(rng, order="forward", context_dim=3, activation="elu", scale=0.7):
    network = MADE(D, (7, 6), order=order, context_dim=context_dim, activation=activation)
    network.build()
    networks.randomize(network, rng, scale)
    return network


def flow(rng, context_dim=3, scale=0.5, **options):
    result = InverseAutoregressiveFlow(D, 3, (7, 6), context_dim=context_dim, **options)
    result.build()
    networks.randomize(result, rng, scale)
    return result


def inputs(rng, context_dim, leading=(B,)):
    x = tf.constant(rng.normal(size=[*leading, D]))
    return x, tf.constant(rng.normal(size=[leading[-1], context_dim])) if context_dim else None


@ORDERS
@CONTEXT
@ACTIVATION
def test_the_jacobian_of_a_masked_network_is_that_of_autodiff(order, context_dim, activation, rng):
    network, (x, context) = made(rng, order, context_dim, activation), inputs(rng, context_dim)
    values, jacobians = network.with_jacobian(x, context)
    for index, (value, jacobian) in enumerate(zip(values, jacobians, strict=True)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            expected = network(x, context)[index]
        np.testing.assert_allclose(value, expected, rtol=1e-13)
        by_input = np.swapaxes(tape.batch_jacobian(expected, x), -1, -2)
        assert np.any(by_input != 0.0)
        np.testing.assert_allclose(jacobian, by_input, rtol=1e-10, atol=1e-13)


def test_the_jacobian_takes_leading_axes_that_the_context_lacks(rng):
    network, (x, context) = made(rng), inputs(rng, 3, leading=(2, B))
    _, jacobians = network.with_jacobian(x, context)
    for sample in range(2):
        _, alone = network.with_jacobian(x[sample], context)
        for one, two in zip(jacobians, alone, strict=True):
            assert one.shape == (2, B, D, D)
            np.testing.assert_allclose(one[sample], two, rtol=1e-12, atol=1e-14)


def test_the_jacobian_needs_the_context_that_the_network_was_built_for(rng):
    with pytest.raises(ValueError, match="context of 3 features, and none was given"):
        made(rng).with_jacobian(tf.zeros([B, D], tf.float64))


@ORDERS
@CONTEXT
def test_a_pushed_score_is_the_gradient_of_the_log_density_through_the_inverse(order, context_dim, rng):
    network, (x, context) = made(rng, order, context_dim), inputs(rng, context_dim)
    step = InverseAutoregressive(network, network.order, context, gate_bias=0.5)
    y, log_slopes, score = step.push_score(x, -(x - 0.3))
    expected_y, expected_slopes = step.forward_and_log_slopes(x)
    np.testing.assert_allclose(y, expected_y, rtol=1e-13)
    np.testing.assert_allclose(log_slopes, expected_slopes, rtol=1e-13)
    fresh = InverseAutoregressive(network, network.order, context, gate_bias=0.5)
    with tf.GradientTape() as tape:
        tape.watch(y)
        base = fresh._inverse(y)
        log_density = -0.5 * tf.reduce_sum(tf.square(base - 0.3), -1) - fresh.forward_and_log_det(base)[1]
    np.testing.assert_allclose(score, tape.gradient(log_density, y), rtol=1e-8, atol=1e-10)


@CONTEXT
def test_a_score_goes_through_a_chain_as_the_log_density_does(context_dim, rng):
    layer, (x, context) = flow(rng, context_dim), inputs(rng, context_dim, leading=(2, B))
    y, log_slopes, score = layer.push_score(x, -x, context)
    np.testing.assert_allclose(log_slopes, layer(x, context)[1], rtol=1e-12)
    with tf.GradientTape() as tape:
        tape.watch(y)
        base, slopes = layer.invert(y, context)
        log_density = -0.5 * tf.reduce_sum(tf.square(base), -1) - tf.reduce_sum(slopes, -1)
    np.testing.assert_allclose(score, tape.gradient(log_density, y), rtol=1e-7, atol=1e-9)


def test_the_score_of_a_scaled_gaussian_is_its_closed_form(rng):
    layer = flow(rng, 0, scale=0.0, gate_bias=0.5)
    x = tf.constant(rng.normal(size=[B, D]))
    scale = (1.0 / (1.0 + np.exp(-0.5))) ** 3
    y, _, score = layer.push_score(x, -x)
    np.testing.assert_allclose(y, scale * x, rtol=1e-13)
    np.testing.assert_allclose(score, -y / scale**2, rtol=1e-12)


def test_the_score_is_the_same_as_a_graph_and_compiled(rng, compiled):
    layer, (x, context) = flow(rng), inputs(rng, 3)
    found = compiled(lambda x: layer.push_score(x, -x, context), x)
    for one, two in zip(found, layer.push_score(x, -x, context), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)


def test_float32_scores_are_those_of_float64(rng):
    wide, (x, context) = flow(rng, scale=0.3), inputs(rng, 3)
    keras.config.set_dtype_policy("float32")  # the fixture restores it
    narrow = InverseAutoregressiveFlow(D, 3, (7, 6), context_dim=3)
    narrow.build()
    for one, two in zip(narrow.variables, wide.variables, strict=True):
        assert two.dtype == "float64"
        one.assign(two)
    expected = wide.push_score(x, -x, context)
    found = narrow.push_score(tf.cast(x, tf.float32), -tf.cast(x, tf.float32), tf.cast(context, tf.float32))
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("places", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_a_triangular_system_in_any_order_is_solved(places, rng):
    places = np.array(places)
    matrix = rng.normal(size=[B, D, D]) * (places[:, np.newaxis] <= places)
    right = rng.normal(size=[B, D])
    found = inverse_autoregressive._solve(tf.constant(matrix), tf.constant(right), places)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right[..., np.newaxis])[..., 0], rtol=1e-9)

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tests.reference import flow as twin
from tests.reference import networks
from tfstruct.layers.flow import InverseAutoregressiveFlow

pytestmark = pytest.mark.usefixtures("float64")

CONTEXT = pytest.mark.parametrize("context_dim", [0, 2])


def _flow(rng=None, num_steps=3, dim=4, context_dim=0, **kwargs):
    """A flow; with `rng` all its weights are random."""
    flow = InverseAutoregressiveFlow(dim, num_steps, (6, 5), context_dim=context_dim, name="flow", **kwargs)
    flow.build()
    if rng is not None:
        networks.randomize(flow, rng)
    return flow


def _context(rng, context_dim, *leading):
    return (tf.constant(rng.normal(size=[*leading, context_dim])),) if context_dim else ()


def test_steps_take_turns_in_their_order(rng):
    flow, x = _flow(rng, activation="tanh"), rng.normal(size=[7, 4])
    for index, (network, expected) in enumerate(zip(flow.networks, [[0, 1, 2, 3], [3, 2, 1, 0]] * 2, strict=False)):
        np.testing.assert_array_equal(network.order, expected)
        jacobian = twin.jacobian(lambda x, network=network: network(x)[0], x)
        seen = np.triu(np.ones([4, 4]), 1) if index % 2 else np.tril(np.ones([4, 4]), -1)
        np.testing.assert_array_equal(jacobian != 0.0, np.broadcast_to(seen == 1.0, [7, 4, 4]))


@CONTEXT
@pytest.mark.parametrize(("activation", "num_steps", "gate_bias"), [("relu", 1, 2.0), ("elu", 2, -1.0), ("tanh", 3, 0)])
def test_the_flow_is_its_twin_both_ways(activation, num_steps, gate_bias, context_dim, rng):
    flow = _flow(rng, num_steps, context_dim=context_dim, activation=activation, gate_bias=gate_bias)
    x, y, context = rng.normal(size=[5, 4]), rng.normal(size=[5, 4]), _context(rng, context_dim, 5)
    weights = networks.named_weights(flow)
    forward, inverse = flow(tf.constant(x), *context), flow.invert(tf.constant(y), *context)
    for row in range(5):
        own = context[0][row].numpy() if context else None
        for found, function, value in ((forward, twin.forward, x), (inverse, twin.inverse, y)):
            expected = function(value[row], weights, activation, gate_bias, own)
            for one, two in zip(found, expected, strict=True):
                np.testing.assert_allclose(one[row], two, rtol=1e-10, atol=1e-12)


@CONTEXT
def test_log_slopes_add_up_to_the_log_determinant_of_the_whole_flow(context_dim, rng):
    flow, x, context = _flow(rng, context_dim=context_dim), rng.normal(size=[7, 4]), _context(rng, context_dim, 7)
    jacobian = twin.jacobian(lambda x: flow(x, *context)[0], x)
    _, log_slopes = flow(tf.constant(x), *context)
    assert log_slopes.shape == (7, 4)
    np.testing.assert_allclose(np.sum(log_slopes, axis=-1), np.linalg.slogdet(jacobian).logabsdet, rtol=1e-10)


@pytest.mark.parametrize("leading", [(3, 5), (5,)], ids=str)
def test_inverting_gives_back_the_base_vector_and_the_log_slopes_there(leading, rng):
    flow, x, (context,) = _flow(rng, context_dim=2), rng.normal(size=[3, 5, 4]), _context(rng, 2, *leading)
    y, log_slopes = flow(tf.constant(x), context)
    found, its_log_slopes = flow.invert(y, context)
    np.testing.assert_allclose(found, x, rtol=1e-9)
    np.testing.assert_allclose(its_log_slopes, log_slopes, rtol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_zero_weights_scale_by_the_gate_of_the_bias_at_every_step(num_steps, rng):
    flow, x = _flow(num_steps=num_steps, context_dim=2, gate_bias=0.5), tf.constant(rng.normal(size=[5, 4]))
    for variable in flow.variables:
        variable.assign(tf.zeros_like(variable))
    y, log_slopes = flow(x, *_context(rng, 2, 5))
    np.testing.assert_allclose(y, special.expit(0.5) ** num_steps * x, rtol=1e-14)
    np.testing.assert_allclose(log_slopes, np.full([5, 4], num_steps * special.log_expit(0.5)), rtol=1e-14)


def test_a_new_flow_is_nearly_that_scaling(rng):
    y, log_slopes = _flow(num_steps=2, context_dim=2)(tf.constant(rng.normal(size=[50, 4])), *_context(rng, 2, 50))
    np.testing.assert_allclose(log_slopes, np.full([50, 4], 2 * special.log_expit(2.0)), atol=0.15)
    assert np.std(log_slopes) > 1e-3


def test_every_step_has_weights_of_its_own_that_start_different():
    flow = _flow(num_steps=3, context_dim=2)
    paths = [variable.path for variable in flow.trainable_variables]
    assert len(set(paths)) == len(paths) == 3 * (3 * 2 + 1)
    starts = [np.asarray(network.kernels[0]) for network in flow.networks]
    assert not np.any(starts[0] == starts[1])
    assert not np.any(starts[0] == starts[2])


def test_the_bijector_of_a_flow_is_the_flow(rng):
    flow, x, (context,) = _flow(rng, context_dim=2), tf.constant(rng.normal(size=[5, 4])), _context(rng, 2, 5)
    y, log_slopes = flow(x, context)
    np.testing.assert_allclose(flow.bijector(context).forward(x), y, rtol=1e-12)
    log_det = flow.bijector(context).forward_log_det_jacobian(x, event_ndims=1)
    np.testing.assert_allclose(log_det, np.sum(log_slopes, axis=-1), rtol=1e-10)


def test_a_flow_without_steps_is_refused():
    with pytest.raises(ValueError, match="at least one step, found 0"):
        InverseAutoregressiveFlow(4, 0, (3,))

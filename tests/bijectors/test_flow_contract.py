import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.reference import networks
from tfstruct.bijectors.inverse_autoregressive import InverseAutoregressive
from tfstruct.layers.flow import InverseAutoregressiveFlow

pytestmark = pytest.mark.usefixtures("float64")

B, D = 5, 4


def flow(rng, context_dim=3, scale=0.5, **options):
    result = InverseAutoregressiveFlow(D, 3, (7, 6), context_dim=context_dim, **options)
    result.build()
    networks.randomize(result, rng, scale)
    return result


def inputs(rng):
    return tf.constant(rng.normal(size=[B, D])), tf.constant(rng.normal(size=[B, 3]))


def test_the_score_is_the_same_as_a_graph_and_compiled(rng, compiled):
    layer, (x, context) = flow(rng), inputs(rng)
    found = compiled(lambda x: layer.push_score(x, -x, context), x)
    for one, two in zip(found, layer.push_score(x, -x, context), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)


def test_float32_scores_are_those_of_float64(rng):
    wide, (x, context) = flow(rng, scale=0.3), inputs(rng)
    keras.config.set_dtype_policy("float32")  # the fixture restores it
    narrow = InverseAutoregressiveFlow(D, 3, (7, 6), context_dim=3)
    narrow.build()
    for one, two in zip(narrow.variables, wide.variables, strict=True):
        assert (one.dtype, two.dtype) == ("float32", "float64")
        one.assign(two)
    expected = wide.push_score(x, -x, context)
    found = narrow.push_score(tf.cast(x, tf.float32), -tf.cast(x, tf.float32), tf.cast(context, tf.float32))
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_one_vector_is_inverted_at_many_contexts(rng):
    layer, (x, context) = flow(rng), inputs(rng)
    base, log_slopes = layer.invert(x[:1], context)
    for row in range(B):
        expected = layer.invert(x[:1], context[row : row + 1])
        np.testing.assert_allclose(base[row : row + 1], expected[0], rtol=1e-12)
        np.testing.assert_allclose(log_slopes[row : row + 1], expected[1], rtol=1e-12)


# A batch shape that leaves the context out pairs each draw with a context of its own, without a word.
def test_the_batch_of_a_transformed_distribution_is_that_of_the_contexts(rng):
    layer, (_, context) = flow(rng), inputs(rng)
    normal = tfp.distributions.MultivariateNormalDiag(tf.zeros([D], tf.float64))
    posterior = tfp.distributions.TransformedDistribution(normal, layer.bijector(context))
    assert posterior.batch_shape == (B,)
    z = posterior.sample(7, seed=[0, 1])
    assert z.shape == (7, B, D)
    base, log_slopes = layer.invert(z, context)
    expected = normal.log_prob(base) - tf.reduce_sum(log_slopes, axis=-1)
    np.testing.assert_allclose(posterior.log_prob(tf.identity(z)), expected, rtol=1e-9)
    plain = tfp.distributions.TransformedDistribution(normal, flow(rng, 0).bijector())
    assert plain.batch_shape == ()
    assert plain.sample(7, seed=[0, 1]).shape == (7, D)


def test_the_order_is_the_networks_and_no_other(rng):
    network = flow(rng).networks[1]
    step = InverseAutoregressive(network, inputs(rng)[1])
    assert InverseAutoregressive(network, order="reversed")._order is network.order
    np.testing.assert_array_equal(step._order, [3, 2, 1, 0])
    with pytest.raises(ValueError, match=r"order is \[3, 2, 1, 0\], found order='forward'"):
        InverseAutoregressive(network, order="forward")
    with pytest.raises(ValueError, match="give the order"):
        InverseAutoregressive(lambda x: (x, x))


def test_a_context_of_another_width_is_refused_before_anything_is_computed(rng):
    layer = flow(rng)
    for context in (None, tf.zeros([B, 2], tf.float64)):
        with pytest.raises(ValueError, match="context of 3 features, found [02]"):
            layer.bijector(context)


@pytest.mark.parametrize("activation", ["softmax", "log_softmax", "glu", "nonsense"])
def test_an_activation_that_mixes_units_is_refused(activation):
    with pytest.raises(ValueError, match=f"unit by unit.*relu.*found '{activation}'"):
        InverseAutoregressiveFlow(D, 1, (4,), activation=activation)

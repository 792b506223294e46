import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.reference import networks
from tfstruct.bijectors import inverse_autoregressive
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


def test_the_score_of_a_scaled_gaussian_is_its_closed_form(rng):
    layer = flow(rng, 0, scale=0.0, gate_bias=0.5)
    x = tf.constant(rng.normal(size=[B, D]))
    scale = (1.0 / (1.0 + np.exp(-0.5))) ** 3
    y, log_slopes, score = layer.push_score(x, -x)
    np.testing.assert_allclose(y, scale * x, rtol=1e-13)
    np.testing.assert_allclose(log_slopes, np.full([B, D], np.log(scale)), rtol=1e-13)
    np.testing.assert_allclose(score, -y / scale**2, rtol=1e-12)


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
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("places", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_a_triangular_system_in_any_order_is_solved(places, rng):
    places = np.array(places)
    matrix = rng.normal(size=[B, D, D]) * (places[:, np.newaxis] <= places)
    right = rng.normal(size=[B, D])
    found = inverse_autoregressive._solve(tf.constant(matrix), tf.constant(right), places)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right[..., np.newaxis])[..., 0], rtol=1e-9)


def test_one_vector_is_inverted_at_many_contexts(rng):
    layer, (x, context) = flow(rng), inputs(rng)
    base, log_slopes = layer.invert(x[:1], context)
    for row in range(B):
        expected = layer.invert(x[:1], context[row : row + 1])
        np.testing.assert_allclose(base[row : row + 1], expected[0], rtol=1e-12)
        np.testing.assert_allclose(log_slopes[row : row + 1], expected[1], rtol=1e-12)

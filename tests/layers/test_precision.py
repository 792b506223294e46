import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tfstruct import random
from tfstruct.layers.precision import Dense, product, product_precision
from tfstruct.models import registry
from tfstruct.training.state import initial_state
from tfstruct.training.step import TrainStep

_PRODUCTS = ("MatMul", "BatchMatMulV2", "Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter")


def _rounded(values):
    return np.asarray(values, ml_dtypes.bfloat16).astype(np.float32)


def test_a_product_and_its_gradients_round_what_they_take_and_give():
    rng = np.random.default_rng(0)
    inputs, kernel, said = (rng.normal(size=shape).astype(np.float32) for shape in ([6, 5], [5, 4], [6, 4]))
    variables = tf.Variable(inputs), tf.Variable(kernel)
    with tf.GradientTape() as tape, product_precision("bfloat16"):
        outputs = product(tf.matmul, *variables)
    gradients = tape.gradient(outputs, variables, said)
    expected = _rounded(inputs) @ _rounded(kernel), _rounded(said) @ _rounded(kernel).T
    expected = *expected, _rounded(inputs).T @ _rounded(said)
    for found, value in zip([outputs, *gradients], expected, strict=True):
        assert found.dtype == tf.float32
        np.testing.assert_array_equal(found, _rounded(found))
        np.testing.assert_allclose(found, value, rtol=2**-8, atol=2**-12)


def test_outside_of_the_scope_nothing_is_rounded():
    layer = Dense(4, bias_initializer="normal", activation="tanh")
    inputs = np.random.default_rng(1).normal(size=[2, 3, 5]).astype(np.float32)
    with product_precision("bfloat16"):
        rounded = layer(inputs)
    expected = np.tanh(inputs @ layer.kernel.numpy() + layer.bias.numpy())
    np.testing.assert_allclose(layer(inputs), expected, rtol=1e-5, atol=1e-6)
    assert 1e-5 < np.abs(rounded - expected).max() < 0.05
    with pytest.raises(ValueError, match="float32 or bfloat16, found 'float16'"), product_precision("float16"):
        pass
    np.testing.assert_array_equal(layer(inputs), layer(inputs))


def _products_of_a_step(preset, precision):
    """The type of numbers of every matrix product and convolution in a step, as numbers of TensorFlow."""
    config = tiny.changed(preset, [f"training.precision={precision}"])
    model = registry.build(config)
    step = TrainStep(model, "binarize")
    state = tf.nest.map_structure(tf.convert_to_tensor, initial_state(step.functional, random.key(0), 8))
    rows = tf.zeros([4, *model.event_shape], tf.uint8)
    traced = tf.function(
        lambda state, rows: step.gradient(state, tf.constant(0), rows, row_ids=tf.range(4)).gradient, autograph=False
    )
    graph = traced.get_concrete_function(state, rows).graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return [node.attr["T"].type for node in nodes if node.op in _PRODUCTS]


@pytest.mark.parametrize(
    ("preset", "kept"),
    [
        ("graph_vae/tiny", 0),
        ("graph_iaf_vae/tiny", 6),  # slopes of log sigmoid times the flow's Jacobian, which are log densities
        ("boltzmann_vae/tiny", 29),  # energies and samplers
        ("spvae/tiny", 0),
        ("conv_spvae/tiny", 0),
        ("conv_vae/tiny", 0),
    ],
)
def test_every_product_of_a_network_is_rounded_and_no_log_density(preset, kept):
    full = _products_of_a_step(preset, "float32")
    rounded = _products_of_a_step(preset, "bfloat16")
    assert set(full) == {tf.float32.as_datatype_enum}
    assert len(rounded) == len(full) > kept
    assert rounded.count(tf.float32.as_datatype_enum) == kept


def test_precision_is_of_training_alone():
    models = [
        registry.build(tiny.changed("graph_vae/tiny", [f"training.precision={name}"]), seed=3)
        for name in ("float32", "bfloat16")
    ]
    x = np.random.default_rng(2).integers(0, 2, [4, 28, 28]).astype(np.float32)
    scores = [model.log_prob(x, num_samples=3, seed=1) for model in models]
    np.testing.assert_array_equal(*scores)

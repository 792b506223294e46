import numpy as np
import pytest
import tensorflow as tf

from tests.conformance.systems import LAYERS, public_layers

EVERY_LAYER = pytest.mark.parametrize("layer_class", LAYERS, ids=lambda layer_class: layer_class.__name__)


def _built(layer_class):
    make, shape, call = LAYERS[layer_class]
    layer = make()
    layer.build(shape)
    return layer, call


def test_every_public_layer_is_listed():
    assert public_layers() == set(LAYERS)


@EVERY_LAYER
def test_building_makes_all_weights_and_calling_makes_none(layer_class):
    layer, call = _built(layer_class)
    assert layer.built
    paths = [variable.path for variable in layer.variables]
    assert len(set(paths)) == len(paths)
    call(layer, 3)
    assert [variable.path for variable in layer.variables] == paths


@EVERY_LAYER
def test_every_trainable_weight_gets_a_finite_gradient(layer_class):
    layer, call = _built(layer_class)
    with tf.GradientTape() as tape:
        total = tf.add_n([tf.reduce_sum(tf.sin(part)) for part in tf.nest.flatten(call(layer, 3))])
    gradients = tape.gradient(total, [variable.value for variable in layer.trainable_variables])
    for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.all(np.isfinite(gradient)), variable.path


@EVERY_LAYER
def test_eager_graph_and_xla_agree(layer_class, compiled):
    layer, call = _built(layer_class)
    expected, found = call(layer, 3), compiled(lambda: call(layer, 3))
    for one, two in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)

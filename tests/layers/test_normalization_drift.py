"""Batch normalisation of features that are constant in every batch while their means move."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfstruct.layers.grouped import Normalization

OPTIONS = {"momentum": 0.9, "epsilon": 1e-5, "synchronized": False}


def trained(batches):
    layer, plain = Normalization((4,), **OPTIONS), keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    for one in (layer, plain):
        one.build((None, 4))
    for batch in batches:
        np.testing.assert_array_equal(layer(batch, training=True), plain(batch, training=True))
    return layer, plain


def test_features_that_vary_have_the_averages_of_keras_to_the_bit(rng):
    layer, plain = trained(tf.constant(rng.normal(size=[4]) + 3.0 * rng.normal(size=[50, 16, 4]), tf.float32))
    for one, other in zip(layer.normalization.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(one, other)


# Bug seen: a validation bound of -5.8e12 of images that are all ones, -1.6 in training.
@pytest.mark.parametrize("steps", [20, 400, 2000])
def test_constant_features_are_near_zero_at_evaluation_as_they_are_in_training(steps, rng):
    values = np.cumsum(0.01 * rng.normal(size=[steps, 1, 1]) + 0.01, axis=0)
    constant = np.broadcast_to(values, [steps, 16, 3])
    batches = np.concatenate([constant, rng.normal(size=[steps, 16, 1])], axis=2).astype(np.float32)
    layer, plain = trained(tf.constant(batches))
    last = tf.constant(batches[-1])
    assert np.abs(layer(last)[:, :3]).max() < 0.1
    np.testing.assert_array_equal(layer(last)[:, 3], plain(last)[:, 3])
    if steps > 100:
        assert np.abs(plain(last)[:, :3]).max() > 10.0

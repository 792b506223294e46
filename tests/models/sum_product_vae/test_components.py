"""Components of priors against SciPy's densities and their own moments."""

import numpy as np
import tensorflow as tf
from scipy import stats

from tests.reference import networks
from tests.reference.monte_carlo import assert_mean_close
from tfstruct import random
from tfstruct.models.sum_product_vae.components import GaussianComponents

VAES, COMPONENTS, DIM = 2, 3, 4


def _layer(rng):
    layer = GaussianComponents(VAES, COMPONENTS, DIM)
    layer.build()
    networks.randomize(layer, rng, 1.0)
    return layer, np.asarray(layer.mean), (1.0 + np.exp(np.asarray(layer.log_excess, np.float64))) ** -0.5


def test_log_densities_are_those_of_diagonal_gaussians(rng):
    layer, mean, scale = _layer(rng)
    z = 3.0 * rng.normal(size=[VAES, 7, DIM])
    expected = stats.norm.logpdf(z[:, np.newaxis], mean[:, :, np.newaxis], scale[:, :, np.newaxis]).sum(axis=-1)
    np.testing.assert_allclose(layer(tf.constant(z, tf.float32)), expected, rtol=1e-5, atol=1e-4)


def test_draws_are_of_the_component_that_is_chosen(rng):
    layer, mean, scale = _layer(rng)
    num = 20_000
    noise = random.normal(random.key(3), [VAES, num, DIM])
    for component in range(COMPONENTS):
        chosen = tf.one_hot(tf.fill([VAES, num], component), COMPONENTS)
        drawn = layer.sample(noise, chosen).numpy().astype(float)
        for vae in range(VAES):
            assert_mean_close(drawn[vae], mean[vae, component], resolution=0.05)
            standard = (drawn[vae] - mean[vae, component]) / scale[vae, component]
            assert_mean_close(standard**2, np.ones(DIM), resolution=0.06)


def test_no_component_is_wider_than_one_and_they_start_at_a_precision_of_e():
    layer = GaussianComponents(VAES, COMPONENTS, DIM)
    layer.build()
    one_hot = tf.one_hot(tf.zeros([VAES, 1], tf.int32), COMPONENTS)
    scale = layer.sample(tf.ones([VAES, 1, DIM]), one_hot) - layer.sample(tf.zeros([VAES, 1, DIM]), one_hot)
    np.testing.assert_allclose(scale, np.exp(-0.5), rtol=1e-5)
    layer.log_excess.assign(tf.fill(layer.log_excess.shape, -50.0))
    scale = layer.sample(tf.ones([VAES, 1, DIM]), one_hot) - layer.sample(tf.zeros([VAES, 1, DIM]), one_hot)
    np.testing.assert_allclose(scale, 1.0, rtol=1e-5)

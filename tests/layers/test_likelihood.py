import itertools

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from tests.reference import networks
from tests.reference.monte_carlo import assert_mean_close
from tfstruct import random
from tfstruct.layers.likelihood import make_likelihood


def _gaussian(dims, floor, rng=None):
    layer = make_likelihood("gaussian", dims, log_variance_floor=floor)
    layer.build((None, dims))
    if rng is not None:
        networks.randomize(layer, rng)
    return layer


def _bernoulli(dims=None):
    layer = make_likelihood("bernoulli", dims, log_variance_floor=0.0)
    layer.build((None, dims))
    return layer


@pytest.mark.usefixtures("float64")
def test_bernoulli_sums_to_one_over_all_images(rng, run):
    images = np.array(list(itertools.product([0.0, 1.0], repeat=8)))
    features = np.broadcast_to(3.0 * rng.normal(size=8), images.shape)
    log_probs = run(_bernoulli(8).log_prob, tf.constant(features), tf.constant(images))
    assert log_probs.shape == (256,)
    assert scipy.special.logsumexp(log_probs) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.usefixtures("float64")
def test_bernoulli_is_the_sum_of_scipys_log_probabilities(rng):
    features, x = rng.normal(size=[3, 5, 7]), rng.integers(0, 2, size=[5, 7]).astype(np.float64)
    expected = scipy.stats.bernoulli(scipy.special.expit(features)).logpmf(x).sum(axis=-1)
    np.testing.assert_allclose(_bernoulli().log_prob(tf.constant(features), tf.constant(x)), expected, rtol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("floor", [-7.0, -2.0])
def test_gaussian_is_its_twin(floor, rng, run):
    layer = _gaussian(4, floor, rng)
    weights = networks.named_weights(layer)
    features, x = 2.0 * rng.normal(size=[3, 5, 4]), rng.normal(size=[5, 4])
    linear = features @ weights["log_variance/kernel"] + weights["log_variance/bias"]
    variance = np.exp(floor + np.log1p(np.exp(linear - floor)))
    loc = 1.0 / (1.0 + np.exp(-features))
    expected = scipy.stats.norm.logpdf(x, loc, np.sqrt(variance)).sum(axis=-1)
    np.testing.assert_allclose(run(layer.log_prob, tf.constant(features), tf.constant(x)), expected, rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_gaussian_integrates_to_one(rng):
    layer = _gaussian(1, -7.0, rng)
    grid = np.linspace(-20.0, 20.0, 40_001)
    features = np.full([len(grid), 1], 0.8)
    total = np.exp(layer.log_prob(tf.constant(features), tf.constant(grid[:, np.newaxis])).numpy()).sum()
    assert total * (grid[1] - grid[0]) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("floor", [-7.0, -2.0])
def test_gaussian_log_variance_never_falls_below_its_floor(floor):
    layer = _gaussian(1, floor)
    layer.log_variance.kernel.assign([[1.0]])
    for linear, expected in ((-1e4, floor), (floor, floor + np.log(2.0)), (50.0, 50.0)):
        layer.log_variance.bias.assign([linear])
        # The feature is 0 and the observation its mean 1/2: the density is that of the scale alone.
        found = float(layer.log_prob(tf.zeros([1, 1], tf.float64), tf.fill([1, 1], np.float64(0.5)))[0])
        assert -2.0 * found - np.log(2 * np.pi) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("name", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("size", [30.0, -30.0])
def test_log_prob_and_gradient_are_finite_and_accurate_at_saturated_features(name, size):
    results = {}
    for dtype in (tf.float32, tf.float64):
        features = tf.fill([1, 2], tf.constant(size, dtype))
        layer = make_likelihood(name, 2, log_variance_floor=-7.0)
        if name == "gaussian":
            layer.log_variance = keras.layers.Dense(2, dtype=dtype.name)
            layer.dtype_policy = keras.DTypePolicy(dtype.name)
        layer.build((None, 2))
        if name == "gaussian":
            layer.log_variance.kernel.assign([[0.3, 0.0], [0.0, -0.3]])
        with tf.GradientTape() as tape:
            tape.watch(features)
            log_prob = layer.log_prob(features, tf.constant([[0.0, 1.0]], dtype))
        gradient = tape.gradient(log_prob, features)
        assert np.all(np.isfinite(log_prob))
        assert np.all(np.isfinite(gradient))
        results[dtype] = log_prob.numpy(), gradient.numpy()
    np.testing.assert_allclose(results[tf.float32][0], results[tf.float64][0], rtol=1e-4)
    np.testing.assert_allclose(results[tf.float32][1], results[tf.float64][1], rtol=1e-4, atol=1e-4)
    if name == "bernoulli":
        assert float(results[tf.float64][0][0]) == pytest.approx(-30.0, abs=1e-10)


@pytest.mark.parametrize("name", ["bernoulli", "gaussian"])
def test_mean_is_the_mean_of_log_prob_and_of_samples(name, rng):
    layer = _gaussian(2, -4.0, rng) if name == "gaussian" else _bernoulli(2)
    features = tf.constant([[-1.0, 0.5]])
    mean = layer.mean(features).numpy()[0]
    np.testing.assert_allclose(mean, scipy.special.expit([-1.0, 0.5]), rtol=1e-6)
    draws = layer.sample(tf.tile(features, [50_000, 1]), random.key(17)).numpy()
    # Catches a sample that is off by the spread of the noise or thresholded on the wrong side.
    assert_mean_close(draws, mean, resolution=0.1)
    if name == "bernoulli":
        assert set(np.unique(draws)) == {0.0, 1.0}
    else:
        variance = layer.distribution(features).distribution.variance().numpy()[0]
        assert_mean_close((draws - mean) ** 2, variance, resolution=0.2 * variance.max())


@pytest.mark.parametrize("name", ["bernoulli", "gaussian"])
def test_samples_with_a_key_for_each_row_do_not_depend_on_the_batch(name, rng):
    layer = _gaussian(50, -4.0, rng) if name == "gaussian" else _bernoulli(50)
    features, keys = tf.constant(rng.normal(size=[5, 50]), tf.float32), random.row_keys(tf.range(5, dtype=tf.int64))
    whole = layer.sample(features, keys).numpy()
    part = layer.sample(tf.gather(features, [3, 1]), tf.gather(keys, [3, 1])).numpy()
    np.testing.assert_allclose(part, whole[[3, 1]], rtol=1e-6, atol=1e-6)
    same_features = layer.sample(tf.tile(features[:1], [5, 1]), keys).numpy()
    assert len(np.unique(same_features, axis=0)) == 5


def test_an_unknown_likelihood_lists_the_known_ones():
    with pytest.raises(ValueError, match="bernoulli or gaussian, found 'poisson'"):
        make_likelihood("poisson", 4, log_variance_floor=0.0)


def test_only_the_bernoulli_likelihood_wants_binary_observations():
    assert _bernoulli(1).is_binary
    assert not _gaussian(1, -7.0).is_binary

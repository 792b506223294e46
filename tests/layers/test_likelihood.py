import itertools
from typing import get_args

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from tests.reference import networks
from tests.reference.monte_carlo import assert_mean_close
from tfstruct import random
from tfstruct.distributions.pixels import logistic_log_mass
from tfstruct.layers.likelihood import make_likelihood
from tfstruct.models.config import LikelihoodName


def _gaussian(dims, floor, rng=None):
    layer = make_likelihood("gaussian", (dims,), log_variance_floor=floor)
    layer.build((None, dims))
    if rng is not None:
        networks.randomize(layer, rng)
    return layer


def _bernoulli(dims=7):
    layer = make_likelihood("bernoulli", (dims,))
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
        layer = make_likelihood(name, (2,))
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
        variance = np.exp(layer.pixels.log_variance(layer.parameters(features)).numpy()[0])
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
    with pytest.raises(ValueError, match="likelihood must be one of bernoulli, .*, found 'poisson'"):
        make_likelihood("poisson", (4,))


# Every family, of whole observations -----------------------------------------------------------------------------

NAMES = get_args(LikelihoodName)
LEVELS = np.arange(256.0)


def _make(name, event_shape, rng):
    """A layer and features [1, O] of one observation."""
    layer = make_likelihood(name, event_shape, log_variance_floor=-4.0, num_components=4)
    layer.build((None, layer.num_outputs))
    networks.randomize(layer, rng)
    return layer, tf.constant(rng.normal(size=[1, layer.num_outputs]), tf.float32)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("bernoulli", "gaussian")])
def test_levels_of_two_pixels_sum_to_one_and_have_the_mean_of_the_layer(name, rng):
    layer, features = _make(name, (2,), rng)
    pairs = np.stack(np.meshgrid(LEVELS, LEVELS, indexing="ij"), axis=-1).reshape(-1, 2)
    probabilities = np.exp(layer.log_prob(features, tf.constant(pairs, tf.float32)).numpy().astype(np.float64))
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_allclose(layer.mean(features)[0], probabilities @ pairs, rtol=1e-3)


def sigmoid(x):
    return scipy.special.expit(x)


def cell_mass(level, mean, scale):
    """Mass of a logistic on [0, 1] in the cell of a level, in float64."""
    upper = 1.0 if level == 255 else sigmoid(((level + 0.5) / 255.0 - mean) / scale)
    lower = 0.0 if level == 0 else sigmoid(((level - 0.5) / 255.0 - mean) / scale)
    return upper - lower


def color_twin(outputs, pixel):
    """p(red, green, blue) of one pixel by PixelCNN++'s formula, from its 10 M outputs."""
    num = len(outputs) // 10
    weights = scipy.special.softmax(outputs[:num])
    means, log_scales, coefficients = outputs[num:].reshape(3, 3, num)
    red, green, _ = np.asarray(pixel) / 255.0 - 0.5
    total = 0.0
    for m in range(num):
        first, second, third = np.tanh(coefficients[:, m])
        moved = 0.5 + means[:, m] + np.array([0.0, first * red, second * red + third * green])
        scales = np.exp(np.clip(log_scales[:, m] - 2.0, -7.0, 7.0))
        total += weights[m] * np.prod([cell_mass(pixel[c], moved[c], scales[c]) for c in range(3)])
    return total


def test_colors_are_their_twin(rng):
    layer, features = _make("logistic_mixture", (2, 1, 3), rng)
    assert layer.num_outputs == 2 * 10 * 4
    images = np.concatenate([rng.integers(0, 256, size=[20, 2, 3]), np.zeros([1, 2, 3]), np.full([1, 2, 3], 255)])
    found = layer.log_prob(features, tf.constant(images.reshape(-1, 6), tf.float32))
    outputs = features.numpy().astype(np.float64).reshape(2, -1)
    for image, log_prob in zip(images, found, strict=True):
        expected = sum(np.log(color_twin(outputs[place], image[place])) for place in range(2))
        assert float(log_prob) == pytest.approx(expected, rel=1e-4)


def test_colors_sum_to_the_grey_mass_of_red(rng):
    layer, features = _make("logistic_mixture", (1, 1, 3), rng)
    rest = np.stack(np.meshgrid(LEVELS, LEVELS, indexing="ij"), axis=-1).reshape(-1, 2)
    outputs = features[0].numpy()
    weights, means, log_scales = scipy.special.softmax(outputs[:4]), outputs[4:8], outputs[16:20]
    for red in (0.0, 99.0, 255.0):
        colors = np.concatenate([np.full([len(rest), 1], red), rest], axis=1)
        total = np.exp(layer.log_prob(features, tf.constant(colors, tf.float32)).numpy().astype(np.float64)).sum()
        mass = np.exp(logistic_log_mass(tf.constant([red]), 0.5 + means, np.exp(log_scales - 2.0)))
        assert total == pytest.approx(weights @ mass, rel=1e-3)


@pytest.mark.parametrize("name", [*NAMES, "color"])
def test_samples_follow_the_layer(name, rng):
    shape = (1, 2, 3) if name == "color" else (3,)
    layer, features = _make("logistic_mixture" if name == "color" else name, shape, rng)
    draws = layer.sample(tf.tile(features, [20_000, 1]), random.key(17)).numpy().astype(np.float64)
    assert draws.shape == (20_000, int(np.prod(shape)))
    mean = layer.mean(features).numpy()[0] / layer.scale
    exact = slice(None, None, 3) if name == "color" else slice(None)  # green and blue: an approximation
    assert_mean_close(draws[:, exact] / layer.scale, mean[exact], resolution=0.1)
    np.testing.assert_allclose(draws.mean(axis=0) / layer.scale, mean, atol=0.06)
    if layer.support == "integers_0_255":
        assert set(np.unique(draws)) <= set(LEVELS)


def test_drawn_colors_have_the_joint_distribution_of_log_prob(rng):
    """Red and green in quarters of their range: observed counts against sums of the twin's formula."""
    layer, features = _make("logistic_mixture", (1, 1, 3), rng)
    draws = layer.sample(tf.tile(features, [40_000, 1]), random.key(5)).numpy()
    counts = np.histogram2d(draws[:, 0], draws[:, 1], bins=[0, 64, 128, 192, 256])[0] / len(draws)
    outputs = features.numpy().astype(np.float64)[0]
    weights, means, log_scales, coefficients = (
        scipy.special.softmax(outputs[:4]), *outputs[4:].reshape(3, 3, 4)
    )  # fmt: skip
    scales, expected = np.exp(log_scales - 2.0), np.zeros([256, 256])
    for m in range(4):
        for red in range(256):
            moved = 0.5 + means[1, m] + np.tanh(coefficients[0, m]) * (red / 255.0 - 0.5)
            green = np.array([cell_mass(level, moved, scales[1, m]) for level in range(256)])
            expected[red] += weights[m] * cell_mass(red, 0.5 + means[0, m], scales[0, m]) * green
    expected = expected.reshape(4, 64, 4, 64).sum(axis=(1, 3))
    # 5 standard errors of the largest cell: 0.0125.
    np.testing.assert_allclose(counts, expected, atol=0.0125)

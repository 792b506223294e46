"""Distributions of single pixels against TFP, plain float64 differences and sums over all levels."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special

from tests.reference.boltzmann import assert_frequencies_close
from tests.reference.monte_carlo import assert_mean_close
from tfstruct import random
from tfstruct.data import support
from tfstruct.distributions.pixels import GaussianPixels, LogisticMixturePixels, SplinePixels, make_pixels

tfd = tfp.distributions

LEVELS = np.arange(256.0)
GREY = ("binomial", "categorical", "logistic_mixture", "spline")
EVERY_FAMILY = pytest.mark.parametrize("name", ["bernoulli", "gaussian", *GREY])
EVERY_GREY_FAMILY = pytest.mark.parametrize("name", GREY)
S = 3  # pixels


def _make(name):
    return make_pixels(name, precision_floor=0.5, num_components=6 if name == "spline" else 2)


def _outputs(pixels, rng, leading=(), num_pixels=S):
    return [
        tf.constant(rng.normal(size=[*leading, num_pixels * pixels.num_outputs])) for _ in range(pixels.num_networks)
    ]


def _log_table(pixels, outputs):
    """Log probabilities of all levels of every pixel, [256, S]."""
    return pixels.log_prob(outputs, tf.constant(np.tile(LEVELS[:, np.newaxis], [1, S]))).numpy()


def _observations(name, rng, shape):
    if name == "gaussian":
        return rng.uniform(size=shape)
    return rng.integers(0, 2 if name == "bernoulli" else 256, size=shape).astype(np.float64)


def _logistic_mixture(outputs, x, num_components):
    """A difference of distribution functions, pixel by pixel: outputs [S * 3 M] and x [S] to probabilities [S]."""
    result = np.zeros(len(x))
    for pixel, value in enumerate(x):
        logits, means, log_scales = np.reshape(outputs, [len(x), 3, num_components])[pixel]
        scales = np.exp(np.clip(log_scales - 2.0, -7.0, 7.0))
        high = 1.0 if value == 255 else special.expit(((value + 0.5) / 255.0 - 0.5 - means) / scales)
        low = 0.0 if value == 0 else special.expit(((value - 0.5) / 255.0 - 0.5 - means) / scales)
        result[pixel] = special.softmax(logits) @ (high - low)
    return result


def _spline(outputs, x):
    """Interpolation between heights at the knots, pixel by pixel: outputs [S * 6] and x [S] to probabilities [S]."""
    knots = [0, 1, 98, 157, 254, 255]
    # What the hat of each knot sums to over the levels: half the distance between the knots beside it, if inside.
    areas = np.array([1.0, 1.0 + 96 / 2, (97 + 59) / 2, (59 + 97) / 2, 96 / 2 + 1.0, 1.0])
    heights = special.softmax(outputs.reshape(len(x), 6), axis=-1) / areas
    return np.array([np.interp(value, knots, of_pixel) for value, of_pixel in zip(x, heights, strict=True)])


# Densities ---------------------------------------------------------------------------------------------------


def _expected(name, outputs, x):
    if name == "bernoulli":
        return tfd.Bernoulli(logits=outputs[0]).log_prob(x)
    if name == "gaussian":
        return tfd.Normal(tf.sigmoid(outputs[0]), 1.0 / tf.sqrt(0.5 + outputs[1] ** 2)).log_prob(x)
    if name == "binomial":
        return tfd.Binomial(tf.constant(255.0, tf.float64), logits=outputs[0]).log_prob(x)
    if name == "categorical":
        return tfd.Categorical(logits=tf.reshape(outputs[0], [*outputs[0].shape[:-1], S, 256])).log_prob(x)
    flat = zip(outputs[0].numpy().reshape(-1, S * 6), x.reshape(-1, S), strict=True)
    if name == "spline":
        return np.log([_spline(row, values) for row, values in flat]).reshape(x.shape)
    return np.log([_logistic_mixture(row, values, 2) for row, values in flat]).reshape(x.shape)


@EVERY_FAMILY
def test_log_prob_is_tfps_or_a_plain_difference(name, rng, run):
    pixels = _make(name)
    outputs, x = _outputs(pixels, rng, (2, 5)), _observations(name, rng, [2, 5, S])
    if name != "gaussian":
        x[0, 0], x[1, 1] = 0.0, 1.0 if name == "bernoulli" else 255.0
    found = run(lambda *outputs: pixels.log_prob(outputs, tf.constant(x)), *outputs)
    np.testing.assert_allclose(found, _expected(name, outputs, x), rtol=1e-10)


@EVERY_GREY_FAMILY
def test_probabilities_of_all_levels_sum_to_one(name, rng):
    pixels = _make(name)
    total = special.logsumexp(_log_table(pixels, _outputs(pixels, rng)), axis=0)
    np.testing.assert_allclose(total, 0.0, atol=1e-11)


def test_bernoulli_probabilities_sum_to_one_and_saturate(rng):
    pixels, logits = _make("bernoulli"), tf.constant([-800.0, -0.3, 0.0, 800.0], tf.float64)
    on, off = (pixels.log_prob([logits], tf.fill([4], tf.constant(value, tf.float64))) for value in (1.0, 0.0))
    np.testing.assert_allclose(np.exp(on) + np.exp(off), 1.0, rtol=1e-12)
    np.testing.assert_allclose(on, special.log_expit(logits), rtol=1e-12)


@pytest.mark.parametrize("floor", [0.5, 1.0, 4.0])
def test_gaussian_integrates_to_one_and_its_precision_never_falls_below_the_floor(floor):
    pixels, grid = GaussianPixels(floor), np.linspace(-12.0, 13.0, 50_001)
    for g in (0.0, 1.3, -1.3):
        outputs = [tf.fill([1, 1], tf.constant(value, tf.float64)) for value in (0.7, g)]
        density = np.exp(pixels.log_prob(outputs, tf.constant(grid[:, np.newaxis])).numpy()[:, 0])
        assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1.0, abs=1e-9)
        # The greatest density is that of the standard deviation.
        assert density.max() == pytest.approx(np.sqrt((floor + g**2) / (2 * np.pi)), rel=1e-6)


@EVERY_FAMILY
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_float32_agrees_with_float64_with_finite_gradients(name, size, rng):
    pixels = _make(name)
    outputs, x = _outputs(pixels, rng, (20,)), _observations(name, rng, [20, S])
    found = {}
    for dtype in (tf.float32, tf.float64):
        cast = [tf.cast(size * output, dtype) for output in outputs]
        with tf.GradientTape() as tape:
            tape.watch(cast)
            log_prob = pixels.log_prob(cast, tf.constant(x, dtype))
        found[dtype] = [log_prob, *tape.gradient(log_prob, cast)]
        assert log_prob.dtype == dtype
    for one, two in zip(found[tf.float32], found[tf.float64], strict=True):
        assert np.all(np.isfinite(one))
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3 * np.abs(two).max())


# Logistic mixtures at hard points ----------------------------------------------------------------------------


@pytest.mark.parametrize("log_scale", [-100.0, -4.0, 0.0, 4.0, 9.0, 100.0])
@pytest.mark.parametrize("mean", [-300.0, -1.0, 0.0, 1.0, 300.0])
def test_logistic_mass_is_exact_at_hard_points(mean, log_scale):
    levels = np.array([0.0, 1.0, 100.0, 254.0, 255.0])
    # log of the difference of two sigmoids, without their difference.
    scale = np.exp(np.clip(log_scale - 2.0, -7.0, 7.0))
    low, high = ((levels + side - 127.5 - 255.0 * mean) / (255.0 * scale) for side in (-0.5, 0.5))
    expected = special.log_expit(high) + special.log_expit(-low) + np.log(-np.expm1(-1.0 / (255.0 * scale)))
    expected[0], expected[-1] = special.log_expit(high[0]), special.log_expit(-low[-1])
    for dtype, rtol in ((tf.float64, 1e-9), (tf.float32, 1e-3)):
        outputs = tf.constant([[0.0, mean, log_scale]] * 5, dtype)
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            log_prob = LogisticMixturePixels(1).log_prob([outputs], tf.constant(levels[:, np.newaxis], dtype))
        assert np.all(np.isfinite(tape.gradient(log_prob, outputs)))
        np.testing.assert_allclose(log_prob[:, 0], expected, rtol=rtol, atol=1e-6)


def test_logistic_mass_of_far_means_is_finite_with_its_gradient():
    means = [1e5, -1e5, 1e7, 1e10]
    for log_scale in (-20.0, 0.0, 20.0):
        outputs = tf.constant([[0.0, mean, log_scale] for mean in means])
        for level in (0.0, 100.0, 255.0):
            with tf.GradientTape() as tape:
                tape.watch(outputs)
                log_prob = LogisticMixturePixels(1).log_prob([outputs], tf.fill([4, 1], level))
            assert np.all(np.isfinite(log_prob)), (log_scale, level)
            assert np.all(np.isfinite(tape.gradient(log_prob, outputs))), (log_scale, level)


# Means and samples -------------------------------------------------------------------------------------------


@EVERY_GREY_FAMILY
def test_the_mean_is_the_sum_over_levels(name, rng):
    pixels = _make(name)
    outputs = _outputs(pixels, rng)
    expected = LEVELS @ np.exp(_log_table(pixels, outputs))
    np.testing.assert_allclose(pixels.mean(outputs), expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["bernoulli", "gaussian"])
def test_the_mean_of_the_others_is_a_sigmoid(name, rng):
    pixels = _make(name)
    outputs = _outputs(pixels, rng)
    np.testing.assert_allclose(pixels.mean(outputs), special.expit(outputs[0]), rtol=1e-12)


def _draws(pixels, outputs, num):
    uniforms = [random.uniform(random.key(17 + place), [num, S], tf.float64) for place in range(pixels.num_uniforms)]
    repeated = [tf.tile(output[tf.newaxis], [num, 1]) for output in outputs]
    return pixels.sample(repeated, uniforms).numpy()


@EVERY_GREY_FAMILY
def test_samples_have_the_frequencies_of_the_levels(name, rng):
    pixels = _make(name)
    outputs = _outputs(pixels, rng)
    drawn, probs = _draws(pixels, outputs, 20_000), np.exp(_log_table(pixels, outputs))
    np.testing.assert_array_equal(drawn, np.rint(drawn))
    for pixel in range(S):
        # Catches a component drawn without its weight, or two pixels that share their numbers.
        assert_frequencies_close(drawn[:, pixel].astype(int), probs[:, pixel], resolution=0.02)


@EVERY_GREY_FAMILY
def test_a_uniform_number_becomes_the_level_whose_cumulative_probability_reaches_it(name, rng):
    pixels = LogisticMixturePixels(1) if name == "logistic_mixture" else _make(name)
    outputs = _outputs(pixels, rng)
    uniform = np.linspace(0.001, 0.999, 500)[:, np.newaxis] * np.ones(S)
    repeated = [tf.tile(output[tf.newaxis], [500, 1]) for output in outputs]
    drawn = pixels.sample(repeated, [tf.constant(uniform)] * pixels.num_uniforms).numpy().astype(int)
    cumulative = np.concatenate([np.zeros([1, S]), np.cumsum(np.exp(_log_table(pixels, outputs)), axis=0)])
    assert np.all(np.take_along_axis(cumulative, drawn, axis=0) <= uniform + 1e-12)
    assert np.all(uniform <= np.take_along_axis(cumulative, drawn + 1, axis=0) + 1e-12)


def test_bernoulli_and_gaussian_samples_have_their_moments(rng):
    for name in ("bernoulli", "gaussian"):
        pixels = _make(name)
        outputs = _outputs(pixels, rng)
        drawn, mean = _draws(pixels, outputs, 20_000), pixels.mean(outputs).numpy()
        variance = mean * (1.0 - mean) if name == "bernoulli" else 1.0 / (0.5 + outputs[1].numpy() ** 2)
        assert_mean_close(drawn, mean, resolution=0.06)
        assert_mean_close((drawn - mean) ** 2, variance, resolution=0.11)
        assert (set(np.unique(drawn)) == {0.0, 1.0}) == (name == "bernoulli")


@EVERY_FAMILY
def test_a_draw_is_a_level_of_positive_probability_at_the_ends_of_the_unit_interval(name):
    pixels = _make(name)
    outputs = [tf.fill([1, S * pixels.num_outputs], 20.0)] * pixels.num_networks
    for unit in (2.0**-24, 1.0 - 2.0**-24):
        drawn = pixels.sample(outputs, [tf.fill([1, S], unit)] * pixels.num_uniforms)
        assert np.all(np.isfinite(drawn))
        assert np.all(np.isfinite(pixels.log_prob(outputs, drawn)))
        if name != "gaussian":
            assert 0.0 <= drawn.numpy().min() <= drawn.numpy().max() <= (1.0 if name == "bernoulli" else 255.0)


# What a family says of itself --------------------------------------------------------------------------------


@EVERY_FAMILY
def test_a_family_keeps_leading_axes_and_says_what_it_takes(name, rng):
    pixels = _make(name)
    expected = {"bernoulli": (1, 1, 1), "gaussian": (2, 1, 1), "binomial": (1, 1, 1), "categorical": (1, 256, 1)}
    expected["spline"] = (1, 6, 1)
    assert (pixels.num_networks, pixels.num_outputs, pixels.num_uniforms) == expected.get(name, (1, 6, 2))
    kind = {"bernoulli": support.BINARY, "gaussian": support.UNIT_INTERVAL}.get(name, support.INTEGERS)
    assert (pixels.support, pixels.scale) == (kind, 255.0 if kind == support.INTEGERS else 1.0)
    outputs = _outputs(pixels, rng, (4, 2))
    uniforms = [tf.fill([4, 2, S], tf.constant(0.3, tf.float64))] * pixels.num_uniforms
    assert pixels.mean(outputs).shape == (4, 2, S)
    drawn = pixels.sample(outputs, uniforms)
    assert drawn.shape == (4, 2, S)
    assert drawn.dtype == tf.float64
    support.require_support(drawn.numpy() if name != "gaussian" else pixels.mean(outputs).numpy(), kind, "draws")
    assert pixels.log_prob(outputs, drawn).shape == (4, 2, S)
    # Each pixel has its own outputs.
    last = [output[..., -pixels.num_outputs :] for output in outputs]
    np.testing.assert_allclose(pixels.log_prob(last, drawn[..., -1:]), pixels.log_prob(outputs, drawn)[..., -1:])


def test_unknown_names_and_bad_settings_are_refused():
    names = "bernoulli, gaussian, binomial, categorical, logistic_mixture, spline"
    with pytest.raises(ValueError, match=f"likelihood must be one of {names}, found 'poisson'"):
        _make("poisson")
    for floor in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match=f"precision_floor must be above 0, found {floor}"):
            make_pixels("gaussian", precision_floor=floor, num_components=1)
    with pytest.raises(ValueError, match="num_components must be at least 1, found 0"):
        make_pixels("logistic_mixture", precision_floor=1.0, num_components=0)
    for count in (0, 5, 130):
        with pytest.raises(ValueError, match=f"likelihood=spline must be even, 2 to 128, found {count}"):
            make_pixels("spline", precision_floor=1.0, num_components=count)


def test_knots_of_a_spline_are_dense_at_both_ends_and_hold_every_level():
    np.testing.assert_array_equal(
        SplinePixels(16).knots, [0, 1, 2, 5, 10, 21, 46, 98, 157, 209, 234, 245, 250, 253, 254, 255]
    )
    np.testing.assert_array_equal(SplinePixels(2).knots, [0, 255])
    for count in (2, 4, 30, 128):
        assert np.all(np.diff(SplinePixels(count).knots) >= 1)
        outputs = [tf.zeros([256, count])]
        assert np.all(np.isfinite(SplinePixels(count).log_prob(outputs, tf.range(256.0)[:, tf.newaxis])))
    assert make_pixels("gaussian", precision_floor=2.5, num_components=0).precision_floor == 2.5
    assert make_pixels("logistic_mixture", precision_floor=0.0, num_components=4).num_outputs == 12

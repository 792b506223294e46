import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
from scipy import special

from tests.reference.boltzmann import assert_gradient_close
from tfstruct.distributions import relaxed_bernoulli
from tfstruct.distributions.relaxed_bernoulli import RELAXATIONS, Concrete, PiecewiseLinear, Power

NUM = 50_000
#: The middles of equal cells: a probability is their share, to within a cell for every piece of the map.
GRID = (np.arange(NUM) + 0.5) / NUM
LOGITS = np.array([-3.0, -0.7, 0.0, 0.4, 2.5])
PROBS = special.expit(LOGITS)
EACH = pytest.mark.parametrize("kind", RELAXATIONS.values(), ids=RELAXATIONS)
SHARPNESS = pytest.mark.parametrize("sharpness", [0.5, 2.0, 4.0, 10.0, 30.0])


def _on_grid(kind, sharpness, logits=LOGITS):
    """Zeta on the grid, [NUM, logits]."""
    unit = np.broadcast_to(GRID[:, np.newaxis], [NUM, len(logits)])
    return kind(tf.constant(logits), sharpness).sample_from_uniform(tf.constant(unit)).numpy()


# All of them -------------------------------------------------------------------------------------------------


@EACH
@SHARPNESS
def test_the_probability_of_the_upper_half_is_as_documented(kind, sharpness):
    overlap = 1.0 - 2.0 ** (-1.0 / sharpness) if kind is Power else 0.0
    found = np.mean(_on_grid(kind, sharpness) > 0.5, axis=0)
    np.testing.assert_allclose(found, PROBS + (1.0 - 2.0 * PROBS) * overlap, atol=2.0 / NUM)


@EACH
@SHARPNESS
def test_values_lie_between_zero_and_one_and_rise_with_the_logit(kind, sharpness):
    shape = [100, 41]
    with tf.GradientTape() as tape:
        logits = tf.broadcast_to(tf.constant(np.linspace(-8.0, 8.0, 41)), shape)
        tape.watch(logits)
        zeta = kind(logits, sharpness).sample_from_uniform(np.broadcast_to(GRID[:: NUM // 100, np.newaxis], shape))
    assert np.all((zeta >= 0.0) & (zeta <= 1.0))
    if kind is Power:  # falls where noise changes component: only the implicit gradient rises, and below 1 falls
        rises = tape.gradient(zeta, logits) * (1.0 if sharpness > 1.0 else -1.0)
        assert np.all(rises > -1e-12)
    elif kind is Concrete or sharpness >= 4.0:  # a less sharp slope falls so fast near q = 1/2 that it wins
        assert np.all(np.diff(zeta, axis=1) >= -1e-15)


@EACH
def test_sharp_relaxations_are_the_binary_variable(kind):
    zeta = _on_grid(kind, 3000.0)
    near = np.minimum(zeta, 1.0 - zeta) < 1e-3
    assert near.mean() > 0.99
    np.testing.assert_allclose(np.mean(zeta, axis=0), PROBS, atol=2e-3)


@EACH
@pytest.mark.parametrize("logit", [-80.0, -17.0, 17.0, 80.0])
def test_extreme_logits_give_finite_values_and_gradients_in_float32(kind, logit):
    unit = tf.constant([2.0**-24, 1e-3, 0.5, 0.999, 1.0 - 2.0**-24], tf.float32)
    with tf.GradientTape() as tape:
        logits = tf.fill([5], tf.constant(logit, tf.float32))
        tape.watch(logits)
        zeta = kind(logits, 10.0).sample_from_uniform(unit)
    gradient = tape.gradient(zeta, logits)
    assert zeta.dtype == tf.float32
    assert np.all(np.isfinite(zeta))
    assert np.all(np.isfinite(gradient))
    assert np.all((zeta >= 0.0) & (zeta <= 1.0))
    assert float(zeta[2]) == pytest.approx(float(logit > 0.0), abs=1e-3)


@EACH
def test_float32_agrees_with_float64(kind):
    unit = np.broadcast_to(GRID[::1013, np.newaxis], [len(GRID[::1013]), len(LOGITS)])
    found = []
    for dtype in (tf.float64, tf.float32):
        with tf.GradientTape() as tape:
            logits = tf.broadcast_to(tf.constant(LOGITS, dtype), unit.shape)
            tape.watch(logits)
            zeta = kind(logits, 3.0).sample_from_uniform(tf.constant(unit, dtype))
        found.append((zeta.numpy(), tape.gradient(zeta, logits).numpy()))
    for double, single in zip(*found, strict=True):
        np.testing.assert_allclose(single, double, rtol=1e-3, atol=2e-5)


@EACH
def test_shapes_and_samples_are_those_of_any_distribution(kind, compiled):
    logits = tf.constant(LOGITS, tf.float32)
    relaxed = kind(logits, 4.0)
    assert (relaxed.batch_shape, relaxed.event_shape) == ([5], [])
    assert tuple(relaxed.batch_shape_tensor().numpy()) == (5,)
    assert relaxed.sample([2, 3], seed=[0, 1]).shape == (2, 3, 5)
    assert (relaxed.sharpness, relaxed.dtype) == (4.0, tf.float32)
    np.testing.assert_array_equal(relaxed.logits, logits)
    draw = lambda logits, seed: kind(logits, 4.0).sample(7, seed=seed)  # noqa: E731
    found = compiled(draw, logits, tf.constant([0, 1]))
    np.testing.assert_allclose(found, draw(logits, [0, 1]), rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, draw(logits, [0, 2]))


@EACH
@pytest.mark.parametrize("sharpness", [0.0, -1.0, float("nan")])
def test_a_sharpness_that_is_not_positive_is_refused(kind, sharpness):
    with pytest.raises(ValueError, match="sharpness must be positive, found"):
        kind(LOGITS, sharpness)


def test_there_is_one_relaxation_of_each_name():
    assert RELAXATIONS == {"piecewise_linear": PiecewiseLinear, "concrete": Concrete, "power": Power}


# Piecewise linear --------------------------------------------------------------------------------------------


@SHARPNESS
def test_piecewise_linear_values_are_those_of_the_twin(sharpness):
    slope = sharpness / (4.0 * (PROBS * (1.0 - PROBS) + 0.01))
    expected = np.clip(0.5 + slope * (GRID[:, np.newaxis] - (1.0 - PROBS)), 0.0, 1.0)
    np.testing.assert_allclose(_on_grid(PiecewiseLinear, sharpness), expected, atol=1e-12)


def test_the_gradient_flows_through_the_slope_too(rng):
    weights = np.array([1.0, 2.0, 3.0, -4.0, 5.0])
    unit = tf.constant(1.0 - PROBS + 0.01 * weights)  # on the ramp

    def total(logits):
        return tf.reduce_sum(PiecewiseLinear(logits, 2.0).sample_from_uniform(unit) * weights)

    with tf.GradientTape() as tape:
        logits = tf.constant(LOGITS)
        tape.watch(logits)
        value = total(logits)
    gradient = tape.gradient(value, logits).numpy()
    for place in range(5):  # each alone, so that none can hide behind the others

        def of_one(logit, place=place):
            return total(tf.tensor_scatter_nd_update(tf.constant(LOGITS), [[place]], [logit]))

        assert_gradient_close(of_one, [LOGITS[place]], [gradient[place]], rng)
    held = weights * 0.5 / (PROBS * (1.0 - PROBS) + 0.01) * PROBS * (1.0 - PROBS)
    assert np.all(np.abs(gradient - held)[[0, 1, 3, 4]] > 1e-3)  # the slope does not move at q = 1/2


@pytest.mark.parametrize("sharpness", [1.0, 2.0, 4.0])
def test_the_mean_is_the_probability_exactly_where_documented(sharpness):
    logits = np.linspace(-9.0, 9.0, 60)
    probs = special.expit(logits)
    half_width = 2.0 * (probs * (1.0 - probs) + 0.01) / sharpness  # 1 / (2 a)
    inside = np.minimum(probs, 1.0 - probs) >= half_width
    error = np.abs(_on_grid(PiecewiseLinear, sharpness, logits).mean(axis=0) - probs)
    assert np.all(error[inside] < 1e-8)
    assert np.all(error[np.minimum(probs, 1.0 - probs) < 0.9 * half_width] > 1e-6)
    assert inside.any() or sharpness == 1.0
    assert not inside.all()


def test_the_mean_is_the_probability_for_ordinary_probabilities_at_the_sharpness_of_the_paper():
    logits = special.logit(np.linspace(0.01, 0.99, 50))
    mean = _on_grid(PiecewiseLinear, 4.0, logits).mean(axis=0)
    np.testing.assert_allclose(mean, special.expit(logits), atol=1e-8)


# Concrete ----------------------------------------------------------------------------------------------------


def _concrete_cdf(y, sharpness):
    """P(logit zeta <= y), [points, logits]."""
    return special.expit(np.asarray(y)[:, np.newaxis] / sharpness - LOGITS)


@SHARPNESS
def test_the_concrete_density_in_logit_space_is_the_slope_of_its_cdf(sharpness):
    y, step = sharpness * np.linspace(-40.0, 40.0, 20_001), 1e-5 * sharpness
    density = np.exp(Concrete(LOGITS, sharpness).log_prob_logits(y[:, np.newaxis]).numpy())
    numeric = (_concrete_cdf(y + step, sharpness) - _concrete_cdf(y - step, sharpness)) / (2.0 * step)
    np.testing.assert_allclose(density, numeric, atol=1e-9)
    np.testing.assert_allclose(np.trapezoid(density, y, axis=0), 1.0, atol=1e-8)


@pytest.mark.parametrize("sharpness", [0.5, 0.8])
def test_the_concrete_density_of_zeta_integrates_to_one(sharpness):
    y = np.linspace(-25.0, 25.0, 20_001)[:, np.newaxis]
    zeta = special.expit(y)
    density = np.exp(Concrete(LOGITS, sharpness).log_prob(zeta).numpy()) * zeta * special.expit(-y)
    np.testing.assert_allclose(np.trapezoid(density, y, axis=0), 1.0, atol=1e-5)


@SHARPNESS
def test_concrete_samples_follow_their_cdf(sharpness):
    points = special.logit(np.linspace(0.01, 0.99, 45))
    zeta = _on_grid(Concrete, sharpness)
    found = np.stack([np.mean(zeta <= special.expit(point), axis=0) for point in points])
    np.testing.assert_allclose(found, _concrete_cdf(points, sharpness), atol=2.0 / NUM)


def test_the_concrete_gradient_is_that_of_the_sigmoid(rng):
    unit = tf.constant(rng.uniform(0.2, 0.8, size=5))
    with tf.GradientTape() as tape:
        logits = tf.constant(LOGITS)
        tape.watch(logits)
        zeta = Concrete(logits, 2.0).sample_from_uniform(unit)
    np.testing.assert_allclose(tape.gradient(zeta, logits), 2.0 * zeta * (1.0 - zeta), rtol=1e-10)
    np.testing.assert_allclose(zeta, special.expit(2.0 * (LOGITS + special.logit(unit))), rtol=1e-12)


# Power functions ---------------------------------------------------------------------------------------------


def _power_cdf(zeta, probs, sharpness):
    return (1.0 - probs) * zeta ** (1.0 / sharpness) + probs * (1.0 - (1.0 - zeta) ** (1.0 / sharpness))


@SHARPNESS
def test_the_power_density_integrates_to_one_but_for_what_lies_within_the_guards(sharpness):
    edge = special.logit(relaxed_bernoulli._GUARD)
    y = np.linspace(edge, -edge, 40_001)[:, np.newaxis]  # zeta = sigmoid(y) takes the poles at 0 and 1 away
    zeta = special.expit(y)
    density = np.exp(Power(LOGITS, sharpness).log_density(zeta).numpy()) * zeta * special.expit(-y)
    ends = [_power_cdf(end, PROBS, sharpness) for end in (zeta[0], zeta[-1])]
    np.testing.assert_allclose(np.trapezoid(density, y, axis=0), ends[1] - ends[0], rtol=1e-6)
    if sharpness <= 2.0:
        np.testing.assert_allclose(ends[1] - ends[0], 1.0, atol=1e-3)


@SHARPNESS
def test_power_samples_follow_the_cdf_of_the_mixture(sharpness):
    points = np.concatenate([[1e-6, 1e-3], np.linspace(0.01, 0.99, 45), [1.0 - 1e-3]])
    zeta = _on_grid(Power, sharpness)
    found = np.stack([np.mean(zeta <= point, axis=0) for point in points])
    np.testing.assert_allclose(found, _power_cdf(points[:, np.newaxis], PROBS, sharpness), atol=3.0 / NUM)


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 5.0, 30.0])
def test_the_implicit_gradient_is_that_of_the_inverse_of_the_cdf(sharpness):
    unit = np.linspace(0.005, 0.995, 67)
    checked = 0
    for logit in LOGITS:
        with tf.GradientTape() as tape:
            logits = tf.fill([len(unit)], tf.constant(logit, tf.float64))
            tape.watch(logits)
            zeta = Power(logits, sharpness).sample_from_uniform(tf.constant(unit))
        gradients = tape.gradient(zeta, logits).numpy()
        for start, gradient in zip(zeta.numpy(), gradients, strict=True):
            if not 1e-3 < start < 1.0 - 1e-3:
                continue
            level, ends = _power_cdf(start, special.expit(logit), sharpness), []
            for side in (1e-5, -1e-5):
                probs = special.expit(logit + side)
                moved = lambda at, probs=probs, level=level: _power_cdf(at, probs, sharpness) - level  # noqa: E731
                ends.append(scipy.optimize.brentq(moved, 0.0, 1.0, xtol=1e-15, rtol=1e-14))
            assert gradient == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)
            checked += 1
    assert checked > 50


def test_the_power_density_is_the_mixture_of_its_components(rng):
    zeta = rng.uniform(0.01, 0.99, size=[20, 1])
    power = Power(LOGITS, 3.0)
    first, second = (np.exp(part) for part in power.log_components(zeta))
    np.testing.assert_allclose(first, zeta ** (-2.0 / 3.0) / 3.0, rtol=1e-12)
    np.testing.assert_allclose(second, (1.0 - zeta) ** (-2.0 / 3.0) / 3.0, rtol=1e-12)
    expected = np.log((1.0 - PROBS) * first + PROBS * second)
    np.testing.assert_allclose(power.log_prob(zeta), expected, rtol=1e-10)
    np.testing.assert_array_equal(power.log_density(zeta), power.log_prob(zeta))


# Bug seen: at a sharpness of 30 the density summed to 0.435, for the rest of the samples are at the two ends.
@SHARPNESS
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_density_and_probabilities_at_both_ends_sum_to_one(sharpness, dtype):
    guard = relaxed_bernoulli._GUARD
    power = Power(tf.constant(LOGITS, dtype), sharpness)
    edge = special.logit(2.0 * guard if dtype == tf.float32 else guard * (1.0 + 1e-9))
    y = np.linspace(edge, -edge, 40_001)[:, np.newaxis]
    zeta = special.expit(y)
    density = np.exp(power.log_prob(tf.constant(zeta, dtype)).numpy().astype(np.float64)) * zeta * special.expit(-y)
    ends = np.exp(power.log_prob(tf.constant([[0.0], [1.0]], dtype)).numpy().astype(np.float64))
    total = np.trapezoid(density, y, axis=0) + ends.sum(axis=0)
    np.testing.assert_allclose(total, 1.0, atol=0.02 if dtype == tf.float32 else 1e-6)
    # The ends hold as many samples as they say.
    samples = _on_grid(Power, sharpness)
    np.testing.assert_allclose(np.mean(samples <= guard, axis=0), ends[0], atol=3.0 / NUM)
    np.testing.assert_allclose(np.mean(samples >= 1.0 - guard, axis=0), ends[1], atol=3.0 / NUM)


def test_the_power_relaxation_is_nowhere_but_between_zero_and_one():
    outside = Power(LOGITS, 30.0).log_prob(np.array([[-1e-3], [1.001], [-5.0]]))
    np.testing.assert_array_equal(outside, np.full([3, len(LOGITS)], -np.inf))
    assert np.all(np.isfinite(Power(LOGITS, 30.0).log_prob(np.array([[0.0], [1e-7], [0.5], [1.0]]))))

"""Leaves that share importance samples, as the components of one VAE's prior do: gradients and standard errors."""

import numpy as np
import pytest
import tensorflow as tf

from tests.reference.monte_carlo import paired_difference
from tfstruct import random
from tfstruct.distributions.region_graph import RegionGraph
from tfstruct.distributions.sum_product_circuit import CircuitLayout, SumProductCircuit
from tfstruct.inference import likelihood, objectives
from tfstruct.inference.objectives import Composition, ImportanceTerms

SIZE = 2  # leaves of each of the two regions, which share their samples
WEIGHTS = np.log([0.1, 0.2, 0.3, 0.4])  # of the products of leaves (0, 2), (0, 3), (1, 2), (1, 3)
_ROWS, _REPEATS = 20_000, 40


def _circuit(dtype=tf.float32):
    graph = RegionGraph(2, [(0,), (1,), (0, 1)], [(2, (0, 1))])
    return SumProductCircuit(CircuitLayout(graph, num_leaves=SIZE, num_sums=1), tf.constant(WEIGHTS, dtype))


def _log_normal(value, loc, log_scale):
    return -0.5 * tf.square((value - loc) * tf.exp(-log_scale)) - log_scale


#: means and log deviations of the components, region by region
COMPONENTS = tf.constant([[0.9, -1.2], [0.2, 1.5]]), tf.constant([[-0.4, 0.1], [0.0, -0.8]])
#: the same, so near one another that the weights of a region's leaves move together
NEAR = tf.constant([[0.9, 0.6], [0.2, 0.5]]), tf.constant([[-0.4, -0.3], [0.0, -0.1]])


def _terms(z, mean, log_deviation, components=COMPONENTS):
    """Importance terms of one latent of each of two regions, z [K, B, 2]."""
    x = tf.constant([0.7, -0.4])
    log_likelihood = _log_normal(x, z, tf.constant(-0.7))
    log_prior = _log_normal(z[..., tf.newaxis], *components)
    log_posterior = _log_normal(z, mean, log_deviation)
    path = _log_normal(z, tf.stop_gradient(mean), tf.stop_gradient(log_deviation))
    leaves = tf.concat([tf.shape(z)[:-1], [2 * SIZE]], axis=0)
    repeated = [tf.repeat(part, SIZE, axis=-1) for part in (log_likelihood, log_posterior, path)]
    return ImportanceTerms(
        log_likelihood=repeated[0],
        log_prior=tf.reshape(log_prior, leaves),
        log_posterior=repeated[1],
        log_posterior_path=repeated[2],
        composition=Composition(_circuit(), SIZE),
    )


# Gradients --------------------------------------------------------------------------------------------------


def _gradients(name, path, kl_weight, as_independent=False):
    """Draws of the gradient for the means and log deviations of two Gaussian posteriors, [repeats, 4]."""

    @tf.function(jit_compile=True, autograph=False)
    def gradient(key):
        mean, log_deviation = tf.constant([0.3, -0.5]), tf.constant([-0.3, 0.2])
        with tf.GradientTape() as tape:
            tape.watch([mean, log_deviation])
            z = mean + tf.exp(log_deviation) * random.normal(key, [2, _ROWS, 2])
            terms = _terms(z, mean, log_deviation)
            if as_independent:
                terms = terms._replace(composition=Composition(_circuit()))
            loss = objectives.get(name)(terms, kl_weight, path=path).posterior_loss
        return tf.concat(tape.gradient(loss, [mean, log_deviation]), axis=0)

    return np.stack([gradient(random.fold_in(random.key(5), repeat)).numpy() for repeat in range(_REPEATS)])


@pytest.mark.parametrize("name", ["elbo", "iwae"])
@pytest.mark.parametrize("kl_weight", [1.0, 0.4])
def test_path_gradients_of_shared_samples_have_the_mean_of_the_plain_ones(name, kl_weight):
    plain = _gradients(name, False, kl_weight)
    difference, error = paired_difference(_gradients(name, True, kl_weight), plain)
    # 800,000 rows: what would go unseen is a bias of 4 standard errors, 0.012 of gradients up to 0.5.
    assert error.max() < 3e-3
    assert np.abs(plain.mean(axis=0)).max() > 0.1
    np.testing.assert_array_less(np.abs(difference), 4.0 * error)


@pytest.mark.parametrize("name", ["elbo", "iwae"])
def test_the_resolution_of_that_comparison_would_show_samples_taken_for_independent(name):
    wrong = _gradients(name, True, 1.0, as_independent=True)
    difference, error = paired_difference(wrong, _gradients(name, False, 1.0))
    assert np.max(np.abs(difference) / error) > 10.0


def test_a_sum_of_sharing_stands_at_every_leaf_of_a_group():
    values = tf.constant(np.arange(12.0).reshape(2, 6))
    expected = np.repeat(np.arange(12.0).reshape(2, 2, 3).sum(axis=-1), 3, axis=-1)
    np.testing.assert_array_equal(objectives.sum_of_sharing(values, 3), expected)
    np.testing.assert_array_equal(objectives.sum_of_sharing(values, 1), values)


# Estimates --------------------------------------------------------------------------------------------------


def _draw(keys, components=COMPONENTS):
    mean, log_deviation = tf.constant([0.3, -0.5]), tf.constant([-0.2, 0.2])
    return _terms(mean + tf.exp(log_deviation) * random.normal(keys, [2]), mean, log_deviation, components)


def _estimate(rows, num_samples, chunk, components=COMPONENTS, leaves_per_sample=SIZE):
    keys = random.fold_in(random.key(3), tf.range(rows))
    return likelihood.estimate(
        lambda sample: _draw(sample, components),
        keys,
        num_samples=num_samples,
        chunk=chunk,
        composition=Composition(_circuit(), leaves_per_sample),
    )


def _exact():
    """Log p(x) by quadrature over either latent."""
    grid = np.linspace(-9.0, 9.0, 4_001)
    z = tf.constant(np.stack([grid, grid], axis=-1)[:, np.newaxis], tf.float32)
    terms = _terms(z, tf.zeros([2]), tf.zeros([2]))
    joint = np.asarray(terms.log_likelihood + terms.log_prior, np.float64)[:, 0]
    leaves = np.exp(joint).sum(axis=0) * (grid[1] - grid[0])
    # The densities above leave out a factor that the posteriors' leave out as well.
    pairs = [leaves[one] * leaves[two] for one in (0, 1) for two in (2, 3)]
    return np.log(np.exp(WEIGHTS) @ pairs / np.sqrt(2.0 * np.pi) ** 2)


def test_the_standard_error_of_shared_samples_is_the_spread_of_estimates():
    found = _estimate(4_000, 200, 200, NEAR)
    log_prob, std_err = found.log_prob.numpy().astype(float), found.std_err.numpy()
    spread = log_prob.std()
    # 4,000 estimates: their spread is known to 1.1 %.
    assert abs(np.sqrt(np.mean(std_err**2)) / spread - 1.0) < 0.05
    # Taken for independent, the errors of leaves that move together would be too small.
    apart = _estimate(4_000, 200, 200, NEAR, leaves_per_sample=1)
    np.testing.assert_array_equal(apart.log_prob, found.log_prob)
    assert abs(np.sqrt(np.mean(apart.std_err.numpy() ** 2)) / spread - 1.0) > 0.15


def test_the_estimate_of_shared_samples_is_unbiased():
    found = _estimate(20_000, 20, 20)
    ratio = np.exp(found.log_prob.numpy().astype(float) - _exact())
    # A bias of 2 % of p(x) would be seen.
    assert abs(ratio.mean() - 1.0) < 4.0 * ratio.std() / np.sqrt(len(ratio)) < 0.02


def test_an_estimate_and_its_error_do_not_depend_on_the_chunk():
    whole = _estimate(5, 7, 7)
    for chunk in (1, 3):
        for one, two in zip(_estimate(5, 7, chunk), whole, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4)


def test_the_error_is_that_of_the_used_weights_of_every_sample():
    keys = random.fold_in(random.key(3), tf.range(3))
    weights = np.exp(np.asarray(objectives.log_weights(_draw(random.sample_keys(keys, 9))), np.float64))
    means = weights.mean(axis=0)
    products = np.stack([means[:, one] * means[:, two] for one in (0, 1) for two in (2, 3)], axis=-1) * np.exp(WEIGHTS)
    products /= products.sum(axis=-1, keepdims=True)
    used = np.stack(
        [products[:, :2].sum(1), products[:, 2:].sum(1), products[:, ::2].sum(1), products[:, 1::2].sum(1)], axis=-1
    )
    of_samples = (used * weights / means).reshape(9, 3, 2, SIZE).sum(axis=-1)
    expected = np.sqrt(of_samples.var(axis=0, ddof=1).sum(axis=-1) / 9)
    found = _estimate(3, 9, 4)
    np.testing.assert_allclose(found.std_err, expected, rtol=1e-4)
    np.testing.assert_allclose(found.effective_sample_size, 1.0 / (expected**2 * 8 / 9 + 1.0 / 9), rtol=1e-4)


def test_an_impossible_component_of_shared_samples_leaves_finite_numbers():
    def draw(keys):
        terms = _draw(keys)
        return terms._replace(log_prior=terms.log_prior + tf.constant([0.0, -np.inf, 0.0, 0.0], tf.float32))

    keys = random.fold_in(random.key(3), tf.range(2))
    found = likelihood.estimate(draw, keys, num_samples=4, chunk=2, composition=Composition(_circuit(), SIZE))
    for value in (found.log_prob, found.std_err, found.effective_sample_size):
        assert np.all(np.isfinite(value))

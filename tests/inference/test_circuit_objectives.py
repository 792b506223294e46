"""Bounds and estimates of models with leaves: leaf weights through a circuit, and gradients that stay unbiased."""

import numpy as np
import pytest
import tensorflow as tf

from tests.reference.monte_carlo import paired_difference
from tfstruct import random
from tfstruct.distributions.region_graph import RegionGraph, single_region
from tfstruct.distributions.sum_product_circuit import CircuitLayout, SumProductCircuit
from tfstruct.inference import likelihood, objectives
from tfstruct.inference.objectives import Composition, ImportanceTerms

LEAVES, K, B = 4, 3, 5
WEIGHTS = np.log([0.1, 0.2, 0.3, 0.4])  # of the products of leaves (0, 2), (0, 3), (1, 2), (1, 3)


def _circuit(weights=WEIGHTS, dtype=tf.float64):
    graph = RegionGraph(2, [(0,), (1,), (0, 1)], [(2, (0, 1))])
    return SumProductCircuit(CircuitLayout(graph, num_leaves=2, num_sums=1), tf.constant(weights, dtype))


def _composition(dtype=tf.float64):
    return Composition(_circuit(dtype=dtype))


def _root(leaves, weights=WEIGHTS):
    """Log p from leaf values [..., 4], written out."""
    pairs = [leaves[..., one] + leaves[..., two] for one in (0, 1) for two in (2, 3)]
    return np.log(sum(np.exp(weight + pair) for weight, pair in zip(weights, pairs, strict=True)))


def _terms(rng, **kwargs):
    values = rng.normal(size=[3, K, B, LEAVES])
    return ImportanceTerms(*(tf.constant(value) for value in values), composition=_composition(), **kwargs)


def test_the_importance_weighted_bound_takes_the_leaves_means_first(rng):
    terms = _terms(rng)
    weights = np.asarray(terms.log_likelihood + terms.log_prior - terms.log_posterior)
    found = objectives.iwae(terms)
    expected = _root(np.log(np.mean(np.exp(weights), axis=0)))
    np.testing.assert_allclose(found.bound, expected, rtol=1e-12)
    np.testing.assert_allclose(found.generative_loss, -expected.mean(), rtol=1e-12)
    # Root by root is another estimate.
    assert np.max(np.abs(expected - np.log(np.mean(np.exp(_root(weights)), axis=0)))) > 0.1


def test_the_evidence_lower_bound_is_the_circuit_at_the_leaves_bounds(rng):
    terms = _terms(rng)
    weights = np.asarray(terms.log_likelihood + terms.log_prior - terms.log_posterior)
    found = objectives.elbo(terms)
    np.testing.assert_allclose(found.bound, _root(weights.mean(axis=0)), rtol=1e-12)
    np.testing.assert_allclose(found.generative_loss, -_root(weights.mean(axis=0)).mean(), rtol=1e-12)
    assert np.all(np.asarray(found.bound) < np.asarray(objectives.iwae(terms).bound))


@pytest.mark.parametrize("name", ["elbo", "iwae"])
def test_an_annealed_loss_anneals_the_leaves(name, rng):
    terms, weight = _terms(rng), 0.3
    annealed = np.asarray(terms.log_likelihood + weight * (terms.log_prior - terms.log_posterior))
    leaves = annealed.mean(axis=0) if name == "elbo" else np.log(np.mean(np.exp(annealed), axis=0))
    result = objectives.get(name)(terms, weight)
    np.testing.assert_allclose(result.generative_loss, -_root(leaves).mean(), rtol=1e-12)
    np.testing.assert_allclose(result.bound, objectives.get(name)(terms).bound, rtol=1e-12)


def test_rate_and_distortion_are_those_of_the_leaves_by_their_probabilities(rng):
    terms = _terms(rng)
    found = objectives.elbo(terms)
    leaves = np.asarray(terms.log_likelihood + terms.log_prior - terms.log_posterior).mean(axis=0)
    pairs = np.stack([leaves[:, one] + leaves[:, two] for one in (0, 1) for two in (2, 3)], axis=-1) + WEIGHTS
    pairs = np.exp(pairs - _root(leaves)[:, np.newaxis])  # probability of each pair of leaves
    used = np.stack([pairs[:, :2].sum(1), pairs[:, 2:].sum(1), pairs[:, ::2].sum(1), pairs[:, 1::2].sum(1)], axis=-1)
    distortion = (used * -np.asarray(terms.log_likelihood).mean(axis=0)).sum(axis=-1)
    of_leaves = (used * np.asarray(terms.log_posterior - terms.log_prior).mean(axis=0)).sum(axis=-1)
    divergence = (pairs * (np.log(pairs) - WEIGHTS)).sum(axis=-1)
    np.testing.assert_allclose(found.distortion, distortion, rtol=1e-12)
    np.testing.assert_allclose(found.rate, of_leaves + divergence, rtol=1e-12)
    np.testing.assert_allclose(found.rate + found.distortion, -np.asarray(found.bound), rtol=1e-12)


@pytest.mark.parametrize("name", ["elbo", "iwae"])
def test_a_circuit_of_one_leaf_is_no_circuit(name, rng):
    values = rng.normal(size=[3, K, B])[[0, 1, 2, 2]]
    plain = ImportanceTerms(*(tf.constant(value) for value in values))
    circuit = SumProductCircuit(CircuitLayout(single_region(2), num_leaves=1, num_sums=1), tf.zeros([0], tf.float64))
    leaf = ImportanceTerms(*(tf.constant(value[..., np.newaxis]) for value in values), composition=Composition(circuit))
    for path in (False, True):
        for one, two in zip(
            objectives.get(name)(leaf, 0.6, path=path), objectives.get(name)(plain, 0.6, path=path), strict=True
        ):
            if one is not None:
                np.testing.assert_allclose(one, two, rtol=1e-12)


def test_a_leaf_that_impossible_evidence_rules_out_leaves_finite_numbers_and_gradients(rng):
    terms = _terms(rng)
    impossible = tf.constant(np.where(np.arange(LEAVES) == 1, -np.inf, 0.0))
    terms = terms._replace(log_likelihood=terms.log_likelihood + impossible)
    with tf.GradientTape() as tape:
        tape.watch(terms.log_prior)
        found = objectives.iwae(terms)
    assert np.all(np.isfinite(tape.gradient(found.generative_loss, terms.log_prior)))
    for value in (found.bound, found.rate, found.distortion):
        assert np.all(np.isfinite(value))


# Gradients --------------------------------------------------------------------------------------------------

_SHIFTS = np.array([0.0, 1.5, -1.0, 0.5])
_ROWS, _REPEATS = 20_000, 40


def _gradients(name, path, kl_weight, factor=None):
    """Draws of the gradient for the posteriors' means and log deviations, four Gaussian leaves, [repeats, 8]."""
    x = tf.constant([0.7, 0.7, -0.4, -0.4])

    @tf.function(jit_compile=True, autograph=False)
    def gradient(key):
        mean, log_deviation = tf.constant([0.3, -0.5, 0.2, 0.8]), tf.constant([-0.3, 0.2, -0.6, 0.1])
        with tf.GradientTape() as tape:
            tape.watch([mean, log_deviation])
            noise = random.normal(key, [2, _ROWS, LEAVES])
            z = mean + tf.exp(log_deviation) * noise

            def log_normal(value, loc, log_scale):
                return -0.5 * tf.square((value - loc) * tf.exp(-log_scale)) - log_scale

            fixed = tf.stop_gradient(mean), tf.stop_gradient(log_deviation)
            terms = ImportanceTerms(
                log_likelihood=log_normal(x, z + tf.constant(_SHIFTS, tf.float32), tf.constant(-0.7)),
                log_prior=log_normal(z, 0.0, tf.constant(0.0)),
                log_posterior=log_normal(z, mean, log_deviation),
                log_posterior_path=log_normal(z, *fixed),
                composition=_composition(tf.float32),
            )
            if factor == "without own share":  # what would be right if a leaf's share did not depend on its sample
                used = terms.composition.circuit.leaf_posterior(
                    tf.reduce_mean(objectives.log_weights(terms, kl_weight), axis=0)
                )
                loss = -tf.reduce_mean(
                    tf.reduce_sum(used * tf.reduce_mean(objectives.log_weights(terms, kl_weight, path=True), 0), -1)
                )
            else:
                loss = objectives.get(name)(terms, kl_weight, path=path).posterior_loss
        return tf.concat(tape.gradient(loss, [mean, log_deviation]), axis=0)

    return np.stack([gradient(random.fold_in(random.key(5), repeat)).numpy() for repeat in range(_REPEATS)])


@pytest.mark.parametrize("name", ["elbo", "iwae"])
@pytest.mark.parametrize("kl_weight", [1.0, 0.4])
def test_path_gradients_through_a_circuit_have_the_mean_of_the_plain_ones(name, kl_weight):
    plain = _gradients(name, False, kl_weight)
    difference, error = paired_difference(_gradients(name, True, kl_weight), plain)
    # 800,000 rows: what would go unseen is a bias of 4 standard errors, 0.008 of gradients up to 0.5.
    assert error.max() < 2e-3
    assert np.abs(plain.mean(axis=0)).max() > 0.1
    np.testing.assert_array_less(np.abs(difference), 4.0 * error)


def test_the_resolution_of_that_comparison_would_show_a_leaf_share_taken_for_a_constant():
    wrong = _gradients("elbo", True, 1.0, factor="without own share")
    difference, error = paired_difference(wrong, _gradients("elbo", False, 1.0))
    assert np.max(np.abs(difference) / error) > 10.0


# Estimates --------------------------------------------------------------------------------------------------


def _weights_of(keys):
    """Log weights of four leaves whose exponentials have mean exp(0.5 sigma^2 + shift)."""
    noise = random.normal(keys, [LEAVES])
    scales = tf.constant([0.5, 1.0, 0.8, 0.3])
    value = scales * noise + tf.constant(_SHIFTS, tf.float32)
    return ImportanceTerms(value, tf.zeros_like(value), tf.zeros_like(value))


def _estimate(rows, num_samples, chunk, **options):
    keys = random.fold_in(random.key(3), tf.range(rows))
    return likelihood.estimate(
        _weights_of,
        keys,
        num_samples=num_samples,
        chunk=chunk,
        composition=_composition(tf.float32),
        **options,
    )


def test_an_estimate_sends_the_leaves_averages_through_the_circuit_whatever_the_chunk():
    keys = random.fold_in(random.key(3), tf.range(6))
    weights = _weights_of(random.sample_keys(keys, 7)).log_likelihood.numpy().astype(float)
    for chunk in (1, 3, 7):
        found = _estimate(6, 7, chunk)
        np.testing.assert_allclose(found.log_prob, _root(np.log(np.mean(np.exp(weights), axis=0))), rtol=1e-5)
        np.testing.assert_allclose(found.elbo, _root(weights.mean(axis=0)), rtol=1e-5)
        np.testing.assert_allclose(found.rate + found.distortion, -found.elbo.numpy(), rtol=1e-5)
        leaves = _estimate(6, 7, chunk, by_leaf=True)
        np.testing.assert_allclose(leaves.log_prob, np.log(np.mean(np.exp(weights), axis=0)), rtol=1e-5)


def test_the_standard_error_is_the_spread_of_estimates():
    found = _estimate(4_000, 200, 200)
    exact = _root(_SHIFTS + 0.5 * np.square([0.5, 1.0, 0.8, 0.3]))
    log_prob, std_err = found.log_prob.numpy().astype(float), found.std_err.numpy()
    spread = log_prob.std()
    # 4,000 estimates: their spread is known to 1.1 %; that of single errors is some 20 %.
    assert abs(np.sqrt(np.mean(std_err**2)) / spread - 1.0) < 0.05
    # Unbiased before the logarithm; 4 standard errors of the mean are 0.6 % of p(x).
    ratio = np.exp(log_prob - exact)
    assert abs(ratio.mean() - 1.0) < 4.0 * ratio.std() / np.sqrt(len(ratio)) < 0.007
    assert np.all(log_prob.mean() < exact)


def test_the_effective_sample_size_is_that_of_one_weight_with_the_same_relative_variance():
    found = _estimate(5, 50, 50)
    keys = random.fold_in(random.key(3), tf.range(5))
    weights = np.exp(_weights_of(random.sample_keys(keys, 50)).log_likelihood.numpy().astype(float))
    mean = weights.mean(axis=0)
    used = _circuit(dtype=tf.float64).leaf_posterior(tf.constant(np.log(mean))).numpy()
    relative = np.sum(np.square(used) * weights.var(axis=0) / np.square(mean), axis=-1) / 50
    np.testing.assert_allclose(found.effective_sample_size, 1.0 / (relative + 1.0 / 50), rtol=1e-4)


def test_a_leaf_that_is_not_a_number_makes_the_estimate_none():
    def terms(keys):
        values = _weights_of(keys).log_likelihood
        broken = tf.where(tf.constant([False, True, False, False]), np.nan, values)
        return ImportanceTerms(broken, tf.zeros_like(values), tf.zeros_like(values))

    keys = random.fold_in(random.key(3), tf.range(2))
    found = likelihood.estimate(terms, keys, num_samples=4, chunk=2, composition=_composition(tf.float32))
    assert np.all(np.isnan(found.log_prob))


def test_impossible_evidence_has_probability_zero_and_an_impossible_leaf_none_of_its_own():
    def estimate(impossible):
        def terms(keys):
            values = _weights_of(keys).log_likelihood + tf.constant(np.where(impossible, -np.inf, 0.0), tf.float32)
            return ImportanceTerms(values, tf.zeros_like(values), tf.zeros_like(values))

        keys = random.fold_in(random.key(3), tf.range(2))
        return likelihood.estimate(terms, keys, num_samples=4, chunk=2, composition=_composition(tf.float32))

    found = estimate([True] * 4)
    assert np.all(np.isneginf(found.log_prob))
    assert np.all(np.isnan(found.std_err))
    np.testing.assert_array_equal(found.effective_sample_size, 0.0)
    found = estimate([False, True, False, False])
    for value in (found.log_prob, found.std_err, found.rate, found.distortion):
        assert np.all(np.isfinite(value))
    assert np.all(found.effective_sample_size > 0.0)

"""The estimate of log p(x_2 | x_1) from weighted draws of q(z | x_1)."""

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tfstruct import random
from tfstruct.inference import likelihood
from tfstruct.inference.objectives import ImportanceTerms

K, B = 11, 3
KEYS = random.row_keys(tf.range(B, dtype=tf.int64))
CHUNKS = pytest.mark.parametrize("chunk", [1, 4, K, K + 5])
INFINITY = float("inf")


def terms_of(keys, shift=0.0, scale=1.0):
    """Terms [C, B] that depend on the keys alone; likelihood and weight are correlated."""
    values = scale * random.normal(keys, [3])
    weights = 1.5 * values[..., 0] + shift
    log_likelihood = 2.0 * values[..., 1] + values[..., 0] - 150.0
    return ImportanceTerms(log_likelihood, values[..., 2], values[..., 2] - weights)


def estimate(function=terms_of, keys=KEYS, num_samples=K, chunk=4):
    return likelihood.estimate(function, keys, num_samples=num_samples, chunk=chunk, self_normalised=True)


def table(num_samples=K, keys=KEYS):
    """Log likelihoods and log weights of the draws, each [K, B]."""
    terms = terms_of(random.sample_keys(keys, num_samples))
    log_likelihood, log_prior, log_posterior = (np.asarray(term, np.float64) for term in terms[:3])
    return log_likelihood, log_prior - log_posterior


def with_terms(change):
    """Terms with log likelihood and log weight changed by (log likelihood, log weight, sample number)."""
    every = random.sample_keys(KEYS, K + 20)

    def function(keys):
        terms = terms_of(keys)
        number = tf.argmax(tf.reduce_all(keys[:, tf.newaxis] == every[tf.newaxis], axis=-1), axis=1)
        log_likelihood, weights = change(terms.log_likelihood, terms.log_prior - terms.log_posterior, number)
        return ImportanceTerms(log_likelihood, tf.zeros_like(weights), -weights)

    return function


@CHUNKS
def test_the_estimate_is_numpys_weighted_mean(chunk):
    log_likelihood, log_weight = table()
    found = estimate(chunk=chunk)
    share = np.exp(log_weight - scipy.special.logsumexp(log_weight, axis=0))
    expected = scipy.special.logsumexp(log_likelihood + np.log(share), axis=0)
    np.testing.assert_allclose(found.log_prob, expected, rtol=1e-6)
    distortion = -np.sum(share * log_likelihood, axis=0)
    np.testing.assert_allclose(found.distortion, distortion, rtol=1e-5)
    np.testing.assert_allclose(found.elbo, -distortion, rtol=1e-5)
    np.testing.assert_array_equal(found.rate, 0.0)
    both = np.exp(log_likelihood + log_weight - (log_likelihood + log_weight).max(axis=0))
    np.testing.assert_allclose(found.effective_sample_size, both.sum(axis=0) ** 2 / (both**2).sum(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.effective_draws, 1.0 / np.sum(np.square(share), axis=0), rtol=1e-4)
    # The delta method for a ratio of two means.
    ratio = both / both.mean(axis=0) - share * K
    np.testing.assert_allclose(found.std_err, ratio.std(axis=0, ddof=1) / np.sqrt(K), rtol=2e-3)
    assert np.all(found.elbo < found.log_prob)


def test_graph_and_compiled_estimates_are_the_eager_one(compiled):
    for one, two in zip(compiled(lambda keys: estimate(keys=keys), KEYS), estimate(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4)


def test_weights_are_needed_up_to_a_constant_alone():
    for one, two in zip(estimate(), estimate(lambda keys: terms_of(keys, shift=40.0)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


@CHUNKS
def test_a_row_does_not_depend_on_its_batch(chunk):
    whole, part = estimate(chunk=chunk), estimate(keys=tf.gather(KEYS, [2, 0]), chunk=chunk)
    for one, two in zip(part, whole, strict=True):
        np.testing.assert_allclose(one, two.numpy()[[2, 0]], rtol=1e-5)


def test_equal_weights_give_the_plain_mean_of_the_likelihoods():
    found = estimate(with_terms(lambda log_likelihood, weights, number: (log_likelihood, tf.zeros_like(weights))))
    log_likelihood, _ = table()
    np.testing.assert_allclose(found.log_prob, scipy.special.logsumexp(log_likelihood, axis=0) - np.log(K), rtol=1e-6)
    relative = np.exp(log_likelihood - log_likelihood.max(axis=0))
    expected = relative.std(axis=0, ddof=1) / relative.mean(axis=0) / np.sqrt(K)
    np.testing.assert_allclose(found.std_err, expected, rtol=2e-3)


def test_equal_likelihoods_have_no_error_whatever_the_weights_are():
    found = estimate(with_terms(lambda log_likelihood, weights, number: (tf.fill(weights.shape, -7.0), weights)))
    np.testing.assert_allclose(found.log_prob, -7.0, rtol=1e-6)
    np.testing.assert_allclose(found.distortion, 7.0, rtol=1e-6)
    np.testing.assert_allclose(found.std_err, 0.0, atol=1e-3)


# Bug seen: the error of a plain mean, which leaves out that numerator and denominator move together.
def test_the_standard_error_is_that_of_repeated_estimates():
    rows, num_samples, scale = 400, 300, 0.3
    gentle = lambda keys: terms_of(keys, scale=scale)  # noqa: E731
    keys = random.row_keys(tf.range(rows, dtype=tf.int64))
    found = estimate(gentle, keys, num_samples=num_samples, chunk=num_samples)
    spread = found.log_prob.numpy().astype(np.float64).std(ddof=1)  # known to 4 %
    stated = np.sqrt(np.mean(np.square(found.std_err.numpy().astype(np.float64))))
    assert stated == pytest.approx(spread, rel=0.15)
    # E[exp(2.5 a + 2 b)] / E[exp(1.5 a)] for normals of that scale.
    exact = scale**2 * (2.5**2 + 2.0**2 - 1.5**2) / 2.0 - 150.0
    many = estimate(gentle, KEYS[:1], num_samples=100_000, chunk=100_000)
    assert abs(many.log_prob[0] - exact) < 5.0 * many.std_err[0]
    assert many.std_err[0] < 0.01


@CHUNKS
def test_draws_without_weight_count_for_nothing(chunk):
    def first_is_dropped(log_likelihood, weights, number):
        return tf.where(number == 0, 500.0, log_likelihood), tf.where(number == 0, -INFINITY, weights)

    found = estimate(with_terms(first_is_dropped), chunk=chunk)
    log_likelihood, log_weight = (part[1:] for part in table())
    expected = scipy.special.logsumexp(log_likelihood + log_weight, axis=0) - scipy.special.logsumexp(
        log_weight, axis=0
    )
    np.testing.assert_allclose(found.log_prob, expected, rtol=1e-6)
    share = scipy.special.softmax(log_weight, axis=0)
    np.testing.assert_allclose(found.distortion, -np.sum(share * log_likelihood, axis=0), rtol=1e-5)
    assert np.all(np.isfinite(found.std_err))


@CHUNKS
def test_surplus_draws_of_the_last_chunk_count_for_nothing(chunk):
    def late_are_enormous(log_likelihood, weights, number):
        return tf.where(number >= K, 1e6, log_likelihood), tf.where(number >= K, 1e4, weights)

    for one, two in zip(estimate(with_terms(late_are_enormous), chunk=chunk), estimate(chunk=K), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)


def test_a_row_that_no_draw_explains_has_likelihood_zero():
    found = estimate(with_terms(lambda log_likelihood, weights, number: (log_likelihood - INFINITY, weights)))
    np.testing.assert_array_equal(found.log_prob, -INFINITY)
    np.testing.assert_array_equal(found.effective_sample_size, 0.0)
    assert np.all(np.isnan(found.std_err))


@pytest.mark.parametrize("number_of_nan", [0, K - 1])
def test_a_draw_that_is_not_a_number_shows(number_of_nan):
    def planted(log_likelihood, weights, number):
        return log_likelihood, tf.where(number == number_of_nan, np.nan, weights)

    assert np.all(np.isnan(estimate(with_terms(planted)).log_prob))


def test_one_draw_gives_its_likelihood_without_an_error():
    found, (log_likelihood, _) = estimate(num_samples=1), table(1)
    np.testing.assert_allclose(found.log_prob, log_likelihood[0], rtol=1e-6)
    np.testing.assert_allclose(found.elbo, log_likelihood[0], rtol=1e-6)
    assert np.all(np.isnan(found.std_err))

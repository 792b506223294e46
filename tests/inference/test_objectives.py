"""Objectives on a linear-Gaussian model, where everything is known, and at quadrature points, where nothing is random.

p(z) = N(0, I),  p(x | z) = N(W z + b, s^2 I),  q(z | x) = N(m, L L^T).
"""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from tfstruct.inference import objectives
from tfstruct.inference.objectives import ImportanceTerms

NAMES = pytest.mark.parametrize("name", ["elbo", "iwae"])
LOG_TWO_PI = np.log(2 * np.pi)


class Model(NamedTuple):
    loadings: np.ndarray  # W [X, M]
    bias: np.ndarray  # b [X]
    scale: float  # s

    def evidence(self, x):
        covariance = self.loadings @ self.loadings.T + self.scale**2 * np.eye(len(self.bias))
        return scipy.stats.multivariate_normal(self.bias, covariance).logpdf(x)

    def posterior(self, x):
        """Means [B, M] and the Cholesky factor [M, M] of the exact posterior."""
        precision = np.eye(self.loadings.shape[1]) + self.loadings.T @ self.loadings / self.scale**2
        covariance = np.linalg.inv(precision)
        return (x - self.bias) @ self.loadings @ covariance / self.scale**2, np.linalg.cholesky(covariance)


def _log_q(z, loc, factor):
    solved = tf.linalg.triangular_solve(factor, (z - loc)[..., np.newaxis])[..., 0]
    log_det = tf.reduce_sum(tf.math.log(tf.linalg.diag_part(factor)), axis=-1)
    return -0.5 * tf.reduce_sum(solved**2 + LOG_TWO_PI, axis=-1) - log_det


def _terms(model, x, loc, factor, noise):
    """Terms at q = N(loc [B, M], factor [B, M, M]) for noise [K, B, M]."""
    z = loc + tf.linalg.matvec(factor, noise)
    residual = (x - tf.linalg.matvec(model.loadings, z) - model.bias) / model.scale
    return ImportanceTerms(
        log_likelihood=-0.5 * tf.reduce_sum(residual**2 + LOG_TWO_PI + 2 * np.log(model.scale), axis=-1),
        log_prior=-0.5 * tf.reduce_sum(z**2 + LOG_TWO_PI, axis=-1),
        log_posterior=_log_q(z, loc, factor),
        log_posterior_path=_log_q(z, tf.stop_gradient(loc), tf.stop_gradient(factor)),
    )


@pytest.fixture
def model(rng):
    return Model(rng.normal(size=[3, 2]), rng.normal(size=3), 0.7)


def _batch(model, rng, num_samples, batch=4):
    x = rng.normal(size=[batch, 3])
    loc, factor = model.posterior(x)
    noise = rng.normal(size=[num_samples, batch, 2])
    return x, tf.constant(loc), tf.constant(np.broadcast_to(factor, [batch, 2, 2]).copy()), noise


@pytest.mark.parametrize("num_samples", [1, 3, 8])
def test_at_the_exact_posterior_every_weight_is_the_evidence(num_samples, model, rng, run):
    x, loc, factor, noise = _batch(model, rng, num_samples)
    expected = model.evidence(x)

    def results(loc, factor):
        terms = _terms(model, x, loc, factor, noise)
        return objectives.log_weights(terms), objectives.elbo(terms).bound, objectives.iwae(terms).bound

    weights, elbo, iwae = run(results, loc, factor)
    np.testing.assert_allclose(weights, np.broadcast_to(expected, [num_samples, 4]), rtol=1e-10)
    np.testing.assert_allclose(elbo, expected, rtol=1e-10)
    np.testing.assert_allclose(iwae, expected, rtol=1e-10)


@NAMES
@pytest.mark.parametrize("num_samples", [1, 3])
def test_at_the_exact_posterior_the_path_gradient_vanishes_for_every_sample(name, num_samples, model, rng):
    x, loc, factor, noise = _batch(model, rng, num_samples, batch=50)
    gradients = {}
    for path in (True, False):
        with tf.GradientTape() as tape:
            tape.watch([loc, factor])
            loss = objectives.get(name)(_terms(model, x, loc, factor, noise), path=path).posterior_loss
        # Rows have parameters of their own, so this is the gradient of each row's few samples.
        gradients[path] = [50 * gradient.numpy() for gradient in tape.gradient(loss, [loc, factor])]
    for path_gradient, plain_gradient in zip(gradients[True], gradients[False], strict=True):
        assert np.abs(path_gradient).max() < 1e-10
        assert np.abs(plain_gradient).max() > 0.1


# Quadrature --------------------------------------------------------------------------------------------------

NODES, MODEL, X = 32, Model(np.array([[1.3]]), np.array([0.2]), 0.8), np.array([[1.1]])
LOC, LOG_SCALE = 0.2, -0.3  # q away from the optimum


def _grid(num_samples):
    """Gauss-Hermite noise [K, NODES**K, 1] and its weights: an expectation without a random number."""
    points, weights = np.polynomial.hermite_e.hermegauss(NODES)
    noise = np.array(list(itertools.product(points, repeat=num_samples))).T[..., np.newaxis]
    mass = np.prod(list(itertools.product(weights / weights.sum(), repeat=num_samples)), axis=1)
    return noise, mass


def _annealed_bound(name, num_samples, kl_weight, loc, log_scale, loadings=1.3):
    """The expected bound in plain NumPy."""
    noise, mass = _grid(num_samples)
    z = loc + np.exp(log_scale) * noise[..., 0]
    log_p = scipy.stats.norm.logpdf(X[0, 0], loadings * z + 0.2, 0.8)
    log_ratio = scipy.stats.norm.logpdf(z) - scipy.stats.norm.logpdf(z, loc, np.exp(log_scale))
    weights = log_p + kl_weight * log_ratio
    if name == "elbo":
        return float(mass @ weights.mean(axis=0))
    return float(mass @ (scipy.special.logsumexp(weights, axis=0) - np.log(num_samples)))


def _expected_gradient(name, num_samples, kl_weight, path):
    """Expected gradients of the two losses with respect to loc and log scale of q, and the loadings of p."""
    noise, mass = _grid(num_samples)
    batch = len(mass)
    loc = tf.fill([batch, 1], np.float64(LOC))
    log_scale = tf.fill([batch, 1, 1], np.float64(LOG_SCALE))
    loadings = tf.fill([batch, 1, 1], np.float64(1.3))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([loc, log_scale, loadings])
        terms = _terms(MODEL._replace(loadings=loadings), X, loc, tf.exp(log_scale), noise)
        result = objectives.get(name)(terms, kl_weight, path=path)
    of_q = tape.gradient(result.posterior_loss, [loc, log_scale])
    of_p = tape.gradient(result.generative_loss, [loadings])
    # One parameter for each column: the gradient of a column's own loss, weighted by its mass.
    return [float(mass @ gradient.numpy().reshape(batch)) * batch for gradient in [*of_q, *of_p]]


# lambda v^2 + (1 - lambda) v; with v^2 alone, or v alone, the annealed bound's gradient is another.
@NAMES
@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize("kl_weight", [1.0, 0.4])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_the_expected_gradient_is_that_of_the_expected_bound(name, num_samples, kl_weight, path):
    found = _expected_gradient(name, num_samples, kl_weight, path)
    step = 1e-5

    def derivative(bound):
        return -(bound(step) - bound(-step)) / (2 * step)

    expected = [
        derivative(lambda h: _annealed_bound(name, num_samples, kl_weight, LOC + h, LOG_SCALE)),
        derivative(lambda h: _annealed_bound(name, num_samples, kl_weight, LOC, LOG_SCALE + h)),
        derivative(lambda h: _annealed_bound(name, num_samples, kl_weight, LOC, LOG_SCALE, 1.3 + h)),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.abs(expected).min() > 0.01


@NAMES
def test_the_bound_is_not_annealed(name, model, rng):
    x, loc, factor, noise = _batch(model, rng, 3)
    terms = _terms(model, x, loc + 0.3, factor, noise)
    annealed, plain = objectives.get(name)(terms, 0.4), objectives.get(name)(terms)
    np.testing.assert_array_equal(annealed.bound, plain.bound)
    assert float(annealed.generative_loss) != float(plain.generative_loss)


@NAMES
@pytest.mark.parametrize("path", [False, True])
def test_the_loss_is_minus_the_mean_bound(name, path, model, rng):
    x, loc, factor, noise = _batch(model, rng, 3)
    result = objectives.get(name)(_terms(model, x, loc + 0.3, factor, noise), path=path)
    np.testing.assert_allclose(result.generative_loss, -tf.reduce_mean(result.bound), rtol=1e-12)
    assert (result.posterior_loss is result.generative_loss) == (not path or name == "elbo")


def test_elbo_is_minus_rate_and_distortion(model, rng):
    x, loc, factor, noise = _batch(model, rng, 3)
    terms = _terms(model, x, loc + 0.3, factor, noise)
    for name in ("elbo", "iwae"):
        result = objectives.get(name)(terms)
        np.testing.assert_allclose(-(result.rate + result.distortion), objectives.elbo(terms).bound, rtol=1e-12)
        np.testing.assert_allclose(result.distortion, -terms.log_likelihood.numpy().mean(axis=0), rtol=1e-12)


# Invariances of the importance-weighted bound ----------------------------------------------------------------


def _of_weights(weights):
    zeros = tf.zeros_like(weights)
    return ImportanceTerms(tf.convert_to_tensor(weights), zeros, zeros)


def test_iwae_is_the_log_of_the_mean_weight(rng, run):
    weights = 5.0 * rng.normal(size=[7, 4]) - 100.0
    expected = scipy.special.logsumexp(weights, axis=0) - np.log(7)
    found = run(lambda weights: objectives.iwae(_of_weights(weights)).bound, tf.constant(weights))
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("shift", [-1e4, 3.0, 1e4])
def test_iwae_is_shifted_by_a_constant_added_to_the_log_weights(shift, rng):
    weights = rng.normal(size=[7, 4])
    before, after = (objectives.iwae(_of_weights(values)).bound.numpy() for values in (weights, weights + shift))
    np.testing.assert_allclose(after - shift, before, atol=1e-11)


def test_iwae_of_equal_weights_does_not_depend_on_their_number():
    for num_samples in (1, 2, 50):
        weights = np.full([num_samples, 2], -3.25)
        np.testing.assert_allclose(objectives.iwae(_of_weights(weights)).bound, [-3.25, -3.25], rtol=1e-14)


def test_iwae_of_one_sample_is_the_elbo(rng):
    weights = rng.normal(size=[1, 4])
    one, two = objectives.iwae(_of_weights(weights)), objectives.elbo(_of_weights(weights))
    np.testing.assert_allclose(one.bound, two.bound, rtol=1e-14)
    np.testing.assert_allclose(one.generative_loss, two.generative_loss, rtol=1e-14)


def test_iwae_rises_with_the_number_of_samples_and_stays_below_the_evidence():
    bounds = [_annealed_bound("iwae", num_samples, 1.0, LOC, LOG_SCALE) for num_samples in (1, 2, 3)]
    for num_samples, bound in enumerate(bounds, start=1):
        noise, mass = _grid(num_samples)
        loc = tf.fill([len(mass), 1], np.float64(LOC))
        factor = tf.fill([len(mass), 1, 1], np.float64(np.exp(LOG_SCALE)))
        found = mass @ objectives.iwae(_terms(MODEL, X, loc, factor, noise)).bound.numpy()
        assert found == pytest.approx(bound, rel=1e-10)
    evidence = float(MODEL.evidence(X))
    assert bounds[0] + 0.01 < bounds[1] < bounds[2] - 0.001 < evidence - 0.002


@pytest.mark.parametrize("path", [False, True])
def test_impossible_samples_leave_a_finite_bound_and_gradient(path):
    weights = tf.constant([[-1.0, -np.inf], [-np.inf, -np.inf]], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        terms = _of_weights(weights)
        terms = terms._replace(log_posterior_path=terms.log_posterior)
        result = objectives.iwae(terms, path=path)
    np.testing.assert_allclose(result.bound, [-1.0 - np.log(2.0), -np.inf])
    np.testing.assert_allclose(tape.gradient(result.generative_loss, weights), [[-0.5, 0.0], [0.0, 0.0]])


def test_a_path_gradient_needs_path_terms(rng):
    with pytest.raises(ValueError, match="path=False"):
        objectives.elbo(_of_weights(rng.normal(size=[2, 3])), path=True)


@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize("num_samples", [1, 4])
def test_the_conditional_objective_is_the_log_of_the_mean_likelihood_and_its_loss_has_the_entropy(
    num_samples, path, rng
):
    log_likelihood, log_posterior, log_posterior_path = rng.normal(size=[3, num_samples, 5])
    parts = (log_likelihood, np.zeros_like(log_posterior), log_posterior, log_posterior_path)
    found = objectives.conditional(ImportanceTerms(*map(tf.constant, parts)), 0.3, path=path)
    bound = scipy.special.logsumexp(log_likelihood, axis=0) - np.log(num_samples)
    np.testing.assert_allclose(found.bound, bound, rtol=1e-12)
    entropy = -(log_posterior_path if path else log_posterior).mean(axis=0)
    assert float(found.generative_loss) == pytest.approx(-(bound + 0.3 * entropy).mean(), rel=1e-12)
    assert found.posterior_loss is found.generative_loss
    np.testing.assert_allclose(found.rate, log_posterior.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.distortion, -log_likelihood.mean(axis=0), rtol=1e-12)


def test_an_unknown_objective_lists_the_known_ones():
    with pytest.raises(ValueError, match="elbo, iwae, conditional, found 'vlb'"):
        objectives.get("vlb")

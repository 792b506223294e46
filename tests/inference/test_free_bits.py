"""Free bits and KL warm-up, exact where everything has a closed form."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tests.reference import small
from tests.reference.draws import training_draws
from tfstruct.inference import objectives
from tfstruct.inference.objectives import Draws, ImportanceTerms, free_bits_penalty

X, SCALE = np.array([0.3, -1.2, 0.9]), 0.7
NODES = 40


def closed_form_terms(loc, log_scale, free=0.0):
    """x ~ N(z_1 + z_2, SCALE^2), z ~ N(0, I) in two groups, q a diagonal Gaussian; at quadrature points, with weights.

    The K samples are the points, each with its weight times K as the density ratio of the draw, so that a mean over
    samples is an expectation; rates are those of groups, [K, B, 2].
    """
    points, mass = np.polynomial.hermite_e.hermegauss(NODES)
    noise = np.stack([part.reshape(-1) for part in np.meshgrid(points, points)], axis=-1)[:, np.newaxis]
    weight = (np.outer(mass, mass) / mass.sum() ** 2).reshape(-1, 1) * NODES**2
    z = loc + tf.exp(log_scale) * noise
    log_q = -0.5 * (noise**2 + np.log(2 * np.pi)) - log_scale
    log_p = -0.5 * (z**2 + np.log(2 * np.pi))
    log_likelihood = -0.5 * ((X - tf.reduce_sum(z, axis=-1)) / SCALE) ** 2 - np.log(SCALE) - 0.5 * np.log(2 * np.pi)
    rates = weight[..., np.newaxis] * (log_q - log_p)
    return ImportanceTerms(
        log_likelihood=weight * log_likelihood,
        log_prior=weight * tf.reduce_sum(log_p, axis=-1),
        log_posterior=weight * tf.reduce_sum(log_q, axis=-1),
        penalty=free_bits_penalty(rates, free) if free else None,
    ), rates


def expected_loss(loc, log_scale, kl_weight, free):
    """The same loss from the Gaussians' closed forms."""
    variance = np.exp(2 * log_scale)
    kl = 0.5 * (variance + loc**2 - 1 - 2 * log_scale)  # [B, 2]
    fit = scipy.stats.norm.logpdf(X, loc.sum(axis=-1), SCALE) - 0.5 * variance.sum(axis=-1) / SCALE**2
    return -fit.mean() + kl_weight * np.maximum(free, kl.mean(axis=0)).sum()


@pytest.mark.parametrize("kl_weight", [0.0, 0.1, 0.65, 1.0])
@pytest.mark.parametrize("free", [0.0, 0.35, 5.0])
def test_warm_up_and_free_bits_are_exact_on_a_gaussian_model(kl_weight, free, rng):
    loc, log_scale = rng.normal(size=[3, 2]), 0.3 * rng.normal(size=[3, 2]) - 0.4
    loc[:, 1] *= 0.1  # one group above 0.35 nats and one below
    kl = (0.5 * (np.exp(2 * log_scale) + loc**2 - 1 - 2 * log_scale)).mean(axis=0)
    assert kl[0] > 0.35 > kl[1]
    terms, _ = closed_form_terms(tf.constant(loc), tf.constant(log_scale), free)
    found = objectives.elbo(terms, kl_weight)
    np.testing.assert_allclose(found.generative_loss, expected_loss(loc, log_scale, kl_weight, free), rtol=1e-10)
    # What is reported stays the bound itself, whatever is trained.
    np.testing.assert_allclose(-tf.reduce_mean(found.bound), expected_loss(loc, log_scale, 1.0, 0.0), rtol=1e-10)


def test_a_group_below_its_free_bits_feels_the_fit_alone(rng):
    loc = tf.constant(np.stack([rng.normal(size=3), 0.1 * rng.normal(size=3)], axis=-1))
    log_scale = tf.constant(np.full([3, 2], -0.4))
    gradients = {}
    for free in (0.0, 0.35):
        with tf.GradientTape() as tape:
            tape.watch(loc)
            loss = objectives.elbo(closed_form_terms(loc, log_scale, free)[0]).generative_loss
        gradients[free] = tape.gradient(loss, loc).numpy()
    np.testing.assert_allclose(gradients[0.35][:, 0], gradients[0.0][:, 0], rtol=1e-10)  # above: as without
    fit = (loc.numpy().sum(axis=-1) - X) / SCALE**2 / 3
    np.testing.assert_allclose(gradients[0.35][:, 1], fit, rtol=1e-9)


@pytest.mark.parametrize("gradient", ["plain", "path"])
def test_a_graph_vae_with_more_free_bits_than_rate_trains_on_the_distortion_alone(gradient, rng):
    overrides = [f"objective.gradient={gradient}", "model.batch_norm=False", "objective.num_samples=3"]
    free, none = (
        small.registry.build(small.config("full", [*overrides, f"objective.free_bits={bits}"])) for bits in (50.0, 0.0)
    )
    small.networks.randomize(free, rng, 0.5)
    none.set_weights(free.get_weights())
    x = tf.constant(rng.integers(0, 2, size=[4, 2, 2]), tf.float32)
    draws = training_draws(free, small.KEY, small.KEY, 1.0)
    gradients, losses = [], []
    for model, kl_weight in ((free, 1.0), (none, 0.0)):
        variables = model.trainable_variables
        with tf.GradientTape(persistent=True) as tape:
            result = model.objective(x, draws, kl_weight=kl_weight)
        losses.append(float(result.generative_loss))
        gradients.append(small.group_gradients(tape, result, variables, model.needs.posterior))
    assert losses[0] == pytest.approx(losses[1] + 3 * 50.0 * free.node_dim, rel=1e-5)
    for found, expected, variable in zip(*gradients, free.trainable_variables, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5, err_msg=variable.path)


def test_evaluation_terms_have_no_penalty():
    model = small.registry.build(small.config("full", ["objective.free_bits=1.0"]))
    terms = model.terms(tf.zeros([2, 2, 2]), Draws(small.KEY, 2))
    assert terms.penalty is None

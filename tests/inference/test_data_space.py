"""A model of four pixels and three latents: p(x) of all sixteen images by quadrature, without the estimators."""

import itertools

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tests.reference import small
from tests.reference.monte_carlo import assert_mean_close
from tfstruct import random
from tfstruct.inference import likelihood, objectives
from tfstruct.inference.objectives import Draws

IMAGES = np.array(list(itertools.product([0.0, 1.0], repeat=4))).reshape(16, 2, 2)
NUM_SAMPLES = 50_000


def _model(structure, rng):
    system = small.build(structure, rng, scale=0.12, num_latents=3, share_top_down=structure == "full")
    bias = small.weights(system)["bottom_up/heads/parameters/bias"].copy()
    bias[:, 1] = 1.0  # q wider than p without it, so that the weights have a variance
    small.assign(system, {"bottom_up/heads/parameters/bias": bias})
    return system


def _evidence(system):
    """log p(x) [16] by the trapezoidal rule over z in three dimensions."""
    axis = np.linspace(-9.0, 9.0, 61)
    z = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3, 1)
    log_prior = system.prior(system.gates.hard()).log_prob(z).numpy() + 3 * np.log(axis[1] - axis[0])
    assert scipy.special.logsumexp(log_prior) == pytest.approx(0.0, abs=1e-6)
    mean = system.decode(tf.constant(z[..., 0]))["x_mean"].numpy().reshape(-1, 4)
    pixels = IMAGES.reshape(16, 4)
    log_likelihood = np.log(mean) @ pixels.T + np.log1p(-mean) @ (1 - pixels).T
    return scipy.special.logsumexp(log_likelihood + log_prior[:, np.newaxis], axis=0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("structure", small.STRUCTURES)
def test_importance_weights_average_to_the_evidence_and_the_bounds_are_ordered(structure, rng):
    system = _model(structure, rng)
    evidence = _evidence(system)
    assert scipy.special.logsumexp(evidence) == pytest.approx(0.0, abs=1e-6)
    terms = system.terms(tf.constant(IMAGES), Draws(random.key(17), NUM_SAMPLES))
    weights = objectives.log_weights(terms).numpy()
    assert_mean_close(np.exp(weights), np.exp(evidence), resolution=0.01)
    # A density of q that is not normalised, or a prior of other parents than those drawn, moves the sum.
    assert_mean_close(np.exp(weights).sum(axis=1), 1.0, resolution=0.02)

    groups = [tf.reshape(term, [50, -1, 16]) for term in terms[:3]]
    groups = objectives.ImportanceTerms(*[tf.reshape(term, [50, -1]) for term in groups])
    iwae = objectives.iwae(groups).bound.numpy().reshape(-1, 16)
    elbo = objectives.elbo(groups).bound.numpy().reshape(-1, 16)
    errors = [np.std(bound - evidence, axis=0, ddof=1) / np.sqrt(len(bound)) for bound in (elbo, iwae)]
    assert np.all(errors[0] < 0.02)
    assert np.all(elbo.mean(axis=0) < evidence - 5 * errors[0])
    assert np.all(elbo.mean(axis=0) < iwae.mean(axis=0))
    assert np.all(iwae.mean(axis=0) <= evidence + 5 * errors[1])
    # Fifty samples close most of the gap.
    assert np.all(evidence - iwae.mean(axis=0) < 0.2 * (evidence - elbo.mean(axis=0)))


@pytest.mark.usefixtures("float64")
def test_the_likelihood_estimate_covers_the_evidence(rng):
    system = _model("learned", rng)
    keys = random.row_keys(tf.range(16, dtype=tf.int64))
    found = likelihood.estimate(
        lambda keys: system.terms(tf.constant(IMAGES), Draws(keys, 1000)),
        keys,
        num_samples=10_000,
        chunk=1000,
    )
    assert np.all(found.std_err < 0.02)
    assert np.all(np.abs(found.log_prob - _evidence(system)) < 5 * found.std_err)
    assert np.all(found.effective_sample_size > 500)

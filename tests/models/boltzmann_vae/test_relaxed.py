"""Boltzmann VAEs while training: relaxed latents, replayed from their keys."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tests.reference import boltzmann_vae as small
from tests.reference.boltzmann import Machine
from tfstruct import random
from tfstruct.distributions import relaxed_bernoulli
from tfstruct.inference import gibbs

B = 3
# Rows then do not depend on one another, and training computes what evaluation does.
PLAIN = {"batch_norm": False}
DIRECTED = {"posterior": "directed", **PLAIN}


def noise(system, num_samples):
    """The uniform noise of a directed posterior, [K, B, M]."""
    keys = random.keys_of_samples(small.KEY, num_samples, B)
    return random.uniform(keys, [system.num_latents]).numpy().astype(np.float64)


def entropy(logits):
    probs = special.expit(logits)
    return np.sum(special.entr(probs) + special.entr(1.0 - probs), axis=-1)


def machine_energy(parameters, z_1, z_2):
    bias_1, bias_2, coupling = parameters
    return -(z_1 @ bias_1 + z_2 @ bias_2 + np.sum((z_1 @ coupling) * z_2, axis=-1))


# Directed posteriors -----------------------------------------------------------------------------------------


def test_one_group_takes_the_whole_divergence_in_closed_form(rng):
    system, x = small.build(rng, **DIRECTED), small.images(rng, B)
    twin, found = small.Twin(system), small.relaxed_terms(system, x, 1)
    for b in range(B):
        log_q = twin.log_posterior(x[b])
        probs = np.exp(log_q)
        np.testing.assert_allclose(found.log_prior[0, b], probs @ twin.log_prior(twin.states), rtol=1e-4)
        np.testing.assert_allclose(found.log_posterior[0, b], probs @ log_q, rtol=1e-4)
        logits = twin.group_logits(x[b], np.zeros(7))
        zeta = small.piecewise_linear(logits, noise(system, 1)[0, b], 4.0)
        np.testing.assert_allclose(found.log_likelihood[0, b], twin.log_likelihood(x[b], zeta), rtol=1e-3)


def test_two_groups_take_the_second_sides_mean_and_each_groups_entropy(rng):
    system, x = small.build(rng, **small.TWO_GROUPS, **PLAIN), small.images(rng, B)
    twin, found = small.Twin(system), small.relaxed_terms(system, x, 1)
    for b in range(B):
        unit, zeta = noise(system, 1)[0, b], np.zeros(6)
        for _ in range(2):  # the second group reads the first
            logits = twin.group_logits(x[b], zeta)
            zeta = small.piecewise_linear(logits, unit, 4.0)
        sides = np.concatenate([zeta[:3], special.expit(logits[3:])])
        np.testing.assert_allclose(found.log_prior[0, b], twin.log_prior(sides), rtol=1e-3)
        np.testing.assert_allclose(found.log_posterior[0, b], -entropy(logits), rtol=1e-3)
        np.testing.assert_allclose(found.log_likelihood[0, b], twin.log_likelihood(x[b], zeta), rtol=1e-3)


@pytest.mark.parametrize(
    ("relaxation", "num_samples"), [("gumbolt", 1), ("gumbolt", 3), ("concrete", 3)], ids=lambda value: str(value)
)
def test_everything_is_taken_at_the_relaxed_point(relaxation, num_samples, rng):
    system = small.build(rng, f"objective.num_samples={num_samples}", **DIRECTED, relaxation=relaxation)
    x, twin, unit = small.images(rng, B), small.Twin(system), noise(system, num_samples)
    found = small.relaxed_terms(system, x, num_samples)
    for k, b in np.ndindex(num_samples, B):
        logits = twin.group_logits(x[b], np.zeros(7))
        zeta = special.expit(10.0 * (logits + special.logit(unit[k, b])))
        log_q = small.bernoulli_log_prob(logits, zeta)
        np.testing.assert_allclose(found.log_posterior[k, b], log_q, rtol=1e-3)
        np.testing.assert_allclose(found.log_posterior_path[k, b], log_q, rtol=1e-3)
        np.testing.assert_allclose(found.log_prior[k, b], twin.log_prior(zeta), rtol=1e-3)
        np.testing.assert_allclose(found.log_likelihood[k, b], twin.log_likelihood(x[b], zeta), rtol=1e-3)


# The power function ------------------------------------------------------------------------------------------

SHARPNESS = 5.0


def log_components(zeta):
    """Log r(zeta | 0) and log r(zeta | 1) by their definition."""
    return (
        (1.0 / SHARPNESS - 1.0) * np.log(zeta) - np.log(SHARPNESS),
        (1.0 / SHARPNESS - 1.0) * np.log1p(-zeta) - np.log(SHARPNESS),
    )


@pytest.mark.parametrize("coupled", [True, False])
def test_the_marginal_of_the_power_function_is_bounded_from_below_and_met_without_couplings(coupled, rng):
    system = small.build(rng, f"model.sharpness.power={SHARPNESS}", **DIRECTED, relaxation="power")
    if not coupled:
        small.set_prior(system.prior, system.prior.bias_1, system.prior.bias_2, np.zeros([4, 3]))
    x, twin, unit = small.images(rng, B), small.Twin(system), noise(system, 4)
    found, gaps = small.relaxed_terms(system, x, 4), []
    for k, b in np.ndindex(4, B):
        logits = twin.group_logits(x[b], np.zeros(7))
        relaxed = relaxed_bernoulli.Power(tf.constant(logits, tf.float32), SHARPNESS)
        zeta = relaxed.sample_from_uniform(tf.constant(unit[k, b], tf.float32)).numpy().astype(np.float64)
        log_0, log_1 = log_components(zeta)
        said = np.where(twin.states > 0.5, log_1, log_0).sum(axis=-1)
        gaps.append(special.logsumexp(twin.log_prior(twin.states) + said) - found.log_prior[k, b].numpy())
        density = np.logaddexp(log_0 - np.logaddexp(0.0, logits), log_1 - np.logaddexp(0.0, -logits)).sum()
        np.testing.assert_allclose(found.log_posterior[k, b], density, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.log_posterior_path[k, b], density, rtol=1e-3, atol=1e-3)
    if coupled:
        assert np.min(gaps) > -1e-4
        assert 1e-3 < np.max(gaps) < 0.5
    else:
        np.testing.assert_allclose(gaps, 0.0, atol=1e-4)


# Without it the prior would learn from its own chains alone, away from wherever they are.
def test_the_prior_learns_from_the_means_given_relaxed_latents_less_those_of_its_chains(rng):
    system = small.build(rng, f"model.sharpness.power={SHARPNESS}", **DIRECTED, relaxation="power")
    small.set_prior(system.prior, system.prior.bias_1, system.prior.bias_2, np.zeros([4, 3]))
    x, twin, unit, positive = small.images(rng, B), small.Twin(system), noise(system, 4), np.zeros(7)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(small.relaxed_terms(system, x, 4).log_prior)
    gradient = np.concatenate(tape.gradient(total, [system.prior.bias_1.value, system.prior.bias_2.value]))
    bias = np.concatenate([system.prior.bias_1, system.prior.bias_2]).astype(np.float64)
    for k, b in np.ndindex(4, B):
        logits = twin.group_logits(x[b], np.zeros(7))
        relaxed = relaxed_bernoulli.Power(tf.constant(logits, tf.float32), SHARPNESS)
        log_0, log_1 = log_components(relaxed.sample_from_uniform(tf.constant(unit[k, b], tf.float32)).numpy())
        positive += special.expit(bias + log_1 - log_0)
    negative = np.concatenate([system.prior.chains.numpy().mean(axis=0), special.expit(bias[4:])])
    assert np.abs(positive).min() > 0.1
    np.testing.assert_allclose(gradient, positive - 4 * B * negative, rtol=1e-3, atol=1e-3)


# Posteriors that are machines --------------------------------------------------------------------------------


def replay(system, x, num_samples, chains):
    """Hard and relaxed states from the keys: z_1 after the hard sweeps, zeta_1, zeta_2 and the logits of side 1."""
    keys = random.keys_of_samples(small.KEY, num_samples, B)
    _, sweep_key, relaxed_key = random.split(keys, 3)
    rbm, options = system.machine(tf.constant(x)), system.config.model
    z_1, _ = gibbs.sweeps(rbm, tf.cast(chains, tf.float32), num_sweeps=options.posterior_sweeps, seed=sweep_key)
    relax = lambda logits, unit: small.piecewise_linear(logits.numpy(), unit.numpy(), 4.0)  # noqa: E731
    return z_1, *gibbs.relaxed_sweeps(rbm, z_1, relax, num_sweeps=options.relaxed_sweeps, seed=relaxed_key)


def machine_system(rng, num_samples):
    """A system, rows, and chains of their own."""
    system = small.build(rng, f"objective.num_samples={num_samples}", **PLAIN, relaxed_sweeps=2)
    return system, small.images(rng, B), rng.integers(0, 2, size=[num_samples, B, 4]).astype(np.uint8)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_energies_take_the_mean_of_side_1_for_one_sample_and_its_draw_for_several(num_samples, rng):
    system, x, chains = machine_system(rng, num_samples)
    found = small.relaxed_terms(system, x, num_samples, chains={"posterior": tf.constant(chains)})
    twin, (z_1, zeta_1, zeta_2, logits_1) = small.Twin(system), replay(system, x, num_samples, chains)
    np.testing.assert_array_equal(found.chains["posterior"], z_1)
    assert np.any(z_1 != chains)
    means_1 = special.expit(np.asarray(logits_1, np.float64))
    for k, b in np.ndindex(num_samples, B):
        side_1 = means_1[k, b] if num_samples == 1 else np.asarray(zeta_1[k, b])
        parameters = twin.posterior_parameters(x[b])
        # One normaliser for all samples of an image, or their relative weights would be wrong.
        bound = max(small.mean_field_bound(parameters, mean_1, 3) for mean_1 in means_1[:, b])
        log_q = -machine_energy(parameters, side_1, zeta_2[k, b]) - bound
        np.testing.assert_allclose(found.log_posterior[k, b], log_q, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.log_posterior_path[k, b], log_q, rtol=1e-3, atol=1e-3)
        sides = np.concatenate([side_1, zeta_2[k, b]])
        np.testing.assert_allclose(found.log_prior[k, b], twin.log_prior(sides), rtol=1e-3, atol=1e-3)
        z = np.concatenate([zeta_1[k, b], zeta_2[k, b]])
        np.testing.assert_allclose(found.log_likelihood[k, b], twin.log_likelihood(x[b], z), rtol=1e-3)


def test_the_bound_in_log_q_is_below_the_exact_log_partition(rng):
    system, x, chains = machine_system(rng, 3)
    found = small.relaxed_terms(system, x, 3, chains={"posterior": tf.constant(chains)})
    twin, (_, zeta_1, zeta_2, _) = small.Twin(system), replay(system, x, 3, chains)
    for k, b in np.ndindex(3, B):
        parameters = twin.posterior_parameters(x[b])
        bound = -machine_energy(parameters, zeta_1[k, b], zeta_2[k, b]) - found.log_posterior[k, b].numpy()
        assert bound <= Machine(*parameters).log_partition + 1e-4


def test_without_chains_new_ones_start_and_none_come_back(rng):
    system, x, _ = machine_system(rng, 1)
    found = small.relaxed_terms(system, x, 1)
    assert found.chains is None
    assert np.all(np.isfinite(found.log_posterior))
    again = small.relaxed_terms(system, x, 1)
    np.testing.assert_array_equal(found.log_likelihood, again.log_likelihood)


# Few sweeps forget the start so nearly that only the states themselves tell it from fair coins.
def test_new_chains_start_from_the_biases_of_their_machines(rng):
    system = small.build(rng, "objective.num_samples=3", **PLAIN, posterior_sweeps=1, scale=0.8)
    x, twin = small.images(rng, B), small.Twin(system)
    unit = random.uniform(random.split(random.keys_of_samples(small.KEY, 3, B), 3)[0], [4]).numpy()
    probs = special.expit([twin.posterior_parameters(row)[0] for row in x])
    found = small.relaxed_terms(system, x, 3)
    for started, is_same in ((unit < probs, True), (unit < 0.5, False)):
        chains = {"posterior": tf.constant(started.astype(np.uint8))}
        given = small.relaxed_terms(system, x, 3, chains=chains)
        assert np.array_equal(found.log_likelihood, given.log_likelihood) == is_same


def test_first_chains_are_fair_coins_of_every_row_and_sample():
    system = small.registry.build(small.config("objective.num_samples=3"))
    chains = system.needs.chains(500, random.key(3))
    assert set(chains) == {"posterior"}
    assert chains["posterior"].shape == (500, 3, 4)
    assert chains["posterior"].dtype == np.uint8
    assert np.abs(chains["posterior"].mean(axis=0) - 0.5).max() < 5.0 * 0.5 / np.sqrt(500)
    assert len(np.unique(chains["posterior"], axis=0)) > 400
    assert small.registry.build(small.config(posterior="directed")).needs.chains is None


# Path derivatives --------------------------------------------------------------------------------------------

PATH_KINDS = pytest.mark.parametrize(
    "model",
    [
        PLAIN,
        {**small.TWO_GROUPS, **PLAIN},
        {**DIRECTED, "relaxation": "power"},
        {**small.TWO_GROUPS, **PLAIN, "relaxation": "concrete"},
    ],
    ids=["rbm", "2 groups", "power", "concrete"],
)


def posterior_gradients(system, x, field):
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(getattr(small.relaxed_terms(system, x, 3), field))
    values = [variable.value for variable in system.needs.posterior]
    return tape.gradient(value, values, unconnected_gradients="zero")


class Held:
    """A relaxation whose draws carry no gradient."""

    def __init__(self, relaxed):
        self.relaxed = relaxed

    def sample_from_uniform(self, unit):
        return tf.stop_gradient(self.relaxed.sample_from_uniform(unit))

    def __getattr__(self, name):
        return getattr(self.relaxed, name)


# Bug seen: log q whose parameters are not stopped, through the weights or through the features.
@PATH_KINDS
def test_log_q_of_the_path_has_a_gradient_through_the_latents_alone(model, rng, monkeypatch):
    system, x = small.build(rng, "objective.num_samples=3", **model), small.images(rng, B)
    assert system.config.uses_path_gradient
    for variable, gradient in zip(
        system.needs.posterior, posterior_gradients(system, x, "log_posterior_path"), strict=True
    ):
        assert np.all(np.isfinite(gradient)), variable.path
        assert np.any(gradient != 0.0), variable.path
    relax = system.posterior.relaxation
    monkeypatch.setattr(system.posterior, "relaxation", lambda logits: Held(relax(logits)))
    for gradient in posterior_gradients(system, x, "log_posterior_path"):
        np.testing.assert_array_equal(gradient, 0.0)
    if model is not PLAIN:  # that of a machine stops its own, for want of the gradient of its log Z
        assert all(np.any(gradient != 0.0) for gradient in posterior_gradients(system, x, "log_posterior"))


def test_the_path_of_one_sample_goes_through_the_mean_of_side_1(rng):
    system, x, chains = machine_system(rng, 1)
    options = {"chains": {"posterior": tf.constant(chains)}}
    bias = system.head.fields.bias
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(small.relaxed_terms(system, x, 1, **options).log_posterior_path)
    found, start, step, ends = tape.gradient(value, bias.value), bias.numpy(), 1e-3, []
    twin = small.Twin(system)
    parameters = [twin.posterior_parameters(x[b]) for b in range(B)]
    direction = rng.normal(size=start.shape).astype(np.float32)
    for side in (step, -step):
        bias.assign(start + side * direction)
        _, _, zeta_2, logits_1 = replay(system, x, 1, chains)
        mean_1 = special.expit(np.asarray(logits_1[0], np.float64))
        zeta_2 = np.asarray(zeta_2[0], np.float64)
        ends.append(sum(-machine_energy(parameters[b], mean_1[b], zeta_2[b]) for b in range(B)))
    numeric, analytic = (ends[0] - ends[1]) / (2.0 * step), np.sum(found * direction)
    assert abs(analytic) > 0.05
    assert analytic == pytest.approx(numeric, rel=0.02)

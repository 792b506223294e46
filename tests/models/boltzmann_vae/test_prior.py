import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.reference import boltzmann_vae as small
from tests.reference.boltzmann import Machine, random_machine
from tests.reference.monte_carlo import assert_mean_close
from tfstruct import random
from tfstruct.functional import Functional
from tfstruct.inference import annealing, gibbs
from tfstruct.inference.held_out import HeldOutScorer
from tfstruct.models.boltzmann_vae import prior as boltzmann_prior
from tfstruct.models.boltzmann_vae.config import Annealing
from tfstruct.models.boltzmann_vae.networks import BoltzmannPrior

SIZES = (4, 3)
BOTH_SAMPLERS = pytest.mark.parametrize("sampler", boltzmann_prior.SAMPLERS)


def make(num_chains):
    prior = BoltzmannPrior(SIZES, num_chains)
    prior.build()
    return prior


def assign(prior, machine):
    """Moves the weights alone: what follows them is as it was."""
    for weight, value in zip((prior.bias_1, prior.bias_2, prior.coupling), machine.parameters, strict=True):
        weight.assign(value)


def advance(prior, key, **options):
    return boltzmann_prior.advance(prior, random.key(key), **options)


# Log Z while training ----------------------------------------------------------------------------------------


# Bugs seen: the other sign, energies for free energies, a gradient taken at the chains of the step before.
@BOTH_SAMPLERS
def test_the_gradient_of_log_z_is_the_enumerated_one(sampler, rng):
    prior, machine = make(20_000), random_machine(rng)
    assign(prior, machine)
    with tf.GradientTape() as tape:
        value = advance(prior, 1, num_sweeps=25, sampler=sampler)
    weights = [prior.bias_1.value, prior.bias_2.value, prior.coupling.value]
    z_1 = prior.chains.numpy().astype(np.float64)
    mean_2 = 1.0 / (1.0 + np.exp(-(machine.bias_2 + z_1 @ machine.coupling)))
    found = z_1, mean_2, z_1[:, :, np.newaxis] * mean_2[:, np.newaxis]
    for gradient, samples, exact in zip(tape.gradient(value, weights), found, machine.moments, strict=True):
        np.testing.assert_allclose(gradient, samples.mean(axis=0), rtol=1e-3, atol=1e-4)
        assert_mean_close(samples, exact, resolution=0.02)


@BOTH_SAMPLERS
def test_the_gradient_flows_into_the_three_weights_and_nothing_else(sampler, rng):
    prior = make(50)
    assign(prior, random_machine(rng))
    weights = [prior.bias_1, prior.bias_2, prior.coupling]
    others = [variable for variable in prior.variables if not any(variable is weight for weight in weights)]
    assert len(others) == 7
    with tf.GradientTape() as tape:
        tape.watch([variable.value for variable in others])
        value = advance(prior, 1, num_sweeps=2, sampler=sampler)
    gradients = tape.gradient(value, [variable.value for variable in [*weights, *others]])
    assert all(np.any(gradient != 0.0) for gradient in gradients[:3])
    for variable, gradient in zip(others, gradients[3:], strict=True):
        assert gradient is None or not np.any(gradient), variable.path


@BOTH_SAMPLERS
def test_log_z_is_followed_along_a_path_of_weights(sampler, rng):
    prior, end = make(4_000), random_machine(rng, scale=0.8)
    start = Machine(-end.bias_1, end.bias_2, np.zeros(SIZES))
    step = tf.function(functools.partial(boltzmann_prior.advance, prior, num_sweeps=3, sampler=sampler))
    errors = []
    for place in range(1, 61):  # from no bias to one machine to another
        share = min(place / 15, 1.0), max(place - 15, 0) / 45
        parameters = [
            share[0] * ((1.0 - share[1]) * one + share[1] * two)
            for one, two in zip(start.parameters, end.parameters, strict=True)
        ]
        machine = Machine(*parameters)
        assign(prior, machine)
        errors.append(step(tf.constant(random.key(place))).numpy() - machine.log_partition)
        for held, value in zip(prior.followed, parameters, strict=True):
            np.testing.assert_allclose(held, value, rtol=1e-5)
    np.testing.assert_array_equal(prior.followed_log_partition, np.float32(errors[-1] + machine.log_partition))
    assert abs(end.log_partition - 7 * np.log(2.0)) > 0.3
    assert np.abs(errors).max() < 0.05


# Over many small steps a rule of first order is nearly as good: one large step tells them apart.
@BOTH_SAMPLERS
def test_log_z_moves_by_the_mean_of_the_changes_at_the_followers_of_both_machines(sampler, rng):
    prior, start, end = make(64), random_machine(rng), random_machine(rng)
    small.set_prior(prior, *start.parameters)
    followers = [prior.followers.numpy()]
    assign(prior, end)
    value = advance(prior, 3, num_sweeps=2, sampler=sampler)
    followers.append(prior.followers.numpy())

    def change(z_1):
        inputs = [machine.bias_2 + z_1 @ machine.coupling for machine in (start, end)]
        side_2 = np.logaddexp(0.0, inputs[1]) - np.logaddexp(0.0, inputs[0])
        return np.mean(z_1 @ (end.bias_1 - start.bias_1) + side_2.sum(axis=-1))

    changes = [change(states) for states in followers]
    assert abs(changes[1] - changes[0]) > 0.1
    assert value.numpy() == pytest.approx(start.log_partition + np.mean(changes), abs=1e-5)


# A jump is what resampling is for: chains of fair coins are samples of the new machine without any mixing.
def test_resampled_chains_follow_a_jump_that_persistent_ones_do_not(rng):
    machine = random_machine(rng, scale=1.5)
    distances = {}
    for sampler in boltzmann_prior.SAMPLERS:
        prior = make(4_000)
        assign(prior, machine)
        advance(prior, 1, num_sweeps=1, sampler=sampler)
        distances[sampler] = np.abs(prior.chains.numpy().mean(axis=0) - machine.moments[0]).max()
    assert distances["population"] < 0.05
    assert distances["persistent"] > 0.1


def test_a_step_without_a_move_of_the_weights_leaves_log_z_as_it_was(rng):
    prior, machine = make(32), random_machine(rng)
    small.set_prior(prior, *machine.parameters)
    before, followers = prior.chains.numpy(), prior.followers.numpy()
    assert followers.shape == (4, 4)  # an eighth
    found = advance(prior, 2, num_sweeps=2, sampler="persistent")
    assert found.numpy() == prior.followed_log_partition.numpy() == np.float32(machine.log_partition)
    assert np.any(prior.chains.numpy() != before)
    assert np.any(prior.followers.numpy() != followers)


@pytest.mark.parametrize(("num_chains", "followers"), [(1, 1), (30, 4), (32, 4), (1_000, 126)])
def test_chains_and_followers_are_even_in_all(num_chains, followers):
    assert make(num_chains).num_followers == followers


# Log Z for evaluation ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def estimate():
    return tf.function(boltzmann_prior.estimate_partition, autograph=False)


def single(machine):
    return [tf.constant(value, tf.float32) for value in machine.parameters]


def test_few_temperatures_bracket_the_exact_log_partition_on_average(estimate, rng):
    machine = random_machine(rng, scale=1.5)
    options = {"num_temperatures": 2, "num_chains": 10, "num_kept": 15}
    found = [estimate(*single(machine), tf.constant(random.key(place)), **options) for place in range(150)]
    lower, std_err, upper = (np.array([float(values[part]) for values in found]) for part in range(3))
    assert lower.mean() < machine.log_partition < upper.mean()
    width = upper - lower
    assert width.mean() > 2.0 * width.std(ddof=1) / np.sqrt(150)
    # The mean weight is unbiased, and its standard error is what it says.
    assert_mean_close(np.exp(lower - machine.log_partition), 1.0, resolution=0.3)
    assert np.median(std_err) == pytest.approx(lower.std(ddof=1), rel=0.4)


def test_many_temperatures_find_log_z_and_samples_of_the_machine(estimate, rng):
    machine = random_machine(rng)
    lower, std_err, upper, upper_std_err, size, states = estimate(
        *single(machine), tf.constant(random.key(3)), num_temperatures=50, num_chains=3_000, num_kept=2_500
    )
    assert 0.0 < std_err < 0.02
    assert abs(lower - machine.log_partition) < 5.0 * std_err
    assert 0.0 < upper_std_err < 0.02
    assert abs(upper - machine.log_partition) < 5.0 * upper_std_err
    assert 2_000 < size <= 3_000
    assert states.shape == (2_500, 4)
    assert_mean_close(states, machine.moments[0], resolution=0.06)


@pytest.mark.parametrize("sizes", [(7.0, 40.0), (40.0, 7.0)])
def test_the_effective_sample_size_is_the_smaller_of_both_directions(sizes, rng, monkeypatch):
    estimate = annealing.log_partition

    def log_partition(*arguments, **options):
        size = sizes[options.get("method") == "reverse"]
        return estimate(*arguments, **options)._replace(effective_sample_size=tf.constant(size))

    monkeypatch.setattr(annealing, "log_partition", log_partition)
    *_, size, _ = boltzmann_prior.estimate_partition(
        *single(random_machine(rng)), tf.constant(random.key(3)), num_temperatures=2, num_chains=50, num_kept=5
    )
    assert size == 7.0


# Bug seen: states as they are annealed, without their weights.
def test_kept_states_follow_the_weights_of_few_temperatures(rng):
    machine = random_machine(rng, scale=1.5)
    *_, states = boltzmann_prior.estimate_partition(
        *single(machine), tf.constant(random.key(3)), num_temperatures=2, num_chains=6_000, num_kept=6_000
    )
    assert np.abs(states.numpy().mean(axis=0) - machine.moments[0]).max() < 0.03


# Sweeps part copies of one state, but do not bring a mode its weight: that the start must have.
def test_states_that_are_annealed_back_follow_the_weights_too(rng, monkeypatch):
    machine, started, sweeps = random_machine(rng, scale=1.5), [], gibbs.sweeps

    def recording(rbm, z_1, **options):
        started.append(z_1.numpy())
        return sweeps(rbm, z_1, **options)

    monkeypatch.setattr(gibbs, "sweeps", recording)
    boltzmann_prior.estimate_partition(
        *single(machine), tf.constant(random.key(3)), num_temperatures=2, num_chains=6_000, num_kept=5
    )
    (states,) = started
    assert np.abs(states.mean(axis=0) - machine.moments[0]).max() < 0.03


@pytest.fixture
def eagerly():
    """Without compiling, which would take most of the time."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_prepare_evaluation_assigns_log_z_and_chains_and_reports_them(rng, eagerly):
    system = small.build(rng, prior_chains=70)
    machine, before = small.machine(system.prior), system.prior.chains.numpy()
    followed = [variable.numpy() for variable in (system.prior.followers, system.prior.followed_log_partition)]
    system.prior.log_partition.assign(0.0)
    settings = Annealing(prior_temperatures=15, prior_chains=60)
    report = system.prepare_evaluation(settings)
    assert set(report) == {
        "prior_log_partition", "prior_log_partition_std_err", "prior_log_partition_upper",
        "prior_log_partition_upper_std_err", "prior_effective_sample_size", "prior_temperatures", "prior_chains",
    }  # fmt: skip
    assert (report["prior_temperatures"], report["prior_chains"]) == (15, 60)
    assert report["prior_log_partition"] == system.prior.log_partition.numpy()
    assert abs(report["prior_log_partition"] - machine.log_partition) < 5.0 * report["prior_log_partition_std_err"]
    assert abs(report["prior_log_partition_upper"] - machine.log_partition) < 0.2
    chains = system.prior.chains.numpy()
    assert chains.shape == before.shape
    assert np.any(chains != before)
    for variable, value in zip((system.prior.followers, system.prior.followed_log_partition), followed, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert system.prepare_evaluation(settings) == report
    np.testing.assert_array_equal(system.prior.chains, chains)
    assert system.prepare_evaluation(settings, seed=1)["prior_log_partition"] != report["prior_log_partition"]


# Bug seen: the prior's chains were annealed with the keys of the first four observations.
def test_the_prior_is_annealed_with_keys_that_no_observation_has(rng, eagerly, monkeypatch):
    system, drawn, scored = small.build(rng), [], []
    uniform = random.uniform

    def recording(key, *arguments):
        drawn.append(np.asarray(key).reshape(-1, 2))
        return uniform(key, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(random, "uniform", recording)
        system.prepare_evaluation(Annealing(prior_temperatures=2, prior_chains=4), seed=3)
    scorer = HeldOutScorer(system, num_samples=2, batch_size=5, chunk=2, compiler="graph")
    estimate = scorer._estimate
    scorer._estimate = lambda *arguments: (scored.append(np.asarray(arguments[3])), estimate(*arguments))[1]
    functional = Functional(system)
    scorer(functional.parameters.values(), functional.statistics.values(), small.images(rng, 5), seed=3)
    (row_keys,) = scored
    # Whatever is derived from a row's key is drawn for that row.
    with monkeypatch.context() as patch:
        folded, fold_in = [], random.fold_in
        patch.setattr(random, "fold_in", lambda key, data: (folded.append(np.asarray(key)), fold_in(key, data))[1])
        system.prepare_evaluation(Annealing(prior_temperatures=2, prior_chains=4), seed=3)
    used = {key.tobytes() for keys in (*drawn, *folded) for key in keys.reshape(-1, 2)}
    assert len(used) > 10
    assert not used & {key.tobytes() for key in row_keys}

import json

import numpy as np
import pytest
import tensorflow as tf

from tfstruct.distributions.relaxed_bernoulli import RELAXATIONS
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine, binary_states
from tfstruct.models import presets, registry
from tfstruct.models.boltzmann_vae import analysis
from tfstruct.models.boltzmann_vae import machines as boltzmann_machines
from tfstruct.models.boltzmann_vae import sweeps as boltzmann_sweeps

SIZES = (4, 3)


@pytest.fixture(autouse=True)
def eagerly():
    """Without compiling, which would take most of the time; one test compiles."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def small_machines(num=2, coupling=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return RestrictedBoltzmannMachine(
        *(tf.constant(rng.standard_normal([num, size]), tf.float32) for size in SIZES),
        tf.constant(coupling * rng.standard_normal([num, *SIZES]), tf.float32),
    )


def two_wells(strength=0.4):
    """All spins up or all down; the fields tell them apart a little."""
    field_1, field_2 = tf.fill([1, SIZES[0]], 0.05), tf.zeros([1, SIZES[1]])
    return RestrictedBoltzmannMachine.from_ising(field_1, field_2, tf.fill([1, *SIZES], strength))


def relax(logits, unit):
    return RELAXATIONS["piecewise_linear"](logits, 4.0).sample_from_uniform(unit)


def machines(prior=None, posteriors=None):
    return boltzmann_machines.Machines(prior, small_machines() if posteriors is None else posteriors, relax)


def enumerated(rbm):
    """All states [2**M, M] and their probabilities [2**M, B]."""
    states = tf.cast(binary_states(sum(SIZES)), tf.float32)
    log_prob = rbm.log_prob(tf.repeat(states[:, tf.newaxis], rbm.batch_shape[0], axis=1))
    return states.numpy(), np.exp(log_prob.numpy())


def exact_moments(rbm, pairs):
    states, probs = enumerated(rbm)
    products = states[:, pairs[:, 0]] * states[:, pairs[:, 1]]
    return boltzmann_sweeps.Moments(probs.T @ states, probs.T @ products)


# Partition functions -----------------------------------------------------------------------------------------


def test_without_couplings_every_estimate_is_exact():
    rbm = small_machines(coupling=0.0)
    estimates = analysis.log_partition_estimates(rbm, [1, 3], num_chains=4, num_repeats=3)
    assert estimates.shape == (2, 3, 2)
    np.testing.assert_array_equal(estimates.std(axis=1), 0.0)
    np.testing.assert_allclose(estimates[0, 0], rbm.exact_log_partition(), rtol=1e-6)
    curve = analysis.temperature_curve(estimates, estimates[0, 0], [1, 3])
    assert curve["std"] == curve["error"] == [0.0, 0.0]
    assert curve["reaches"] == {"num_temperatures": 1.0, "is_upper_bound": True}


def test_the_reference_brackets_log_z_and_a_curve_measures_the_distance_from_it():
    rbm = small_machines()
    exact = rbm.exact_log_partition().numpy()
    found = analysis.reference_log_partition(rbm, num_temperatures=20, num_chains=2_000)
    for name in ("forward", "reverse"):
        np.testing.assert_allclose(found[name], exact, rtol=0, atol=6 * found["std_err"].max())
    assert found["std_err"].max() < 0.02
    estimates = analysis.log_partition_estimates(rbm, [1, 10], num_chains=50, num_repeats=20)
    few, many = estimates.std(axis=1)
    assert (few > 2 * many).all()
    np.testing.assert_allclose(estimates[1].mean(axis=0), exact, rtol=0, atol=0.05)


def test_a_curve_averages_over_repeats_and_machines():
    reference = np.array([1.0, 10.0])
    offsets = np.array([[[0.3, 0.1], [-0.1, 0.1]], [[0.02, 0.0], [0.0, 0.02]]])
    curve = analysis.temperature_curve(reference + offsets, reference, [10, 1000])
    np.testing.assert_allclose(curve["error"], [0.15, 0.01])
    np.testing.assert_allclose(curve["bias"], [0.1, 0.01])
    np.testing.assert_allclose(curve["std"], [0.5 * 0.4 / np.sqrt(2), 0.02 / np.sqrt(2)])
    assert curve["reaches"]["num_temperatures"] is None
    assert curve["reached_by_machine"] == [None, 10.0]


@pytest.mark.parametrize(
    ("std", "expected", "is_upper_bound"),
    [
        ([1.0, 0.1, 0.001], 10.0 * 10**0.5, False),  # falls by 100 for 10 times as many: half way in logarithms
        ([1.0, 0.01, 0.001], 10.0, False),
        ([0.005, 0.004, 0.003], 1.0, True),
        ([1.0, 0.5, 0.02], None, False),
        ([1.0, 0.5, 0.0], 100.0, True),
    ],
)
def test_the_number_of_temperatures_is_interpolated(std, expected, is_upper_bound):
    found = analysis.temperatures_for([1, 10, 100], std)
    assert found["is_upper_bound"] == is_upper_bound
    assert found["num_temperatures"] == (None if expected is None else pytest.approx(expected))


def test_prior_and_posteriors_are_compared_in_one_result():
    prior = small_machines(num=1, coupling=2.0, seed=5)
    options = {"num_temperatures": [1, 4], "reference_temperatures": 8, "num_chains": 50, "num_repeats": 3}
    result = analysis.analyse_temperatures(machines(prior), **options)
    json.dumps(result, allow_nan=False)
    assert list(result["curves"]) == ["posterior, biases", "prior, biases", "prior, uniform"]
    assert len(result["reference"]["posterior"]["forward"]) == 2
    np.testing.assert_allclose(result["reference"]["prior"]["forward"], prior.exact_log_partition(), rtol=0, atol=0.3)
    np.testing.assert_allclose(
        result["reference"]["posterior"]["forward"], small_machines().exact_log_partition(), rtol=0, atol=0.3
    )
    assert list(analysis.analyse_temperatures(machines(), **options)["curves"]) == ["posterior, biases"]


def test_the_ratio_is_that_of_the_two_numbers_of_temperatures():
    rbm = small_machines(num=1, coupling=0.0)
    options = {"num_temperatures": [1, 2], "reference_temperatures": 3, "num_chains": 2, "num_repeats": 9}
    result = analysis.analyse_temperatures(machines(rbm, small_machines(coupling=0.0)), **options)
    assert result["ratio"] == {"level": 0.01, "value": 1.0, "is_exact": False}
    result = analysis.analyse_temperatures(machines(two_wells(), rbm), **options)
    assert result["ratio"]["value"] is None
    # Where only one gets to 0.01, the level that the other one does reach.
    assert result["ratio_at_common_level"]["level"] == min(result["curves"]["prior, biases"]["std"])
    assert result["ratio_at_common_level"]["value"] >= 1.0
    slow, fast = [1.0, 0.1, 0.02], [1.0, 0.01, 0.001]
    found = analysis._ratio([1, 10, 100], [slow, fast], 0.1)
    assert found == {"level": 0.1, "value": pytest.approx(10**0.5), "is_exact": True}


def test_compiled_numbers_are_those_of_eager_ones():
    rbm = small_machines()
    eager = analysis.log_partition_estimates(rbm, [3], num_chains=2, num_repeats=2)
    tf.config.run_functions_eagerly(False)
    compiled = analysis.log_partition_estimates(rbm, [3], num_chains=2, num_repeats=2)
    np.testing.assert_allclose(compiled, eager, rtol=1e-5)


# Modes -------------------------------------------------------------------------------------------------------


def test_a_machine_with_two_wells_has_two_modes_and_its_divergence_is_that_of_enumeration():
    rbm = two_wells()
    options = {"num_chains": 2_000, "prior_chains": 64, "reference_temperatures": 25}
    result = analysis.analyse_modes(machines(rbm, rbm), **options)
    json.dumps(result, allow_nan=False)
    assert result["posterior"]["num_modes"] == result["prior"]["num_modes"] == [2]
    assert result["posterior"]["share_with_one_mode"] == 0.0
    assert result["posterior"]["share_converged"] == 1.0
    assert sum(result["prior"]["share_of_modes"]) == pytest.approx(1.0)
    assert 0.1 < min(result["prior"]["share_of_modes"])
    assert result["prior"]["by_num_starts"]["num_starts"] == [1, 2, 4, 8, 16, 32, 64]
    assert result["prior"]["by_num_starts"]["num_modes"][0] == 1.0
    assert result["prior"]["by_num_starts"]["num_modes"][-1] == 2.0

    found = analysis.fixed_points(rbm, tf.constant([[[1.0] * SIZES[0]], [[0.0] * SIZES[0]]]))
    means = found.means[int(found.bound[:, 0].argmax()), 0].astype(np.float64)
    states, probs = enumerated(rbm)
    factorial = np.prod(np.where(states == 1, means, 1 - means), axis=1)
    expected = (factorial * (np.log(factorial) - np.log(probs[:, 0]))).sum()
    exact = float(rbm.exact_log_partition()[0])
    # The bound is exact; log Z was estimated with an error that the result states.
    assert exact - found.bound.max() == pytest.approx(expected, abs=1e-5)
    (divergence,), (std_err,) = (result["posterior"][name] for name in ("kl", "log_partition_std_err"))
    assert abs(divergence - expected) < 5 * std_err < 0.25


def test_a_machine_without_couplings_has_one_mode_and_no_divergence():
    result = analysis.analyse_modes(
        machines(posteriors=small_machines(coupling=0.0)), num_chains=10, reference_temperatures=2
    )
    assert result["prior"] is None
    assert result["posterior"]["num_modes"] == [1, 1]
    assert result["posterior"]["share_of_best_mode"] == [1.0, 1.0]
    np.testing.assert_allclose(result["posterior"]["kl"], 0.0, atol=1e-5)


def test_fixed_points_are_grouped_by_distance_and_ordered_by_bound():
    means = np.array([[0.1, 0.5], [0.9, 0.5], [0.104, 0.498], [0.5, 0.5], [0.9, 0.505]])
    labels = analysis.mode_labels(means, np.array([1.0, 3.0, 1.1, 2.0, 2.9]), distance=0.01)
    np.testing.assert_array_equal(labels, [2, 0, 2, 1, 0])
    assert analysis.modes_by_num_starts(labels)["num_modes"][-1] == 3.0


def test_descents_that_still_move_are_reported():
    # At the critical coupling the mean approaches 1/2 more slowly than any power of a number.
    critical = RestrictedBoltzmannMachine.from_ising(tf.zeros([1, 1]), tf.zeros([1, 1]), tf.ones([1, 1, 1]))
    found = analysis.fixed_points(critical, tf.ones([1, 1, 1]), max_iterations=100)
    assert not found.has_converged.any()


# Sweeps ------------------------------------------------------------------------------------------------------


def test_pairs_are_different_units_and_all_of_them_where_there_are_few():
    pairs = boltzmann_sweeps.unit_pairs(SIZES, 10)
    assert pairs.shape == (10, 2)
    assert len({tuple(pair) for pair in pairs}) == 10
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert pairs.max() < sum(SIZES)
    assert len(boltzmann_sweeps.unit_pairs(SIZES, 1_000)) == 21


def test_moments_of_chains_approach_those_of_enumeration():
    rbm, pairs = small_machines(), boltzmann_sweeps.unit_pairs(SIZES, 100)
    exact = exact_moments(rbm, pairs)
    reference, z_1, noise_floor = boltzmann_sweeps.equilibrium(
        rbm, num_temperatures=10, num_chains=2_000, num_sweeps=20, pairs=pairs
    )
    assert z_1.shape == (2_000, 2, SIZES[0])
    for found, expected in zip(reference, exact, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.03)  # s.e. of one state of 2,000 chains: 0.011
    assert 0.003 < noise_floor["marginals"] < 0.02

    moments = boltzmann_sweeps.hard_sweep_moments(rbm, [0, 1, 8], num_chains=2_000, pairs=pairs)
    errors = boltzmann_sweeps.Moments(*(part - other for part, other in zip(moments, exact, strict=True))).sizes()
    biases = tf.sigmoid(tf.concat([rbm.bias_1, rbm.bias_2], axis=-1))
    np.testing.assert_allclose(moments.marginals[0], biases, rtol=0, atol=0.05)
    for name in ("marginals", "pairs"):
        assert errors[name][0] > errors[name][1] > errors[name][2]
        assert errors[name][2] < 0.02


def test_relaxed_sweeps_shift_nothing_where_the_relaxation_is_none_or_the_states_do_not_matter():
    pairs = boltzmann_sweeps.unit_pairs(SIZES, 5)
    start = tf.ones([200, 2, SIZES[0]])

    def hard(logits, unit):
        return tf.cast(unit > tf.sigmoid(-logits), tf.float32)

    shifts, noise = boltzmann_sweeps.relaxed_sweep_shifts(small_machines(), start, hard, [1, 3], pairs=pairs)
    assert shifts.marginals.shape == (2, 2, 7)
    assert shifts.pairs.shape == noise.pairs.shape == (2, 2, 5)
    for part in (*shifts, *noise):
        np.testing.assert_array_equal(part, 0.0)
    # Its means are those of the binary states: without couplings all that is left is noise.
    shifts, noise = boltzmann_sweeps.relaxed_sweep_shifts(
        small_machines(coupling=0.0), start, relax, [1, 2], pairs=pairs
    )
    assert 0 < np.abs(shifts.marginals).max() < 0.1
    assert np.abs(shifts.marginals).mean() < 2 * np.abs(noise.marginals).mean()


def test_the_bias_of_relaxed_sweeps_grows_with_their_number():
    result = boltzmann_sweeps.analyse_sweeps(
        machines(posteriors=small_machines(coupling=2.0)),
        hard_sweeps=[0, 2],
        relaxed_sweeps=[1, 3],
        num_chains=10_000,
        reference_temperatures=5,
        reference_sweeps=10,
        num_pairs=10,
    )
    json.dumps(result, allow_nan=False)
    assert result["num_pairs"] == 10
    one, three = result["relaxed"]["bias"]["marginals"]
    assert three > 1.3 * one > 0
    assert three > 3 * result["relaxed"]["noise_floor"]["marginals"][1]


def test_noise_is_taken_off_the_bias():
    rng = np.random.default_rng(0)
    halves = 0.5 + rng.standard_normal([2, 1, 200, 200])
    parts = (0.5 * (halves[0] + halves[1]), 0.5 * (halves[0] - halves[1]))
    found = boltzmann_sweeps.rms_bias(*(boltzmann_sweeps.Moments(part, 0.0 * part) for part in parts))
    assert found["marginals"] == [pytest.approx(0.5, abs=0.02)]
    assert found["pairs"] == [0.0]


# What cannot be analysed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: analysis.analyse_temperatures(machines(), num_temperatures=[4, 2]), r"ascending .*, found \[4, 2\]"),
        (lambda: analysis.analyse_temperatures(machines(), num_temperatures=[]), r"temperatures must be .* found \[\]"),
        (
            lambda: analysis.analyse_temperatures(machines(), num_temperatures=[1, 9], reference_temperatures=9),
            "reference_temperatures must be at least 10, found 9",
        ),
        (lambda: analysis.analyse_temperatures(machines(), num_repeats=1), "repeats must be at least 2, found 1"),
        (lambda: analysis.analyse_temperatures(machines(), level=0.0), "level must be positive, found 0.0"),
        (lambda: analysis.analyse_modes(machines(), num_chains=1), "chains must be at least 2, found 1"),
        (lambda: boltzmann_sweeps.analyse_sweeps(machines(), relaxed_sweeps=[0, 1]), "relaxed_sweeps .* from 1 on"),
        (lambda: boltzmann_sweeps.analyse_sweeps(machines(), num_pairs=0), "pairs must be at least 1, found 0"),
    ],
)
def test_impossible_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_models_whose_posterior_is_no_machine_are_refused():
    model = registry.build(presets.get("boltzmann_vae/tiny", ["model.posterior=directed"]))
    with pytest.raises(ValueError, match="model.posterior=directed is no Boltzmann machine"):
        boltzmann_machines.machines_of(model, np.zeros([1, *model.event_shape]))

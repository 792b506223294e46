import functools

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tests.reference import boltzmann as twin
from tests.reference.monte_carlo import assert_mean_close
from tfstruct import random
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from tfstruct.inference import annealing

V, H = 4, 3
KEY = np.array([0, 17], np.uint32)
BASES = pytest.mark.parametrize("base", annealing.BASES)


def _uncoupled(rng):
    return twin.Machine(rng.normal(size=V), rng.normal(size=H), np.zeros([V, H]))


def _estimate(rbm, *, jit=False, **kwargs):
    """`log_partition` as a graph, which is ready sooner, or compiled, which is faster on long paths."""
    graph = tf.function(lambda: annealing.log_partition(rbm, **kwargs), jit_compile=jit, autograph=False)
    return annealing.PartitionEstimate(*(part.numpy() for part in graph()))


# Exact -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_temperatures", [1, 3])
def test_without_coupling_every_weight_from_the_biases_is_the_partition_function(num_temperatures, rng):
    machine = _uncoupled(rng)
    options = {"num_temperatures": num_temperatures, "seed": KEY}
    found = annealing.log_partition(machine.rbm(), num_chains=50, **options)
    np.testing.assert_allclose(found.log_weights, np.full(50, machine.log_partition), rtol=1e-12)
    assert float(found.log_partition) == pytest.approx(machine.log_partition, abs=1e-12)
    assert float(found.std_err) == pytest.approx(0.0, abs=1e-12)
    assert float(found.effective_sample_size) == pytest.approx(50.0)
    for method in ({"method": "reverse", "initial": found.z_1}, {"method": "population", "num_chains": 48}):
        other = annealing.log_partition(machine.rbm(), **method, **options)
        assert float(other.log_partition) == pytest.approx(machine.log_partition, abs=1e-12)
        assert float(other.std_err) == pytest.approx(0.0, abs=1e-12)
    assert float(other.effective_sample_size) == pytest.approx(8.0)


def test_the_mean_weight_and_its_error_are_those_of_numpy(rng):
    log_weights = rng.normal(size=[20, 3])
    weights = np.exp(log_weights)
    mean, std_err, size = annealing.mean_weight(tf.constant(log_weights + 500.0))
    np.testing.assert_allclose(mean, np.log(weights.mean(axis=0)) + 500.0, rtol=1e-12)
    np.testing.assert_allclose(std_err, weights.std(axis=0, ddof=1) / np.sqrt(20) / weights.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(size, weights.sum(axis=0) ** 2 / (weights**2).sum(axis=0), rtol=1e-10)
    alone = annealing.mean_weight(tf.constant(log_weights[:1]))
    assert np.all(np.isnan(alone[1]))
    np.testing.assert_allclose(alone[2], 1.0)


# Bug seen: from its biases, here -8 for every unit, annealing never leaves the mode of all zeros and reports half of Z
# with a standard error of 3e-6.
@pytest.mark.parametrize("options", [{}, {"base": "uniform"}, {"base": "fields"}], ids=["default", "uniform", "fields"])
def test_both_of_a_pair_of_modes_are_found(options):
    rbm = RestrictedBoltzmannMachine.from_ising(np.zeros(10), np.zeros(10), np.full([10, 10], 0.4))
    found = _estimate(rbm, num_temperatures=100, num_chains=2_000, seed=KEY, **options)
    assert found.std_err < 0.03
    assert abs(found.log_partition - rbm.exact_log_partition()) < 5.0 * found.std_err
    assert abs(np.average(found.z_1[:, 0], weights=np.exp(found.log_weights)) - 0.5) < 0.1


def test_the_base_of_the_fields_is_the_machine_without_the_couplings_of_its_spins(rng):
    fields = [rng.normal(size=size) for size in (V, H)]
    coupling = rng.normal(size=[V, H])
    rbm = RestrictedBoltzmannMachine.from_ising(*fields, coupling)
    for found, field in zip(annealing._base_biases(rbm, "fields"), fields, strict=True):
        np.testing.assert_allclose(found, 2.0 * field, rtol=1e-10)


# The expectation of weights ----------------------------------------------------------------------------------


@BASES
@pytest.mark.parametrize("num_temperatures", [1, 2, 5])
def test_weights_are_unbiased_for_the_partition_function_and_for_every_state(num_temperatures, base, rng):
    machine = twin.random_machine(rng, scale=0.8)
    z_1, z_2, log_weights = annealing.annealed_samples(
        machine.rbm(), num_temperatures=num_temperatures, num_chains=100_000, base=base, seed=KEY
    )
    weights = np.exp(log_weights.numpy() - machine.log_partition)
    assert weights.std() > 0.05
    # A path off by one temperature is seen in the states, a lost bias of the base in the mean as well.
    assert_mean_close(weights, 1.0, resolution=0.05)
    z = np.concatenate([z_1, z_2], axis=1)
    pairs = z_1.numpy()[:, :, np.newaxis] * z_2.numpy()[:, np.newaxis]
    assert_mean_close(weights[:, np.newaxis] * z, np.concatenate(machine.moments[:2]), resolution=0.05)
    assert_mean_close(weights[:, np.newaxis, np.newaxis] * pairs, machine.moments[2], resolution=0.05)


@BASES
def test_weights_of_the_way_back_are_unbiased_for_the_inverse(base, rng):
    machine = twin.random_machine(rng, scale=0.8)
    initial = machine.rbm().sample(100_000, seed=[0, 3])[:, :V]
    options = {"num_temperatures": 3, "base": base, "method": "reverse", "initial": initial, "seed": KEY}
    found = annealing.log_partition(machine.rbm(), **options)
    inverse = np.exp(machine.log_partition - found.log_weights.numpy())
    assert inverse.std() > 0.05
    assert_mean_close(inverse, 1.0, resolution=0.05)
    assert float(found.log_partition) == pytest.approx(machine.log_partition - np.log(inverse.mean()), abs=1e-10)
    assert float(found.std_err) == pytest.approx(inverse.std(ddof=1) / np.sqrt(100_000) / inverse.mean(), rel=1e-10)


@BASES
def test_single_chains_err_below_forward_and_above_in_reverse(base, rng):
    machine = twin.random_machine(rng)
    options = {"num_temperatures": 2, "base": base, "seed": KEY}
    forward = annealing.log_partition(machine.rbm(), num_chains=20_000, **options).log_weights.numpy()
    initial = machine.rbm().sample(20_000, seed=[0, 3])[:, :V]
    reverse = annealing.log_partition(machine.rbm(), method="reverse", initial=initial, **options).log_weights.numpy()
    for log_weights, sign in ((forward, 1.0), (reverse, -1.0)):
        gap = sign * (machine.log_partition - log_weights.mean())
        assert gap > 5.0 * log_weights.std() / np.sqrt(20_000)


# Machines of 10 + 10 units -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def larger():
    """Three machines, from easy to hard, as a batch, with log Z and exact samples."""
    rng = np.random.default_rng(17)
    biases = rng.normal(size=[2, 3, 10]) * 0.5
    coupling = rng.normal(size=[3, 10, 10]) * np.array([0.3, 0.5, 0.7])[:, np.newaxis, np.newaxis]
    rbm = RestrictedBoltzmannMachine(biases[0], biases[1], coupling)
    return rbm, rbm.exact_log_partition().numpy(), rbm.sample(500, seed=[0, 3])[..., :10]


def test_both_ways_bracket_the_partition_function(larger):
    rbm, exact, initial = larger
    options = {"num_temperatures": 200, "seed": KEY}
    forward = _estimate(rbm, num_chains=500, **options)
    reverse = _estimate(rbm, method="reverse", initial=initial, **options)
    for found in (forward, reverse):
        assert np.all(found.std_err < 0.02)
        assert found.z_1.shape == found.z_2.shape == (500, 3, 10)
        assert found.log_weights.shape == (500, 3)
        assert np.all(found.effective_sample_size > 250)
        assert np.all(np.abs(found.log_partition - exact) < 5.0 * found.std_err)  # hence they bracket it


def test_ten_thousand_temperatures_err_by_at_most_a_hundredth_of_a_nat_in_float32(larger):
    rbm, exact, _ = larger
    single = RestrictedBoltzmannMachine(*(tf.cast(part, tf.float32) for part in (rbm.bias_1, rbm.bias_2, rbm.coupling)))
    found = _estimate(single, jit=True, num_temperatures=10_000, num_chains=64, seed=KEY)
    np.testing.assert_allclose(found.log_partition, exact, atol=0.01)
    assert found.log_partition.dtype == np.float32
    assert np.all(found.std_err < 0.005)


# Bug seen: the logarithm of a mean of many numbers near 1 was added at every temperature, rounded to 1e-7: here -0.003.
def test_the_error_of_populations_does_not_grow_with_the_number_of_temperatures(rng):
    machine = twin.random_machine(rng, 3, 2, scale=0.7)
    options = {"num_temperatures": 100_000, "num_chains": 64, "num_populations": 4, "base": "uniform", "seed": KEY}
    found = _estimate(machine.rbm(tf.float32), jit=True, method="population", **options)
    assert found.std_err < 2e-4
    assert abs(found.log_partition - machine.log_partition) < 8e-4


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("forward", {"num_chains": 200}),
        ("population", {"num_chains": 160, "num_populations": 32}),
        ("reverse", {}),
    ],
)
def test_standard_errors_are_those_over_repeated_runs(method, options, rng):
    machine, times = twin.random_machine(rng), 400
    rbm = twin.repeated(machine, times)
    if method == "reverse":
        options = {"initial": rbm.sample(200, seed=[0, 3])[..., :V]}
    found = _estimate(rbm, method=method, num_temperatures=8, base="uniform", seed=KEY, **options)
    scores = (found.log_partition - machine.log_partition) / found.std_err
    # 400 runs tell a standard deviation to 0.035: a square root or a count lost is far outside.
    assert abs(scores.std() - 1.0) < 5.0 * 0.035 + 0.05
    assert abs(scores.mean()) < 5.0 / np.sqrt(times) + 0.1
    assert np.unique(found.log_partition).size == times


@BASES
def test_populations_are_unbiased_and_end_in_the_machine(base, rng):
    machine, times = twin.random_machine(rng, scale=0.8), 200
    options = {"num_temperatures": 5, "base": base, "method": "population", "num_chains": 400, "num_populations": 4}
    found = _estimate(twin.repeated(machine, times), seed=KEY, **options)
    ratio = np.exp(found.log_partition - machine.log_partition)
    assert_mean_close(ratio, 1.0, resolution=0.02)
    assert np.all(found.log_weights == found.log_partition)
    assert np.all((found.effective_sample_size > 1.0) & (found.effective_sample_size <= 4.0 + 1e-9))
    for part, moment in zip((found.z_1, found.z_2), machine.moments, strict=False):
        # The mean of 400 equal weights has a bias of the order of 1 / 400.
        assert_mean_close(part.mean(axis=0), moment, resolution=0.02, sigmas=6.0)
    pairs = np.einsum("crv,crh->rvh", found.z_1, found.z_2) / 400.0
    assert_mean_close(pairs, machine.moments[2], resolution=0.02, sigmas=6.0)


# Machines and keys -------------------------------------------------------------------------------------------


def test_batched_machines_are_each_alone_and_chains_depend_on_their_keys_alone(rng):
    machines = [twin.random_machine(rng) for _ in range(3)]
    seed = random.keys_of_samples(KEY, 6, 3).numpy()
    together = annealing.annealed_samples(twin.stacked(machines), num_temperatures=4, seed=seed)
    assert together.z_2.shape == (6, 3, H)
    for place, machine in enumerate(machines):
        alone = annealing.annealed_samples(machine.rbm(), num_temperatures=4, seed=seed[2:5, place])
        np.testing.assert_array_equal(together.z_1[2:5, place], alone.z_1)
        np.testing.assert_array_equal(together.z_2[2:5, place], alone.z_2)
        np.testing.assert_allclose(together.log_weights[2:5, place], alone.log_weights, rtol=1e-12)
    assert np.unique(together.log_weights).size == 18


def test_one_key_gives_every_chain_of_every_machine_noise_of_its_own(rng):
    rbm = twin.repeated(twin.random_machine(rng), 3)
    found = annealing.annealed_samples(rbm, num_temperatures=4, num_chains=6, seed=KEY)
    assert np.unique(found.log_weights).size == 18
    other = annealing.annealed_samples(rbm, num_temperatures=4, num_chains=6, seed=[0, 18])
    assert not np.array_equal(found.log_weights, other.log_weights)


METHODS = {
    "forward": {"num_chains": 16},
    "reverse": {"initial": np.ones([16, 3, V])},
    "population": {"num_chains": 16, "num_populations": 4},
}
EACH = pytest.mark.parametrize("method", METHODS)


@EACH
def test_estimates_are_the_same_however_they_are_computed(method, rng):
    rbm = twin.stacked([twin.random_machine(rng) for _ in range(3)])
    options = {"method": method, "base": "uniform", "num_temperatures": 5, "seed": KEY, **METHODS[method]}
    for one, two in zip(_estimate(rbm, jit=True, **options), annealing.log_partition(rbm, **options), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-10)


@EACH
def test_no_key_is_used_twice(method, rng, monkeypatch):
    rbm = twin.stacked([twin.random_machine(rng) for _ in range(3)])
    run = functools.partial(annealing.log_partition, rbm, method=method, seed=KEY, **METHODS[method])
    # A start and an end, but for the way back, and at each temperature both sides and the resampling.
    draws = {"forward": 2 + 2 * 4, "reverse": 1 + 2 * 4, "population": 2 + 3 * 4}[method]
    twin.assert_no_key_is_used_twice(monkeypatch, functools.partial(run, num_temperatures=4), draws=draws)


@EACH
def test_temperatures_are_one_loop_however_many_they_are(method, rng):
    rbm = twin.stacked([twin.random_machine(rng) for _ in range(3)])
    estimate = functools.partial(annealing.log_partition, rbm, method=method, **METHODS[method])
    sizes = [
        twin.graph_size(lambda seed, num=num: estimate(num_temperatures=num, seed=seed), tf.constant(KEY))
        for num in (2, 300)
    ]
    assert sizes[0] == sizes[1]
    assert sizes[0][1] == 1


def test_no_gradient_flows_through_annealed_samples(rng):
    parameters = [tf.constant(value) for value in twin.random_machine(rng).parameters]
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        rbm = RestrictedBoltzmannMachine(*parameters)
        found = annealing.annealed_samples(rbm, num_temperatures=2, num_chains=5, seed=KEY)
        total = sum(tf.reduce_sum(part) for part in found)
    assert tape.gradient(total, parameters) == [None] * 3


def test_the_defaults_are_enough_for_one_call():
    rbm = RestrictedBoltzmannMachine([1.0], [-1.0], [[0.5]])
    estimate = annealing.log_partition(rbm, num_temperatures=10, num_chains=100)
    exact = np.log(1.0 + np.e + np.exp(-1.0) + np.exp(0.5))
    assert abs(float(estimate.log_partition) - exact) < 5.0 * float(estimate.std_err) < 0.05


# Resampling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [None, 1, 7, 500])
def test_states_are_kept_as_often_as_their_share_says_rounded_up_or_down(count, rng):
    log_weights = rng.normal(size=[3, 2, 40]) * 2.0 + 300.0
    found = annealing.systematic_resampling(tf.constant(log_weights), KEY, count).numpy()
    total = count or 40
    assert (found.dtype, found.shape) == (np.int32, (3, 2, total))
    share = total * special.softmax(log_weights, axis=-1)
    for place in np.ndindex(3, 2):
        kept = np.bincount(found[place], minlength=40)
        assert np.all(kept >= np.floor(share[place] - 1e-9))
        assert np.all(kept <= np.ceil(share[place] + 1e-9))
        assert kept.sum() == total


def test_resampling_is_unbiased_and_every_row_has_an_offset_of_its_own(rng):
    log_weights = rng.normal(size=5)
    rows = tf.constant(np.broadcast_to(log_weights, [20_000, 5]))
    found = annealing.systematic_resampling(rows, KEY, 3).numpy()
    counts = (found[:, :, np.newaxis] == np.arange(5)).sum(axis=1)
    assert np.unique(counts, axis=0).shape[0] > 1
    assert_mean_close(counts, 3.0 * special.softmax(log_weights), resolution=0.03)


def test_all_weight_on_one_state_keeps_that_state_alone():
    for place in (0, 3):
        log_weights = np.full(4, -np.inf, np.float32)
        log_weights[place] = 0.0
        np.testing.assert_array_equal(annealing.systematic_resampling(tf.constant(log_weights), KEY), [place] * 4)


# Errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_temperatures": 0}, "num_temperatures must be at least 1, found 0"),
        ({"num_chains": 0}, "num_chains must be at least 1, found 0"),
        ({"base": "zeros"}, "base must be one of uniform, fields, biases, found 'zeros'"),
        ({"method": "sideways"}, "method must be one of forward, reverse, population, found 'sideways'"),
        ({"method": "reverse"}, "initial states belong to method='reverse', and it needs them"),
        ({"initial": np.zeros([2, V])}, "initial states belong to method='reverse'"),
        ({"method": "reverse", "initial": np.zeros([0, V])}, "num_chains must be at least 1, found 0"),
        ({"method": "reverse", "initial": np.zeros([2, V]), "num_temperatures": 0}, "num_temperatures must be at"),
        ({"method": "reverse", "initial": np.zeros([2, V]), "base": "zeros"}, "base must be one of"),
        ({"method": "population", "num_temperatures": 0}, "num_temperatures must be at least 1"),
        ({"method": "population", "num_chains": 0}, "num_chains must be at least 1"),
        ({"method": "population", "num_chains": 10}, "must be a multiple of num_populations, found 10 and 8"),
        ({"method": "population", "num_populations": 0}, "must be a multiple of num_populations, found 16 and 0"),
        ({"method": "population", "base": "zeros"}, "base must be one of"),
    ],
    ids=str,
)
def test_what_cannot_be_estimated_is_refused(kwargs, message, rng):
    with pytest.raises(ValueError, match=message):
        annealing.log_partition(twin.random_machine(rng).rbm(), **{"num_temperatures": 2, "num_chains": 16, **kwargs})


def test_keys_of_another_shape_are_refused(rng):
    rbm, many = twin.random_machine(rng).rbm(), twin.repeated(twin.random_machine(rng), 3)
    keys = np.zeros([6, 3, 2], np.uint32)
    for machine, seed, num_chains, message in (
        (rbm, KEY, None, "give num_chains with one key"),
        (rbm, keys[:, 0], 6, "give num_chains with one key"),
        (rbm, keys, None, r"a key for each chain has shape \[C, 2\], found \(6, 3, 2\)"),
        (many, keys[0], None, r"a key for each chain has shape \[C, \.\.\., 2\], found \(3, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            annealing.annealed_samples(machine, num_temperatures=2, num_chains=num_chains, seed=seed)

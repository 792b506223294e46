import functools

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tests.reference import boltzmann as twin
from tfstruct import random
from tfstruct.distributions.relaxed_bernoulli import Concrete
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from tfstruct.inference import gibbs

V, H = 4, 3
KEY = np.array([0, 17], np.uint32)


def _hard(logits, unit):
    return tf.cast(unit < tf.sigmoid(logits), logits.dtype)


def _soft(logits, unit):
    return Concrete(logits, 1.5).sample_from_uniform(unit)


def _tables(rbm):
    """The module's p(z_2 | z_1) and p(z_1 | z_2) over all states, [2**V, 2**H] both."""
    z_1, z_2 = (tf.constant(twin.states(size)) for size in rbm.num_units)
    to_2 = tf.exp(rbm.conditional_2(z_1[:, tf.newaxis]).log_prob(z_2))
    return to_2, tf.exp(rbm.conditional_1(z_2).log_prob(z_1[:, tf.newaxis]))


def _kernel(rbm):
    """One sweep between joint states, side 2 first: K[(z_1, z_2), (z_1', z_2')], [2**(V + H)] twice."""
    to_2, to_1 = _tables(rbm)
    kernel = tf.einsum("ad,cd->acd", to_2, to_1)
    size = to_2.shape[0] * to_2.shape[1]
    return tf.reshape(tf.repeat(kernel[:, tf.newaxis], to_2.shape[1], axis=1), [size, size])


# The kernel, exactly -----------------------------------------------------------------------------------------


def test_the_kernel_leaves_the_machine_as_it_is(rng):
    machine = twin.random_machine(rng)
    to_2, to_1 = _tables(machine.rbm())
    sweep = to_2.numpy() @ to_1.numpy().T
    np.testing.assert_allclose(sweep.sum(axis=1), 1.0, atol=1e-12)
    marginal = machine.probs.sum(axis=1)
    np.testing.assert_allclose(marginal @ sweep, marginal, atol=1e-12)
    flow = marginal[:, np.newaxis] * sweep  # with side 2 summed out a sweep is reversible
    np.testing.assert_allclose(flow, flow.T, atol=1e-12)
    kernel = _kernel(machine.rbm()).numpy()
    np.testing.assert_allclose(machine.events[1] @ kernel, machine.events[1], atol=1e-12)


@pytest.mark.parametrize("num_sweeps", [1, 2, 3])
def test_the_gradient_of_an_expectation_is_that_of_the_state_and_that_of_the_kernel(num_sweeps, rng):
    machine = twin.random_machine(rng, 3, 2, scale=1.5)
    events, probs = machine.events
    value = tf.constant(rng.normal(size=[len(events), 1]))

    def gradients(function):
        parameters = [tf.constant(parameter) for parameter in machine.parameters]
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            total = function(RestrictedBoltzmannMachine(*parameters))
        return np.concatenate([np.ravel(part) for part in tape.gradient(total, parameters)])

    def after(rbm, times, held):
        moved = functools.reduce(lambda value, _: tf.matmul(_kernel(rbm), value), range(times), value)
        return tf.stop_gradient(moved[:, 0]) if held else moved[:, 0]

    # E_q f by the module, and by the table alone: E[f (z - E z)].
    whole = gradients(lambda rbm: tf.reduce_sum(tf.exp(rbm.log_prob(events)) * value[:, 0]))
    z_1, z_2 = events[:, :3], events[:, 3:]
    statistics = np.concatenate([z_1, z_2, np.reshape(z_1[:, :, np.newaxis] * z_2[:, np.newaxis], [-1, 6])], axis=1)
    exact = (probs * value[:, 0].numpy()) @ (statistics - probs @ statistics)
    np.testing.assert_allclose(whole, exact, atol=1e-12)

    def of_state(times):
        return gradients(lambda rbm: tf.reduce_sum(tf.exp(rbm.log_prob(events)) * after(rbm, times, held=True)))

    of_kernel = gradients(lambda rbm: tf.reduce_sum(probs * after(rbm, num_sweeps, held=False)))
    np.testing.assert_allclose(of_state(num_sweeps) + of_kernel, exact, atol=1e-12)
    assert np.linalg.norm(of_state(num_sweeps)) < 0.9 * np.linalg.norm(of_state(num_sweeps - 1))
    assert np.linalg.norm(of_state(num_sweeps)) > 1e-6


# Hard sweeps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_sweeps", [1, 2])
def test_chains_move_as_the_kernel_says_from_every_state(num_sweeps):
    machine, num_chains = twin.random_machine(np.random.default_rng(17), scale=2.0), 20_000  # one that mixes slowly
    start = np.broadcast_to(machine.states_1, [num_chains, 2**V, V])
    z_1, z_2 = gibbs.sweeps(machine.rbm(tf.float32), start, num_sweeps=num_sweeps, seed=KEY)
    found = twin.numbers(z_1) * 2**H + twin.numbers(z_2)
    expected = machine.transitions(num_sweeps)
    for place in range(2**V):
        # One sweep too many, or the sides in the other order, moves some probability by far more.
        twin.assert_frequencies_close(found[:, place], expected[place], resolution=0.025)
    assert np.abs(expected - machine.transitions(num_sweeps + 1)).max() > 0.05


def test_sweeps_are_a_loop_in_numpy(rng, run):
    machine = twin.random_machine(rng)
    state = rng.integers(0, 2, size=[50, V]).astype(np.float64)
    found = run(lambda z: gibbs.sweeps(machine.rbm(), z, num_sweeps=3, seed=KEY), tf.constant(state))
    for index in range(3):
        key = random.numpy_fold_in(KEY, index)
        keys = random.numpy_fold_in(key, 0), random.numpy_fold_in(key, 1)
        logits = machine.bias_2 + state @ machine.coupling
        other = 1.0 * (random.numpy_uniform(keys[0], [50, H]) < special.expit(logits))
        logits = machine.bias_1 + other @ machine.coupling.T
        state = 1.0 * (random.numpy_uniform(keys[1], [50, V]) < special.expit(logits))
    np.testing.assert_array_equal(found[0], state)
    np.testing.assert_array_equal(found[1], other)


def _batch(rng, dtype=tf.float32, size=3):
    return twin.stacked([twin.random_machine(rng) for _ in range(size)], dtype)


@pytest.mark.parametrize("per_chain", [False, True])
def test_sweeps_are_the_same_bit_for_bit_however_they_are_computed(per_chain, rng, compiled):
    rbm, start = _batch(rng), tf.constant(rng.integers(0, 2, size=[40, 3, V]), tf.float32)
    seed = tf.constant(random.keys_of_samples(KEY, 40, 3) if per_chain else KEY)
    function = lambda z, seed: gibbs.sweeps(rbm, z, num_sweeps=5, seed=seed)  # noqa: E731
    for one, two in zip(compiled(function, start, seed), function(start, seed), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("draw", ["hard", "relaxed"])
def test_a_chain_with_its_own_key_does_not_depend_on_the_others(draw, rng):
    machines = [twin.random_machine(rng) for _ in range(3)]
    start, seed = rng.integers(0, 2, size=[6, 3, V]).astype(np.float64), random.keys_of_samples(KEY, 6, 3).numpy()

    def function(rbm, z, seed):
        if draw == "hard":
            return gibbs.sweeps(rbm, z, num_sweeps=3, seed=seed)
        return gibbs.relaxed_sweeps(rbm, z, _soft, num_sweeps=3, seed=seed)

    everything = function(twin.stacked(machines), start, seed)
    for place, machine in enumerate(machines):
        alone = function(machine.rbm(), start[2:4, place], seed[2:4, place])
        for one, two in zip(everything, alone, strict=True):
            np.testing.assert_allclose(one[2:4, place], two, rtol=1e-12)
    assert not np.array_equal(everything[0][0], everything[0][1])


def test_a_key_for_each_first_index_is_enough(rng):
    machines, seed = [twin.random_machine(rng) for _ in range(3)], random.sample_keys(KEY, 6).numpy()
    start = rng.integers(0, 2, size=[6, 3, V]).astype(np.float64)
    everything = gibbs.sweeps(twin.stacked(machines), start, num_sweeps=2, seed=seed)
    alone = gibbs.sweeps(twin.stacked(machines), start[4:5], num_sweeps=2, seed=seed[4:5])
    for one, two in zip(everything, alone, strict=True):
        np.testing.assert_array_equal(one[4:5], two)


@pytest.mark.parametrize("function", [gibbs.sweeps, functools.partial(gibbs.relaxed_sweeps, relax=_soft)])
def test_every_side_of_every_sweep_is_drawn_with_a_key_of_its_own(function, rng, monkeypatch):
    rbm = twin.random_machine(rng).rbm()
    run = functools.partial(function, rbm, z_1=np.zeros([5, V]), num_sweeps=4, seed=KEY)
    twin.assert_no_key_is_used_twice(monkeypatch, run, draws=8)


def test_the_noise_of_a_key_each_is_the_noise_of_each_key():
    keys = random.keys_of_samples(KEY, 2, 3)
    found = gibbs.uniform_like(keys, tf.zeros([2, 3, V]))
    for place in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[place], random.numpy_uniform(keys.numpy()[place], [V]))
    np.testing.assert_array_equal(gibbs.uniform_like(KEY, tf.zeros([2, V])), random.numpy_uniform(KEY, [2, V]))


def test_coins_come_up_with_the_probability_of_their_logits(rng):
    logits = np.array([-30.0, -1.0, 0.0, 2.0, 30.0])
    z = gibbs.bernoulli(tf.constant(np.broadcast_to(logits, [100_000, 5])), KEY).numpy()
    half_width = 5.0 * np.sqrt(0.25 / 100_000)  # 0.008: a sign, or a logit without its sigmoid
    np.testing.assert_allclose(z.mean(axis=0), special.expit(logits), atol=half_width)
    assert set(np.unique(z)) == {0.0, 1.0}


def test_sweeps_are_one_loop_however_many_they_are(rng):
    rbm, start = twin.random_machine(rng).rbm(), tf.zeros([5, V], tf.float64)
    sizes = [
        twin.graph_size(lambda z, num=num: gibbs.sweeps(rbm, z, num_sweeps=num, seed=KEY), start) for num in (2, 300)
    ]
    assert sizes[0] == sizes[1]
    assert sizes[0][1] == 1


def test_no_gradient_flows_through_sweeps(rng):
    values = [tf.constant(value) for value in (*twin.random_machine(rng).parameters, np.ones([5, V]))]
    with tf.GradientTape() as tape:
        tape.watch(values)
        z_1, z_2 = gibbs.sweeps(RestrictedBoltzmannMachine(*values[:3]), values[3], num_sweeps=2, seed=KEY)
        total = tf.reduce_sum(z_1) + tf.reduce_sum(z_2)
    assert tape.gradient(total, values) == [None] * 4


# Relaxed sweeps ----------------------------------------------------------------------------------------------


def test_a_relaxation_of_hard_steps_gives_hard_sweeps(rng, run):
    rbm, start = _batch(rng, tf.float64), tf.constant(rng.integers(0, 2, size=[40, 3, V]), tf.float64)

    def both(start):
        hard = gibbs.sweeps(rbm, start, num_sweeps=2, seed=KEY)
        return hard, gibbs.relaxed_sweeps(rbm, start, _hard, num_sweeps=2, seed=KEY)

    (z_1, z_2), (zeta_1, zeta_2, logits_1) = run(both, start)
    np.testing.assert_array_equal(zeta_1, z_1)
    np.testing.assert_array_equal(zeta_2, z_2)
    np.testing.assert_allclose(logits_1, rbm.logits_1(zeta_2), rtol=1e-12)


@pytest.mark.parametrize("num_sweeps", [1, 2])
def test_the_gradient_of_relaxed_sweeps_goes_through_each_but_not_into_the_start(num_sweeps, rng):
    machine, start = twin.random_machine(rng), rng.integers(0, 2, size=[5, V]).astype(np.float64)
    weights = [rng.normal(size=size) for size in (V, H, V)]

    def total(bias_1, bias_2, coupling, start=start):
        rbm = RestrictedBoltzmannMachine(bias_1, bias_2, coupling)
        parts = gibbs.relaxed_sweeps(rbm, start, _soft, num_sweeps=num_sweeps, seed=KEY)
        return sum(tf.reduce_sum(weight * part) for weight, part in zip(weights, parts, strict=True))

    values = [tf.constant(value) for value in (*machine.parameters, start)]
    with tf.GradientTape() as tape:
        tape.watch(values)
        value = total(*values)
    *gradients, to_start = tape.gradient(value, values)
    assert to_start is None
    twin.assert_gradient_close(total, list(machine.parameters), gradients, rng)


@pytest.mark.parametrize("num_sweeps", [0, -1])
def test_no_sweep_is_refused(num_sweeps, rng):
    rbm, start = twin.random_machine(rng).rbm(), np.zeros([2, V])
    for function in (gibbs.sweeps, functools.partial(gibbs.relaxed_sweeps, relax=_soft)):
        with pytest.raises(ValueError, match=f"num_sweeps must be at least 1, found {num_sweeps}"):
            function(rbm, z_1=start, num_sweeps=num_sweeps, seed=KEY)


# Persistent chains -------------------------------------------------------------------------------------------


def test_a_chain_moves_when_its_row_is_visited_and_only_then(rng):
    rbm, chains = twin.random_machine(rng).rbm(tf.float32), tf.constant(gibbs.fair_coins(KEY, (6, 2, V)))
    keys = random.keys_of_samples(KEY, 2, 6).numpy()  # of each chain, so that the order cannot matter

    def visit(chains, rows):
        z_1 = tf.cast(gibbs.gather(chains, rows), tf.float32)
        z_1, _ = gibbs.sweeps(rbm, z_1, num_sweeps=2, seed=keys[:, rows])
        return gibbs.scatter(chains, tf.constant(rows), z_1)

    one = functools.reduce(visit, ([4, 0, 2], [1, 3]), chains)
    two = functools.reduce(visit, ([3, 2], [0, 1, 4]), chains)
    assert one.dtype == tf.uint8
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one[5], chains[5])
    assert np.all(np.any(visit(chains, [4, 0])[1:4] == chains[1:4], axis=(1, 2)))
    assert not np.array_equal(one[:5], chains[:5])


@pytest.mark.parametrize("jit", [False, True])
def test_gather_and_scatter_are_the_same_mapped_over_replicas(jit, rng):
    chains = tf.constant(rng.integers(0, 2, size=[7, 2, V]), tf.uint8)
    rows = np.array([[5, 0, 3], [1, 6, 2]], np.int32)

    def visit(rows):
        found = gibbs.gather(chains, rows)
        return found, gibbs.scatter(chains, rows, 1 - tf.cast(found, tf.float32))

    mapped = tf.function(lambda rows: tf.vectorized_map(visit, rows), jit_compile=jit, autograph=False)
    for place, (found, kept) in enumerate(zip(*mapped(tf.constant(rows)), strict=True)):
        expected = chains.numpy()
        np.testing.assert_array_equal(found, expected[rows[place]].transpose(1, 0, 2))
        expected[rows[place]] = 1 - expected[rows[place]]
        np.testing.assert_array_equal(kept, expected)
        assert (found.dtype, kept.dtype) == (tf.uint8, tf.uint8)


@pytest.mark.parametrize("rows", [[0, 7], [-1], [100]], ids=str)
def test_rows_without_chains_are_refused(rows):
    with pytest.raises(ValueError, match=rf"there are chains for rows 0..6, found {min(rows)}..{max(rows)}"):
        gibbs.gather(tf.zeros([7, 2, V], tf.uint8), rows)


def test_no_rows_have_no_chains():
    assert gibbs.gather(tf.zeros([7, 2, V], tf.uint8), np.zeros([0], np.int32)).shape == (2, 0, V)


def test_coins_are_fair_and_follow_their_key():
    coins = gibbs.fair_coins(KEY, (100, 10, 100))
    assert (coins.dtype, coins.shape) == (np.uint8, (100, 10, 100))
    assert set(np.unique(coins)) == {0, 1}
    assert abs(coins.mean() - 0.5) < 5.0 * 0.5 / np.sqrt(100_000)
    np.testing.assert_array_equal(coins, gibbs.fair_coins(list(KEY), (100, 10, 100)))
    assert not np.array_equal(coins, gibbs.fair_coins([0, 18], (100, 10, 100)))

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tests.reference import boltzmann as twin
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from tfstruct.inference.mean_field import entropy, entropy_of_logits, mean_field

V, H = 4, 3


def _divergence(machine, mean_1, mean_2):
    """KL(mean field || machine) over all states."""
    sides = [
        np.prod(np.where(states == 1.0, mean, 1.0 - np.asarray(mean)), axis=-1)
        for states, mean in ((machine.states_1, mean_1), (machine.states_2, mean_2))
    ]
    table = np.outer(*sides)
    return float(np.sum(special.xlogy(table, table) - special.xlogy(table, machine.probs)))


def test_the_bound_is_the_log_partition_function_less_the_divergence(rng, run):
    machine, start = twin.random_machine(rng), tf.constant(rng.uniform(size=[5, V]))
    mean_1, mean_2, bound = run(lambda start: mean_field(machine.rbm(), start, num_iterations=3), start)
    for place in range(5):
        divergence = _divergence(machine, mean_1[place].numpy(), mean_2[place].numpy())
        assert machine.log_partition - float(bound[place]) == pytest.approx(divergence, abs=1e-12)
        assert divergence > 1e-3


def test_an_iteration_sets_side_2_and_then_side_1(rng):
    machine, start = twin.random_machine(rng), rng.uniform(size=V)
    mean_1, mean_2, _ = mean_field(machine.rbm(), start, num_iterations=1)
    expected_2 = special.expit(machine.bias_2 + start @ machine.coupling)
    np.testing.assert_allclose(mean_2, expected_2, rtol=1e-12)
    np.testing.assert_allclose(mean_1, special.expit(machine.bias_1 + machine.coupling @ expected_2), rtol=1e-12)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_every_iteration_raises_the_bound_and_none_exceeds_the_partition_function(scale, rng):
    machine, start = twin.random_machine(rng, scale=scale), rng.uniform(size=[20, V])
    results = [mean_field(machine.rbm(), start, num_iterations=times) for times in (*range(1, 8), 200)]
    bounds = np.stack([result.log_partition_bound for result in results])
    assert np.all(np.diff(bounds, axis=0) >= -1e-12)
    assert np.all(np.diff(bounds[:2], axis=0) > 0.0)
    assert np.all(bounds < machine.log_partition)
    again = mean_field(machine.rbm(), results[-1].mean_1, num_iterations=1)  # a fixed point
    np.testing.assert_allclose(again.log_partition_bound, bounds[-1], atol=1e-10)


def test_the_bound_is_exact_without_coupling(rng):
    machine = twin.Machine(rng.normal(size=V), rng.normal(size=H), np.zeros([V, H]))
    mean_1, mean_2, bound = mean_field(machine.rbm(), rng.uniform(size=V), num_iterations=1)
    assert float(bound) == pytest.approx(machine.log_partition, abs=1e-12)
    np.testing.assert_allclose(mean_1, special.expit(machine.bias_1), rtol=1e-12)
    np.testing.assert_allclose(mean_2, special.expit(machine.bias_2), rtol=1e-12)


@pytest.mark.parametrize("starts", [(), (5,)], ids=str)
def test_a_batch_is_a_loop_over_machines(starts, rng):
    machines = [twin.random_machine(rng) for _ in range(3)]
    start = rng.uniform(size=[*starts, 3, V])
    together = mean_field(twin.stacked(machines), start, num_iterations=4)
    assert together.mean_2.shape == (*starts, 3, H)
    for place, machine in enumerate(machines):
        alone = mean_field(machine.rbm(), start[..., place, :], num_iterations=4)
        np.testing.assert_allclose(together.mean_1[..., place, :], alone.mean_1, rtol=1e-12)
        np.testing.assert_allclose(together.mean_2[..., place, :], alone.mean_2, rtol=1e-12)
        np.testing.assert_allclose(together.log_partition_bound[..., place], alone.log_partition_bound, rtol=1e-12)


def _bound_and_gradient(machine, start, differentiable, num_iterations):
    parameters = [tf.constant(value) for value in machine.parameters]
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        rbm = RestrictedBoltzmannMachine(*parameters)
        result = mean_field(rbm, start, num_iterations=num_iterations, differentiable=differentiable)
    return result, tape.gradient(result.log_partition_bound, parameters)


def test_at_a_fixed_point_the_gradient_is_that_of_the_whole_bound(rng):
    machine, start = twin.random_machine(rng), rng.uniform(size=V)

    def bound(*parameters):
        return mean_field(RestrictedBoltzmannMachine(*parameters), start, num_iterations=300).log_partition_bound

    _, gradients = _bound_and_gradient(machine, start, differentiable=True, num_iterations=300)
    twin.assert_gradient_close(bound, list(machine.parameters), gradients, rng)


def test_elsewhere_the_gradient_is_that_at_fixed_means(rng):
    result, gradients = _bound_and_gradient(twin.random_machine(rng), rng.uniform(size=V), True, num_iterations=1)
    mean_1, mean_2, _ = result
    for found, expected in zip(gradients, (mean_1, mean_2, np.outer(mean_1, mean_2)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_bound_that_is_not_to_be_differentiated_has_no_gradient(rng):
    machine, start = twin.random_machine(rng), rng.uniform(size=V)
    result, gradients = _bound_and_gradient(machine, start, differentiable=False, num_iterations=3)
    assert gradients == [None] * 3
    same, _ = _bound_and_gradient(machine, start, differentiable=True, num_iterations=3)
    np.testing.assert_array_equal(result.log_partition_bound, same.log_partition_bound)


def test_iterations_are_one_loop_however_many_they_are(rng):
    rbm, start = twin.random_machine(rng).rbm(), tf.zeros([5, V], tf.float64)
    sizes = [twin.graph_size(lambda z, num=num: mean_field(rbm, z, num_iterations=num), start) for num in (2, 300)]
    assert sizes[0] == sizes[1]
    assert sizes[0][1] == 1


def test_no_iteration_is_refused(rng):
    with pytest.raises(ValueError, match="num_iterations must be at least 1, found 0"):
        mean_field(twin.random_machine(rng).rbm(), np.zeros(V), num_iterations=0)


# Entropy -----------------------------------------------------------------------------------------------------


def test_entropies_are_those_of_independent_coins(rng):
    logits = rng.normal(size=[6, 3])
    probs = special.expit(logits)
    expected = -(probs * np.log(probs) + (1.0 - probs) * np.log(1.0 - probs)).sum(axis=-1)
    np.testing.assert_allclose(entropy(tf.constant(probs)), expected, rtol=1e-12)
    np.testing.assert_allclose(entropy_of_logits(tf.constant(logits)), expected, rtol=1e-12)
    assert float(entropy(tf.constant([0.5, 0.5], tf.float64))) == pytest.approx(2.0 * np.log(2.0), abs=1e-15)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_certain_coins_have_no_entropy(dtype):
    np.testing.assert_array_equal(entropy(tf.constant([[0.0, 1.0], [1.0, 1.0]], dtype)), [0.0, 0.0])


def test_extreme_logits_have_finite_entropies_and_gradients_in_float32():
    logits = tf.constant([[-1000.0], [-80.0], [-30.0], [0.0], [30.0], [80.0], [1000.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        found = entropy_of_logits(logits)
    gradient = tape.gradient(found, logits)
    np.testing.assert_allclose(found, [0.0, 0.0, 0.0, np.log(2.0), 0.0, 0.0, 0.0], atol=1e-5)
    np.testing.assert_allclose(gradient, np.zeros([7, 1]), atol=1e-5)


def test_the_gradient_of_the_entropy_of_logits_is_minus_the_logit_times_the_variance(rng):
    logits = tf.constant(rng.normal(size=[5]))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        found = entropy_of_logits(logits)
    probs = special.expit(logits.numpy())
    np.testing.assert_allclose(tape.gradient(found, logits), -logits * probs * (1.0 - probs), rtol=1e-10)

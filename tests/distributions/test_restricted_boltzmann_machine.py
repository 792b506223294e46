import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tests.reference import boltzmann as twin
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine, binary_states

V, H = 4, 3
TALL_WIDE_AND_SQUARE = pytest.mark.parametrize("sides", [(V, H), (H, V), (3, 3)], ids=str)


def _all_states(shape):
    return tf.constant(twin.states(shape))


# One machine against its table -------------------------------------------------------------------------------


def test_one_unit_a_side_by_hand():
    rbm = RestrictedBoltzmannMachine(*(tf.constant(value, tf.float64) for value in ([1.0], [-1.0], [[0.5]])))
    np.testing.assert_allclose(rbm.energy([[0, 0], [1, 0], [0, 1], [1, 1]]), [0.0, -1.0, 1.0, -0.5], atol=1e-15)
    expected = np.log(1.0 + np.e + np.exp(-1.0) + np.exp(0.5))
    assert float(rbm.exact_log_partition()) == pytest.approx(expected, abs=1e-14)
    assert float(rbm.log_prob([1, 1])) == pytest.approx(0.5 - expected, abs=1e-14)


def test_binary_states_count_with_the_first_unit_fastest():
    np.testing.assert_array_equal(binary_states(V), twin.states(V))
    np.testing.assert_array_equal(binary_states(V, 5, 6), twin.states(V)[5:11])
    np.testing.assert_array_equal(twin.numbers(binary_states(V)), np.arange(2**V))


@TALL_WIDE_AND_SQUARE
def test_energies_conditionals_and_free_energies_are_those_of_the_table(sides, rng, run):
    machine = twin.random_machine(rng, *sides)
    z_1, z_2 = tf.constant(machine.states_1), tf.constant(machine.states_2)

    def everything(*parameters):
        rbm = RestrictedBoltzmannMachine(*parameters)
        return (
            rbm.energy_of_sides(z_1[:, tf.newaxis], z_2),
            rbm.free_energy_1(z_1),
            rbm.free_energy_2(z_2),
            rbm.conditional_2(z_1[:, tf.newaxis]).prob(z_2),
            rbm.conditional_1(z_2).prob(z_1[:, tf.newaxis]),
        )

    expected = (
        machine.energies,
        -special.logsumexp(-machine.energies, axis=1),
        -special.logsumexp(-machine.energies, axis=0),
        machine.given_1,
        machine.given_2,
    )
    for one, two in zip(run(everything, *map(tf.constant, machine.parameters)), expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-12)


@TALL_WIDE_AND_SQUARE
def test_the_partition_function_is_the_same_three_ways(sides, rng):
    machine = twin.random_machine(rng, *sides)
    rbm = machine.rbm()
    transposed = twin.Machine(machine.bias_2, machine.bias_1, machine.coupling.T).rbm()
    for found in (
        special.logsumexp(-rbm.free_energy_1(machine.states_1).numpy()),
        special.logsumexp(-rbm.free_energy_2(machine.states_2).numpy()),
        rbm.exact_log_partition(),
        transposed.exact_log_partition(),
    ):
        np.testing.assert_allclose(found, machine.log_partition, rtol=1e-12)


@pytest.mark.parametrize("sides", [(13, 15), (15, 13)], ids=str)
def test_more_states_than_one_chunk_are_all_summed(sides, rng):
    bias_1, bias_2, coupling = (0.5 * rng.normal(size=shape) for shape in ([sides[0]], [sides[1]], sides))
    rbm = RestrictedBoltzmannMachine(bias_1, bias_2, coupling)
    for own, other, weights in ((bias_1, bias_2, coupling), (bias_2, bias_1, coupling.T)):
        z = twin.states(len(own))
        expected = special.logsumexp(z @ own + np.logaddexp(0.0, other + z @ weights).sum(axis=-1))
        np.testing.assert_allclose(rbm.exact_log_partition(), expected, rtol=1e-12)


@TALL_WIDE_AND_SQUARE
def test_probabilities_of_all_states_are_the_table_and_sum_to_one(sides, rng):
    machine = twin.random_machine(rng, *sides)
    events, probs = machine.events
    log_prob = machine.rbm().log_prob(events)
    np.testing.assert_allclose(np.exp(log_prob), probs, rtol=1e-10)
    assert np.exp(log_prob).sum() == pytest.approx(1.0, abs=1e-12)


def test_a_given_log_partition_is_used(rng):
    events, _ = (machine := twin.random_machine(rng)).events
    given = machine.rbm(log_partition=12.5)
    np.testing.assert_allclose(given.log_prob(events), -machine.energies.ravel() - 12.5, rtol=1e-12)
    large = RestrictedBoltzmannMachine(np.zeros(21), np.zeros(22), np.zeros([21, 22]), log_partition=43.0 * np.log(2.0))
    assert float(large.log_prob(np.ones(43))) == pytest.approx(-43.0 * np.log(2.0))


@TALL_WIDE_AND_SQUARE
def test_the_gradient_of_log_prob_is_the_event_less_the_expectation(sides, rng):
    machine = twin.random_machine(rng, *sides)
    parameters = [tf.constant(value) for value in machine.parameters]
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        log_prob = RestrictedBoltzmannMachine(*parameters).log_prob(tf.ones([sum(sides)], tf.float64))
    for found, expected in zip(tape.gradient(log_prob, parameters), machine.moments, strict=True):
        np.testing.assert_allclose(found, 1.0 - expected, rtol=1e-10)


@TALL_WIDE_AND_SQUARE
def test_samples_have_the_frequencies_of_the_table(sides, rng):
    machine = twin.random_machine(rng, *sides, scale=0.7)
    z = machine.rbm().sample(100_000, seed=[0, 17]).numpy()
    # A swapped side or a forgotten bias moves the largest of the probabilities by more than this.
    chosen = twin.numbers(z[:, : sides[0]]) * 2 ** sides[1] + twin.numbers(z[:, sides[0] :])
    twin.assert_frequencies_close(chosen, machine.probs, resolution=0.01)


def test_the_two_sides_are_drawn_with_keys_of_their_own(rng, monkeypatch):
    rbm = twin.random_machine(rng).rbm()
    twin.assert_no_key_is_used_twice(monkeypatch, lambda: rbm.sample(5, seed=[0, 17]), draws=2)


# Spins -------------------------------------------------------------------------------------------------------


def test_spins_have_the_energies_of_the_machine_up_to_the_stated_constant(rng):
    fields = rng.normal(size=V), rng.normal(size=H), rng.normal(size=[V, H])
    rbm = RestrictedBoltzmannMachine.from_ising(*fields)
    spins_1, spins_2 = 2.0 * twin.states(V) - 1.0, 2.0 * twin.states(H) - 1.0
    exponents = (spins_1 @ fields[0])[:, np.newaxis] + spins_2 @ fields[1] + spins_1 @ fields[2] @ spins_2.T
    constant = fields[0].sum() + fields[1].sum() - fields[2].sum()
    found = -rbm.energy_of_sides(_all_states(V)[:, tf.newaxis], _all_states(H))
    np.testing.assert_allclose(found, exponents + constant, atol=1e-12)
    log_partition = float(rbm.exact_log_partition())
    assert log_partition == pytest.approx(special.logsumexp(exponents) + constant, abs=1e-12)


@pytest.mark.parametrize("batch", [(), (5,)], ids=str)
def test_spins_and_back_is_the_same_machine(batch, rng):
    fields = rng.normal(size=[*batch, V]), rng.normal(size=[*batch, H]), rng.normal(size=[*batch, V, H])
    rbm = RestrictedBoltzmannMachine.from_ising(*fields)
    for found, expected in zip(rbm.to_ising(), fields, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    again = RestrictedBoltzmannMachine.from_ising(*rbm.to_ising(), log_partition=1.0)
    for name in ("bias_1", "bias_2", "coupling"):
        np.testing.assert_allclose(getattr(again, name), getattr(rbm, name), atol=1e-12)


# Batches -----------------------------------------------------------------------------------------------------

#: Batch axes of bias_1, bias_2 and coupling.
BATCHES = pytest.mark.parametrize(
    "axes",
    [
        ((3,), (3,), (3,)),
        ((3,), (), ()),
        ((), (3,), ()),
        ((), (), (3,)),
        ((2, 1), (3,), (2, 3)),
        ((3,), (2, 1), (1, 3)),
    ],
    ids=str,
)


def _batch(rng, axes):
    """A batch of machines, its shape, and each alone."""
    sizes = ([V], [H], [V, H])
    values = [rng.normal(size=[*leading, *size]) for leading, size in zip(axes, sizes, strict=True)]
    batch = np.broadcast_shapes(*axes)
    full = [np.broadcast_to(value, [*batch, *size]) for value, size in zip(values, sizes, strict=True)]
    machines = {place: twin.Machine(*(value[place] for value in full)) for place in np.ndindex(*batch)}
    return RestrictedBoltzmannMachine(*values), batch, machines


@BATCHES
@pytest.mark.parametrize("draws", [(), (1,), (5, 2)], ids=str)
def test_a_batch_is_a_loop_over_machines_for_any_number_of_draws(draws, axes, rng):
    rbm, batch, machines = _batch(rng, axes)
    z = rng.integers(0, 2, size=[*draws, *batch, V + H]).astype(np.float64)
    z_1, z_2 = z[..., :V], z[..., V:]
    found = {
        "energy": rbm.energy(z),
        "log_prob": rbm.log_prob(z),
        "free_energy_1": rbm.free_energy_1(z_1),
        "free_energy_2": rbm.free_energy_2(z_2),
        "logits_1": rbm.logits_1(z_2),
        "logits_2": rbm.logits_2(z_1),
    }
    for draw in np.ndindex(*draws):
        for place, machine in machines.items():
            at_1, at_2 = z_1[(*draw, *place)], z_2[(*draw, *place)]
            row, column = twin.numbers(at_1), twin.numbers(at_2)
            expected = {
                "energy": machine.energies[row, column],
                "log_prob": np.log(machine.probs[row, column]),
                "free_energy_1": -special.logsumexp(-machine.energies[row]),
                "free_energy_2": -special.logsumexp(-machine.energies[:, column]),
                "logits_1": special.logit(machine.given_2[:, column] @ machine.states_1),
                "logits_2": special.logit(machine.given_1[row] @ machine.states_2),
            }
            for name, value in expected.items():
                assert found[name].shape[: z.ndim - 1] == z.shape[:-1], name
                np.testing.assert_allclose(found[name][(*draw, *place)], value, rtol=1e-9, atol=1e-12, err_msg=name)


@BATCHES
def test_one_event_under_a_batch_of_machines_is_a_loop_over_them(axes, rng):
    rbm, batch, machines = _batch(rng, axes)
    z = rng.integers(0, 2, size=[V + H]).astype(np.float64)
    row, column = twin.numbers(z[:V]), twin.numbers(z[V:])
    expected = np.array([np.log(machine.probs[row, column]) for machine in machines.values()]).reshape(batch)
    np.testing.assert_allclose(rbm.log_prob(z), expected, rtol=1e-10)


def test_log_partition_functions_of_a_batch_are_those_of_each(rng, run):
    rbm, batch, machines = _batch(rng, ((2, 1), (3,), (2, 3)))
    parameters = [tf.constant(rbm.parameters[name]) for name in ("bias_1", "bias_2", "coupling")]
    found = run(lambda *parameters: RestrictedBoltzmannMachine(*parameters).exact_log_partition(), *parameters)
    expected = np.array([machine.log_partition for machine in machines.values()]).reshape(batch)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("axes", [((3,), (), ()), ((3,), (3,), (3,))], ids=str)
def test_each_machine_of_a_batch_is_sampled_from_its_own_table(axes, rng):
    rbm, batch, machines = _batch(rng, axes)
    z = rbm.sample(50_000, seed=[0, 17]).numpy()
    assert z.shape == (50_000, *batch, V + H)
    for place, machine in machines.items():
        own = z[(slice(None), *place)]
        chosen = twin.numbers(own[:, :V]) * 2**H + twin.numbers(own[:, V:])
        twin.assert_frequencies_close(chosen, machine.probs, resolution=0.015)


# Conventions -------------------------------------------------------------------------------------------------


@BATCHES
def test_shapes_are_those_of_any_distribution(axes, rng):
    rbm, batch, _ = _batch(rng, axes)
    assert rbm.batch_shape == batch
    assert tuple(rbm.batch_shape_tensor().numpy()) == batch
    assert rbm.event_shape == [V + H]
    assert tuple(rbm.event_shape_tensor().numpy()) == (V + H,)
    assert rbm.num_units == (V, H)
    for sample_shape in ((), 5, [2, 5]):
        z = rbm.sample(sample_shape, seed=[0, 1])
        assert z.shape == (*np.atleast_1d(np.array(sample_shape, np.int32)), *batch, V + H)
        assert rbm.log_prob(z).shape == z.shape[:-1]
        assert set(np.unique(z)) <= {0.0, 1.0}


def test_samples_are_the_same_however_they_are_computed(rng, compiled):
    rbm = twin.random_machine(rng).rbm(tf.float32)
    draw, one, two = lambda seed: rbm.sample(40, seed=seed), tf.constant([3, 17]), tf.constant([3, 18])
    np.testing.assert_array_equal(compiled(draw, one), draw(one))
    assert not np.array_equal(draw(one), draw(two))


def test_the_number_of_machines_may_be_unknown_while_tracing(rng):
    signature = [tf.TensorSpec(shape, tf.float64) for shape in ([None, V], [None, H], [None, V, H], [None, V + H])]

    @tf.function(autograph=False, input_signature=signature)
    def log_prob(bias_1, bias_2, coupling, z):
        return RestrictedBoltzmannMachine(bias_1, bias_2, coupling).log_prob(z)

    for batch in (5, 2):
        values = [rng.normal(size=[batch, *shape]) for shape in ([V], [H], [V, H])]
        z = rng.integers(0, 2, size=[batch, V + H]).astype(np.float64)
        expected = RestrictedBoltzmannMachine(*values).log_prob(z)
        np.testing.assert_allclose(log_prob(*map(tf.constant, values), tf.constant(z)), expected, rtol=1e-12)
    assert log_prob.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_float32_agrees_with_float64_at_ordinary_and_hard_points(scale, rng):
    machine = twin.random_machine(rng, scale=scale)
    events, _ = machine.events
    single = machine.rbm(tf.float32).log_prob(events.astype(np.float32))
    assert single.dtype == tf.float32
    np.testing.assert_allclose(single, machine.rbm().log_prob(events), rtol=1e-4, atol=1e-4)


def _refused(message, bias_1, bias_2, coupling):
    with pytest.raises(ValueError, match=message):
        RestrictedBoltzmannMachine(bias_1, bias_2, coupling)


def test_bad_parameters_are_refused():
    _refused("both sides need at least one unit, found 0 and 2", np.zeros(0), np.zeros(2), np.zeros([0, 2]))
    _refused("both sides need at least one unit, found 2 and 0", np.zeros(2), np.zeros(0), np.zeros([2, 0]))
    _refused(r"must agree, found \(3,\), \(2,\), \(2, 3\)", np.zeros(3), np.zeros(2), np.zeros([2, 3]))
    _refused("must agree", np.float64(0.0), np.zeros(2), np.zeros([1, 2]))
    _refused("must agree", np.zeros(2), np.zeros(2), np.zeros(2))
    _refused("bias_1 holds 1 values", np.array([np.nan, 0.0]), np.zeros(1), np.zeros([2, 1]))
    _refused("bias_2 holds 1 values", np.zeros(2), np.array([np.inf]), np.zeros([2, 1]))
    _refused("coupling holds 2 values", np.zeros(2), np.zeros(1), np.array([[-np.inf], [np.nan]]))


def test_batches_that_do_not_agree_are_refused():
    with pytest.raises(ValueError, match="[Ii]ncompatible|broadcast"):
        RestrictedBoltzmannMachine(np.zeros([2, V]), np.zeros([3, H]), np.zeros([V, H]))


def test_what_cannot_be_enumerated_is_refused():
    rbm = RestrictedBoltzmannMachine(np.zeros(21), np.zeros(22), np.zeros([21, 22]))
    for method in (rbm.exact_log_partition, lambda: rbm.log_prob(np.zeros(43)), lambda: rbm.sample(seed=[0, 1])):
        with pytest.raises(ValueError, match="at most 20 units to be enumerated, found sides of 21 and 22"):
            method()


def test_events_of_another_size_are_refused(rng):
    rbm = twin.random_machine(rng).rbm()
    for method in (rbm.energy, rbm.log_prob, rbm.split):
        with pytest.raises(ValueError, match=r"an event has 4 \+ 3 units, found 6"):
            method(np.zeros(6))

import keras
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import tensorflow as tf

from tests.reference.monte_carlo import assert_mean_close
from tfstruct import random
from tfstruct.models.graph_vae.gates import EdgeGates

ADJACENCY = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0]], bool)
LOGITS = np.array([-1.2, 0.3, 2.0])

pytestmark = pytest.mark.usefixtures("float64")


def _gates(logits=LOGITS, adjacency=ADJACENCY, **kwargs):
    gates = EdgeGates(adjacency, trainable=True, name="gates", **kwargs)
    gates.build()
    gates.logits.assign(logits)
    return gates


def _samples(gates, temperature, num):
    """Relaxed gates of the three edges, [num, 3]."""
    keys = random.fold_in(random.key(17), tf.range(num))
    matrices = tf.vectorized_map(lambda key: gates.sample(key, temperature), keys).numpy()
    assert np.all(matrices[:, ~ADJACENCY] == 0.0)
    return matrices[:, ADJACENCY]


def _quadrature(function, logit, temperature):
    """E[function(c)] of one relaxed gate, integrated over the logistic noise."""

    def integrand(noise):
        density = scipy.special.expit(noise) * scipy.special.expit(-noise)
        return function(scipy.special.expit((logit + noise) / temperature)) * density

    return scipy.integrate.quad(integrand, -40.0, 40.0, points=[-logit], limit=400)[0]


def test_gates_start_at_one_half():
    gates = EdgeGates(ADJACENCY, trainable=True)
    gates.build()
    np.testing.assert_array_equal(gates.probabilities(), [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(gates.hard(), ADJACENCY.astype(float))


def test_probabilities_are_the_sigmoid_of_the_logits():
    np.testing.assert_allclose(_gates().probabilities(), scipy.special.expit(LOGITS), rtol=1e-14)


def test_matrix_puts_the_edges_at_child_and_parent():
    np.testing.assert_array_equal(
        _gates().matrix(tf.constant([2.0, 3.0, 5.0], tf.float64)), [[0, 0, 0], [2, 0, 0], [3, 5, 0]]
    )


def test_hard_gates_are_those_with_mean_at_least_one_half():
    np.testing.assert_array_equal(_gates([-1e-9, 0.0, 1e-9]).hard(), [[0, 0, 0], [0, 0, 0], [1, 1, 0]])


def test_relaxed_gates_are_the_sigmoid_of_logit_and_logistic_noise(run):
    key, temperature = random.key(17), 0.4
    unit = random.numpy_uniform(key, [3]).astype(np.float64)
    expected = scipy.special.expit((LOGITS + scipy.special.logit(unit)) / temperature)
    found = run(_gates().sample, tf.constant(key), tf.constant(temperature, tf.float64))
    np.testing.assert_allclose(found.numpy()[ADJACENCY], expected, rtol=1e-12)


# Three independent Gumbels in place of one logistic leave the unit interval; a lost temperature moves the mean of c.
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_relaxed_gates_have_the_distribution_of_the_binary_concrete(temperature):
    samples = _samples(_gates(), temperature, 60_000)
    assert np.all((samples >= 0) & (samples <= 1))
    assert_mean_close(samples > 0.5, scipy.special.expit(LOGITS), resolution=0.011)
    mean = [_quadrature(lambda c: c, logit, temperature) for logit in LOGITS]
    square = [_quadrature(np.square, logit, temperature) for logit in LOGITS]
    assert_mean_close(samples, mean, resolution=0.011)
    assert_mean_close(samples**2, square, resolution=0.011)
    assert_mean_close(np.prod(samples, axis=1), np.prod(mean), resolution=0.011)  # independent of each other


def test_relaxed_gates_approach_bernoulli_gates_at_low_temperature():
    samples = _samples(_gates(), 1e-4, 2000)
    assert np.mean((samples > 1e-3) & (samples < 1 - 1e-3)) < 0.01
    assert_mean_close(samples, scipy.special.expit(LOGITS), resolution=0.06)


def test_the_gradient_of_a_relaxed_gate_reaches_its_own_logit():
    gates, temperature = _gates(), tf.constant(0.4, tf.float64)
    with tf.GradientTape() as tape:
        relaxed = gates.sample(random.key(17), temperature)[2, 1]
    gradient = tape.gradient(relaxed, gates.logits).numpy()
    value = float(relaxed)
    np.testing.assert_allclose(gradient, [0.0, 0.0, value * (1 - value) / 0.4], rtol=1e-10)


def test_a_closed_gate_can_reopen():
    gates = _gates([-20.0, 0.0, 0.0])
    with tf.GradientTape() as tape:
        relaxed = gates.sample(random.key(17), 1.0)[1, 0]
    assert tape.gradient(relaxed, gates.logits).numpy()[0] > 0.0


def test_straight_through_gates_are_exactly_zero_or_one_with_the_relaxed_gradient():
    hard, soft = _gates(straight_through=True), _gates()
    for index in range(50):
        key = random.key(index)
        results = {}
        for gates in (hard, soft):
            with tf.GradientTape() as tape:
                value = gates.sample(key, 0.5)
                total = tf.reduce_sum(value * tf.constant([[0, 0, 0], [1.0, 0, 0], [2.0, 3.0, 0]], tf.float64))
            results[gates] = value.numpy(), tape.gradient(total, gates.logits).numpy()
        np.testing.assert_array_equal(results[hard][0], (results[soft][0] > 0.5).astype(float))
        np.testing.assert_allclose(results[hard][1], results[soft][1], rtol=1e-12)


def test_gates_that_are_not_learned_are_one_on_every_possible_edge():
    gates = EdgeGates(ADJACENCY, trainable=False)
    gates.build()
    assert gates.variables == []
    assert not gates.is_learned
    np.testing.assert_array_equal(gates.hard(), ADJACENCY.astype(float))
    np.testing.assert_array_equal(gates.sample(random.key(0), 0.5), ADJACENCY.astype(float))
    np.testing.assert_array_equal(gates.probabilities(), [1.0, 1.0, 1.0])


def test_a_graph_without_edges_has_nothing_to_learn():
    gates = EdgeGates(np.zeros([2, 2], bool), trainable=True)
    gates.build()
    assert gates.variables == []
    for matrix in (gates.hard(), gates.sample(random.key(0), 0.5)):
        np.testing.assert_array_equal(matrix, np.zeros([2, 2]))
        assert matrix.dtype == tf.float64


# A structure that is decided ----------------------------------------------------------------------------------------


def _hardened(logits, dtype, **kwargs):
    gates = EdgeGates(ADJACENCY, trainable=True, name="gates", dtype=dtype, **kwargs)
    gates.build()
    gates.logits.assign(gates.harden(np.asarray(logits, dtype)))
    return gates


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hardened_gates_are_exactly_open_or_closed(run, dtype):
    gates = _hardened([-1e-30, 1e-30, 25.0], dtype)
    np.testing.assert_array_equal(run(gates.probabilities), [0.0, 1.0, 1.0])
    np.testing.assert_array_equal(run(gates.hard), [[0, 0, 0], [0, 0, 0], [1, 1, 0]])


@pytest.mark.parametrize("logits", [LOGITS, [0.0, -0.0, 1e-7], [-1e-7, -30.0, 30.0], [1e4, -1e4, 0.0]])
def test_hardening_leaves_the_most_probable_gates_and_is_final(logits):
    before, gates = _gates(logits), _hardened(logits, "float64")
    np.testing.assert_array_equal(gates.hard(), before.hard())
    np.testing.assert_array_equal(gates.harden(gates.logits.numpy()), gates.logits.numpy())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_hardened_logits_keep_shape_and_type_and_are_finite_and_decided_in_half_precision(dtype):
    logits = np.array([[-0.5, 0.0], [7.0, -7.0]], dtype)
    before = logits.copy()
    found = EdgeGates.harden(logits)
    np.testing.assert_array_equal(logits, before)
    assert found.dtype == dtype
    assert np.isfinite(found.astype(np.float16)).all()
    np.testing.assert_array_equal(tf.sigmoid(found.astype(np.float16)), [[0, 1], [1, 0]])


@pytest.mark.parametrize("straight_through", [False, True])
def test_hardened_gates_have_exact_samples_and_no_gradient_whatever_the_noise_and_temperature(
    compiled, straight_through
):
    gates = _hardened([-0.1, 0.1, -3.0], "float32", straight_through=straight_through)
    keys = random.fold_in(random.key(17), tf.range(20_000))
    temperatures = tf.constant(np.resize([0.01, 0.135, 1.0, 10.0], len(keys)), tf.float32)

    def samples_and_gradient(keys, temperatures):
        with tf.GradientTape() as tape:
            logits = tf.convert_to_tensor(gates.logits)
            tape.watch(logits)
            with keras.StatelessScope(state_mapping=[(gates.logits, logits)]):
                samples = tf.vectorized_map(lambda pair: gates.sample(*pair), (keys, temperatures))
                total = 1e6 * tf.reduce_sum(samples) + tf.reduce_sum(gates.probabilities())
        return samples, tape.gradient(total, logits)

    samples, gradient = compiled(samples_and_gradient, keys, temperatures)
    expected = np.zeros([3, 3])
    expected[2, 0] = 1.0
    np.testing.assert_array_equal(samples, np.broadcast_to(expected, [len(keys), 3, 3]))
    np.testing.assert_array_equal(gradient, [0.0, 0.0, 0.0])

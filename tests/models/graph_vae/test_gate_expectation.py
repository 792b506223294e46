"""Three edges have eight gate states: the expected bound is a sum of eight, and its gradient is exact."""

import itertools

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tests.reference import small
from tests.reference.monte_carlo import assert_mean_close
from tfstruct import random
from tfstruct.inference.objectives import Draws

pytestmark = pytest.mark.usefixtures("float64")

LOGITS = np.array([-0.8, 0.3, 1.1])
STATES = np.array(list(itertools.product([0.0, 1.0], repeat=3)))
KEY = random.key(17)


@pytest.fixture
def problem():
    """A model with three learned edges, its bound at fixed noise as a function of gates, and its twin's values."""
    rng = np.random.default_rng(103)  # the gradients of the three edges are of one size
    system = small.build("learned", rng, scale=0.6, batch_norm=False, activation="tanh", encoder_activation="tanh")
    system.gates.logits.assign(LOGITS)
    x = tf.constant(small.images(rng, 2))
    noise = random.sample_normal(KEY, 2, 2, [3, 2]).numpy().astype(np.float64)

    def bound(gates):
        terms = system.terms(x, Draws(KEY, 2, options={"gates": gates}))
        return tf.reduce_mean(terms.log_likelihood + terms.log_prior - terms.log_posterior)

    def of_state(state):
        gates = np.zeros([3, 3])
        gates[[1, 2, 2], [0, 0, 1]] = state
        twin = small.twin(system, gates)
        terms = [twin.terms(x.numpy()[b], noise[k, b]) for k, b in np.ndindex(2, 2)]
        return np.mean([t.log_likelihood + t.node_log_prior.sum() - t.node_log_posterior.sum() for t in terms])

    return system, bound, np.array([of_state(state) for state in STATES])


def _expectation(values, logits):
    """The mean of the eight values under Bernoulli gates."""
    means = scipy.special.expit(logits)
    return float(np.prod(np.where(STATES == 1.0, means, 1.0 - means), axis=1) @ values)


def _relaxed(system, bound, temperature, num):
    """Bounds [num] at relaxed gates and their gradients [num, 3] with respect to the logits."""

    @tf.function(autograph=False, jit_compile=True)
    def estimates(keys):
        def one(key):
            with tf.GradientTape() as tape:
                value = bound(system.gates.sample(key, tf.constant(temperature, tf.float64)))
            return value, tape.gradient(value, system.gates.logits.value)

        return tf.vectorized_map(one, keys)

    return [part.numpy() for part in estimates(random.fold_in(KEY, 100 + tf.range(num)))]


def test_the_bound_of_relaxed_gates_averages_to_the_enumerated_one(problem):
    system, bound, values = problem
    spread = values.max() - values.min()
    assert spread > 0.3
    found, _ = _relaxed(system, bound, 0.005, 20_000)
    # Gates at 1/2 in place of their means, or one set for q and another for p, move the mean by a tenth of the spread.
    assert_mean_close(found, _expectation(values, LOGITS), resolution=0.02 * spread)


def test_hard_gates_give_the_bound_of_their_state(problem):
    system, bound, values = problem
    for state, value in zip(STATES, values, strict=True):
        system.gates.logits.assign(np.where(state == 1.0, 2.0, -2.0))
        assert float(bound(None)) == pytest.approx(value, rel=1e-10)
        assert float(bound(system.gates.matrix(tf.constant(state)))) == pytest.approx(value, rel=1e-10)


def test_the_gradient_of_relaxed_gates_averages_to_that_of_the_enumerated_expectation(problem):
    system, bound, values = problem
    step, expected = 1e-5, np.zeros(3)
    for edge in range(3):
        shift = step * np.eye(3)[edge]
        expected[edge] = (_expectation(values, LOGITS + shift) - _expectation(values, LOGITS - shift)) / (2 * step)
    _, gradients = _relaxed(system, bound, 0.05, 100_000)
    # The bias of the relaxation at this temperature is below the resolution, a fifth of the gradient of each edge.
    assert_mean_close(gradients, expected, resolution=0.2 * np.abs(expected))

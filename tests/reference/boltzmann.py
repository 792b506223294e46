"""Restricted Boltzmann machines by brute force: a slow NumPy twin in float64 that knows every state."""

import itertools
from collections.abc import Callable

import numpy as np
import scipy.stats
import tensorflow as tf
from scipy import special

from tfstruct import random
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine


def states(num_units: int) -> np.ndarray:
    """All binary vectors [2**n, n]; the first unit is the fastest."""
    return np.array([vector[::-1] for vector in itertools.product((0.0, 1.0), repeat=num_units)])


def numbers(vectors: np.ndarray) -> np.ndarray:
    """Places of binary vectors [..., n] in `states`."""
    vectors = np.asarray(vectors)
    return (vectors.astype(np.int64) << np.arange(vectors.shape[-1])).sum(axis=-1)


class Machine:
    """One machine, its joint table over [states of side 1, states of side 2], and what follows from the table."""

    def __init__(self, bias_1, bias_2, coupling):
        self.bias_1, self.bias_2, self.coupling = (
            np.asarray(value, np.float64) for value in (bias_1, bias_2, coupling)
        )
        self.states_1, self.states_2 = states(len(self.bias_1)), states(len(self.bias_2))
        self.energies = np.zeros([len(self.states_1), len(self.states_2)])
        for row, column in np.ndindex(self.energies.shape):
            self.energies[row, column] = self.energy(self.states_1[row], self.states_2[column])
        self.log_partition = special.logsumexp(-self.energies)
        self.probs = np.exp(-self.energies - self.log_partition)
        self.given_1 = self.probs / self.probs.sum(axis=1, keepdims=True)  # p(z_2 | z_1)
        self.given_2 = self.probs / self.probs.sum(axis=0, keepdims=True)  # p(z_1 | z_2)

    def energy(self, z_1, z_2):
        total = 0.0
        for i, left in enumerate(z_1):
            total -= self.bias_1[i] * left
            for j, right in enumerate(z_2):
                total -= left * self.coupling[i, j] * right
        return total - sum(bias * right for bias, right in zip(self.bias_2, z_2, strict=True))

    @property
    def parameters(self):
        return self.bias_1, self.bias_2, self.coupling

    @property
    def moments(self):
        """Expectations of z_1, z_2 and of their outer product: minus the gradient of the energy."""
        return (
            self.probs.sum(axis=1) @ self.states_1,
            self.probs.sum(axis=0) @ self.states_2,
            self.states_1.T @ self.probs @ self.states_2,
        )

    @property
    def events(self):
        """All states [2**(V + H), V + H], and their probabilities."""
        left = np.repeat(self.states_1, len(self.states_2), axis=0)
        return np.concatenate([left, np.tile(self.states_2, [len(self.states_1), 1])], axis=-1), self.probs.ravel()

    def transitions(self, num_sweeps):
        """From every state of side 1 to every joint state after sweeps of side 2, then side 1: [2**V, 2**V, 2**H]."""
        to_1 = self.given_1 @ self.given_2.T
        before = np.linalg.matrix_power(to_1, num_sweeps - 1)
        return np.einsum("ab,bd,cd->acd", before, self.given_1, self.given_2)

    def rbm(self, dtype=tf.float64, **kwargs):
        return RestrictedBoltzmannMachine(*(tf.constant(value, dtype) for value in self.parameters), **kwargs)


def random_machine(rng: np.random.Generator, num_1: int = 4, num_2: int = 3, scale: float = 1.0) -> Machine:
    """A machine whose units lean and interact."""
    return Machine(
        scale * rng.normal(size=num_1), scale * rng.normal(size=num_2), scale * rng.normal(size=[num_1, num_2])
    )


def stacked(machines: list[Machine], dtype: tf.DType = tf.float64) -> RestrictedBoltzmannMachine:
    """Several machines of one shape as a batch."""
    columns = zip(*(machine.parameters for machine in machines), strict=True)
    return RestrictedBoltzmannMachine(*(tf.constant(np.stack(column), dtype) for column in columns))


def repeated(machine: Machine, times: int, dtype: tf.DType = tf.float64) -> RestrictedBoltzmannMachine:
    """One machine as a batch of itself, for as many independent runs."""
    bias_1, bias_2, coupling = (tf.constant(value, dtype) for value in machine.parameters)
    return RestrictedBoltzmannMachine(tf.broadcast_to(bias_1, [times, len(bias_1)]), bias_2, coupling)


def assert_frequencies_close(found: np.ndarray, probs: np.ndarray, *, resolution: float) -> None:
    """Checks independent draws (places in the table) against their probabilities.

    Args:
        found: integers [n].
        probs: their probabilities.
        resolution: error of one probability that the check must be able to see at 5 standard errors.
    """
    probs, num = np.ravel(probs), len(found)
    counts = np.bincount(found, minlength=len(probs))
    assert len(counts) == len(probs)
    half_width = 5.0 * np.sqrt(probs * (1.0 - probs) / num) + 15.0 / num  # the last for rare states: Poisson tails
    assert half_width.max() <= resolution, f"too few draws to see the bug: {half_width.max()} > {resolution}"
    error = np.abs(counts / num - probs)
    assert np.all(error <= half_width), f"frequencies off by up to {np.max(error - half_width)} too much"
    common = num * probs >= 10.0
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(num * probs[common], num * probs[~common].sum())
    keep = expected > 5.0
    statistic = np.sum((observed - expected)[keep] ** 2 / expected[keep])
    assert scipy.stats.chi2.sf(statistic, max(keep.sum() - 1, 1)) > 1e-6


def assert_gradient_close(
    function: Callable,
    values: list,
    gradients: list,
    rng: np.random.Generator,
    *,
    step: float = 1e-6,
    rtol: float = 1e-6,
) -> None:
    """Checks gradients of a function of float64 arrays against central differences along a random direction of each."""
    for place, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
        move = rng.normal(size=np.shape(value))
        ends = []
        for side in (step, -step):
            moved = [value + side * move if index == place else other for index, other in enumerate(values)]
            ends.append(float(function(*(tf.constant(array, tf.float64) for array in moved))))
        numeric, analytic = (ends[0] - ends[1]) / (2.0 * step), float(np.sum(np.asarray(gradient) * move))
        assert abs(analytic) > 1e-4, f"a gradient too small to be checked: {place}"
        np.testing.assert_allclose(analytic, numeric, rtol=rtol, atol=1e-9)


def graph_size(function: Callable, *arguments) -> tuple[int, int]:
    """Number of operations of a function of tensors as a graph, nested ones included, and of loops among them."""
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph.as_graph_def()
    nodes = [*graph.node, *(node for nested in graph.library.function for node in nested.node_def)]
    return len(nodes), sum(node.op in ("While", "StatelessWhile") for node in nodes)


def assert_no_key_is_used_twice(monkeypatch, function: Callable, *, draws: int) -> None:
    """Calls a function eagerly, and checks that it draws so many times, each time with a key of its own."""
    keys, uniform = [], random.uniform

    def recording(key, *arguments):
        keys.append(np.asarray(key).tobytes())
        return uniform(key, *arguments)

    monkeypatch.setattr(random, "uniform", recording)
    function()
    assert len(keys) == draws
    assert len(set(keys)) == draws

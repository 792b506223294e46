"""SPFlow computes the same circuit: a comparison of others would be worth nothing."""

import numpy as np
import pytest
import tensorflow as tf

from tfstruct.benchmarks import circuits
from tfstruct.distributions.region_graph import poon_domingos, random_binary_trees

torch = pytest.importorskip("torch", reason="PyTorch is installed only where one wants to compare with it")
pytest.importorskip("spflow", reason="SPFlow is installed only where one wants to compare with it")


def test_the_same_densities_and_gradients():
    from tests.benchmarks import spflow_circuit

    graph = random_binary_trees(48, depth=3, repetitions=4, seed=1)
    circuit = circuits.make_circuit(graph, num_leaves=3, num_sums=2, seed=2)
    x = np.random.default_rng(0).integers(0, 2, [7, 48]).astype(np.float32)
    logits, weights = tf.Variable(circuit.leaf_logits), tf.Variable(circuit.log_weights)
    with tf.GradientTape() as tape:
        expected = circuits.log_prob(circuit, logits, weights, tf.constant(x))
        mean = tf.reduce_mean(expected)
    model = spflow_circuit.make_model(circuit)
    found = model.log_likelihood(torch.from_numpy(x)).ravel()
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5)
    found.mean().backward()
    theirs = model.leaf_modules[0].logits.grad.numpy()  # [D, leaves, trees]
    ours, gradients = np.zeros_like(theirs), tape.gradient(mean, logits).numpy()
    for repetition, regions in enumerate(spflow_circuit.trees(graph)):
        for place, gradient in enumerate(gradients):
            if graph.leaf_regions[place] in regions.values():
                ours[circuit.variables[place], :, repetition] = gradient.T
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-6)


def test_other_circuits_are_left_out():
    from tests.benchmarks import spflow_circuit

    circuit = circuits.make_circuit(poon_domingos((4, 4), 2), num_leaves=2, num_sums=2)
    assert spflow_circuit.make_runs(False)(circuit, np.zeros([2, 16])) is None

"""Circuits over given leaf densities against a recursion over regions and against all induced trees."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tests.reference import sum_product as twin
from tests.reference.boltzmann import assert_frequencies_close
from tfstruct import random
from tfstruct.distributions import sum_product_circuit
from tfstruct.distributions.region_graph import poon_domingos, random_binary_trees, single_region
from tfstruct.distributions.sum_product_circuit import CircuitLayout, SumProductCircuit

EVERY_GRAPH = pytest.mark.parametrize("name", twin.SMALL)
PRODUCTS = pytest.mark.parametrize("products", ["cross", "hadamard"])
SIZES = pytest.mark.parametrize(
    "sizes", [(2, 2, "cross"), (3, 1, "cross"), (1, 3, "cross"), (2, 2, "hadamard"), (4, 4, "hadamard")], ids=str
)


@pytest.fixture(params=["terms", "matrices"])
def way(request, monkeypatch):
    """Both ways to take the sums: term by term, and as matrix products whatever the number of weights."""
    if request.param == "matrices":
        monkeypatch.setattr(sum_product_circuit, "LARGEST_TABLE", 0)
    return request.param


def _both(graph, rng, num_leaves=2, num_sums=2, products="cross", scale=2.0):
    """A circuit with random weights and its twin."""
    layout = CircuitLayout(graph, num_leaves=num_leaves, num_sums=num_sums, products=products)
    logits = scale * rng.normal(size=layout.num_weights)
    reference = twin.Circuit(graph, logits, num_leaves, num_sums, products)
    return SumProductCircuit(layout, layout.normalize(tf.constant(logits))), reference


def _logits(layout, rng, dtype=tf.float64):
    return tf.constant(rng.normal(size=layout.num_weights), dtype)


# Upwards -----------------------------------------------------------------------------------------------------


def test_two_leaf_regions_of_two_leaves_by_hand():
    layout = CircuitLayout(twin.chain(2), num_leaves=2, num_sums=3)
    assert (layout.num_leaf_nodes, layout.num_nodes, layout.num_weights) == (4, 5, 4)
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    circuit = SumProductCircuit(layout, np.log(weights))
    a, b, c, d = leaves = np.array([0.5, 0.25, 2.0, 4.0])
    expected = np.log(0.1 * a * c + 0.2 * a * d + 0.3 * b * c + 0.4 * b * d)
    assert float(circuit.log_prob(np.log(leaves))) == pytest.approx(expected, abs=1e-14)


@EVERY_GRAPH
@SIZES
def test_a_small_circuit_is_a_recursion_over_regions(name, sizes, rng, way):
    circuit, reference = _both(twin.SMALL[name], rng, *sizes)
    leaves = 5.0 * rng.normal(size=[4, circuit.layout.num_leaf_nodes])
    expected = [reference.log_prob(row) for row in leaves]
    np.testing.assert_allclose(circuit.log_prob(leaves), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("graph", "num_leaves", "num_sums", "products"),
    [
        (poon_domingos((28, 28), 7), 2, 2, "cross"),
        (poon_domingos((5, 7, 2), (2, 3)), 3, 2, "cross"),
        (poon_domingos((5, 7, 2), (2, 3)), 3, 3, "hadamard"),
        (random_binary_trees(21, depth=3, repetitions=3, seed=2), 2, 3, "cross"),
        (random_binary_trees(21, depth=3, repetitions=3, seed=2), 24, 24, "hadamard"),
        (twin.chain(30), 2, 2, "cross"),
    ],
    ids=["28x28", "irregular", "irregular hadamard", "trees", "trees hadamard", "chain"],
)
def test_a_large_circuit_is_a_recursion_over_regions(graph, num_leaves, num_sums, products, rng):
    circuit, reference = _both(graph, rng, num_leaves, num_sums, products)
    counts = graph.counts(num_leaves=num_leaves, num_sums=num_sums, products=products)
    assert circuit.layout.num_weights == counts.sum_weights
    leaves = 20.0 * rng.normal(size=[2, circuit.layout.num_leaf_nodes])
    expected = [reference.log_prob(row) for row in leaves]
    np.testing.assert_allclose(circuit.log_prob(leaves), expected, rtol=1e-10)


@EVERY_GRAPH
@PRODUCTS
def test_a_circuit_is_the_sum_over_all_induced_trees(name, products, rng, way):
    circuit, reference = _both(twin.SMALL[name], rng, products=products)
    leaves = rng.normal(size=[3, circuit.layout.num_leaf_nodes])
    expected = special.logsumexp(reference.tree_values(leaves), axis=1)
    np.testing.assert_allclose(circuit.log_prob(leaves), expected, rtol=1e-12)
    assert special.logsumexp(reference.trees()[0]) == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(circuit.log_prob(np.zeros_like(leaves)), 0.0, atol=1e-12)


def test_a_single_leaf_needs_no_weights():
    circuit = SumProductCircuit(CircuitLayout(single_region(5), num_leaves=1, num_sums=2), np.zeros(0))
    leaves = np.array([[-3.0], [2.0]])
    np.testing.assert_array_equal(circuit.log_prob(leaves), leaves[:, 0])
    np.testing.assert_array_equal(circuit.leaf_posterior(leaves), [[1.0], [1.0]])
    np.testing.assert_array_equal(circuit.sample_tree(random.key(1), leaves), [[True], [True]])
    np.testing.assert_array_equal(circuit.most_probable_tree(leaves)[0], leaves[:, 0])


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_leading_axes_are_kept_whatever_they_are(shape, rng):
    circuit, reference = _both(twin.SMALL["trees"], rng)
    leaves = rng.normal(size=[*shape, circuit.layout.num_leaf_nodes])
    found = circuit.log_prob(leaves)
    assert found.shape == shape
    assert circuit.leaf_posterior(leaves).shape == leaves.shape
    assert circuit.sample_tree(random.key(1), leaves).shape == leaves.shape
    value, tree = circuit.most_probable_tree(leaves)
    assert (value.shape, tree.shape) == (shape, leaves.shape)
    for place in np.ndindex(*shape):
        assert float(found[place]) == pytest.approx(reference.log_prob(leaves[place]), rel=1e-12)


@EVERY_GRAPH
def test_weights_of_every_sum_are_a_softmax_of_its_own(name, rng):
    graph = twin.SMALL[name]
    layout = CircuitLayout(graph, num_leaves=2, num_sums=2)
    logits = 50.0 * rng.normal(size=layout.num_weights)
    parts = twin.split_weights(graph, logits, 2, 2)
    expected = np.concatenate(
        [(part - special.logsumexp(part, axis=1, keepdims=True)).ravel() for part in parts.values()]
    )
    np.testing.assert_allclose(layout.normalize(tf.constant(logits)), expected, rtol=1e-12, atol=1e-12)


@PRODUCTS
def test_two_regions_of_two_leaves_with_either_kind_of_products_by_hand(products):
    layout = CircuitLayout(twin.chain(2), num_leaves=2, num_sums=2, products=products)
    a, b, c, d = leaves = np.array([0.5, 0.25, 2.0, 4.0])
    values = np.array([a * c, b * d] if products == "hadamard" else [a * c, a * d, b * c, b * d])
    weights = np.arange(1.0, len(values) + 1) / np.arange(1, len(values) + 1).sum()
    circuit = SumProductCircuit(layout, np.log(weights))
    assert float(circuit.log_prob(np.log(leaves))) == pytest.approx(np.log(weights @ values), abs=1e-14)


def test_hadamard_products_need_as_many_leaves_as_sums():
    with pytest.raises(ValueError, match="products=hadamard needs num_leaves equal to num_sums, found 2 and 3"):
        CircuitLayout(twin.chain(3), num_leaves=2, num_sums=3, products="hadamard")
    with pytest.raises(ValueError, match="products must be one of cross, hadamard, found 'kronecker'"):
        CircuitLayout(twin.chain(3), num_leaves=2, num_sums=2, products="kronecker")


def test_sums_as_matrix_products_hold_in_float32_where_leaves_are_hundreds_of_nats_apart(rng):
    graph = twin.SMALL["n_ary"]  # whose levels are padded
    circuit, reference = _both(graph, rng, 24, 24, "hadamard", scale=1.0)
    leaves = -300.0 + 60.0 * rng.normal(size=[4, circuit.layout.num_leaf_nodes])
    single = SumProductCircuit(circuit.layout, tf.cast(circuit.log_weights, tf.float32))
    expected = [reference.log_prob(row) for row in leaves]
    np.testing.assert_allclose(single.log_prob(leaves.astype(np.float32)), expected, rtol=1e-6)


# Derivatives -------------------------------------------------------------------------------------------------


@EVERY_GRAPH
@PRODUCTS
def test_the_leaf_posterior_is_that_of_all_trees_and_sums_to_one_for_every_variable(name, products, rng, way):
    circuit, reference = _both(twin.SMALL[name], rng, products=products)
    leaves = 3.0 * rng.normal(size=[3, circuit.layout.num_leaf_nodes])
    found = circuit.leaf_posterior(leaves)
    members = reference.trees()[1]
    np.testing.assert_allclose(found, special.softmax(reference.tree_values(leaves), axis=1) @ members, rtol=1e-10)
    for variable in range(8):
        over = [variable in reference.graph.regions[region] for region in reference.leaf_regions for _ in range(2)]
        np.testing.assert_allclose(found.numpy()[:, over].sum(axis=1), 1.0, rtol=1e-12)


@EVERY_GRAPH
def test_gradients_are_finite_differences(name, rng, way):
    layout = CircuitLayout(twin.SMALL[name], num_leaves=2, num_sums=2)
    values = _logits(layout, rng), tf.constant(rng.normal(size=[3, layout.num_leaf_nodes]))
    directions = [rng.normal(size=value.shape) for value in values]

    def total(logits, leaves):
        return tf.reduce_sum(tf.sin(SumProductCircuit(layout, layout.normalize(logits)).log_prob(leaves)))

    with tf.GradientTape() as tape:
        tape.watch(values)
        result = total(*values)
    gradients = tape.gradient(result, values)
    for place, (gradient, direction) in enumerate(zip(gradients, directions, strict=True)):
        sides = []
        for step in (1e-6, -1e-6):
            moved = list(values)
            moved[place] = values[place] + step * direction
            sides.append(float(total(*moved)))
        assert np.sum(gradient * direction) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-6, abs=1e-9)


def test_the_leaf_posterior_has_no_gradient(rng):
    circuit, _ = _both(twin.SMALL["grid"], rng)
    leaves = tf.constant(rng.normal(size=[3, circuit.layout.num_leaf_nodes]))
    with tf.GradientTape() as tape:
        tape.watch(leaves)
        found = circuit.leaf_posterior(leaves)
    assert tape.gradient(found, leaves) is None


@EVERY_GRAPH
def test_impossible_evidence_and_zero_weights_give_finite_gradients(name, rng, way):
    graph = twin.SMALL[name]
    layout = CircuitLayout(graph, num_leaves=2, num_sums=2)
    logits = rng.normal(size=layout.num_weights)
    if graph.partitions:  # else the two leaves are all there is
        for part in twin.split_weights(graph, np.arange(layout.num_weights), 2, 2).values():
            logits[part[:, 1].astype(int)] = -np.inf
    leaves = rng.normal(size=[4, layout.num_leaf_nodes])
    leaves[1, ::2], leaves[2] = -np.inf, -np.inf
    leaves[3, 0] = -np.inf
    expected = [twin.Circuit(graph, logits).log_prob(row) for row in leaves]
    assert np.isneginf(expected[2])
    values = tf.constant(logits), tf.constant(leaves)
    with tf.GradientTape() as tape:
        tape.watch(values)
        circuit = SumProductCircuit(layout, layout.normalize(values[0]))
        log_prob = circuit.log_prob(values[1])
    np.testing.assert_allclose(log_prob, expected, rtol=1e-12)
    to_logits, to_leaves = tape.gradient(log_prob, values)
    assert np.all(np.isfinite(to_logits))
    assert np.all(np.isfinite(to_leaves))
    np.testing.assert_array_equal(to_leaves[2], 0.0)
    np.testing.assert_array_equal(to_logits.numpy()[np.isneginf(logits)], 0.0)
    posterior = circuit.leaf_posterior(values[1]).numpy()
    np.testing.assert_array_equal(posterior[np.isneginf(leaves)], 0.0)
    np.testing.assert_array_equal(posterior[2], 0.0)
    drawn = circuit.sample_tree(random.key(3), values[1]).numpy()
    possible = np.isfinite(expected)
    assert not np.any(drawn[possible] & np.isneginf(leaves[possible]))


def test_hundreds_of_levels_keep_value_and_gradient(rng):
    depth = 300
    layout = CircuitLayout(twin.chain(depth + 1), num_leaves=2, num_sums=2)
    assert len(layout.levels) == depth
    logits, leaves = rng.normal(size=layout.num_weights), -50.0 + rng.normal(size=[2, layout.num_leaf_nodes])
    # From the last variable up: each level mixes the four products of a variable's leaves and the level below.
    of_variable, below = leaves.reshape(2, depth + 1, 2), leaves.reshape(2, depth + 1, 2)[:, depth]
    weights = twin.split_weights_of_chain(logits, depth)
    for variable in reversed(range(depth)):
        products = (of_variable[:, variable, :, np.newaxis] + below[:, np.newaxis]).reshape(2, 1, 4)
        below = special.logsumexp(products + weights[variable], axis=2)
    values = tf.constant(logits), tf.constant(leaves)
    with tf.GradientTape() as tape:
        tape.watch(values)
        log_prob = SumProductCircuit(layout, layout.normalize(values[0])).log_prob(values[1])
    np.testing.assert_allclose(log_prob, below[:, 0], rtol=1e-10)
    to_logits, to_leaves = tape.gradient(log_prob, values)
    assert np.all(np.isfinite(to_logits))
    assert np.any(to_logits != 0.0)
    np.testing.assert_allclose(to_leaves.numpy().reshape(2, depth + 1, 2).sum(axis=2), 1.0, rtol=1e-9)


# Downwards ---------------------------------------------------------------------------------------------------


def _tree_places(drawn, members):
    """Places of drawn leaf sets [N, L] among the different ones of all trees, and where each tree is among them."""
    sets, place_of_tree = np.unique(members, axis=0, return_inverse=True)
    places = {row.tobytes(): place for place, row in enumerate(sets)}
    return np.array([places[row.tobytes()] for row in np.asarray(drawn)]), np.ravel(place_of_tree)


@EVERY_GRAPH
@pytest.mark.parametrize("keys", ["one", "per_row"])
@PRODUCTS
def test_trees_are_drawn_with_the_probabilities_they_have_given_the_evidence(name, keys, products, rng):
    circuit, reference = _both(twin.SMALL[name], rng, products=products, scale=1.0)
    evidence, num = rng.normal(size=circuit.layout.num_leaf_nodes), 40_000
    key = random.key(17) if keys == "one" else random.row_keys(tf.range(num, dtype=tf.int64))
    drawn = circuit.sample_tree(key, tf.constant(np.tile(evidence, [num, 1]), tf.float32))
    assert drawn.dtype == tf.bool
    found, place_of_tree = _tree_places(drawn, reference.trees()[1])
    of_trees = special.softmax(reference.tree_values(evidence[np.newaxis])[0])
    # Catches a sum that is drawn from its weights alone, or two regions that share a uniform number.
    assert_frequencies_close(found, np.bincount(place_of_tree, of_trees), resolution=0.02)


@EVERY_GRAPH
def test_every_variable_is_in_exactly_one_leaf_of_a_tree(name, rng):
    circuit, reference = _both(twin.SMALL[name], rng)
    leaves = rng.normal(size=[200, circuit.layout.num_leaf_nodes])
    for tree in (circuit.sample_tree(random.key(2), leaves), circuit.most_probable_tree(leaves)[1]):
        for variable in range(8):
            over = [variable in reference.graph.regions[region] for region in reference.leaf_regions for _ in range(2)]
            np.testing.assert_array_equal(tree.numpy()[:, over].sum(axis=1), 1)


def test_the_tree_of_a_row_with_a_key_of_its_own_does_not_depend_on_the_batch(rng):
    circuit, _ = _both(twin.SMALL["n_ary"], rng)
    evidence, keys = rng.normal(size=[6, circuit.layout.num_leaf_nodes]), random.row_keys(tf.range(6, dtype=tf.int64))
    whole = circuit.sample_tree(keys, evidence).numpy()
    np.testing.assert_array_equal(circuit.sample_tree(tf.gather(keys, [4, 1]), evidence[[4, 1]]), whole[[4, 1]])
    same = circuit.sample_tree(keys, np.tile(evidence[:1], [6, 1])).numpy()
    assert len(np.unique(same, axis=0)) > 1


@EVERY_GRAPH
@PRODUCTS
def test_the_most_probable_tree_is_that_of_all_trees(name, products, rng):
    circuit, reference = _both(twin.SMALL[name], rng, products=products)
    leaves = 2.0 * rng.normal(size=[50, circuit.layout.num_leaf_nodes])
    value, tree = circuit.most_probable_tree(leaves)
    values = reference.tree_values(leaves)
    np.testing.assert_allclose(value, values.max(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(tree, reference.trees()[1][values.argmax(axis=1)])


# Ways to run it ----------------------------------------------------------------------------------------------


def test_everything_is_the_same_in_graphs_and_under_xla(compiled, rng):
    layout = CircuitLayout(twin.SMALL["n_ary"], num_leaves=2, num_sums=2)
    arguments = _logits(layout, rng), tf.constant(rng.normal(size=[5, layout.num_leaf_nodes]))

    def everything(logits, leaves):
        circuit = SumProductCircuit(layout, layout.normalize(logits))
        keys = random.row_keys(tf.range(5, dtype=tf.int64))
        drawn = circuit.sample_tree(keys, leaves)
        return circuit.log_prob(leaves), circuit.leaf_posterior(leaves), drawn, *circuit.most_probable_tree(leaves)

    for found, expected in zip(compiled(everything, *arguments), everything(*arguments), strict=True):
        if expected.dtype == tf.bool:
            np.testing.assert_array_equal(found, expected)
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_number_of_rows_may_be_unknown_while_tracing(rng):
    circuit, _ = _both(twin.SMALL["n_ary"], rng)
    spec = tf.TensorSpec([None, circuit.layout.num_leaf_nodes], tf.float64)

    @tf.function(autograph=False, input_signature=[spec])
    def both(leaves):
        return circuit.log_prob(leaves), circuit.sample_tree(random.key(1), leaves)

    for num in (3, 5):
        leaves = tf.constant(rng.normal(size=[num, circuit.layout.num_leaf_nodes]))
        log_prob, tree = both(leaves)
        np.testing.assert_allclose(log_prob, circuit.log_prob(leaves), rtol=1e-12)
        assert tree.shape == leaves.shape


def test_replicas_are_mapped_over(rng):
    layout = CircuitLayout(twin.SMALL["grid"], num_leaves=2, num_sums=2)
    logits = tf.constant(rng.normal(size=[3, layout.num_weights]))
    leaves, keys = (
        tf.constant(rng.normal(size=[3, 4, layout.num_leaf_nodes])),
        tf.constant(np.stack([random.key(seed) for seed in range(3)])),
    )

    def replica(arguments):
        logits, leaves, key = arguments
        with tf.GradientTape() as tape:
            tape.watch(logits)
            circuit = SumProductCircuit(layout, layout.normalize(logits))
            log_prob = circuit.log_prob(leaves)
        return (
            log_prob,
            tape.gradient(log_prob, logits),
            circuit.leaf_posterior(leaves),
            circuit.sample_tree(key, leaves),
        )

    mapped = tf.vectorized_map(replica, (logits, leaves, keys), fallback_to_while_loop=False)
    for place in range(3):
        for found, expected in zip(mapped, replica((logits[place], leaves[place], keys[place])), strict=True):
            np.testing.assert_allclose(tf.cast(found[place], tf.float64), tf.cast(expected, tf.float64), rtol=1e-12)


def test_float32_agrees_with_float64(rng):
    layout = CircuitLayout(poon_domingos((28, 28), 7), num_leaves=2, num_sums=2)
    logits, leaves = rng.normal(size=layout.num_weights), 30.0 * rng.normal(size=[5, layout.num_leaf_nodes])
    found = {}
    for dtype in (tf.float32, tf.float64):
        log_weights = layout.normalize(tf.constant(logits, dtype))
        found[dtype] = SumProductCircuit(layout, log_weights).log_prob(tf.constant(leaves, dtype))
        assert found[dtype].dtype == dtype
    np.testing.assert_allclose(found[tf.float32], found[tf.float64], rtol=1e-5)


# Refusals ----------------------------------------------------------------------------------------------------


def test_wrong_numbers_are_refused_by_name():
    graph = twin.SMALL["grid"]
    for num_leaves, num_sums in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match=f"num_leaves and num_sums .* found {num_leaves} and {num_sums}"):
            CircuitLayout(graph, num_leaves=num_leaves, num_sums=num_sums)
    layout = CircuitLayout(graph, num_leaves=2, num_sums=2)
    with pytest.raises(ValueError, match=rf"log_weights must have shape \[{layout.num_weights}\], found \(3,\)"):
        SumProductCircuit(layout, np.zeros(3))
    circuit = SumProductCircuit(layout, layout.normalize(tf.zeros([layout.num_weights])))
    for method in (circuit.log_prob, circuit.most_probable_tree, lambda x: circuit.sample_tree(random.key(0), x)):
        with pytest.raises(ValueError, match=r"the circuit has 8 leaves, found values of shape \(2, 7\)"):
            method(np.zeros([2, 7], np.float32))

"""Sum-product networks with given leaves against the table of all states, and against a plain mixture."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special

from tests.reference import sum_product as twin
from tests.reference.boltzmann import assert_frequencies_close, numbers, states
from tests.reference.monte_carlo import assert_mean_close
from tfstruct.distributions.region_graph import RegionGraph, single_region
from tfstruct.distributions.sum_product_network import EXACTNESS, SumProductNetwork
from tfstruct.layers.sum_product import SumProduct

tfd = tfp.distributions

EVERY_GRAPH = pytest.mark.parametrize("name", twin.SMALL)
EVERY_PRODUCT = pytest.mark.parametrize("products", ["cross", "hadamard"])
STATES = states(8)


class Small:
    """A network of Bernoulli leaves over eight variables, its twin and its table [2**8]."""

    def __init__(self, name, rng, dtype=tf.float64, products="cross"):
        self.graph = twin.SMALL[name]
        shape = len(self.graph.leaf_regions), 2, max(len(self.graph.regions[r]) for r in self.graph.leaf_regions)
        self.probs = rng.uniform(0.05, 0.95, size=shape)
        num_weights = self.graph.counts(num_leaves=2, num_sums=2, products=products).sum_weights
        self.logits = rng.normal(size=num_weights)
        self.twin = twin.Circuit(self.graph, self.logits, products=products)
        # Leaves beyond the size of a region are nobody's: their values must not be read.
        sizes = np.array([len(self.graph.regions[region]) for region in self.graph.leaf_regions])
        given = np.where(np.arange(shape[2]) < sizes[:, np.newaxis, np.newaxis], self.probs, 0.999)
        leaves = tfd.Bernoulli(probs=tf.constant(given), dtype=dtype)
        self.network = SumProductNetwork(self.graph, leaves, tf.constant(self.logits), num_sums=2, products=products)
        leaf_values, _ = self.leaves(STATES, np.ones([256, 8], bool))
        self.table = np.exp([self.twin.log_prob(row) for row in leaf_values])

    def leaves(self, x, observed):
        return twin.leaf_log_probs(self.graph, self.probs, x, observed)

    def given(self, combine):
        """The table, its missing variables combined, for every mask and every state: [256 masks, 256 states]."""
        cube = self.table.reshape([2] * 8, order="F")  # the first variable is the fastest
        masks = [
            np.broadcast_to(combine(cube, axis=tuple(np.flatnonzero(mask == 0)), keepdims=True), cube.shape)
            for mask in STATES
        ]
        return np.stack([mask.ravel(order="F") for mask in masks])


MASKS, ALL = STATES[:, np.newaxis].astype(bool), np.broadcast_to(STATES, [256, 256, 8])

# Densities ---------------------------------------------------------------------------------------------------


@EVERY_GRAPH
@EVERY_PRODUCT
def test_probabilities_of_all_states_are_the_twins_and_sum_to_one(name, products, rng):
    small = Small(name, rng, products=products)
    log_prob = small.network.log_prob(STATES)
    np.testing.assert_allclose(log_prob, np.log(small.table), rtol=1e-10)
    assert special.logsumexp(log_prob) == pytest.approx(0.0, abs=1e-12)


@EVERY_GRAPH
@EVERY_PRODUCT
def test_the_marginal_of_every_mask_is_the_sum_over_what_is_missing(name, products, rng):
    small = Small(name, rng, products=products)
    hidden = np.where(MASKS, ALL, np.nan)
    found = small.network.marginal_log_prob(hidden, MASKS)
    np.testing.assert_allclose(np.exp(found), small.given(np.sum), rtol=1e-10)
    np.testing.assert_allclose(found[0], 0.0, atol=1e-12)


def test_conditionals_are_ratios_of_sums_over_the_table(rng):
    small = Small("n_ary", rng)
    marginals = small.given(np.sum)
    query, given = rng.integers(0, 2, size=[2, 40, 8]).astype(bool)
    found = small.network.conditional_log_prob(ALL[:40], query[:, np.newaxis], given[:, np.newaxis])
    expected = marginals[numbers(query | given)] / marginals[numbers(given)]
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-10)
    chain = small.network.marginal_log_prob(STATES, given[0])
    chain += small.network.conditional_log_prob(STATES, ~given[0], given[0])
    np.testing.assert_allclose(chain, np.log(small.table), rtol=1e-10)


def test_one_region_of_gaussians_is_a_mixture_with_its_gradients(rng):
    values = [tf.constant(rng.normal(size=shape)) for shape in ([4], [1, 4, 3], [1, 4, 3], [7, 3])]

    def network(logits, loc, log_scale, x):
        leaves = tfd.Normal(loc, tf.exp(log_scale))
        return SumProductNetwork(single_region(3), leaves, logits).log_prob(x)

    def mixture(logits, loc, log_scale, x):
        parts = tfd.Independent(tfd.Normal(loc[0], tf.exp(log_scale[0])), 1)
        return tfd.MixtureSameFamily(tfd.Categorical(logits=logits), parts).log_prob(x)

    results = []
    for function in (network, mixture):
        with tf.GradientTape() as tape:
            tape.watch(values)
            log_prob = function(*values)
        results.append([log_prob, *tape.gradient(log_prob, values)])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@EVERY_GRAPH
def test_missing_values_that_are_not_numbers_are_harmless(name, rng):
    small = Small(name, rng)
    x, observed = STATES[rng.integers(0, 256, size=20)], rng.integers(0, 2, size=[20, 8]).astype(bool)
    hidden = tf.constant(np.where(observed, x, np.nan))
    parameters = [tf.constant(small.logits), tf.constant(special.logit(small.probs))]

    def marginal(x, logits, leaf_logits):
        leaves = tfd.Bernoulli(logits=leaf_logits, dtype=tf.float64)
        return SumProductNetwork(small.graph, leaves, logits, num_sums=2).marginal_log_prob(x, observed)

    gradients = []
    for given in (hidden, tf.constant(x)):
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            log_prob = marginal(given, *parameters)
        gradients.append([log_prob, *tape.gradient(log_prob, parameters)])
    for found, expected in zip(*gradients, strict=True):
        assert np.all(np.isfinite(found))
        np.testing.assert_array_equal(found, expected)
    for given in (hidden, x):
        drawn = small.network.conditional_sample(given, observed, seed=[0, 1])
        np.testing.assert_array_equal(drawn, small.network.conditional_sample(x, observed, seed=[0, 1]))
        np.testing.assert_array_equal(drawn.numpy()[observed], x[observed])
        assert np.all(np.isfinite(small.network.most_probable_explanation(given, observed).x))


# A leaf's support must not be what stands in for a missing value, however far from 0 it is.
def test_missing_values_need_not_lie_in_the_support():
    leaves = tfd.Gamma(tf.constant([[[2.0, 3.0], [4.0, 5.0]]], tf.float64), tf.ones([], tf.float64))
    network = SumProductNetwork(single_region(2), leaves, tf.zeros([2], tf.float64))
    x = tf.constant([-1.0, 2.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(x)
        log_prob = network.marginal_log_prob(x, [False, True])
    expected = np.log(0.5 * tfd.Gamma(3.0, 1.0).prob(2.0) + 0.5 * tfd.Gamma(5.0, 1.0).prob(2.0))
    assert float(log_prob) == pytest.approx(expected, rel=1e-6)
    assert float(tape.gradient(log_prob, x)[0]) == 0.0


# States ------------------------------------------------------------------------------------------------------


@EVERY_GRAPH
@pytest.mark.parametrize("dtype", [tf.float64, tf.int32])
def test_samples_have_the_frequencies_of_the_table(name, dtype, rng):
    small = Small(name, rng, dtype)
    x = small.network.sample(60_000, seed=[0, 17])
    assert x.dtype == dtype
    # Catches a leaf's value that stands at another variable, and one that is drawn before its tree.
    assert_frequencies_close(numbers(x), small.table, resolution=0.01)


@EVERY_GRAPH
@pytest.mark.parametrize("observed", [[1, 0, 0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 1, 0, 1]], ids=str)
def test_completions_have_the_frequencies_of_the_table_given_what_is_observed(name, observed, rng):
    small, observed = Small(name, rng), np.array(observed, bool)
    evidence = rng.integers(0, 2, size=8)
    x = small.network.conditional_sample(np.tile(evidence.astype(float), [40_000, 1]), observed, seed=[0, 17]).numpy()
    np.testing.assert_array_equal(x[:, observed], np.tile(evidence[observed], [len(x), 1]))
    agrees = np.all(STATES[:, observed] == evidence[observed], axis=1)
    expected = np.where(agrees, small.table, 0.0)
    assert_frequencies_close(numbers(x), expected / expected.sum(), resolution=0.02)


def test_rows_of_evidence_are_completed_each_by_its_own(rng):
    small = Small("trees", rng)
    x, observed = rng.integers(0, 2, size=[2, 3, 8]).astype(float), rng.integers(0, 2, size=[2, 3, 8]).astype(bool)
    times = 4_000
    drawn = small.network.conditional_sample(np.tile(x, [times, 1, 1]), np.tile(observed, [times, 1, 1]), seed=[0, 5])
    drawn = drawn.numpy().reshape(times, 2, 3, 8)
    for place in np.ndindex(2, 3):
        agrees = np.all(STATES[:, observed[place]] == x[place][observed[place]], axis=1)
        probs = small.table * agrees / np.sum(small.table * agrees)
        assert_mean_close(drawn[(slice(None), *place)], probs @ STATES, resolution=0.05)


def test_the_same_seed_gives_the_same_sample_and_another_another(rng):
    network = Small("grid", rng).network
    one, same, other = (network.sample([2, 30], seed=[0, seed]) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.shape == (2, 30, 8)
    assert network.sample(seed=[0, 1]).shape == (8,)


@EVERY_GRAPH
@EVERY_PRODUCT
def test_the_explanation_is_the_best_pair_of_tree_and_state_and_a_bound_for_every_mask(name, products, rng):
    small = Small(name, rng, products=products)
    # Every mask with 32 of the states.
    x, masks = ALL[:, ::8].reshape(-1, 8), np.broadcast_to(MASKS, [256, 32, 8]).reshape(-1, 8)
    found = small.network.most_probable_explanation(np.where(masks, x, np.nan), masks)
    best = np.log(small.given(np.max)[:, ::8].ravel())
    np.testing.assert_array_equal(found.x.numpy()[masks], x[masks])
    np.testing.assert_allclose(found.log_prob, np.log(small.table)[numbers(found.x)], rtol=1e-10)
    assert np.all(found.log_prob <= best + 1e-12)
    assert np.all(best <= found.upper_bound + 1e-12)
    assert np.all(found.tree_log_prob <= found.log_prob + 1e-12)
    _, greatest = small.leaves(x, masks)
    np.testing.assert_allclose(found.tree_log_prob, small.twin.tree_values(greatest).max(axis=1), rtol=1e-10)
    np.testing.assert_allclose(
        found.upper_bound, special.logsumexp(small.twin.tree_values(greatest), axis=1), rtol=1e-10
    )
    # The state is that of the best tree: the tree's density there is the greatest one.
    at_state, _ = small.leaves(found.x.numpy(), np.ones_like(masks))
    np.testing.assert_allclose(found.tree_log_prob, small.twin.tree_values(at_state).max(axis=1), rtol=1e-10)
    np.testing.assert_allclose(found.log_prob[-32:], found.upper_bound[-32:], rtol=1e-12)


def test_the_explanation_of_a_deterministic_network_is_the_maximum(rng):
    graph = RegionGraph(4, [(0,), (1, 2, 3), range(4)], [(2, (0, 1))])
    probs = rng.uniform(0.1, 0.9, size=[2, 2, 3])
    probs[0, :, 0] = 0.0, 1.0  # the first variable says which leaf the others have
    leaves = tfd.Bernoulli(probs=tf.constant(probs), dtype=tf.float64)
    network = SumProductNetwork(graph, leaves, tf.constant([0.3, -np.inf, -np.inf, 0.0], tf.float64))
    table = np.exp(network.log_prob(states(4)))
    assert table.sum() == pytest.approx(1.0, abs=1e-12)
    x, masks = np.tile(states(4), [16, 1]), np.repeat(states(4), 16, axis=0).astype(bool)
    found = network.most_probable_explanation(x, masks)
    best = [
        np.log(table[np.all(states(4)[:, mask] == row[mask], axis=1)].max()) for row, mask in zip(x, masks, strict=True)
    ]
    np.testing.assert_allclose(found.log_prob, best, rtol=1e-12)
    np.testing.assert_allclose(found.tree_log_prob, best, rtol=1e-12)
    # The bound adds the two trees up, unless the first variable tells which it is.
    np.testing.assert_allclose(found.upper_bound[masks[:, 0]], np.array(best)[masks[:, 0]], rtol=1e-12)
    assert np.all(found.upper_bound[~masks[:, 0]] > np.array(best)[~masks[:, 0]])


def test_every_query_says_how_exact_it_is():
    assert set(EXACTNESS.values()) == {"exact", "bound"}
    assert [query for query, kind in EXACTNESS.items() if kind == "bound"] == ["most_probable_explanation"]
    assert all(callable(getattr(SumProductNetwork, query)) for query in EXACTNESS)


# Other leaves ------------------------------------------------------------------------------------------------


def test_categorical_leaves_sum_to_one_and_are_sampled_from_their_table(rng):
    graph = RegionGraph(3, [(0, 2), (1,), range(3)], [(2, (0, 1))])
    leaves = tfd.Categorical(logits=tf.constant(rng.normal(size=[2, 2, 2, 3])))
    network = SumProductNetwork(graph, leaves, tf.constant(rng.normal(size=4)))
    table = np.stack(np.unravel_index(np.arange(27), [3, 3, 3]), axis=1).astype(np.int32)
    probs = np.exp(network.log_prob(table))
    assert probs.sum() == pytest.approx(1.0, abs=1e-12)
    x = network.sample(30_000, seed=[0, 17])
    assert x.dtype == tf.int32
    assert_frequencies_close(x.numpy() @ [9, 3, 1], probs, resolution=0.02)
    observed = [False, True, False]
    marginal = np.exp(network.marginal_log_prob([-7, 2, 99], observed))
    assert float(marginal) == pytest.approx(probs[table[:, 1] == 2].sum(), rel=1e-10)
    drawn = network.conditional_sample([[-7, 2, 99]] * 20_000, observed, seed=[0, 17]).numpy()
    np.testing.assert_array_equal(drawn[:, 1], 2)
    assert_frequencies_close(drawn @ [9, 3, 1], probs * (table[:, 1] == 2) / marginal, resolution=0.02)
    found = network.most_probable_explanation([-7, 2, 99], observed)
    assert float(found.log_prob) <= np.log(probs[table[:, 1] == 2].max()) + 1e-12 <= float(found.upper_bound) + 2e-12


def test_bernoulli_leaves_of_integers_score_and_complete(rng):
    small, single = Small("n_ary", rng, tf.int32), Small("n_ary", np.random.default_rng(17))
    np.testing.assert_allclose(small.network.log_prob(STATES.astype(np.int32)), np.log(single.table), rtol=1e-10)
    observed, x = STATES[77].astype(bool), STATES[100].astype(np.int32)
    assert small.network.conditional_sample(x, observed, seed=[0, 1]).dtype == tf.int32
    assert small.network.most_probable_explanation(x, observed).x.dtype == tf.int32


# Ways to run it ----------------------------------------------------------------------------------------------


def test_queries_are_the_same_in_graphs_and_under_xla(compiled, rng):
    small = Small("n_ary", rng)
    x, observed = tf.constant(STATES[:6]), tf.constant(STATES[40:46].astype(bool))

    def everything(probs, logits):
        leaves = tfd.Bernoulli(probs=probs, dtype=tf.float64)
        network = SumProductNetwork(small.graph, leaves, logits, num_sums=2)
        return network.marginal_log_prob(x, observed), *network.most_probable_explanation(x, observed)

    arguments = tf.constant(small.probs), tf.constant(small.logits)
    for found, expected in zip(compiled(everything, *arguments), everything(*arguments), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


# The leaves' own numbers differ between XLA and the rest, as in all of TFP: frequencies are what must agree.
def test_completions_under_xla_have_the_frequencies_of_the_table(rng):
    small, observed = Small("trees", rng), STATES[0b01010010].astype(bool)
    x = np.tile(STATES[17], [20_000, 1])
    draw = tf.function(
        lambda seed: small.network.conditional_sample(x, observed, seed=seed), jit_compile=True, autograph=False
    )
    drawn = draw(tf.constant([0, 17])).numpy()
    np.testing.assert_array_equal(drawn, draw(tf.constant([0, 17])))
    agrees = np.all(STATES[:, observed] == x[0, observed], axis=1)
    assert_frequencies_close(numbers(drawn), small.table * agrees / small.table[agrees].sum(), resolution=0.02)


def test_shapes_are_those_of_any_distribution(rng):
    network = Small("grid", rng).network
    assert network.batch_shape == []
    assert network.event_shape == [8]
    assert tuple(network.event_shape_tensor()) == (8,)
    assert network.batch_shape_tensor().shape == (0,)
    assert network.log_prob(network.sample([3, 2], seed=[0, 1])).shape == (3, 2)
    again = network.copy(logits=tf.zeros_like(network.parameters["logits"]))
    assert again.log_prob(STATES[0]).shape == ()


def test_wrong_shapes_are_refused_by_name():
    graph = RegionGraph(3, [(0, 2), (1,), range(3)], [(2, (0, 1))])
    message = r"leaf distributions must be scalar with batch shape \[2, leaves, 2\], found batch shape "
    for shape, found in (([2, 2, 1], r"\[2, 2, 1\]"), ([3, 2, 2], r"\[3, 2, 2\]"), ([2, 2], r"\[2, 2\] and")):
        with pytest.raises(ValueError, match=message + found):
            SumProductNetwork(graph, tfd.Normal(tf.zeros(shape), 1.0), tf.zeros([4]))
    vectors = tfd.MultivariateNormalDiag(tf.zeros([2, 2, 2, 5]))
    with pytest.raises(ValueError, match=message + r"\[2, 2, 2\] and event shape \[5\]"):
        SumProductNetwork(graph, vectors, tf.zeros([4]))
    with pytest.raises(ValueError, match=r"logits must have shape \[4\], found \(5,\)"):
        SumProductNetwork(graph, tfd.Normal(tf.zeros([2, 2, 2]), 1.0), tf.zeros([5]))


@pytest.mark.parametrize("size", [2, 4])
def test_events_of_another_size_are_refused_by_name(size):
    network = SumProductNetwork(single_region(3), tfd.Normal(tf.zeros([1, 2, 3]), 1.0), tf.zeros([2]))
    for method in (
        network.log_prob,
        lambda x: network.marginal_log_prob(x, True),
        lambda x: network.conditional_sample(x, True, seed=[0, 1]),
        lambda x: network.most_probable_explanation(x, True),
    ):
        with pytest.raises(ValueError, match=f"3 variables, found .*{size}"):
            method(np.zeros([5, size], np.float32))


@pytest.mark.parametrize(
    ("mask", "found"), [(np.ones(3), r"float64 \[3\]"), (np.ones(2, bool), r"bool \[2\]"), (1, r"int32 \[\]")]
)
def test_masks_of_another_type_or_shape_are_refused_by_name(mask, found):
    network = SumProductNetwork(single_region(3), tfd.Normal(tf.zeros([1, 2, 3]), 1.0), tf.zeros([2]))
    x = np.zeros([4, 3], np.float32)
    for method in (
        lambda: network.marginal_log_prob(x, mask),
        lambda: network.conditional_log_prob(x, mask, True),
        lambda: network.conditional_sample(x, mask, seed=[0, 1]),
        lambda: network.most_probable_explanation(x, mask),
    ):
        with pytest.raises(ValueError, match=r"Boolean and broadcast to \[4, 3\], found " + found):
            method()


# The layer ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@EVERY_GRAPH
def test_the_layer_is_the_circuit_of_its_logits(name, rng, run):
    graph = twin.SMALL[name]
    layer = SumProduct(graph, num_leaves=2, num_sums=2)
    layer.build()
    (logits,) = layer.trainable_variables
    assert logits.shape == (graph.counts(num_leaves=2, num_sums=2).sum_weights,)
    logits.assign(rng.normal(size=logits.shape))
    leaves = rng.normal(size=[3, layer.layout.num_leaf_nodes])
    reference = twin.Circuit(graph, logits.numpy())
    np.testing.assert_allclose(run(layer, tf.constant(leaves)), [reference.log_prob(row) for row in leaves], rtol=1e-10)


def test_logits_of_the_layer_start_as_standard_normals():
    layer = SumProduct(twin.chain(150), num_leaves=2, num_sums=2)
    layer.build()
    logits = layer.logits.numpy()
    assert_mean_close(logits, 0.0, resolution=0.2)
    assert_mean_close(logits**2, 1.0, resolution=0.3)
    assert_mean_close(logits**4, 3.0, resolution=2.0)  # a uniform number has 9 / 5


def test_a_layer_of_a_single_leaf_has_no_weights():
    layer = SumProduct(single_region(4), num_leaves=1, num_sums=2)
    layer.build()
    assert layer.variables == []
    np.testing.assert_array_equal(layer(tf.constant([[3.0], [-2.0]])), [3.0, -2.0])

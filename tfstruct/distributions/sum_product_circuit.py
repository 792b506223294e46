"""Sum-product circuits in the log domain: leaf log densities in, log density of everything out.

All regions of one height are evaluated together, so a circuit costs a few batched kernels for each level whatever the
number of its nodes. Inside, nodes come first and observations last, [node, N]: gathering nodes then moves whole rows.

References:
    Poon & Domingos, UAI 2011; Peharz et al., On the Latent Variable Interpretation in Sum-Product Networks, PAMI 2017;
    Peharz et al., Einsum Networks, ICML 2020 (sums as matrix products); Mari et al., Unifying and Understanding
    Overparameterized Circuit Representations via Low-Rank Tensor Decompositions, 2023 (Hadamard products).
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.distributions.region_graph import RegionGraph
from tfstruct.math import logsumexp

LARGEST_TABLE = 512  # weights of a region up to which its sums are taken term by term


class _Level(NamedTuple):
    """The sums of all regions of one height.

    Attributes:
        children: nodes that each product multiplies, int32 [C, regions, products]; padded with node 0.
        is_child: which of them count, Boolean of that shape.
        weight_places: of each sum's weights in the flat vector, [regions, sums, products]; padded with its length.
        nodes: of the sums, as a slice.
    """

    children: np.ndarray
    is_child: np.ndarray
    weight_places: np.ndarray
    nodes: slice


class CircuitLayout:
    """Where nodes and weights of a region graph's network lie.

    Nodes are numbered: the leaves of each leaf region, in the order of the graph's leaf regions, then the sums, level
    by level. Weights lie in one vector: for each region with sums (same order), for each sum, for each product,
    partition by partition.

    Args:
        graph: the region graph.
        num_leaves: leaves of each leaf region.
        num_sums: sums of each other region but the root, which has one.
        products: `cross`, one product for every choice of one node of each child of a partition; or `hadamard`, product
            k multiplies node k of all children. Weights then grow with the square of the number of sums, not with its
            cube.

    Raises:
        ValueError: numbers below 1, an unknown kind of products, or Hadamard products of other numbers of leaves than
            sums.

    Attributes:
        graph, num_leaves, num_sums, products: as given.
        num_leaf_nodes: L.
        num_nodes: leaves and sums.
        num_weights: W; 0 for a single leaf.
    """

    def __init__(self, graph: RegionGraph, *, num_leaves: int, num_sums: int, products: str = "cross") -> None:
        if num_leaves < 1 or num_sums < 1:
            raise ValueError(f"num_leaves and num_sums must be at least 1, found {num_leaves} and {num_sums}")
        graph.check_products(products, num_leaves=num_leaves, num_sums=num_sums)
        self.graph, self.num_leaves, self.num_sums, self.products = graph, num_leaves, num_sums, products
        self.num_leaf_nodes = num_leaves * len(graph.leaf_regions)
        nodes_of = {
            region: list(range(place * num_leaves, (place + 1) * num_leaves))
            for place, region in enumerate(graph.leaf_regions)
        }
        self.num_nodes, self.num_weights = self.num_leaf_nodes, 0
        levels = []
        for regions in graph.levels[1:]:
            factors = [
                [nodes for children in graph.partitions_of(region) for nodes in self._factors(nodes_of, children)]
                for region in regions
            ]
            num_sums_here = graph.num_nodes(regions[0], num_leaves, num_sums)
            for place, region in enumerate(regions):
                first = self.num_nodes + place * num_sums_here
                nodes_of[region] = list(range(first, first + num_sums_here))
            levels.append(self._level(factors, num_sums_here))
        if not levels and num_leaves > 1:
            levels.append(self._level([[(leaf,) for leaf in range(num_leaves)]], 1))
        self.levels = tuple(levels)

    def _factors(self, nodes_of: dict[int, list[int]], children: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The nodes that each product of a partition multiplies."""
        nodes = [nodes_of[child] for child in children]
        return list(zip(*nodes, strict=True) if self.products == "hadamard" else itertools.product(*nodes))

    def _level(self, products: list[list[tuple[int, ...]]], num_sums: int) -> _Level:
        most = max(len(of_region) for of_region in products)
        arity = max(len(nodes) for of_region in products for nodes in of_region)
        children = np.zeros([arity, len(products), most], np.int32)
        is_child = np.zeros(children.shape, bool)
        places = np.full([len(products), num_sums, most], -1, np.int32)
        for region, of_region in enumerate(products):
            for product, nodes in enumerate(of_region):
                children[: len(nodes), region, product] = nodes
                is_child[: len(nodes), region, product] = True
            size = num_sums * len(of_region)
            numbers = np.arange(self.num_weights, self.num_weights + size, dtype=np.int32)
            places[region, :, : len(of_region)] = numbers.reshape(num_sums, len(of_region))
            self.num_weights += size
        nodes = slice(self.num_nodes, self.num_nodes + len(products) * num_sums)
        self.num_nodes = nodes.stop
        return _Level(children, is_child, places, nodes)

    def normalize(self, logits: tf.Tensor) -> tf.Tensor:
        """Log-softmax of logits [W] over the products of every sum; -inf stands for a weight of 0.

        A sum all of whose logits are -inf has weights that are not numbers.
        """
        result = []
        for level in self.levels:
            padded = self.weights_of(level, logits)
            flat = tf.reshape(padded - logsumexp(padded, axis=-1, keepdims=True), [-1])
            is_weight = level.weight_places.reshape(-1) >= 0
            result.append(flat if is_weight.all() else tf.gather(flat, np.flatnonzero(is_weight)))
        return tf.concat(result, axis=0) if result else tf.convert_to_tensor(logits)

    def weights_of(self, level: _Level, weights: tf.Tensor) -> tf.Tensor:
        """A level's part of log weights or logits [W], [regions, sums, products] with -inf as padding."""
        weights = tf.convert_to_tensor(weights)
        # Weights of a level are a stretch of the vector, so that most graphs need no gather.
        used = level.weight_places[level.weight_places >= 0]
        stretch = weights[int(used.min()) : int(used.max()) + 1]
        if used.size == level.weight_places.size:
            return tf.reshape(stretch, level.weight_places.shape)
        padded = tf.concat([stretch, tf.constant([-np.inf], weights.dtype)], axis=0)
        places = np.where(level.weight_places < 0, used.size, level.weight_places - used.min())
        return tf.gather(padded, places)


def _sums(products: tf.Tensor, log_weights: tf.Tensor) -> tf.Tensor:
    """Log of weighted sums: [regions, products, N] and [regions, sums, products] to [regions, sums, N].

    Regions of many weights take a matrix product in place of the exponential of every term. Against the greatest
    product of its region a term below exp(-87) is then zero in float32, and a sum without any other is -inf.
    """
    if np.prod(log_weights.shape[1:]) <= LARGEST_TABLE:
        return logsumexp(products[:, tf.newaxis] + log_weights[..., tf.newaxis], axis=2)
    # Padding, and what no sum takes, must not be the greatest.
    is_taken = tf.reduce_max(log_weights, axis=1)[..., tf.newaxis] > -np.inf
    products = tf.where(is_taken, products, tf.constant(-np.inf, products.dtype))
    largest = tf.stop_gradient(tf.reduce_max(products, axis=1, keepdims=True))
    largest = tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest))
    total = tf.exp(log_weights) @ tf.exp(products - largest)
    empty = total <= 0.0
    # Both branches of a `where` are differentiated: the logarithm must never see the zero.
    logs = tf.math.log(tf.where(empty, tf.ones_like(total), total)) + largest
    return tf.where(empty, tf.constant(-np.inf, total.dtype), logs)


def _maxima(products: tf.Tensor, log_weights: tf.Tensor) -> tf.Tensor:
    """The greatest term in place of the sum; arguments as in `_sums`."""
    return tf.reduce_max(products[:, tf.newaxis] + log_weights[..., tf.newaxis], axis=2)


class SumProductCircuit:
    """A network of sums and products over given leaf values.

    The circuit is linear in every leaf's density, so it may be fed with unbiased estimates of them in place of exact
    ones, or with lower bounds on their logarithms; what comes out is again an unbiased estimate, or a lower bound.

    Args:
        layout: the structure.
        log_weights: normalised log weights [W], as `layout.normalize` gives them.

    Raises:
        ValueError: another number of weights.

    References:
        SPVAE, theorems 1 and 2.
    """

    def __init__(self, layout: CircuitLayout, log_weights: Any) -> None:
        self.layout = layout
        self.log_weights = tf.convert_to_tensor(log_weights)
        if self.log_weights.shape != (layout.num_weights,):
            raise ValueError(f"log_weights must have shape [{layout.num_weights}], found {self.log_weights.shape}")

    # Upwards -------------------------------------------------------------------------------------------------

    def log_prob(self, leaf_log_prob: tf.Tensor) -> tf.Tensor:
        """Log of the root's value, in nats: leaf log densities [..., L] to [...].

        A leaf whose variables are all marginalised has log density 0. Where all evidence is impossible the value is
        -inf and every gradient 0.

        Raises:
            ValueError: another number of leaves.
        """
        rows, shape = self._rows(leaf_log_prob)
        return tf.reshape(self._upward(rows, _sums)[0][-1], shape)

    def _rows(self, leaf_values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Leaf values [..., L] as [L, N], and the shape of what is before L."""
        leaf_values = tf.convert_to_tensor(leaf_values)
        num_leaves = self.layout.num_leaf_nodes
        if leaf_values.shape[-1] != num_leaves:
            raise ValueError(f"the circuit has {num_leaves} leaves, found values of shape {leaf_values.shape}")
        return tf.transpose(tf.reshape(leaf_values, [-1, num_leaves])), tf.shape(leaf_values)[:-1]

    def _upward(
        self, rows: tf.Tensor, combine: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Values of all nodes [nodes, N], and of each level those of its products [regions, products, N]."""
        values, of_levels = rows, []
        for level in self.layout.levels:
            products = None
            for children, is_child in zip(level.children, level.is_child, strict=True):
                factor = tf.gather(values, children)
                if not is_child.all():
                    factor = tf.where(is_child[..., np.newaxis], factor, tf.zeros_like(factor))
                products = factor if products is None else products + factor
            of_levels.append(products)
            sums = combine(products, self._weights_of(level, values.dtype))
            values = tf.concat([values, tf.reshape(sums, [level.nodes.stop - level.nodes.start, -1])], axis=0)
        return values, of_levels

    def _weights_of(self, level: _Level, dtype: tf.DType) -> tf.Tensor:
        return tf.cast(self.layout.weights_of(level, self.log_weights), dtype)

    def leaf_posterior(self, leaf_log_prob: tf.Tensor) -> tf.Tensor:
        """The probability that each leaf is used, given the evidence: [..., L] to [..., L]; no gradient.

        It is the derivative of `log_prob` with respect to the leaf's log density. Over the leaves that model one
        variable it sums to 1; impossible evidence gives zeros.
        """
        leaf_log_prob = tf.stop_gradient(leaf_log_prob)
        with tf.GradientTape() as tape:
            tape.watch(leaf_log_prob)
            value = tf.reduce_sum(self._finite(self.log_prob(leaf_log_prob)))
        return tf.stop_gradient(tape.gradient(value, leaf_log_prob))

    @staticmethod
    def _finite(values: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.math.is_finite(values), values, tf.zeros_like(values))

    # Downwards -----------------------------------------------------------------------------------------------

    def sample_tree(self, key: Any, leaf_log_prob: tf.Tensor) -> tf.Tensor:
        """Draws which leaves make an observation, given evidence on some of it; exact.

        Args:
            key: a key [2], or one for each row [N, 2] of evidence [N, L].
            leaf_log_prob: evidence, [..., L]; zeros for none, which draws from the model.

        Returns:
            Boolean [..., L]: the leaves of one induced tree; every variable is in the scope of exactly one of them.
            Arbitrary where the evidence is impossible.
        """
        rows, shape = self._rows(leaf_log_prob)
        _, products = self._upward(rows, _sums)
        key = tf.convert_to_tensor(key, tf.uint32)
        num_rows, num_regions = tf.shape(rows)[1], [level.children.shape[1] for level in self.layout.levels]
        total = max(sum(num_regions), 1)
        if key.shape.rank == 1:
            unit = random.uniform(key, tf.stack([total, num_rows]), rows.dtype)
        else:
            unit = tf.transpose(random.uniform(key, [total], rows.dtype))
        units = tf.split(unit[: sum(num_regions)], num_regions) if num_regions else []

        def choose(level: int, region_scores: tf.Tensor) -> tf.Tensor:
            return random.choose(units[level], region_scores, axis=1)

        return self._descend(products, choose, num_rows, shape)

    def most_probable_tree(self, leaf_log_prob: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The most probable induced tree: its log value [...], and its leaves, Boolean [..., L]."""
        rows, shape = self._rows(leaf_log_prob)
        values, products = self._upward(rows, _maxima)

        def choose(level: int, region_scores: tf.Tensor) -> tf.Tensor:
            del level
            return tf.argmax(region_scores, axis=1, output_type=tf.int32)

        return tf.reshape(values[-1], shape), self._descend(products, choose, tf.shape(rows)[1], shape)

    def _descend(
        self,
        products: list[tf.Tensor],
        choose: Callable[[int, tf.Tensor], tf.Tensor],
        num_rows: tf.Tensor,
        shape: tf.Tensor,
    ) -> tf.Tensor:
        """Follows one product of every sum that is used, from the root down; returns the leaves, [..., L]."""
        num_nodes = self.layout.num_nodes
        used = tf.cast(tf.repeat(tf.range(num_nodes)[:, tf.newaxis] == num_nodes - 1, num_rows, axis=1), tf.float32)
        for place in reversed(range(len(self.layout.levels))):
            level = self.layout.levels[place]
            regions, num_sums, num_products = level.weight_places.shape
            of_sums = tf.reshape(used[level.nodes], [regions, num_sums, -1])
            # At most one sum of a region is used: the scopes of a tree's nodes are disjoint or nested.
            weights = self._weights_of(level, products[place].dtype)
            of_used = tf.gather(weights, tf.argmax(of_sums, axis=1, output_type=tf.int32), axis=1, batch_dims=1)
            region_scores = products[place] + tf.transpose(of_used, [0, 2, 1])
            region_used = tf.reduce_sum(of_sums, axis=1)
            chosen = tf.one_hot(choose(place, region_scores), num_products, axis=1) * region_used[:, tf.newaxis]
            for children, is_child in zip(level.children, level.is_child, strict=True):
                counted = chosen * is_child[..., np.newaxis].astype(np.float32)
                flat = tf.reshape(counted, [children.size, -1])
                used += tf.math.unsorted_segment_sum(flat, children.reshape(-1), num_nodes)
        leaves = tf.transpose(used[: self.layout.num_leaf_nodes]) > 0.5
        return tf.reshape(leaves, tf.concat([shape, [self.layout.num_leaf_nodes]], axis=0))

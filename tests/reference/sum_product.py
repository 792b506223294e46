"""Sum-product networks region by region and tree by tree: a slow NumPy float64 twin, and small graphs to try it on."""

import itertools

import numpy as np
from scipy import special

from tfstruct.distributions.region_graph import RegionGraph, poon_domingos, random_binary_trees, single_region

#: graphs over eight variables that between them have every irregularity that a level must pad
SMALL = {
    "grid": poon_domingos((2, 4), (1, 2)),
    "trees": random_binary_trees(8, depth=2, repetitions=2, seed=4),
    # Cut in three and in two, leaf regions of one, two and three variables, a leaf region just below the root.
    "n_ary": RegionGraph(
        8,
        [range(8), (0, 2, 5), (1,), (3, 4, 6, 7), (0, 1, 2, 5), (3, 7), (4, 6), (0, 2), (5,), (0, 5), (2,)],
        [(0, (1, 2, 3)), (4, (2, 1)), (0, (4, 3)), (3, (6, 5)), (1, (7, 8)), (1, (10, 9)), (0, (2, 7, 8, 5, 6))],
    ),
    "one_region": single_region(8),
}


def chain(num_variables):
    """The graph that parts one variable after the other from the rest."""
    rest = [range(first, num_variables) for first in range(num_variables - 1)]
    singles = [(variable,) for variable in range(num_variables)]
    last = len(rest) + num_variables - 1
    cuts = [(place, (len(rest) + place, place + 1 if place + 1 < len(rest) else last)) for place in range(len(rest))]
    return RegionGraph(num_variables, [*rest, *singles], cuts)


def split_weights_of_chain(vector, depth):
    """The normalised weights of a chain with two leaves and two sums, by the variable parted: a list of [sums, 4].

    They lie in the vector by height, so the last variable's first; the root's is a single sum.
    """
    parts = [*np.split(vector[:-4], depth - 1), vector[-4:]]
    return [special.log_softmax(part.reshape(-1, 4), axis=1) for part in reversed(parts)]


def split_weights(graph, vector, num_leaves, num_sums, products="cross"):
    """The flat vector as {region: [sums, products]}: regions by height and index, then sums, then products."""
    heights = {}

    def height(region):
        if region not in heights:
            below = [child for parent, children in graph.partitions if parent == region for child in children]
            heights[region] = 1 + max(map(height, below)) if below else 0
        return heights[region]

    inner = sorted({partition.region for partition in graph.partitions}, key=lambda region: (height(region), region))
    if not inner:
        return {graph.root: np.reshape(vector, [1, num_leaves])} if num_leaves > 1 else {}
    weights, start = {}, 0
    for region in inner:
        sums = 1 if len(graph.regions[region]) == graph.num_variables else num_sums
        size = sum(
            num_sums
            if products == "hadamard"
            else int(np.prod([num_sums if c in inner else num_leaves for c in children]))
            for parent, children in graph.partitions
            if parent == region
        )
        weights[region] = np.reshape(vector[start : start + sums * size], [sums, size])
        start += sums * size
    assert start == len(vector)
    return weights


class Circuit:
    """A network with logits for its weights, computed by recursion over regions."""

    def __init__(self, graph, logits, num_leaves=2, num_sums=2, products="cross"):
        self.graph, self.num_leaves = graph, num_leaves
        self.leaf_regions = [region for region in range(len(graph.regions)) if not self.cuts(region)]
        logits = split_weights(graph, np.asarray(logits, np.float64), num_leaves, num_sums, products)
        self.weights = {
            region: values - special.logsumexp(values, axis=1, keepdims=True) for region, values in logits.items()
        }
        combine = zip if products == "hadamard" else itertools.product
        #: {region: the choices of a node of each child, partition by partition}
        self.choices = {
            region: [
                list(zip(children, places, strict=True))
                for children in self.cuts(region)
                for places in combine(*(range(self.num_nodes(child)) for child in children))
            ]
            for region in self.weights
        }

    def cuts(self, region):
        return [children for parent, children in self.graph.partitions if parent == region]

    def num_nodes(self, region):
        return self.weights[region].shape[0] if region in self.weights else self.num_leaves

    def log_prob(self, leaf_values):
        """Leaf log densities [L] to the root's value."""
        values = {
            region: list(leaf_values[place * self.num_leaves : (place + 1) * self.num_leaves])
            for place, region in enumerate(self.leaf_regions)
        }
        if not self.graph.partitions:
            (root,) = values.values()
            return special.logsumexp(root + self.weights[self.graph.root][0]) if self.weights else root[0]

        def of(region):
            if region not in values:
                products = [sum(of(child)[place] for child, place in choice) for choice in self.choices[region]]
                values[region] = [special.logsumexp(np.array(products) + row) for row in self.weights[region]]
            return values[region]

        return of(self.graph.root)[0]

    def trees(self):
        """All induced trees: log weights [T], and the leaves of each, Boolean [T, L]."""
        if not self.graph.partitions:
            return self.weights[self.graph.root][0], np.eye(self.num_leaves, dtype=bool)

        def of(region, node):
            if region in self.leaf_regions:
                return [(0.0, (self.leaf_regions.index(region) * self.num_leaves + node,))]
            found = []
            for log_weight, choice in zip(self.weights[region][node], self.choices[region], strict=True):
                for parts in itertools.product(*(of(child, place) for child, place in choice)):
                    leaves = tuple(itertools.chain.from_iterable(part[1] for part in parts))
                    found.append((log_weight + sum(part[0] for part in parts), leaves))
            return found

        trees = of(self.graph.root, 0)
        members = np.zeros([len(trees), len(self.leaf_regions) * self.num_leaves], bool)
        for place, (_, leaves) in enumerate(trees):
            members[place, list(leaves)] = True
        return np.array([log_weight for log_weight, _ in trees]), members

    def tree_values(self, leaf_values):
        """Log joint density of every tree and the evidence: leaf log densities [N, L] to [N, T]."""
        log_weights, members = self.trees()
        # Not a matrix product: 0 times the -inf of a leaf that is not in the tree would be NaN.
        parts = [np.sum(leaf_values[:, tree], axis=1) for tree in members]
        return log_weights + np.stack(parts, axis=1)


def leaf_log_probs(graph, probs, x, observed):
    """Bernoulli leaves of probabilities [R, I, S], x and masks [N, D]: log densities of leaves, [N, L], twice.

    The first integrate missing variables out, the second put them to their modes.
    """
    leaf_regions = [region for region in range(len(graph.regions)) if region not in dict(graph.partitions)]
    sums, greatest = [], []
    for place, region in enumerate(leaf_regions):
        for leaf in range(probs.shape[1]):
            total, most = np.zeros(len(x)), np.zeros(len(x))
            for inside, variable in enumerate(graph.regions[region]):
                p = probs[place, leaf, inside]
                value = np.where(x[:, variable] == 1, np.log(p), np.log1p(-p))
                total += np.where(observed[:, variable], value, 0.0)
                most += np.where(observed[:, variable], value, np.log(max(p, 1.0 - p)))
            sums.append(total)
            greatest.append(most)
    return np.stack(sums, axis=1), np.stack(greatest, axis=1)

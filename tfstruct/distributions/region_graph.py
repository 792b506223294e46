"""Region graphs: which variables each part of a sum-product network is over, without TensorFlow.

A region is a set of variables. A partition cuts a region into disjoint regions that together are the whole of it; a
region may have several partitions, or none, and is then a leaf region. A network puts distributions on leaf regions,
products on partitions and mixtures on all other regions. Completeness (a mixture's parts are over the same variables)
and decomposability (a product's parts share none) are properties of the graph, checked when it is made.

References:
    Poon & Domingos, Sum-Product Networks: A New Deep Architecture, UAI 2011; Dennis & Ventura, Learning the
    Architecture of Sum-Product Networks Using Clustering on Variables, NIPS 2012 (region graphs); Peharz et al.,
    Probabilistic Deep Learning Using Random Sum-Product Networks, 2018.
"""

import functools
import itertools
import math
import random as python_random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

#: how the nodes of a partition's children are multiplied: every choice of one node of each child, or only those with
#: the same index in all of them (the Hadamard product; a canonical polyadic decomposition)
PRODUCTS = ("cross", "hadamard")

_SHOWN = 8  # variables of a region that a message lists


class RegionGraphError(ValueError):
    """A graph that is not complete, decomposable or connected; the message names the region."""


class Partition(NamedTuple):
    """One way to cut a region.

    Attributes:
        region: index of the region that is cut.
        children: indices of its parts, two or more.
    """

    region: int
    children: tuple[int, ...]


class Counts(NamedTuple):
    """Sizes of the network that a graph makes."""

    regions: int
    leaf_regions: int
    internal_regions: int
    partitions: int
    leaves: int
    products: int
    sums: int
    sum_weights: int


class RegionGraph:
    """Regions and partitions over the variables 0, 1, ..., num_variables - 1.

    Args:
        num_variables: D.
        regions: the variables of each region; no two regions have the same.
        partitions: (region, children) by their indices in `regions`.

    Raises:
        RegionGraphError: an empty region or one with unknown variables; two regions over the same variables; a
            partition whose children overlap (not decomposable) or are not the whole of their region (not complete); no
            region over all variables, or a region that it does not reach.

    Attributes:
        num_variables: D.
        regions: sorted variables of each region.
        partitions: as given.
        root: index of the region over all variables.
        leaf_regions: indices of the regions without partitions, ascending.
        internal_regions: indices of the others.

    Examples:
        >>> graph = RegionGraph(3, [(0,), (1, 2), (0, 1, 2)], [(2, (0, 1))])
        >>> graph.counts(num_leaves=2, num_sums=2).products
        4
    """

    def __init__(
        self,
        num_variables: int,
        regions: Iterable[Iterable[int]],
        partitions: Iterable[tuple[int, Sequence[int]]],
    ) -> None:
        self.num_variables = num_variables
        self.regions = tuple(tuple(sorted(region)) for region in regions)
        self.partitions = tuple(Partition(region, tuple(children)) for region, children in partitions)
        self._check_regions()
        self._check_partitions()
        with_partitions = {partition.region for partition in self.partitions}
        self.leaf_regions = tuple(index for index in range(len(self.regions)) if index not in with_partitions)
        self.internal_regions = tuple(sorted(with_partitions))
        self.root = self._find_root()

    def describe(self, region: int) -> str:
        """Returns a region's index and variables, for messages."""
        variables = self.regions[region]
        listed = ", ".join(str(variable) for variable in variables[:_SHOWN])
        more = f", ... ({len(variables)} in all)" if len(variables) > _SHOWN else ""
        return f"region {region} {{{listed}{more}}}"

    def _check_regions(self) -> None:
        known = range(self.num_variables)
        for index, variables in enumerate(self.regions):
            if not variables:
                raise RegionGraphError(f"region {index} is empty")
            if len(set(variables)) < len(variables) or variables[0] not in known or variables[-1] not in known:
                raise RegionGraphError(
                    f"{self.describe(index)} must hold distinct variables in 0..{self.num_variables - 1}"
                )
        places: dict[tuple[int, ...], int] = {}
        for index, variables in enumerate(self.regions):
            if variables in places:
                raise RegionGraphError(f"{self.describe(index)} has the variables of region {places[variables]}")
            places[variables] = index

    def _check_partitions(self) -> None:
        for partition in self.partitions:
            indices = (partition.region, *partition.children)
            if any(index not in range(len(self.regions)) for index in indices) or len(partition.children) < 2:
                raise RegionGraphError(
                    f"a partition names one of the regions 0..{len(self.regions) - 1} and two or more as its children, "
                    f"found {tuple(partition)}"
                )
            parts = [self.regions[child] for child in partition.children]
            union = sorted(itertools.chain.from_iterable(parts))
            for child, other in itertools.combinations(partition.children, 2):
                shared = sorted(set(self.regions[child]) & set(self.regions[other]))
                if shared:
                    raise RegionGraphError(
                        f"not decomposable: {self.describe(partition.region)} is cut into {self.describe(child)} and "
                        f"{self.describe(other)}, which share variable {shared[0]}"
                    )
            if tuple(union) != self.regions[partition.region]:
                differing = sorted(set(union) ^ set(self.regions[partition.region]))
                raise RegionGraphError(
                    f"not complete: the parts {', '.join(str(child) for child in partition.children)} of "
                    f"{self.describe(partition.region)} are not the whole of it; they differ in variable {differing[0]}"
                )

    def _find_root(self) -> int:
        everything = tuple(range(self.num_variables))
        if everything not in self.regions:
            raise RegionGraphError(f"no region is over all {self.num_variables} variables")
        root = self.regions.index(everything)
        reached, waiting = {root}, [root]
        while waiting:
            for children in self.partitions_of(waiting.pop()):
                waiting += [child for child in children if child not in reached]
                reached.update(children)
        missing = sorted(set(range(len(self.regions))) - reached)
        if missing:
            raise RegionGraphError(f"{self.describe(missing[0])} is no part of any partition of the root")
        return root

    @functools.cached_property
    def _children(self) -> dict[int, list[tuple[int, ...]]]:
        children: dict[int, list[tuple[int, ...]]] = {}
        for partition in self.partitions:
            children.setdefault(partition.region, []).append(partition.children)
        return children

    def partitions_of(self, region: int) -> list[tuple[int, ...]]:
        """Returns the children of each partition of a region; none for a leaf region."""
        return self._children.get(region, [])

    @functools.cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Regions by height: leaf regions first, each other one level above its highest child; the root is last."""
        heights: dict[int, int] = {}
        for region in sorted(range(len(self.regions)), key=lambda index: len(self.regions[index])):
            below = [heights[child] for children in self.partitions_of(region) for child in children]
            heights[region] = 1 + max(below) if below else 0
        levels: list[list[int]] = [[] for _ in range(1 + max(heights.values()))]
        for region in range(len(self.regions)):
            levels[heights[region]].append(region)
        return tuple(tuple(level) for level in levels)

    @property
    def is_tiling(self) -> bool:
        """Whether no variable is in two leaf regions."""
        return sum(len(self.regions[region]) for region in self.leaf_regions) == self.num_variables

    def num_nodes(self, region: int, num_leaves: int, num_sums: int) -> int:
        """Returns how many nodes of the network a region has: leaves, or sums (one for the root)."""
        if not self.partitions_of(region):
            return num_leaves
        return 1 if region == self.root else num_sums

    def check_products(self, products: str, *, num_leaves: int, num_sums: int) -> None:
        """Raises ValueError for an unknown kind of products, or Hadamard products of different numbers of nodes."""
        if products not in PRODUCTS:
            raise ValueError(f"products must be one of {', '.join(PRODUCTS)}, found {products!r}")
        if products == "hadamard" and self.partitions and num_leaves != num_sums:
            raise ValueError(f"products=hadamard needs num_leaves equal to num_sums, found {num_leaves} and {num_sums}")

    def counts(self, *, num_leaves: int, num_sums: int, products: str = "cross") -> Counts:
        """Returns the sizes of a network with `num_leaves` leaves and `num_sums` sums for each region.

        A partition has one product for every choice of one node of each child, or with products="hadamard" one for
        every index of a node; a sum mixes all products of all partitions of its region. A graph of one region mixes its
        leaves.

        Raises:
            ValueError: an unknown kind of products, or Hadamard products of different numbers of leaves and sums.
        """
        self.check_products(products, num_leaves=num_leaves, num_sums=num_sums)
        num_products: dict[int, int] = dict.fromkeys(self.internal_regions, 0)
        for region, children in self.partitions:
            sizes = [self.num_nodes(child, num_leaves, num_sums) for child in children]
            num_products[region] += sizes[0] if products == "hadamard" else math.prod(sizes)
        sums = {region: self.num_nodes(region, num_leaves, num_sums) for region in self.internal_regions}
        weights = sum(num_products[region] * sums[region] for region in self.internal_regions)
        if not self.internal_regions and num_leaves > 1:
            sums, weights = {self.root: 1}, num_leaves
        return Counts(
            regions=len(self.regions),
            leaf_regions=len(self.leaf_regions),
            internal_regions=len(self.internal_regions),
            partitions=len(self.partitions),
            leaves=len(self.leaf_regions) * num_leaves,
            products=sum(num_products.values()),
            sums=sum(sums.values()),
            sum_weights=weights,
        )


def single_region(num_variables: int) -> RegionGraph:
    """Returns the graph of one region, the root, which is a leaf region: a plain mixture."""
    return RegionGraph(num_variables, [range(num_variables)], [])


def poon_domingos(shape: Sequence[int], delta: int | Sequence[int]) -> RegionGraph:
    """Returns the graph of all rectangles of an image whose corners lie on a grid.

    Every rectangle is cut in two at every grid line that crosses it, along both axes. Variables are numbered as in a
    flattened [height, width] or [height, width, channels] array; channels are never parted.

    Args:
        shape: (height, width) or (height, width, channels).
        delta: distance of the grid lines, or one for each axis; the last row and column of tiles may be smaller.

    Raises:
        ValueError: another shape, or a distance below 1.

    References:
        Poon & Domingos, UAI 2011, section 4; SPVAE, section 4 (28 x 28 with distance 7: 16 tiles).
    """
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"shape must be (height, width) or (height, width, channels), found {tuple(shape)}")
    deltas = tuple(delta) if isinstance(delta, Sequence) else (int(delta), int(delta))
    if len(deltas) != 2 or min(deltas) < 1:
        raise ValueError(f"delta must be a distance of at least 1, or two, found {delta}")
    height, width, *rest = shape
    channels = rest[0] if rest else 1
    lines = [[*range(0, size, step), size] for size, step in zip((height, width), deltas, strict=True)]
    boxes = [
        (top, bottom, left, right)
        for top, bottom in itertools.combinations(lines[0], 2)
        for left, right in itertools.combinations(lines[1], 2)
    ]
    # Children before parents; tiles of one size come row by row.
    boxes.sort(key=lambda box: ((box[1] - box[0]) * (box[3] - box[2]), box[0], box[2]))
    place = {box: index for index, box in enumerate(boxes)}
    partitions = []
    for box in boxes:
        top, bottom, left, right = box
        for cut in (line for line in lines[0] if top < line < bottom):
            partitions.append((place[box], (place[top, cut, left, right], place[cut, bottom, left, right])))
        for cut in (line for line in lines[1] if left < line < right):
            partitions.append((place[box], (place[top, bottom, left, cut], place[top, bottom, cut, right])))

    def variables(box: tuple[int, int, int, int]) -> list[int]:
        top, bottom, left, right = box
        return [
            (row * width + column) * channels + channel
            for row in range(top, bottom)
            for column in range(left, right)
            for channel in range(channels)
        ]

    return RegionGraph(height * width * channels, [variables(box) for box in boxes], partitions)


def bisected_image(shape: Sequence[int], delta: int) -> RegionGraph:
    """Returns the graph of an image that is halved again and again: a tree, with one partition for each rectangle.

    A rectangle is cut at the grid line next to its middle (the upper or left one of two), across its longer side in
    tiles, and of a square across its height. Far fewer regions than `poon_domingos` over the same tiles, so that each
    may have many sums. Variables and channels as there.

    Args:
        shape: (height, width) or (height, width, channels).
        delta: distance of the grid lines, at least 1; the last row and column of tiles may be smaller.

    Raises:
        ValueError: another shape, or a distance below 1.

    References:
        Mari et al., Unifying and Understanding Overparameterized Circuit Representations via Low-Rank Tensor
        Decompositions, 2023 (quad trees, each of whose cuts is two of these).
    """
    if len(shape) not in (2, 3) or min(shape) < 1 or delta < 1:
        raise ValueError(
            f"shape must be (height, width) or (height, width, channels) and delta at least 1, found {tuple(shape)} "
            f"and {delta}"
        )
    height, width = shape[:2]
    rows, columns = -(-height // delta), -(-width // delta)
    indices = np.arange(math.prod(shape)).reshape(height, width, -1)
    regions: list[list[int]] = []
    partitions: list[tuple[int, tuple[int, int]]] = []

    def add(top: int, bottom: int, left: int, right: int) -> int:
        """Adds a rectangle of tiles, its parts before it, and returns its index."""
        children: tuple[int, ...] = ()
        if bottom - top > 1 and bottom - top >= right - left:
            cut = (top + bottom) // 2
            children = add(top, cut, left, right), add(cut, bottom, left, right)
        elif right - left > 1:
            cut = (left + right) // 2
            children = add(top, bottom, left, cut), add(top, bottom, cut, right)
        box = indices[top * delta : bottom * delta, left * delta : right * delta]
        regions.append([int(variable) for variable in box.ravel()])
        if children:
            partitions.append((len(regions) - 1, children))
        return len(regions) - 1

    add(0, rows, 0, columns)
    return RegionGraph(indices.size, regions, partitions)


def random_binary_trees(num_variables: int, *, depth: int, repetitions: int, seed: int) -> RegionGraph:
    """Returns a graph of random balanced bisections of all variables: RAT-SPN structure, for vectors.

    Args:
        num_variables: D.
        depth: how many times a region is halved; a single variable is not.
        repetitions: independent trees, which share the root and any region that they have in common.
        seed: of Python's generator.

    Raises:
        ValueError: numbers below 1.

    References:
        Peharz et al., Probabilistic Deep Learning Using Random Sum-Product Networks, 2018, algorithm 1.
    """
    if min(num_variables, depth, repetitions) < 1:
        raise ValueError(
            f"num_variables, depth and repetitions must be at least 1, found {num_variables}, {depth} and {repetitions}"
        )
    generator = python_random.Random(seed)
    places: dict[tuple[int, ...], int] = {tuple(range(num_variables)): 0}
    partitions: dict[tuple[int, tuple[int, int]], None] = {}  # ordered, each once

    def bisect(variables: tuple[int, ...], levels: int) -> None:
        if not levels or len(variables) == 1:
            return
        shuffled = generator.sample(variables, len(variables))
        halves = sorted(tuple(sorted(part)) for part in (shuffled[::2], shuffled[1::2]))
        for half in halves:
            places.setdefault(half, len(places))
        partitions[places[variables], (places[halves[0]], places[halves[1]])] = None
        for half in halves:
            bisect(half, levels - 1)

    for _ in range(repetitions):
        bisect(tuple(range(num_variables)), depth)
    return RegionGraph(num_variables, places, partitions)

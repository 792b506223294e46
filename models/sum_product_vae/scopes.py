"""Which pixels each leaf of a sum-product VAE models: from whole images to leaves and back."""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct.distributions.region_graph import (
    RegionGraph,
    bisected_image,
    poon_domingos,
    random_binary_trees,
    single_region,
)

STRUCTURES = ("poon_domingos", "bisected", "random", "single")


def make_graph(options: Any, event_shape: tuple[int, ...]) -> RegionGraph:
    """Returns the region graph that a `model` config node names.

    Raises:
        ValueError: an unknown structure, tiles of an event that is no image or as large as it, or trees deeper than
            their variables allow.
    """
    dims = int(np.prod(event_shape))
    if options.structure == "single":
        return single_region(dims)
    if options.structure == "random":
        deepest = math.ceil(math.log2(dims)) if dims > 1 else 0
        if not 1 <= options.tree_depth <= deepest:
            raise ValueError(
                f"model.tree_depth must be 1 to {deepest} for {dims} variables, found {options.tree_depth}; "
                "model.structure=single has no trees"
            )
        return random_binary_trees(
            dims, depth=options.tree_depth, repetitions=options.tree_repetitions, seed=options.tree_seed
        )
    if options.structure not in ("poon_domingos", "bisected"):
        raise ValueError(f"model.structure must be one of {', '.join(STRUCTURES)}, found {options.structure!r}")
    if len(event_shape) not in (2, 3):
        raise ValueError(
            f"model.structure={options.structure} is for images, found data.event_shape={event_shape}; "
            "model.structure=random is for vectors"
        )
    make = poon_domingos if options.structure == "poon_domingos" else bisected_image
    graph = make(event_shape, options.delta)
    if len(graph.regions) == 1:
        raise ValueError(
            f"model.delta must be less than a side of the image, found {options.delta} for {event_shape}; "
            "model.structure=single is one region"
        )
    return graph


class LeafScopes:
    """The variables of leaf regions as index arrays, padded to the largest region.

    Args:
        graph: the region graph.
        num_leaves: leaves of each leaf region.

    Attributes:
        variables: int32 [regions, S]; padded with a region's first variable.
        is_variable: Boolean [regions, S].
    """

    def __init__(self, graph: RegionGraph, num_leaves: int) -> None:
        self.num_leaves, self.num_variables = num_leaves, graph.num_variables
        scopes = [graph.regions[region] for region in graph.leaf_regions]
        size = max(len(scope) for scope in scopes)
        self.variables = np.array([[*scope, *[scope[0]] * (size - len(scope))] for scope in scopes], np.int32)
        self.is_variable = np.array([[True] * len(scope) + [False] * (size - len(scope)) for scope in scopes])
        self.is_padded = not self.is_variable.all()
        self._is_identity = len(scopes) == 1

    @property
    def num_leaves_in_all(self) -> int:
        """L."""
        return len(self.variables) * self.num_leaves

    @property
    def size(self) -> int:
        """S, the number of variables of the largest leaf region."""
        return self.variables.shape[1]

    def image_shape(self, event_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(height, width, channels) of every leaf region of an image.

        Raises:
            ValueError: regions that are not rectangles of one size.
        """
        height, width, channels = (*event_shape, 1, 1)[:3]
        coordinates = np.stack(np.unravel_index(self.variables, (height, width, channels)))
        extents = {tuple(map(int, np.ptp(region, axis=-1) + 1)) for region in coordinates.swapaxes(0, 1)}
        ((rows, columns, depth), *others) = extents
        if len(event_shape) not in (2, 3) or others or self.is_padded or rows * columns * depth != self.size:
            raise ValueError(
                "convolutions and pictures of leaves need leaf regions that are rectangles of one size: take "
                "model.structure=poon_domingos or bisected with a model.delta that divides both sides of the image, "
                f"found data.event_shape={event_shape} with leaf regions of {sorted(extents)}"
            )
        return rows, columns, depth

    def of_regions(self, values: tf.Tensor) -> tf.Tensor:
        """Pixels [B, D] of each leaf region, [regions, B, S]."""
        if self._is_identity:
            return values[tf.newaxis]
        return tf.transpose(tf.gather(values, self.variables, axis=1), [1, 0, 2])

    def of_leaves(self, regions: tf.Tensor) -> tf.Tensor:
        """Repeats [regions, ...] for the leaves of a region, [L, ...]."""
        return regions if self.num_leaves == 1 else tf.repeat(regions, self.num_leaves, axis=0)

    def combine(self, leaf_values: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
        """Sums pixels of leaves to whole images.

        Args:
            leaf_values: [L, N, S].
            weights: of each leaf, [N, L], whose sum over the leaves of a pixel is 1; None for a single leaf.

        Returns:
            [N, D].
        """
        if weights is None:
            return leaf_values[0]
        of_leaves = tf.cast(tf.transpose(weights), leaf_values.dtype)[..., tf.newaxis]
        # Not a plain product: a leaf that is not used may hold anything.
        weighted = tf.where(of_leaves > 0.0, of_leaves * leaf_values, tf.zeros_like(leaf_values))
        regions = tf.reshape(weighted, [len(self.variables), self.num_leaves, -1, self.size])
        regions = tf.transpose(tf.reduce_sum(regions, axis=1), [0, 2, 1])
        variables = np.where(self.is_variable, self.variables, -1)  # a negative segment is left out
        flat = tf.reshape(regions, [variables.size, -1])
        return tf.transpose(tf.math.unsorted_segment_sum(flat, variables.reshape(-1), self.num_variables))

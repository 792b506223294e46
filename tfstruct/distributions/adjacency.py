"""Which latent node may depend on which: Boolean matrices [N, N], [i, j] true if j may be a parent of i.

Nodes are numbered from the root: node 0 has no parent and node i may have the parents 0..i-1, so a valid
matrix is strictly lower triangular. (The Graph VAE paper counts the other way: its z_N is node 0 here.)
"""

import graphlib
from typing import Any

import numpy as np

STRUCTURES = ("independent", "chain", "full", "learned")


def from_structure(structure: str, num_nodes: int) -> np.ndarray:
    """Returns the matrix of possible edges of a named structure; `learned` starts from all edges.

    Raises:
        ValueError: an unknown name or fewer than one node.
    """
    if num_nodes < 1:
        raise ValueError(f"a model needs at least 1 latent node, found num_nodes={num_nodes}")
    if structure == "independent":
        return np.zeros([num_nodes, num_nodes], bool)
    if structure == "chain":
        return np.eye(num_nodes, k=-1, dtype=bool)
    if structure in ("full", "learned"):
        return np.tri(num_nodes, k=-1, dtype=bool)
    raise ValueError(f"structure must be one of {', '.join(STRUCTURES)} or a matrix, found {structure!r}")


def validate(adjacency: Any, num_nodes: int) -> np.ndarray:
    """Returns an explicit adjacency as a Boolean matrix.

    Raises:
        ValueError: not a square matrix of zeros and ones with `num_nodes` rows, a cycle (which is named), or an
            acyclic graph whose nodes are not in order (an order that works is named).
    """
    try:
        matrix = np.asarray(adjacency)
    except ValueError:  # rows of different lengths
        raise ValueError(
            f"the adjacency must be a matrix of {num_nodes} rows of {num_nodes} zeros and ones, found {adjacency!r}"
        ) from None
    if matrix.shape != (num_nodes, num_nodes):
        raise ValueError(f"the adjacency must have shape [{num_nodes}, {num_nodes}], found {list(matrix.shape)}")
    if not np.isin(matrix, (0, 1)).all():
        raise ValueError("the adjacency may hold only zeros and ones")
    matrix = matrix.astype(bool)
    if np.array_equal(matrix, np.tril(matrix, k=-1)):
        return matrix
    parents = {child: [int(parent) for parent in np.flatnonzero(matrix[child])] for child in range(num_nodes)}
    try:
        order = list(graphlib.TopologicalSorter(parents).static_order())
    except graphlib.CycleError as error:
        cycle = " -> ".join(str(node) for node in error.args[1])
        raise ValueError(f"the adjacency has a cycle: {cycle}") from None
    raise ValueError(
        "the adjacency must be strictly lower triangular (parents before children); this one is acyclic, and "
        f"renumbering the nodes in the order {order} makes it so"
    )


def edges(adjacency: np.ndarray) -> list[tuple[int, int]]:
    """Returns the possible edges as (child, parent), ordered by child, then parent."""
    return [(int(child), int(parent)) for child, parent in np.argwhere(adjacency)]

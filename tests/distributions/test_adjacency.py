import re

import numpy as np
import pytest

from tfstruct.distributions import adjacency


def test_the_named_structures_of_three_nodes():
    none, chain, full = np.zeros([3, 3]), [[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    for name, expected in (("independent", none), ("chain", chain), ("full", full), ("learned", full)):
        found = adjacency.from_structure(name, 3)
        assert found.dtype == bool
        np.testing.assert_array_equal(found, expected)


def test_one_node_has_no_edges():
    for name in adjacency.STRUCTURES:
        assert adjacency.edges(adjacency.from_structure(name, 1)) == []


def test_an_unknown_structure_lists_the_known_ones():
    with pytest.raises(ValueError, match="independent, chain, full, learned or a matrix, found 'tree'"):
        adjacency.from_structure("tree", 3)


def test_no_nodes_are_refused():
    with pytest.raises(ValueError, match="num_nodes=0"):
        adjacency.from_structure("full", 0)


def test_edges_are_child_parent_pairs_by_child():
    assert adjacency.edges(adjacency.from_structure("full", 3)) == [(1, 0), (2, 0), (2, 1)]


def test_a_valid_matrix_comes_back_as_booleans():
    found = adjacency.validate(((0, 0), (1, 0)), 2)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, [[False, False], [True, False]])


@pytest.mark.parametrize("matrix", [np.zeros([2, 3]), np.zeros([3, 3]), np.zeros([2])])
def test_a_matrix_of_another_shape_is_refused(matrix):
    with pytest.raises(ValueError, match=re.escape(f"must have shape [2, 2], found {list(matrix.shape)}")):
        adjacency.validate(matrix, 2)


@pytest.mark.parametrize("value", [2, 0.5, -1, np.nan])
def test_a_matrix_with_other_values_is_refused(value):
    with pytest.raises(ValueError, match="only zeros and ones"):
        adjacency.validate([[0, 0], [value, 0]], 2)


def test_a_cycle_is_named_from_parent_to_child():
    matrix = np.zeros([4, 4], int)
    matrix[1, 0] = matrix[2, 1] = matrix[3, 2] = matrix[1, 3] = 1  # 1 -> 2 -> 3 -> 1
    with pytest.raises(ValueError, match="has a cycle: ") as caught:
        adjacency.validate(matrix, 4)
    cycle = [int(node) for node in str(caught.value).partition(": ")[2].split(" -> ")]
    assert cycle[0] == cycle[-1]
    assert set(cycle) == {1, 2, 3}
    assert all(matrix[child, parent] for parent, child in zip(cycle, cycle[1:], strict=False))


def test_a_node_that_is_its_own_parent_is_a_cycle():
    with pytest.raises(ValueError, match="cycle: 1 -> 1"):
        adjacency.validate([[0, 0], [0, 1]], 2)


def test_the_order_that_is_suggested_works():
    matrix = np.zeros([4, 4], int)
    matrix[0, 3] = matrix[1, 0] = matrix[1, 2] = matrix[2, 3] = 1
    with pytest.raises(ValueError, match="strictly lower triangular") as caught:
        adjacency.validate(matrix, 4)
    order = [int(node) for node in re.search(r"\[(.*)\]", str(caught.value)).group(1).split(",")]
    assert sorted(order) == [0, 1, 2, 3]
    adjacency.validate(matrix[np.ix_(order, order)], 4)

"""Region graphs: exact counts, irregular sizes, and refusals that name the region."""

import itertools
import math

import numpy as np
import pytest

from tests.reference import sum_product as twin
from tfstruct.distributions.region_graph import (
    Partition,
    RegionGraph,
    RegionGraphError,
    bisected_image,
    poon_domingos,
    random_binary_trees,
    single_region,
)

# Images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "delta"), [((28, 28), 7), ((32, 32), 8), ((32, 32, 3), 8)])
def test_sixteen_tiles_make_the_network_of_the_paper(shape, delta):
    graph = poon_domingos(shape, delta)
    assert graph.num_variables == math.prod(shape)
    assert graph.counts(num_leaves=2, num_sums=2)._asdict() == {
        "regions": 100,
        "leaf_regions": 16,
        "internal_regions": 84,
        "partitions": 200,
        "leaves": 32,
        "products": 800,
        "sums": 167,
        "sum_weights": 1_576,
    }
    assert {len(graph.regions[region]) for region in graph.leaf_regions} == {math.prod(shape) // 16}
    assert graph.is_tiling


def test_hadamard_products_count_one_for_every_index():
    graph = poon_domingos((28, 28), 7)
    counts = graph.counts(num_leaves=5, num_sums=5, products="hadamard")
    assert (counts.leaves, counts.products, counts.sums) == (80, 5 * 200, 83 * 5 + 1)
    of_root = 5 * len(graph.partitions_of(graph.root))
    assert counts.sum_weights == 5 * (5 * 200 - of_root) + of_root
    with pytest.raises(ValueError, match="products=hadamard needs num_leaves equal to num_sums, found 2 and 3"):
        graph.counts(num_leaves=2, num_sums=3, products="hadamard")
    with pytest.raises(ValueError, match="products must be one of cross, hadamard, found 'sum'"):
        graph.counts(num_leaves=2, num_sums=2, products="sum")


@pytest.mark.parametrize(
    ("shape", "delta", "tiles"), [((28, 28), 7, 16), ((28, 28), 4, 49), ((5, 7, 2), 2, 12), ((2, 9), 3, 3)]
)
def test_a_bisected_image_is_a_binary_tree_over_the_tiles_of_the_grid(shape, delta, tiles):
    graph, grid = bisected_image(shape, delta), poon_domingos(shape, delta)
    assert len(graph.leaf_regions) == tiles
    assert len(graph.partitions) == len(graph.internal_regions) == tiles - 1
    same = {graph.regions[region] for region in graph.leaf_regions}
    assert same == {grid.regions[region] for region in grid.leaf_regions}
    assert set(graph.regions) <= set(grid.regions)  # rectangles of whole tiles
    assert graph.is_tiling


def test_an_image_is_halved_across_its_longer_side_and_a_square_across_its_height():
    graph = bisected_image((4, 6), 2)
    root, (upper, lower) = graph.root, graph.partitions_of(graph.root)[0]
    assert [len(graph.regions[region]) for region in (root, upper, lower)] == [24, 8, 16]  # 2 x 3 tiles: 1 and 2 wide
    graph = bisected_image((4, 4), 2)
    upper, lower = graph.partitions_of(graph.root)[0]
    assert graph.regions[upper] == tuple(range(8))
    assert graph.regions[lower] == tuple(range(8, 16))


def test_images_of_no_size_are_not_bisected():
    for shape, delta in (((4,), 2), ((4, 0), 2), ((4, 4), 0)):
        with pytest.raises(ValueError, match="delta at least 1, found"):
            bisected_image(shape, delta)


def test_leaves_and_sums_of_a_region_count_apart():
    counts = poon_domingos((28, 28), 14).counts(num_leaves=3, num_sums=2)
    # Four tiles, four halves of one partition each, and the root of two: 9 products a half, 2 * 2 a cut of the root.
    assert counts._asdict() == {
        "regions": 9,
        "leaf_regions": 4,
        "internal_regions": 5,
        "partitions": 6,
        "leaves": 12,
        "products": 4 * 9 + 2 * 4,
        "sums": 4 * 2 + 1,
        "sum_weights": 4 * 9 * 2 + 2 * 4,
    }


def _rectangles(shape, delta, channels):
    """Every rectangle with its corners on the grid, as a Boolean array."""
    rows, columns = ([*range(0, size, step), size] for size, step in zip(shape, delta, strict=True))
    for top, bottom in itertools.combinations(rows, 2):
        for left, right in itertools.combinations(columns, 2):
            inside = np.zeros([*shape, channels], bool)
            inside[top:bottom, left:right] = True
            yield inside.ravel()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("shape", "delta"), [((5, 7), (2, 3)), ((4, 4), (4, 1)), ((3, 2), (9, 9)), ((6, 3), (2, 2))])
def test_regions_are_all_rectangles_and_partitions_all_their_cuts_on_the_grid(shape, delta, channels):
    graph = poon_domingos(shape if channels == 1 else (*shape, channels), delta)
    expected = {tuple(np.flatnonzero(inside)) for inside in _rectangles(shape, delta, channels)}
    assert set(graph.regions) == expected
    assert len(graph.regions) == len(expected)
    # Any two rectangles of the grid that make up a third are a cut of it, and nothing else is.
    unions = {
        (*sorted([one, two]), tuple(sorted(one + two)))
        for one, two in itertools.combinations(expected, 2)
        if not set(one) & set(two) and tuple(sorted(one + two)) in expected
    }
    found = [
        (*sorted(graph.regions[child] for child in partition.children), graph.regions[partition.region])
        for partition in graph.partitions
    ]
    assert set(found) == unions
    assert len(found) == len(unions)


def test_last_tiles_may_be_smaller_and_one_tile_is_the_root():
    graph = poon_domingos((5, 7), (2, 3))
    assert sorted(len(graph.regions[region]) for region in graph.leaf_regions) == [1, 2, 2, 3, 3, 6, 6, 6, 6]
    assert poon_domingos((5, 7), 7).partitions == ()


def test_tiles_of_one_size_come_row_by_row():
    graph = poon_domingos((4, 4), 2)
    assert [graph.regions[region][0] for region in graph.leaf_regions] == [0, 2, 8, 10]
    assert graph.leaf_regions == (0, 1, 2, 3)
    assert graph.root == 8


@pytest.mark.parametrize("shape", [(4,), (4, 4, 3, 1), (0, 4), (4, 4, 0)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="shape must be .*height, width.*found"):
        poon_domingos(shape, 2)


@pytest.mark.parametrize("delta", [0, (2, 0), (2, -1), (1, 2, 3), (2,)])
def test_other_distances_are_refused(delta):
    with pytest.raises(ValueError, match="delta must be a distance of at least 1, or two, found"):
        poon_domingos((4, 4), delta)


# Trees -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_variables", "depth"), [(16, 2), (16, 4), (13, 3), (5, 9), (1, 3)])
def test_random_trees_halve_every_region_as_deep_as_told(num_variables, depth):
    graph = random_binary_trees(num_variables, depth=depth, repetitions=3, seed=1)
    for region, children in graph.partitions:
        sizes = sorted(len(graph.regions[child]) for child in children)
        assert len(sizes) == 2
        assert sizes[1] - sizes[0] == len(graph.regions[region]) % 2
    assert len(graph.levels) == 1 + min(depth, math.ceil(math.log2(num_variables)))
    sizes = {len(graph.regions[region]) for region in graph.leaf_regions}
    assert max(sizes) <= max(1, math.ceil(num_variables / 2**depth))


def test_one_random_tree_is_a_tree():
    graph = random_binary_trees(16, depth=3, repetitions=1, seed=5)
    assert len(graph.regions) == 15
    assert len(graph.partitions) == 7
    assert len(graph.leaf_regions) == 8
    assert graph.is_tiling


def test_repetitions_share_the_root_and_what_they_have_in_common():
    graph = random_binary_trees(16, depth=2, repetitions=5, seed=5)
    assert len(graph.partitions_of(graph.root)) == 5
    assert not graph.is_tiling
    many = random_binary_trees(4, depth=1, repetitions=100, seed=5)
    # Four variables are halved in three ways.
    assert len(many.partitions) == 3
    assert len(many.regions) == 7


def test_trees_repeat_with_the_seed_and_differ_between_seeds():
    one, same, other = (random_binary_trees(16, depth=3, repetitions=2, seed=seed) for seed in (3, 3, 4))
    assert one.regions == same.regions
    assert one.partitions == same.partitions
    assert one.regions != other.regions


@pytest.mark.parametrize("numbers", [(0, 1, 1), (4, 0, 1), (4, 1, 0)])
def test_numbers_below_one_are_refused(numbers):
    num_variables, depth, repetitions = numbers
    with pytest.raises(ValueError, match=f"at least 1, found {num_variables}, {depth} and {repetitions}"):
        random_binary_trees(num_variables, depth=depth, repetitions=repetitions, seed=0)


# Any graph ---------------------------------------------------------------------------------------------------


def test_one_region_mixes_its_leaves():
    graph = single_region(5)
    assert graph.root == 0
    assert graph.leaf_regions == (0,)
    assert graph.internal_regions == ()
    assert graph.levels == ((0,),)
    assert graph.is_tiling
    counts = graph.counts(num_leaves=3, num_sums=2)
    assert (counts.leaves, counts.sums, counts.sum_weights, counts.products) == (3, 1, 3, 0)
    single = graph.counts(num_leaves=1, num_sums=2)
    assert (single.leaves, single.sums, single.sum_weights) == (1, 0, 0)


def test_a_graph_given_by_hand_is_kept():
    graph = RegionGraph(3, [(2, 1), {0}, [1, 0, 2]], [(2, [1, 0])])
    assert graph.regions == ((1, 2), (0,), (0, 1, 2))
    assert graph.partitions == (Partition(2, (1, 0)),)
    assert graph.partitions_of(2) == [(1, 0)]
    assert graph.partitions_of(0) == []
    assert (graph.root, graph.leaf_regions, graph.internal_regions) == (2, (0, 1), (2,))
    assert [graph.num_nodes(region, 5, 7) for region in range(3)] == [5, 5, 1]
    assert graph.levels == ((0, 1), (2,))


@pytest.mark.parametrize("name", twin.SMALL)
def test_a_region_is_one_level_above_its_highest_child(name):
    graph = twin.SMALL[name]
    level_of = {region: level for level, regions in enumerate(graph.levels) for region in regions}
    assert sorted(level_of) == list(range(len(graph.regions)))
    assert all(list(regions) == sorted(regions) for regions in graph.levels)
    assert graph.levels[0] == graph.leaf_regions
    assert graph.levels[-1] == (graph.root,)
    for region in graph.internal_regions:
        below = [level_of[child] for children in graph.partitions_of(region) for child in children]
        assert level_of[region] == 1 + max(below)


def test_only_graphs_whose_leaf_regions_are_apart_are_tilings():
    assert twin.SMALL["grid"].is_tiling
    assert not twin.SMALL["trees"].is_tiling
    assert not twin.SMALL["n_ary"].is_tiling


def test_sizes_of_an_irregular_graph_are_those_by_hand():
    # Regions 1 and 3: 2 * 4 and 4 products, two sums each; 4: 2 * 2, two sums; root: 2**3 + 2**2 + 2**5, one sum.
    counts = twin.SMALL["n_ary"].counts(num_leaves=2, num_sums=2)
    assert counts == (11, 7, 4, 7, 14, 8 + 4 + 4 + 44, 3 * 2 + 1, 2 * (8 + 4 + 4) + 44)


# Refusals ----------------------------------------------------------------------------------------------------

WHOLE = (0, 1, 2)


@pytest.mark.parametrize(
    ("regions", "partitions", "message"),
    [
        ([(), WHOLE], [], "region 0 is empty"),
        ([WHOLE, (1, 1)], [], r"region 1 \{1, 1\} must hold distinct variables in 0..2"),
        ([WHOLE, (2, 3)], [], r"region 1 \{2, 3\} must hold distinct variables in 0..2"),
        ([WHOLE, (-1, 0)], [], r"region 1 \{-1, 0\} must hold"),
        ([(0, 1), WHOLE, (1, 0)], [], r"region 2 \{0, 1\} has the variables of region 0"),
        ([(0,), (1, 2), WHOLE], [(2, (0,))], r"two or more as its children, found \(2, \(0,\)\)"),
        ([(0,), (1, 2), WHOLE], [(2, (0, 3))], r"one of the regions 0..2 .* found \(2, \(0, 3\)\)"),
        ([(0,), (1, 2), WHOLE], [(3, (0, 1))], r"found \(3, \(0, 1\)\)"),
        ([(0,), (1, 2), WHOLE], [(2, (0, -2))], r"found \(2, \(0, -2\)\)"),
        (
            [(0, 1), (1, 2), WHOLE],
            [(2, (0, 1))],
            r"not decomposable: region 2 \{0, 1, 2\} is cut into region 0 \{0, 1\} and region 1 \{1, 2\}, which share "
            "variable 1",
        ),
        ([(0,), (1, 2), WHOLE], [(2, (0, 1, 0))], "not decomposable: region 2 .* share variable 0"),
        (
            [(0,), (1,), WHOLE],
            [(2, (0, 1))],
            r"not complete: the parts 0, 1 of region 2 \{0, 1, 2\} are not the whole of it; they differ in variable 2",
        ),
        (
            [(0,), (1, 2), (0, 1), WHOLE],
            [(2, (0, 1))],
            r"not complete: the parts 0, 1 of region 2 \{0, 1\} .* variable 2",
        ),
        ([(0, 1), (2,)], [], "no region is over all 3 variables"),
        ([], [], "no region is over all 3 variables"),
        ([WHOLE, (0,)], [], r"region 1 \{0\} is no part of any partition of the root"),
        (
            [(0,), (1, 2), WHOLE, (0, 1), (1,)],
            [(2, (0, 1)), (3, (0, 4))],
            r"region 3 \{0, 1\} is no part of any partition of the root",
        ),
    ],
)
def test_a_wrong_graph_is_refused_and_the_region_named(regions, partitions, message):
    with pytest.raises(RegionGraphError, match=message):
        RegionGraph(3, regions, partitions)


def test_long_regions_are_named_by_their_first_variables():
    graph = single_region(9)
    assert graph.describe(0) == "region 0 {0, 1, 2, 3, 4, 5, 6, 7, ... (9 in all)}"
    assert single_region(8).describe(0) == "region 0 {0, 1, 2, 3, 4, 5, 6, 7}"

"""What is drawn where, and that figures can be written."""

import matplotlib.image
import numpy as np
import pytest

from tfstruct.distributions.region_graph import poon_domingos, random_binary_trees
from tfstruct.models.sum_product_vae import figures as circuits
from tfstruct.plotting import save, style

MISSING = np.array([0.35, 0.45, 0.75])


def region_graph(graph, shape):
    return circuits.draw_region_graph(graph.regions, graph.partitions, graph.levels, shape)


def inpainting(rng, images=2, draws=3, shape=(4, 5)):
    """Two kinds of missing pixels, each image of a value of its own."""

    def kind(log_prob):
        original = rng.random([images, *shape])
        observed = original.copy()
        observed[:, :, 3:] = np.nan
        completed, mean = rng.random([draws, images, *shape]), rng.random([images, *shape])
        return {"original": original, "observed": observed, "completed": completed, "mean": mean,
                "log_prob": log_prob, "std_err": 1.6, "root_mean_square": 0.1, "of_mean_image": 0.2}  # fmt: skip

    return {"right half": kind(-10.4), "centre": kind(-20.6)}


def misplaced(rng, images=3, shape=(4, 5)):
    image, swapped, misfit = (rng.random([images, *shape]) for _ in range(3))
    misfit = misfit[..., 0] if len(shape) == 3 else misfit
    box = np.array([[1, 2, 3, 5], [0, 0, 2, 2], [2, 1, 4, 4]])
    return {"image": image, "swapped": swapped, "map": misfit, "box": np.resize(box, (images, 4))}


DRAWN = {
    "region_graph": lambda rng: region_graph(poon_domingos((4, 6), 2), (4, 6)),
    "latent_maps": lambda rng: circuits.draw_latent_maps(rng.random([2, 12, 18]), grid=(2, 3)),
    "coloured maps": lambda rng: circuits.draw_latent_maps(rng.random([1, 12, 18, 3]), grid=(2, 3)),
    "inpainting": lambda rng: circuits.draw_inpainting(inpainting(rng)),
    "coloured inpainting": lambda rng: circuits.draw_inpainting(inpainting(rng, shape=(4, 5, 3))),
    "misplaced": lambda rng: circuits.draw_misplaced(misplaced(rng)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_written_and_show_something(rng, tmp_path, name):
    pixels = matplotlib.image.imread(save(DRAWN[name](rng), tmp_path / "figure.png"))[..., :3]
    assert pixels.std() > 0.02


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_no_line_runs_through_a_picture(rng, name):
    for axes in DRAWN[name](rng).axes:
        shown = [line for line in (*axes.get_xgridlines(), *axes.get_ygridlines()) if line.get_visible()]
        assert not (axes.images and axes.axison and shown)


# Region graphs -------------------------------------------------------------------------------------------------------


def test_every_region_is_a_thumbnail_of_its_pixels_and_lies_above_its_parts():
    graph = poon_domingos((4, 6), 2)
    (axes,) = region_graph(graph, (4, 6)).axes
    assert len(axes.images) == len(graph.regions)
    order = [region for level in graph.levels for region in level]
    for region, image in zip(order, axes.images, strict=True):
        dark = np.flatnonzero(image.get_array().ravel() < 0.5)
        assert tuple(dark) == graph.regions[region]
        assert image.get_array().shape == (4, 6)
    heights = {region: image.get_extent()[2] for region, image in zip(order, axes.images, strict=True)}
    for region, children in graph.partitions:
        assert all(heights[child] < heights[region] for child in children)
    boxes = {tuple(np.round(image.get_extent(), 6)) for image in axes.images}
    assert len(boxes) == len(graph.regions)
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    assert all(left <= x0 < x1 <= right and low <= y0 < y1 <= high for x0, x1, y0, y1 in boxes)
    for level in graph.levels:
        assert len({heights[region] for region in level}) == 1


def test_lines_of_a_partition_go_from_the_region_to_its_parts_in_one_colour():
    graph = random_binary_trees(6, depth=2, repetitions=2, seed=0)
    (axes,) = region_graph(graph, (2, 3)).axes
    order = [region for level in graph.levels for region in level]
    centres = {}
    for region, image in zip(order, axes.images, strict=True):
        x0, x1, y0, y1 = image.get_extent()
        centres[region] = (x0 + x1) / 2, y0, y1
    wanted = [
        (number, region, child) for number, (region, children) in enumerate(graph.partitions) for child in children
    ]
    assert len(axes.lines) == len(wanted)
    for line, (number, region, child) in zip(axes.lines, wanted, strict=True):
        np.testing.assert_allclose(line.get_xdata(), [centres[region][0], centres[child][0]])
        np.testing.assert_allclose(line.get_ydata(), [centres[region][1], centres[child][2]])
        assert line.get_color() == style.color(number)


def test_of_many_partitions_those_of_one_decomposition_have_colours(rng):
    graph = random_binary_trees(48, depth=4, repetitions=10, seed=0)
    axes = region_graph(graph, (6, 8)).axes[0]
    lines = iter(axes.lines)
    colored, plain = [], []
    for region, children in graph.partitions:
        colors = {str(next(lines).get_color()) for _ in children}
        assert len(colors) == 1  # of a bracket
        (plain if colors == {"0.8"} else colored).append((region, children))
    assert len(plain) > len(colored) > 1
    divided = [region for region, _ in colored]
    assert len(set(divided)) == len(divided)
    parts = [child for _, children in colored for child in children if child not in divided]
    assert sorted(pixel for part in parts for pixel in graph.regions[part]) == list(range(48))  # each pixel once


def test_regions_outside_the_image_are_refused():
    with pytest.raises(ValueError, match="variables outside an image of 2 x 2"):
        region_graph(poon_domingos((2, 3), 1), (2, 2))


# Latent maps ---------------------------------------------------------------------------------------------------------


def test_leaves_of_a_region_are_panels_and_regions_lie_between_lines(rng):
    maps = rng.random([3, 12, 20])
    figure = circuits.draw_latent_maps(maps, grid=(2, 4))
    assert [axes.get_title() for axes in figure.axes] == [
        f"leaf {n} of 3 of every region, two directions of its latents" for n in (1, 2, 3)
    ]
    for axes, values in zip(figure.axes, maps, strict=True):
        (image,) = axes.images
        np.testing.assert_array_equal(image.get_array(), values)
        assert image.get_clim() == (0.0, 1.0)
        assert image.get_extent() == [0, 20, 12, 0]
        across = sorted(line.get_ydata()[0] for line in axes.lines if line.get_ydata()[0] == line.get_ydata()[1])
        upright = sorted(line.get_xdata()[0] for line in axes.lines if line.get_xdata()[0] == line.get_xdata()[1])
        assert across == [6.0]
        assert upright == [5.0, 10.0, 15.0]


# Completions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_a_block_has_originals_what_is_observed_draws_and_means_one_above_another(rng, shape):
    found = inpainting(rng, shape=shape)
    figure = circuits.draw_inpainting(found)
    assert len(figure.axes) == 2
    for axes, (kind, part) in zip(figure.axes, found.items(), strict=True):
        picture = axes.images[0].get_array().data
        rows = [part["original"], part["observed"], *part["completed"], part["mean"]]
        assert picture.shape == (len(rows) * 4, 2 * 5, 3)
        for row, images in enumerate(rows):
            for column, image in enumerate(images):
                expected = image if len(shape) == 3 else np.repeat(image[..., np.newaxis], 3, axis=-1)
                expected = np.where(np.isnan(expected), MISSING, expected)
                np.testing.assert_allclose(picture[4 * row : 4 * row + 4, 5 * column : 5 * column + 5], expected)
        assert kind in axes.get_title()
        assert f"{part['log_prob']:.0f} +- 2 nats" in axes.get_title()
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert len(labels) == len(axes.get_yticks()) == len(rows)
        np.testing.assert_allclose(axes.get_yticks(), 4 * np.arange(len(rows)) + 2)


# Misplaced regions ---------------------------------------------------------------------------------------------------


def test_images_swapped_images_and_misfit_stand_below_one_another(rng):
    found = misplaced(rng, images=5)
    figure = circuits.draw_misplaced(found, columns=3)
    top, middle, bottom, bar = figure.axes
    for axes, name in ((top, "image"), (middle, "swapped")):
        expected = np.concatenate(list(found[name][:3]), axis=1)
        np.testing.assert_allclose(axes.images[0].get_array(), np.repeat(expected[..., np.newaxis], 3, axis=-1))
    np.testing.assert_array_equal(bottom.images[0].get_array(), np.concatenate(list(found["map"][:3]), axis=1))
    low, high = bottom.images[0].get_clim()
    np.testing.assert_allclose((low, high), np.quantile(found["map"][:3], [0.02, 0.98]))
    assert [axes.get_ylabel() for axes in (top, middle, bottom)] == ["image", "one region\nswapped", "misfit"]
    assert bar.get_ylabel() == "log p(region) - log p(region | rest), nats"


def test_the_misfit_of_coloured_images_is_one_number_a_pixel(rng):
    found = misplaced(rng, shape=(4, 5, 3))
    found["map"] = np.repeat(found["map"][..., np.newaxis], 3, axis=-1)
    axes = circuits.draw_misplaced(found).axes
    assert axes[2].images[0].get_array().shape == (4, 3 * 5)
    np.testing.assert_allclose(axes[2].images[0].get_array(), np.concatenate(list(found["map"][..., 0]), axis=1))


def test_grey_images_three_pixels_wide_are_no_coloured_ones(rng):
    found = misplaced(rng, shape=(4, 3))
    picture = circuits.draw_misplaced(found).axes[0].images[0].get_array()
    assert picture.shape == (4, 9, 3)


def test_the_swapped_region_of_every_image_is_framed(rng):
    figure = circuits.draw_misplaced(misplaced(rng))
    frames = [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in figure.axes[1].patches]
    assert frames == [(1.5, 0.5, 3, 2), (4.5, -0.5, 2, 2), (10.5, 1.5, 3, 2)]


@pytest.mark.parametrize(("sides", "delta"), [((4, 4), 2), ((4, 4), 1), ((4, 6), 4)])
def test_the_title_of_a_region_graph_is_within_the_figure(sides, delta):
    figure = region_graph(poon_domingos(sides, delta), sides)
    figure.draw_without_rendering()
    title = figure.axes[0].title.get_window_extent()
    assert title.y1 <= figure.bbox.y1
    assert title.x0 >= 0.0
    assert title.x1 <= figure.bbox.x1


def test_few_partitions_are_drawn_wider_than_many():
    few, many = (region_graph(poon_domingos((4, 4), delta), (4, 4)).axes[0].lines[0] for delta in (2, 1))
    assert few.get_linewidth() > many.get_linewidth()

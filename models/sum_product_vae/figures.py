"""Pictures of sum-product networks: the region graph, latent maps, completions, misplaced regions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tfstruct.plotting import style

_MISSING = (0.35, 0.45, 0.75)  # the colour of missing pixels, which no grey level has
_MOST_COLORED = 24  # partitions; of more, those of one decomposition are


def _decomposition(partitions: Sequence[tuple[int, Sequence[int]]], root: int) -> list[int]:
    """The numbers of partitions that divide the root, and their parts in turn: of each region its first one."""
    first = {region: number for number, (region, _) in reversed(list(enumerate(partitions)))}
    found, waiting = [], [root]
    while waiting:
        if (number := first.get(waiting.pop(0))) is not None:
            found.append(number)
            waiting += partitions[number][1]
    return found


@style.styled
def draw_region_graph(
    regions: Sequence[Sequence[int]],
    partitions: Sequence[tuple[int, Sequence[int]]],
    levels: Sequence[Sequence[int]],
    image_shape: tuple[int, int],
) -> Figure:
    """Draws every region of an image as a thumbnail, levels above one another, and each partition as a bracket.

    Of more than 24 partitions, one decomposition of the image is in colour and the others are thin grey lines.

    Args:
        regions: the variables of each region, as places in a flattened image.
        partitions: (region, children).
        levels: regions by height, leaf regions first.
        image_shape: (height, width).

    Raises:
        ValueError: variables outside the image.
    """
    height, width = image_shape
    if max(max(region) for region in regions) >= height * width:
        raise ValueError(f"the regions have variables outside an image of {height} x {width}")
    widest = max(len(level) for level in levels)
    figure = Figure(figsize=(max(6.0, 0.42 * widest), 1.5 * len(levels)))
    axes = figure.add_subplot()
    axes.set_axis_off()
    size, places = 0.8, {}
    for row, level in enumerate(levels):
        for column, region in enumerate(level):
            x, y = (column + 0.5) * widest / len(level), 3.5 * row
            places[region] = (x, y)
            thumbnail = np.full(height * width, 0.92)
            thumbnail[list(regions[region])] = 0.15
            axes.imshow(
                thumbnail.reshape(height, width),
                cmap="gray",
                vmin=0.0,
                vmax=1.0,
                extent=(x - size / 2, x + size / 2, y - size / 2, y + size / 2),
                interpolation="nearest",
                zorder=2,
            )
    followed = _decomposition(partitions, levels[-1][0]) if len(partitions) > _MOST_COLORED else range(len(partitions))
    colors = {number: style.color(rank) for rank, number in enumerate(followed)}
    for number, (region, children) in enumerate(partitions):
        x, y = places[region]
        line = {"color": colors.get(number, "0.8"), "linewidth": 1.6 if number in colors else 0.5}
        for child in children:
            child_x, child_y = places[child]
            axes.plot([x, child_x], [y - size / 2, child_y + size / 2], zorder=1 + (number in colors) / 2, **line)
    title = f"{len(regions)} regions, {len(levels[0])} of them leaf regions, {len(partitions)} partitions"
    axes.set_title(title + "; one way to divide the image in colour" * (len(colors) < len(partitions)))
    axes.set_xlim(0.0, widest)
    axes.set_ylim(-0.7, 3.5 * (len(levels) - 1) + 0.7)
    axes.set_aspect("equal")
    return figure


@style.styled
def draw_latent_maps(maps: Any, *, grid: tuple[int, int]) -> Figure:
    """Draws what `analysis.latent_maps` gives: a panel for each of the leaves that share a region.

    Args:
        maps: [leaves of a region, height, width(, channels)] in [0, 1].
        grid: leaf regions along each axis, for the lines between them.
    """
    maps = np.asarray(maps)
    count, height, width = maps.shape[:3]
    figure = Figure(figsize=(5.2 * count, 5.5 * height / width))
    for place, values in enumerate(maps):
        axes = figure.add_subplot(1, count, place + 1)
        axes.imshow(values, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest", extent=(0, width, height, 0))
        for line in range(1, grid[0]):
            axes.axhline(line * height / grid[0], color=_MISSING, linewidth=1.0)
        for line in range(1, grid[1]):
            axes.axvline(line * width / grid[1], color=_MISSING, linewidth=1.0)
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"leaf {place + 1} of {count} of every region, two directions of its latents")
    return figure


def _colored(images: np.ndarray) -> np.ndarray:
    """Grey or coloured images with NaN for missing pixels as RGB."""
    if images.ndim == 3:
        images = np.repeat(images[..., np.newaxis], 3, axis=-1)
    return np.where(np.isnan(images), np.array(_MISSING), images)


@style.styled
def draw_inpainting(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draws what `analysis.inpainting` gives: a block for each kind of mask, a column for each image."""
    kinds = list(found)
    draws = len(found[kinds[0]]["completed"])
    rows = ["image", "observed", *(f"draw {draw + 1}" for draw in range(draws)), "mean"]
    count = len(found[kinds[0]]["original"])
    figure = Figure(figsize=(0.5 * count + 1.6, len(kinds) * (0.5 * len(rows) + 0.35)))
    axes = figure.subplots(len(kinds), 1, squeeze=False)[:, 0]
    for axis, kind in zip(axes, kinds, strict=True):
        part = found[kind]
        stacked = [part["original"], part["observed"], *part["completed"], part["mean"]]
        lines = [np.concatenate(list(_colored(np.asarray(images))), axis=1) for images in stacked]
        picture = np.concatenate(lines, axis=0)
        axis.imshow(picture, interpolation="nearest", aspect="equal")
        height = picture.shape[0] / len(rows)
        axis.set_yticks([(place + 0.5) * height for place in range(len(rows))], rows, fontsize=style.LABEL_SIZE)
        axis.grid(visible=False)
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.set_title(
            f"missing: {kind}; log p(missing | observed) {part['log_prob']:.0f} +- {part['std_err']:.0f} nats",
            fontsize=9,
        )
    return figure


@style.styled
def draw_misplaced(found: Mapping[str, Any], *, columns: int = 10) -> Figure:
    """Draws what `analysis.misplaced_regions` gives: images, swapped images with the region framed, misfits."""
    count = min(columns, len(found["image"]))
    misfit = np.asarray(found["map"][:count])
    if misfit.ndim == 4:
        misfit = misfit.mean(axis=-1)
    figure = Figure(figsize=(1.0 * count + 1.6, 3.6))
    rows = figure.subplots(3, 1)
    for axis, name in zip(rows[:2], ("image", "swapped"), strict=True):
        pictures = _colored(np.clip(np.asarray(found[name][:count]), 0.0, 1.0))
        axis.imshow(np.concatenate(list(pictures), axis=1), interpolation="nearest")
        axis.set_ylabel({"image": "image", "swapped": "one region\nswapped"}[name], fontsize=style.LABEL_SIZE)
    width = found["swapped"].shape[2]
    for place, (top, left, bottom, right) in enumerate(np.asarray(found["box"][:count])):
        corner = place * width + left - 0.5, top - 0.5
        rows[1].add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=_MISSING, linewidth=1.2))
    low, high = np.quantile(misfit, [0.02, 0.98])
    shown = rows[2].imshow(
        np.concatenate(list(misfit), axis=1), cmap="magma", vmin=low, vmax=high, interpolation="nearest"
    )
    rows[2].set_ylabel("misfit", fontsize=style.LABEL_SIZE)
    for axis in rows:
        axis.grid(visible=False)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(shown, ax=list(rows), label="log p(region) - log p(region | rest), nats", fraction=0.02, pad=0.01)
    return figure

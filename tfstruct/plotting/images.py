"""Samples and reconstructions as pictures, pixel for pixel."""

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

_DPI = 100
_GAP = 1  # pixels of the images between neighbours
_GAP_COLOR = 0.5  # tells neighbours apart on black and on white backgrounds
_EMPTY_COLOR = 1.0  # of places without an image in the last row
_PICTURE_DOTS = 800
_MOST_DOTS_PER_PIXEL = 8
_LABEL_INCHES = 1.25


def _as_color(images: Any, name: str) -> np.ndarray:
    """Returns images as [n, h, w, 3]; raises ValueError if they are no images in [0, 1]."""
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)) or not images.size:
        raise ValueError(
            f"{name} must be images of shape [n, h, w], [n, h, w, 1] or [n, h, w, 3], found shape {list(images.shape)}"
        )
    images = images.astype(np.float64)
    low, high = images.min(), images.max()
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"{name} must lie in [0, 1], found values from {low} to {high}")
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=-1)


def _tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Returns one picture with the images row by row and a gap between neighbours."""
    count, height, width, _ = images.shape
    rows = math.ceil(count / columns)
    shape = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    picture = np.full(shape, _GAP_COLOR)
    for index in range(rows * columns):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        picture[top : top + height, left : left + width] = images[index] if index < count else _EMPTY_COLOR
    return picture


def _show(picture: np.ndarray, *, label_inches: float = 0.0) -> Figure:
    """Returns a figure in which every pixel of the picture covers the same whole number of dots."""
    height, width, _ = picture.shape
    magnification = max(1, min(_MOST_DOTS_PER_PIXEL, _PICTURE_DOTS // max(height, width)))
    inches = np.array([width, height]) * magnification / _DPI
    figure = Figure(figsize=(inches[0] + label_inches, inches[1]), dpi=_DPI)
    share = label_inches / (inches[0] + label_inches)
    axes = figure.add_axes((share, 0.0, 1.0 - share, 1.0))
    axes.set_axis_off()
    axes.imshow(picture, vmin=0.0, vmax=1.0, interpolation="nearest", aspect="auto")
    return figure


def draw_grid(images: Any, *, columns: int | None = None) -> Figure:
    """Draws images in a grid, row by row.

    Args:
        images: [n, h, w], [n, h, w, 1] or [n, h, w, 3], values in [0, 1].
        columns: images per row; by default as many as make the grid about square.

    Returns:
        The figure; saved with its own dots per inch, every pixel covers a whole number of dots.

    Raises:
        ValueError: arrays that are no images (vectors, say), values outside [0, 1], or `columns` below 1.
    """
    images = _as_color(images, "images")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, found {columns}")
    return _show(_tile(images, min(columns, len(images))))


def draw_reconstructions(
    originals: Any,
    reconstructions: Any,
    *,
    columns: int = 10,
    names: tuple[str, str] = ("original", "reconstruction"),
) -> Figure:
    """Draws pairs, a row of originals above the row of their reconstructions.

    Args:
        originals: [n, h, w], [n, h, w, 1] or [n, h, w, 3], values in [0, 1].
        reconstructions: the same shape; their means rather than draws, as a rule.
        columns: pairs side by side; more pairs go on below.
        names: of the two rows.

    Returns:
        The figure, whose rows are labelled.

    Raises:
        ValueError: arrays that are no images, values outside [0, 1], different shapes, or `columns` below 1.
    """
    originals, reconstructions = np.asarray(originals), np.asarray(reconstructions)
    if originals.shape != reconstructions.shape:
        raise ValueError(
            "originals and reconstructions must have the same shape, "
            f"found {list(originals.shape)} and {list(reconstructions.shape)}"
        )
    if columns < 1:
        raise ValueError(f"columns must be at least 1, found {columns}")
    originals = _as_color(originals, "originals")
    reconstructions = _as_color(reconstructions, "reconstructions")
    count, height, width, _ = originals.shape
    columns = min(columns, count)
    blocks = math.ceil(count / columns)
    rows = np.full((2 * blocks, columns, height, width, 3), _EMPTY_COLOR)
    for index in range(count):
        block, column = divmod(index, columns)
        rows[2 * block, column] = originals[index]
        rows[2 * block + 1, column] = reconstructions[index]
    picture = _tile(rows.reshape(-1, height, width, 3), columns)
    figure = _show(picture, label_inches=_LABEL_INCHES)
    right = 0.94 * _LABEL_INCHES / figure.get_figwidth()
    for row in range(2 * blocks):
        middle = 1.0 - (row * (height + _GAP) + height / 2) / picture.shape[0]
        figure.text(right, middle, names[row % 2], ha="right", va="center", fontsize=10)
    return figure

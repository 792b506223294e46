"""One style for every figure: sizes, lines, and colours that colour-blind readers can tell apart."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler

# Ordered so that the first n are the easiest to tell apart, with the usual kinds of colour blindness as well.
# References: Petroff, Accessible Color Sequences for Data Visualization, 2021 (arXiv:2107.02270).
COLORS: Sequence[Any] = matplotlib.color_sequences["petroff10"]
FIRST, SECOND, THIRD = COLORS[:3]
MUTED = "0.4"  # what stands beside the data: limits, references, ends of phases
LABEL_SIZE = 8  # points; of text inside a figure

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "errorbar.capsize": 3,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "grid.color": "0.92",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}

# A decorator of functions that draw: what they draw has the style, and matplotlib's settings stay as they were.
styled = matplotlib.rc_context(_STYLE)


def color(place: int) -> Any:
    """The colour of the curve at a place, counted from 0; those of ten curves differ."""
    return COLORS[place % len(COLORS)]


def ordered_colors(num: int) -> list[Any]:
    """Colours of `num` things in an order: the ten of curves while they suffice, then shades from dark to light."""
    if num <= len(COLORS):
        return list(COLORS[:num])
    # The lightest tenth would vanish on white.
    return [tuple(shade.tolist()) for shade in matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, num))]


__all__ = ["COLORS", "FIRST", "LABEL_SIZE", "MUTED", "SECOND", "THIRD", "color", "ordered_colors", "styled"]

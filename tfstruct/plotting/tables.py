"""Figures of tables: curves of a metric, a panel for each group of rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from tfstruct.plotting import style


class Point(NamedTuple):
    """A row of a table as a point of its figure.

    Attributes:
        panel: group of the row.
        curve: name of its curve.
        place: along the curve, above 0.
        values: of every seed.
    """

    panel: str
    curve: str
    place: float
    values: Sequence[float]


@style.styled
def draw_table(points: Sequence[Point], *, axis: str, metric: str) -> Figure:
    """Draws curves through the means over seeds, and every seed as a dot; places on a logarithmic axis.

    Args:
        points: at least one.
        axis: what the places are.
        metric: what the values are, with their unit.
    """
    panels = list(dict.fromkeys(point.panel for point in points))
    figure = Figure(figsize=(6.0 * len(panels), 4.5))
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        own = [point for point in points if point.panel == panel]
        for color, curve in enumerate(dict.fromkeys(point.curve for point in own)):
            along = sorted((point for point in own if point.curve == curve), key=lambda point: point.place)
            shade = style.color(color)
            places = [point.place for point in along]
            axes.plot(places, [np.mean(point.values) for point in along], color=shade, label=curve)
            dots = [(point.place, value) for point in along for value in point.values]
            axes.plot(*zip(*dots, strict=True), "o", color=shade)
        axes.set_xscale("log")
        axes.set_xlabel(axis)
        axes.set_ylabel(metric)
        axes.set_title(panel)
        axes.legend()
    return figure

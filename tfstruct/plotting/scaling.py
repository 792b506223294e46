"""What a step costs against the size of what it computes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from tfstruct.plotting import style


class ScalingCurve(NamedTuple):
    """The cost of a step for several values of one setting.

    Attributes:
        values: of the setting.
        seconds: of a step, medians.
        least_seconds: what a step could take at least.
        exponent: a of the fit seconds = c value^a.
    """

    values: Sequence[float]
    seconds: Sequence[float]
    least_seconds: Sequence[float]
    exponent: float


@style.styled
def draw_scaling(curves: Mapping[str, ScalingCurve]) -> Figure:
    """Draws one panel for each setting, both axes logarithmic, of one range of times; the floor is a dashed line.

    Raises:
        ValueError: no curve.
    """
    if not curves:
        raise ValueError("there is no curve to draw")
    columns = min(len(curves), 3)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.0 * rows + 0.3))
    least = min(min(curve.least_seconds) for curve in curves.values())
    limits = 1e3 * 0.8 * least, 1e3 * 1.25 * max(max(curve.seconds) for curve in curves.values())
    for place, (name, curve) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, columns, place, xscale="log", yscale="log", xlabel=name, ylim=limits)
        values, seconds = np.asarray(curve.values, float), np.asarray(curve.seconds, float)
        centre = np.exp(np.mean(np.log(seconds)) - curve.exponent * np.mean(np.log(values)))
        axes.plot(values, 1e3 * centre * values**curve.exponent, color=style.FIRST, linewidth=1.0)
        axes.plot(values, 1e3 * seconds, "o", color=style.FIRST, label="measured, and the fit")
        axes.plot(
            values, 1e3 * np.asarray(curve.least_seconds, float), "--", color=style.MUTED, label="the least possible"
        )
        axes.set_xticks(values, [f"{value:,.0f}" for value in values], rotation=45)
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel("ms a step")
        axes.set_title(f"exponent {round(curve.exponent, 2) + 0.0:.2f}")  # no -0.00
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure

"""Figures of many rows at once: their scores, their latents, and what varies among them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tfstruct.plotting import style

_BINS = 40
_MANY = 20  # values beyond which a colour stands for a number and not for a class


@style.styled
def draw_scores(scores: Mapping[str, Any], *, unit: str = "nats") -> Figure:
    """Draws a histogram of log p(x) for each set of rows, all with the same bins.

    Args:
        scores: [n] of each set, by its name; at least one value that is finite.
        unit: of the scores.
    """
    finite = {name: np.asarray(values, np.float64)[np.isfinite(values)] for name, values in scores.items()}
    bins = np.histogram_bin_edges(np.concatenate(list(finite.values())), _BINS).tolist()
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.add_subplot(xlabel=f"log p(x) ({unit})", ylabel="share of the rows")
    for place, (name, values) in enumerate(finite.items()):
        color = style.color(place)
        weights = np.full(len(values), 1.0 / max(len(values), 1))
        axes.hist(values, bins, weights=weights, histtype="stepfilled", color=color, alpha=0.35)
        axes.hist(values, bins, weights=weights, histtype="step", color=color, linewidth=1.5, label=name)
    axes.legend()
    return figure


@style.styled
def draw_active_units(variances: Any, threshold: float) -> Figure:
    """Draws the variances of posterior means over rows, from the largest, and the threshold of an active unit.

    Args:
        variances: [M] of the latents, at least 0.
        threshold: above which a latent is active, above 0.
    """
    ordered = np.sort(np.asarray(variances, np.float64))[::-1]
    figure = Figure(figsize=(6.4, 3.0))
    axes = figure.add_subplot(xlabel="latent, from the most active", ylabel="variance of its mean")
    colors = [style.FIRST if is_active else "0.7" for is_active in ordered > threshold]
    axes.bar(np.arange(1, len(ordered) + 1), np.maximum(ordered, 1e-3 * threshold), width=1.0, color=colors)
    axes.axhline(threshold, color=style.MUTED, linewidth=1.0, linestyle="--", label=f"active above {threshold:g}")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.01)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)  # bars may fill the axes
    return figure


@style.styled
def draw_latent_map(means: Any, colors: Any, *, title: str) -> Figure:
    """Draws rows by the two directions in which their latents vary most (principal components).

    Args:
        means: posterior means [n, M], n and M at least 2.
        colors: a class (integers, up to 20 of them) or a number of each row, [n].
        title: of the colours.
    """
    means, colors = np.asarray(means, np.float64), np.asarray(colors)
    centred = means - means.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    places = left[:, :2] * sizes[:2]
    shares = sizes[:2] ** 2 / max(np.sum(sizes**2), np.finfo(np.float64).tiny)
    figure = Figure(figsize=(6.4, 5.0))
    axes = figure.add_subplot(
        xlabel=f"first principal component ({shares[0]:.0%} of the variance)",
        ylabel=f"second principal component ({shares[1]:.0%})",
    )
    classes = np.unique(colors)
    if np.issubdtype(colors.dtype, np.integer) and len(classes) <= _MANY:
        shades = style.ordered_colors(len(classes))
        for place, value in enumerate(classes):
            chosen = colors == value
            axes.scatter(*places[chosen].T, s=9, color=shades[place], linewidths=0, label=str(value))
        axes.legend(title=title, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        drawn = axes.scatter(*places.T, s=9, c=colors, cmap="viridis", linewidths=0)
        figure.colorbar(drawn, label=title)
    return figure


@style.styled
def draw_means(values: Mapping[str, Any], errors: Mapping[str, float | None], *, axis: str) -> Figure:
    """Draws the mean of each model with its error bar, and a dot for each seed.

    Args:
        values: [R] of the seeds of each model, by its name.
        errors: standard error of each mean; None: no bar.
        axis: what the values are, with their unit.
    """
    figure = Figure(figsize=(6.4, 1.2 + 0.45 * len(values)))
    axes = figure.add_subplot(xlabel=axis)
    for place, (name, found) in enumerate(values.items()):
        axes.errorbar(np.mean(found), place, xerr=errors[name], fmt="s", color=style.FIRST, capsize=4, markersize=5)
        if len(found) > 1:
            axes.plot(found, [place] * len(found), "o", color=style.SECOND, markersize=3)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return figure

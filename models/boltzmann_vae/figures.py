"""Figures of the analyses of Boltzmann machine posteriors, from the numbers that the analyses return."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from tfstruct.plotting import style

_SWEEP_COLORS = {1: style.COLORS[0], 2: style.COLORS[1], 4: style.COLORS[4], 8: style.COLORS[5]}
_KIND_COLORS = {"reinforce": style.COLORS[2], "reparameterised": "black"}


def _two_panels(width: float = 9.6) -> tuple[Figure, Axes, Axes]:
    figure = Figure(figsize=(width, 4.0))
    left, right = figure.subplots(1, 2)
    return figure, left, right


def _estimator_color(name: str) -> str:
    if name in _KIND_COLORS:
        return _KIND_COLORS[name]
    return _SWEEP_COLORS.get(int(name.split("t=")[1].split()[0]), style.MUTED)


@style.styled
def draw_gradients(result: Mapping[str, Any]) -> Figure:
    """Draws what `tfstruct.models.boltzmann_vae.gradients.analyse_gradients` returns, as figure 2 of DVAE##.

    Left the divergence over the steps, dashed with term I; right the bias and the standard deviation of each gradient
    estimate.

    Raises:
        KeyError: a result of something else.
    """
    figure, left, right = _two_panels(11.0)
    steps = np.asarray(result["steps"])
    for name, curve in result["curves"].items():
        dashes = "--" if name.endswith("with I") else "-"
        values = np.maximum(np.asarray(curve["kl"], np.float64), 1e-16)  # rounding makes a zero negative
        left.plot(steps, values, dashes, color=_estimator_color(name), linewidth=1.4, label=name)
    left.set(xlabel="step", ylabel="KL(q || p) (nats)", yscale="log")
    left.margins(x=0.01)
    left.legend(fontsize=style.LABEL_SIZE, ncols=2)
    errors = result["gradient"]["errors"]
    places = np.arange(len(errors))[::-1]
    for place, (name, error) in zip(places, errors.items(), strict=True):
        color = _estimator_color(name)
        is_dashed = name.endswith("with I")
        right.barh(
            place,
            error["std"],
            height=0.7,
            facecolor=to_rgba(color, 0.15 if is_dashed else 0.45),
            edgecolor=color,
            linestyle="--" if is_dashed else "-",
            label="standard deviation" if place == places[0] else None,
        )
        right.errorbar(
            error["bias"],
            place,
            xerr=2.0 * error["bias_std_err"],
            fmt="D",
            color="black",
            markersize=4.5,
            capsize=2.5,
            label="bias, ± 2 s.e." if place == places[0] else None,
        )
    right.set_yticks(places, list(errors))
    norm = result["gradient"]["norm"]
    right.axvline(norm, color=style.MUTED, linewidth=1.0, linestyle=":", label="norm of the exact gradient")
    right.set(xlabel="L2 error of the gradient at a fixed q")
    right.grid(visible=False, axis="y")
    right.set_xlim(left=-0.02 * max(error["std"] for error in errors.values()))
    right.legend(loc="upper right")
    return figure


@style.styled
def draw_temperatures(result: Mapping[str, Any]) -> Figure:
    """Draws what `tfstruct.models.boltzmann_vae.analysis.analyse_temperatures` returns, as figure 4 of DVAE##.

    Left the mean absolute error of log Z over the number of temperatures, right the standard deviation of the
    estimates with the level at which machines are compared. Values of 0 have no place on the axes and are left out.

    Raises:
        KeyError: a result of something else.
    """
    figure, left, right = _two_panels()
    for color, (name, curve) in zip(style.COLORS, result["curves"].items(), strict=False):
        for axes, key in ((left, "error"), (right, "std")):
            values = np.asarray(curve[key], np.float64)
            values = np.where(values > 0.0, values, np.nan)
            axes.plot(curve["num_temperatures"], values, "o-", color=color, label=name)
        reached = curve["reaches"]["num_temperatures"]
        if reached is not None:
            right.axvline(reached, color=color, linewidth=1.0, linestyle=":")
    right.axhline(result["level"], color=style.MUTED, linewidth=1.0, linestyle="--")
    counts = next(iter(result["curves"].values()))["num_temperatures"]
    ticks = counts[:: -(-len(counts) // 7)]  # as many as have room
    left.set(ylabel="|log Z estimate - reference| (nats)")
    right.set(ylabel="standard deviation of log Z estimates (nats)")
    for axes in (left, right):
        axes.set(xlabel="number of temperatures", xscale="log", yscale="log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
    left.legend()
    return figure


@style.styled
def draw_modes(result: Mapping[str, Any]) -> Figure:
    """Draws what `tfstruct.models.boltzmann_vae.analysis.analyse_modes` returns.

    Left how many posteriors have how many modes, right the divergence of the best mean field from each posterior.

    Raises:
        KeyError: a result of something else.
    """
    figure, left, right = _two_panels()
    counts = np.asarray(result["posterior"]["num_modes"])
    values, heights = np.unique(counts, return_counts=True)
    if counts.max() <= 30:
        left.bar(values, heights, width=0.8, color=style.FIRST)
        left.set_xlim(0.4, max(counts.max(), 3) + 0.6)
    else:
        left.hist(counts, bins=30, color=style.FIRST)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    share = result["posterior"]["share_with_one_mode"]
    title = f"{share:.0%} of {len(counts)} posteriors have one mode"
    if result.get("prior"):
        dependence = result["prior"]["by_num_starts"]
        title += f"\nmodes of the prior: {dependence['num_modes'][-1]:.0f}, from {dependence['num_starts'][-1]} starts"
    left.set(xlabel="number of modes", ylabel="posteriors")
    left.set_title(title)
    divergence = np.asarray(result["posterior"]["kl"], np.float64)
    right.hist(divergence, bins=min(max(len(divergence) // 3, 5), 30), color=style.FIRST, edgecolor="white")
    right.axvline(float(np.median(divergence)), color="black", linewidth=1.0, linestyle="--", label="median")
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel="KL(mean field || posterior) (nats)", ylabel="posteriors")
    right.legend()
    return figure


@style.styled
def draw_sweeps(result: Mapping[str, Any]) -> Figure:
    """Draws what `tfstruct.models.boltzmann_vae.sweeps.analyse_sweeps` returns.

    Left the errors of the moments after s hard sweeps, right the distance of the moments of t relaxed sweeps from those
    of the binary machine; dotted what the finite number of chains leaves, dashed the bias without it.

    Raises:
        KeyError: a result of something else.
    """
    figure, left, right = _two_panels()
    panels = ((left, result["hard"], "hard sweeps s from a start without couplings"),)
    panels += ((right, result["relaxed"], "relaxed sweeps t from equilibrated states"),)
    labels = {"marginals": "marginals", "pairs": "second moments of pairs"}
    for axes, part, label in panels:
        for color, (key, text) in zip(style.COLORS, labels.items(), strict=False):
            axes.plot(part["num_sweeps"], part[key], "o-", color=color, label=text)
            axes.plot(part["num_sweeps"], part["noise_floor"][key], color=color, linewidth=1.2, linestyle=":")
        axes.set(xlabel=label, ylabel="mean absolute error")
    ticks = result["hard"]["num_sweeps"]
    left.set_yscale("log")
    left.set_xscale("symlog", linthresh=1.0, linscale=0.5)
    left.set_xticks(ticks, [str(tick) for tick in ticks])
    left.minorticks_off()
    ticks = result["relaxed"]["num_sweeps"]
    right.set_xscale("log", base=2)
    right.set_xticks(ticks, [str(tick) for tick in ticks])
    right.minorticks_off()
    for color, key in zip(style.COLORS, labels, strict=False):
        relaxed = result["relaxed"]
        right.plot(relaxed["num_sweeps"], relaxed["bias"][key], "s--", color=color)
    left.plot([], [], color=style.MUTED, linewidth=1.2, linestyle=":", label="noise without any bias")
    right.plot([], [], "s--", color=style.MUTED, label="root mean square, noise taken off")
    right.set_ylim(0.0, 1.25 * right.get_ylim()[1])  # room for the legend
    right.legend(loc="upper left")
    left.legend()
    return figure

"""How the gates of a dependency graph move during training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tfstruct.plotting import style
from tfstruct.plotting.figures import broken_line
from tfstruct.plotting.structure import Color, Edge, edge_colors

_MOST_NAMED_EDGES = 30
_DASHES = ("-", "--", ":")  # of neighbours, where there are more edges than colours


@style.styled
def draw_gate_trajectories(
    steps: Any,
    probabilities: Any,
    edges: Sequence[Edge],
    *,
    colors: dict[Edge, Color] | None = None,
    phase_start: int = 0,
) -> Figure:
    """Draws the mean of every gate over the training steps, as in Fig. 3a of the reference.

    Up to 30 edges are named in a legend. Beyond ten the colour runs over the edges in the order of (child, parent), as
    in `draw_structure`, and neighbours have lines of different kinds.

    Args:
        steps: [T], number of optimiser updates done.
        probabilities: [T, E], means of the gates, in [0, 1].
        edges: E pairs (child, parent), counted from 0.
        colors: colour by edge; by default `edge_colors(edges)`.
        phase_start: the step at which the gates were rounded and fixed, marked by a vertical line; 0: none.

    Returns:
        The figure.

    Raises:
        ValueError: shapes that do not fit together.

    References:
        He et al., Variational Autoencoders with Jointly Optimized Latent Dependency Structure, ICLR 2019.
    """
    steps, probabilities = np.asarray(steps), np.asarray(probabilities)
    if steps.ndim != 1 or probabilities.shape != (len(steps), len(edges)):
        raise ValueError(
            f"expected steps [T] and probabilities [T, {len(edges)}] for {len(edges)} edges, "
            f"found {list(steps.shape)} and {list(probabilities.shape)}"
        )
    steps, probabilities = broken_line(steps, probabilities, phase_start)
    colors = edge_colors(edges) if colors is None else colors
    is_named = 0 < len(edges) <= _MOST_NAMED_EDGES
    figure = Figure(figsize=(8.0 if is_named else 6.4, 4.0))
    axes = figure.add_subplot(xlabel="step", ylabel="mean of the gate", ylim=(-0.02, 1.02))
    width = 1.6 if len(edges) <= _MOST_NAMED_EDGES else 0.7
    for index, (child, parent) in enumerate(edges):
        label = f"z{parent + 1} \N{RIGHTWARDS ARROW} z{child + 1}"
        dashes = _DASHES[index % 3 if len(edges) > len(style.COLORS) else 0]
        axes.plot(steps, probabilities[:, index], dashes, color=colors[child, parent], linewidth=width, label=label)
    if phase_start:
        axes.axvline(phase_start, color=style.MUTED, linewidth=1.0, linestyle="--", label="fixed")
    axes.margins(x=0.0)
    if is_named:
        columns = 1 if len(edges) <= 15 else 2
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), ncols=columns)
    return figure

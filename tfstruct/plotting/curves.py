"""Training and validation curves from the rows of `metrics.jsonl`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

_COLORS = {"train": "tab:blue", "validation": "tab:orange"}


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps [T] and the values [T, R] of the rows that have a metric."""
    found = [(row["step"], np.atleast_1d(np.asarray(row[name], np.float64))) for row in rows if name in row]
    counts = sorted({len(value) for _, value in found})
    if len(counts) > 1:
        raise ValueError(f"{name}: rows with different numbers of replicas, {counts}")
    steps = np.array([step for step, _ in found])
    return steps, np.array([value for _, value in found])


def draw_curves(rows: Sequence[Mapping[str, Any]], *, metric: str = "elbo", unit: str = "nats") -> Figure:
    """Draws a metric in training and in validation over the training steps.

    With several replicas each is a thin line and their mean a thick one. Values that are not finite leave a
    gap.

    Args:
        rows: what `tfstruct.training.logging.read_rows` gives, or parsed lines of `metrics.jsonl`.
        metric: name of the metric, without `train/` or `validation/`.
        unit: unit of the metric, for the axis; may be empty.

    Returns:
        The figure.

    Raises:
        ValueError: no row has the metric, or rows differ in the number of replicas.
    """
    groups = [group for group in _COLORS if any(f"{group}/{metric}" in row for row in rows)]
    if not groups:
        known = sorted({name.split("/", 1)[1] for row in rows for name in row if "/" in name})
        raise ValueError(f"no row has the metric {metric!r}; there are {', '.join(known) or 'no metrics'}")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel=f"{metric} ({unit})" if unit else metric)
    for group in groups:
        steps, values = _series(rows, f"{group}/{metric}")
        values = np.where(np.isfinite(values), values, np.nan)
        # A point alone has no line to show it.
        marker = "o" if len(steps) == 1 else None
        num_replicas = values.shape[1]
        if num_replicas > 1:
            axes.plot(steps, values, color=_COLORS[group], linewidth=0.7, alpha=0.4)
        label = group if num_replicas == 1 else f"{group}, mean of {num_replicas}"
        mean = values.mean(axis=1)
        axes.plot(steps, mean, color=_COLORS[group], linewidth=2.2, marker=marker, label=label)
    axes.margins(x=0.01)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure

"""Training and validation curves from the rows of `metrics.jsonl`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tfstruct.plotting import style
from tfstruct.plotting.figures import broken_line

_COLORS = {"train": style.FIRST, "validation": style.SECOND}
_AXES = {"bound": "bound that is trained", "log_likelihood": "log-likelihood"}


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps [T] and the values [T, R] of the rows that have a metric."""
    found = [(row["step"], np.atleast_1d(np.asarray(row[name], np.float64))) for row in rows if name in row]
    counts = sorted({len(value) for _, value in found})
    if len(counts) > 1:
        raise ValueError(f"{name}: rows with different numbers of replicas, {counts}")
    steps = np.array([step for step, _ in found])
    return steps, np.array([value for _, value in found])


def _is_late(steps: np.ndarray, phase_start: int) -> np.ndarray:
    """Whether each step lies past the first tenth of its phase, [T]; phases start at 0 and at `phase_start`."""
    in_first = (steps <= phase_start) & (phase_start > 0)
    late = np.zeros(len(steps), bool)
    for inside, first in ((in_first, 0), (~in_first, phase_start)):
        if inside.any():
            late |= inside & (steps >= first + 0.1 * (steps[inside][-1] - first))
    return late


def _axis(metric: str, unit: str) -> str:
    """The name of the axis of a metric: `validation/bound` in nats is `bound that is trained, validation (nats)`."""
    *group, name = metric.split("/")
    return ", ".join([_AXES.get(name, name), *group]) + (f" ({unit})" if unit else "")


@style.styled
def draw_curves(
    rows: Sequence[Mapping[str, Any]],
    *,
    metric: str = "bound",
    unit: str = "nats",
    phase_start: int = 0,
    instead: str = "log_likelihood",
) -> Figure:
    """Draws a metric in training and in validation over the training steps.

    With several replicas each is a thin line and their mean a thick one. Values that are not finite leave a
    gap. The first tenth of the run, and of its second phase, may leave the frame at the top or bottom, because
    a bound climbs by hundreds of nats there and the rest would be a flat line.

    Args:
        rows: what `tfstruct.training.logging.read_rows` gives, or parsed lines of `metrics.jsonl`.
        metric: name of the metric, without `train/` or `validation/`.
        unit: unit of the metric, for the axis; may be empty.
        phase_start: the step at which a second phase starts all weights anew, marked by a vertical line; 0: none.
        instead: name of a metric that stands for the metric in validation, where rows have only that.

    Returns:
        The figure.

    Raises:
        ValueError: no row has the metric, or rows differ in the number of replicas.
    """
    groups = {group: metric for group in _COLORS if any(f"{group}/{metric}" in row for row in rows)}
    if "train" in groups and any(f"validation/{instead}" in row for row in rows):
        groups.setdefault("validation", instead)
    if not groups:
        known = sorted({name.split("/", 1)[1] for row in rows for name in row if "/" in name})
        raise ValueError(f"no row has the metric {metric!r}; there are {', '.join(known) or 'no metrics'}")
    figure = Figure(figsize=(6.4, 4.0))
    axes = figure.add_subplot(xlabel="step", ylabel=_axis(metric, unit))
    low, high = np.inf, -np.inf
    for group, name in groups.items():
        steps, values = _series(rows, f"{group}/{name}")
        values = np.where(np.isfinite(values), values, np.nan)
        # A point alone has no line to show it.
        marker = "o" if len(steps) == 1 else None
        num_replicas = values.shape[1]
        if num_replicas > 1:
            axes.plot(*broken_line(steps, values, phase_start), color=_COLORS[group], linewidth=0.8, alpha=0.5)
        label = group if name == metric else f"{group}, {_AXES.get(name, name)}"
        label += f", mean of {num_replicas}" if num_replicas > 1 else ""
        mean = values.mean(axis=1)
        axes.plot(
            *broken_line(steps, mean, phase_start), color=_COLORS[group], linewidth=2.0, marker=marker, label=label
        )
        late = values[_is_late(steps, phase_start)]
        late = late[np.isfinite(late)]
        low, high = min([low, *late]), max([high, *late])
    if phase_start:
        axes.axvline(phase_start, color=style.MUTED, linewidth=1.0, linestyle="--", label="structure fixed, restart")
    axes.margins(x=0.01)
    if low < high:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.legend()
    return figure


@style.styled
def draw_runs(runs: Mapping[str, Sequence[Mapping[str, Any]]], *, metric: str, unit: str = "nats") -> Figure:
    """Draws a metric of several runs over their steps.

    The first tenth of the steps may leave the frame, as in `draw_curves`.

    Args:
        runs: rows of `metrics.jsonl` of each run, by its name; each has the metric.
        metric: name of the metric, such as `validation/bound`.
        unit: of the metric.
    """
    figure = Figure(figsize=(6.4, 4.0))
    axes = figure.add_subplot(xlabel="step", ylabel=_axis(metric, unit))
    late = []
    for place, (name, rows) in enumerate(runs.items()):
        steps, values = _series(rows, metric)
        values = np.where(np.isfinite(values), values, np.nan)
        color = style.color(place)
        if values.shape[1] > 1:
            axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.5)
        axes.plot(steps, values.mean(axis=1), color=color, linewidth=2.0, marker="o" * (len(steps) == 1), label=name)
        late.append(values[_is_late(steps, 0)].ravel())
    shown = np.concatenate(late)
    shown = shown[np.isfinite(shown)]
    if shown.size and shown.min() < shown.max():
        margin = 0.05 * (shown.max() - shown.min())
        axes.set_ylim(shown.min() - margin, shown.max() + margin)
    axes.margins(x=0.01)
    axes.legend()
    return figure

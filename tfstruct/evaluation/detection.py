"""How well scores tell foreign data from normal data, with intervals."""

from typing import NamedTuple

import numpy as np
from scipy import stats

_RESAMPLES, _SEED = 200, 0
_TWO_SIDED = 1.959964  # standard errors of a 95 % interval


class Interval(NamedTuple):
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def auroc(normal: np.ndarray, foreign: np.ndarray) -> Interval:
    """Returns the probability that a foreign row scores below a normal one; ties count half.

    The interval is that of DeLong, DeLong & Clarke-Pearson (Biometrics, 1988), cut to [0, 1]. Where no rows overlap its
    width is 0, which says that no error was seen and not that there is none.

    Args:
        normal: scores [n], high for normal rows; n at least 2.
        foreign: scores [m]; m at least 2.
    """
    below_normal, below_foreign = _placements(foreign, normal), 1.0 - _placements(normal, foreign)
    value = float(below_normal.mean())
    error = np.sqrt(below_normal.var(ddof=1) / len(normal) + below_foreign.var(ddof=1) / len(foreign))
    return Interval(value, *_cut(value, _TWO_SIDED * float(error)))


def average_precision(normal: np.ndarray, foreign: np.ndarray) -> Interval:
    """Returns the area under precision and recall of finding foreign rows by low scores, as average precision.

    It depends on how many there are of either; the interval is by the bootstrap, rows of both drawn anew.

    Args:
        normal: scores [n], high for normal rows.
        foreign: scores [m].
    """
    value = _average_precision(normal, foreign)
    generator = np.random.default_rng(_SEED)
    drawn = [
        _average_precision(*(generator.choice(scores, len(scores)) for scores in (normal, foreign)))
        for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(value, float(low), float(high))


def share(flags: np.ndarray) -> Interval:
    """Returns the part of Boolean flags [n] that are true, with Wilson's interval."""
    interval = stats.binomtest(int(np.sum(flags)), len(flags)).proportion_ci(method="wilson")
    return Interval(float(np.mean(flags)), float(interval.low), float(interval.high))


def p_values(normal: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the part of normal rows that score as low, [m], with the row itself as one of them.

    Args:
        normal: scores of held-out normal rows, sorted [n].
        scores: of other rows [m].
    """
    return (1.0 + np.searchsorted(normal, scores, side="right")) / (len(normal) + 1.0)


def _placements(scores: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Of each of `among`, the part of scores that are below it; ties count half."""
    ordered = np.sort(scores)
    below, not_above = (np.searchsorted(ordered, among, side=side) for side in ("left", "right"))
    return (below + not_above) / (2.0 * len(ordered))


def _average_precision(normal: np.ndarray, foreign: np.ndarray) -> float:
    """Precision at every recall, foreign rows found by low scores; rows of one score are found together."""
    thresholds = np.unique(foreign)
    found = np.searchsorted(np.sort(foreign), thresholds, side="right")
    alarms = np.searchsorted(np.sort(normal), thresholds, side="right")
    gained = np.diff(found, prepend=0) / len(foreign)
    return float(np.sum(gained * found / (found + alarms)))


def _cut(value: float, half_width: float) -> tuple[float, float]:
    return max(0.0, value - half_width), min(1.0, value + half_width)

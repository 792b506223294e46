"""Where values lie: what a likelihood needs of the data it is given, checked before it is computed.

A Bernoulli likelihood of grey levels, or a mixture density of the integers 0..255, gives a number without
complaint. The functions here refuse instead, and say what to change.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

BINARY = "binary"
UNIT_INTERVAL = "unit_interval"
INTEGERS = "integers_0_255"
REAL = "real"
SUPPORTS = (BINARY, UNIT_INTERVAL, INTEGERS, REAL)

# Where the observations of a likelihood may lie. A density of values on a lattice is no probability of them, and the
# Gaussian's mean lies in (0, 1).
LIKELIHOOD_SUPPORTS = {
    "bernoulli": (BINARY,),
    "gaussian": (UNIT_INTERVAL, REAL),
    "binomial": (INTEGERS,),
    "categorical": (INTEGERS,),
    "logistic_mixture": (INTEGERS,),
    "spline": (INTEGERS,),
}

CHUNK_BYTES = 2**26  # a memory-mapped array is read piece by piece

#: of each support, for messages and cards
MEANING = {
    BINARY: "0 or 1",
    UNIT_INTERVAL: "in [0, 1]",
    INTEGERS: "integers in 0..255",
    REAL: "finite",
}
#: of real numbers, of which no variant makes other values
REAL_REMEDY = "`--set model.likelihood=gaussian --set data.standardise=True`, a density of real numbers"
_REMEDY = {
    BINARY: "`--set data.variant=dynamic` (draws from the intensities) or `--set data.variant=thresholded` for images, "
    f"or else {REAL_REMEDY}",
    UNIT_INTERVAL: "`--set data.variant=grey` (intensity / 255) or `--set data.variant=dequantized`",
    INTEGERS: "`--set data.variant=levels` (as they are) or `--set data.variant=discrete` (stretched per image)",
    REAL: "rows without NaN and infinities",
}


@dataclasses.dataclass(frozen=True)
class Summary:
    """What one pass over an array found.

    Attributes:
        non_finite: number of NaN and infinite values; the other fields describe finite values only.
        first_non_finite: first row that holds one, None without any.
        minimum: least value; infinity for no values.
        maximum: greatest value; minus infinity for no values.
        integral: whether all values are integers.
    """

    non_finite: int
    first_non_finite: int | None
    minimum: float
    maximum: float
    integral: bool

    @property
    def support(self) -> str:
        """The narrowest of `SUPPORTS` that holds all values."""
        if self.minimum >= 0.0 and self.maximum <= 1.0:
            return BINARY if self.integral else UNIT_INTERVAL
        return INTEGERS if self.integral and self.minimum >= 0.0 and self.maximum <= 255.0 else REAL


def _chunks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields pieces of at most `CHUNK_BYTES`, or one row, with the number of their first row."""
    rows = max(1, CHUNK_BYTES // max(1, values[:1].nbytes))
    for start in range(0, len(values), rows):
        yield start, np.asarray(values[start : start + rows])


def summarize(values: np.ndarray) -> Summary:
    """Reads real or integer values [n, ...] once, piece by piece."""
    non_finite, first, minimum, maximum, integral = 0, None, np.inf, -np.inf, True
    for start, chunk in _chunks(values):
        if chunk.dtype.kind == "f":
            wrong = ~np.isfinite(chunk)
            if wrong.any():
                non_finite += int(wrong.sum())
                if first is None:
                    first = start + int(np.argwhere(wrong)[0, 0])
                chunk = chunk[~wrong]
            integral = integral and bool((chunk == np.rint(chunk)).all())
        if chunk.size:
            minimum = min(minimum, float(chunk.min()))
            maximum = max(maximum, float(chunk.max()))
    return Summary(non_finite, first, minimum, maximum, integral)


def mean_of(values: np.ndarray) -> np.ndarray:
    """Returns the mean of every value of rows [n, *event], float64 [*event], piece by piece."""
    return np.sum([chunk.sum(axis=0, dtype=np.float64) for _, chunk in _chunks(values)], axis=0) / len(values)


def mean_and_std(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of every value of rows [n, *event], float64 [*event], piece by piece.

    Of a value that never changes they are that value and 0, exactly.
    """
    first = np.asarray(values[0], np.float64)
    mean = first + np.sum([(chunk - first).sum(axis=0) for _, chunk in _chunks(values)], axis=0) / len(values)
    squares = [np.square(chunk - mean).sum(axis=0, dtype=np.float64) for _, chunk in _chunks(values)]
    return mean, np.sqrt(np.sum(squares, axis=0) / len(values))


def join(summaries: Iterable[Summary]) -> Summary:
    """Returns what one pass over several arrays in turn would have found, without the row."""
    summaries = list(summaries)
    return Summary(
        sum(summary.non_finite for summary in summaries),
        None,
        min(summary.minimum for summary in summaries),
        max(summary.maximum for summary in summaries),
        all(summary.integral for summary in summaries),
    )


def require_support(values: Any, support: str, what: str) -> None:
    """Raises unless all values lie in a support.

    Args:
        values: array-like [n, ...] of real numbers or integers; booleans count as 0 and 1.
        support: one of `SUPPORTS`.
        what: names the values in the message, e.g. "validation rows".

    Raises:
        ValueError: naming the first offending value, where it is, how many there are, and what to do.
    """
    if support not in SUPPORTS:
        raise ValueError(f"unknown support {support!r}; there are {', '.join(SUPPORTS)}")
    values = np.atleast_1d(np.asanyarray(values))
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{what} must be {MEANING[support]}; found values of type {values.dtype}")
    count, first = 0, None
    for start, chunk in _chunks(values):
        wrong = _outside(chunk, support)
        if wrong.any():
            count += int(wrong.sum())
            if first is None:
                place = tuple(int(index) for index in np.argwhere(wrong)[0])
                first = chunk[place].item(), (start + place[0], *place[1:])
    if first is not None:
        value, place = first
        raise ValueError(
            f"{what} must be {MEANING[support]}; found {value!r} at index {place} and {count:,} such values "
            f"of {values.size:,}. Use {_remedy(values, support)}."
        )


def _remedy(values: np.ndarray, support: str) -> str:
    is_real = support != REAL and summarize(values).support == REAL
    return REAL_REMEDY if is_real else _REMEDY[support]


def require_binary(values: Any, what: str) -> None:
    """Raises ValueError unless all values are 0 or 1; see `require_support`."""
    require_support(values, BINARY, what)


def _outside(chunk: np.ndarray, support: str) -> np.ndarray:
    """Marks the values that a support does not hold; NaN lies in none."""
    if support == BINARY:
        return (chunk != 0) & (chunk != 1)
    if support == UNIT_INTERVAL:
        return ~((chunk >= 0) & (chunk <= 1))
    if support == INTEGERS:
        return ~((chunk >= 0) & (chunk <= 255) & (chunk == np.rint(chunk)))
    return ~np.isfinite(chunk)

"""What a user would try first, to compare with: densities without latents, and scikit-learn's detectors."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tfstruct.data.datasets import Dataset
from tfstruct.data.support import BINARY, REAL, UNIT_INTERVAL, mean_and_std
from tfstruct.data.variants import pixel_means

ISOLATION_FOREST, GAUSSIAN_PCA = "isolation_forest", "gaussian_pca"
_COMPONENTS = 50
_COUNTED_ROWS = 1_000
_FITTED_ROWS = 100_000
_MOST_CORRELATED = 512
_LEAST_LEFT = 1e-6


def fit(rows: np.ndarray, *, seed: int = 0) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Fits an isolation forest and a Gaussian with a low-rank covariance (probabilistic PCA) to normal rows.

    Args:
        rows: training rows [n, *event_shape], final values.
        seed: of both.

    Returns:
        Scores by name: functions of rows [m, *event_shape] to [m], high for normal rows; that of the Gaussian is its
        log density, nats.

    Raises:
        ImportError: scikit-learn is not installed.

    References:
        Liu, Ting & Zhou, Isolation Forest, ICDM 2008; Tipping & Bishop, Probabilistic Principal Component Analysis,
        Journal of the Royal Statistical Society B, 1999.
    """
    try:
        from sklearn.decomposition import PCA
        from sklearn.ensemble import IsolationForest
    except ImportError as error:
        raise ImportError("the baselines take scikit-learn: pip install 'tfstruct[sklearn]'") from error
    flat = rows.reshape(len(rows), -1).astype(np.float32)
    forest = IsolationForest(random_state=seed).fit(flat)
    pca = PCA(min(_COMPONENTS, len(flat) - 1, flat.shape[1] - 1), random_state=seed).fit(flat)

    def on_flat(score: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda new: score(new.reshape(len(new), -1).astype(np.float32))

    return {ISOLATION_FOREST: on_flat(forest.score_samples), GAUSSIAN_PCA: on_flat(pca.score_samples)}


def bits_per_dim(data: Dataset, rows: np.ndarray) -> dict[str, float] | None:
    """Returns what two models without latents need for rows, bits per dimension: what any model must be better than.

    `uniform` gives all values the same probability; `histogram` gives every dimension, alone, its frequencies in the
    training rows, with one row's weight spread over all values, so that nothing is impossible.

    Args:
        data: that the model is trained on: zeros and ones, or 256 levels.
        rows: final values [n, *event_shape] to score.

    Returns:
        None where the values are neither, and bits per dimension have no meaning.
    """
    if data.bits_per_dim_offset is None:
        return None
    num_values = 2 if data.support == BINARY else 256
    if num_values == 2:
        ones = pixel_means(data.train, data.train_transform, 1.0)
        frequencies = np.stack([1.0 - ones, ones])
    else:
        frequencies = _counts(data.train, num_values) / len(data.train)
    weight = 1.0 / (len(data.train) + 1.0)
    bits = -np.log2((1.0 - weight) * frequencies + weight / num_values)  # [value, dimension]
    # Dequantised rows, (x + u) / 256, are back at their levels.
    scale = 256.0 if data.support == UNIT_INTERVAL else 1.0
    histogram = float(np.mean(_counts(rows, num_values, scale) * bits)) * num_values / len(rows)
    return {"uniform": float(np.log2(num_values)), "histogram": histogram}


def _counts(rows: np.ndarray, num_values: int, scale: float = 1.0) -> np.ndarray:
    """Counts how often each dimension has each of the values 0..num_values - 1, float64 [num_values, dims]."""
    dims = int(np.prod(rows.shape[1:]))
    counts = np.zeros(num_values * dims)
    for start in range(0, len(rows), _COUNTED_ROWS):  # rows may be those of a mapped file
        levels = (rows[start : start + _COUNTED_ROWS].reshape(-1, dims) * scale).astype(np.int64)
        counts += np.bincount((levels * dims + np.arange(dims)).reshape(-1), minlength=num_values * dims)
    return counts.reshape(num_values, dims)


def log_densities(data: Dataset, rows: np.ndarray) -> dict[str, float] | None:
    """Returns the mean log density of real rows under Gaussians fitted to training rows, which a model must exceed.

    `independent Gaussians` has a mean and a variance for each value; `Gaussian` has all covariances, where there are at
    most 512 values, ten training rows for each of them, and none that the others give but for a millionth of its
    variance: of sums, copies and indicators of classes it would measure how numbers are rounded.

    Args:
        data: that the model is trained on.
        rows: final values [n, *event_shape] to score.

    Returns:
        Nats; None for data that are not real, or values that never change.
    """
    if data.support != REAL:
        return None
    seen = data.train[:_FITTED_ROWS]
    mean, std = (values.reshape(-1) for values in mean_and_std(seen))
    if not (std > 0.0).all():
        return None
    constant = -0.5 * data.dims * np.log(2.0 * np.pi) - np.sum(np.log(std))
    squares = sum(np.sum(white**2) for white in _whitened(rows, mean, std))
    found = {"independent Gaussians": float(constant - 0.5 * squares / len(rows))}
    if data.dims <= _MOST_CORRELATED and len(seen) >= 10 * data.dims:
        correlations = sum(white.T @ white for white in _whitened(seen, mean, std)) / len(seen)
        with contextlib.suppress(np.linalg.LinAlgError):
            factor = np.linalg.cholesky(correlations)
            left = np.diagonal(factor)  # of each standard deviation, once the values before it are known
            if left.min() ** 2 > _LEAST_LEFT:
                squares = sum(np.sum(np.linalg.solve(factor, white.T) ** 2) for white in _whitened(rows, mean, std))
                found["Gaussian"] = float(constant - np.sum(np.log(left)) - 0.5 * squares / len(rows))
    return found


def _whitened(rows: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Iterator[np.ndarray]:
    """Yields rows in units of their standard deviations, float64 [m, D], a few at a time."""
    for start in range(0, len(rows), _COUNTED_ROWS):
        yield (rows[start : start + _COUNTED_ROWS].reshape(-1, len(mean)) - mean) / std


def flags(baselines: Mapping[str, float] | None, report: Mapping[str, Any], dims: int) -> list[str]:
    """Returns flags where a model is worse than a baseline by more than two standard errors.

    Args:
        baselines: as `bits_per_dim` or `log_densities` returns them.
        report: of the model, with `log_likelihood`, `std_err` and `bits_per_dim`; where the latter is None, nats are
            compared.
        dims: D.
    """
    bits = report["bits_per_dim"]
    found, unit, sign = (report["log_likelihood"], "nats", 1.0) if bits is None else (bits, "bits/dim", -1.0)
    std_err = report["std_err"] if bits is None else report["std_err"] / dims / np.log(2.0)
    digits = 2 if bits is None else 4
    return [
        f"worse than no model: {found:.{digits}f} {unit}, the {name} model has {value:.{digits}f}"
        for name, value in (baselines or {}).items()
        if sign * (found - value) + 2.0 * std_err < 0.0
    ]


def text(baselines: Mapping[str, float] | None) -> str:
    """What stands behind the model's number: ` (uniform 1.0000, histogram 0.5000)`; empty for none."""
    digits = 2 if "independent Gaussians" in (baselines or {}) else 4
    listed = ", ".join(f"{name} {value:.{digits}f}" for name, value in (baselines or {}).items())
    return f" ({listed})" if listed else ""

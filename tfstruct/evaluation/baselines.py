"""Detectors that a user would try first, to compare with: scikit-learn's (the extra `sklearn`)."""

from collections.abc import Callable

import numpy as np

ISOLATION_FOREST, GAUSSIAN_PCA = "isolation_forest", "gaussian_pca"
_COMPONENTS = 50


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

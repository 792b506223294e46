"""A detector of anomalies among rows of numbers, in the manner of scikit-learn (the extra `sklearn`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.data.support import summarize
from tfstruct.evaluation.detection import p_values
from tfstruct.models import presets, registry
from tfstruct.models.system import System

try:
    import keras
    from sklearn.base import BaseEstimator, OutlierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("DensityDetector takes scikit-learn: pip install 'tfstruct[sklearn]'") from error

_LEAST_ROWS = 8
_MARGIN = 0.1  # of [0, 1], on either side of the values that a column had
_CHUNK = 128  # rows scored at once, always as many: products of other shapes round otherwise


class DensityDetector(OutlierMixin, BaseEstimator):
    """Takes rows for anomalies whose log density under a latent-variable model is low.

    Columns are scaled to their range in the training rows; columns of zeros and ones throughout make a model of binary
    data. A part of the rows is held out from training, and its scores set the threshold: of other normal rows at most
    the `false_alarm_rate` is expected to be taken for anomalies, whatever the model.

    Args:
        preset: whose settings to start from; any system that takes vectors. A sum-product network divides the columns
            at random, again and again, unless the overrides say otherwise.
        overrides: `setting=value` for others of its settings, such as `model.num_latents=8`.
        steps: of training.
        batch_size: rows of a step; all where there are fewer.
        false_alarm_rate: above 0 and below 1.
        held_out: part of the rows that set the threshold.
        num_samples: importance samples K of a score.
        random_state: seed, or NumPy generator of the old kind, as everywhere in scikit-learn.

    Attributes:
        model_: the trained system.
        offset_: the threshold of `score_samples`, nats.
        calibration_: scores of the rows held out, sorted.
        n_features_in_: columns.
    """

    def __init__(
        self,
        preset: str = "spvae/tiny",
        *,
        overrides: Sequence[str] = ("model.hidden_units=(32, 32)", "model.num_leaves=4"),
        steps: int = 1_000,
        batch_size: int = 128,
        false_alarm_rate: float = 0.05,
        held_out: float = 0.25,
        num_samples: int = 100,
        random_state: Any = None,
    ) -> None:
        self.preset, self.overrides = preset, overrides
        self.steps, self.batch_size = steps, batch_size
        self.false_alarm_rate, self.held_out = false_alarm_rate, held_out
        self.num_samples, self.random_state = num_samples, random_state

    def fit(self, X: Any, y: Any = None) -> "DensityDetector":
        """Trains on rows [n, d], most of which are normal; y is not looked at.

        Raises:
            ValueError: values that are not finite, fewer than eight rows, settings out of range.
        """
        del y
        for name in ("false_alarm_rate", "held_out"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be above 0 and below 1, found {getattr(self, name)!r}")
        rows = np.asarray(validate_data(self, X, dtype=np.float32, ensure_min_samples=_LEAST_ROWS))
        generator = check_random_state(self.random_state)
        seed = int(generator.randint(2**31 - 1))
        self._is_binary = summarize(rows).support == "binary"
        low, high = rows.min(axis=0), rows.max(axis=0)
        span = np.where(high > low, high - low, 1.0) / (1.0 - 2.0 * _MARGIN)
        self._shift, self._span = (0.0, 1.0) if self._is_binary else (low - _MARGIN * span, span)
        order = generator.permutation(len(rows))
        count = min(max(2, round(self.held_out * len(rows))), len(rows) - 2)
        held, trained = rows[order[:count]], rows[order[count:]]
        self.model_ = self._train(self._scaled(trained), seed)
        self._estimate = None
        self.calibration_ = scores = np.sort(self.score_samples(held))
        # A score has a p-value of at most the rate where it is below the one at this place. Between two scores rounding
        # decides nothing; below all of them the rate is at most 1 / (count + 1).
        place = int(np.floor(self.false_alarm_rate * (count + 1))) - 1
        below = scores[place - 1] if place > 0 else scores[0] - 1e-3 * max(1.0, abs(scores[0]))
        self.offset_ = float((below + scores[max(place, 0)]) / 2.0)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: all but the traced function, which is made anew."""
        state: Any = super().__getstate__()
        return state | ({"_estimate": None} if "_estimate" in state else {})

    def _train(self, rows: np.ndarray, seed: int) -> System:
        changes = [
            "data.name=file", "data.variant=none", f"data.event_shape=({rows.shape[1]},)",
            f"model.likelihood={'bernoulli' if self._is_binary else 'gaussian'}",
            f"training.steps={self.steps}", f"training.seed={seed}",
        ]  # fmt: skip
        if presets.get(self.preset).system == "sum_product_vae":
            changes.append(f"model.structure={'random' if rows.shape[1] > 1 else 'single'}")
            changes.append(f"model.tree_depth={2 if rows.shape[1] >= 4 else 1}")
        model = registry.build(presets.get(self.preset, [*changes, *self.overrides]))
        model.adapt(rows)
        model.compile(keras.optimizers.Adam(model.config.optimizer.learning_rate))
        size = min(self.batch_size, len(rows))
        model.fit(rows, batch_size=size, epochs=max(1, round(self.steps * size / len(rows))), verbose=0)
        return model

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        return ((rows - self._shift) / self._span).astype(np.float32)

    def _estimate_batch(self, x: tf.Tensor) -> tf.Tensor:
        # One key for all: equal rows score equally, alone or among others.
        keys = tf.tile(random.key(0)[np.newaxis], [tf.shape(x)[0], 1])
        return self.model_.estimate(x, keys, num_samples=self.num_samples, chunk=min(self.num_samples, 20)).log_prob

    def score_samples(self, X: Any) -> np.ndarray:
        """Returns estimates of log p(x), nats [n], in the units that X has; low for anomalies.

        Raises:
            ValueError: other columns than in `fit`, values that are not finite, or no zeros and ones where it had them.
        """
        check_is_fitted(self)
        rows = np.asarray(validate_data(self, X, dtype=np.float32, reset=False))
        if self._is_binary and summarize(rows).support != "binary":
            raise ValueError("the detector was fitted to zeros and ones, found other values")
        if self._estimate is None:
            self._estimate = tf.function(self._estimate_batch, autograph=False)
        x = self._scaled(rows)
        padded = np.concatenate([x, np.repeat(x[:1], -len(x) % _CHUNK, axis=0)])
        scores = [self._estimate(tf.constant(part)).numpy() for part in np.split(padded, len(padded) // _CHUNK)]
        # A density of scaled values, in the units of those that were given.
        units = 0.0 if self._is_binary else np.sum(np.log(self._span))
        found = np.concatenate(scores)[: len(x)].astype(np.float64) - units
        return np.where(np.isnan(found), -np.inf, found)  # so far out that float32 has no density for it

    def decision_function(self, X: Any) -> np.ndarray:
        """Returns `score_samples` less the threshold [n]; negative for anomalies."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Returns 1 for normal rows and -1 for anomalies, [n]."""
        return np.where(self.decision_function(X) < 0.0, -1, 1)

    def p_values(self, X: Any) -> np.ndarray:
        """Returns the part of the rows held out that score as low, [n]; uniform over normal rows."""
        return p_values(self.calibration_, self.score_samples(X))

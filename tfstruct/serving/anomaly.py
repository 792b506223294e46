"""Calibrated anomaly scores: how rare, among held-out normal data, a score as low as an observation's is.

A score needs a threshold, and normal data are all that there is to find one with. The empirical p-value
(1 + #{i: s_i <= s}) / (n + 1) of a score s among those of n held-out normal observations is at most alpha with a
probability of at most alpha for another normal observation, whatever the score and the model: a decision by p <= alpha
raises that many false alarms. Likelihood alone ranks some foreign data too high, observations with little in them above
all; hence several scores, and the least of their p-values, which is calibrated again on rows of its own.

References:
    Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005 (conformal p-values); Nalisnick et al.,
    Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality, 2019; Serra et al., Input
    Complexity and Out-of-Distribution Detection with Likelihood-Based Generative Models, ICLR 2020; Ren et al.,
    Likelihood Ratios for Out-of-Distribution Detection, NeurIPS 2019.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct import progress
from tfstruct.inference import code_length
from tfstruct.serving.blocks import signature
from tfstruct.serving.signatures import Untracked

LIKELIHOOD, TYPICALITY, COMPLEXITY, BACKGROUND = "likelihood", "typicality", "complexity", "background"
#: what each score is, of which low values are unusual; nats
MEANING = {
    LIKELIHOOD: "log p(x)",
    TYPICALITY: "minus the distance of log p(x) from its mean over normal data",
    COMPLEXITY: "log p(x) plus the length of an adaptive lossless code of x that knows nothing of the data",
    BACKGROUND: "log p(x) less log p(x) of a model of corrupted data",
}
_BATCH = 100  # rows computed at once
REGION_ROWS = 2_000  # of the calibration, at most, for the p-values of regions

Function = Callable[..., dict[str, tf.Tensor]]


class AnomalyScores(tf.Module):
    """Scores of a bundle and their p-values, computed by the bundle's own signatures: no model code is needed.

    Args:
        signatures: of the bundle, by name.
        card: of the bundle.
        weights: what holds the variables of the bundle, and of the background.
        background: the signature `log_prob` of the background model, if there is one.
    """

    def __init__(
        self,
        signatures: Mapping[str, Function],
        card: Mapping[str, Any],
        weights: Any,
        background: Function | None = None,
    ) -> None:
        super().__init__(name="anomaly_scores")
        self._signatures = Untracked(dict(signatures))
        self._background = Untracked(background)
        self._support, self._event_shape = card["support"], tuple(card["event_shape"])
        self._given = card["part_shapes"][0][0] if card.get("part_shapes") else 0
        region_outputs = card["signatures"].get("region_log_prob", {}).get("outputs", {})
        self._region_output = next((name for name in ("conditional", "contribution") if name in region_outputs), None)
        num_regions = len(card["leaf_regions"])
        self.names = (
            LIKELIHOOD,
            TYPICALITY,
            *([COMPLEXITY] if self._support in code_length.SUPPORTS else []),
            *([BACKGROUND] if background is not None else []),
        )
        self.weights = weights
        self._mean = tf.Variable(0.0, name="mean")
        self._tables = tf.Variable(tf.zeros([len(self.names), 0]), shape=[len(self.names), None], name="tables")
        self._joint = tf.Variable(tf.zeros([1, 0]), shape=[1, None], name="joint")
        self._regions = tf.Variable(tf.zeros([num_regions, 0]), shape=[num_regions, None], name="regions")
        specs = [tf.TensorSpec([None, *self._event_shape], name="x"), tf.TensorSpec([None], tf.int64, name="seed")]
        self._traced = Untracked(tf.function(self._statistics, input_signature=specs, autograph=False))
        alpha = tf.TensorSpec([None], tf.float32, name="alpha")
        self._function = Untracked(signature(self._anomaly, [*specs, alpha]))

    @property
    def anomaly(self) -> Any:
        """The signature: a function of x [N, *event_shape], seed [N] and alpha [N]."""
        return self._function.value

    def _statistics(self, x: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """`log_prob`, what complexity and background add to it, and region scores; -inf or 0 outside the support."""
        result: dict[str, tf.Tensor] = {}
        if self._region_output is None:
            log_prob = self._signatures.value["log_prob"](x=x, seed=seed)["log_prob"]
        else:  # the whole is the sum of its parts: one pass for both
            parts = self._signatures.value["region_log_prob"](x=x, seed=seed)
            log_prob = tf.reduce_sum(parts["contribution"], axis=1) + parts["structure"]
            result["regions"] = parts[self._region_output]
        # A row outside the support has log p(x) = -inf, or NaN where regions are asked for.
        result["valid"] = tf.math.is_finite(log_prob)
        result["log_prob"] = _or_minus_infinity(result["valid"], log_prob)
        if COMPLEXITY in self.names:
            broadcast = tf.reshape(result["valid"], [-1] + [1] * len(self._event_shape))
            inside = tf.where(broadcast, x, tf.zeros_like(x))
            length = code_length.code_length(inside, self._support)
            if self._given:  # of the modelled part once the given one is known
                length -= code_length.code_length(inside[:, : self._given], self._support)
            result[COMPLEXITY] = length
        if self._background.value is not None:
            result[BACKGROUND] = -self._background.value(x=x, seed=seed)["log_prob"]
        return result

    def _scores(self, statistics: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        log_prob = statistics["log_prob"]
        scores = {LIKELIHOOD: log_prob, TYPICALITY: -tf.abs(log_prob - self._mean)}
        scores |= {name: log_prob + statistics[name] for name in self.names[2:]}
        return {name: _or_minus_infinity(statistics["valid"], score) for name, score in scores.items()}

    def _anomaly(self, x: tf.Tensor, seed: tf.Tensor, alpha: tf.Tensor) -> dict[str, tf.Tensor]:
        """See the README: scores, p-values, and whether p <= alpha, each [N]; of regions [N, R]."""
        statistics = self._traced.value(x, seed)
        valid, scores = statistics["valid"], self._scores(statistics)
        p_values = _p_values(self._tables, tf.stack([scores[name] for name in self.names]))
        joint = _p_values(self._joint, tf.reduce_min(p_values, axis=0, keepdims=True))[0]
        p_value = tf.where(valid, joint, tf.zeros_like(joint))
        answers = {
            "log_prob": scores[LIKELIHOOD],
            "valid": valid,
            "p_value": p_value,
            "is_anomaly": p_value <= alpha,
        }
        for place, name in enumerate(self.names):
            answers[f"{name}_p_value"] = tf.where(valid, p_values[place], tf.zeros_like(joint))
            if name != LIKELIHOOD:
                answers[f"{name}_score"] = scores[name]
        if self._region_output is not None:
            regions = tf.transpose(_p_values(self._regions, tf.transpose(statistics["regions"])))
            answers["region_p_value"] = tf.where(valid[:, tf.newaxis], regions, tf.zeros_like(regions))
        return answers

    def calibrate(self, statistics: Mapping[str, np.ndarray]) -> None:
        """Takes what normal data score as the measure of all.

        The rows with even places make the tables of the single scores, those with odd places that of the least
        p-value of a row, so that the latter are as new to the former as any other row.

        Args:
            statistics: of normal data [n, ...] that the model was not trained on, as `statistics` returns them.

        Raises:
            ValueError: fewer than four rows, or rows outside the support.
        """
        valid = np.asarray(statistics["valid"])
        if len(valid) < 4 or not valid.all():
            raise ValueError(
                "calibration takes at least four normal rows, all of them inside the model's support; found "
                f"{len(valid)} rows, {int((~valid).sum())} of them outside"
            )
        first, second = ({key: tf.constant(v[start::2]) for key, v in statistics.items()} for start in (0, 1))
        self._mean.assign(np.mean(statistics["log_prob"][::2], dtype=np.float64))
        self._tables.assign(tf.sort(tf.stack([self._scores(first)[name] for name in self.names]), axis=1))
        least = tf.reduce_min(
            _p_values(self._tables, tf.stack([self._scores(second)[name] for name in self.names])), axis=0
        )
        self._joint.assign(tf.sort(least)[tf.newaxis])
        if self._region_output is not None:
            regions = tf.transpose(tf.constant(statistics["regions"][:REGION_ROWS]))
            self._regions.assign(tf.sort(regions, axis=1))

    def statistics(self, x: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """Returns what scores are made of, for rows [n, *event_shape] and a seed of each; arrays [n, ...]."""
        return _in_batches(self._traced.value, x, seeds)

    def answers(self, x: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """Returns what the signature answers, at a false-alarm rate of 0; arguments as of `statistics`."""
        return _in_batches(self.anomaly, x, seeds, np.zeros(len(x), np.float32))


def _in_batches(function: Function, x: np.ndarray, *others: np.ndarray) -> dict[str, np.ndarray]:
    """Joined answers of a function of float32 rows and of other arrays, `_BATCH` rows at once."""
    parts = []
    for start in progress.track(range(0, len(x), _BATCH), "batch", "scoring rows for calibration"):
        rows, *rest = (tf.constant(values[start : start + _BATCH]) for values in (x, *others))
        parts.append(function(tf.cast(rows, tf.float32), *rest))
    return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}


def _p_values(tables: tf.Tensor | tf.Variable, scores: tf.Tensor) -> tf.Tensor:
    """Empirical p-values [S, N] of scores [S, N] among sorted ones [S, n]."""
    tables = tf.convert_to_tensor(tables)
    below = tf.searchsorted(tables, scores, side="right")
    return tf.cast(below + 1, tf.float32) / tf.cast(tf.shape(tables)[1] + 1, tf.float32)


def _or_minus_infinity(valid: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.where(valid, values, tf.constant(-np.inf, tf.float32))

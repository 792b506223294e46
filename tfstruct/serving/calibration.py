"""Bundles with calibrated anomaly scores, made of bundles without: only the bundle's own graph is needed."""

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfstruct.evaluation import detection
from tfstruct.evaluation.report import environment
from tfstruct.files import CHECKSUMS_NAME, sha256
from tfstruct.serving import cards
from tfstruct.serving.anomaly import LIKELIHOOD, AnomalyScores
from tfstruct.serving.client import LoadedModel
from tfstruct.serving.contents import GOLDEN_NAME
from tfstruct.serving.images import ImageInput
from tfstruct.serving.inputs import row_seeds
from tfstruct.serving.publication import publish, require_new

ALPHAS = (0.01, 0.05)
JOINT = "p_value"  # the least of the p-values, calibrated
_ANOMALY, _BACKGROUND = "anomaly", "background_log_prob"
_NORMAL, _TEST, _FOREIGN = range(3)  # seeds of rows

Score = Callable[[np.ndarray], np.ndarray]


class Rows(NamedTuple):
    """Observations with what is to be said of them.

    Attributes:
        values: [n, *event_shape], final values.
        name: of the data set.
        variant: of it.
        split: of it.
        checksum: of the data set.
    """

    values: np.ndarray
    name: str = "file"
    variant: str = "none"
    split: str = "validation"
    checksum: str | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What a card says of them."""
        return {field: getattr(self, field) for field in self._fields if field != "values"}


def calibrate(
    model: LoadedModel,
    output: str | Path,
    normal: Rows,
    *,
    background: LoadedModel | None = None,
    test: Rows | None = None,
    foreign: Mapping[str, np.ndarray] | None = None,
    baselines: Mapping[str, Score] | None = None,
    seed: int = 0,
) -> Path:
    """Writes a bundle with the signature `anomaly` beside the others, and says on its card how well it does.

    Args:
        model: the bundle; one that is calibrated already is calibrated anew, and keeps its background unless there is
            another.
        output: the folder to make.
        normal: normal rows that the model was not trained on; half of them measure single scores, the other half the
            least p-value. p-values are multiples of 2 / n.
        background: a model of corrupted data, for the score `background`.
        test: other normal rows, of which false alarms are reported.
        foreign: rows by name that should be found, [m, *event_shape].
        baselines: other detectors to compare with: scores by name, high for normal rows.
        seed: from which every row gets its own.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists already.
        ValueError: rows of another shape or outside the model's support, fewer than four, or a background of other
            observations.
    """
    require_new(output)
    for rows in (normal, *([test] if test is not None else [])):
        model.check(rows.values)
    for values in (foreign or {}).values():
        model.check(values)
    if background is not None:
        _require_same_observations(model, background)
    kept = model.signatures.get(_BACKGROUND)
    added = background.signatures["log_prob"] if background is not None else kept
    weights = [model.weights, *([background.weights] if background is not None else [])]
    scores = AnomalyScores(model.signatures, model.card, weights, added)
    scores.calibrate(scores.statistics(normal.values, _seeds(seed, _NORMAL, normal.values)))

    functions = {name: function for name, function in model.signatures.items() if not name.endswith(_ANOMALY)}
    if added is not None:
        functions[_BACKGROUND] = _background_log_prob(added, model.event_shape)
    functions[_ANOMALY] = scores.anomaly.get_concrete_function()
    images = ImageInput.of(model.event_shape, model.card["support"], model.card["data"]["variant"])
    if "image_log_prob" in functions and images is not None:
        alpha = tf.TensorSpec([None], tf.float32, name="alpha")
        functions[f"image_{_ANOMALY}"] = images.variant_of(scores.anomaly, [alpha]).get_concrete_function()
    card: dict[str, Any] = model.card | {"signatures": cards.signature_specs(functions)}
    card["calibration"] = {
        "data": normal.about,
        "rows": len(normal.values),
        "scores": list(scores.names),
        "seed": seed,
        "background": _about_background(model, background),
        "test": None,
        "foreign": {},
        "environment": environment(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if test is not None:
        judge = _Judge(scores, baselines or {}, normal.values)
        card["calibration"] |= _judged(judge, test, foreign or {}, seed)
    with np.load(model.path / GOLDEN_NAME, allow_pickle=False) as archive:
        before = dict(archive)

    def check(golden: dict[str, np.ndarray]) -> None:
        for name in before.keys() & golden.keys():
            if not name.startswith(_ANOMALY) and not np.allclose(
                golden[name], before[name], rtol=1e-4, atol=1e-4, equal_nan=True
            ):
                raise ValueError(f"the calibrated bundle gives other {name} than {model.path}")

    return publish(output, scores, functions, card, before["x"], check)


def _background_log_prob(function: Callable, event_shape: tuple[int, ...]) -> Callable:
    """The background's signature under its own name: only log p(x), and its standard error."""

    def background_log_prob(x: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        answers = function(x=x, seed=seed)
        return {name: answers[name] for name in ("log_prob", "std_err")}

    specs = [tf.TensorSpec([None, *event_shape], name="x"), tf.TensorSpec([None], tf.int64, name="seed")]
    return tf.function(background_log_prob, input_signature=specs, autograph=False).get_concrete_function()


def _require_same_observations(model: LoadedModel, background: LoadedModel) -> None:
    for name in ("event_shape", "support", "target"):
        if model.card[name] != background.card[name]:
            raise ValueError(
                f"the background {background.path} is of other observations than the model: {name} "
                f"{background.card[name]}, expected {model.card[name]}"
            )


def _about_background(model: LoadedModel, background: LoadedModel | None) -> dict[str, Any] | None:
    if background is None:
        return (model.card.get("calibration") or {}).get("background")
    card = background.card
    return {name: card.get(name) for name in ("preset", "about", "recipe", "weights_dtype", "num_samples")} | {
        "sha256": sha256(background.path / CHECKSUMS_NAME)
    }


def _seeds(seed: int, purpose: int, rows: np.ndarray) -> np.ndarray:
    return row_seeds(row_seeds(seed, purpose + 1)[purpose].item(), len(rows))


class _Judge:
    """Scores and p-values of rows by all that is compared: the single scores, their least p-value, the baselines."""

    def __init__(self, scores: AnomalyScores, baselines: Mapping[str, Score], normal: np.ndarray) -> None:
        self._scores, self._baselines = scores, baselines
        self._tables = {name: np.sort(score(normal)) for name, score in baselines.items()}

    def __call__(self, rows: np.ndarray, seeds: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Returns scores by name, low where unusual, and p-values by name, each [n]."""
        answers = self._scores.answers(rows, seeds)
        scores, p_values = {}, {}
        for name in self._scores.names:
            scores[name] = answers["log_prob" if name == LIKELIHOOD else f"{name}_score"]
            p_values[name] = answers[f"{name}_p_value"]
        scores[JOINT] = p_values[JOINT] = answers["p_value"]
        for name, score in self._baselines.items():
            scores[name] = score(rows)
            p_values[name] = detection.p_values(self._tables[name], scores[name])
        return scores, p_values


def _judged(judge: _Judge, test: Rows, foreign: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Shares of normal test rows that are taken for anomalies, and how well foreign rows are told from them."""
    usual, p_values = judge(test.values, _seeds(seed, _TEST, test.values))
    alarms = {name: _shares(values) for name, values in p_values.items()}
    found = {}
    for name, rows in foreign.items():
        unusual, p_values = judge(rows, _seeds(seed, _FOREIGN, rows))
        found[name] = {
            "rows": len(rows),
            "scores": {
                score: {
                    "auroc": list(detection.auroc(usual[score], unusual[score])),
                    "average_precision": list(detection.average_precision(usual[score], unusual[score])),
                    "detected": _shares(p_values[score]),
                }
                for score in usual
            },
        }
    return {"test": {"data": test.about, "rows": len(test.values), "false_alarms": alarms}, "foreign": found}


def _shares(p_values: np.ndarray) -> dict[str, list[float]]:
    return {str(alpha): list(detection.share(p_values <= alpha)) for alpha in ALPHAS}

"""Exports trained models as bundles."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct import progress
from tfstruct.data.support import require_support
from tfstruct.evaluation.report import TrainedRun
from tfstruct.functional import Functional
from tfstruct.math import mean_and_std_err
from tfstruct.models.config import Export
from tfstruct.models.system import System
from tfstruct.serving import cards, weights
from tfstruct.serving.publication import publish, require_new
from tfstruct.serving.signatures import ServedSystem

_GOLDEN_ROWS = 4
_ROUNDING_ROWS, _ROUNDING_BATCH = 200, 50


def export(
    run: TrainedRun,
    output: str | Path,
    *,
    replica: int | None = None,
    num_samples: int | None = None,
    chunk: int | None = None,
    weights_dtype: str = "float32",
) -> Path:
    """Writes the best weights of a run as a bundle.

    Args:
        run: the trained run.
        output: the folder to make; TensorFlow Serving wants its last part to be a number, the version.
        replica: which one; default the one with the best validation bound.
        num_samples: K of the signatures; default the config's.
        chunk: importance samples computed at once; default the config's.
        weights_dtype: how weights are stored, one of `weights.CHOICES`. What another one than `float32` changes is
            measured on the first 200 validation rows and stands on the card, as `rounding`.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists already.
        ValueError: a replica that does not exist, numbers below 1, an unknown dtype.
    """
    replica = int(np.argmax(run.weights.bounds)) if replica is None else replica
    model, data = run.use(replica), run.data
    options = model.config.export.replace(_given(num_samples=num_samples, chunk=chunk))
    # Rows of the test split, so that a warm-up request takes the path of a real one.
    rows = np.asarray(data.test[:_GOLDEN_ROWS], np.float32)
    about = lambda: cards.of_run(run, replica, weights_dtype)  # noqa: E731
    held_out = data.validation[:_ROUNDING_ROWS]
    return _write(model, output, rows, held_out, about, options, data.bits_per_dim_offset, weights_dtype)


def export_model(
    model: System,
    output: str | Path,
    rows: np.ndarray,
    *,
    bits_per_dim_offset: float | None = None,
    num_samples: int | None = None,
    chunk: int | None = None,
    weights_dtype: str = "float32",
) -> Path:
    """Writes a model at hand as a bundle, such as one that Keras `fit` has trained.

    Args:
        model: with the weights to export.
        output: see `export`.
        rows: observations [n, *event_shape], final values, for golden outputs and warm-up (the first four), and for
            what the rounding of weights changes (the first 200).
        bits_per_dim_offset: see data.datasets; None: bits per dimension come out NaN.
        num_samples: see `export`.
        chunk: see `export`.
        weights_dtype: see `export`.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists already.
        ValueError: no rows, rows of another shape or that the likelihood does not allow, numbers below 1.
    """
    rows = np.asarray(rows, np.float32)[:_ROUNDING_ROWS]
    if rows.shape[1:] != model.event_shape or not len(rows):
        raise ValueError(f"rows must have shape [n, *{model.event_shape}] with n > 0, found {list(rows.shape)}")
    require_support(rows, model.likelihood.support, "the rows of the bundle")
    options = model.config.export.replace(_given(num_samples=num_samples, chunk=chunk))
    return _write(model, output, rows[:_GOLDEN_ROWS], rows, dict, options, bits_per_dim_offset, weights_dtype)


def _given(**values: int | None) -> dict[str, int]:
    return {name: value for name, value in values.items() if value is not None}


def _write(
    model: System,
    output: str | Path,
    rows: np.ndarray,
    held_out: np.ndarray,
    about: Callable[[], dict[str, Any]],
    options: Export,
    bits_per_dim_offset: float | None,
    weights_dtype: str,
) -> Path:
    """Writes a bundle, whose card has what `about` returns beside what is known of the model."""
    require_new(output)
    make = functools.partial(
        ServedSystem,
        model,
        num_samples=options.num_samples,
        chunk=min(options.chunk, options.num_samples),
        terms_options=model.terms_options(model.config.export),
        bits_per_dim_offset=None if model.target.is_conditional else bits_per_dim_offset,
    )
    prepared, exact = model.prepare_evaluation(model.config.evaluation), make()
    served = exact
    if weights_dtype != "float32":
        # A log Z and the like must be of the weights as they are stored.
        with weights.rounded(Functional(model), weights_dtype):
            prepared = model.prepare_evaluation(model.config.evaluation)
            served = make(weights_dtype=weights_dtype)
    progress.message(f"tracing {len(model.queries)} signatures")
    signatures = served.signatures()
    card = cards.of_model(model, served, signatures, options.num_samples, weights_dtype)
    card |= {"bits_per_dim_offset": bits_per_dim_offset, "prepared": prepared} | about()
    card["rounding"] = None if weights_dtype == "float32" else _rounding(exact, served, held_out)
    return publish(output, served, signatures, card, rows, lambda golden: _compare_with_model(golden, served))


def _rounding(before: ServedSystem, after: ServedSystem, rows: np.ndarray) -> dict[str, Any]:
    """Returns what the rounding of weights changes in the mean log likelihood of rows, nats, with its standard error.

    Both score with the same draws of the same seeds, so that most of the noise of their estimates is shared.
    """
    scores = []
    for system in (before, after):
        score = tf.function(system.log_prob, reduce_retracing=True, autograph=False)
        batches = [
            score(tf.constant(rows[start : start + _ROUNDING_BATCH], tf.float32), tf.range(start, end, dtype=tf.int64))
            for start in range(0, len(rows), _ROUNDING_BATCH)
            for end in [min(start + _ROUNDING_BATCH, len(rows))]
        ]
        scores.append(np.concatenate([batch["log_prob"] for batch in batches]))
    change, std_err = mean_and_std_err(scores[1] - scores[0])
    return {"rows": len(rows), "log_prob_change": change, "std_err": std_err}


def _compare_with_model(golden: dict, served: ServedSystem) -> None:
    """Raises ValueError unless the stored model scores as the one in memory."""
    expected = served.log_prob(tf.constant(golden["x"]), tf.constant(golden["seed"]))["log_prob"].numpy()
    found = golden["log_prob/log_prob"]
    if not np.allclose(found, expected, rtol=1e-4, atol=1e-3):
        raise ValueError(
            f"the exported model does not score as the one in memory: log_prob {found.tolist()} for {expected.tolist()}"
        )

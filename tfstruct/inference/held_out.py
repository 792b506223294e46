"""Scores of a whole held-out set: batches of fixed size through one compiled function."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.functional import Functional
from tfstruct.inference.likelihood import LikelihoodEstimate
from tfstruct.math import mean_and_std_err


class Summary(NamedTuple):
    """Averages over the images of a held-out set.

    Attributes:
        log_likelihood: mean of log_prob, nats.
        std_err: standard error of that mean over images, nats.
        elbo: mean, nats.
        elbo_std_err: its standard error over images.
        rate: mean, nats.
        distortion: mean, nats.
        effective_sample_size: median over images, of K.
        num_images: how many images were scored.
        num_samples: K.
    """

    log_likelihood: float
    std_err: float
    elbo: float
    elbo_std_err: float
    rate: float
    distortion: float
    effective_sample_size: float
    num_images: int
    num_samples: int


class HeldOutScorer:
    """Estimates log p(x) of many observations for any weights of one model.

    The weights are arguments of the compiled function, so replicas and checkpoints share one compilation. An
    observation's key depends on the seed and on its place in the set, so neither the batch size nor the chunk
    changes its estimate.

    Args:
        model: a system (see models.system).
        num_samples: K.
        batch_size: observations computed at once.
        chunk: importance samples computed at once.
        compiler: `xla` or `graph`.
        terms_options: options of the model's draws.
    """

    def __init__(
        self,
        model: Any,
        *,
        num_samples: int,
        batch_size: int,
        chunk: int,
        compiler: str = "xla",
        terms_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.functional, self.terms_options = Functional(model), dict(terms_options or {})
        self.num_samples, self.chunk, self.batch_size = num_samples, min(chunk, num_samples), batch_size
        self._estimate = tf.function(self._estimate_batch, jit_compile=compiler == "xla", autograph=False)

    def prepare(
        self, parameters: np.ndarray, statistics: np.ndarray, settings: Any, *, seed: int = 0
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns statistics [S] with what evaluation needs of these weights, and what to report of it.

        The model's own variables are written to.

        Args:
            parameters: [P].
            statistics: [S].
            settings: see System.prepare_evaluation.
            seed: of the chains.
        """
        self.functional.assign(parameters, statistics)
        report = self.model.prepare_evaluation(settings, seed=seed)
        return (self.functional.statistics.values() if report else statistics), report

    def _estimate_batch(
        self,
        parameters: tf.Tensor,
        statistics: tf.Tensor,
        x: tf.Tensor,
        row_keys: tf.Tensor,
        arguments: dict[str, tf.Tensor],
    ) -> LikelihoodEstimate:
        options = self.terms_options | arguments
        with self.functional.bind(self.functional.parameters.split(parameters), statistics):
            return self.model.estimate(x, row_keys, num_samples=self.num_samples, chunk=self.chunk, **options)

    def __call__(
        self, parameters: Any, statistics: Any, rows: np.ndarray, *, seed: int = 0, **arguments: Any
    ) -> LikelihoodEstimate:
        """Scores rows [n, *event_shape]; returns NumPy arrays [n].

        Args:
            parameters: trainable weights as one vector [P].
            statistics: non-trainable weights as one vector [S].
            rows: observations (final values, any real dtype).
            seed: of the importance samples.
            **arguments: tensors that the model's `estimate` takes beside `terms_options`; other values of the same
                shape are not compiled anew.

        Raises:
            ValueError: no rows.
        """
        if not len(rows):
            raise ValueError("there is no observation to score")
        arguments = {name: tf.convert_to_tensor(value) for name, value in arguments.items()}
        key = random.fold_in(random.key(seed), random.EVALUATION)
        parameters, statistics = tf.convert_to_tensor(parameters), tf.convert_to_tensor(statistics)
        results = []
        for start in range(0, len(rows), self.batch_size):
            batch = np.asarray(rows[start : start + self.batch_size], np.float32)
            missing = self.batch_size - len(batch)
            padded = np.concatenate([batch, np.repeat(batch[:1], missing, axis=0)]) if missing else batch
            row_keys = random.fold_in(key, start + tf.range(self.batch_size))
            estimate = self._estimate(parameters, statistics, tf.constant(padded), row_keys, arguments)
            results.append([field.numpy()[: len(batch)] for field in estimate])
        return LikelihoodEstimate(*(np.concatenate(field) for field in zip(*results, strict=True)))

    def summarise(self, estimate: LikelihoodEstimate) -> Summary:
        """Averages the estimates of a set."""
        log_likelihood, std_err = mean_and_std_err(estimate.log_prob)
        elbo, elbo_std_err = mean_and_std_err(estimate.elbo)
        return Summary(
            log_likelihood=log_likelihood,
            std_err=std_err,
            elbo=elbo,
            elbo_std_err=elbo_std_err,
            rate=float(estimate.rate.mean(dtype=np.float64)),
            distortion=float(estimate.distortion.mean(dtype=np.float64)),
            effective_sample_size=float(np.median(estimate.effective_sample_size)),
            num_images=len(estimate.log_prob),
            num_samples=self.num_samples,
        )

"""What every system of the zoo is: a Keras model with importance terms, sampling, encoding and decoding."""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.distributions.pixels import Pixels
from tfstruct.inference import likelihood, objectives
from tfstruct.inference.likelihood import LikelihoodEstimate
from tfstruct.inference.objectives import Composition, Draws, ImportanceTerms, Objective
from tfstruct.layers.likelihood import Likelihood
from tfstruct.models import query
from tfstruct.models.config import Config, Evaluation
from tfstruct.models.keras_fit import KerasFit
from tfstruct.models.parts import MARGINAL, Needs, Target
from tfstruct.models.query import Query


class System(KerasFit, abc.ABC):
    """A latent-variable model p(x, z) with an approximate posterior q(z | x).

    Distributions are built inside the methods from tensors and end there: methods take and return tensors.
    A `seed` is one key [2], or one key per row [B, 2]; rows with keys of their own do not depend on their batch.
    """

    #: p(x | z): where observations lie (`support`), and what they are divided by to lie in [0, 1] (`scale`)
    likelihood: Likelihood | Pixels
    #: log p(x), or of one part of x given the other
    target: Target = MARGINAL
    #: what evaluation takes for that which training relaxes
    evaluated_as: str = "moving averages of batch normalisation"

    #: what to cite, for cards
    references: tuple[str, ...] = ()

    def __init__(self, config: Config, **kwargs) -> None:
        super().__init__(config, **kwargs)
        self.event_shape = config.data.event_shape

    @abc.abstractmethod
    def build(self, input_shape: object = None) -> None:
        """Makes all weights; the event's shape is known from the config."""

    @abc.abstractmethod
    def terms(self, x: tf.Tensor, draws: Draws) -> ImportanceTerms:
        """Draws K samples of q(z | x) and returns their terms, each [K, B], or [K, B, L] of the leaves of a circuit.

        Args:
            x: observations [B, *event_shape].
            draws: what is asked for.
        """

    @abc.abstractmethod
    def sample(self, num: int | tf.Tensor, *, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Draws from the model: `x_mean` and `x`, each [num, *event_shape]; seed [2] or [num, 2]."""

    @abc.abstractmethod
    def encode(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the parameters of the posterior, `z_mean` and `z_std`, each [B, M]."""

    @abc.abstractmethod
    def decode(self, z: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `x_mean` [..., *event_shape] for latents [..., M], and what else the likelihood needs."""

    @abc.abstractmethod
    def reconstruct(self, x: tf.Tensor, *, seed: tf.Tensor, **options: Any) -> tf.Tensor:
        """Returns the mean of p(x | z) at one draw of q(z | x), [B, *event_shape]; options as of `terms_options`."""

    @property
    def needs(self) -> Needs:
        """What training must know; its variables are there once the model is built."""
        return Needs()

    @property
    def composition(self) -> Composition | None:
        """How the terms of leaves become one, with its current weights; None for terms without leaves."""
        return None

    def adapt(self, rows: np.ndarray) -> None:
        """Takes what the model holds of the training set, before training; rows [n, *event_shape] as stored."""
        del rows

    def prepare_evaluation(self, settings: Any, *, seed: int = 0) -> dict[str, Any]:
        """Computes what evaluation needs of the current weights and training does not; returns what to report of it.

        Args:
            settings: a group of settings (`evaluation`, `training.validation`).
            seed: of whatever is drawn.
        """
        del settings, seed
        return {}

    def terms_options(self, settings: Any) -> dict[str, Any]:
        """Returns options of `Draws` in evaluation, from the settings `evaluation`, `export`, ..."""
        del settings
        return {}

    def structure_report(self) -> dict[str, Any]:
        """Returns what is to be reported of a learned structure, as JSON-able values."""
        return {}

    def report(
        self, rows: np.ndarray, settings: Evaluation, known: Mapping[str, Any], *, seed: int = 0
    ) -> tuple[dict[str, Any], list[str]]:
        """Returns what else an evaluation reports of the current weights, as JSON-able values, and its flags.

        Args:
            rows: the observations that are scored, [n, *event_shape].
            settings: of the evaluation.
            known: what is reported already, what `structure_report` and `prepare_evaluation` have returned among it.
            seed: of whatever is drawn.
        """
        del rows, settings, known, seed
        return {}, []

    def diagnostics(self) -> dict[str, tf.Tensor]:
        """Tensors to record while training, by name."""
        return {}

    @property
    def edge_effects(self) -> Callable[..., dict[str, Any]] | None:
        """What measures the worth of each edge of the latent graph; None for a system without edges to flip.

        It takes a HeldOutScorer of the model, parameters [P], statistics [S], rows [n, *event_shape] and a seed, and
        returns JSON-able values.
        """
        return None

    @property
    def queries(self) -> dict[str, Query]:
        """What a bundle of the system can be asked, by the name of the signature."""
        return query.SCORES | (query.CONDITIONAL if self.target.is_conditional else query.SAMPLE)

    def objective(self, x: tf.Tensor, draws: Draws, *, kl_weight: tf.Tensor | float = 1.0) -> Objective:
        """The configured objective of a batch: the one definition behind every way of training."""
        path = self.config.uses_path_gradient
        return objectives.get(self.config.objective.name)(
            self.terms(x, draws._replace(path=path)), kl_weight, path=path
        )

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns reconstructions at the posterior mean, [B, *event_shape]."""
        return self.decode(self.encode(x)["z_mean"])["x_mean"]

    def estimate(
        self,
        x: tf.Tensor,
        keys: tf.Tensor,
        *,
        num_samples: int,
        chunk: int,
        by_leaf: bool = False,
        observed: tf.Tensor | None = None,
        **options: Any,
    ) -> LikelihoodEstimate:
        """Estimates log p(x) of observations [B, *event_shape] from K importance samples.

        Args:
            x: observations.
            keys: one for each row, [B, 2].
            num_samples: K.
            chunk: samples computed at once, at most K.
            by_leaf: return the estimates of the leaves of a circuit, [B, L].
            observed: see Draws.
            **options: as `terms_options` gives them.
        """
        return likelihood.estimate(
            lambda seed: self.terms(x, Draws(seed, chunk, observed=observed, options=options)),
            keys,
            num_samples=num_samples,
            chunk=chunk,
            self_normalised=self.target.is_conditional,
            composition=self.composition,
            by_leaf=by_leaf,
        )

    def log_prob(self, x: Any, *, num_samples: int = 100, seed: int = 0) -> tf.Tensor:
        """Estimates log p(x) of observations [B, *event_shape], nats [B], from K importance samples.

        A convenience for small batches: `tfstruct.inference.held_out` scores whole data sets, and a bundle serves.

        Args:
            x: observations.
            num_samples: K.
            seed: of the samples.
        """
        x = tf.convert_to_tensor(x, tf.float32)
        keys = random.fold_in(random.key(seed), tf.range(tf.shape(x)[0]))
        return self.estimate(x, keys, num_samples=num_samples, chunk=min(num_samples, 20)).log_prob

"""What every system of the zoo is: a Keras model with importance terms, sampling, encoding and decoding."""

import abc
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import keras
import ml_collections
import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.data import variants
from tfstruct.data.support import BINARY, INTEGERS, REAL, UNIT_INTERVAL, require_support
from tfstruct.distributions.sum_product_circuit import SumProductCircuit
from tfstruct.inference import objectives
from tfstruct.inference.objectives import ImportanceTerms, Objective
from tfstruct.models import settings
from tfstruct.schedules import Schedule


class System(keras.Model, abc.ABC):
    """A latent-variable model p(x, z) with an approximate posterior q(z | x).

    Distributions are built inside the methods from tensors and end there: methods take and return tensors.
    A `seed` is one key [2], or one key per row [B, 2]; rows with keys of their own do not depend on their batch.
    """

    #: names of the scheduled quantities that `importance_terms` takes while training
    scheduled: tuple[str, ...] = ()
    #: whether observations must be zeros and ones
    is_binary: bool = False
    #: whether `importance_terms` takes `observed`, and the system has `inpaint`
    allows_missing: bool = False
    #: what each question about the model gets for an answer: `exact`, `bound` or `estimate`; for cards
    exactness: Mapping[str, str] = MappingProxyType({})
    #: leaves, one after the other, that share their importance samples; see ImportanceTerms
    leaves_per_sample: int = 1
    #: whether what is bounded is log p(x_2 | x_1) of two parts of an observation
    is_conditional: bool = False
    #: of a conditional system, the shapes of x_1 and x_2, which follow one another along the first axis of x
    part_shapes: tuple[tuple[int, ...], ...] = ()
    #: what evaluation takes for that which training relaxes
    evaluated_as: str = "moving averages of batch normalisation"

    def __init__(self, config: ml_collections.ConfigDict, **kwargs) -> None:
        super().__init__(**kwargs)
        self.config = ml_collections.FrozenConfigDict(config)
        self.event_shape = tuple(config.data.event_shape)
        names = ("loss", "bound", "rate", "distortion")
        self._means = {name: keras.metrics.Mean(name=name) for name in names}

    @abc.abstractmethod
    def importance_terms(
        self,
        x: tf.Tensor,
        *,
        seed: tf.Tensor,
        num_samples: int,
        training: bool = False,
        path_derivative: bool = False,
        shared_seed: tf.Tensor | None = None,
        **scheduled: tf.Tensor,
    ) -> ImportanceTerms:
        """Draws K samples of q(z | x) and returns their terms, each [K, B], or [K, B, L] of the leaves of a circuit.

        Args:
            x: observations [B, *event_shape].
            seed: key(s) of the draws that belong to rows.
            num_samples: K.
            training: batch statistics and relaxed discrete quantities instead of their evaluation forms.
            path_derivative: also return log q with a gradient through z alone.
            shared_seed: key [2] of the draws that all rows share; needed while training.
            **scheduled: current values of the quantities named in `scheduled`.
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
    @abc.abstractmethod
    def posterior_variables(self) -> list[keras.Variable]:
        """The trainable variables that belong to q alone."""

    @property
    def learned_structure(self) -> list[tuple[keras.Variable, Callable[[np.ndarray], np.ndarray]]]:
        """The trainable variables that hold a structure which is learned, each with the function that decides it.

        The function takes values of the variable to values at which the structure is decided and its gradient exactly
        0. There is none where the structure is fixed.
        """
        return []

    @property
    def decayed_variables(self) -> list[keras.Variable]:
        """The trainable variables whose squares `optimizer.weight_decay` penalises."""
        return []

    def adapt(self, rows: np.ndarray) -> None:
        """Takes what the model holds of the training set, before training; rows [n, *event_shape] as stored."""
        del rows

    def initial_chains(self, num_rows: int, key: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the first states of samplers that persist for every training row, each [num_rows, K, ...].

        A system that has some takes those of a batch as `chains`, [K, B, ...], in `importance_terms` while training,
        and returns their new states in its terms.
        """
        del num_rows, key
        return {}

    def prepare_evaluation(self, settings: Mapping[str, Any], *, seed: int = 0) -> dict[str, Any]:
        """Computes what evaluation needs of the current weights and training does not; returns what to report of it.

        Args:
            settings: a config node (`evaluation`, `training.validation_annealing`).
            seed: of whatever is drawn.
        """
        del settings, seed
        return {}

    def terms_options(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns arguments of `importance_terms` in evaluation, from a config node (`evaluation`, `export`, ...)."""
        del settings
        return {}

    def structure_report(self) -> dict[str, Any]:
        """Returns what is to be reported of a learned structure, as JSON-able values."""
        return {}

    def structure_flags(self, report: Mapping[str, Any]) -> list[str]:
        """Returns what is wrong with a structure, by what was reported of it."""
        del report
        return []

    def report(
        self, rows: np.ndarray, settings: Mapping[str, Any], prepared: Mapping[str, Any], *, seed: int = 0
    ) -> tuple[dict[str, Any], list[str]]:
        """Returns what else an evaluation reports of the current weights, as JSON-able values, and its flags.

        Args:
            rows: the observations that are scored, [n, *event_shape].
            settings: the config node `evaluation`.
            prepared: what `prepare_evaluation` has returned.
            seed: of whatever is drawn.
        """
        del rows, settings, prepared, seed
        return {}, []

    def edge_effects(
        self, scorer: Any, parameters: np.ndarray, statistics: np.ndarray, rows: np.ndarray, *, seed: int = 0
    ) -> dict[str, Any]:
        """Returns what each edge of the latent graph is worth, as JSON-able values; of a system that `has_edges`."""
        raise NotImplementedError

    def diagnostics(self) -> dict[str, tf.Tensor]:
        """Tensors to record while training, by name."""
        return {}

    @property
    def has_edges(self) -> bool:
        """Whether there is a latent graph whose edges can be flipped (`edge_effects`)."""
        return False

    @property
    def has_regions(self) -> bool:
        """Whether the log density has parts that belong to regions of an observation (`region_log_prob`)."""
        return self.circuit is not None

    @property
    def support(self) -> str:
        """Where observations lie, one of tfstruct.data.support."""
        return BINARY if self.is_binary else REAL

    @property
    def observation_scale(self) -> float:
        """What observations are divided by to lie in [0, 1]."""
        return 1.0

    @property
    def circuit(self) -> SumProductCircuit | None:
        """What the leaves of the terms go through, with its current weights; None for terms without leaves."""
        return None

    @property
    def target(self) -> str:
        """What the likelihood estimates are of, for reports and cards."""
        return "log p(x_2 | x_1)" if self.is_conditional else "log p(x)"

    @property
    def uses_path_gradient(self) -> bool:
        """Whether the posterior is trained by path derivatives."""
        return self.config.objective.gradient == "path"

    def objective(
        self,
        x: tf.Tensor,
        *,
        seed: tf.Tensor,
        shared_seed: tf.Tensor,
        kl_weight: tf.Tensor | float = 1.0,
        scheduled: Mapping[str, tf.Tensor],
        training: bool = True,
        chains: Mapping[str, tf.Tensor] | None = None,
    ) -> Objective:
        """The configured objective of a batch: the one definition behind every way of training."""
        options, path = self.config.objective, self.uses_path_gradient
        persistent = {"chains": chains} if chains else {}
        terms = self.importance_terms(
            x,
            seed=seed,
            num_samples=options.num_samples,
            training=training,
            path_derivative=path,
            shared_seed=shared_seed,
            **scheduled,
            **persistent,
        )
        return objectives.get(options.name)(terms, kl_weight, path=path)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns reconstructions at the posterior mean, [B, *event_shape]."""
        return self.decode(self.encode(x)["z_mean"])["x_mean"]

    # The Keras way -------------------------------------------------------------------------------------------

    def fit(self, x: Any = None, *args, **kwargs) -> keras.callbacks.History:
        """Keras `fit` on the objective of the config, without targets.

        Rows are what the config's data variant stores: with `dynamic`, intensities (uint8 or floats in [0, 1])
        that are binarised anew at every visit; zeros and ones stay what they are.

        Raises:
            ValueError: rows of another shape, values that the likelihood does not allow, or a config that trains in two
                phases.
        """
        settings.check_single_phase(self.config)
        self._check_rows(x, "the rows given to fit")
        validation = kwargs.get("validation_data")
        if validation is not None:
            rows = validation[0] if isinstance(validation, (tuple, list)) else validation
            self._check_rows(rows, "the validation rows given to fit")
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x: Any = None, *args, **kwargs) -> Any:
        """Keras `evaluate` of the bound in evaluation form; rows as in `fit`, but floats are taken as final values.

        Raises:
            ValueError: rows of another shape, or values that the likelihood does not allow.
        """
        self._check_rows(x, "the rows given to evaluate")
        return super().evaluate(x, *args, **kwargs)

    def _check_rows(self, rows: Any, what: str) -> None:
        """Raises ValueError for stored rows whose transform does not end in the likelihood's support.

        Data sets and generators pass unchecked: they cannot be looked through beforehand.
        """
        if not isinstance(rows, (np.ndarray, tf.Tensor)):
            return
        rows = np.asarray(rows)
        if rows.shape[1:] != self.event_shape:
            raise ValueError(f"{what} must have shape [n, *{self.event_shape}], found {list(rows.shape)}")
        if self.train_transform == "cast":
            require_support(rows, self.support if self.support in (BINARY, INTEGERS) else REAL, what)
        elif rows.dtype.kind == "f":
            require_support(rows, UNIT_INTERVAL, what)

    @property
    def train_transform(self) -> str:
        """What turns a stored row into an observation while training (see data.variants)."""
        return variants.train_transform(self.config.data.variant)

    def compile(self, optimizer: Any = "adam", **kwargs) -> None:
        """Keras `compile` for training without targets; XLA is off unless asked for by `jit_compile=True`.

        Raises:
            ValueError: an objective whose gradient is biased for this model.
        """
        settings.check_gradient(self.config)
        kwargs.setdefault("jit_compile", False)
        super().compile(optimizer=optimizer, **kwargs)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras resets these at the beginning of each epoch."""
        return list(self._means.values())

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update of Keras `fit`: `objective` on a batch, gradients as in the functional loop."""
        rows, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        step = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.int32)
        x, row_seeds, shared_seed = self._batch(rows, step, training=True)
        variables = self.trainable_variables
        with tf.GradientTape(persistent=True) as tape:
            result = self.objective(
                x,
                seed=row_seeds,
                shared_seed=shared_seed,
                kl_weight=self._scheduled("kl_weight", step),
                scheduled={name: self._scheduled(name, step) for name in self.scheduled},
            )
        gradients = objectives.group_gradients(tape, result, variables, self.posterior_variables)
        self.optimizer.apply(gradients, variables)
        return self._epoch_means(
            loss=result.generative_loss,
            bound=tf.reduce_mean(result.bound),
            rate=tf.reduce_mean(result.rate),
            distortion=tf.reduce_mean(result.distortion),
        )

    def test_step(self, data: Any) -> dict[str, Any]:
        """The bound in evaluation form (moving averages, hard gates), for Keras `evaluate`; its noise is fixed."""
        rows, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        x, row_seeds, shared_seed = self._batch(rows, tf.constant(0), training=False)
        result = self.objective(x, seed=row_seeds, shared_seed=shared_seed, scheduled={}, training=False)
        bound = tf.reduce_mean(result.bound)
        return self._epoch_means(loss=-bound, bound=bound)

    def _epoch_means(self, **values: tf.Tensor) -> dict[str, tf.Tensor]:
        """Takes the values of a batch up and returns their means since the beginning of the epoch."""
        for name, value in values.items():
            self._means[name].update_state(value)
        return {name: self._means[name].result() for name in values}

    def _batch(self, rows: tf.Tensor, step: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        key = random.key(self.config.training.seed)
        if training:
            key = random.fold_in(random.fold_in(key, random.TRAINING_STEP), step)
        else:
            key = random.fold_in(key, random.EVALUATION)
        transform = self.train_transform
        if not training and rows.dtype.is_floating and not self.is_binary:
            transform = "cast"  # floats given to `evaluate` are final values
        x, row_seeds, shared_seed = variants.prepare_batch(rows, key, transform)
        if transform == "binarize" and rows.dtype.is_integer:
            # Integers of 0 and 1 are final values (the validation rows of a data set, say), not faint intensities.
            x = tf.where(tf.reduce_max(rows) <= 1, tf.cast(rows, x.dtype), x)
        return x, row_seeds, shared_seed

    def _scheduled(self, name: str, step: tf.Tensor) -> tf.Tensor:
        return Schedule.from_config(self.config.schedules[name], self.config.training.steps)(step)

"""A trained system as a plain tf.Module with the signatures that TensorFlow Serving calls.

Every input and output has the batch as its first dimension and randomness enters as one seed per row, so the
answer for a row depends neither on the rows beside it nor on padding. What stands beside rows, such as seeds, is one
for each of them or one for all; another number fails. What takes many draws of each row takes a few rows at a time.
Nothing is compiled by XLA: TensorFlow Serving refuses compiled functions unless told otherwise.
"""

import functools
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.data.support import BINARY, INTEGERS
from tfstruct.functional import Functional
from tfstruct.inference import likelihood
from tfstruct.math import bits_per_dim
from tfstruct.models.system import System
from tfstruct.serving import weights
from tfstruct.serving.blocks import in_blocks, signature
from tfstruct.serving.images import ImageInput

T = TypeVar("T")
# Purposes that row keys are derived for.
_LOG_PROB, _RECONSTRUCT, _SAMPLE, _INPAINT = 1, 2, 3, 4


class ServedSystem(tf.Module):
    """The signatures of one system with weights of its own.

    Observations outside the support of the likelihood (not 0 or 1 for a Bernoulli model, no integer in 0..255 for one
    of grey levels, not finite for a Gaussian one) have `log_prob` and `elbo` -inf; they disturb no other row.

    Args:
        model: the system, with the weights to export.
        num_samples: K of `log_prob` and `elbo`, fixed in the export.
        chunk: importance samples computed at once.
        terms_options: options of the model's draws.
        bits_per_dim_offset: see data.datasets; None where bits per dimension mean nothing (they come out NaN).
        weights_dtype: how weights are stored, one of `weights.CHOICES`.

    Raises:
        ValueError: another dtype of weights, or weights that are not finite in it.
    """

    def __init__(
        self,
        model: System,
        *,
        num_samples: int,
        chunk: int,
        bits_per_dim_offset: float | None,
        terms_options: Mapping[str, Any] | None = None,
        weights_dtype: str = "float32",
    ) -> None:
        super().__init__(name="served_system")
        # Not tracked, so that no Keras object enters the SavedModel.
        self._model = Untracked(model)
        self._functional = Untracked(Functional(model))
        self._num_samples, self._chunk = num_samples, chunk
        self._terms_options = Untracked[dict[str, Any]](dict(terms_options or {}))
        self._offset = bits_per_dim_offset
        specs = [tf.TensorSpec([None, *model.event_shape], tf.float32), tf.TensorSpec([None], tf.int64)]
        # Traced once for all signatures that score alike, which makes a bundle smaller.
        self._score = Untracked(in_blocks(self._estimate, specs))
        data = model.config.data
        #: how images become observations; None where they cannot
        self.images = ImageInput.of(model.event_shape, model.likelihood.support, data.variant)
        self.weights = weights.store(self._functional.value, weights_dtype)

    def signatures(self) -> dict[str, Callable]:
        """Returns the concrete functions by signature name."""
        model = self._model.value
        x = tf.TensorSpec([None, *model.event_shape], tf.float32, name="x")
        specs = {
            "x": x,
            "seed": tf.TensorSpec([None], tf.int64, name="seed"),
            "observed": tf.TensorSpec(x.shape, tf.bool, name="observed"),
        }
        for shape, name in zip(model.target.part_shapes, ("x_given", "x_query"), strict=False):
            specs[name] = tf.TensorSpec([None, *shape], tf.float32, name=name)
        functions = {
            name: signature(
                getattr(self, name)
                if query.function is None
                else functools.partial(self._answer, name, query.function, query.inputs),
                [specs[part] for part in query.inputs],
            )
            for name, query in model.queries.items()
        }
        if self.images is not None and not model.target.is_conditional:
            functions["image_log_prob"] = self.images.variant_of(self.log_prob)
        functions["serving_default"] = functions["conditional_log_prob" if model.target.is_conditional else "log_prob"]
        return {name: function.get_concrete_function() for name, function in functions.items()}

    def _answer(
        self, name: str, function: Callable, names: tuple[str, ...], *inputs: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The answers of a system's own query; NaN for rows outside the support."""
        values = dict(zip(names, inputs, strict=True))
        valid = None
        if "x" in values:
            valid, values["x"] = self._checked(values["x"], values.get("observed"))
        if "seed" in values:
            # A stream of random numbers of its own, whatever other queries there are.
            values["seed"] = self._row_keys(values["seed"], zlib.crc32(name.encode()))
        with self._bound():
            answers = function(self._model.value, values)
        return answers if valid is None else {key: _where(valid, value) for key, value in answers.items()}

    def _bound(self) -> AbstractContextManager:
        functional = self._functional.value
        values = [weight.value() for weight in self.weights]
        count = len(functional.parameters.variables)
        return functional.bind(values[:count], functional.statistics.join(values[count:]))

    def _row_keys(self, seed: tf.Tensor, purpose: int) -> tf.Tensor:
        return random.fold_in(random.fold_in(random.row_keys(seed), random.SERVING), purpose)

    def _checked(self, x: tf.Tensor, observed: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns which rows lie in the likelihood's support, [N], and x with the others replaced by zeros.

        Missing values are replaced as well, and are in the support whatever they are.
        """
        if observed is not None:
            x = tf.where(observed, x, tf.zeros_like(x))
        inside = tf.math.is_finite(x)
        if self._model.value.likelihood.support == BINARY:
            inside = (x == 0.0) | (x == 1.0)
        elif self._model.value.likelihood.support == INTEGERS:
            inside = (x >= 0.0) & (x <= 255.0) & (x == tf.round(x))
        valid = tf.reduce_all(inside, axis=list(range(1, len(x.shape))))
        broadcast = tf.reshape(valid, [-1] + [1] * (len(x.shape) - 1))
        return valid, tf.where(broadcast, x, tf.zeros_like(x))

    def _estimate(
        self, x: tf.Tensor, seed: tf.Tensor, observed: tf.Tensor | None = None, by_leaf: bool = False
    ) -> tuple[tf.Tensor, likelihood.LikelihoodEstimate]:
        valid, x = self._checked(x, observed)
        options = self._terms_options.value | ({} if observed is None else {"observed": observed})
        with self._bound():
            return valid, self._model.value.estimate(
                x,
                self._row_keys(seed, _LOG_PROB),
                num_samples=self._num_samples,
                chunk=self._chunk,
                by_leaf=by_leaf,
                **options,
            )

    def log_prob(self, x: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """K-sample importance estimate of log p(x), its standard error, and bits per dimension; each [N].

        The standard error is that over draws; see inference.likelihood for how far it can be trusted. Of a conditional
        model it is that of log p(x_2 | x_1), x holding both parts.
        """
        valid, estimate = self._score.value(x, seed)
        dims = int(np.prod(x.shape[1:]))
        log_prob = tf.where(valid, estimate.log_prob, tf.constant(-np.inf, tf.float32))
        bits = (
            tf.fill(tf.shape(log_prob), tf.constant(np.nan, tf.float32))
            if self._offset is None
            else bits_per_dim(log_prob, dims, self._offset)
        )
        return {
            "log_prob": log_prob,
            "std_err": tf.where(valid, estimate.std_err, tf.zeros_like(log_prob)),
            "bits_per_dim": bits,
        }

    def conditional_log_prob(self, x_given: tf.Tensor, x_query: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """K-sample estimate of log p(x_query | x_given) and its standard error, each [N]."""
        shape = tf.concat([tf.shape(x_given)[:1], self._model.value.event_shape], axis=0)
        x = tf.reshape(tf.concat([x_given, x_query], axis=1), shape)
        result = self.log_prob(tf.ensure_shape(x, [None, *self._model.value.event_shape]), seed)
        return {name: result[name] for name in ("log_prob", "std_err")}

    def elbo(self, x: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Evidence lower bound, rate and distortion, averaged over the K samples; each [N], nats."""
        valid, estimate = self._score.value(x, seed)
        infinite = tf.fill(tf.shape(estimate.elbo), tf.constant(np.inf, tf.float32))
        return {
            "elbo": tf.where(valid, estimate.elbo, -infinite),
            "rate": tf.where(valid, estimate.rate, tf.zeros_like(infinite)),
            "distortion": tf.where(valid, estimate.distortion, infinite),
        }

    def encode(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """Posterior means and standard deviations, each [N, M]; NaN for rows outside the support."""
        valid, x = self._checked(x)
        with self._bound():
            encoded = self._model.value.encode(x)
        return {name: _where(valid, value) for name, value in encoded.items()}

    def reconstruct(self, x: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Mean of p(x | z) at one draw of q(z | x), [N, *event]; NaN for rows outside the support."""
        valid, checked = self._checked(x)
        with self._bound():
            keys = self._row_keys(seed, _RECONSTRUCT)
            mean = self._model.value.reconstruct(checked, seed=keys, **self._terms_options.value)
        return {"x_mean": _where(valid, mean)}

    def sample(self, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """One draw of the model for each seed: `x_mean` and `x`, [N, *event]."""
        with self._bound():
            return self._model.value.sample(tf.shape(seed)[0], seed=self._row_keys(seed, _SAMPLE))

    def marginal_log_prob(self, x: tf.Tensor, observed: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """K-sample estimate of the log density of the observed values, and its standard error, each [N]."""
        valid, estimate = in_blocks(self._estimate, _specs(x, seed, observed))(x, seed, observed)
        log_prob = tf.where(valid, estimate.log_prob, tf.constant(-np.inf, tf.float32))
        return {"log_prob": log_prob, "std_err": tf.where(valid, estimate.std_err, tf.zeros_like(log_prob))}

    def inpaint(self, x: tf.Tensor, observed: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """The missing values given the others, drawn (`x`) and as means at drawn latents (`x_mean`), [N, *event].

        NaN for rows whose observed values are outside the support.
        """
        return in_blocks(self._inpaint, _specs(x, observed, seed))(x, observed, seed)

    def _inpaint(self, x: tf.Tensor, observed: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        valid, checked = self._checked(x, observed)
        with self._bound():
            drawn = self._model.value.inpaint(
                checked, observed, seed=self._row_keys(seed, _INPAINT), num_samples=self._num_samples
            )
        return {name: _where(valid, values) for name, values in drawn.items()}

    def region_log_prob(self, x: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """What leaf regions contribute to log p(x), in nats; see SumProductVAE.region_log_prob. NaN as in `inpaint`."""
        by_leaf = functools.partial(self._estimate, by_leaf=True)
        valid, estimate = in_blocks(by_leaf, _specs(x, seed))(x, seed)
        with self._bound():
            parts = self._model.value.region_log_prob(estimate.log_prob)
        return {name: _where(valid, part) for name, part in parts.items()}


def _specs(*inputs: tf.Tensor) -> list[tf.TensorSpec]:
    """Of rows, however many."""
    return [tf.TensorSpec([None, *values.shape[1:]], values.dtype) for values in inputs]


def _where(valid: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Values [N, ...] with NaN in the rows that are not valid."""
    return tf.where(tf.reshape(valid, [-1] + [1] * (len(values.shape) - 1)), values, tf.constant(np.nan, tf.float32))


class Untracked(Generic[T]):
    """Hides a value from the attribute tracking of tf.Module."""

    def __init__(self, value: T) -> None:
        self.value = value

"""Continuous relaxations of binary variables: piecewise linear, Concrete, and a mixture of power functions.

Each replaces z in {0, 1} with probability q = sigmoid(logits) of a one by zeta in [0, 1] that is differentiable in the
logits. They are for training alone: what is reported of a model is computed with binary z.
"""

import abc
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfstruct import random

_GUARD = 1e-7  # keeps densities and slopes of the power functions finite at 0 and 1
_CONCRETE_GUARD = 1e-5


class RelaxedBernoulli(tfd.Distribution, abc.ABC):
    """A relaxation of independent Bernoulli variables; scalar events, the batch is that of the logits.

    Args:
        logits: log q / (1 - q), [...].
        sharpness: beta > 0; the larger, the nearer to zeros and ones.

    Raises:
        ValueError: a sharpness that is not positive.
    """

    def __init__(self, logits: Any, sharpness: float, *, validate_args: bool = False, name: str | None = None) -> None:
        parameters = dict(locals())
        if not sharpness > 0.0:
            raise ValueError(f"sharpness must be positive, found {sharpness}")
        name = name or type(self).__name__
        with tf.name_scope(name) as name:
            self._logits, self._sharpness = tf.convert_to_tensor(logits), sharpness
            super().__init__(
                dtype=self._logits.dtype,
                reparameterization_type=tfd.FULLY_REPARAMETERIZED,
                validate_args=validate_args,
                allow_nan_stats=True,
                parameters=parameters,
                name=name,
            )

    @property
    def logits(self) -> tf.Tensor:
        """Of the binary variables."""
        return self._logits

    @property
    def sharpness(self) -> float:
        """Beta."""
        return self._sharpness

    @abc.abstractmethod
    def sample_from_uniform(self, unit: tf.Tensor) -> tf.Tensor:
        """Zeta for uniform noise in (0, 1), of the shape of noise and logits; differentiable in the logits."""

    def _sample_n(self, n: tf.Tensor, seed: Any = None) -> tf.Tensor:
        key = tf.bitcast(tfp.random.sanitize_seed(seed), tf.uint32)
        shape = tf.concat([[n], tf.shape(self._logits)], axis=0)
        return self.sample_from_uniform(random.uniform(key, shape, self.dtype))

    def _batch_shape(self) -> tf.TensorShape:
        return self._logits.shape

    def _batch_shape_tensor(self) -> tf.Tensor:
        return tf.shape(self._logits)

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape([])

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant([], tf.int32)

    def _default_event_space_bijector(self) -> tfb.Bijector:
        return tfb.Sigmoid(validate_args=self.validate_args)

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict:
        from tensorflow_probability.python.internal import parameter_properties

        return {"logits": parameter_properties.ParameterProperties(event_ndims=0)}


class PiecewiseLinear(RelaxedBernoulli):
    """zeta = clip(1/2 + a (u - (1 - q)), 0, 1) with the slope a = beta / (4 (q (1 - q) + 0.01)).

    P(zeta > 1/2) = q for every q, and E[zeta] = q where neither q nor 1 - q is below 1 / (2 a). There are atoms at 0
    and 1, hence no density. The gradient flows through the slope as well.

    References:
        Andriyash et al., Improved Gradient-Based Optimization Over Discrete Distributions, 2018, as used by DVAE##.
    """

    def sample_from_uniform(self, unit: tf.Tensor) -> tf.Tensor:
        """See RelaxedBernoulli."""
        probs = tf.sigmoid(self.logits)
        slope = 0.25 * self.sharpness / (probs * (1.0 - probs) + 0.01)
        return tf.clip_by_value(0.5 + slope * (unit - (1.0 - probs)), 0.0, 1.0)


class Concrete(RelaxedBernoulli):
    """zeta = sigmoid(y), y = beta (logits + logit u): a logistic variable in logit space. P(zeta > 1/2) = q.

    Densities are those of y, which stay finite where zeta rounds to 0 or 1.

    References:
        Maddison, Mnih & Teh, The Concrete Distribution, ICLR 2017; Jang, Gu & Poole, ICLR 2017.
    """

    def sample_logits(self, unit: tf.Tensor) -> tf.Tensor:
        """Y for uniform noise, which is kept 1e-5 away from 0 and 1."""
        unit = tf.clip_by_value(unit, _CONCRETE_GUARD, 1.0 - _CONCRETE_GUARD)
        return self.sharpness * (self.logits + tf.math.log(unit) - tf.math.log1p(-unit))

    def sample_from_uniform(self, unit: tf.Tensor) -> tf.Tensor:
        """See RelaxedBernoulli."""
        return tf.sigmoid(self.sample_logits(unit))

    def log_prob_logits(self, y: tf.Tensor) -> tf.Tensor:
        """Log density of y = logit zeta."""
        return tfd.Logistic(self.sharpness * self.logits, self.sharpness).log_prob(y)

    def _log_prob(self, value: tf.Tensor) -> tf.Tensor:
        y = tf.math.log(value) - tf.math.log1p(-value)
        return self.log_prob_logits(y) - tf.math.log(value) - tf.math.log1p(-value)


class Power(RelaxedBernoulli):
    """A mixture, with weights 1 - q and q, of r_0(zeta) = zeta^(1/beta - 1) / beta on (0, 1) and its mirror image r_1.

    Samples follow the implicit gradient of the mixture's cdf F: d zeta / d q = -(dF/dq) / (dF/dzeta) =
    (R_0 - R_1) / ((1 - q) r_0 + q r_1), with R the cdfs. The components overlap: P(zeta > 1/2) = q + (1 - 2 q) e with
    e = 1 - 2^(-1/beta).

    Floats cannot hold how near to 0 or 1 most of a sharp mixture lies (at beta = 30 58 % of r_0 is below 1e-7). Samples
    are therefore clamped to [1e-7, 1 - 1e-7], and `log_prob` is that of what is sampled: a density between these ends,
    the log of a probability at and beyond them, -inf outside [0, 1]. `log_density` is that of the mixture itself.

    References:
        Vahdat, Andriyash & Macready, DVAE#: Discrete Variational Autoencoders with Relaxed Boltzmann Priors, 2018.
    """

    def log_components(self, value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Log r_0 and log r_1 at zeta."""
        value = tf.clip_by_value(value, _GUARD, 1.0 - _GUARD)
        exponent = 1.0 / self.sharpness - 1.0
        log_norm = -tf.math.log(tf.constant(self.sharpness, self.dtype))
        return log_norm + exponent * tf.math.log(value), log_norm + exponent * tf.math.log1p(-value)

    def sample_from_uniform(self, unit: tf.Tensor) -> tf.Tensor:
        """See RelaxedBernoulli."""
        probs = tf.sigmoid(self.logits)
        held = tf.stop_gradient(probs)
        is_one = unit > 1.0 - held
        # What is left of the noise once it has chosen the component is uniform again.
        rest = tf.where(is_one, (1.0 - unit) / tf.maximum(held, _GUARD), unit / tf.maximum(1.0 - held, _GUARD))
        power = tf.pow(tf.clip_by_value(rest, _GUARD, 1.0), self.sharpness)
        value = tf.clip_by_value(tf.where(is_one, 1.0 - power, power), _GUARD, 1.0 - _GUARD)
        log_0, log_1 = self.log_components(value)
        cdf_0 = tf.pow(value, 1.0 / self.sharpness)
        cdf_1 = 1.0 - tf.pow(1.0 - value, 1.0 / self.sharpness)
        slope = (cdf_0 - cdf_1) / ((1.0 - held) * tf.exp(log_0) + held * tf.exp(log_1))
        return tf.stop_gradient(value) + tf.stop_gradient(slope) * (probs - held)

    def _log_prob(self, value: tf.Tensor) -> tf.Tensor:
        # P(zeta <= 1e-7) under r_0, and under r_1, where 1 - (1 - x)^(1 / beta) would cancel.
        exponent = tf.constant(1.0 / self.sharpness, self.dtype)
        near, far = exponent * np.log(_GUARD), tf.math.log(-tf.math.expm1(exponent * np.log1p(-_GUARD)))
        log_mass_0 = self._log_mixture(near, far)
        log_mass_1 = self._log_mixture(far, near)
        result = tf.where(value <= _GUARD, log_mass_0, self.log_density(value))
        result = tf.where(value >= 1.0 - _GUARD, log_mass_1, result)
        return tf.where((value < 0.0) | (value > 1.0), tf.constant(float("-inf"), self.dtype), result)

    def log_density(self, value: tf.Tensor) -> tf.Tensor:
        """Log density of the mixture before it is clamped, at zeta moved into [1e-7, 1 - 1e-7]."""
        return self._log_mixture(*self.log_components(value))

    def _log_mixture(self, log_0: tf.Tensor, log_1: tf.Tensor) -> tf.Tensor:
        weighted = (log_0 + tf.math.log_sigmoid(-self.logits), log_1 + tf.math.log_sigmoid(self.logits))
        return tf.reduce_logsumexp(tf.stack(weighted), axis=0)


RELAXATIONS: dict[str, type[RelaxedBernoulli]] = {
    "piecewise_linear": PiecewiseLinear,
    "concrete": Concrete,
    "power": Power,
}

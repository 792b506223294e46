"""Distributions of single pixels given the outputs of a decoder, as functions of tensors.

Each has log_prob, mean and sample of independent pixels, takes one tensor for each network of the decoder and keeps the
pixel axis: what is missing or padded is left out of the sum by the caller. Grey levels are the integers 0..255.

References:
    SPVAE, section 4, and its published code (Gaussian by precision, Binomial); Salimans et al., PixelCNN++, ICLR 2017
    (mixture of discretised logistics).
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.data.support import BINARY, INTEGERS, UNIT_INTERVAL
from tfstruct.distributions.gaussian import LOG_TWO_PI, gaussian_log_prob
from tfstruct.math import logsumexp

_LEVELS = 256
_TOP = _LEVELS - 1.0
_LOG_BINOMIALS = np.array([math.log(math.comb(_LEVELS - 1, level)) for level in range(_LEVELS)])


class Pixels(Protocol):
    """A family of pixel distributions.

    Attributes:
        num_networks: networks of the decoder, one for each kind of parameter.
        num_outputs: outputs of each network for one pixel, P.
        num_values: values of a pixel, 1 but for colours that depend on one another.
        num_uniforms: uniform numbers that a draw of one pixel takes.
        support: where observations lie, one of tfstruct.data.support.
        scale: what an observation is divided by to lie in [0, 1].
        has_mean_logits: whether the outputs of a single network are the logits of E[x] / scale.
    """

    num_networks: int
    num_outputs: int
    num_values: int
    num_uniforms: int
    support: str
    scale: float
    has_mean_logits: bool

    def log_prob(self, outputs: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        """Log p(x) of every pixel in nats: outputs [..., S * P] and x [..., S] to [..., S]."""

    def mean(self, outputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """E[x], [..., S], in the units of x."""

    def sample(self, outputs: Sequence[tf.Tensor], uniforms: Sequence[tf.Tensor]) -> tf.Tensor:
        """Draws x [..., S] from `num_uniforms` tensors of uniform numbers [..., S]."""


class BernoulliPixels:
    """x in {0, 1}; the output is its logit."""

    num_networks, num_outputs, num_uniforms, support, scale = 1, 1, 1, BINARY, 1.0
    num_values, has_mean_logits = 1, True

    def log_prob(self, outputs: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        (logits,) = outputs
        return x * logits - tf.nn.softplus(logits)

    def mean(self, outputs: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.sigmoid(outputs[0])

    def sample(self, outputs: Sequence[tf.Tensor], uniforms: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.cast(uniforms[0] < self.mean(outputs), outputs[0].dtype)


class GaussianPixels:
    """Real x: mean sigmoid(f), precision floor + g**2, with f and g from networks of their own.

    A floor of 1 keeps every standard deviation at or below 1. Nothing bounds the precision from above: data without
    noise have no greatest density.

    Args:
        precision_floor: least precision, above 0.
    """

    num_networks, num_outputs, num_uniforms, support, scale = 2, 1, 1, UNIT_INTERVAL, 1.0
    num_values, has_mean_logits = 1, False

    def __init__(self, precision_floor: float = 1.0) -> None:
        if not precision_floor > 0.0:
            raise ValueError(f"precision_floor must be above 0, found {precision_floor}")
        self.precision_floor = precision_floor

    def log_prob(self, outputs: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        precision = self.precision_floor + tf.square(outputs[1])
        squares = precision * tf.square(x - self.mean(outputs))
        return 0.5 * (tf.math.log(precision) - squares - LOG_TWO_PI)

    def mean(self, outputs: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.sigmoid(outputs[0])

    def sample(self, outputs: Sequence[tf.Tensor], uniforms: Sequence[tf.Tensor]) -> tf.Tensor:
        noise = random.to_normal(uniforms[0])
        return self.mean(outputs) + noise * tf.math.rsqrt(self.precision_floor + tf.square(outputs[1]))


class LogVarianceGaussianPixels:
    """Real x: mean sigmoid(f), log variance floor + softplus(g - floor).

    Without a floor the density of a pixel that is constant in the data grows without bound; this one is smooth.

    Args:
        floor: least log variance.
    """

    num_networks, num_outputs, num_uniforms, support, scale = 2, 1, 1, UNIT_INTERVAL, 1.0
    num_values, has_mean_logits = 1, True  # f is all that a decoder gives where g is a function of f

    def __init__(self, floor: float) -> None:
        self.floor = floor

    def log_variance(self, outputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Log variance of every pixel, [..., S]."""
        return self.floor + tf.nn.softplus(outputs[1] - self.floor)

    def log_prob(self, outputs: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        return gaussian_log_prob(x, self.mean(outputs), self.log_variance(outputs))

    def mean(self, outputs: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.sigmoid(outputs[0])

    def sample(self, outputs: Sequence[tf.Tensor], uniforms: Sequence[tf.Tensor]) -> tf.Tensor:
        return self.mean(outputs) + random.to_normal(uniforms[0]) * tf.exp(0.5 * self.log_variance(outputs))


class BinomialPixels:
    """x in 0..255, Binomial(255, sigmoid(f)), its binomial coefficient included: a probability of the level."""

    num_networks, num_outputs, num_uniforms, support, scale = 1, 1, 1, INTEGERS, _TOP
    num_values, has_mean_logits = 1, True

    def log_prob(self, outputs: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        (logits,) = outputs
        # From a table: three log-gammas of every pixel would take as long as the networks.
        coefficient = tf.gather(tf.constant(_LOG_BINOMIALS, logits.dtype), tf.cast(x, tf.int32))
        return coefficient + x * logits - _TOP * tf.nn.softplus(logits)

    def mean(self, outputs: Sequence[tf.Tensor]) -> tf.Tensor:
        return _TOP * tf.sigmoid(outputs[0])

    def sample(self, outputs: Sequence[tf.Tensor], uniforms: Sequence[tf.Tensor]) -> tf.Tensor:
        levels = tf.range(_LEVELS, dtype=outputs[0].dtype)
        table = self.log_prob([outputs[0][..., tf.newaxis]], levels)
        return tf.cast(random.choose(uniforms[0], table), outputs[0].dtype)


class CategoricalPixels:
    """x in 0..255, with a logit for each level. Takes 256 outputs a pixel: for small batches."""

    num_networks, num_outputs, num_uniforms, support, scale = 1, _LEVELS, 1, INTEGERS, _TOP
    num_values, has_mean_logits = 1, False

    def _log_table(self, outputs: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.nn.log_softmax(split_pixels(outputs[0], _LEVELS))

    def log_prob(self, outputs: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        # A product with zeros and ones, not a gather: XLA on a CPU takes the gradient of that one row by row.
        chosen = tf.one_hot(tf.cast(x, tf.int32), _LEVELS, dtype=outputs[0].dtype)
        return tf.reduce_sum(chosen * self._log_table(outputs), axis=-1)

    def mean(self, outputs: Sequence[tf.Tensor]) -> tf.Tensor:
        levels = tf.range(_LEVELS, dtype=outputs[0].dtype)
        return tf.reduce_sum(tf.exp(self._log_table(outputs)) * levels, axis=-1)

    def sample(self, outputs: Sequence[tf.Tensor], uniforms: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.cast(random.choose(uniforms[0], self._log_table(outputs)), outputs[0].dtype)


_HALF_CELL = 0.5 / _TOP
_LOG_SCALE_START, _LOG_SCALE_LIMIT = -2.0, 7.0


def logistic_log_mass(x: tf.Tensor, means: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """Log mass that logistics on [0, 1] have in the cell of width 1/255 around the level x in 0..255.

    The first and the last cell reach to infinity.
    """
    centred = x / _TOP - means
    low, high = (centred - _HALF_CELL) / scales, (centred + _HALF_CELL) / scales
    # sigmoid(high) - sigmoid(low) = sigmoid(high) (1 - sigmoid(low)) (1 - exp(low - high)), without cancellation;
    # low - high itself would cancel where the mean is far.
    log_cell = -tf.nn.softplus(low) - tf.nn.softplus(-high) + tf.math.log(-tf.math.expm1(-2.0 * _HALF_CELL / scales))
    return tf.where(x < 0.5, -tf.nn.softplus(-high), tf.where(x > _TOP - 0.5, -tf.nn.softplus(low), log_cell))


def logistic_mean(means: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """E[x] in 0..255 of logistics on [0, 1] with the mass of cells: the sum over levels of P(x > level)."""
    edges = (tf.range(_LEVELS - 1, dtype=means.dtype) + 0.5) / _TOP
    return tf.reduce_sum(tf.sigmoid((means[..., tf.newaxis] - edges) / scales[..., tf.newaxis]), axis=-1)


def logistic_sample(mean: tf.Tensor, scale: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Levels 0..255 of logistics on [0, 1] from uniform numbers."""
    drawn = mean + scale * (tf.math.log(uniform) - tf.math.log1p(-uniform))
    return tf.clip_by_value(tf.round(_TOP * drawn), 0.0, _TOP)


def logistic_scales(log_scales: tf.Tensor) -> tf.Tensor:
    """Scales of logistics on [0, 1] from a network's output."""
    return tf.exp(tf.clip_by_value(log_scales + _LOG_SCALE_START, -_LOG_SCALE_LIMIT, _LOG_SCALE_LIMIT))


class LogisticMixturePixels:
    """x in 0..255: a mixture of logistics on [0, 1], each with the mass of x's cell of width 1/255.

    The first and the last cell reach to infinity. Outputs of a pixel: M logits, M means, M log scales.

    Args:
        num_components: M.
    """

    num_networks, num_uniforms, support, scale = 1, 2, INTEGERS, _TOP
    num_values, has_mean_logits = 1, False

    def __init__(self, num_components: int) -> None:
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, found {num_components}")
        self.num_components = num_components
        self.num_outputs = 3 * num_components

    def _parameters(self, outputs: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Log weights, means and scales, each [..., S, M]."""
        logits, means, log_scales = tf.split(split_pixels(outputs[0], self.num_outputs), 3, axis=-1)
        return tf.nn.log_softmax(logits), 0.5 + means, logistic_scales(log_scales)

    def log_prob(self, outputs: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        log_weights, means, scales = self._parameters(outputs)
        return logsumexp(log_weights + logistic_log_mass(x[..., tf.newaxis], means, scales), axis=-1)

    def mean(self, outputs: Sequence[tf.Tensor]) -> tf.Tensor:
        log_weights, means, scales = self._parameters(outputs)
        return tf.reduce_sum(tf.exp(log_weights) * logistic_mean(means, scales), axis=-1)

    def sample(self, outputs: Sequence[tf.Tensor], uniforms: Sequence[tf.Tensor]) -> tf.Tensor:
        log_weights, means, scales = self._parameters(outputs)
        chosen = tf.one_hot(random.choose(uniforms[0], log_weights), self.num_components, dtype=means.dtype)
        mean, scale = (tf.reduce_sum(chosen * values, axis=-1) for values in (means, scales))
        return logistic_sample(mean, scale, uniforms[1])


class SplinePixels:
    """x in 0..255: a mixture of M fixed hat functions over the levels, so a histogram that is linear between M knots.

    The knots lie from both ends inwards at geometric distances 0, 1, ..., 98, where black and white pixels of images
    are; the hat of a knot is 1 there and falls to 0 at the knots beside it. The output is a logit for each hat. A pixel
    costs M exponentials, where a logistic of a mixture costs several for itself and its gradients.

    Args:
        num_components: M, even.
    """

    num_networks, num_uniforms, support, scale = 1, 1, INTEGERS, _TOP
    num_values, has_mean_logits = 1, False
    _innermost = 98.0

    def __init__(self, num_components: int) -> None:
        if num_components < 2 or num_components % 2 or num_components > _LEVELS // 2:
            raise ValueError(
                f"num_components of likelihood=spline must be even, 2 to {_LEVELS // 2}, found {num_components}"
            )
        self.num_outputs = num_components
        distances = [0.0]
        for distance in np.rint(np.geomspace(1.0, self._innermost, num_components // 2 - 1)):
            distances.append(max(distance, distances[-1] + 1.0))
        self.knots = np.array([*distances, *(_TOP - np.array(distances[::-1]))])
        hats = np.stack([np.interp(np.arange(_LEVELS), self.knots, hat) for hat in np.eye(num_components)])
        self._hats = hats / hats.sum(axis=1, keepdims=True)

    def log_prob(self, outputs: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        log_weights = tf.nn.log_softmax(split_pixels(outputs[0], self.num_outputs))
        with np.errstate(divide="ignore"):
            log_hats = tf.constant(np.log(self._hats.T), log_weights.dtype)
        return logsumexp(log_weights + tf.gather(log_hats, tf.cast(x, tf.int32)), axis=-1)

    def mean(self, outputs: Sequence[tf.Tensor]) -> tf.Tensor:
        means = tf.constant(self._hats @ np.arange(_LEVELS), outputs[0].dtype)
        return tf.reduce_sum(tf.nn.softmax(split_pixels(outputs[0], self.num_outputs)) * means, axis=-1)

    def sample(self, outputs: Sequence[tf.Tensor], uniforms: Sequence[tf.Tensor]) -> tf.Tensor:
        weights = tf.nn.softmax(split_pixels(outputs[0], self.num_outputs))
        table = tf.math.log(tf.tensordot(weights, tf.constant(self._hats, weights.dtype), 1))
        return tf.cast(random.choose(uniforms[0], table), outputs[0].dtype)


def split_pixels(outputs: tf.Tensor, size: int) -> tf.Tensor:
    """[..., S * size] -> [..., S, size]."""
    pixels = outputs.shape[-1] // size
    return tf.reshape(outputs, tf.concat([tf.shape(outputs)[:-1], [pixels, size]], axis=0))


def make_pixels(name: str, *, precision_floor: float, num_components: int) -> Pixels:
    """Returns a family by name; raises ValueError that lists the names for any other."""
    families = {
        "bernoulli": BernoulliPixels,
        "gaussian": lambda: GaussianPixels(precision_floor),
        "binomial": BinomialPixels,
        "categorical": CategoricalPixels,
        "logistic_mixture": lambda: LogisticMixturePixels(num_components),
        "spline": lambda: SplinePixels(num_components),
    }
    if name not in families:
        raise ValueError(f"likelihood must be one of {', '.join(families)}, found {name!r}")
    return families[name]()

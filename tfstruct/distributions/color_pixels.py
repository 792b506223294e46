"""A mixture of logistics of colours: the green of a pixel depends on its red, the blue on both.

References:
    Salimans et al., PixelCNN++, ICLR 2017, section 2.2.
"""

from collections.abc import Sequence

import tensorflow as tf

from tfstruct import random
from tfstruct.data.support import INTEGERS
from tfstruct.distributions.pixels import (
    logistic_log_mass,
    logistic_mean,
    logistic_sample,
    logistic_scales,
    split_pixels,
)
from tfstruct.math import logsumexp

_TOP = 255.0
_CHANNELS = 3


class ColorLogisticMixturePixels:
    """x in 0..255 for red, green and blue, one after the other for each pixel: a mixture over whole pixels.

    Within a component each colour is a logistic with the mass of its cell; the mean of green moves with red, and that
    of blue with red and green, by coefficients in (-1, 1). Outputs of a pixel: M logits, then for each colour M means
    and M log scales, then M coefficients for each of green on red, blue on red, blue on green.

    Args:
        num_components: M.
    """

    num_networks, num_values, support, scale, has_mean_logits = 1, _CHANNELS, INTEGERS, _TOP, False
    num_uniforms = 2  # a choice, of which every third counts, and one for each value

    def __init__(self, num_components: int) -> None:
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, found {num_components}")
        self.num_components = num_components
        self.num_outputs = 10 * num_components

    def _parameters(self, outputs: Sequence[tf.Tensor]) -> tuple[tf.Tensor, ...]:
        """Log weights [..., S/3, M], means and scales [..., S/3, 3, M], coefficients [..., S/3, 3, M]."""
        (values,) = outputs
        per_pixel = split_pixels(values, self.num_outputs)
        parts = tf.split(per_pixel, [self.num_components, *[_CHANNELS * self.num_components] * 3], axis=-1)
        logits = parts[0]
        shape = tf.concat([tf.shape(logits)[:-1], [_CHANNELS, self.num_components]], axis=0)
        means, log_scales, coefficients = (tf.reshape(part, shape) for part in parts[1:])
        return tf.nn.log_softmax(logits), 0.5 + means, logistic_scales(log_scales), tf.tanh(coefficients)

    def log_prob(self, outputs: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        """Log p of every whole pixel, [..., S/3]."""
        log_weights, means, scales, coefficients = self._parameters(outputs)
        colors = split_pixels(x, _CHANNELS)[..., tf.newaxis]
        moved = _moved(means, coefficients, colors[..., 0, :], colors[..., 1, :])
        log_mass = tf.reduce_sum(logistic_log_mass(colors, moved, scales), axis=-2)
        return logsumexp(log_weights + log_mass, axis=-1)

    def mean(self, outputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """E[x], [..., S], with green and blue at the means of the colours before them.

        Exact for red, an approximation for the others.
        """
        log_weights, means, scales, coefficients = self._parameters(outputs)
        red = logistic_mean(means[..., 0, :], scales[..., 0, :])
        green = logistic_mean(_moved(means, coefficients, red, red)[..., 1, :], scales[..., 1, :])
        blue = logistic_mean(_moved(means, coefficients, red, green)[..., 2, :], scales[..., 2, :])
        weights = tf.exp(log_weights)[..., tf.newaxis, :]
        return _joined(tf.reduce_sum(weights * tf.stack([red, green, blue], axis=-2), axis=-1))

    def sample(self, outputs: Sequence[tf.Tensor], uniforms: Sequence[tf.Tensor]) -> tf.Tensor:
        log_weights, means, scales, coefficients = self._parameters(outputs)
        choices, noise = (split_pixels(values, _CHANNELS) for values in uniforms)
        chosen = tf.one_hot(random.choose(choices[..., 0], log_weights), self.num_components, dtype=means.dtype)
        one = lambda values: tf.reduce_sum(chosen[..., tf.newaxis, :] * values, axis=-1, keepdims=True)  # noqa: E731
        means, scales, coefficients = one(means), one(scales), one(coefficients)
        draw = lambda moved, channel: logistic_sample(  # noqa: E731
            moved[..., channel, :], scales[..., channel, :], noise[..., channel, tf.newaxis]
        )
        red = draw(means, 0)
        green = draw(_moved(means, coefficients, red, red), 1)
        blue = draw(_moved(means, coefficients, red, green), 2)
        return _joined(tf.concat([red, green, blue], axis=-1))


def _moved(means: tf.Tensor, coefficients: tf.Tensor, red: tf.Tensor, green: tf.Tensor) -> tf.Tensor:
    """Means [..., 3, M] given the levels of red and green [..., M] or [..., 1]."""
    red, green = red / _TOP - 0.5, green / _TOP - 0.5
    first, second, third = tf.unstack(coefficients, axis=-2)
    of_green, of_blue = first * red, second * red + third * green
    return means + tf.stack([tf.zeros_like(of_blue), of_green + tf.zeros_like(of_blue), of_blue], axis=-2)


def _joined(colors: tf.Tensor) -> tf.Tensor:
    """[..., S/3, 3] -> [..., S]."""
    return tf.reshape(colors, tf.concat([tf.shape(colors)[:-2], [_CHANNELS * colors.shape[-2]]], axis=0))

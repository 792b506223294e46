"""Adam and moving averages on one flat vector of parameters."""

from typing import NamedTuple

import tensorflow as tf


class Adam(NamedTuple):
    """Adam with bias correction, and optional clipping of the gradient's norm.

    Attributes:
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        epsilon: added to the root of the bias-corrected second moment.
        clip_norm: largest norm of the whole gradient; 0 for none.

    References:
        Kingma & Ba, ICLR 2015, algorithm 1.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float = 0.0

    def update(
        self,
        step: tf.Tensor,
        learning_rate: tf.Tensor,
        gradient: tf.Tensor,
        parameters: tf.Tensor,
        first_moment: tf.Tensor,
        second_moment: tf.Tensor,
        is_applied: tf.Tensor | bool = True,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the new parameters and moments, each [P], and the gradient's norm before clipping.

        Args:
            step: number of updates made before this one.
            learning_rate: scalar.
            gradient: of the loss, [P].
            parameters: [P].
            first_moment: [P].
            second_moment: [P].
            is_applied: Boolean scalar; where it is false, or the norm is not finite, parameters and moments come out
                as they went in.
        """
        norm = tf.sqrt(tf.reduce_sum(tf.square(gradient)))
        if self.clip_norm > 0.0:
            gradient = gradient * tf.minimum(1.0, self.clip_norm / tf.maximum(norm, 1e-12))
        count = tf.cast(step + 1, tf.float32)
        # An update of size zero, not a choice between old and new: that reads every array once more.
        is_applied &= tf.math.is_finite(norm)
        gradient, share = tf.where(is_applied, gradient, tf.zeros([])), tf.cast(is_applied, gradient.dtype)
        first_moment += (1.0 - self.beta_1) * share * (gradient - first_moment)
        second_moment += (1.0 - self.beta_2) * share * (tf.square(gradient) - second_moment)
        first = first_moment / (1.0 - tf.pow(self.beta_1, count))
        second = second_moment / (1.0 - tf.pow(self.beta_2, count))
        parameters = parameters - share * learning_rate * first / (tf.sqrt(second) + self.epsilon)
        return parameters, first_moment, second_moment, norm


def moving_average(
    average: tf.Tensor, values: tf.Tensor, momentum: float, step: tf.Tensor, share: tf.Tensor | float = 1.0
) -> tf.Tensor:
    """Returns momentum * average + (1 - momentum) * values, with the momentum raised to its value over first steps.

    The momentum is min(momentum, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage with
    `num_updates`, so that the weights of the beginning are soon forgotten.

    Args:
        average: so far, [P].
        values: after this update, [P].
        momentum: in (0, 1).
        step: number of updates made before this one.
        share: 1, or 0 for a step that leaves the average as it is.
    """
    count = tf.cast(step, average.dtype)
    momentum = tf.minimum(momentum, (1.0 + count) / (10.0 + count))
    return average + (1.0 - momentum) * share * (values - average)

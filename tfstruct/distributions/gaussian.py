"""Diagonal Gaussians by location and log variance."""

import numpy as np
import tensorflow as tf

LOG_TWO_PI = float(np.log(2.0 * np.pi))

GaussianParameters = tuple[tf.Tensor, tf.Tensor]


def gaussian_log_prob(value: tf.Tensor, loc: tf.Tensor, log_variance: tf.Tensor) -> tf.Tensor:
    """Log N(value; loc, exp(log_variance)) elementwise, without leaving the log domain."""
    squared = tf.square(value - loc) * tf.exp(-log_variance)
    return -0.5 * (squared + log_variance + LOG_TWO_PI)


def fuse(first: GaussianParameters, second: GaussianParameters) -> GaussianParameters:
    """Product of two Gaussians, normalised: precisions add, means are weighted by them (eq. 7)."""
    (first_loc, first_log_variance), (second_loc, second_log_variance) = first, second
    difference = first_log_variance - second_log_variance
    loc = second_loc + tf.sigmoid(-difference) * (first_loc - second_loc)
    return loc, first_log_variance - tf.nn.softplus(difference)

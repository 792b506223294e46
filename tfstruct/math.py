"""Numerics shared by several modules."""

from typing import Any

import numpy as np
import tensorflow as tf


def logsumexp(values: tf.Tensor, axis: int | tuple[int, ...], keepdims: bool = False) -> tf.Tensor:
    """log(sum(exp(values))) along `axis`, with a finite gradient where every value is -inf.

    A slice that holds only -inf gives -inf and gradient zero (tf.reduce_logsumexp gives NaN there).
    """
    largest = tf.stop_gradient(tf.reduce_max(values, axis=axis, keepdims=True))
    largest = tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest))
    total = tf.reduce_sum(tf.exp(values - largest), axis=axis, keepdims=True)
    empty = total <= 0.0
    # Both branches of a `where` are differentiated: the logarithm must never see the zero.
    logs = tf.math.log(tf.where(empty, tf.ones_like(total), total)) + largest
    logs = tf.where(empty, tf.constant(-np.inf, values.dtype), logs)
    return logs if keepdims else tf.squeeze(logs, axis=axis)


def log_mean_exp(values: tf.Tensor, axis: int = 0) -> tf.Tensor:
    """log(mean(exp(values))) along `axis`; finite gradients where every value is -inf."""
    count = tf.cast(tf.shape(values)[axis], values.dtype)
    return logsumexp(values, axis) - tf.math.log(count)


def log_mean_ratio(log_ratios: tf.Tensor, axis: int = -1) -> tf.Tensor:
    """The same as `log_mean_exp` for finite values near 0, without the rounding of the logarithm of their number."""
    largest = tf.reduce_max(log_ratios, axis=axis, keepdims=True)
    mean = tf.reduce_mean(tf.math.expm1(log_ratios - largest), axis=axis)
    return tf.math.log1p(mean) + tf.squeeze(largest, axis=axis)


def compensated_add(total: tf.Tensor, lost: tf.Tensor, value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Adds a value to a running sum; returns the sum and what rounding has lost of it, which the next call adds.

    The error of a sum then does not grow with the number of its terms.

    References:
        Kahan, Further Remarks on Reducing Truncation Errors, 1965.
    """
    value += lost
    result = total + value
    return result, value - (result - total)


def soft_clip(values: tf.Tensor, inner: float, outer: float) -> tf.Tensor:
    """Limits values to +-`outer`; those within +-`inner` stay as they are, to the bit.

    The slope beyond falls off as the square only (that of tanh would be 0 in float32 soon after), to 0 at +-1e18.
    """
    inside = tf.clip_by_value(values, -inner, inner)
    beyond = (tf.clip_by_value(values, -1e18, 1e18) - inside) / (outer - inner)
    return inside + (outer - inner) * beyond / (1.0 + tf.abs(beyond))


def mean_and_std_err(values: np.ndarray) -> tuple[float, float]:
    """The mean of a NumPy vector and the standard error of that mean, in float64; NaN for the error of one value."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def bits_per_dim(nats: Any, dims: int, offset: float = 0.0) -> Any:
    """Negative log2-likelihood per dimension of a log-likelihood in nats.

    Args:
        nats: log p(x), any shape.
        dims: number of dimensions of one observation.
        offset: log2 of the number of grey levels when p is a density on [0, 1] of 8-bit data (8), else 0.
    """
    return -nats / (dims * np.log(2.0)) + offset

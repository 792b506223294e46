"""Masks of pixels that are hidden while training, so that encoders learn to work with the rest."""

import numpy as np
import tensorflow as tf

from tfstruct import random

Shape = tuple[int, ...]


def random_masks(keys: tf.Tensor, event_shape: Shape, missing_fraction: float) -> tf.Tensor:
    """Draws which pixels are observed, one mask for each row.

    A row is left whole with probability 1 - missing_fraction. Of the others, half lose every pixel with a probability
    of their own, uniform in (0, 1); of images the other half lose a rectangle whose corners are uniform.

    Args:
        keys: one for each row, [B, 2].
        event_shape: of an observation; the first two axes of an image are height and width.
        missing_fraction: part of the rows that lose pixels.

    Returns:
        Boolean [B, prod(event_shape)], true where observed.
    """
    choice_key, pixel_key = random.split(keys)
    choices = random.uniform(choice_key, [7])
    is_whole, by_pixel, rate = (choices[:, place : place + 1] for place in range(3))
    dims = int(np.prod(event_shape))
    observed = random.uniform(pixel_key, [dims]) >= rate
    if len(event_shape) > 1:
        places = np.unravel_index(np.arange(dims), event_shape)
        inside = tf.constant(True)
        for axis in range(2):
            corners = choices[:, 3 + 2 * axis : 5 + 2 * axis] * float(event_shape[axis])
            low, high = tf.reduce_min(corners, axis=1), tf.reduce_max(corners, axis=1)
            middle = tf.constant(places[axis] + 0.5, tf.float32)
            inside &= (middle > low[:, tf.newaxis]) & (middle < high[:, tf.newaxis])
        observed = tf.where(by_pixel < 0.5, observed, ~inside)
    return observed | (is_whole >= missing_fraction)

"""PNG and JPEG images as grey levels or colours: one way for data files, and inside the graphs of served models."""

import re
from collections.abc import Sequence

import tensorflow as tf


def problem(error: tf.errors.OpError) -> str:
    """What TensorFlow says of a broken image, without the names of its operations."""
    return re.sub(r"^\{\{.*?\}\}\s*|\s*\[Op:.*$", "", error.message.splitlines()[0])


def decode(encoded: tf.Tensor, channels: int = 0) -> tf.Tensor:
    """Decodes an image to uint8 [h, w, channels], its own number of channels for 0."""
    return tf.io.decode_image(encoded, channels=channels, expand_animations=False)


def decode_resized(encoded: tf.Tensor, size: Sequence[int], channels: int) -> tf.Tensor:
    """Decodes an image and resizes it by area averages, whatever its proportions: whole float32 [*size, channels]."""
    image = tf.ensure_shape(decode(encoded, channels), [None, None, channels])
    return tf.round(tf.image.resize(image, size, method="area"))

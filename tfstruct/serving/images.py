"""Encoded images as inputs of signatures: decoded, resized and scaled inside the graph as the model's data were."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfstruct import random
from tfstruct.data.images import decode_resized
from tfstruct.data.support import BINARY, INTEGERS, UNIT_INTERVAL
from tfstruct.serving.blocks import signature

_DRAW = 5  # the purpose of a row's key, beside those of serving.signatures
_DRAWN = "drawn: 1 with the probability of its intensity"
_THRESHOLD = "1 from half intensity on"
_STRETCHED = "grey levels 0..255, stretched to the whole range"
_LEVELS = "grey levels 0..255"
_UNIT = "intensities in [0, 1]"
_BY_VARIANT = {"dynamic": _DRAWN, "static": _DRAWN, "discrete": _STRETCHED}
_BY_SUPPORT = {BINARY: _THRESHOLD, INTEGERS: _LEVELS, UNIT_INTERVAL: _UNIT}


class ImageInput(NamedTuple):
    """How encoded images become observations.

    Attributes:
        size: height and width; images of others are resized by area averages, whatever their proportions.
        channels: 1 or 3.
        values: what is done with the intensities.
        shape: of an observation.
    """

    size: tuple[int, int]
    channels: int
    values: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, event_shape: Sequence[int], support: str, variant: str) -> "ImageInput | None":
        """Returns that of a model; None where observations are no images, or noise was added to them.

        Args:
            event_shape: of an observation.
            support: where observations lie.
            variant: of the model's data.
        """
        shape = tuple(event_shape)
        is_image = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
        values = _BY_VARIANT.get(variant, _BY_SUPPORT.get(support))
        if not is_image or values is None or variant in ("continuous", "dequantized"):
            return None
        return cls((shape[0], shape[1]), shape[2] if len(shape) == 3 else 1, values, shape)

    def decode(self, image_bytes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Turns PNG or JPEG images [N] into observations [N, *event_shape]; one that is neither fails the request."""
        spec = tf.TensorSpec([*self.size, self.channels], tf.float32)
        levels = lambda encoded: decode_resized(encoded, self.size, self.channels)  # noqa: E731
        rows = tf.reshape(tf.map_fn(levels, image_bytes, fn_output_signature=spec), [-1, *self.shape])
        return self._scaled(rows, seed)

    def _scaled(self, rows: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        if self.values == _DRAWN:
            keys = random.fold_in(random.fold_in(random.row_keys(seed), random.SERVING), _DRAW)
            return tf.cast(random.uniform(keys, self.shape) * 255.0 < rows, tf.float32)
        if self.values == _THRESHOLD:
            return tf.cast(rows >= 128.0, tf.float32)
        if self.values == _UNIT:
            return rows / 255.0
        if self.values == _STRETCHED:
            axes = list(range(1, 1 + len(self.shape)))
            low, high = (reduce(rows, axes, keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
            return tf.round(255.0 * (rows - low) / tf.where(high > low, high - low, tf.ones_like(high)))
        return rows

    def variant_of(self, function: Callable[..., Any], more: Sequence[tf.TensorSpec] = ()) -> Callable[..., Any]:
        """Returns a tf.function of `image_bytes` [N], `seed` [N] and more inputs that asks one of x, seed and those."""

        def of_images(image_bytes: tf.Tensor, seed: tf.Tensor, *others: tf.Tensor) -> Any:
            named = {spec.name: value for spec, value in zip(more, others, strict=True)}
            return function(x=self.decode(image_bytes, seed), seed=seed, **named)

        specs = [tf.TensorSpec([None], tf.string, name="image_bytes"), tf.TensorSpec([None], tf.int64, name="seed")]
        return signature(of_images, [*specs, *more])

    def about(self) -> dict[str, Any]:
        """Returns what a card says."""
        return {"size": list(self.size), "channels": self.channels, "resize": "area", "values": self.values}

"""Rows that a model was not trained on, in the form of those that it was: what a detector of anomalies must find."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.data import datasets, variants
from tfstruct.registry import require_known

NOISE, CONSTANT = "noise", "constant"
_MADE = (NOISE, CONSTANT)
_SEED = 71


def names() -> list[str]:
    """Returns what `rows` takes: data sets, noise and constant images."""
    return [*(name for name in datasets.names() if name != "file"), *_MADE]


def rows(
    name: str,
    variant: str,
    event_shape: Sequence[int],
    *,
    count: int,
    split: str = "test",
    data_dir: str | os.PathLike | None = None,
) -> np.ndarray:
    """Returns rows of a foreign set, rendered as a variant, float32 [count, *event_shape].

    Images of another size are resized by area averages before they are rendered, and colour becomes grey where the
    model's images are. `noise` has independent uniform intensities, each image of `constant` one intensity throughout.

    Args:
        name: one of `names()`.
        variant: how the model's own data are rendered.
        event_shape: of the model, of images [height, width] or [height, width, 3].
        count: how many, evenly spread over the set; fewer where it has fewer.
        split: `validation` or `test`.
        data_dir: folder of prepared data sets.

    Raises:
        ValueError: an unknown name (near names are listed), an unknown variant, or a model of no images.
        DatasetNotFoundError: a set that is not prepared, with the command that prepares it.
    """
    require_known(name, names(), "foreign data")
    if len(event_shape) not in (2, 3):
        raise ValueError(f"foreign data are images; the model's observations have shape {list(event_shape)}")
    images = _made(name, event_shape, count) if name in _MADE else _read(name, event_shape, count, split, data_dir)
    return variants.render(variant, dict.fromkeys(variants.SPLITS, images)).splits[split].astype(np.float32)


def spread(values: np.ndarray, count: int) -> np.ndarray:
    """Returns so many rows evenly spread over all, all for 0 or where there are fewer.

    The first rows are not like all: those of the test set of MNIST are the more legible ones, Omniglot is in the order
    of its alphabets.
    """
    if not 0 < count < len(values):
        return values
    return np.asarray(values)[np.linspace(0, len(values), count, endpoint=False).astype(int)]


def _made(name: str, event_shape: Sequence[int], count: int) -> np.ndarray:
    keys = random.fold_in(random.fold_in(random.key(_SEED), _MADE.index(name)), tf.range(count))
    unit = random.uniform(keys, event_shape if name == NOISE else [1] * len(event_shape)).numpy()
    return np.broadcast_to(np.floor(unit * 256.0), (count, *event_shape)).astype(np.uint8)


def _read(
    name: str, event_shape: Sequence[int], count: int, split: str, data_dir: str | os.PathLike | None
) -> np.ndarray:
    """Intensities 0..255 of a data set, as large and as grey or coloured as the model's images."""
    images = spread(np.asarray(datasets.SOURCES[name].read(data_dir)[split]), count)
    if images.dtype != np.uint8 or name == "binarized_mnist":  # of zeros and ones
        images = np.rint(images * 255.0).astype(np.uint8)
    if variants.is_colour(images) and len(event_shape) == 2:
        images = variants.to_grey(images)
    elif images.ndim == 3 and len(event_shape) == 3:
        images = np.repeat(images[..., np.newaxis], 3, axis=-1)
    if images.shape[1:3] != tuple(event_shape[:2]):
        with_channels = images if images.ndim == 4 else images[..., np.newaxis]
        resized = tf.image.resize(with_channels, event_shape[:2], method="area").numpy()
        images = np.rint(resized).astype(np.uint8).reshape(-1, *event_shape)
    return images

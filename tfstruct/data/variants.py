"""From stored rows to what a model sees: binarisation, grey levels, dequantisation.

A variant says what happens to intensities. What is random in validation and test rows is drawn once from
fixed keys, so that two evaluations see the same bits; what is random in training rows is drawn anew at every
visit, on the device, by `training_rows`.

Every fixed draw is made with Threefry (`tfstruct.random`): the key of `FIXED_SEED`, folded with the number of
the purpose, the number of the split (train 0, validation 1, test 2) and the number of the block of 100 rows.
The noise of a row thus depends on its position alone, and the first n rows come out the same however many
follow. `dynamic` and `static` share their validation and test rows bit for bit. All of it is the same
on every machine, but for the last bits of `continuous`, which come from SciPy's normal quantiles.

References:
    `dynamic`: Salakhutdinov & Murray, On the Quantitative Analysis of Deep Belief Networks, ICML 2008.
    `static`: Larochelle & Murray, The Neural Autoregressive Distribution Estimator, AISTATS 2011.
    `dequantized`: Uria et al., RNADE: The Real-Valued Neural Autoregressive Density Estimator, NIPS 2013.
    `continuous`, `discrete`: Tan & Peharz, Hierarchical Decompositional Mixtures of Variational Autoencoders,
        ICML 2019 (SPVAE); the per-image scaling and the noise follow its published preprocessing.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from scipy import special

from tfstruct import random
from tfstruct.data.support import BINARY, INTEGERS, UNIT_INTERVAL, mean_of

_COLOURED = ("dequantized", "levels")
SPLITS = ("train", "validation", "test")
TRANSFORMS = ("cast", "binarize", "dequantize")
VARIANTS = ("dynamic", "static", "thresholded", "grey", "dequantized", "continuous", "discrete", "levels", "none")

FIXED_SEED = 20110411
_BINARIZATION, _DEQUANTIZATION, _NOISE, _CORRUPTION = range(4)
_BLOCK = 100  # rows drawn from one key: keeps the temporaries in the processor's cache
_NOISE_CELLS = 2.0**15  # dequantisation noise has 16 bits, so that 8 + 16 fill the 24 of a float32


@dataclasses.dataclass(frozen=True, eq=False)
class Rendering:
    """The three splits of one variant and what they mean.

    Attributes:
        splits: rows [n, *event] of each name in `SPLITS`; validation and test are final.
        support: where final values lie, one of `tfstruct.data.support.SUPPORTS`.
        bits_per_dim_offset: what to add to nll / (D ln 2); None where bits per dimension mean nothing.
    """

    splits: dict[str, np.ndarray]
    support: str
    bits_per_dim_offset: float | None


def train_transform(variant: str) -> str:
    """Returns the name in `TRANSFORMS` that `training_rows` applies to training rows of a variant."""
    return {"dynamic": "binarize", "dequantized": "dequantize"}.get(variant, "cast")


def pixel_means(rows: np.ndarray, transform: str, scale: float) -> np.ndarray:
    """Returns the mean of every pixel of stored training rows on the scale [0, 1], float64 [X].

    Args:
        rows: [n, *event], as `training_rows` takes them.
        transform: as there.
        scale: what observations are divided by to lie in [0, 1].
    """
    is_intensity = rows.dtype.kind in "iu" and transform != "cast"
    return mean_of(rows).reshape(-1) / (255.0 if is_intensity else scale)


def training_rows(transform: str, rows: Any, seed: Any) -> tf.Tensor:
    """Turns stored training rows into model input; runs eagerly, inside XLA and under `tf.vectorized_map`.

    Bits agree between the three: beside the draw, whose bits agree, at most one operation rounds.

    Args:
        transform: `cast` (values as they are), `binarize` (Bernoulli draws of the intensities) or
            `dequantize` ((x + u) / 256 inside (0, 1)).
        rows: [batch, *event]. Integers are intensities in 0..255, floats intensities in [0, 1].
        seed: one key, uint32 [2], or one per row, [batch, 2]; not used by `cast`.

    Returns:
        float32 of the shape of `rows`.

    Raises:
        ValueError: for an unknown transform, and for `dequantize` of floats.
    """
    rows = tf.convert_to_tensor(rows)
    if transform not in TRANSFORMS:
        raise ValueError(f"unknown transform {transform!r}; there are {', '.join(TRANSFORMS)}")
    values = tf.cast(rows, tf.float32)
    if transform == "cast":
        return values
    seed = tf.convert_to_tensor(seed, tf.uint32)
    first = seed.shape.rank - 1  # keys of rows bring the row axis themselves
    # A static shape lets XLA and vectorized_map see the number of draws.
    shape = rows.shape[first:] if rows.shape[first:].is_fully_defined() else tf.shape(rows)[first:]
    unit = random.uniform(seed, shape)
    if transform == "binarize":
        # Not rows / 255: graphs and XLA multiply by a rounded reciprocal instead, other than eager execution.
        threshold = unit * 255.0 if rows.dtype.is_integer else unit
        return tf.cast(threshold < values, tf.float32)
    if not rows.dtype.is_integer:
        raise ValueError(f"dequantize needs integer intensities 0..255, found {rows.dtype.name}")
    # With noise of 16 bits the sum is exact. A full draw would round some of 200 + u up to the level 201.
    noise = (tf.floor(unit * _NOISE_CELLS) + 0.5) / _NOISE_CELLS
    return (values + noise) / 256.0


def to_grey(rows: np.ndarray) -> np.ndarray:
    """Returns the ITU-R 601-2 luma of uint8 RGB rows [n, h, w, 3] as uint8 [n, h, w].

    The integer formula is that of PIL's `convert("L")`, rounding included.
    """
    red, green, blue = (rows[..., channel].astype(np.uint32) for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)


def is_colour(rows: np.ndarray) -> bool:
    """Whether rows are RGB images: uint8 [n, h, w, 3]."""
    return rows.ndim == 4 and rows.shape[-1] == 3 and rows.dtype == np.uint8


def makes_grey(variant: str) -> bool:
    """Whether a variant makes RGB images grey."""
    return variant in _RENDERERS and variant not in _COLOURED


def render(variant: str, splits: Mapping[str, np.ndarray]) -> Rendering:
    """Applies a variant to the three splits of a data set.

    Args:
        variant: any name in `VARIANTS` but `none`, of which `tfstruct.data.files` knows the meaning.
        splits: intensities [n, *event] of each name in `SPLITS`: uint8 in 0..255, or floats in [0, 1].
            RGB images become grey, except for `dequantized` and `levels`.

    Raises:
        ValueError: for an unknown variant, and for `dequantized` or `levels` rows that are not uint8.
    """
    if variant not in _RENDERERS:
        raise ValueError(f"unknown variant {variant!r}; there are {', '.join(_RENDERERS)}")
    if makes_grey(variant):
        splits = {name: to_grey(rows) if is_colour(rows) else rows for name, rows in splits.items()}
    return _RENDERERS[variant](splits)


def binarize(rows: np.ndarray, split: str) -> np.ndarray:
    """Returns rows binarised once by the fixed key of a split, as uint8; P(1) is the intensity.

    Args:
        rows: uint8 in 0..255 or floats in [0, 1], [n, *event].
        split: a name in `SPLITS`; which key to use.
    """
    result = np.empty(rows.shape, np.uint8)
    scale = np.float32(255.0 if rows.dtype == np.uint8 else 1.0)
    for block, unit in _fixed_uniform(_BINARIZATION, split, rows.shape):
        result[block] = unit * scale < rows[block].astype(np.float32)
    return result


def _fixed_uniform(purpose: int, split: str, shape: tuple[int, ...]) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields slices of blocks of rows and their uniform float32 draws in (0, 1)."""
    stream = random.numpy_fold_in(random.key(FIXED_SEED), purpose)
    stream = random.numpy_fold_in(stream, SPLITS.index(split))
    for number, start in enumerate(range(0, shape[0], _BLOCK)):
        block = slice(start, min(start + _BLOCK, shape[0]))
        # A whole block is drawn even for a partial one: the bits of a draw depend on its size.
        unit = random.numpy_uniform(random.numpy_fold_in(stream, number), (_BLOCK, *shape[1:]))
        yield block, unit[: block.stop - start]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Intensities in [0, 1] as float32."""
    if rows.dtype == np.uint8:
        return rows.astype(np.float32) / np.float32(255.0)
    return rows.astype(np.float32)


def _min_max(rows: np.ndarray) -> np.ndarray:
    """Stretches each row to [0, 1] in float64; a constant row becomes 0."""
    rows = rows.astype(np.float64)
    axes = tuple(range(1, rows.ndim))
    low, high = rows.min(axes, keepdims=True), rows.max(axes, keepdims=True)
    return (rows - low) / np.where(high > low, high - low, 1.0)


def _grid(rows: np.ndarray) -> np.ndarray:
    """Rounds stretched rows to the integers 0..255, as uint8."""
    result = np.empty(rows.shape, np.uint8)
    for start in range(0, len(rows), _BLOCK):  # float64 of a whole colour set would not fit small machines
        block = slice(start, start + _BLOCK)
        result[block] = np.rint(255.0 * _min_max(rows[block]))
    return result


def _noisy(rows: np.ndarray, split: str) -> np.ndarray:
    """Grid values in 1/255 plus N(0, 1/255**2) noise, reflected at 0 and 1 and stretched again."""
    grid = _grid(rows)
    result = np.empty(rows.shape, np.float32)
    for block, unit in _fixed_uniform(_NOISE, split, rows.shape):
        noisy = (grid[block] + special.ndtri(unit.astype(np.float64))) / 255.0
        result[block] = _min_max(1.0 - np.abs(1.0 - np.abs(noisy)))
    return result


def _dequantize(rows: np.ndarray, split: str) -> np.ndarray:
    result = np.empty(rows.shape, np.float32)
    for block, unit in _fixed_uniform(_DEQUANTIZATION, split, rows.shape):
        noise = (np.floor(unit * np.float32(_NOISE_CELLS)) + np.float32(0.5)) / np.float32(_NOISE_CELLS)
        result[block] = (rows[block].astype(np.float32) + noise) / np.float32(256.0)
    return result


def _render_dynamic(splits: Mapping[str, np.ndarray]) -> Rendering:
    final = {name: binarize(splits[name], name) for name in SPLITS[1:]}
    return Rendering({"train": splits["train"], **final}, BINARY, 0.0)


def _render_static(splits: Mapping[str, np.ndarray]) -> Rendering:
    return Rendering({name: binarize(splits[name], name) for name in SPLITS}, BINARY, 0.0)


def _render_thresholded(splits: Mapping[str, np.ndarray]) -> Rendering:
    # 127.5 of 255 is one half: the two thresholds agree.
    final = {name: rows >= (128 if rows.dtype == np.uint8 else 0.5) for name, rows in splits.items()}
    return Rendering({name: rows.astype(np.uint8) for name, rows in final.items()}, BINARY, 0.0)


def _render_grey(splits: Mapping[str, np.ndarray]) -> Rendering:
    return Rendering({name: _unit(rows) for name, rows in splits.items()}, UNIT_INTERVAL, None)


def _require_bytes(variant: str, splits: Mapping[str, np.ndarray]) -> None:
    found = sorted({str(rows.dtype) for rows in splits.values()} - {"uint8"})
    if found:
        raise ValueError(f"{variant} needs uint8 intensities 0..255, found {', '.join(found)}")


def _render_levels(splits: Mapping[str, np.ndarray]) -> Rendering:
    _require_bytes("levels", splits)
    return Rendering(dict(splits), INTEGERS, 0.0)


def _render_dequantized(splits: Mapping[str, np.ndarray]) -> Rendering:
    _require_bytes("dequantized", splits)
    final = {name: _dequantize(splits[name], name) for name in SPLITS[1:]}
    # -log2 p(x) <= -log2 p((x + u) / 256) + 8 D: the density of one cell of width 1/256 per dimension.
    return Rendering({"train": splits["train"], **final}, UNIT_INTERVAL, 8.0)


def _render_continuous(splits: Mapping[str, np.ndarray]) -> Rendering:
    return Rendering({name: _noisy(splits[name], name) for name in SPLITS}, UNIT_INTERVAL, None)


def _render_discrete(splits: Mapping[str, np.ndarray]) -> Rendering:
    return Rendering({name: _grid(rows) for name, rows in splits.items()}, INTEGERS, 0.0)


_RENDERERS: dict[str, Callable[[Mapping[str, np.ndarray]], Rendering]] = {
    "dynamic": _render_dynamic,
    "static": _render_static,
    "thresholded": _render_thresholded,
    "grey": _render_grey,
    "dequantized": _render_dequantized,
    "continuous": _render_continuous,
    "discrete": _render_discrete,
    "levels": _render_levels,
}


def corrupt(x: tf.Tensor, keys: tf.Tensor, fraction: float, support: str) -> tf.Tensor:
    """Replaces a part of the values of each row by uniform draws from their support.

    Args:
        x: observations [B, *event_shape].
        keys: one for each row, [B, 2].
        fraction: expected part of the values that are replaced.
        support: where they lie; one that is bounded.

    Raises:
        ValueError: real values, which have no uniform distribution.

    References:
        Ren et al., Likelihood Ratios for Out-of-Distribution Detection, NeurIPS 2019, section 3.
    """
    which, drawn = (random.uniform(key, x.shape[1:]) for key in random.split(keys))
    return tf.where(which < fraction, tf.cast(_uniform_of(support, drawn), x.dtype), x)


def corrupt_once(rows: np.ndarray, split: str, fraction: float, support: str) -> np.ndarray:
    """Returns final rows [n, *event] as `corrupt` changes them, drawn once by the fixed key of a split."""
    result = np.array(rows)
    for block, unit in _fixed_uniform(_CORRUPTION, split, (len(rows), 2, *rows.shape[1:])):
        drawn = np.asarray(_uniform_of(support, unit[:, 1]))
        result[block] = np.where(unit[:, 0] < fraction, drawn.astype(rows.dtype), rows[block])
    return result


def _uniform_of(support: str, unit: Any) -> tf.Tensor:
    """Turns draws in (0, 1) into uniform draws from a support."""
    if support == UNIT_INTERVAL:
        return unit
    if support not in (BINARY, INTEGERS):
        raise ValueError(f"data.corruption draws from a bounded support, found {support}")
    return tf.floor(unit * (2.0 if support == BINARY else 256.0))


def prepare_batch(
    rows: tf.Tensor,
    key: tf.Tensor,
    transform: str,
    first_row: tf.Tensor | int = 0,
    corruption: tuple[float, str] | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Turns stored rows into observations, and derives the keys of a training step.

    Args:
        rows: [B, *event_shape] as stored.
        key: the key [2] of this step.
        transform: see `training_rows`.
        first_row: place of the first row in the global batch: the keys of a row do not depend on how the batch is
            divided among devices.
        corruption: the fraction and the support of `corrupt`; None: rows as they are.

    Returns:
        x float32 [B, *event_shape], row keys [B, 2], shared key [2].
    """
    data_key, row_key, shared_key = random.split(key, 3)
    places = first_row + tf.range(tf.shape(rows)[0])
    data_keys = random.fold_in(data_key, places)
    x = training_rows(transform, rows, data_keys)
    if corruption is not None:
        x = corrupt(x, random.fold_in(data_keys, _CORRUPTION), *corruption)
    return x, random.fold_in(row_key, places), shared_key

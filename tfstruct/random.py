"""Counter-based random numbers whose bits agree between eager, graph, XLA, NumPy and replicas.

The generator is Threefry-2x32 with 20 rounds, written in additions, rotations and exclusive ors of
unsigned 32-bit integers, so the same bits come out of every way of running it. A key is a uint32 tensor
whose last axis has length 2; every leading axis of a key is a batch of independent streams (rows of a
request, replicas of a training run), computed together in one kernel.

A function that draws takes exactly one key and never uses it twice: `fold_in` and `split` derive new ones.

References:
    Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011 (Random123).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_WORD = 0xFFFFFFFF
_FEISTEL_ROUNDS = 8
_CELL = 2.0**-23  # width of the cells whose middles `uniform` returns

# What a seed's keys are for. Every use derives its keys below one of these, so that no two uses share numbers.
TRAINING_STEP, DATA_ORDER, EVALUATION, SERVING, CHAINS, PRIOR_ANNEALING, DIAGNOSTICS = range(1, 8)

ArrayLike = Any
Key = Any


def _threefry(key: ArrayLike, counter: tuple[ArrayLike, ArrayLike], rotate: Callable, constant: Callable) -> tuple:
    """Twenty rounds on a pair of words; `key` is a pair broadcast against the pair `counter`."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ constant(_PARITY))
    low, high = counter[0] + schedule[0], counter[1] + schedule[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            low = low + high
            high = rotate(high, rotation) ^ low
        low = low + schedule[(block + 1) % 3]
        high = high + schedule[(block + 2) % 3] + constant(block + 1)
    return low, high


def _tf_constant(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint32)


def _tf_rotate(word: tf.Tensor, distance: int) -> tf.Tensor:
    left = tf.bitwise.left_shift(word, _tf_constant(distance))
    return tf.bitwise.bitwise_or(left, tf.bitwise.right_shift(word, _tf_constant(32 - distance)))


def _np_rotate(word: np.ndarray, distance: int) -> np.ndarray:
    return (word << np.uint32(distance)) | (word >> np.uint32(32 - distance))


def _tf_threefry(key: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return _threefry((key[..., 0], key[..., 1]), (low, high), _tf_rotate, _tf_constant)


def key(seed: int) -> np.ndarray:
    """Returns the key [2] of a seed; raises ValueError unless it is an integer in [0, 2**64)."""
    if isinstance(seed, float) or not 0 <= int(seed) < 2**64:
        raise ValueError(f"a seed must be an integer in [0, 2**64), found {seed!r}")
    return np.array([int(seed) >> 32, int(seed) & 0xFFFFFFFF], np.uint32)


def row_keys(seeds: ArrayLike) -> tf.Tensor:
    """Returns keys [..., 2] of int64 seeds [...]: one independent stream for each row."""
    seeds = tf.cast(seeds, tf.int64)
    high = tf.bitwise.bitwise_and(tf.bitwise.right_shift(seeds, tf.constant(32, tf.int64)), _WORD)
    return tf.cast(tf.stack([high, tf.bitwise.bitwise_and(seeds, _WORD)], axis=-1), tf.uint32)


def fold_in(key: Key, data: ArrayLike) -> tf.Tensor:
    """Derives keys from keys and integers.

    Args:
        key: uint32 [..., 2].
        data: non-negative integer or integer tensor whose shape broadcasts with the leading axes of `key`.

    Returns:
        uint32 keys of shape broadcast(key.shape[:-1], data.shape) + [2].
    """
    key = tf.convert_to_tensor(key, tf.uint32)
    data = tf.cast(data, tf.uint32)
    # The high word 1 keeps derived keys apart from the counters that `bits` uses, whose high word is 0. A constant, as
    # Grappler folds `ones_like` of uint32 to zeros where a shape becomes known only when a function is inlined.
    low, high = _tf_threefry(key, data, _tf_constant(1))
    return tf.stack([low, high], axis=-1)


def as_key(seed: Key | int) -> Key:
    """Returns a key as it is, and the key of a seed that is an integer."""
    return key(seed) if isinstance(seed, int) else seed


def split(key: Key | int, num: int = 2) -> list[tf.Tensor]:
    """Derives `num` keys of the shape of `key`, which may also be a seed."""
    key = as_key(key)
    return [fold_in(key, tf.fill(tf.shape(key)[:-1], index)) for index in range(num)]


def bits(key: Key, shape: Sequence[int]) -> tf.Tensor:
    """Returns uniform uint32 bits of shape key.shape[:-1] + shape."""
    key = tf.convert_to_tensor(key, tf.uint32)
    shape = tf.convert_to_tensor(shape, tf.int32)
    size = tf.reduce_prod(shape)
    half = (size + 1) // 2
    counter = tf.cast(tf.range(half), tf.uint32)
    low, high = _tf_threefry(key[..., tf.newaxis, :], counter, _tf_constant(0))
    words = tf.concat([low, high], axis=-1)[..., :size]
    return tf.reshape(words, tf.concat([tf.shape(key)[:-1], shape], axis=0))


def uniform(key: Key, shape: Sequence[int], dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Returns uniform floats in the open interval (0, 1), shape key.shape[:-1] + shape.

    Values lie in the middle of 2**23 equal cells, so neither 0 nor 1 occurs and logarithms stay finite.
    """
    # A 23-bit integer, its scaling and the half cell added are all exact in float32, hence everywhere equal.
    # (A bitcast would do as well, but vectorized_map has no converter for it and loops over replicas.)
    cells = tf.cast(tf.bitwise.right_shift(bits(key, shape), _tf_constant(9)), tf.int32)
    return tf.cast(tf.cast(cells, tf.float32) * _CELL + 0.5 * _CELL, dtype)


def normal(key: Key, shape: Sequence[int], dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Returns standard normal floats, shape key.shape[:-1] + shape."""
    return to_normal(uniform(key, shape, dtype))


def to_normal(unit: tf.Tensor) -> tf.Tensor:
    """Returns the standard normal numbers of uniform ones in (0, 1), by the inverse of the distribution function."""
    # 2u - 1 is exact for every u of `uniform`; erfinv differs between XLA and Eigen by at most 2e-5.
    return np.sqrt(2.0).astype(unit.dtype.as_numpy_dtype) * tf.math.erfinv(2.0 * unit - 1.0)


def logistic(key: Key, shape: Sequence[int], dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Returns standard logistic floats, shape key.shape[:-1] + shape."""
    unit = uniform(key, shape, dtype)
    return tf.math.log(unit) - tf.math.log1p(-unit)


def choose(uniform: ArrayLike, log_weights: tf.Tensor, axis: int = -1) -> tf.Tensor:
    """Draws indices along an axis with probabilities proportional to exp(log_weights), int32.

    Args:
        uniform: numbers in the open interval (0, 1), of the shape of `log_weights` without the axis.
        log_weights: any reals, -inf for what is never chosen. Where all are, the choice is arbitrary.
        axis: of the alternatives.
    """
    largest = tf.reduce_max(log_weights, axis=axis, keepdims=True)
    largest = tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest))
    cumulative = tf.cumsum(tf.exp(log_weights - largest), axis=axis)
    total = tf.reduce_max(cumulative, axis=axis, keepdims=True)
    # The uniform number is above 0: a first alternative without weight is never chosen.
    reached = cumulative >= tf.expand_dims(uniform, axis) * total
    return tf.argmax(tf.cast(reached, tf.int32), axis=axis, output_type=tf.int32)


def sample_keys(key: Key, num_samples: int, first: ArrayLike = 0) -> tf.Tensor:
    """Returns keys [num_samples, ..., 2] of importance samples first, first + 1, ... of the streams `key`."""
    key = tf.convert_to_tensor(key, tf.uint32)
    index = first + tf.range(num_samples)
    index = tf.reshape(index, tf.concat([[num_samples], tf.ones([tf.rank(key) - 1], tf.int32)], axis=0))
    return fold_in(key[tf.newaxis], index + tf.zeros(tf.shape(key)[:-1], tf.int32))


def keys_of_samples(key: Key, num_samples: int, batch: ArrayLike) -> tf.Tensor:
    """Returns one key for each importance sample of each row, [num_samples, batch, 2].

    Args:
        key: a key [2], or a seed; one key for each row, [batch, 2]; or the result itself, [num_samples, batch, 2].
        num_samples: K.
        batch: B, an integer or a scalar tensor.
    """
    key = tf.convert_to_tensor(as_key(key), tf.uint32)
    if key.shape.rank == 1:
        key = fold_in(key, tf.range(batch))
    return key if key.shape.rank == 3 else sample_keys(key, num_samples)


def sample_normal(key: Key, num_samples: int, batch: ArrayLike, event: Sequence[int]) -> tf.Tensor:
    """Returns standard normal noise [num_samples, batch] + event for the importance samples of a batch.

    Args:
        key: a key [2]; or one key for each row, [batch, 2]; or one for each sample and row,
            [num_samples, batch, 2]. In the last two cases the noise of a row depends on its own keys
            alone, whatever the rest of the batch is.
        num_samples: K.
        batch: B, an integer or a scalar tensor.
        event: shape of the noise of one sample.
    """
    key = tf.convert_to_tensor(as_key(key), tf.uint32)
    rank = key.shape.rank
    if rank == 1:
        return normal(key, tf.concat([[num_samples, batch], event], axis=0))
    if rank == 2:
        return normal(sample_keys(key, num_samples), event)
    if rank == 3:
        if isinstance(num_samples, int) and key.shape[0] not in (None, num_samples):
            raise ValueError(f"a seed [num_samples, batch, 2] for {num_samples} samples has shape {key.shape}")
        if isinstance(batch, int) and key.shape[1] not in (None, batch):
            raise ValueError(f"a seed [num_samples, batch, 2] for {batch} rows has shape {key.shape}")
        return normal(key, event)
    raise ValueError(f"a seed has shape [2], [batch, 2] or [num_samples, batch, 2], found {key.shape}")


@functools.lru_cache(maxsize=64)
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Returns a permutation of range(size) as int32 (read-only), on the host, the same on every NumPy version."""
    stream = numpy_bits(numpy_fold_in(numpy_fold_in(key(seed), DATA_ORDER), epoch), size)
    order = np.argsort(stream, kind="stable").astype(np.int32)
    order.setflags(write=False)
    return order


def shuffled(seed: int, epoch: int, places: np.ndarray, size: int) -> np.ndarray:
    """Returns where a permutation of range(size) takes some places, int64 of their shape, on the host.

    Without the permutation itself, which for 10^9 rows takes minutes and 16 GB: a Feistel network of Threefry rounds
    permutes the next power of four, and what falls beyond the size goes through it again.

    Args:
        seed: of the permutation, with the epoch.
        epoch: in [0, 2**32).
        places: integers in [0, size).
        size: at most 2**32.

    References:
        Black & Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002 (cycle walking); Luby & Rackoff, How to
        Construct Pseudorandom Permutations from Pseudorandom Functions, SIAM J. Computing, 1988.
    """
    stream = numpy_fold_in(numpy_fold_in(key(seed), DATA_ORDER), epoch)
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    found = np.array(places, np.int64).reshape(-1)
    waiting = np.arange(len(found))
    while len(waiting):
        left, right = found[waiting] >> half, found[waiting] & ((1 << half) - 1)
        for number in range(_FEISTEL_ROUNDS):
            counter = right.astype(np.uint32), np.full(right.shape, number + 2, np.uint32)
            with np.errstate(over="ignore"):
                word, _ = _threefry((stream[:1], stream[1:]), counter, _np_rotate, np.uint32)
            left, right = right, left ^ (word.astype(np.int64) & ((1 << half) - 1))
        found[waiting] = (left << half) | right
        waiting = waiting[found[waiting] >= size]
    return found.reshape(np.shape(places))


def numpy_fold_in(key: np.ndarray, data: int) -> np.ndarray:
    """The NumPy twin of `fold_in` for one key [2] and one integer."""
    with np.errstate(over="ignore"):
        counter = (np.array([data], np.uint32), np.array([1], np.uint32))
        low, high = _threefry((key[:1], key[1:]), counter, _np_rotate, np.uint32)
    return np.concatenate([low, high])


def numpy_bits(key: np.ndarray, size: int) -> np.ndarray:
    """The NumPy twin of `bits` for one key [2]: uint32 [size]."""
    half = (size + 1) // 2
    counter = np.arange(half, dtype=np.uint32)
    with np.errstate(over="ignore"):
        low, high = _threefry((key[:1], key[1:]), (counter, np.zeros_like(counter)), _np_rotate, np.uint32)
    return np.concatenate([low, high])[:size]


def numpy_uniform(key: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The NumPy twin of `uniform` for one key [2]: float32 in (0, 1), bit for bit the same."""
    cells = numpy_bits(key, int(np.prod(shape))) >> np.uint32(9)
    return (cells.astype(np.float32) * np.float32(_CELL) + np.float32(0.5 * _CELL)).reshape(shape)

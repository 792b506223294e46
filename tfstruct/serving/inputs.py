"""What signatures take beside observations: seeds, false-alarm rates, encoded images; checked before they are sent."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tfstruct.files import IMAGE_MAGIC


def row_seeds(seed: int, num: int, first: int = 0) -> np.ndarray:
    """Returns `num` int64 seeds, from number `first` on, that those of another seed share none of, in practice.

    They are the outputs of SplitMix64 (Steele, Lea & Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA
    2014), started at a mixed `seed`. Seeds counted up from `seed` would make the streams of 0 and 1 shifted copies.
    """

    def mix(word: np.ndarray) -> np.ndarray:
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return word ^ (word >> np.uint64(31))

    start = mix(np.array([int(seed) & 0xFFFFFFFFFFFFFFFF], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    counter = np.arange(first + 1, first + num + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return mix(start + counter).view(np.int64)


def checked_seeds(seed: Any, num: int) -> np.ndarray:
    """Returns seeds as they were given, int64 [] or [num]; raises ValueError for what is no seed."""
    seeds = np.asarray(seed)
    if seeds.dtype.kind not in "iu" or seeds.shape not in ((), (num,)) or np.any(seeds > np.iinfo(np.int64).max):
        found = f"{seeds.dtype} {list(seeds.shape)}" if seeds.ndim else repr(seed)
        raise ValueError(f"seed must be an integer or integers [{num}], of 64 bits with a sign, found {found}")
    return seeds.astype(np.int64)


def checked_rates(alpha: Any, rows: Any) -> np.ndarray:
    """Returns the false-alarm rate of each row, float32 [N]; raises ValueError for what is none."""
    alpha, num = np.asarray(alpha), len(rows) if np.ndim(rows) else 1
    is_rate = alpha.dtype.kind in "iuf" and alpha.shape in ((), (num,)) and ((alpha >= 0) & (alpha <= 1)).all()
    if not is_rate:
        raise ValueError(f"alpha must be a number in [0, 1], or one for each row, found {alpha!r}")
    return np.broadcast_to(alpha.astype(np.float32), [num])


def checked_images(images: Any, *, are_decoded: bool) -> np.ndarray:
    """Returns encoded images as an object array [N] of bytes; raises ValueError for what is none.

    Args:
        images: a list of bytes.
        are_decoded: whether the model takes them for PNG or JPEG files.
    """
    wrong = [type(image).__name__ for image in images if not isinstance(image, bytes)]
    if isinstance(images, (bytes, str)) or wrong or not len(images):
        found = f"{type(images).__name__} of {wrong[0]}" if wrong else type(images).__name__
        raise ValueError(f"images must be a list of the bytes of PNG or JPEG files, found {found}")
    for place, image in enumerate(images):
        if are_decoded and not image.startswith(IMAGE_MAGIC):
            raise ValueError(f"images must be PNG or JPEG files, found one at place {place} that begins {image[:8]!r}")
    result = np.empty([len(images)], object)
    result[:] = list(images)
    return result


def parts(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yields pieces of at most `size` rows; raises ValueError for a size below 1."""
    if not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, found {size!r}")
    for start in range(0, len(values), size):
        yield values[start : start + size]

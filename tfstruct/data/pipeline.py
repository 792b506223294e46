"""The way of training rows to the device: all of them once, or block by block where they do not fit."""

import concurrent.futures
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfstruct import random

BLOCK_BYTES = 2**28  # rows of one call that are in flight while streaming
SORTED_ROWS = 2**24  # beyond, the order of an epoch is not held in memory


class Call(NamedTuple):
    """What one call of the training loop reads.

    Attributes:
        first_step: number of updates made before.
        rows: stored rows [n, *event_shape] on the device: all of them, or those that this call visits.
        indices: which of `rows` each step visits, int32 [steps, R, B].
        row_ids: their places in the whole training set, of the same shape.
    """

    first_step: int
    rows: tf.Tensor
    indices: np.ndarray
    row_ids: np.ndarray


def batch_indices(seeds: list[int], first_step: int, num_steps: int, batch_size: int, num_rows: int) -> np.ndarray:
    """Returns which rows each step visits, int32 [num_steps, R, B].

    Each replica goes through the rows in an order of its own, drawn anew for every epoch; a batch may end one epoch
    and begin the next, so that every row is visited exactly once an epoch. The order is a function of seed and
    step alone: the position in the data needs no state beyond the step.

    Raises:
        ValueError: more rows than int32 can number.
    """
    if num_rows > np.iinfo(np.int32).max:
        raise ValueError(f"a training set has at most {np.iinfo(np.int32).max:,} rows, found {num_rows:,}")
    first = first_step * batch_size
    places = np.arange(first, first + num_steps * batch_size)
    epochs = places // num_rows
    indices = np.empty([num_steps, len(seeds), batch_size], np.int32)
    for place, seed in enumerate(seeds):
        chosen = np.empty(len(places), np.int32)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            inside = epochs == epoch
            within = places[inside] % num_rows
            if num_rows > SORTED_ROWS:
                chosen[inside] = random.shuffled(seed, epoch, within, num_rows)
            else:
                chosen[inside] = random.permutation(seed, epoch, num_rows)[within]
        indices[:, place] = chosen.reshape(num_steps, batch_size)
    return indices


class Pipeline:
    """Serves the calls of a training run, in any order of restarts the same.

    Training sets up to `resident_megabytes` go to the device once. Larger ones, such as memory-mapped files, are
    streamed: the rows that a call visits are gathered on the host while the call before is running.

    Args:
        rows: training rows as stored, [n, *event_shape].
        seeds: seed of each of the R replicas; it decides the order of visits.
        batch_size: B.
        resident_megabytes: largest training set that is kept on the device.
        places: which places of every batch this process computes; of the others it reads no rows while streaming,
            and their indices are 0.

    Raises:
        ValueError: no rows, or a batch size below 1.
    """

    def __init__(
        self,
        rows: np.ndarray,
        *,
        seeds: Sequence[int],
        batch_size: int,
        resident_megabytes: float,
        places: slice = slice(None),
    ) -> None:
        if not len(rows):
            raise ValueError("the training set is empty")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}")
        self.rows, self.seeds, self.batch_size = rows, list(seeds), batch_size
        self._places = places
        self.is_resident = rows.nbytes <= resident_megabytes * 2**20
        self._resident = tf.constant(rows) if self.is_resident else None

    @property
    def max_steps_per_call(self) -> int | None:
        """Most steps whose rows fit into one block when streaming; None when resident."""
        if self.is_resident:
            return None
        step_bytes = self.rows[:1].nbytes * self.batch_size * len(self.seeds)
        return max(1, BLOCK_BYTES // step_bytes)

    def _indices(self, first_step: int, num_steps: int) -> np.ndarray:
        return batch_indices(self.seeds, first_step, num_steps, self.batch_size, len(self.rows))

    def calls(self, spans: Sequence[tuple[int, int]]) -> Generator[Call]:
        """Yields a Call for each (first_step, num_steps)."""
        if self.is_resident:
            # The order of the next call is drawn while the device is busy with this one.
            with concurrent.futures.ThreadPoolExecutor(max_workers=1) as ahead:
                pending = [ahead.submit(self._indices, *span) for span in spans[:1]]
                for place, (first_step, _) in enumerate(spans):
                    indices = pending.pop().result()
                    pending = [ahead.submit(self._indices, *span) for span in spans[place + 1 : place + 2]]
                    yield Call(first_step, self._resident, indices, indices)
            return

        own_size = len(range(self.batch_size)[self._places])
        largest = max((num_steps for _, num_steps in spans), default=0) * len(self.seeds) * own_size

        def blocks() -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
            for first_step, num_steps in spans:
                indices = self._indices(first_step, num_steps)
                # Sorted reads of distinct rows: a mapped file is read forwards, and no row twice.
                own = indices[..., self._places]
                visited, found = np.unique(own, return_inverse=True)
                places = np.zeros_like(indices)
                places[..., self._places] = found.reshape(own.shape)
                block = np.zeros([largest, *self.rows.shape[1:]], self.rows.dtype)  # one shape, one program
                block[: len(visited)] = self.rows[visited]
                yield first_step, block, places, indices

        signature = (
            tf.TensorSpec([], tf.int64),
            tf.TensorSpec([None, *self.rows.shape[1:]], self.rows.dtype),
            *[tf.TensorSpec([None, len(self.seeds), self.batch_size], tf.int32)] * 2,
        )
        dataset = tf.data.Dataset.from_generator(blocks, output_signature=signature).prefetch(1)
        for first_step, block, indices, row_ids in dataset:
            yield Call(int(first_step), block, indices.numpy(), row_ids.numpy())

"""Replicas on several devices of one machine: each device trains some of them, and none waits for another."""

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct.training.loop import Pace, TrainLoop
from tfstruct.training.state import TrainState


class ReplicaLoop:
    """As a TrainLoop, whose replicas are divided among devices.

    Nothing crosses between them, so each device runs the program of a TrainLoop of its share, compiled as on one
    device, with batch normalisation and samplers for every row.

    Args:
        make_loop: makes the loop of a device.
        devices: names of the devices.
        num_replicas: of the run.

    Raises:
        ValueError: replicas that the devices cannot share equally.
    """

    stopped_by = 0

    def __init__(self, make_loop: Callable[[int], TrainLoop], devices: Sequence[str], num_replicas: int) -> None:
        if num_replicas % len(devices):
            raise ValueError(
                f"{num_replicas} replicas cannot be shared equally by {len(devices)} devices; make training.replicas a "
                "multiple of them, or 1"
            )
        self.num_devices, share = len(devices), num_replicas // len(devices)
        self._parts = [slice(place * share, (place + 1) * share) for place in range(len(devices))]
        self._devices, self._loops = list(devices), [make_loop(share) for _ in devices]
        self._pool = concurrent.futures.ThreadPoolExecutor(len(devices))
        self._pace, self._rows = Pace(), {}

    def _run_part(
        self, place: int, state: TrainState, first_step: int, data: tf.Tensor, indices: np.ndarray, ids: np.ndarray
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        part = self._parts[place]
        with tf.device(self._devices[place]):
            state = tf.nest.map_structure(lambda leaf: tf.identity(leaf[part]), state)
            # Sent once, where all rows are on the device for the whole run.
            held = self._rows.get(place)
            if held is None or held[0] is not data:
                self._rows[place] = held = (data, tf.identity(data))
            state, metrics, _ = self._loops[place].run(state, first_step, held[1], indices[:, part], ids[:, part])
        return state, metrics

    def run(
        self,
        state: TrainState,
        first_step: int,
        data: tf.Tensor,
        indices: np.ndarray,
        row_ids: np.ndarray | None = None,
        *,
        should_stop: Callable[[], object] = lambda: False,
    ) -> tuple[TrainState, dict[str, np.ndarray], int]:
        """As `TrainLoop.run`; all devices stop after the same step."""
        row_ids = indices if row_ids is None else row_ids
        place, pieces = 0, []
        while place < len(indices):
            start, end = time.monotonic(), min(place + self._pace.size, len(indices))
            piece = (state, first_step + place, data, indices[place:end], row_ids[place:end])
            jobs = [self._pool.submit(self._run_part, device, *piece) for device in range(self.num_devices)]
            states, metrics = zip(*(job.result() for job in jobs), strict=True)
            state = tf.nest.map_structure(lambda *leaves: tf.concat(leaves, 0), *states)
            joined = {name: np.concatenate([part[name] for part in metrics]) for name in metrics[0]}
            pieces.append((end - place, joined))
            self._pace.took(end - place, time.monotonic() - start)
            place = end
            if self._pace.is_worth_stopping(len(indices) - place) and should_stop():
                break
        return state, _joined_means(pieces), place

    def __call__(self, *call: Any) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Runs all steps of a call; as `run`."""
        return self.run(*call)[:2]


def _joined_means(pieces: list[tuple[int, dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Means over the steps of all pieces that were not skipped, of the means of each; `skipped` is a count."""
    counts = np.stack([num_steps - metrics["skipped"] for num_steps, metrics in pieces])  # [pieces, R]
    shares, means = counts / np.maximum(counts.sum(axis=0), 1.0), {}
    for name, first in pieces[0][1].items():
        values = np.stack([metrics[name] for _, metrics in pieces])
        weights = shares.reshape(counts.shape + (1,) * (first.ndim - 1))
        means[name] = np.sum(values if name == "skipped" else values * weights, axis=0)
    return means

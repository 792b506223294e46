"""Replicas on several devices of one machine: each device trains some of them, and none waits for another."""

import concurrent.futures
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfstruct.data.pipeline import Call
from tfstruct.training.loop import Loop, Pace, TrainLoop, means, never
from tfstruct.training.state import TrainState


class ReplicaLoop(Loop):
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

    def _run_part(self, place: int, state: TrainState, call: Call) -> tuple[TrainState, dict[str, np.ndarray], int]:
        part = self._parts[place]
        with tf.device(self._devices[place]):
            state = tf.nest.map_structure(lambda leaf: tf.identity(leaf[part]), state)
            # Sent once, where all rows are on the device for the whole run.
            held = self._rows.get(place)
            if held is None or held[0] is not call.rows:
                self._rows[place] = held = (call.rows, tf.identity(call.rows))
            own = Call(call.first_step, held[1], call.indices[:, part], call.row_ids[:, part])
            return self._loops[place].run(state, own)

    def run(
        self, state: TrainState, call: Call, *, should_stop: Callable[[], int] = never
    ) -> tuple[TrainState, dict[str, np.ndarray], int]:
        """As `Loop.run`; all devices stop after the same step."""
        num_steps, place, sums = len(call.indices), 0, {}
        while place < num_steps:
            start, end = time.monotonic(), min(place + self._pace.size, num_steps)
            piece = Call(call.first_step + place, call.rows, call.indices[place:end], call.row_ids[place:end])
            jobs = [self._pool.submit(self._run_part, device, state, piece) for device in range(self.num_devices)]
            states, metrics, _ = zip(*(job.result() for job in jobs), strict=True)
            state = tf.nest.map_structure(lambda *leaves: tf.concat(leaves, 0), *states)
            counts = end - place - np.concatenate([part["skipped"] for part in metrics])
            for name in metrics[0]:
                values = np.concatenate([part[name] for part in metrics])
                weights = 1.0 if name == "skipped" else counts.reshape([-1] + [1] * (values.ndim - 1))
                sums[name] = sums.get(name, 0.0) + values * weights
            self._pace.took(end - place, time.monotonic() - start)
            place = end
            if self._pace.is_worth_stopping(num_steps - place) and should_stop():
                break
        return state, means(sums, place), place

"""Training on several devices of one machine: same global batch, same numbers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct.training.state import TrainState, replica
from tfstruct.training.step import Metrics, TrainStep

STRATEGIES = ("auto", "none", "mirrored")
_LOOK = 10  # steps between two looks whether to stop


def make_strategy(name: str, devices: Sequence[str] | None = None) -> tf.distribute.Strategy | None:
    """Returns a MirroredStrategy, or None for training on one device.

    Args:
        name: `none`; `mirrored`; or `auto`, which is `mirrored` where there is more than one GPU.
        devices: of `mirrored`; default all GPUs, else all logical CPUs.

    Raises:
        ValueError: an unknown name, or `mirrored` with fewer than two devices.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, found {name!r}")
    if devices is None:
        logical = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        devices = [device.name for device in logical]
    if name == "none" or (name == "auto" and (len(devices) < 2 or "GPU" not in devices[0])):
        return None
    if len(devices) < 2:
        raise ValueError(f"strategy mirrored needs at least two devices, found {list(devices)}")
    # Not the default collective operations: those of the forward pass (synchronised batch normalisation) and of the
    # gradient then meet in different orders on different devices, and the run aborts with a shape mismatch.
    if "GPU" in devices[0]:
        reduction = tf.distribute.NcclAllReduce()
    else:
        reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)


class MirroredLoop:
    """The training loop on several devices: each takes an equal part of every batch.

    Only forward and backward pass may be compiled by XLA: an all-reduce inside a compiled cluster fails or hangs
    (keras issues 17187, 20763), so gradients are reduced and applied outside. Batch normalisation reduces its
    statistics within the forward pass, hence a model that has it runs uncompiled here.

    Noise is drawn from one key per row of the global batch, so how the batch is divided changes nothing but the
    order of summation.

    Args:
        step: the training step of the system.
        strategy: as returned by `make_strategy`.
        batch_size: of the global batch.
        compiler: `xla` or `graph`, for forward and backward pass.

    Raises:
        ValueError: a batch that the devices cannot share equally.
    """

    def __init__(self, step: TrainStep, strategy: tf.distribute.Strategy, *, batch_size: int, compiler: str) -> None:
        self._strategy = strategy
        self._step = step
        self.num_devices = strategy.num_replicas_in_sync
        if batch_size % self.num_devices:
            raise ValueError(
                f"the batch size {batch_size} must be a multiple of the number of devices, {self.num_devices}"
            )
        self._per_device = batch_size // self.num_devices
        # Uncompiled it must not be a tf.function of its own: a reduction may not stand inside a nested one.
        self._gradient = step.gradient
        if compiler == "xla":
            self._gradient = tf.function(step.gradient, jit_compile=True, autograph=False)
        self._run_step = tf.function(self._distributed_step, autograph=False)

    def _distributed_step(
        self, state: TrainState, step: tf.Tensor, data: tf.Tensor, indices: tf.Tensor
    ) -> tuple[TrainState, Metrics]:
        # Gathered here, so that a step sends one batch to each device and not the data set.
        return self._strategy.run(self._device_step, args=(state, step, tf.gather(data, indices)))

    def _device_step(self, state: TrainState, step: tf.Tensor, batch: tf.Tensor) -> tuple[TrainState, Metrics]:
        context = tf.distribute.get_replica_context()
        first_row = tf.cast(context.replica_id_in_sync_group, tf.int32) * self._per_device
        rows = batch[first_row : first_row + self._per_device]
        rows = tf.ensure_shape(rows, [self._per_device, *batch.shape[1:]])
        results = self._gradient(state, step, rows, first_row)
        reduced = context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.nest.flatten(results))
        return self._step.apply(state, step, *tf.nest.pack_sequence_as(results, reduced))

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
        """As `TrainLoop.run`, with one replica [1, ...] in and out."""
        del row_ids  # of samplers that persist for every row, which one device alone can hold
        if state.chains:
            raise ValueError("samplers that persist for every training row are trained with --strategy=none")
        if indices.shape[1] != 1:
            raise ValueError(f"several devices train one replica, found {indices.shape[1]}")
        # From the second step on every device keeps its own copy of the state.
        current = replica(state, 0)
        history = []  # read after the last step, so that the host does not wait for every one
        for place, row_indices in enumerate(indices[:, 0]):
            current, metrics = self._run_step(
                current, tf.constant(first_step + place, tf.int32), data, tf.constant(row_indices)
            )
            history.append(
                {name: self._strategy.experimental_local_results(value)[0] for name, value in metrics.items()}
            )
            if place % _LOOK == _LOOK - 1 and should_stop():
                break
        sums = {name: sum(metrics[name].numpy() for metrics in history) for name in history[0]}
        skipped = sums.pop("skipped")
        finished = max(len(history) - skipped, 1.0)
        result = {name: np.asarray(value / finished)[np.newaxis] for name, value in sums.items()}
        result["skipped"] = np.asarray([skipped])
        local = tf.nest.map_structure(
            lambda leaf: self._strategy.experimental_local_results(leaf)[0][tf.newaxis], current
        )
        return local, result, len(history)

    def __call__(self, *call: Any) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Runs all steps of a call; as `run`."""
        return self.run(*call)[:2]

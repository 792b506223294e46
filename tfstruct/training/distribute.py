"""Training on several devices, of one machine or of several: same global batch, same numbers."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfstruct.data.pipeline import Call
from tfstruct.models.config import Config
from tfstruct.models.registry import parse_config
from tfstruct.training.loop import Loop, means, never
from tfstruct.training.state import TrainState, replica
from tfstruct.training.step import Metrics, TrainStep
from tfstruct.training.workdir import require_same
from tfstruct.training.workers import LostWorkerError, Task, Workers, pack, unpack

STRATEGIES = ("auto", "none", "mirrored", "multi_worker")
_LOOK = 10  # steps between two looks whether to stop


def make_strategy(name: str, devices: Sequence[str] | None = None) -> tf.distribute.Strategy | None:
    """Returns a strategy, or None for training on one device.

    Args:
        name: `none`; `mirrored`, the devices of this machine; `multi_worker`, one device of each process that TF_CONFIG
            names; or `auto`: `multi_worker` where TF_CONFIG names several processes, else `mirrored` where there is
            more than one GPU.
        devices: of `mirrored`; default all GPUs, else all logical CPUs.

    Raises:
        ValueError: an unknown name, `mirrored` with fewer than two devices, or `multi_worker` without a TF_CONFIG of
            several processes or with several GPUs in this one.
        OSError: `multi_worker` cannot open the port of this process.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, found {name!r}")
    task = Task.from_environment()
    if name == "multi_worker" or (name == "auto" and task and len(task.addresses) > 1):
        return _multi_worker(task)
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


def _multi_worker(task: Task | None) -> tf.distribute.Strategy:
    """Joins the other processes; waits until all are there."""
    if task is None or len(task.addresses) < 2:
        found = "none" if task is None else f"one of {len(task.addresses)}"
        raise ValueError(f"strategy multi_worker needs a TF_CONFIG that names at least two workers, found {found}")
    gpus = tf.config.get_visible_devices("GPU")
    if len(gpus) > 1:  # whose collective operations would meet in different orders, as above
        raise ValueError(
            f"strategy multi_worker takes one GPU a process, found {len(gpus)}; start a process for each, with "
            "CUDA_VISIBLE_DEVICES and a port of its own in TF_CONFIG"
        )
    print(
        f"worker {task.index} of {len(task.addresses)}{' (chief)' if task.is_chief else ''} at "
        f"{task.addresses[task.index]}: waiting for the others",
        flush=True,
    )
    try:
        with _while_tensorflow_waits():
            return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, RuntimeError) as error:  # a port that is taken; TensorFlow used before
        raise OSError(f"worker {task.index} cannot join at {task.addresses[task.index]}: {error}") from error


@contextlib.contextmanager
def _while_tensorflow_waits() -> Iterator[None]:
    """Ctrl-C ends the process at once, for no handler in Python would run; SIGTERM has the same handler afterwards.

    TensorFlow puts its own in place of SIGTERM's, which ends nothing.
    """
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if callable(handlers[signal.SIGINT]):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def own_places(strategy: tf.distribute.Strategy | None, batch_size: int) -> slice:
    """Returns which places of a global batch the devices of this process compute."""
    task = Task.from_environment()
    if task is None or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return slice(None)
    share = batch_size // len(task.addresses)
    return slice(task.index * share, (task.index + 1) * share)


class MirroredLoop(Loop):
    """The training loop of one replica on several devices: each takes an equal part of every batch.

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
        self, state: TrainState, step: tf.Tensor, data: tf.Tensor, indices: tf.Tensor, row_ids: tf.Tensor
    ) -> tuple[TrainState, Metrics]:
        # Gathered here, so that a step sends one batch to each device and not the data set.
        return self._strategy.run(self._device_step, args=(state, step, tf.gather(data, indices), row_ids))

    def _device_step(
        self, state: TrainState, step: tf.Tensor, batch: tf.Tensor, row_ids: tf.Tensor
    ) -> tuple[TrainState, Metrics]:
        context = tf.distribute.get_replica_context()
        first_row = tf.cast(context.replica_id_in_sync_group, tf.int32) * self._per_device
        own = slice(first_row, first_row + self._per_device)
        rows = tf.ensure_shape(batch[own], [self._per_device, *batch.shape[1:]])
        *results, chains = self._gradient(
            state, step, rows, first_row, tf.ensure_shape(row_ids[own], [self._per_device])
        )
        reduced = context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.nest.flatten(results))
        # Each device moves the samplers of its rows on, and hears of the others': any row may be anybody's next.
        chains = {name: context.all_gather(states, axis=1) for name, states in chains.items()}
        gradient, statistics, metrics = tf.nest.pack_sequence_as(results, reduced)
        return self._step.apply(state, step, gradient, statistics, metrics, chains, row_ids)

    def run(
        self, state: TrainState, call: Call, *, should_stop: Callable[[], int] = never
    ) -> tuple[TrainState, dict[str, np.ndarray], int]:
        """As `Loop.run`, with one replica [1, ...] in and out."""
        if call.indices.shape[1] != 1:
            raise ValueError(f"several devices train one replica, found {call.indices.shape[1]}")
        # From the second step on every device keeps its own copy of the state.
        current = replica(state, 0)
        history = []  # read after the last step, so that the host does not wait for every one
        for place, (row_indices, row_ids) in enumerate(zip(call.indices[:, 0], call.row_ids[:, 0], strict=True)):
            number = tf.constant(call.first_step + place, tf.int32)
            current, metrics = self._run_step(
                current, number, call.rows, tf.constant(row_indices), tf.constant(row_ids, tf.int32)
            )
            history.append(
                {name: self._strategy.experimental_local_results(value)[0] for name, value in metrics.items()}
            )
            # In the end too: a call may be shorter, and other processes hear of a signal in no other way.
            if (place % _LOOK == _LOOK - 1 or place == len(call.indices) - 1) and should_stop():
                break
        sums = {name: np.sum([metrics[name] for metrics in history], axis=0)[np.newaxis] for name in history[0]}
        local = tf.nest.map_structure(
            lambda leaf: self._strategy.experimental_local_results(leaf)[0][tf.newaxis], current
        )
        return local, means(sums, len(history)), len(history)


class Order(NamedTuple):
    """What the chief of several processes has the others do next.

    Attributes:
        first_step: number of updates made before.
        num_steps: of the call.
        state: to go on from, [1, ...].
    """

    first_step: int
    num_steps: int
    state: TrainState


class WorkerLoop(MirroredLoop):
    """A MirroredLoop over several processes, of which the chief decides what is done and the others follow.

    The chief calls `run` while it is `leading`; each of the others iterates over `orders` and calls `run` for each.
    Before a call the chief says which steps come, and from which state if not from that of the call before.

    Args:
        step: as for MirroredLoop, like the strategy and the options.
        strategy: likewise.
        workers: the processes.
        state: one of the shapes of the run's, [1, ...].
        **options: of MirroredLoop.
    """

    def __init__(self, step: TrainStep, strategy: Any, *, workers: Workers, state: TrainState, **options: Any) -> None:
        super().__init__(step, strategy, **options)
        self.workers, self._state = workers, state
        self._shared: TrainState | None = None  # which the others have as well

    def run(
        self, state: TrainState, call: Call, *, should_stop: Callable[[], int] = never
    ) -> tuple[TrainState, dict[str, np.ndarray], int]:
        """As `Loop.run`; raises LostWorkerError if another process ended."""
        if self.workers.task.is_chief:
            leaves = [] if state is self._shared else tf.nest.flatten(state)
            arrays = {f"leaf_{place}": np.asarray(leaf) for place, leaf in enumerate(leaves)}
            self.workers.broadcast(pack(arrays, first_step=call.first_step, num_steps=len(call.indices)))

        def agreed() -> int:
            self.stopped_by = self.stopped_by or self.workers.largest(should_stop())
            return self.stopped_by

        with self.workers.reaching():
            result = super().run(state, call, should_stop=agreed)
        self._shared = self._state = result[0]
        return result

    def require_agreement(self, config: Config, checksum: str) -> None:
        """Raises ValueError unless all processes train the same config on the same data, wherever these lie."""
        chief = unpack(self.workers.broadcast(pack({}, config=config.to_json(), checksum=checksum)))[1]
        place, problem = self.workers.task.index, ""
        try:
            theirs = parse_config(chief["config"]).replace({"data.file": config.data.file})
            require_same(theirs, config, f"worker {place} has another config than the chief. There / here")
            if checksum != chief["checksum"]:
                raise ValueError(f"worker {place} has data of checksum {checksum}, the chief {chief['checksum']}")
        except ValueError as error:
            problem = str(error)
        if self.workers.largest(bool(problem)):
            raise ValueError(problem or "another worker has other settings or data, and says which")

    def orders(self) -> Iterator[Order]:
        """Yields what the chief has the others do, until it has done.

        Raises:
            SystemExit: the chief was stopped by a signal.
            RuntimeError: the chief ended with an error, which is said.
        """
        while "end" not in (message := unpack(self.workers.broadcast()))[1]:
            arrays, about = message
            if arrays:
                leaves = [arrays[f"leaf_{place}"] for place in range(len(arrays))]
                self._state = tf.nest.pack_sequence_as(self._state, leaves)
            yield Order(about["first_step"], about["num_steps"], self._state)
        about = message[1]
        if about["error"]:
            raise RuntimeError(f"the chief ended: {about['error']}")
        if about["end"]:
            raise SystemExit(about["end"])

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """The chief's part; tells the others how it ended."""
        try:
            yield
        except LostWorkerError:
            raise
        except SystemExit as error:
            self.workers.broadcast(pack({}, end=error.code, error=""))
            raise
        except BaseException as error:
            self.workers.broadcast(pack({}, end=1, error=str(error) or type(error).__name__))
            raise
        self.workers.broadcast(pack({}, end=0, error=""))


def divided_loop(
    step: TrainStep, strategy: tf.distribute.Strategy, state: TrainState, *, batch_size: int, compiler: str
) -> MirroredLoop:
    """Returns the loop of a strategy, for states [1, ...] of the shapes of `state`."""
    options = {"batch_size": batch_size, "compiler": compiler}
    task = Task.from_environment()
    if task and isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return WorkerLoop(step, strategy, workers=Workers(task), state=state, **options)
    return MirroredLoop(step, strategy, **options)

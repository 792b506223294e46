"""Many training steps in one compiled program, on data that stay on the device."""

import abc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct.data.pipeline import Call
from tfstruct.models.config import Config
from tfstruct.training.state import TrainState
from tfstruct.training.step import Metrics

COMPILERS = ("xla", "graph")


def resolve_compiler(config: Config) -> str:
    """Returns `xla` or `graph`; `auto` is `xla`, the faster one for these systems but where the config says not."""
    if config.training.compiler != "auto":
        return config.training.compiler
    return "graph" if config.is_slow_under_xla_on_cpu and not tf.config.list_physical_devices("GPU") else "xla"


class Pace:
    """How many steps to do before looking whether to stop: as many as take some seconds.

    Args:
        seconds: between looks.
    """

    def __init__(self, seconds: float = 3.0) -> None:
        self._seconds, self._size, self._step_seconds, self._is_first = seconds, 1.0, 0.0, True

    @property
    def size(self) -> int:
        """Number of steps to do next."""
        return max(1, int(self._size))

    def is_worth_stopping(self, num_steps: int) -> bool:
        """Whether so many steps would take longer than it is between two looks."""
        return num_steps * self._step_seconds > self._seconds

    def took(self, num_steps: int, seconds: float) -> None:
        """Learns from how long some steps took; not from the first, which compile."""
        if self._is_first:
            self._is_first = False
            return
        self._step_seconds = max(seconds, 1e-9) / num_steps
        # At most four times as many as were measured: the first few are no measure of many.
        self._size = min(4.0 * num_steps, self._seconds / self._step_seconds)


def never() -> int:
    """For a call that nothing stops."""
    return 0


class Loop(abc.ABC):
    """Does the steps of a call, on one device or on several.

    Attributes:
        stopped_by: number of a signal by which another process was asked to stop; 0 where there is none.
    """

    stopped_by = 0

    @abc.abstractmethod
    def run(
        self, state: TrainState, call: Call, *, should_stop: Callable[[], int] = never
    ) -> tuple[TrainState, dict[str, np.ndarray], int]:
        """Runs the steps of a call.

        Neither the pieces in which they are done, nor where a call ends, changes a bit of the state.

        Args:
            state: with leading replica axis.
            call: its steps; the rows on the device.
            should_stop: asked every few seconds for the number of a signal, after which no more steps are done; not
                if they are done as soon.

        Returns:
            The new state, the means over the steps of the metrics, each [R, ...] (`skipped` is a count), and how many
            steps were done.
        """

    def __call__(
        self,
        state: TrainState,
        first_step: int,
        rows: tf.Tensor,
        indices: np.ndarray,
        row_ids: np.ndarray | None = None,
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Runs all steps of a call; as `run`."""
        return self.run(state, Call(first_step, rows, indices, indices if row_ids is None else row_ids))[:2]


class TrainLoop(Loop):
    """Runs calls of many steps: few program launches, one row of metrics and no other traffic per call.

    Args:
        step: (state [R, ...], step number, rows [R, B, ...], row ids [R, B]) to (state, metrics [R, ...]).
        compiler: `xla` compiles the whole loop into one program; `graph` runs the same loop op by op, which is
            faster for batched matrix products on a CPU.
        call_steps: most steps of a call. Calls of up to so many are one program; a longer one is another.
    """

    def __init__(self, step: Callable[..., tuple[TrainState, Metrics]], compiler: str, call_steps: int = 0) -> None:
        if compiler not in COMPILERS:
            raise ValueError(f"compiler must be one of {', '.join(COMPILERS)}, found {compiler!r}")
        self._step = step
        self._run = tf.function(self._loop, jit_compile=compiler == "xla", autograph=False)
        self._zero_sums = tf.function(self._zeros, autograph=False)
        self._pace, self._longest = Pace(), call_steps

    def _loop(
        self,
        state: TrainState,
        sums: Metrics,
        place: tf.Tensor,
        end: tf.Tensor,
        first_step: tf.Tensor,
        data: tf.Tensor,
        indices: tf.Tensor,
        row_ids: tf.Tensor,
    ) -> tuple[TrainState, Metrics]:
        """Does the steps of a call from a place in it to another; the sums go on as well."""

        def body(place: tf.Tensor, state: TrainState, sums: Metrics) -> tuple:
            rows = tf.gather(data, tf.gather(indices, place))
            state, metrics = self._step(state, first_step + place, rows, tf.gather(row_ids, place))
            return place + 1, state, {name: sums[name] + metrics[name] for name in sums}

        _, state, sums = tf.while_loop(lambda place, *_: place < end, body, (place, state, sums))
        return state, sums

    def _zeros(self, state: TrainState, data: tf.Tensor, indices: tf.Tensor) -> Metrics:
        """Sums of no metrics, by the shapes of a step's, from a trace that is thrown away."""
        specs = tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), (state, data, indices))
        traced = tf.function(
            lambda state, data, indices: self._step(state, tf.constant(0), tf.gather(data, indices[0]), indices[0])[1],
            autograph=False,
        )
        outputs = traced.get_concrete_function(*specs).structured_outputs
        return tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), outputs)

    def run(
        self, state: TrainState, call: Call, *, should_stop: Callable[[], int] = never
    ) -> tuple[TrainState, dict[str, np.ndarray], int]:
        """As `Loop.run`."""
        num_steps = len(call.indices)
        self._longest = max(self._longest, num_steps)
        fill = [(0, self._longest - num_steps), (0, 0), (0, 0)]  # one shape, one program
        indices = tf.constant(np.pad(call.indices, fill))
        row_ids = indices if call.row_ids is call.indices else tf.constant(np.pad(call.row_ids, fill))
        state = tf.nest.map_structure(tf.convert_to_tensor, state)
        sums, place, first = self._zero_sums(state, call.rows, indices), 0, tf.constant(call.first_step, tf.int32)
        while place < num_steps:
            start, end = time.monotonic(), min(place + self._pace.size, num_steps)
            state, sums = self._run(
                state, sums, tf.constant(place), tf.constant(end), first, call.rows, indices, row_ids
            )
            values = {name: value.numpy() for name, value in sums.items()}
            self._pace.took(end - place, time.monotonic() - start)
            place = end
            if self._pace.is_worth_stopping(num_steps - place) and should_stop():
                break
        return state, means(values, place), place

    @property
    def num_programs(self) -> int:
        """How often the loop has been traced and compiled."""
        return self._run.experimental_get_tracing_count()


def means(sums: dict[str, np.ndarray], num_steps: int) -> dict[str, np.ndarray]:
    """Returns means [R, ...] over the steps that were not skipped, of sums; `skipped` stays a count."""
    skipped = sums["skipped"]
    scale = np.float32(1.0) / np.maximum(np.float32(num_steps) - skipped, np.float32(1.0))
    return {
        name: value if name == "skipped" else value * scale.reshape([-1] + [1] * (value.ndim - 1))
        for name, value in sums.items()
    }


def device_state(state: Any) -> Any:
    """Turns a state of NumPy arrays into tensors."""
    return tf.nest.map_structure(tf.constant, state)


def host_state(state: Any) -> Any:
    """Turns a state of tensors into NumPy arrays."""
    return tf.nest.map_structure(lambda leaf: leaf.numpy(), state)

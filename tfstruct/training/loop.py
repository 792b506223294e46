"""Many training steps in one compiled program, on data that stay on the device."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct.models.config import Config
from tfstruct.training.state import TrainState
from tfstruct.training.step import Metrics

COMPILERS = ("xla", "graph")


def resolve_compiler(config: Config) -> str:
    """Returns `xla` or `graph`; `auto` is `xla`, the faster one for these systems but where the config says not."""
    if config.training.compiler != "auto":
        return config.training.compiler
    return "graph" if config.is_slow_under_xla_on_cpu and not tf.config.list_physical_devices("GPU") else "xla"


class TrainLoop:
    """Runs calls of many steps: one program launch, one row of metrics and no other traffic per call.

    Args:
        step: (state [R, ...], step number, rows [R, B, ...], row ids [R, B]) to (state, metrics [R, ...]).
        compiler: `xla` compiles the whole loop into one program; `graph` runs the same loop op by op, which is
            faster for batched matrix products on a CPU.
    """

    def __init__(self, step: Callable[..., tuple[TrainState, Metrics]], compiler: str) -> None:
        if compiler not in COMPILERS:
            raise ValueError(f"compiler must be one of {', '.join(COMPILERS)}, found {compiler!r}")
        self._step = step
        self._run = tf.function(self._loop, jit_compile=compiler == "xla", autograph=False)

    def _loop(
        self, state: TrainState, first_step: tf.Tensor, data: tf.Tensor, indices: tf.Tensor, row_ids: tf.Tensor
    ) -> tuple[TrainState, Metrics]:
        num_steps = indices.shape[0]

        def one(place: tf.Tensor, state: TrainState) -> tuple[TrainState, Metrics]:
            rows = tf.gather(data, tf.gather(indices, place))
            return self._step(state, first_step + place, rows, tf.gather(row_ids, place))

        shapes = tf.nest.map_structure(
            lambda spec: tf.zeros(spec.shape, spec.dtype), self._metric_specs(state, data, indices)
        )

        def body(place: tf.Tensor, state: TrainState, sums: Metrics) -> tuple:
            state, metrics = one(place, state)
            return place + 1, state, {name: sums[name] + metrics[name] for name in sums}

        _, state, sums = tf.while_loop(
            lambda place, *_: place < num_steps, body, (0, state, shapes), maximum_iterations=num_steps
        )
        finished = float(num_steps) - sums["skipped"]
        scale = 1.0 / tf.maximum(finished, 1.0)
        means = {
            name: value * tf.reshape(scale, [-1] + [1] * (value.shape.rank - 1))
            for name, value in sums.items()
            if name != "skipped"
        }
        return state, {**means, "skipped": sums["skipped"]}

    def _metric_specs(self, state: TrainState, data: tf.Tensor, indices: tf.Tensor) -> Metrics:
        """Shapes of a step's metrics, from a trace that is thrown away."""
        specs = tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), (state, data, indices))
        traced = tf.function(
            lambda state, data, indices: self._step(state, tf.constant(0), tf.gather(data, indices[0]), indices[0])[1],
            autograph=False,
        )
        return traced.get_concrete_function(*specs).structured_outputs

    def __call__(
        self,
        state: TrainState,
        first_step: int,
        data: tf.Tensor,
        indices: np.ndarray,
        row_ids: np.ndarray | None = None,
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Runs the steps first_step, first_step + 1, ...

        Args:
            state: with leading replica axis.
            first_step: number of updates made before.
            data: stored rows [n, *event_shape], on the device.
            indices: rows that each step visits, int32 [steps, R, B].
            row_ids: their places in the whole training set, where `data` is a part of it; default `indices`.

        Returns:
            The new state, and the means over the steps of the metrics, each [R, ...] (`skipped` is a count).
        """
        indices = tf.constant(indices)
        row_ids = indices if row_ids is None else tf.constant(row_ids)
        state, metrics = self._run(state, tf.constant(first_step, tf.int32), data, indices, row_ids)
        return state, {name: value.numpy() for name, value in metrics.items()}


def device_state(state: Any) -> Any:
    """Turns a state of NumPy arrays into tensors."""
    return tf.nest.map_structure(tf.constant, state)


def host_state(state: Any) -> Any:
    """Turns a state of tensors into NumPy arrays."""
    return tf.nest.map_structure(lambda leaf: leaf.numpy(), state)

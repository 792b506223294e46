"""The state of a training run as a pytree of tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.functional import Functional


class TrainState(NamedTuple):
    """Everything that a training step reads and writes; a leading replica axis [R] may stand before each shape.

    Attributes:
        parameters: all trainable weights as one vector, float32 [P].
        first_moment: Adam's running mean of gradients, [P].
        second_moment: Adam's running mean of squared gradients, [P].
        statistics: non-trainable weights (moving averages) as one vector, [S].
        key: key of the run, uint32 [2]; a step's key is derived from it and the step's number.
        chains: states of samplers that persist for every training row, by name, each [num_rows, K, ...].
        averages: exponential moving averages of `parameters` [P] and `statistics` [S], by those names; empty without.
    """

    parameters: Any
    first_moment: Any
    second_moment: Any
    statistics: Any
    key: Any
    chains: dict[str, Any]
    averages: dict[str, Any] = {}

    @property
    def evaluated(self) -> tuple[Any, Any]:
        """Parameters and statistics to evaluate and export: the averages where they are kept."""
        kept = self.averages or {"parameters": self.parameters, "statistics": self.statistics}
        return kept["parameters"], kept["statistics"]


def initial_state(
    functional: Functional, key: np.ndarray, num_rows: int = 0, *, is_averaged: bool = False
) -> TrainState:
    """Returns the state of a run that starts from the model's current weights.

    Args:
        functional: of the model.
        key: of the run.
        num_rows: number of training rows, for samplers that persist for each.
        is_averaged: whether moving averages of the weights are kept.
    """
    parameters, statistics = functional.parameters.values(), functional.statistics.values()
    return TrainState(
        parameters=parameters,
        first_moment=np.zeros_like(parameters),
        second_moment=np.zeros_like(parameters),
        statistics=statistics,
        key=np.asarray(key, np.uint32),
        chains=functional.model.initial_chains(num_rows, random.numpy_fold_in(key, random.CHAINS)),
        averages={"parameters": parameters, "statistics": statistics} if is_averaged else {},
    )


def stack_states(states: Sequence[TrainState]) -> TrainState:
    """Stacks the states of R runs along a leading replica axis."""
    return tf.nest.map_structure(lambda *leaves: np.stack(leaves), *states)


def replica(state: TrainState, index: int) -> TrainState:
    """Returns the state of one replica of stacked states."""
    return tf.nest.map_structure(lambda leaf: leaf[index], state)


_GROUPS = ("chains", "averages")  # fields that are dictionaries of arrays


def to_arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Returns the arrays of a state by the names under which checkpoints store them."""
    arrays = {f"state/{name}": value for name, value in state._asdict().items() if name not in _GROUPS}
    for group in _GROUPS:
        arrays |= {f"{group}/{name}": value for name, value in getattr(state, group).items()}
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray]) -> TrainState:
    """Reads a state back from a checkpoint's arrays, among which there may be others."""
    groups = {
        group: {name.removeprefix(f"{group}/"): arrays[name] for name in arrays if name.startswith(f"{group}/")}
        for group in _GROUPS
    }
    fields = {name: arrays[f"state/{name}"] for name in TrainState._fields if name not in _GROUPS}
    return TrainState(**fields, **groups)

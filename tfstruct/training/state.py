"""The state of a training run as a pytree of tensors."""

from collections.abc import Sequence
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
    """

    parameters: Any
    first_moment: Any
    second_moment: Any
    statistics: Any
    key: Any
    chains: dict[str, Any]


def initial_state(functional: Functional, key: np.ndarray, num_rows: int = 0) -> TrainState:
    """Returns the state of a run on `num_rows` training rows that starts from the model's current weights."""
    parameters = functional.parameters.values()
    return TrainState(
        parameters=parameters,
        first_moment=np.zeros_like(parameters),
        second_moment=np.zeros_like(parameters),
        statistics=functional.statistics.values(),
        key=np.asarray(key, np.uint32),
        chains=functional.model.initial_chains(num_rows, random.numpy_fold_in(key, random.CHAINS)),
    )


def stack_states(states: Sequence[TrainState]) -> TrainState:
    """Stacks the states of R runs along a leading replica axis."""
    return tf.nest.map_structure(lambda *leaves: np.stack(leaves), *states)


def replica(state: TrainState, index: int) -> TrainState:
    """Returns the state of one replica of stacked states."""
    return tf.nest.map_structure(lambda leaf: leaf[index], state)

"""Parts of what a system is that are data: what it models, and what its training needs."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np


class Target(NamedTuple):
    """What a system is a model of.

    Attributes:
        name: what its likelihood estimates are of, for reports and cards.
        part_shapes: of a model of one part of an observation given the other, the shapes of x_1, which is given, and
            x_2; they follow one another along the first axis of x.
    """

    name: str = "log p(x)"
    part_shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def is_conditional(self) -> bool:
        """Whether x has two parts and one is given."""
        return bool(self.part_shapes)


MARGINAL = Target()


def conditional(given_shape: Sequence[int], modelled_shape: Sequence[int]) -> Target:
    """Returns the target of a model of log p(x_2 | x_1)."""
    return Target("log p(x_2 | x_1)", (tuple(given_shape), tuple(modelled_shape)))


class Needs(NamedTuple):
    """What training must know of a system with its current weights.

    Attributes:
        posterior: the trainable variables that belong to q alone, and have q's gradient; there may be none.
        structure: the trainable variables that hold a structure which is learned, each with the function that decides
            it: from values of the variable to values at which the structure is decided and its gradient exactly 0.
        decayed: the trainable variables whose squares `optimizer.weight_decay` penalises.
        schedules: names of the scheduled quantities that `Draws.scheduled` must hold.
        chains: of samplers that persist for every training row, the first states by name, each [num_rows, K, ...], as a
            function of num_rows and a key. The system takes those of a batch as `Draws.chains`, [K, B, ...], while
            training, and returns their new states in its terms. None: there are no such samplers.
        whole_batch: whether a training pass computes something over the whole batch. Among devices it takes means by
            `objectives.mean_over_devices`, which XLA does not compile.
    """

    posterior: Sequence[keras.Variable] = ()
    structure: Sequence[tuple[keras.Variable, Callable[[np.ndarray], np.ndarray]]] = ()
    decayed: Sequence[keras.Variable] = ()
    schedules: tuple[str, ...] = ()
    chains: Callable[[int, np.ndarray], dict[str, np.ndarray]] | None = None
    whole_batch: bool = False

"""The phases of a run: with `training.structure_fraction` the structure is learned first, then all else anew."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfstruct.functional import Functional
from tfstruct.models.config import Config
from tfstruct.schedules import Course
from tfstruct.training.state import TrainState


class Phases:
    """One phase, or two: each runs every schedule from its beginning and counts its optimiser's steps from 0.

    Args:
        steps: of the whole run.
        boundary: the first step of the second phase; 0 for one phase.

    Attributes:
        boundary: as given.
        lengths: number of steps of each phase.
    """

    def __init__(self, steps: int, boundary: int = 0) -> None:
        self.boundary = boundary
        self.lengths = [boundary, steps - boundary] if boundary else [steps]

    @classmethod
    def from_config(cls, config: Config) -> "Phases":
        """Reads training.steps and training.structure_fraction."""
        return cls(config.training.steps, config.training.first_phase)

    def local_step(self, step: tf.Tensor | int) -> tf.Tensor:
        """Returns the number of a step within its phase."""
        step = tf.convert_to_tensor(step)
        return tf.where(step >= self.boundary, step - self.boundary, step)

    def schedule(self, course: Course) -> Callable[[tf.Tensor | int], tf.Tensor]:
        """Returns a schedule, given over fractions of a phase, as a function of the run's step."""
        schedules = [course.over(length) for length in self.lengths]

        def value(step: tf.Tensor | int) -> tf.Tensor:
            values = [schedule(self.local_step(step)) for schedule in schedules]
            return values[0] if len(values) == 1 else tf.where(step >= self.boundary, values[1], values[0])

        return value


def fixed_structure(state: TrainState, initial: TrainState, functional: Functional) -> TrainState:
    """Returns the state in which the second phase starts: `initial`, but with the structure learned in `state`.

    The structure's parameters are hardened, after which their gradient is exactly 0 and they stay. The moments are
    those of `initial`, zeros, so that Adam does not move them either. Learning rates stay as low as they had to be.

    Args:
        state: at the end of the first phase, NumPy arrays [R, ...].
        initial: in which the run began, likewise.
        functional: of the model, whose layout the parameters have.
    """
    parameters = initial.parameters.copy()
    for variable, harden in functional.model.needs.structure:
        place = functional.parameters.place(variable)
        parameters[:, place] = harden(np.asarray(state.parameters[:, place]))
    averages = initial.averages | ({"parameters": parameters} if initial.averages else {})
    scale = state.learning_rate_scale
    return initial._replace(parameters=parameters, key=state.key, averages=averages, learning_rate_scale=scale)

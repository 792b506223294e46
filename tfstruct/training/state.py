"""The state of a training run as a pytree of tensors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.functional import Functional
from tfstruct.training.checkpoint import Checkpoint


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
        learning_rate_scale: what the learning rate is multiplied by, []: less than 1 after the run has diverged, 0 for
            a replica that was given up, whose parameters stay.
    """

    parameters: Any
    first_moment: Any
    second_moment: Any
    statistics: Any
    key: Any
    chains: dict[str, Any]
    averages: dict[str, Any] = {}
    learning_rate_scale: Any = np.float32(1.0)

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
    first_chains = functional.model.needs.chains
    return TrainState(
        parameters=parameters,
        first_moment=np.zeros_like(parameters),
        second_moment=np.zeros_like(parameters),
        statistics=statistics,
        key=np.asarray(key, np.uint32),
        chains=first_chains(num_rows, random.numpy_fold_in(key, random.CHAINS)) if first_chains else {},
        averages={"parameters": parameters, "statistics": statistics} if is_averaged else {},
    )


def stack_states(states: Sequence[TrainState]) -> TrainState:
    """Stacks the states of R runs along a leading replica axis."""
    return tf.nest.map_structure(lambda *leaves: np.stack(leaves), *states)


def replica(state: TrainState, index: int) -> TrainState:
    """Returns the state of one replica of stacked states."""
    return tf.nest.map_structure(lambda leaf: leaf[index], state)


class Best(NamedTuple):
    """Weights by their validation bound, the best of each replica.

    Attributes:
        parameters: [R, P].
        statistics: [R, S].
        steps: step at which each was found, [R].
        bounds: nats, [R]; -inf before the first validation.
        waits: validations since, [R].
        stopped: whether the replica's patience ended; its weights and bound then stay, [R].
    """

    parameters: np.ndarray
    statistics: np.ndarray
    steps: np.ndarray
    bounds: np.ndarray
    waits: np.ndarray
    stopped: np.ndarray

    @classmethod
    def before_validation(cls, state: TrainState, step: int = 0) -> "Best":
        """The weights of a stacked state of a step, for want of better ones."""
        parameters, statistics = map(np.array, state.evaluated)
        zeros = np.zeros([len(parameters)], np.int64)
        return cls(parameters, statistics, zeros + step, np.full(zeros.shape, -np.inf), zeros, zeros != 0)

    def where(self, choose: np.ndarray, other: "Best") -> "Best":
        """Returns the replicas [R] that are chosen, and the others of `other`."""
        pairs = zip(self, other, strict=True)
        return Best(*(np.where(choose.reshape([-1] + [1] * (own.ndim - 1)), own, theirs) for own, theirs in pairs))

    def updated(self, found: "Best", *, patience: int = 0, always: bool = False) -> "Best":
        """Returns the best after another validation.

        Args:
            found: the weights that were validated, with their step and bounds.
            patience: validations without a new best after which a replica stops; 0 for no end.
            always: whether the last weights before a replica stopped count, whatever they score.
        """
        improved = ((found.bounds > self.bounds) | always) & ~self.stopped
        waits = np.where(improved, 0, self.waits + 1)
        stopped = self.stopped | (waits >= patience) if patience else self.stopped
        return found.where(improved, self)._replace(waits=waits, stopped=stopped)


_GROUPS = ("chains", "averages")  # fields of TrainState that are dictionaries of arrays


class RunState(NamedTuple):
    """Where a run is: what a checkpoint holds, under names that only this class knows.

    Attributes:
        step: number of updates made.
        train: what training goes on from, [R, ...].
        best: the best weights so far.
        seeds: of the replicas.
        layout: path and shape of each weight in `parameters` and `statistics`, by those names.
        data_checksum: of the data set that is trained on.
        fixed_uncertainties: how far each replica's least decided gate was from 0 or 1 when the structure was fixed,
            [R]; None where it has not been.
        config: of the run, as JSON; empty in checkpoints of earlier versions.
        made_by: `commit` and `versions` of the code that wrote it; empty in checkpoints of earlier versions.
    """

    step: int
    train: TrainState
    best: Best
    seeds: list[int]
    layout: dict[str, list]
    data_checksum: str
    fixed_uncertainties: np.ndarray | None = None
    config: str = ""
    made_by: dict[str, Any] = {}

    @property
    def maker(self) -> str:
        """The commit that wrote it, for messages."""
        return f" (written by commit {self.made_by['commit']})" if self.made_by.get("commit") else ""

    @property
    def weights(self) -> Best:
        """The best weights; of a replica never validated, the current ones."""
        return self.best.where(np.isfinite(self.best.bounds), Best.before_validation(self.train, self.step))

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays of a checkpoint by name."""
        train = tf.nest.map_structure(np.asarray, self.train)
        arrays = {f"state/{name}": value for name, value in train._asdict().items() if name not in _GROUPS}
        for group in _GROUPS:
            arrays |= {f"{group}/{name}": value for name, value in getattr(train, group).items()}
        arrays |= {f"best/{name}": value for name, value in self.best._asdict().items()}
        if self.fixed_uncertainties is not None:
            arrays["fixed_uncertainties"] = self.fixed_uncertainties
        return arrays

    def metadata(self) -> dict[str, Any]:
        """Returns what stands beside the arrays of a checkpoint."""
        return {name: getattr(self, name) for name in ("seeds", "layout", "data_checksum", "config", "made_by")}

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "RunState":
        """Reads a state back, as NumPy arrays; raises ValueError if something is missing."""
        try:
            return cls._read(checkpoint)
        except KeyError as error:
            raise ValueError(
                f"{checkpoint.path} lacks {error}: another version of this library wrote it; use that one"
            ) from None

    @classmethod
    def _read(cls, checkpoint: Checkpoint) -> "RunState":
        arrays = checkpoint.arrays
        groups = {
            group: {name.removeprefix(f"{group}/"): arrays[name] for name in arrays if name.startswith(f"{group}/")}
            for group in _GROUPS
        }
        # Before there were scales they were 1.
        arrays = {"state/learning_rate_scale": np.ones([len(arrays["state/key"])], np.float32)} | arrays
        fields = {name: arrays[f"state/{name}"] for name in TrainState._fields if name not in _GROUPS}
        return cls(
            checkpoint.step,
            TrainState(**fields, **groups),
            Best(**{name: arrays[f"best/{name}"] for name in Best._fields}),
            *(checkpoint.metadata[name] for name in ("seeds", "layout", "data_checksum")),
            fixed_uncertainties=arrays.get("fixed_uncertainties"),
            config=checkpoint.metadata.get("config", ""),
            made_by=checkpoint.metadata.get("made_by", {}),
        )

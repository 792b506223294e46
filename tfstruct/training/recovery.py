"""What becomes of a training that diverges: back to where it was well, more slowly, and in the end given up."""

import math
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfstruct.data.pipeline import Call
from tfstruct.data.support import BINARY, INTEGERS
from tfstruct.files import replacing
from tfstruct.models.system import System
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.state import Best, RunState, TrainState

FACTOR = 0.5  # of the learning rate


class NonFiniteTrainingError(FloatingPointError):
    """A training that diverges at every learning rate that was tried."""


class Recovery:
    """Finds replicas that diverged and takes the run back.

    Args:
        model: of the run.
        checkpoints: of the run.
        initial: state [R, ...] in which the run began.
        call_steps: of a whole call.
    """

    def __init__(self, model: System, checkpoints: Checkpoints, initial: TrainState, call_steps: int) -> None:
        options = model.config.training
        self._checkpoints, self._initial = checkpoints, initial
        # Of a whole call, so that it makes no difference where a signal ended one.
        self._max_skipped = options.max_skipped_fraction * call_steps
        self._attempts = options.max_rollbacks
        # The log probability of an integer is at most 0. One nat for each value is room for the noise of an estimate.
        is_discrete = model.likelihood.support in (BINARY, INTEGERS)
        self._largest_bound = math.prod(model.event_shape) if is_discrete else math.inf

    def diverged(self, state: RunState, metrics: dict[str, np.ndarray]) -> np.ndarray:
        """Returns which replicas skipped too many steps, have a bound that cannot be, or are not finite; [R]."""
        diverged = (metrics["skipped"] > self._max_skipped) | ~self._is_possible(metrics["bound"])
        for values in (state.train.parameters, state.train.second_moment, state.train.statistics):
            diverged |= ~tf.reduce_all(tf.math.is_finite(values), axis=1).numpy()
        return diverged & self._is_alive(state)

    def invalid(self, state: RunState, bounds: np.ndarray) -> np.ndarray:
        """Returns which replicas' validation bounds [R] cannot be, or are not finite; Boolean [R]."""
        return ~(np.isfinite(bounds) & self._is_possible(bounds)) & self._is_alive(state)

    def _is_possible(self, bound: np.ndarray) -> np.ndarray:
        return bound <= self._largest_bound

    def _is_alive(self, state: RunState) -> np.ndarray:
        """Which replicas are neither given up nor done."""
        return (np.asarray(state.train.learning_rate_scale) > 0.0) & ~state.best.stopped

    def roll_back(self, state: RunState, diverged: np.ndarray, call: Call) -> tuple[RunState, str]:
        """Returns a state from before the divergence with lower learning rates, and what to tell of it.

        The first time that is the latest checkpoint, later the oldest that is kept, and without any the beginning.
        Checkpoints after it are removed. A replica that diverges once more after `training.max_rollbacks` times is
        given up: it stays as it then was, with the best weights that it had, and ends no other.

        Args:
            state: that diverged.
            diverged: which replicas did, [R].
            call: in which they did; its rows are written beside the checkpoints.

        Raises:
            NonFiniteTrainingError: no replica is left.
        """
        rows = self._write_rows(state, call)
        scale = np.asarray(state.train.learning_rate_scale)
        scale = np.where(diverged, scale * np.float32(FACTOR), scale)
        is_given_up = scale < FACTOR ** (self._attempts + 0.5)
        scale = np.where(is_given_up, np.float32(0.0), scale)
        last = state.step - 1
        seeds = ", ".join(str(seed) for seed, bad in zip(state.seeds, diverged, strict=True) if bad)
        what = f"seed {seeds} diverged in the steps {call.first_step}..{last} (their rows: {rows})"
        if not scale.any():
            raise NonFiniteTrainingError(
                f"{what}; lower optimizer.learning_rate or set optimizer.clip_norm. Checkpoints, if there are any in "
                f"{self._checkpoints.folder}, are from before these steps"
            )
        is_repeated = (scale[diverged] > 0.0) & (scale[diverged] < FACTOR)
        found = self._earlier(state, is_first=not is_repeated.any())
        stopped = found.best.stopped | is_given_up
        found = found._replace(
            train=found.train._replace(learning_rate_scale=scale), best=found.best._replace(stopped=stopped)
        )
        given_up = [seed for seed, gone in zip(state.seeds, is_given_up & diverged, strict=True) if gone]
        then = f"seed {', '.join(map(str, given_up))} is given up" if given_up else "its learning rate is halved"
        return found, f"{what}; {then}, and the run goes on from step {found.step}"

    def _earlier(self, state: RunState, *, is_first: bool) -> RunState:
        checkpoint = self._checkpoints.latest() if is_first else self._checkpoints.oldest()
        if checkpoint is None:
            best = Best.before_validation(self._initial)
            return state._replace(step=0, train=self._initial, best=best, fixed_uncertainties=None)
        self._checkpoints.discard_after(checkpoint.step)
        return RunState.from_checkpoint(checkpoint)

    def _write_rows(self, state: RunState, call: Call) -> Path:
        """Writes which rows the steps visited, so that they can be looked at."""
        path = self._checkpoints.folder.parent / "diverged" / f"step_{call.first_step:09d}.npz"
        with replacing(path) as file:
            rows = call.row_ids[: state.step - call.first_step]
            np.savez(file, first_step=call.first_step, row_ids=rows, seeds=np.array(state.seeds))
        return path

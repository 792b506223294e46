"""The course of a training run: calls of many steps, validations, checkpoints, and the end."""

import io
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import keras
import numpy as np
import tensorflow as tf

from tfstruct.data import datasets
from tfstruct.data.pipeline import Pipeline
from tfstruct.files import replacing, write_checksums
from tfstruct.models.config import Config
from tfstruct.models.registry import parse_config
from tfstruct.models.system import System
from tfstruct.training.checkpoint import Checkpoint
from tfstruct.training.distribute import WorkerLoop, divided_loop, own_places
from tfstruct.training.initial import make_initial_state, require_layout, start_from
from tfstruct.training.logging import RunLog
from tfstruct.training.loop import Loop, TrainLoop, device_state, host_state
from tfstruct.training.phases import fixed_structure
from tfstruct.training.recovery import Recovery
from tfstruct.training.replica_loop import ReplicaLoop
from tfstruct.training.state import Best, RunState
from tfstruct.training.step import TrainStep, over_replicas
from tfstruct.training.stop_signal import StopSignal
from tfstruct.training.validation import Validator
from tfstruct.training.workdir import Workdir, require_same


class RunResult(NamedTuple):
    """What `train` returns.

    Attributes:
        step: steps done.
        best: the best weights.
        seconds: of this process, compilation included.
        steps_per_second: without the first call, which compiles; NaN when there was no other.
    """

    step: int
    best: Best
    seconds: float
    steps_per_second: float

    def __repr__(self) -> str:
        bounds = ", ".join(f"{bound:.2f}" for bound in self.best.bounds)
        return f"RunResult(step={self.step}, bounds=[{bounds}] nats, seconds={self.seconds:.0f})"


class Trainer:
    """Trains the replicas of a config in a folder that is theirs, from the latest checkpoint if there is one.

    Args:
        config: of the run.
        folder: where it is kept.
        data: to train on, and to validate with.
        models: one for each replica; the first is the one that is traced.
        seeds: of the replicas.
        compiler: `xla` or `graph`.
        strategy: divides the batches of one replica, or several replicas, among devices; None for one device.

    Raises:
        ValueError: replicas that the devices cannot share, or settings that do not go with the model or the data.
    """

    def __init__(
        self,
        config: Config,
        folder: Workdir,
        data: datasets.Dataset,
        models: list[System],
        seeds: list[int],
        compiler: str,
        strategy: tf.distribute.Strategy | None,
    ) -> None:
        options = config.training
        self.config, self.folder, self.options = config, folder, options
        self.step_function = TrainStep(models[0], data.train_transform)
        self.phases = self.step_function.phases
        self.functional = self.step_function.functional
        self.pipeline = Pipeline(
            data.train,
            seeds=seeds,
            batch_size=options.batch_size,
            resident_megabytes=options.resident_megabytes,
            places=own_places(strategy, options.batch_size),
        )
        self.validator = Validator(models[0], data.validation, config)
        self.initial = make_initial_state(config, models, seeds, data)
        if options.initial_weights and not folder.checkpoints.steps():
            self.initial = start_from(self.initial, self.functional, options.initial_weights)

        def make_loop(num_replicas: int) -> TrainLoop:
            return TrainLoop(over_replicas(self.step_function, num_replicas), compiler, self.call_steps)

        self.loop: Loop
        if strategy is None:
            self.loop = make_loop(len(seeds))
        elif len(seeds) > 1:
            self.loop = ReplicaLoop(make_loop, strategy.extended.worker_devices, len(seeds))
        else:
            shared = {"batch_size": options.batch_size, "compiler": compiler}
            self.loop = divided_loop(self.step_function, strategy, self.initial, **shared)
        self.recovery = Recovery(models[0], folder.checkpoints, self.initial, self.call_steps)
        best = Best.before_validation(self.initial)
        layout = self.functional.layout
        self.state = RunState(0, self.initial, best, seeds, layout, data.checksum, config=config.to_json())

    def run(self, about: Mapping[str, Any]) -> RunResult:
        """Goes on to the last step, or until every replica's patience ends.

        Args:
            about: what environment.json says of it, beside versions and machine.

        Raises:
            NonFiniteTrainingError: see `Recovery.roll_back`.
            SystemExit: a signal asked to stop, and the state is saved.
        """
        checkpoint = self.folder.checkpoints.latest()
        if checkpoint is not None:
            self.restore(checkpoint)
        elif self.folder.checkpoints.steps():
            raise ValueError(
                f"every checkpoint in {self.folder.checkpoints.folder} is damaged; remove that folder to start again "
                "from step 0"
            )
        if self.state.step < self.options.steps and not self.state.best.stopped.all():  # else nothing is made
            noted = self.folder.write_environment(self.state.step, **about)
            self.state = self.state._replace(made_by={name: noted[name] for name in ("commit", "versions")})
        start, last_save, speed = time.monotonic(), time.monotonic(), _Speed()
        with (
            RunLog(
                self.folder.path,
                num_replicas=len(self.state.seeds),
                total_steps=self.options.steps,
                resume_step=self.state.step,
                headline=("bound", "rate"),
            ) as log,
            StopSignal() as stop,
        ):
            if checkpoint is not None:
                log.message(f"resuming {self.folder.path} at step {self.state.step} of {self.options.steps}")
            self.state = self.state._replace(train=device_state(self.state.train))
            calls = self.pipeline.calls(self.spans())
            while not self.state.best.stopped.all():
                call_start = time.monotonic()  # before the data are fetched: waiting for them counts
                call = next(calls, None)
                if call is None:
                    break
                if not speed.is_compiled:
                    log.compiling()
                train, metrics, num_steps = self.loop.run(self.state.train, call, should_stop=lambda: stop.requested)
                speed.add(num_steps, time.monotonic() - call_start)
                # Read once: it may come between two uses.
                signal_number = stop.requested or self.loop.stopped_by
                self.state = self.state._replace(train=train, step=call.first_step + num_steps)
                diverged = self.recovery.diverged(self.state, metrics)
                validated = None
                if not diverged.any():
                    validated, diverged = self.validate()
                if diverged.any():
                    calls.close()
                    self.state, message = self.recovery.roll_back(self.state, diverged, call)
                    self.state = self.state._replace(train=device_state(self.state.train))
                    log.message(message)
                    log.rewind(self.state.step)
                    self.save()  # the lower learning rate: a run that is ended here would not know of it
                    if signal_number:
                        raise SystemExit(128 + signal_number)  # what was well is saved
                    calls = self.pipeline.calls(self.spans())
                    continue
                log.log(self.state.step, metrics, validated)
                if self.state.step == self.phases.boundary:
                    self.begin_second_phase(log)
                signal_number = signal_number or stop.requested
                if time.monotonic() - last_save > 60.0 * self.options.checkpoint_minutes or signal_number:
                    self.save()
                    last_save = time.monotonic()
                if signal_number and self.state.step < self.options.steps:
                    log.message(f"stopped by a signal at step {self.state.step}; the same command resumes")
                    raise SystemExit(128 + signal_number)
            self.save()
            self.write_best()
            if self.state.best.stopped.all() and self.state.step < self.options.steps:
                log.message(f"stopped early at step {self.state.step}: no new best validation bound")
        return RunResult(self.state.step, self.state.best, time.monotonic() - start, speed.steps_per_second)

    def follow(self, loop: WorkerLoop) -> NoReturn:
        """Does what the chief of several processes has this one do; writes nothing.

        Raises:
            SystemExit: the chief has done, with status 0, or was stopped by a signal.
            LostWorkerError: another process ended.
            RuntimeError: the chief ended with an error, which is said.
        """
        with StopSignal() as stop:
            for order in loop.orders():
                (call,) = self.pipeline.calls([(order.first_step, order.num_steps)])
                loop.run(order.state, call, should_stop=lambda: stop.requested)
        raise SystemExit(0)

    @property
    def call_steps(self) -> int:
        """Steps of a call that nothing cuts short."""
        options = self.options
        lengths = (options.steps_per_call, self.pipeline.max_steps_per_call, options.validate_every, options.steps)
        return min(length for length in lengths if length)

    def spans(self) -> list[tuple[int, int]]:
        """The calls that are left, as (first step, number of steps); none crosses a validation or a phase."""
        options, step, per_call = self.options, self.state.step, self.call_steps
        spans = []
        while step < options.steps:
            validation = step // options.validate_every * options.validate_every
            start, end = self.phases.boundary, options.steps
            if step < start:
                start, end = 0, start
            # From the middle of a call, where a signal stopped it, to its end.
            size = per_call - (step - max(validation, start)) % per_call
            size = min(size, validation + options.validate_every - step, end - step)
            spans.append((step, size))
            step += size
        return spans

    def validate(self) -> tuple[dict[str, np.ndarray] | None, np.ndarray]:
        """Scores the validation images when it is time to, at a phase's end too, and keeps the best weights.

        Returns:
            The metrics, None when it is not time, and which replicas have scores that cannot be, [R]; if any has,
            nothing is kept.
        """
        step, options = self.state.step, self.options
        if step % options.validate_every and step not in (self.phases.boundary, options.steps):
            return None, np.zeros([len(self.state.seeds)], bool)
        found, metrics = self.validator(self.state.train, step)
        invalid = self.recovery.invalid(self.state, found.bounds)
        if not invalid.any():
            best = self.state.best.updated(
                found,
                patience=options.patience if step > self.phases.boundary else 0,  # the first of two runs to its end
                # Validation rows that are trained on choose nothing.
                always=self.config.data.use_validation,
            )
            self.state = self.state._replace(best=best)
        return metrics, invalid

    def begin_second_phase(self, log: RunLog) -> None:
        """Fixes the structure that was learned, and starts all other weights and the search for the best ones anew."""
        learned = host_state(self.state.train)
        state = fixed_structure(learned, self.initial, self.functional)
        uncertainties = []
        for parameters, statistics, seed in zip(learned.parameters, learned.statistics, self.state.seeds, strict=True):
            self.functional.assign(parameters, statistics)
            report = self.step_function.model.structure_report()
            uncertainties.append(report["largest_gate_uncertainty"])
            log.message(
                f"step {self.state.step}: structure of seed {seed} fixed, {report['open_edges']} of "
                f"{report['possible_edges']} edges open (the least decided gate was "
                f"{uncertainties[-1]:.2f} from 0 or 1); all other weights start anew"
            )
        best = Best.before_validation(state)._replace(stopped=np.asarray(state.learning_rate_scale) == 0.0)
        self.state = self.state._replace(
            train=device_state(state), best=best, fixed_uncertainties=np.array(uncertainties)
        )

    def save(self) -> None:
        """Writes a checkpoint."""
        self.folder.checkpoints.save(self.state.step, self.state.arrays(), self.state.metadata())

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint; raises ValueError for one of other weights or other data."""
        found = RunState.from_checkpoint(checkpoint)
        for name, layout in self.state.layout.items():
            require_layout(found.layout.get(name, []), layout, f"{checkpoint.path}{found.maker}")
        if found.config:
            message = f"{checkpoint.path} was trained with other settings; choose another --workdir for others."
            require_same(parse_config(found.config), self.config, f"{message} There / asked for")
        if found.data_checksum != self.state.data_checksum:
            raise ValueError(
                f"{checkpoint.path} was trained on data of checksum {found.data_checksum[:12]}..., "
                f"found {self.state.data_checksum[:12]}...; choose another --workdir for other data"
            )
        self.state = found._replace(config=self.state.config)

    def write_best(self) -> None:
        """Writes each replica's best weights as a Keras file, `best/replica_<r>.weights.h5`, and their checksums."""
        best = self.state.best
        for place, weights in enumerate(zip(best.parameters, best.statistics, strict=True)):
            self.functional.assign(*weights)
            path = self.folder.path / "best" / f"replica_{place}.weights.h5"
            with replacing(path) as file:
                file.write(_weights_file(self.step_function.model))
        write_checksums(self.folder.path / "best")


class _Memory(io.BytesIO):
    """A file in memory, of the name that Keras wants; HDF5 ends the process where a disk is full."""

    def __str__(self) -> str:
        return "memory.weights.h5"


def _weights_file(model: System) -> bytes:
    """The bytes of a model's Keras weights file."""
    memory = _Memory()
    keras.saving.save_weights(model, memory)
    return memory.getvalue()


class _Speed:
    """Steps per second without the first call, which compiles."""

    def __init__(self) -> None:
        self._steps, self._seconds, self.is_compiled = 0, 0.0, False

    def add(self, steps: int, seconds: float) -> None:
        if self.is_compiled:
            self._steps, self._seconds = self._steps + steps, self._seconds + seconds
        self.is_compiled = True

    @property
    def steps_per_second(self) -> float:
        return self._steps / self._seconds if self._steps else float("nan")

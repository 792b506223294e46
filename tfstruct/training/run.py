"""One training run from config to weights: resumable, validated, with early stopping."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.data import datasets
from tfstruct.data.pipeline import Pipeline
from tfstruct.files import PathLike
from tfstruct.inference.held_out import HeldOutScorer, prepared_statistics
from tfstruct.models import registry
from tfstruct.models.config import Config
from tfstruct.models.system import System
from tfstruct.training.checkpoint import Checkpoint, WorkdirLock
from tfstruct.training.data import load_data
from tfstruct.training.distribute import MirroredLoop, make_strategy
from tfstruct.training.initial import make_initial_state, origin, start_from
from tfstruct.training.logging import RunLog
from tfstruct.training.loop import TrainLoop, device_state, host_state, resolve_compiler
from tfstruct.training.phases import fixed_structure
from tfstruct.training.state import TrainState, from_arrays, to_arrays
from tfstruct.training.step import TrainStep, over_replicas
from tfstruct.training.stop_signal import StopSignal
from tfstruct.training.workdir import Workdir

_VALIDATION_SEED = 1


class NonFiniteTrainingError(FloatingPointError):
    """Too many steps in a row had a loss or gradient that was not finite."""


class Best(NamedTuple):
    """The best weights by validation bound, per replica.

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
    def before_validation(cls, state: TrainState) -> "Best":
        """The weights of a stacked state of NumPy arrays, for want of better ones."""
        parameters, statistics = state.evaluated
        zeros = np.zeros([len(parameters)], np.int64)
        return cls(parameters, statistics, zeros, np.full(zeros.shape, -np.inf), zeros, zeros != 0)


class RunResult(NamedTuple):
    """What `train` returns.

    Attributes:
        step: steps done.
        best: the best weights.
        seconds: of this process, compilation included.
        steps_per_second: without the first call of each length, which compiles; NaN when there was no other.
    """

    step: int
    best: Best
    seconds: float
    steps_per_second: float


def train(
    config: Config,
    workdir: PathLike,
    *,
    strategy: str = "auto",
    resume: str = "auto",
    data_dir: str | None = None,
) -> RunResult:
    """Trains the config's system, or goes on where an earlier run of the same config stopped.

    Args:
        config: a preset's config.
        workdir: folder of the run.
        strategy: `none`, `mirrored` (several devices) or `auto`.
        resume: `auto`, `never` or `must`; see Workdir.claim.
        data_dir: folder of prepared data sets.

    Returns:
        The best weights and the speed.

    Raises:
        ValueError: bad settings or data, before anything is written.
        NonFiniteTrainingError: more than `training.max_skipped_fraction` of a call's steps were not finite.
    """
    folder = Workdir(workdir)
    folder.check_resume(resume)
    chosen = make_strategy(strategy)
    if strategy == "auto" and chosen is not None:
        # Several devices divide one batch of one replica; what they cannot divide trains on one device.
        if config.training.replicas > 1 or config.training.batch_size % chosen.num_replicas_in_sync:
            chosen = None
    data = load_data(config, data_dir)
    config = config.replace({"data.event_shape": data.event_shape})
    compiler = resolve_compiler(config)
    build_config = config
    if chosen is not None and config.model.batch_norm:
        # Statistics of the global batch, so that the number of devices changes nothing; XLA cannot reduce them.
        build_config = config.replace({"model.batch_norm_synchronized": True})
        compiler = "graph"
    seeds = [config.training.seed + place for place in range(config.training.replicas)]
    models = [registry.build(build_config, seed=seed) for seed in seeds]
    reason = None if chosen is None else _reason_for_one_device(config, models[0])
    if reason is not None:
        if strategy != "auto":
            raise ValueError(f"{reason}: --strategy=none, found {strategy!r}")
        chosen = None
    if config.training.structure_fraction and not models[0].learned_structure:
        raise ValueError(
            f"training.structure_fraction={config.training.structure_fraction} is for a structure that is learned; "
            f"{config.preset} has none (model.structure={getattr(config.model, 'structure', 'none')})"
        )
    prepared = _Run(config, folder, data, models, seeds, compiler, chosen)
    with WorkdirLock(folder.path):
        starts_from = origin(config, folder)
        folder.claim(config, resume)
        folder.write_environment(
            strategy=strategy,
            devices=1 if chosen is None else chosen.num_replicas_in_sync,
            compiler=compiler,
            data={"checksum": data.checksum, "description": data.description},
            starts_from=starts_from,
        )
        return prepared.run()


def _reason_for_one_device(config: Config, model: System) -> str | None:
    """Says why a training cannot be divided among devices; None if it can."""
    if model.initial_chains(1, random.key(0)):
        return f"{config.preset} keeps samplers for every training row, which stay on one device"
    if model.free_bits:
        return f"objective.free_bits={model.free_bits} takes the mean rate of the whole batch"
    return None


class _Run:
    """The state of `train` between its parts."""

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
        self.config, self.folder, self.options, self.seeds = config, folder, options, seeds
        self.data_checksum = data.checksum
        self.step_function = TrainStep(models[0], data.train_transform)
        self.phases = self.step_function.phases
        self.functional = self.step_function.functional
        self.pipeline = Pipeline(
            data.train,
            seeds=seeds,
            batch_size=options.batch_size,
            resident_megabytes=options.resident_megabytes,
        )
        self.loop: Callable[..., Any]
        if strategy is None:
            self.loop = TrainLoop(over_replicas(self.step_function, len(seeds)), compiler)
        elif len(seeds) > 1:
            raise ValueError(f"strategy mirrored trains one replica, found training.replicas={len(seeds)}")
        else:
            self.loop = MirroredLoop(self.step_function, strategy, batch_size=options.batch_size, compiler=compiler)
        self.validation = data.validation[: options.validation_images]
        self.scorer = HeldOutScorer(
            models[0],
            num_samples=options.validation_samples,
            batch_size=min(100, len(self.validation)),
            chunk=10,
            compiler=resolve_compiler(config),
            terms_options=models[0].terms_options(options.validation),
        )
        self.initial = make_initial_state(config, models, seeds, data)
        if options.initial_weights and not folder.checkpoints.steps():
            self.initial = start_from(self.initial, self.functional, options.initial_weights)
        self.state: TrainState = self.initial
        self.best = Best.before_validation(self.state)
        self.fixed_uncertainties: np.ndarray | None = None  # see TrainedWeights
        self.step = 0

    # Checkpoints ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        state = host_state(device_state(self.state))
        arrays = to_arrays(state) | {f"best/{name}": value for name, value in self.best._asdict().items()}
        if self.fixed_uncertainties is not None:
            arrays["fixed_uncertainties"] = self.fixed_uncertainties
        layout = {
            "parameters": self.functional.parameters.describe(),
            "statistics": self.functional.statistics.describe(),
        }
        metadata = {"seeds": self.seeds, "layout": layout, "data_checksum": self.data_checksum}
        self.folder.checkpoints.save(self.step, arrays, metadata)

    def write_best(self) -> None:
        """Writes each replica's best weights as a Keras weights file, `best/replica_<r>.weights.h5`."""
        folder = self.folder.path / "best"
        folder.mkdir(exist_ok=True)
        for place in range(len(self.seeds)):
            self.functional.assign(self.best.parameters[place], self.best.statistics[place])
            aside = folder / f".replica_{place}.weights.h5"
            self.step_function.model.save_weights(aside)
            aside.replace(folder / f"replica_{place}.weights.h5")

    def restore(self, checkpoint: Checkpoint) -> None:
        layout = checkpoint.metadata["layout"]
        expected = {
            "parameters": self.functional.parameters.describe(),
            "statistics": self.functional.statistics.describe(),
        }
        if layout != expected:
            raise ValueError(
                f"{checkpoint.path} was written by a version whose weights are laid out otherwise; it cannot be resumed"
            )
        if checkpoint.metadata["data_checksum"] != self.data_checksum:
            raise ValueError(
                f"{checkpoint.path} was trained on data of checksum {checkpoint.metadata['data_checksum'][:12]}..., "
                f"found {self.data_checksum[:12]}...; choose another --workdir for other data"
            )
        arrays = checkpoint.arrays
        self.state = from_arrays(arrays)
        self.best = Best(**{name: arrays[f"best/{name}"] for name in Best._fields})
        self.fixed_uncertainties = arrays.get("fixed_uncertainties")
        self.step = checkpoint.step

    # The course of a run -------------------------------------------------------------------------------------

    def spans(self) -> list[tuple[int, int]]:
        """The calls that are left, as (first step, number of steps); none crosses a validation or a phase."""
        per_call = min(self.options.steps_per_call, self.pipeline.max_steps_per_call or self.options.steps_per_call)
        spans, step = [], self.step
        while step < self.options.steps:
            next_validation = (step // self.options.validate_every + 1) * self.options.validate_every
            end = self.phases.boundary if step < self.phases.boundary else self.options.steps
            size = min(per_call, next_validation - step, end - step)
            spans.append((step, size))
            step += size
        return spans

    def run(self) -> RunResult:
        checkpoint = self.folder.checkpoints.latest()
        if checkpoint is not None:
            self.restore(checkpoint)
        elif self.folder.checkpoints.steps():
            raise ValueError(
                f"every checkpoint in {self.folder.checkpoints.folder} is damaged; remove that folder to start again "
                "from step 0"
            )
        start, last_save = time.monotonic(), time.monotonic()
        timed_steps, timed_seconds, compiled = 0, 0.0, set()
        with (
            RunLog(
                self.folder.path,
                num_replicas=len(self.seeds),
                total_steps=self.options.steps,
                resume_step=self.step,
                headline=("bound", "rate"),
            ) as log,
            StopSignal() as stop,
        ):
            if checkpoint is not None:
                log.message(f"resuming {self.folder.path} at step {self.step} of {self.options.steps}")
            self.state = device_state(self.state)
            calls = self.pipeline.calls(self.spans())
            while not self.best.stopped.all():
                call_start = time.monotonic()  # before the data are fetched: waiting for them counts
                call = next(calls, None)
                if call is None:
                    break
                self.state, metrics = self.loop(self.state, call.first_step, call.rows, call.indices, call.row_ids)
                if len(call.indices) in compiled:  # the first call of each length compiles
                    timed_steps += len(call.indices)
                    timed_seconds += time.monotonic() - call_start
                compiled.add(len(call.indices))
                self.step = call.first_step + len(call.indices)
                self.check(metrics, call.first_step, len(call.indices))
                is_last = self.step >= self.options.steps
                log.log(self.step, metrics, self.validate(is_last or self.step == self.phases.boundary))
                if self.step == self.phases.boundary:
                    self.begin_second_phase(log)
                signal_number = stop.requested  # read once: it may come between the two uses
                if time.monotonic() - last_save > 60.0 * self.options.checkpoint_minutes or signal_number:
                    self.save()
                    last_save = time.monotonic()
                if signal_number and not is_last:
                    log.message(f"stopped by a signal at step {self.step}; the same command resumes")
                    raise SystemExit(128 + signal_number)
            self.state = host_state(self.state)
            self.save()
            self.write_best()
            if self.best.stopped.all() and self.step < self.options.steps:
                log.message(f"stopped early at step {self.step}: no new best validation bound")
        speed = timed_steps / timed_seconds if timed_steps else float("nan")
        return RunResult(self.step, self.best, time.monotonic() - start, speed)

    def begin_second_phase(self, log: RunLog) -> None:
        """Fixes the structure that was learned, and starts all other weights and the search for the best ones anew."""
        learned = host_state(self.state)
        state = fixed_structure(learned, self.initial, self.functional)
        self.best = Best.before_validation(state)
        self.state = device_state(state)
        reports = []
        for parameters, statistics, seed in zip(learned.parameters, learned.statistics, self.seeds, strict=True):
            self.functional.assign(parameters, statistics)
            report = self.step_function.model.structure_report()
            reports.append(report)
            log.message(
                f"step {self.step}: structure of seed {seed} fixed, {report['open_edges']} of "
                f"{report['possible_edges']} edges open (the least decided gate was "
                f"{report['largest_gate_uncertainty']:.2f} from 0 or 1); all other weights start anew"
            )
        self.fixed_uncertainties = np.array([report["largest_gate_uncertainty"] for report in reports])

    def check(self, metrics: dict[str, np.ndarray], first_step: int, num_steps: int) -> None:
        """Raises NonFiniteTrainingError when too many steps of a call were skipped."""
        worst = float(metrics["skipped"].max())
        if worst > self.options.max_skipped_fraction * num_steps:
            raise NonFiniteTrainingError(
                f"{worst:.0f} of the steps {first_step}..{first_step + num_steps - 1} had a loss or gradient that is "
                "not finite; lower optimizer.learning_rate or set optimizer.clip_norm. Checkpoints, if there "
                f"are any in {self.folder.checkpoints.folder}, are from before these steps."
            )

    def validate(self, must: bool) -> dict[str, np.ndarray] | None:
        """Scores the validation images when it is time to, or must be, and keeps each replica's best weights."""
        if self.step % self.options.validate_every and not must:
            return None
        current_parameters, current_statistics = (values.numpy() for values in self.state.evaluated)
        annealing = self.options.validation
        for place, parameters in enumerate(current_parameters):
            current_statistics[place], _ = prepared_statistics(
                self.functional, parameters, current_statistics[place], annealing
            )
        summaries = [
            self.scorer.summarise(self.scorer(parameters, statistics, self.validation, seed=_VALIDATION_SEED))
            for parameters, statistics in zip(current_parameters, current_statistics, strict=True)
        ]
        bounds = np.array([summary.log_likelihood for summary in summaries])
        improved = (bounds > self.best.bounds) & ~self.best.stopped
        if self.config.data.use_validation:
            improved[:] = True  # the validation rows are trained on and choose nothing: the last weights count
        choose = improved[:, np.newaxis]
        waits = np.where(improved, 0, self.best.waits + 1)
        stopped = self.best.stopped
        if self.options.patience > 0 and self.step > self.phases.boundary:  # the first of two phases runs to its end
            stopped = stopped | (waits >= self.options.patience)
        self.best = Best(
            np.where(choose, current_parameters, self.best.parameters),
            np.where(choose, current_statistics, self.best.statistics),
            np.where(improved, self.step, self.best.steps),
            np.where(improved, bounds, self.best.bounds),
            waits,
            stopped,
        )
        result = {"log_likelihood": bounds}
        if self.config.objective.name == "elbo":
            # The bound that is trained, so that the curves of training and validation compare.
            result["bound"] = np.array([summary.elbo for summary in summaries])
        return result

"""Fills a table: trains and evaluates the runs that it lacks, as processes that resume, within given hours."""

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tfstruct import registry
from tfstruct.evaluation import results as results_lib
from tfstruct.evaluation.report import evaluation_stem
from tfstruct.files import PathLike, exclusive
from tfstruct.models.tables import Row, Table
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.logging import METRICS_NAME, read_rows

_POLL_SECONDS = 0.5
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_GRACE_SECONDS = 600.0  # a trainer saves at the end of a call, an evaluation is simply lost


class Unit(NamedTuple):
    """Seeds of a row that are trained by one process.

    Attributes:
        row: what is trained.
        seeds: consecutive.
        workdir: folder of the run.
    """

    row: Row
    seeds: tuple[int, ...]
    workdir: Path

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.row.name} seed {self.seeds[0]}" + (f"..{self.seeds[-1]}" if len(self.seeds) > 1 else "")

    @property
    def evaluation(self) -> Path:
        """The file that the row's evaluation writes."""
        stem = evaluation_stem(self.row.evaluation.split, self.row.evaluation.tag)
        return self.workdir / f"{stem}.json"

    @property
    def is_trained(self) -> bool:
        """Whether training has come to its end, at which the best weights are written."""
        return (self.workdir / "best" / "replica_0.weights.h5").exists()

    @property
    def step(self) -> int:
        """Of the newest checkpoint."""
        return max(Checkpoints(self.workdir / "checkpoints").steps(), default=0)

    def is_recorded(self, results: results_lib.Results) -> bool:
        """Whether results have every seed, from this machine or another."""
        recorded = results.seeds(self.row.name)
        return all(str(seed) in recorded for seed in self.seeds)

    def state(self) -> str:
        """`done`, `trained`, `started` or `missing`, by what lies in the folder."""
        if self.is_trained:
            return "done" if self.evaluation.exists() else "trained"
        return "started" if self.workdir.exists() else "missing"


def run_folder(table: Table, row: Row) -> str:
    """Name of the folder of a row's runs, which rows of other tables that train the same share.

    The preset, and where it is changed a digest of the changes; what they are is in the folder's config.json.
    """
    changes = list(row.overrides)
    if row.start_from:
        changes.append(f"start from {run_folder(table, table.row(row.start_from))}")
    digest = hashlib.sha256("\n".join(changes).encode()).hexdigest()[:10]
    return row.preset.replace("/", "-") + (f"-{digest}" if changes else "")


def units(
    table: Table,
    workdir: PathLike,
    *,
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (),
    per_run: int = 1,
    is_whole: bool = False,
) -> list[Unit]:
    """Returns the runs of a table in its order: for every row first all of the first seed, then of the next.

    Args:
        table: the table.
        workdir: folder of all runs.
        rows: names; empty for all but those whose data are not at hand.
        seeds: in place of the rows' own.
        per_run: seeds that one process trains together as replicas.
        is_whole: without `rows`, take also those whose data are not at hand.

    Raises:
        ValueError: an unknown row, a negative seed, or seeds trained together that are not consecutive.
    """
    if any(seed < 0 for seed in seeds):
        raise ValueError(f"seeds must be at least 0, found {list(seeds)}")
    chosen = [table.row(name) for name in rows] or [row for row in table.rows if is_whole or not row.missing]
    found = []
    for row in chosen:
        own = tuple(seeds) or row.seeds
        for place in range(0, len(own), per_run):
            group = own[place : place + per_run]
            if list(group) != list(range(group[0], group[0] + len(group))):
                raise ValueError(f"seeds that are trained together must follow one another, found {group}")
            last = f"seed_{group[0]}" + (f"-{group[-1]}" if len(group) > 1 else "")
            found.append((place, Unit(row, tuple(group), Path(workdir) / run_folder(table, row) / last)))
    return [unit for _, unit in sorted(found, key=lambda item: item[0])]


def start_folder(table: Table, unit: Unit) -> Path | None:
    """The run that a unit starts from, of the same seeds; None for fresh weights."""
    if not unit.row.start_from:
        return None
    source = table.row(unit.row.start_from)
    return unit.workdir.parent.parent / run_folder(table, source) / unit.workdir.name


def command(program: str, table: Table, unit: Unit, data_dir: str | None) -> list[str]:
    """The command line of a unit's training (`train`) or evaluation (`evaluate`)."""
    arguments = _train_arguments(table, unit) if program == "train" else _evaluate_arguments(unit)
    arguments += ([f"--data_dir={data_dir}"] if data_dir else []) + [f"--import={name}" for name in registry.imported]
    return [sys.executable, "-m", f"tfstruct.trainers.{program}", *arguments]


def _train_arguments(table: Table, unit: Unit) -> list[str]:
    command = [f"--preset={unit.row.preset}", f"--workdir={unit.workdir}", f"--seed={unit.seeds[0]}"]
    command += [f"--replicas={len(unit.seeds)}"] if len(unit.seeds) > 1 else []
    command += [f"--set={override}" for override in unit.row.overrides]
    source = start_folder(table, unit)
    return command + ([f"--set=training.initial_weights={source}"] if source else [])


def _evaluate_arguments(unit: Unit) -> list[str]:
    evaluation = unit.row.evaluation
    command = [f"--workdir={unit.workdir}", f"--split={evaluation.split}", f"--tag={evaluation.tag}", "--nopictures"]
    command += [f"--num_samples={evaluation.num_samples}", f"--images={evaluation.images}"]
    command += [f"--data={evaluation.data}"] if evaluation.data else []
    if evaluation.edges:
        command += ["--edges", f"--edge_samples={evaluation.num_samples}"]
        command += [f"--edge_images={evaluation.images}"] if evaluation.images else []
    return command + [f"--set={override}" for override in evaluation.overrides]


class _Job(NamedTuple):
    """A process at work.

    Attributes:
        unit: what it works on.
        program: `train` or `evaluate`.
        process: the process.
        place: which share of the processors it has.
        errors: what it writes to standard error; the log may be another process's too.
    """

    unit: Unit
    program: str
    process: subprocess.Popen
    place: int
    errors: BinaryIO

    @property
    def log(self) -> Path:
        """Where all that it prints stands."""
        return self.unit.workdir.with_name(f"{self.unit.workdir.name}.{self.program}.log")

    def take_errors(self) -> list[str]:
        """Adds what it wrote to standard error to its log, once it has ended; returns the lines."""
        with self.errors as errors, open(self.log, "ab") as log:
            errors.seek(0)
            text = errors.read()
            log.write(text)
        return text.decode(errors="replace").strip().splitlines()


class Runner:
    """Works through the units of a table with several processes at once.

    Every process gets an equal share of the processors, at most; with as many jobs as processors each runs on one,
    which on a CPU does more than one run on all of them. Training resumes where it stopped; an evaluation starts again.

    Args:
        table: the table.
        results_folder: where results are written, after every evaluation.
        jobs: number of processes.
        data_dir: folder of prepared data sets.
        deadline: time.monotonic() at which to stop; None for none.
        progress_seconds: between lines of progress.
        say: is told what happens.
    """

    def __init__(
        self,
        table: Table,
        results_folder: PathLike,
        *,
        jobs: int = 1,
        data_dir: str | None = None,
        deadline: float | None = None,
        progress_seconds: float = 60.0,
        say: Callable[[str], None] = print,
    ) -> None:
        if jobs < 1:
            raise ValueError(f"jobs must be at least 1, found {jobs}")
        self.table, self.results_folder, self.jobs = table, results_folder, jobs
        self.data_dir, self.deadline, self.progress_seconds, self.say = data_dir, deadline, progress_seconds, say
        self.failed: dict[str, str] = {}
        self._stop_requested = False

    def stop(self, *_: object) -> None:
        """Asks for an end as at the deadline; may be a signal handler."""
        self._stop_requested = True

    def _is_over(self) -> bool:
        return self._stop_requested or (self.deadline is not None and time.monotonic() >= self.deadline)

    def run(self, todo: Sequence[Unit]) -> bool:
        """Does what is to be done; returns whether all of it is done."""
        for unit in self._unrecorded(todo):
            if unit.state() == "done":
                self._record(unit)
        waiting = self._with_sources(self._unrecorded(todo))
        working: list[_Job] = []
        last_progress = time.monotonic()
        try:
            while (waiting or working) and not self._is_over():
                while len(working) < self.jobs and (unit := self._next(waiting, working)) is not None:
                    waiting.remove(unit)
                    working.append(self._start(unit, {job.place for job in working}))
                if not working:
                    break  # what is left waits for runs that failed
                time.sleep(_POLL_SECONDS)
                for job in [job for job in working if job.process.poll() is not None]:
                    working.remove(job)
                    waiting[:0] = self._finished(job)  # a result at hand before another training begins
                if time.monotonic() - last_progress >= self.progress_seconds:
                    last_progress = time.monotonic()
                    for job in working:
                        self.say(self._progress(job))
        finally:
            self._end(working)
        for unit in waiting:
            if unit.label not in self.failed and not self._is_over():
                self.failed[unit.label] = "waits for a run that failed"
        return not self._unrecorded(todo)

    def _with_sources(self, waiting: list[Unit]) -> list[Unit]:
        """Adds the runs that others start from and that are not at hand, recorded elsewhere or not asked for."""
        for unit in list(waiting):
            source = start_folder(self.table, unit)
            if source is None or unit.is_trained:
                continue
            needed = unit._replace(row=self.table.row(unit.row.start_from), workdir=source)
            if not needed.is_trained and all(other.workdir != source for other in waiting):
                self.say(f"{unit.label} starts from {needed.label}, which is trained first")
                waiting.insert(waiting.index(unit), needed)
        return waiting

    def _unrecorded(self, todo: Sequence[Unit]) -> list[Unit]:
        """The units of which the results lack a seed."""
        results = results_lib.read(self.results_folder, self.table)
        return [unit for unit in todo if not unit.is_recorded(results)]

    def _next(self, waiting: Sequence[Unit], working: Sequence[_Job]) -> Unit | None:
        """The next unit that can start: not one whose folder is at work, nor one whose start is not trained."""
        busy = {job.unit.workdir for job in working}
        for unit in waiting:
            source = start_folder(self.table, unit)
            is_ready = source is None or unit.is_trained or unit._replace(workdir=source).is_trained
            if is_ready and unit.workdir not in busy and unit.label not in self.failed:
                return unit
        return None

    def _start(self, unit: Unit, taken: set[int]) -> _Job:
        program = "evaluate" if unit.is_trained else "train"
        place = next(place for place in range(self.jobs) if place not in taken)
        unit.workdir.parent.mkdir(parents=True, exist_ok=True)
        log_path = unit.workdir.with_name(f"{unit.workdir.name}.{program}.log")
        self.say(f"{unit.label}: {program} from step {unit.step} of {unit.row.config().training.steps}, log {log_path}")
        errors = tempfile.TemporaryFile()
        with open(log_path, "ab") as log:
            process = subprocess.Popen(
                command(program, self.table, unit, self.data_dir),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for this process, which passes it on
                preexec_fn=_end_with_parent if _LIBC else None,
            )
        share_processors(process.pid, place, self.jobs)
        return _Job(unit, program, process, place, errors)

    def _finished(self, job: _Job) -> list[Unit]:
        """Takes up a process that ended; returns what of its unit is left to do."""
        lines = job.take_errors()
        if job.process.returncode:
            reason = lines[-1] if lines else f"exit status {job.process.returncode}"
            self.failed[job.unit.label] = reason
            self.say(f"{job.unit.label}: {job.program} FAILED ({job.process.returncode}): {reason}; see {job.log}")
            return []
        if job.program == "train":
            return [job.unit]
        if self._record(job.unit):
            self.say(f"{job.unit.label}: done")
        return []

    def _record(self, unit: Unit) -> bool:
        """Writes the results of a unit; one that cannot be read fails alone."""
        try:
            self.write([unit])
        except (OSError, ValueError, KeyError) as error:
            self.failed[unit.label] = str(error)
            self.say(f"{unit.label}: FAILED: {error}")
        return unit.label not in self.failed

    def write(self, done: Sequence[Unit]) -> None:
        """Takes evaluations up into the results, one writer at a time."""
        with exclusive(results_lib.paths(self.results_folder, self.table)[0].parent):
            old = results_lib.read(self.results_folder, self.table)
            merged = results_lib.merge(self.table, old, [(unit.row, unit.workdir) for unit in done])
            results_lib.write(self.results_folder, self.table, merged)

    def _progress(self, job: _Job) -> str:
        steps = job.unit.row.config().training.steps
        if job.program == "evaluate":
            return f"{job.unit.label}: evaluating, K={job.unit.row.evaluation.num_samples}"
        path = job.unit.workdir / METRICS_NAME
        rows = read_rows(path) if path.exists() else []
        if len(rows) < 2:
            return f"{job.unit.label}: compiling"
        first, last = rows[max(0, len(rows) - 20)], rows[-1]
        speed = (last["step"] - first["step"]) / max(last["seconds"] - first["seconds"], 1e-9)
        left = (steps - last["step"]) / speed / 60.0
        return f"{job.unit.label}: step {last['step']} of {steps}, {speed:.1f} steps/s, {left:.0f} min left"

    def _end(self, working: Sequence[_Job]) -> None:
        """Lets the processes save and end."""
        for job in working:
            self.say(f"{job.unit.label}: stopping, once the steps under way are saved; at most a few minutes")
            job.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        for job in working:
            try:
                job.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                job.process.kill()
                job.process.wait()
            job.take_errors()


def _end_with_parent() -> None:
    """In a child: asks Linux for SIGTERM when the parent dies, even of `kill -9`, so that no trainer is left behind."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def share_processors(pid: int, place: int, jobs: int) -> None:
    """Confines a process to its share of the processors that this one may use, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        return
    mine = sorted(os.sched_getaffinity(0))
    share = mine[place::jobs]
    try:
        os.sched_setaffinity(pid, share or [mine[place % len(mine)]])
    except ProcessLookupError:
        pass  # it has ended already


def status(todo: Sequence[Unit], results: results_lib.Results) -> Iterator[str]:
    """Yields a line for every row: how many seeds are done, trained, started and missing."""
    by_row: dict[str, list[Unit]] = {}
    for unit in todo:
        by_row.setdefault(unit.row.name, []).append(unit)
    width = max((len(name) for name in by_row), default=0)
    for name, own in by_row.items():
        words = [f"no data: {own[0].row.missing}"] if own[0].row.missing else []
        for unit in own:
            state = "done" if unit.is_recorded(results) else unit.state()
            if state == "started":
                state = f"step {unit.step} of {unit.row.config().training.steps}"
            words.append(f"{'-'.join(map(str, unit.seeds))} {state}")
        yield f"{name:{width}}  {'; '.join(words)}"

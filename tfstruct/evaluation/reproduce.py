"""Fills a table: trains and evaluates the runs that it lacks, as processes that resume, within given hours."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tfstruct.evaluation import results as results_lib
from tfstruct.evaluation.units import Unit, command, start_folder
from tfstruct.files import PathLike, exclusive
from tfstruct.models.tables import Table
from tfstruct.training.logging import METRICS_NAME, read_rows

POLL_SECONDS = 0.5
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_GRACE_SECONDS = 600.0  # a trainer saves at the end of a call, an evaluation is simply lost


class _Job(NamedTuple):
    """A process at work.

    Attributes:
        unit: what it works on.
        program: `train` or `evaluate`.
        process: the process.
        place: which share of the processors it has.
        errors: what it writes to standard error; the log may be another process's too.
        first_step: of the checkpoint that it starts from.
    """

    unit: Unit
    program: str
    process: subprocess.Popen
    place: int
    errors: BinaryIO
    first_step: int

    @property
    def log(self) -> Path:
        """Where all that it prints stands."""
        return self.unit.workdir.with_name(f"{self.unit.workdir.name}.{self.program}.log")

    def take_errors(self) -> str:
        """Adds what it wrote to standard error to its log, once it has ended; returns its last message."""
        with self.errors as errors, open(self.log, "ab") as log:
            errors.seek(0)
            text = errors.read()
            log.write(text)
        lines = text.decode(errors="replace").strip().splitlines()
        first = max((place for place, line in enumerate(lines) if line[:1].strip()), default=0)
        return " ".join(line.strip() for line in lines[first:])


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
        self._stop_requested, self.stopped_by = False, 0

    def stop(self, number: int = 0, *_: object) -> None:
        """Asks for an end as at the deadline; may be a signal handler, whose signal `stopped_by` then is."""
        self._stop_requested, self.stopped_by = True, number

    def _is_over(self) -> bool:
        return self._stop_requested or (self.deadline is not None and time.monotonic() >= self.deadline)

    def run(self, todo: Sequence[Unit]) -> bool:
        """Does what is to be done; returns whether all of it is done.

        Raises:
            OSError: results cannot be written; nothing is then trained.
        """
        with exclusive(results_lib.paths(self.results_folder, self.table)[0].parent):
            pass
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
                time.sleep(POLL_SECONDS)
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
        return _Job(unit, program, process, place, errors, unit.step)

    def _finished(self, job: _Job) -> list[Unit]:
        """Takes up a process that ended; returns what of its unit is left to do."""
        message = job.take_errors()
        if job.process.returncode:
            reason = message or f"exit status {job.process.returncode}"
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
        rows = [row for row in rows if row["step"] > job.first_step][-20:]  # of this process
        if len(rows) < 2:
            return f"{job.unit.label}: compiling"
        first, last = rows[0], rows[-1]
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

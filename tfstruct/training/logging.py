"""The log of a training run: rows in `metrics.jsonl`, TensorBoard scalars, and a line or bar for the eye.

Import it by its full name. Standard `logging` is not shadowed, because imports are absolute and nothing puts
this folder on the path.
"""

import json
import os
import pathlib
import sys
import time
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import auto as tqdm

from tfstruct import progress
from tfstruct.files import PathLike, replacing, to_json, writing

METRICS_NAME = "metrics.jsonl"
_SECONDS_BETWEEN_LINES = 10.0

Metrics = Mapping[str, Any]
Row = dict[str, Any]


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return float(value) if isinstance(value, str) else value


def read_rows(path: PathLike) -> list[Row]:
    """Reads a `metrics.jsonl`.

    Lines that are not a row are left out: silently if it is the last one, which a crash may have torn, and
    else with a RuntimeWarning that gives the line's number.

    Args:
        path: the file.

    Returns:
        One dict per row, in the order of the file: `step` (int), `seconds` (of training, over all restarts)
        and metrics such as `train/elbo`, each a float or, with more than one replica, a list of them. NaN and
        infinities are floats again.

    Raises:
        OSError: the file cannot be read.
    """
    rows = []
    lines = pathlib.Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append({"step": int(row.pop("step")), **{name: _from_json(row[name]) for name in row}})
        except (ValueError, TypeError, KeyError, AttributeError):
            if number < len(lines):
                warnings.warn(f"{path}, line {number}: not a row of metrics", RuntimeWarning, stacklevel=2)
    return rows


class RunLog:
    """Writes what a training run has to tell, as a context manager.

    - `workdir/metrics.jsonl`: one strict JSON object per row, with `step`, `seconds` and the metrics under
      `train/<name>` and `validation/<name>`. Each row reaches the operating system at once, so a killed
      trainer loses none. NaN and infinities are the strings "NaN", "Infinity" and "-Infinity".
    - `workdir/tensorboard`: the same numbers as scalars, `train/<name>`; with more than one replica that is
      the mean and each replica has `replica_<r>/train/<name>`.
    - a progress bar if both standard output and standard error are terminals; else plain lines on standard
      output, namely the first, the last and at most one each 10 seconds between them.

    A resumed run first drops the rows after the checkpoint it resumes from, which it is about to write again.
    A run that starts at step 0 starts an empty file.

    Args:
        workdir: folder of the run; created if missing.
        num_replicas: R, number of independent models trained together.
        total_steps: step at which the run ends.
        resume_step: step of the checkpoint the run goes on from, 0 for a new run.
        headline: names of the training metrics shown in the bar or line; if the run has none of them, its
            first one is shown.
        clock: seconds, never falling back; for tests.

    Raises:
        OSError: a file cannot be written.

    Examples:
        >>> import tempfile
        >>> workdir = tempfile.mkdtemp()
        >>> with RunLog(workdir, num_replicas=2, total_steps=10) as log:
        ...     log.log(10, {"elbo": np.array([-98.0, -100.0])})
        step 10/10  elbo -99.00
        >>> read_rows(workdir + "/metrics.jsonl")[0]["train/elbo"]
        [-98.0, -100.0]
    """

    def __init__(
        self,
        workdir: PathLike,
        *,
        num_replicas: int = 1,
        total_steps: int,
        resume_step: int = 0,
        headline: Sequence[str] = ("elbo", "rate"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_replicas = num_replicas
        self._total_steps = total_steps
        self._headline = tuple(headline)
        self._clock = clock
        self._path = path = pathlib.Path(workdir) / METRICS_NAME
        kept = _drop_rows_after(path, resume_step)
        # The clock goes on where the kept rows end, so `seconds` is the training time over all restarts.
        self._start = clock() - (kept[-1].get("seconds", 0.0) if kept else 0.0)
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # a row at a time
        self._writer = tf.summary.create_file_writer(str(path.parent / "tensorboard"))
        self._bar = None
        if sys.stdout.isatty() and sys.stderr.isatty():
            self._bar = tqdm.tqdm(total=total_steps, initial=resume_step, unit="step", dynamic_ncols=True)
        self._shown_step, self._shown_time = resume_step, None
        self._waiting: tuple[int, str] | None = None

    def log(self, step: int, train: Metrics, validation: Metrics | None = None) -> None:
        """Records one row.

        Args:
            step: number of optimiser updates done.
            train: training metrics by name, each a scalar or of shape [R, ...]; what is more than a number per
                replica goes to the file only.
            validation: validation metrics in the same form, where there are any at this step.

        Raises:
            ValueError: a metric of another shape.
        """
        step = int(step)
        groups = {"train": train, "validation": validation or {}}
        values = {
            f"{group}/{name}": self._checked(f"{group}/{name}", value)
            for group, metrics in groups.items()
            for name, value in metrics.items()
        }
        row: Row = {"step": step, "seconds": round(self._clock() - self._start, 3)}
        for name, value in values.items():
            row[name] = value.tolist()
        with writing(self._path):
            self._file.write(to_json(row) + "\n")
        with writing(self._path.parent / "tensorboard", tf.errors.OpError), self._writer.as_default():
            for name, value in values.items():
                if value.ndim > (self._num_replicas > 1):
                    continue  # TensorBoard shows scalars; vectors are for the pictures drawn from the file
                tf.summary.scalar(name, np.mean(value), step=step)
                for replica, item in enumerate(value if value.ndim else ()):
                    tf.summary.scalar(f"replica_{replica}/{name}", item, step=step)
        self._show(step, values)

    def compiling(self) -> None:
        """Says that what follows compiles; the bar's speed is measured from the next row on."""
        if self._bar is None:
            self.message("compiling, once")
        else:
            self._bar.set_description("compiling, once")

    def message(self, text: str) -> None:
        """Prints a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.write(text)
            return
        try:
            print(text, flush=True)
        except OSError:  # whoever read it has gone, or the terminal; the training has not
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def rewind(self, step: int) -> None:
        """Forgets the rows after a step, from which the run goes on."""
        self._file.close()
        _drop_rows_after(self._path, step)
        self._file = open(self._path, "a", encoding="utf-8", buffering=1)
        self._shown_step = min(self._shown_step, step)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Shows the last step if it was not shown yet and closes the files; a second call does nothing."""
        if self._bar is not None:
            self._bar.close()
        elif self._waiting is not None:
            self._print_line(*self._waiting)
        self._writer.close()
        self._file.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, name: str, value: Any) -> np.ndarray:
        """Returns the metric in float64 with shape [...], or [R, ...] for R > 1."""
        value = np.asarray(value).astype(np.float64)
        if self._num_replicas == 1 and value.shape[:1] == (1,):
            return value[0, ...]
        if value.ndim and (self._num_replicas == 1 or value.shape[0] != self._num_replicas):
            expected = f"[{self._num_replicas}, ...] (one row per replica)"
            raise ValueError(f"metric {name} must have shape [] or {expected}, found {list(value.shape)}")
        return value

    def _show(self, step: int, values: dict[str, np.ndarray]) -> None:
        names = [name for name in self._headline if f"train/{name}" in values]
        names = names or [name.removeprefix("train/") for name in values if name.startswith("train/")][:1]
        shown = [(name, values[f"train/{name}"]) for name in names]
        of_validation = [name for name in (*names[:1], "log_likelihood") if f"validation/{name}" in values][:1]
        shown += [(f"validation {name.replace('_', '-')}", values[f"validation/{name}"]) for name in of_validation]
        text = "  ".join(f"{name} {np.mean(value):.2f}" for name, value in shown)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            if self._bar.desc:  # so far it compiled
                self._bar.set_description("", refresh=False)
                progress.restart(self._bar, step)
            else:
                self._bar.update(step - self._bar.n)
            return
        self._waiting = (step, text)
        waited = _SECONDS_BETWEEN_LINES if self._shown_time is None else self._clock() - self._shown_time
        if step >= self._total_steps or waited >= _SECONDS_BETWEEN_LINES:
            self._print_line(step, text)

    def _print_line(self, step: int, text: str) -> None:
        now = self._clock()
        parts = [f"step {step}/{self._total_steps}", text]
        # The first line has no rate: most of the time before it went into compiling.
        if self._shown_time is not None and now > self._shown_time:
            rate = (step - self._shown_step) / (now - self._shown_time)
            parts.append(f"{rate:.{0 if rate >= 10 else 2}f} steps/s")
        self.message("  ".join(part for part in parts if part))
        self._shown_step, self._shown_time, self._waiting = step, now, None


def _drop_rows_after(path: pathlib.Path, resume_step: int) -> list[Row]:
    """Rewrites the file of metrics without the rows after a step, and returns the rows that are left."""
    rows = read_rows(path) if path.exists() and resume_step > 0 else []
    kept = [row for row in rows if row["step"] <= resume_step]
    with replacing(path) as file:
        for row in kept:
            file.write(to_json(row).encode() + b"\n")
    return kept

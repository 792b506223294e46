"""How far a long computation is: a bar at a terminal, else a line now and then. Programs switch it on by `show`."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeVar, cast

import numpy as np
from tqdm import auto as tqdm

_SECONDS_BETWEEN_LINES = 10.0
_is_shown = False
_num_open = 0

T = TypeVar("T")


def show(is_shown: bool = True) -> None:
    """Shows the progress of all that follows, on standard error, or no longer does."""
    global _is_shown
    _is_shown = is_shown


def message(text: str) -> None:
    """Writes what is done next to a terminal, where progress is shown."""
    if _is_shown and sys.stderr.isatty():
        tqdm.tqdm.write(text, file=sys.stderr)


def restart(bar: Any, done: int) -> None:
    """Sets a tqdm bar to a count from which its speed is measured: what came before was compiling."""
    bar.n = bar.initial = bar.last_print_n = done
    bar.start_t = bar.last_print_t = time.time()
    bar.refresh()


class Progress:
    """Counts what is done of a computation whose first part includes compiling, as a context manager.

    At a terminal it is a bar that says `compiling, once` until the first part is done, and has no estimate of the time
    left before the second. Elsewhere it is a line on standard error after 10 seconds, and at most one each 10 seconds.
    Work within this work shows nothing. Without `show` it is silent.

    Args:
        what: what is done, such as `evaluating`.
        total: of units.
        unit: what is counted.
        initial: how much was done before.
        compiles: whether the first part does.
        clock: seconds, never falling back; for tests.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        *,
        initial: int = 0,
        compiles: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first = f"{what}, compiling, once" if compiles else what
        self._what, self._total, self._unit, self._clock = what, total, unit, clock
        self._initial = self._done = initial
        self._shown_time, self._bar, self._is_outer = clock(), None, False

    def update(self, count: int) -> None:
        """Adds to what is done."""
        is_first, self._done = self._done == self._initial, self._done + count
        if self._bar is not None and is_first:
            self._bar.set_description(self._what, refresh=False)
            restart(self._bar, self._done)
        elif self._bar is not None:
            self._bar.update(count)
        elif self._is_outer and _is_shown and self._clock() - self._shown_time >= _SECONDS_BETWEEN_LINES:
            print(f"{self._what}: {self._done} of {self._total} {self._unit}s", file=sys.stderr, flush=True)
            self._shown_time = self._clock()

    def __enter__(self) -> Self:
        global _num_open
        self._is_outer, _num_open = not _num_open, _num_open + 1
        if self._is_outer and _is_shown and sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                total=self._total,
                initial=self._initial,
                desc=self._first,
                unit=self._unit,
                dynamic_ncols=True,
                leave=False,
            )
        return self

    def __exit__(self, *exception: object) -> None:
        global _num_open
        _num_open -= 1
        if self._bar is not None:
            self._bar.close()


def track(values: Sequence[T], unit: str, what: str) -> Iterator[T]:
    """Yields values and shows how many of them are done with.

    Args:
        values: of the computation.
        unit: what a value is.
        what: what is done.
    """
    if len(values) < 2:
        yield from values
        return
    with Progress(what, len(values), unit) as progress:
        for value in values:
            yield value
            progress.update(1)


@contextlib.contextmanager
def watched(rows: np.ndarray, what: str) -> Iterator[np.ndarray]:
    """Gives rows [n, ...] that show how far they have been read, for a function that takes slice after slice of them.

    Only the number of rows, their shape and slices of them may be asked for.
    """
    with Progress(what, len(rows), "row") as progress:
        yield cast("np.ndarray", _Watched(rows, progress))


class _Watched:
    def __init__(self, rows: np.ndarray, progress: Progress) -> None:
        self._rows, self._progress, self._read = rows, progress, 0
        self.shape = rows.shape

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice) -> np.ndarray:
        if self._read:  # whoever reads on has done with what was read before
            self._progress.update(self._read)
        part = self._rows[index]
        self._read = len(part)
        return part

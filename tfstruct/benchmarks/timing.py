"""Ways of doing the same work, timed in turn in one process."""

import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfstruct.benchmarks.floor import Cost, Machine

Run = Callable[[], object]
_STATUS = pathlib.Path("/proc/self/status")


class Way(NamedTuple):
    """One way of doing the work.

    Attributes:
        make: makes what does one round of it, and returns when it is done.
        work: units of work in a round, such as training steps.
        cost: of a unit, where it is known.
    """

    make: Callable[[], Run]
    work: float
    cost: Cost | None = None


class Timing(NamedTuple):
    """What was measured of one way.

    Attributes:
        work: units in a round.
        seconds: of each round.
        compile_seconds: of the first round, which compiles, and of making it.
        memory_bytes: how far the memory of the process grew meanwhile at most, or, on a GPU, what was allocated
            there at most; None where it is not known.
        cost: of a unit; None where that is not known.
    """

    work: float
    seconds: tuple[float, ...]
    compile_seconds: float
    memory_bytes: int | None
    cost: Cost | None

    @property
    def rates(self) -> np.ndarray:
        """Units a second, for each round."""
        return self.work / np.array(self.seconds)

    def row(self, first: "Timing", machine: Machine) -> dict[str, Any]:
        """Medians and ranges, of the ratios to the first way in the same round too, and the most that is possible."""
        rates = self.rates
        ratios = rates / first.rates
        least = None if self.cost is None else machine.least_seconds(self.cost)
        return {
            "per_second": float(np.median(rates)),
            "slowest": float(np.min(rates)),
            "fastest": float(np.max(rates)),
            "ratio": float(np.median(ratios)),
            "least_ratio": float(np.min(ratios)),
            "greatest_ratio": float(np.max(ratios)),
            "compile_seconds": self.compile_seconds,
            "memory_bytes": self.memory_bytes,
            "most_per_second": None if least is None else 1.0 / least,
            "share_of_most": None if least is None else float(np.median(rates)) * least,
        }


def take_turns(ways: Mapping[str, Way], *, rounds: int, say: Callable[[str], None] = print) -> dict[str, Timing]:
    """Makes every way, runs a round of each that compiles, and then rounds of all in turn.

    What disturbs the machine meanwhile disturbs all, so that ratios of the same round mean something.

    Args:
        ways: by name.
        rounds: that are timed, at least 1.
        say: is told of each way that is ready.
    """
    runs: dict[str, Run] = {}
    compiling: dict[str, float] = {}
    memory: dict[str, int | None] = {}
    for name, way in ways.items():
        start, before = time.perf_counter(), _begin_memory()
        runs[name] = way.make()
        runs[name]()
        compiling[name], memory[name] = time.perf_counter() - start, _grown_memory(before)
        say(f"{name:46} compiled, {compiling[name]:.1f} s")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Timing(
            way.work,
            tuple(seconds[name]),
            compiling[name],
            memory[name],
            way.cost,
        )
        for name, way in ways.items()
    }


def table(rows: Mapping[str, Mapping[str, Any]], unit: str) -> list[str]:
    """Lines for people: one for each way, of `Timing.row`."""
    lines = []
    for name, row in rows.items():
        line = (
            f"{name:46} {row['per_second']:9.1f} {unit}/s ({row['slowest']:.1f} to {row['fastest']:.1f})   "
            f"ratio {row['ratio']:.2f} ({row['least_ratio']:.2f} to {row['greatest_ratio']:.2f})"
        )
        if row["share_of_most"] is not None:
            line += f"   {row['share_of_most']:.0%} of the most"
        if row["memory_bytes"] is not None:
            line += f"   {row['memory_bytes'] / 2**20:,.0f} MiB"
        lines.append(line)
    return lines


def exponent(values: Sequence[float], timings: Sequence[Timing]) -> tuple[float, float]:
    """Fits seconds of a unit = c value^a by least squares of the logarithms of medians; returns a, its standard error.

    The error is that of the fit; with two values there is none (NaN).
    """
    x = np.log(np.asarray(values, float))
    y = np.log([np.median(timing.seconds) / timing.work for timing in timings])
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - slope * centred
    degrees = len(x) - 2
    error = np.sqrt(rest @ rest / degrees / (centred @ centred)) if degrees > 0 else np.nan
    return slope, float(error)


def _gpu() -> str | None:
    import tensorflow as tf

    return next((device.name.removeprefix("/device:") for device in tf.config.list_logical_devices("GPU")), None)


def _status(name: str) -> int:
    """A number of bytes that Linux says of this process."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return 1_024 * int(line.split()[1])


def _begin_memory() -> int | None:
    """Begins to look for the largest use of memory; returns that of now."""
    import tensorflow as tf

    if gpu := _gpu():
        tf.config.experimental.reset_memory_stats(gpu)
        return 0
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the largest resident set is that of now
        return _status("VmRSS:")
    except OSError:
        return None


def _grown_memory(before: int | None) -> int | None:
    import tensorflow as tf

    if gpu := _gpu():
        return int(tf.config.experimental.get_memory_info(gpu)["peak"])
    return None if before is None else max(_status("VmHWM:") - before, 0)

"""Piecewise schedules over fractions of training, computed on the device."""

import dataclasses
import math
from typing import Any

import tensorflow as tf

INTERPOLATIONS = ("linear", "geometric", "cosine", "constant")


def course(value: float, *later: tuple[float, float], interpolation: str = "linear") -> dict[str, Any]:
    """Returns a schedule as config data: a first value, then (fraction, value) of every later knot."""
    knots = ((0.0, value), *later)
    return {
        "fractions": tuple(float(fraction) for fraction, _ in knots),
        "values": tuple(float(value) for _, value in knots),
        "interpolation": interpolation,
    }


def changes(name: str, schedule: dict[str, Any]) -> dict[str, Any]:
    """Returns a schedule as changes of the settings below a dotted name."""
    return {f"{name}.{key}": value for key, value in schedule.items()}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A quantity given at knots of the training's course.

    Attributes:
        fractions: increasing, the first 0, the last at most 1.
        values: the value at each knot; before the first and after the last knot it stays what it is there.
        interpolation: between knots `linear`, `geometric` (linear in the logarithm), `cosine` (half a period, flat at
            both knots) or `constant` (the value of the knot before).
        total_steps: number of steps that the fraction 1 stands for.
    """

    fractions: tuple[float, ...]
    values: tuple[float, ...]
    interpolation: str
    total_steps: int

    def __post_init__(self) -> None:
        if len(self.fractions) != len(self.values) or not self.values:
            raise ValueError(f"a schedule needs one value for each fraction, found {self.fractions}, {self.values}")
        if (
            self.fractions[0] != 0
            or self.fractions[-1] > 1
            or any(later <= earlier for earlier, later in zip(self.fractions, self.fractions[1:], strict=False))
        ):
            raise ValueError(f"fractions must rise from 0 to at most 1, found {self.fractions}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, found {self.interpolation!r}")
        if self.interpolation == "geometric" and min(self.values) <= 0:
            raise ValueError(f"a geometric schedule needs positive values, found {self.values}")
        if self.total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, found {self.total_steps}")

    @classmethod
    def from_config(cls, config: Any, total_steps: int) -> "Schedule":
        """Reads {fractions, values, interpolation} from a config node."""
        return cls(tuple(config["fractions"]), tuple(config["values"]), config["interpolation"], int(total_steps))

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the float32 value at an integer step (scalar)."""
        progress = tf.cast(step, tf.float32) / float(self.total_steps)
        values = tf.constant(self.values, tf.float32)
        if self.interpolation == "geometric":
            values = tf.math.log(values)
        result = values[0]
        # A sum over segments has no data-dependent index, which keeps the training step one fused program.
        for index in range(len(self.values) - 1):
            start, end = self.fractions[index], self.fractions[index + 1]
            if self.interpolation == "constant":
                # Integers: the compiled division is by a reciprocal and may be off by one rounding, hence one step.
                weight = tf.cast(tf.cast(step, tf.int64) >= math.ceil(round(end * self.total_steps, 6)), tf.float32)
            else:
                weight = tf.clip_by_value((progress - start) / (end - start), 0.0, 1.0)
            if self.interpolation == "cosine":
                weight = 0.5 - 0.5 * tf.cos(math.pi * weight)
            result += weight * (values[index + 1] - values[index])
        return tf.exp(result) if self.interpolation == "geometric" else result

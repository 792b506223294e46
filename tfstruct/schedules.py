"""Piecewise schedules over fractions of training, computed on the device."""

import dataclasses
import math
from typing import Literal, get_args

import tensorflow as tf
from pydantic import Field, model_validator

from tfstruct.settings import Fraction, Settings

Interpolation = Literal["linear", "geometric", "cosine", "constant"]


class Course(Settings):
    """A schedule as settings; see Schedule for what they mean."""

    fractions: tuple[Fraction, ...] = Field(default=(0.0,), description="of training, at which values are given")
    values: tuple[float, ...] = Field(default=(1.0,), description="at those fractions")
    interpolation: Interpolation = Field(default="linear", description="between them")

    @model_validator(mode="after")
    def _check(self) -> "Course":
        self.over(1)
        return self

    def over(self, total_steps: int) -> "Schedule":
        """Returns the schedule of so many steps."""
        return Schedule(self.fractions, self.values, self.interpolation, total_steps)


def course(value: float, *later: tuple[float, float], interpolation: Interpolation = "linear") -> Course:
    """Returns a schedule as settings: a first value, then (fraction, value) of every later knot."""
    fractions, values = zip((0.0, value), *later, strict=True)
    return Course(fractions=fractions, values=values, interpolation=interpolation)


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
        if self.interpolation not in get_args(Interpolation):
            names = ", ".join(get_args(Interpolation))
            raise ValueError(f"interpolation must be one of {names}, found {self.interpolation!r}")
        if self.interpolation == "geometric" and min(self.values) <= 0:
            raise ValueError(f"a geometric schedule needs positive values, found {self.values}")
        if self.total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, found {self.total_steps}")

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

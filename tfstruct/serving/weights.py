"""Weights as a bundle stores them: in full, in half precision, or as 8-bit integers; computation is float32 in all."""

import contextlib
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf

from tfstruct.functional import Functional

DTYPES = ("float32", "float16", "int8")
#: the last: `int8` for the weights of the posterior alone, which decide how tight a bound is, `float16` for the others
CHOICES = (*DTYPES, "int8_posterior")
#: most weights of one output that share a scale (one scale a column costs `graph_vae/mnist` five times the likelihood)
_GROUP = 64
_LARGEST = 127


class StoredWeight(tf.Module):
    """One weight as it is stored.

    As `int8`, a matrix [..., n, m] of n >= 64 inputs is cut into equal groups of at most 64 inputs, and each group of
    each output is int8 numbers times a bfloat16 scale: some 8.3 bits a weight. What has fewer inputs (biases, scales,
    gates) is float16.

    Args:
        values: the weight, float32.
        dtype: one of DTYPES.
        name: of the variables.

    Raises:
        ValueError: values that are not finite in the dtype.
    """

    def __init__(self, values: np.ndarray, dtype: str, name: str) -> None:
        super().__init__(name=None)
        self._shape = tuple(values.shape)
        self.scales = None
        if dtype == "int8" and values.ndim >= 2 and values.shape[-2] >= _GROUP:
            groups = _groups(values)
            # As wide a range as float32, and rounding again changes nothing.
            scales = _cast(np.abs(groups).max(axis=-2, keepdims=True) / _LARGEST, ml_dtypes.bfloat16, name)
            self.scales = tf.Variable(scales, trainable=False, name=f"{name}.scales")
            scales = scales.astype(np.float32)
            stored = np.rint(groups / np.where(scales > 0.0, scales, 1.0))
            stored = np.clip(stored, -_LARGEST, _LARGEST).astype(np.int8)
        else:
            stored = _cast(values, "float16" if dtype == "int8" else dtype, name)
        self.values = tf.Variable(stored, trainable=False, name=name)

    def value(self) -> tf.Tensor:
        """Returns the weight, float32."""
        return unpacked(self.values, self.scales, self._shape)


def unpacked(values: Any, scales: Any | None, shape: tuple[int, ...]) -> tf.Tensor:
    """Returns a weight of a shape, float32, from what a StoredWeight keeps: values, and scales where it has any.

    Raises:
        ValueError: values or scales of another shape than such a weight has.
    """
    values = tf.cast(tf.convert_to_tensor(values), tf.float32)
    expected = shape if scales is None else _grouped(shape)
    if values.shape != expected:
        raise ValueError(f"has shape {list(values.shape)}, expected {list(expected)}")
    if scales is None:
        return values
    factors = tf.cast(tf.convert_to_tensor(scales), tf.float32)
    if factors.shape != (*expected[:-2], 1, expected[-1]):
        raise ValueError(f"has scales {list(factors.shape)} for a weight {list(shape)}")
    return tf.reshape(values * factors, [*shape[:-2], -1, shape[-1]])[..., : shape[-2], :]


def store(functional: Functional, choice: str) -> list[StoredWeight]:
    """Returns the current weights of a model as they are stored: its parameters, then its statistics.

    The statistics (moving averages) stay float32: they are few, and variances may lie beyond what float16 holds.

    Args:
        functional: of the model.
        choice: one of CHOICES.

    Raises:
        ValueError: no such choice, or weights that are not finite in it.
    """
    if choice not in CHOICES:
        raise ValueError(f"weights_dtype must be one of {', '.join(CHOICES)}, found {choice!r}")
    own, other = ("int8", "float16") if choice == "int8_posterior" else (choice, choice)
    posterior = {id(variable) for variable in functional.model.needs.posterior}
    dtypes = [own if id(variable) in posterior else other for variable in functional.parameters.variables]
    dtypes += ["float32"] * len(functional.statistics.variables)
    variables = functional.parameters.variables + functional.statistics.variables
    return [
        StoredWeight(variable.numpy(), dtype, variable.path.replace("/", "."))
        for variable, dtype in zip(variables, dtypes, strict=True)
    ]


@contextlib.contextmanager
def rounded(functional: Functional, choice: str) -> Iterator[None]:
    """A context in which a model has its parameters as they are stored; afterwards all its variables are as before."""
    kept = [variable.numpy() for variable in functional.model.variables]
    parameters = functional.parameters
    try:
        stored = store(functional, choice)[: len(parameters.variables)]
        parameters.assign(parameters.join([weight.value() for weight in stored]))
        yield
    finally:
        for variable, values in zip(functional.model.variables, kept, strict=True):
            variable.assign(values)


def _groups(values: np.ndarray) -> np.ndarray:
    """Cuts [..., n, m] into groups [..., g, n / g, m] of at most 64, filled up with zeros."""
    shape = _grouped(values.shape)
    missing = shape[-3] * shape[-2] - values.shape[-2]
    return np.pad(values, [(0, 0)] * (values.ndim - 2) + [(0, missing), (0, 0)]).reshape(shape)


def _grouped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of those groups."""
    *before, inputs, outputs = shape
    size = -(-inputs // -(-inputs // _GROUP))
    return (*before, -(-inputs // size), size, outputs)


def _cast(values: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if not np.isfinite(cast).all():
        raise ValueError(f"{name} holds values that are not finite in {cast.dtype}; nothing was exported")
    return cast

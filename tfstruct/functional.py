"""Keras models as pure functions of flat vectors of weights."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf


class VectorLayout:
    """How a list of Keras variables lies in one vector.

    One vector means one fused optimiser kernel instead of one per weight. Gradients are taken with respect to the
    pieces that `split` returns, not through slices of the vector, which XLA turns into one padded add per piece.
    """

    def __init__(self, variables: Sequence[keras.Variable]) -> None:
        self.variables = list(variables)
        self.paths = [variable.path for variable in self.variables]
        if len(set(self.paths)) != len(self.paths):
            raise ValueError("two weights of the model have the same path")
        self.shapes = [tuple(variable.shape) for variable in self.variables]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        self.size = sum(self.sizes)

    def split(self, vector: tf.Tensor) -> list[tf.Tensor]:
        """Cuts a vector [size] into tensors of the variables' shapes."""
        if not self.sizes:
            return []
        pieces = tf.split(vector, self.sizes)
        return [tf.reshape(piece, shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def join(self, pieces: Sequence[tf.Tensor]) -> tf.Tensor:
        """Concatenates tensors of the variables' shapes into a vector [size]."""
        if not self.sizes:
            return tf.zeros([0])
        return tf.concat([tf.reshape(piece, [-1]) for piece in pieces], axis=0)

    def place(self, variable: keras.Variable) -> slice:
        """Returns where a variable lies in the vector; raises ValueError if it does not."""
        if variable.path not in self.paths:
            raise ValueError(f"{variable.path} is none of the {len(self.paths)} variables of this vector")
        index = self.paths.index(variable.path)
        start = sum(self.sizes[:index])
        return slice(start, start + self.sizes[index])

    def values(self) -> np.ndarray:
        """Returns the variables' current values as a vector [size]."""
        if not self.sizes:
            return np.zeros([0], np.float32)
        return np.concatenate([variable.numpy().reshape(-1) for variable in self.variables])

    def assign(self, vector: np.ndarray) -> None:
        """Writes a vector [size] into the variables."""
        vector, start = np.asarray(vector), 0
        if vector.shape != (self.size,):
            raise ValueError(f"expected a vector of {self.size} values, found shape {list(vector.shape)}")
        for variable, shape, size in zip(self.variables, self.shapes, self.sizes, strict=True):
            variable.assign(vector[start : start + size].reshape(shape))
            start += size

    def named(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Cuts a vector [size] into arrays by variable path."""
        return {path: np.asarray(piece) for path, piece in zip(self.paths, self.split(vector), strict=True)}

    def describe(self) -> list[list]:
        """Returns [path, shape] of each variable, as stored in checkpoints."""
        return [[path, list(shape)] for path, shape in zip(self.paths, self.shapes, strict=True)]


class Functional:
    """A Keras model as a pure function: `bind` makes its layers compute with given tensors."""

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.parameters = VectorLayout(model.trainable_weights)
        self.statistics = VectorLayout(model.non_trainable_weights)

    @property
    def layout(self) -> dict[str, list[list]]:
        """Path and shape of each weight in `parameters` and `statistics`, by those names."""
        return {"parameters": self.parameters.describe(), "statistics": self.statistics.describe()}

    @contextlib.contextmanager
    def bind(self, pieces: Sequence[tf.Tensor], statistics: tf.Tensor) -> Iterator[keras.StatelessScope]:
        """Inside, the model's weights are `pieces` (as cut by `parameters.split`) and `statistics` [S]."""
        mapping = [
            *zip(self.parameters.variables, pieces, strict=True),
            *zip(self.statistics.variables, self.statistics.split(statistics), strict=True),
        ]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            yield scope

    def new_statistics(self, scope: keras.StatelessScope) -> tf.Tensor:
        """Returns the statistics as the layers left them in a scope, [S]."""
        return self.statistics.join([scope.get_current_value(variable) for variable in self.statistics.variables])

    def assign(self, parameters: np.ndarray, statistics: np.ndarray) -> None:
        """Writes parameters [P] and statistics [S] into the Keras variables."""
        self.parameters.assign(parameters)
        self.statistics.assign(statistics)

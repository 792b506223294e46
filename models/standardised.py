"""Systems of standardised data: any system, with values brought to where its likelihood has its mean.

The mean of the Gaussian likelihood lies in (0, 1). Over the training rows each standardised value has mean 1/2 and
standard deviation 1/6, so that means reach three standard deviations to either side.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import keras
import numpy as np
import tensorflow as tf

from tfstruct.data.support import REAL, mean_and_std
from tfstruct.inference.objectives import Composition, Draws, ImportanceTerms
from tfstruct.models.config import Evaluation
from tfstruct.models.parts import Needs
from tfstruct.models.query import Query
from tfstruct.models.system import System

_MEAN, _STD = 0.5, 1.0 / 6.0


class _RealValues(NamedTuple):
    """What a likelihood says of observations that are as they were given."""

    support: str = REAL
    scale: float = 1.0
    has_mean_logits: bool = False


class _StandardisedRows:
    """Rows [n, *event_shape] that are standardised as they are read: those of a mapped file need not fit in memory."""

    dtype = np.dtype(np.float32)

    def __init__(self, rows: np.ndarray, standardise: Callable[[Any], tf.Tensor]) -> None:
        self.shape, self._rows, self._standardise = rows.shape, rows, standardise

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: Any) -> np.ndarray:
        return self._standardise(self._rows[item]).numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


class Standardised(System):
    """A system of standardised observations as one of the observations as they are given.

    With s(x) = (x - shift) / scale, log p(x) = log p_system(s(x)) - sum_i log scale_i. Every input is standardised and
    every output in units of x brought back, so that densities, samples and means are those of the data as given. The
    sum is over the observed values where others are missing, and over those of its region for each leaf of a circuit.
    Other attributes are the system's own, in its units.

    Args:
        system: of standardised observations.

    Raises:
        ValueError: a conditional system.
    """

    likelihood: Any = _RealValues()

    def __init__(self, system: System, **kwargs) -> None:
        super().__init__(system.config, name=system.name, **kwargs)
        if system.target.is_conditional:
            raise ValueError(f"data.standardise is for models of log p(x), found one of {system.target.name}")
        self.system = system
        self.target, self.evaluated_as, self.references = system.target, system.evaluated_as, system.references

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "system":  # Keras asks for its own before there is a system
            raise AttributeError(name)
        return getattr(self.system, name)

    def build(self, input_shape: object = None) -> None:
        """See System."""
        for name, start in (("shift", 0.0), ("scale", 1.0)):
            weight = self.add_weight(
                name=name, shape=self.event_shape, initializer=keras.initializers.Constant(start), trainable=False
            )
            setattr(self, name, weight)
        self.system.build()
        self.built = True

    def adapt(self, rows: np.ndarray) -> None:
        """See System: takes mean and standard deviation of every value; one that never changes keeps its unit."""
        mean, std = mean_and_std(rows)
        scale = np.where(std > 0.0, std / _STD, 1.0)
        self.scale.assign(scale)
        self.shift.assign(mean - _MEAN * scale)
        self.system.adapt(self._standardised(rows))

    def standardise(self, x: Any) -> tf.Tensor:
        """Returns s(x) of observations [..., *event_shape]."""
        return (tf.cast(x, self.compute_dtype) - self.shift) / self.scale

    def _standardised(self, rows: np.ndarray) -> np.ndarray:
        """Rows as the system takes them, a few at a time."""
        return cast(np.ndarray, _StandardisedRows(rows, self.standardise))

    def restore(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the observations of standardised ones, the inverse of `standardise`."""
        return x * tf.convert_to_tensor(self.scale) + self.shift

    def _restored(self, answers: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {name: self.restore(value) if name in ("x", "x_mean") else value for name, value in answers.items()}

    def _log_jacobian(self, num_leaves: int | None, observed: tf.Tensor | None) -> tf.Tensor:
        """Log |ds/dx| of the observed values: a scalar or [B], of the leaves of a circuit [L] or [B, L]."""
        by_value = tf.reshape(-tf.math.log(tf.convert_to_tensor(self.scale)), [-1])
        if observed is not None:
            by_value *= tf.cast(tf.reshape(observed, [-1, by_value.shape[0]]), by_value.dtype)
        if num_leaves is None:
            return tf.reduce_sum(by_value, axis=-1)
        regions = self.system.leaf_regions  # the leaves of a region follow one another
        sums = [tf.reduce_sum(tf.gather(by_value, region, axis=-1), axis=-1) for region in regions]
        return tf.repeat(tf.stack(sums, axis=-1), num_leaves // len(regions), axis=-1)

    def terms(self, x: tf.Tensor, draws: Draws) -> ImportanceTerms:
        """See System."""
        terms = self.system.terms(self.standardise(x), draws)
        has_leaves = terms.composition is not None
        log_jacobian = self._log_jacobian(terms.log_likelihood.shape[-1] if has_leaves else None, draws.observed)
        return terms._replace(log_likelihood=terms.log_likelihood + log_jacobian)

    def sample(self, num: int | tf.Tensor, *, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System."""
        return self._restored(self.system.sample(num, seed=seed))

    def encode(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System."""
        return self.system.encode(self.standardise(x))

    def decode(self, z: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System."""
        return self._restored(self.system.decode(z))

    def reconstruct(self, x: tf.Tensor, *, seed: tf.Tensor, **options: Any) -> tf.Tensor:
        """See System."""
        return self.restore(self.system.reconstruct(self.standardise(x), seed=seed, **options))

    def inpaint(self, x: tf.Tensor, observed: tf.Tensor, *, seed: tf.Tensor, num_samples: int) -> dict[str, tf.Tensor]:
        """See the system's own; observed values come out as they were given."""
        drawn = self._restored(self.system.inpaint(self.standardise(x), observed, seed=seed, num_samples=num_samples))
        return {name: tf.where(observed, tf.cast(x, values.dtype), values) for name, values in drawn.items()}

    @property
    def needs(self) -> Needs:
        """See System."""
        return self.system.needs

    @property
    def composition(self) -> Composition | None:
        """See System."""
        return self.system.composition

    def prepare_evaluation(self, settings: Any, *, seed: int = 0) -> dict[str, Any]:
        """See System."""
        return self.system.prepare_evaluation(settings, seed=seed)

    def terms_options(self, settings: Any) -> dict[str, Any]:
        """See System."""
        return self.system.terms_options(settings)

    def structure_report(self) -> dict[str, Any]:
        """See System."""
        return self.system.structure_report()

    def report(
        self, rows: np.ndarray, settings: Evaluation, known: Mapping[str, Any], *, seed: int = 0
    ) -> tuple[dict[str, Any], list[str]]:
        """See System."""
        return self.system.report(self._standardised(rows), settings, known, seed=seed)

    def diagnostics(self) -> dict[str, tf.Tensor]:
        """See System."""
        return self.system.diagnostics()

    @property
    def edge_effects(self) -> Any:
        """See System."""
        return self.system.edge_effects

    @property
    def queries(self) -> dict[str, Query]:
        """See System; a system's own query is asked of standardised observations."""
        return {name: self._of_standardised(query) for name, query in self.system.queries.items()}

    def _of_standardised(self, query: Query) -> Query:
        function = query.function
        if function is None:
            return query

        def asked(model: "Standardised", values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            if "x" in values:
                values = values | {"x": model.standardise(values["x"])}
            return model._restored(function(model.system, values))

        return query._replace(function=asked)

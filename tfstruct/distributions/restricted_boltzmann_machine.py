"""Restricted Boltzmann machines over two sides of binary units, as priors and as amortised posteriors."""

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd

from tfstruct import random
from tfstruct.distributions import bilinear
from tfstruct.math import logsumexp

#: Units on the smaller side beyond which nothing is enumerated: 2**20 states.
MAX_ENUMERATED_UNITS = 20
_CHUNK_BITS = 12


def binary_states(num_units: int, first: tf.Tensor | int = 0, count: int | None = None) -> tf.Tensor:
    """Returns binary vectors first, first + 1, ... of `num_units` digits, least significant first; int32 [count, n]."""
    numbers = first + tf.range(2**num_units if count is None else count)
    return tf.bitwise.bitwise_and(tf.bitwise.right_shift(numbers[:, tf.newaxis], tf.range(num_units)), 1)


class RestrictedBoltzmannMachine(tfd.Distribution):
    """p(z_1, z_2) = exp(-E) / Z with E(z_1, z_2) = -(b_1 . z_1 + b_2 . z_2 + z_1' W z_2), all z in {0, 1}.

    An event is the concatenation [z_1, z_2] of length V + H. Parameters may have batch axes, one machine per
    observation for an amortised posterior; states have any axes before those.

    Args:
        bias_1: b_1, [..., V].
        bias_2: b_2, [..., H].
        coupling: W, [..., V, H].
        log_partition: log Z [...] where it is known or estimated elsewhere; without it `log_prob` enumerates the
            smaller side, up to 20 units.

    Raises:
        ValueError: a side without units, shapes that do not agree, or parameters that are not finite.

    Examples:
        >>> rbm = RestrictedBoltzmannMachine([1.0], [-1.0], [[0.5]])
        >>> round(float(rbm.exact_log_partition()), 4)  # log(1 + e + e^-1 + e^0.5)
        1.7466
        >>> rbm.sample(5, seed=[0, 1]).shape
        TensorShape([5, 2])

    References:
        DVAE##, section 2. The paper prints E without the minus sign; this is the sign its samplers use.
    """

    def __init__(
        self,
        bias_1: Any,
        bias_2: Any,
        coupling: Any,
        *,
        log_partition: Any = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "RestrictedBoltzmannMachine",
    ) -> None:
        parameters = dict(locals())
        with tf.name_scope(name) as name:
            self._coupling = tf.convert_to_tensor(coupling)
            dtype = self._coupling.dtype
            self._bias_1 = tf.convert_to_tensor(bias_1, dtype)
            self._bias_2 = tf.convert_to_tensor(bias_2, dtype)
            self._check()
            batch = tf.broadcast_static_shape(self._bias_1.shape[:-1], self._bias_2.shape[:-1])
            batch = tf.broadcast_static_shape(batch, self._coupling.shape[:-2])
            if self._coupling.shape.rank > 2 and self._coupling.shape[:-2] != batch:
                self._coupling = tf.broadcast_to(self._coupling, [*batch, *self._coupling.shape[-2:]])
            self._batch = batch
            self._log_partition = None if log_partition is None else tf.convert_to_tensor(log_partition, dtype)
            super().__init__(
                dtype=dtype,
                reparameterization_type=tfd.NOT_REPARAMETERIZED,
                validate_args=validate_args,
                allow_nan_stats=allow_nan_stats,
                parameters=parameters,
                name=name,
            )

    def _check(self) -> None:
        shapes = [tuple(tensor.shape) for tensor in (self._bias_1, self._bias_2, self._coupling)]
        if any(not shape for shape in shapes) or len(shapes[2]) < 2 or shapes[2][-2:] != (shapes[0][-1], shapes[1][-1]):
            raise ValueError(
                "bias_1 [..., V], bias_2 [..., H] and coupling [..., V, H] must agree, found "
                f"{', '.join(map(str, shapes))}"
            )
        if 0 in shapes[2][-2:]:
            raise ValueError(f"both sides need at least one unit, found {shapes[2][-2]} and {shapes[2][-1]}")
        for name, tensor in (("bias_1", self._bias_1), ("bias_2", self._bias_2), ("coupling", self._coupling)):
            value = tf.get_static_value(tensor)
            if value is not None and not np.isfinite(value).all():
                raise ValueError(f"{name} holds {np.sum(~np.isfinite(value))} values that are not finite")

    # Parameters ----------------------------------------------------------------------------------------------

    @property
    def bias_1(self) -> tf.Tensor:
        """b_1, [..., V]."""
        return self._bias_1

    @property
    def bias_2(self) -> tf.Tensor:
        """b_2, [..., H]."""
        return self._bias_2

    @property
    def coupling(self) -> tf.Tensor:
        """W, [..., V, H]."""
        return self._coupling

    @property
    def num_units(self) -> tuple[int, int]:
        """V and H."""
        return int(self._bias_1.shape[-1]), int(self._bias_2.shape[-1])

    @classmethod
    def from_ising(cls, field_1: Any, field_2: Any, coupling: Any, **kwargs) -> "RestrictedBoltzmannMachine":
        """Returns the machine over z = (1 + s) / 2 of p(s) proportional to exp(h_1 . s_1 + h_2 . s_2 + s_1' J s_2).

        Its log partition function is that of the spins plus sum(h_1) + sum(h_2) - sum(J).
        """
        coupling = tf.convert_to_tensor(coupling)
        field_1, field_2 = (tf.convert_to_tensor(field, coupling.dtype) for field in (field_1, field_2))
        of_rows, of_columns = bilinear.row_and_column_sums(coupling)
        return cls(2.0 * (field_1 - of_rows), 2.0 * (field_2 - of_columns), 4.0 * coupling, **kwargs)

    def to_ising(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns fields h_1, h_2 and couplings J of spins s = 2 z - 1; the inverse of `from_ising`."""
        field_1 = 0.5 * self.bias_1 + 0.25 * tf.reduce_sum(self.coupling, axis=-1)
        field_2 = 0.5 * self.bias_2 + 0.25 * tf.reduce_sum(self.coupling, axis=-2)
        return field_1, field_2, 0.25 * self.coupling

    def stopped(self) -> "RestrictedBoltzmannMachine":
        """Returns the machine of the same parameters without gradient, and without a given log Z."""
        return RestrictedBoltzmannMachine(*map(tf.stop_gradient, (self.bias_1, self.bias_2, self.coupling)))

    # Energies and conditionals -------------------------------------------------------------------------------

    def split(self, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Cuts an event [..., V + H] into its sides."""
        z = tf.convert_to_tensor(z, self.dtype)
        if z.shape[-1] != sum(self.num_units):
            raise ValueError(f"an event has {' + '.join(map(str, self.num_units))} units, found {z.shape[-1]}")
        return z[..., : self.num_units[0]], z[..., self.num_units[0] :]

    def input_2(self, z_1: tf.Tensor) -> tf.Tensor:
        """W' z_1: what side 1 says to side 2, [..., H]."""
        return self._product(tf.convert_to_tensor(z_1, self.dtype), transposed=False)

    def input_1(self, z_2: tf.Tensor) -> tf.Tensor:
        """W z_2: what side 2 says to side 1, [..., V]."""
        return self._product(tf.convert_to_tensor(z_2, self.dtype), transposed=True)

    def _product(self, z: tf.Tensor, transposed: bool) -> tf.Tensor:
        rank = self._coupling.shape.rank
        if rank == 2:
            return tf.tensordot(z, self._coupling, [[-1], [1 if transposed else 0]])
        samples = z.shape.rank - (rank - 1)
        if samples <= 0 or (samples == 1 and z.shape[0] == 1):  # a product by a vector each reads the matrices once
            vectors = z[0] if samples == 1 else z
            if samples < 0:
                vectors = tf.broadcast_to(z, tf.concat([tf.shape(self._coupling)[:-2], tf.shape(z)[-1:]], axis=0))
            if transposed:
                result = bilinear.matrix_times(self._coupling, vectors)
            else:
                result = bilinear.times_matrix(vectors, self._coupling)
            return result[tf.newaxis] if samples == 1 else result
        letters, batch = "stuvwxyz"[:samples], "abcdefg"[: rank - 2]
        matrix = "ji" if transposed else "ij"
        return tf.einsum(f"{letters}{batch}i,{batch}{matrix}->{letters}{batch}j", z, self._coupling)

    def logits_1(self, z_2: tf.Tensor) -> tf.Tensor:
        """Logits of p(z_1 | z_2), [..., V]."""
        return self.bias_1 + self.input_1(z_2)

    def logits_2(self, z_1: tf.Tensor) -> tf.Tensor:
        """Logits of p(z_2 | z_1), [..., H]."""
        return self.bias_2 + self.input_2(z_1)

    def conditional_1(self, z_2: tf.Tensor) -> tfd.Distribution:
        """p(z_1 | z_2), which factorises."""
        return tfd.Independent(tfd.Bernoulli(logits=self.logits_1(z_2), dtype=self.dtype), 1)

    def conditional_2(self, z_1: tf.Tensor) -> tfd.Distribution:
        """p(z_2 | z_1), which factorises."""
        return tfd.Independent(tfd.Bernoulli(logits=self.logits_2(z_1), dtype=self.dtype), 1)

    def energy_of_sides(self, z_1: tf.Tensor, z_2: tf.Tensor) -> tf.Tensor:
        """E(z_1, z_2), [...]; multilinear, hence also defined for relaxed states and means."""
        z_1, z_2 = tf.convert_to_tensor(z_1, self.dtype), tf.convert_to_tensor(z_2, self.dtype)
        side_1 = tf.reduce_sum(self.bias_1 * z_1, axis=-1)
        return -side_1 - tf.reduce_sum((self.bias_2 + self.input_2(z_1)) * z_2, axis=-1)

    def energy(self, z: tf.Tensor) -> tf.Tensor:
        """E(z), [...], for events [..., V + H]."""
        return self.energy_of_sides(*self.split(z))

    def free_energy_1(self, z_1: tf.Tensor) -> tf.Tensor:
        """-log sum over z_2 of exp(-E(z_1, z_2)), [...]."""
        z_1 = tf.convert_to_tensor(z_1, self.dtype)
        summed = tf.reduce_sum(tf.nn.softplus(self.logits_2(z_1)), axis=-1)
        return -tf.reduce_sum(self.bias_1 * z_1, axis=-1) - summed

    def free_energy_2(self, z_2: tf.Tensor) -> tf.Tensor:
        """-log sum over z_1 of exp(-E(z_1, z_2)), [...]."""
        z_2 = tf.convert_to_tensor(z_2, self.dtype)
        summed = tf.reduce_sum(tf.nn.softplus(self.logits_1(z_2)), axis=-1)
        return -tf.reduce_sum(self.bias_2 * z_2, axis=-1) - summed

    # Normalisation -------------------------------------------------------------------------------------------

    def exact_log_partition(self) -> tf.Tensor:
        """Log Z by summing over all states of the smaller side, [...] (the batch).

        Raises:
            ValueError: more than 20 units on both sides; see `tfstruct.inference.log_partition` for estimates.
        """
        return logsumexp(-self._enumerated_free_energies(), axis=0)

    def _enumerated_free_energies(self) -> tf.Tensor:
        """Free energies of all 2**n states of the smaller side, [2**n, ...]."""
        side = int(np.argmin(self.num_units))
        num = self.num_units[side]
        if num > MAX_ENUMERATED_UNITS:
            raise ValueError(
                f"the smaller side must have at most {MAX_ENUMERATED_UNITS} units to be enumerated, found sides of "
                f"{self.num_units[0]} and {self.num_units[1]}; tfstruct.inference.log_partition estimates log Z"
            )
        free_energy = (self.free_energy_1, self.free_energy_2)[side]
        chunk = 2 ** min(num, _CHUNK_BITS)

        def of_chunk(index: tf.Tensor) -> tf.Tensor:
            states = tf.cast(binary_states(num, index * chunk, chunk), self.dtype)
            states = tf.reshape(states, [chunk, *[1] * self._batch.rank, num])
            shape = tf.concat([[chunk], self._batch_shape_tensor(), [num]], axis=0)
            return free_energy(tf.broadcast_to(states, shape))

        values = tf.map_fn(of_chunk, tf.range(2**num // chunk), fn_output_signature=self.dtype)
        return tf.reshape(values, tf.concat([[2**num], self._batch_shape_tensor()], axis=0))

    def _log_prob(self, value: tf.Tensor) -> tf.Tensor:
        log_partition = self.exact_log_partition() if self._log_partition is None else self._log_partition
        return -self.energy(value) - log_partition

    def _sample_n(self, n: tf.Tensor, seed: Any = None) -> tf.Tensor:
        """Exact draws: a state of the smaller side from its table, then the other side given it."""
        key = tf.bitcast(tfp.random.sanitize_seed(seed), tf.uint32)
        table_key, side_key = random.split(key)
        side = int(np.argmin(self.num_units))
        log_probs = -self._enumerated_free_energies()
        batch_size = tf.reduce_prod(self._batch_shape_tensor())
        log_probs = tf.cast(tf.transpose(tf.reshape(log_probs, [-1, batch_size])), tf.float64)
        table = tf.cumsum(tf.exp(log_probs - logsumexp(log_probs, axis=-1, keepdims=True)), axis=-1)
        unit = random.uniform(table_key, [batch_size, n], tf.float64)
        chosen = tf.minimum(tf.searchsorted(table, unit), 2 ** self.num_units[side] - 1)
        units = tf.range(self.num_units[side])
        states = tf.bitwise.bitwise_and(tf.bitwise.right_shift(chosen[..., tf.newaxis], units), 1)
        shape = tf.concat([[n], self._batch_shape_tensor(), [self.num_units[side]]], axis=0)
        given = tf.reshape(tf.transpose(tf.cast(states, self.dtype), [1, 0, 2]), shape)
        logits = (self.logits_2, self.logits_1)[side](given)
        other = tf.cast(random.uniform(side_key, tf.shape(logits), self.dtype) < tf.sigmoid(logits), self.dtype)
        return tf.concat([given, other] if side == 0 else [other, given], axis=-1)

    def _batch_shape(self) -> tf.TensorShape:
        return self._batch

    def _batch_shape_tensor(self) -> tf.Tensor:
        shapes = (tf.shape(self._bias_1)[:-1], tf.shape(self._bias_2)[:-1], tf.shape(self._coupling)[:-2])
        return tf.broadcast_dynamic_shape(tf.broadcast_dynamic_shape(shapes[0], shapes[1]), shapes[2])

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape([sum(self.num_units)])

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant([sum(self.num_units)], tf.int32)

    def _default_event_space_bijector(self) -> None:
        return None  # binary

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict:
        from tensorflow_probability.python.internal import parameter_properties

        properties = parameter_properties.ParameterProperties
        return {
            "bias_1": properties(event_ndims=1),
            "bias_2": properties(event_ndims=1),
            "coupling": properties(event_ndims=2),
            "log_partition": properties(event_ndims=0),
        }

"""Gaussian nodes on a gated directed acyclic graph: the prior of the Graph VAE."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfstruct import random
from tfstruct.distributions import adjacency as adjacency_lib
from tfstruct.distributions.gaussian import gaussian_log_prob

Conditional = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def gated_parents(value: tf.Tensor, gates: tf.Tensor) -> tf.Tensor:
    """Returns gates[i, j] * value[j]: [..., N, D] and [..., N, N] to [..., N, N, D]."""
    return gates[..., tf.newaxis] * value[..., tf.newaxis, :, :]


class GatedGaussianNetwork(tfd.Distribution):
    """p(z | c): a chain rule of Gaussian nodes whose dependencies are multiplied by gates.

    p(z | c) = prod_i N(z[i]; loc_i, exp(log_variance_i))
    (loc_i, log_variance_i) = f_i(c[i, 0] z[0], c[i, 1] z[1], ...)

    with N nodes of D dimensions. A node without possible parents has the prior N(0, I); a node whose gates are
    all closed keeps the Gaussian that f_i gives for parents 0.

    Args:
        conditional: maps gated parents [..., N, N, D] to (loc, log_variance), each [..., N, D]. Row i of the
            result may depend on row i of the input only; what it gives for nodes without possible parents is ignored.
        gates: [..., N, N], gate [i, j] on the edge from parent j to child i; its leading axes are the batch.
        node_dim: D.
        adjacency: Boolean [N, N] of possible edges, strictly lower triangular; default all j < i.

    Raises:
        ValueError: gates that are not square matrices, or an invalid adjacency.

    Examples:
        >>> chain = GatedGaussianNetwork(lambda parents: (tf.reduce_sum(parents, -2), tf.zeros([2, 1])),
        ...                              gates=tf.constant([[0., 0.], [1., 0.]]), node_dim=1)
        >>> z = chain.sample(1000, seed=[0, 1])          # [1000, 2, 1]; z[:, 1] is z[:, 0] plus noise
        >>> round(float(chain.log_prob([[1.], [1.]])), 4)  # -log(2 pi) - 1/2
        -2.3379

    References:
        Graph VAE, section 3.1, eq. 6 (whose node N is node 0 here).
    """

    def __init__(
        self,
        conditional: Conditional,
        gates: Any,
        node_dim: int,
        adjacency: np.ndarray | None = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "GatedGaussianNetwork",
    ) -> None:
        parameters = dict(locals())
        with tf.name_scope(name) as name:
            self._gates = tf.convert_to_tensor(gates)
            num_nodes = self._gates.shape[-1]
            if self._gates.shape.rank < 2 or num_nodes != self._gates.shape[-2]:
                raise ValueError(f"gates must have shape [..., N, N], found {self._gates.shape}")
            if node_dim < 1:
                raise ValueError(f"node_dim must be at least 1, found {node_dim}")
            if adjacency is None:
                adjacency = np.tri(num_nodes, k=-1, dtype=bool)
            self._adjacency = adjacency_lib.validate(adjacency, num_nodes)
            # A gate on an impossible edge must not let a node see its descendants.
            self._gates = tf.where(self._adjacency, self._gates, tf.zeros_like(self._gates))
            self._conditional = conditional
            self._node_dim = node_dim
            super().__init__(
                dtype=self._gates.dtype,
                reparameterization_type=tfd.FULLY_REPARAMETERIZED,
                validate_args=validate_args,
                allow_nan_stats=allow_nan_stats,
                parameters=parameters,
                name=name,
            )

    @property
    def gates(self) -> tf.Tensor:
        """The gates, [..., N, N]."""
        return self._gates

    @property
    def adjacency(self) -> np.ndarray:
        """The possible edges, Boolean [N, N]."""
        return self._adjacency

    def node_parameters(self, value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns loc and log_variance of every node given the values of its parents.

        Args:
            value: z, [..., N, D].

        Returns:
            loc and log_variance, each of the shape of `value`.
        """
        value = tf.convert_to_tensor(value, self.dtype)
        loc, log_variance = self._conditional(gated_parents(value, self._gates))
        has_parents = np.any(self._adjacency, axis=1, keepdims=True)
        # `where` against zeros, not a product: whatever stands in the rows of the roots must not matter.
        zeros = tf.zeros_like(value)
        return tf.where(has_parents, loc + zeros, zeros), tf.where(has_parents, log_variance + zeros, zeros)

    def _log_prob(self, value: tf.Tensor) -> tf.Tensor:
        loc, log_variance = self.node_parameters(value)
        return tf.reduce_sum(gaussian_log_prob(value, loc, log_variance), axis=[-2, -1])

    def node_log_prob(self, value: tf.Tensor) -> tf.Tensor:
        """Returns log p(z[i] | parents of i) of every node, [..., N] for z [..., N, D]."""
        loc, log_variance = self.node_parameters(value)
        return tf.reduce_sum(gaussian_log_prob(tf.convert_to_tensor(value, self.dtype), loc, log_variance), axis=-1)

    def sample_from_noise(self, noise: tf.Tensor) -> tf.Tensor:
        """Ancestral sampling: standard normal noise [..., N, D] to z of the same shape, roots first."""
        num_nodes = self._adjacency.shape[0]
        value = noise
        for node in range(num_nodes):
            if self._adjacency[node].any():
                loc, log_variance = self.node_parameters(value)
                drawn = loc + tf.exp(0.5 * log_variance) * noise
                value = tf.where(np.arange(num_nodes)[:, np.newaxis] == node, drawn, value)
        return value

    def _sample_n(self, n: tf.Tensor, seed: Any = None) -> tf.Tensor:
        seed = tfp.random.sanitize_seed(seed)
        shape = tf.concat([[n], self._batch_shape_tensor(), self._event_shape_tensor()], axis=0)
        return self.sample_from_noise(random.normal(tf.bitcast(seed, tf.uint32), shape, self.dtype))

    def _batch_shape(self) -> tf.TensorShape:
        return self._gates.shape[:-2]

    def _batch_shape_tensor(self) -> tf.Tensor:
        return tf.shape(self._gates)[:-2]

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape([self._adjacency.shape[0], self._node_dim])

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant([self._adjacency.shape[0], self._node_dim], tf.int32)

    def _default_event_space_bijector(self) -> tfb.Bijector:
        return tfb.Identity(validate_args=self.validate_args)

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict:
        from tensorflow_probability.python.internal import parameter_properties

        return {"gates": parameter_properties.ParameterProperties(event_ndims=2)}

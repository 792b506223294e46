"""Multilayer perceptrons: dense blocks for encoders and decoders, and small networks per latent node."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfstruct.layers.grouped import (
    GroupedDense,
    LayerNormalization,
    Normalization,
    ragged_matmul,
    split_last,
)
from tfstruct.layers.precision import Dense
from tfstruct.math import soft_clip


class BlockOptions(NamedTuple):
    """How hidden layers are made.

    Attributes:
        activation: name of a Keras activation.
        batch_norm: whether batch normalisation stands between the matrix product and the activation.
        layer_norm: whether layer normalisation stands there.
        momentum: of the moving averages used at evaluation.
        epsilon: added to the variance.
        synchronized: whether batch statistics are taken over all devices of a strategy.
    """

    activation: str
    batch_norm: bool = True
    momentum: float = 0.99
    epsilon: float = 1e-5
    synchronized: bool = False
    layer_norm: bool = False

    @classmethod
    def from_config(cls, config: Any, activation: str) -> "BlockOptions":
        """Reads batch_norm, its momentum, epsilon and synchronized, and layer_norm if there is one, from settings."""
        return cls(
            activation,
            config.batch_norm,
            config.batch_norm_momentum,
            config.batch_norm_epsilon,
            config.batch_norm_synchronized,
            getattr(config, "layer_norm", False),
        )

    @property
    def use_bias(self) -> bool:
        """Whether matrix products have a bias; a normalisation has one of its own."""
        return not (self.batch_norm or self.layer_norm)

    def normalization(self, features: Sequence[int], name: str) -> LayerNormalization | Normalization | None:
        """Returns a normalisation of features of that shape, or None."""
        if self.layer_norm:
            return LayerNormalization(features, epsilon=self.epsilon, name=name)
        if not self.batch_norm:
            return None
        return Normalization(
            features,
            momentum=self.momentum,
            epsilon=self.epsilon,
            synchronized=self.synchronized,
            name=name,
        )


class MLP(keras.layers.Layer):
    """Dense blocks (product, normalisation, activation) and a last linear layer.

    [..., I] -> [..., output_units]. Hidden layers have no bias when they are normalised: the normalisation
    takes a constant away, so that bias would be a parameter without effect. With output_units None there is no last
    layer, and the features of the last block come out.
    """

    def __init__(
        self,
        hidden_units: Sequence[int],
        output_units: int | None,
        options: BlockOptions,
        *,
        use_output_bias: bool = True,
        kernel_initializer: str = "glorot_uniform",
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.dense, self.normalizations = [], []
        for index, units in enumerate(hidden_units):
            self.dense.append(
                Dense(
                    units,
                    use_bias=options.use_bias,
                    kernel_initializer=kernel_initializer,
                    name=f"dense_{index}",
                )
            )
            if not options.use_bias:
                self.normalizations.append(options.normalization([units], f"normalization_{index}"))
        self.activation = keras.activations.get(options.activation)
        self.output_layer = None
        if output_units is not None:
            self.output_layer = Dense(
                output_units, use_bias=use_output_bias, kernel_initializer=kernel_initializer, name="output"
            )

    def build(self, input_shape: Sequence[int | None]) -> None:
        shape = tuple(input_shape)
        for index, dense in enumerate(self.dense):
            dense.build(shape)
            shape = (*shape[:-1], dense.units)
            if self.normalizations:
                self.normalizations[index].build()
        if self.output_layer is not None:
            self.output_layer.build(shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        features = inputs
        for index, dense in enumerate(self.dense):
            features = dense(features)
            if self.normalizations:
                features = self.normalizations[index](features, training=training)
            features = self.activation(features)
        return features if self.output_layer is None else self.output_layer(features)


class NodeHeads(keras.layers.Layer):
    """Hidden features of nodes to Gaussian parameters: two linear maps (H -> D, then D -> loc and D -> log variance).

    [..., G, H] -> loc, log_variance, each [..., G, D] (Graph VAE, appendix A.2.1). Beyond `log_variance_limits` float32
    precisions would overflow in the fusion, and means beyond `loc_limits` in the nodes after: from the first to the
    second number both level off, with a slope by which what ran away finds back. With `log_variance_bound` b
    log variances are b tanh(v / b) instead.
    """

    loc_limits = 1_000.0, 2_000.0
    log_variance_limits = 14.0, 15.0

    def __init__(self, groups: int, node_dim: int, *, log_variance_bound: float = 0.0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.log_variance_bound = log_variance_bound
        self.projection = GroupedDense(groups, node_dim, name="projection")
        self.parameters_layer = GroupedDense(groups, 2 * node_dim, name="parameters")

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.projection.build(input_shape)
        self.parameters_layer.build((*input_shape[:-1], self.projection.units))

    def call(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        loc, log_variance = tf.split(self.parameters_layer(self.projection(inputs)), 2, axis=-1)
        loc = soft_clip(loc, *self.loc_limits)
        bound = self.log_variance_bound
        if bound:
            return loc, bound * tf.tanh(log_variance / bound)
        return loc, soft_clip(log_variance, *self.log_variance_limits)


class BottomUp(keras.layers.Layer):
    """One network per latent node on the shared features of x: [..., F] -> loc, log_variance [..., N, D].

    With `context_dim` C above 0 there is a third output, a context [..., N, C] that a flow of each node is given beside
    its noise.
    """

    def __init__(
        self,
        num_nodes: int,
        node_dim: int,
        hidden_units: int,
        options: BlockOptions,
        *,
        context_dim: int = 0,
        log_variance_bound: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.num_nodes = num_nodes
        # The nodes read the same features, so their first layers are one matrix product.
        self.dense = Dense(num_nodes * hidden_units, use_bias=options.use_bias, name="dense")
        self.normalization = options.normalization([num_nodes, hidden_units], "normalization")
        self.activation = keras.activations.get(options.activation)
        self.heads = NodeHeads(num_nodes, node_dim, log_variance_bound=log_variance_bound, name="heads")
        self.context_head = GroupedDense(num_nodes, context_dim, name="context") if context_dim else None

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.dense.build(input_shape)
        shape = (*input_shape[:-1], self.num_nodes, self.dense.units // self.num_nodes)
        if self.normalization is not None:
            self.normalization.build()
        self.heads.build(shape)
        if self.context_head is not None:
            self.context_head.build(shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, ...]:
        hidden = split_last(self.dense(inputs), self.num_nodes)
        if self.normalization is not None:
            hidden = self.normalization(hidden, training=training)
        hidden = self.activation(hidden)
        outputs = self.heads(hidden)
        return outputs if self.context_head is None else (*outputs, self.context_head(hidden))


class TopDown(keras.layers.Layer):
    """One network per latent node on its gated parents.

    A list of the G nodes' concatenated gated parents, each [..., P_g * D], -> loc, log_variance [..., G, D]. Every
    node has a network of its own width P_g * D, so the number of weights is that of separate networks.

    Args:
        adjacency: Boolean [N, N], [i, j] true if node j may be a parent of node i.
        nodes: the nodes computed, each with at least one possible parent (P_g of them).
        node_dim: D.
        hidden_units: H.
        options: how the hidden layer is made.
        log_variance_bound: see NodeHeads.
    """

    def __init__(
        self,
        adjacency: np.ndarray,
        nodes: Sequence[int],
        node_dim: int,
        hidden_units: int,
        options: BlockOptions,
        *,
        log_variance_bound: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.nodes = tuple(nodes)
        self.parents = [tuple(int(parent) for parent in np.flatnonzero(adjacency[node])) for node in self.nodes]
        self.node_dim, self.hidden_units = node_dim, hidden_units
        self.use_bias = options.use_bias
        self.normalization = options.normalization([len(self.nodes), hidden_units], "normalization")
        self.activation = keras.activations.get(options.activation)
        self.heads = NodeHeads(len(self.nodes), node_dim, log_variance_bound=log_variance_bound, name="heads")

    def build(self, input_shape: object = None) -> None:
        self.kernels = [
            self.add_weight(
                name=f"kernel_{node}",
                shape=(len(parents) * self.node_dim, self.hidden_units),
                initializer="glorot_uniform",
            )
            for node, parents in zip(self.nodes, self.parents, strict=True)
        ]
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(len(self.nodes), self.hidden_units), initializer="zeros")
        shape = (None, len(self.nodes), self.hidden_units)
        if self.normalization is not None:
            self.normalization.build()
        self.heads.build(shape)
        self.built = True

    def call(self, inputs: Sequence[tf.Tensor], training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        hidden = ragged_matmul(inputs, [tf.convert_to_tensor(kernel) for kernel in self.kernels])
        if self.use_bias:
            hidden += self.bias
        if self.normalization is not None:
            hidden = self.normalization(hidden, training=training)
        return self.heads(self.activation(hidden))

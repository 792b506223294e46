"""Layers of the Boltzmann VAEs: the prior's weights, and posteriors that are Boltzmann machines or directed groups."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from tfstruct.layers.mlp import BlockOptions
from tfstruct.layers.precision import Dense, product

#: Couplings are normalised to this standard deviation over the batch, divided by the root of V.
COUPLING_SCALE = 1.5


class BoltzmannPrior(keras.layers.Layer):
    """Weights of a restricted Boltzmann machine that is learned, and what is known of it.

    Its biases and couplings start at zero. Not trained by gradients but kept with the weights: chains of its Gibbs
    sampler; log Z as it was last estimated, for evaluation; and what follows log Z from step to step while training,
    an eighth as many chains of their own, or one more, among it.

    Args:
        num_units: V and H.
        num_chains: C.

    Raises:
        ValueError: a side, or chains, below 1.
    """

    def __init__(self, num_units: tuple[int, int], num_chains: int, **kwargs) -> None:
        super().__init__(**kwargs)
        if min(num_units) < 1 or num_chains < 1:
            raise ValueError(f"sides and chains must be at least 1, found sides {num_units} and {num_chains} chains")
        self.num_units, self.num_chains = tuple(num_units), num_chains
        # An even number of chains in all: the two words of a random draw then meet between two chains, without which
        # XLA's code for a CPU takes four times as long.
        self.num_followers = max(1, num_chains // 8)
        self.num_followers += (num_chains + self.num_followers) % 2

    def build(self, input_shape: object = None) -> None:
        num_1, num_2 = self.num_units
        self.bias_1 = self.add_weight(name="bias_1", shape=(num_1,), initializer="zeros")
        self.bias_2 = self.add_weight(name="bias_2", shape=(num_2,), initializer="zeros")
        self.coupling = self.add_weight(name="coupling", shape=(num_1, num_2), initializer="zeros")
        start = (num_1 + num_2) * np.log(2.0)  # exact for parameters of zero
        constant = keras.initializers.Constant(start)

        def held(name: str, shape: Sequence[int], initializer: object) -> keras.Variable:
            return self.add_weight(name=name, shape=shape, initializer=initializer, trainable=False)

        self.chains = held("chains", (self.num_chains, num_1), FairCoins())
        self.followers = held("followers", (self.num_followers, num_1), FairCoins())
        self.log_partition = held("log_partition", (), constant)
        self.followed_log_partition = held("followed_log_partition", (), constant)
        self.followed = [
            held(f"followed_{name}", shape, "zeros")
            for name, shape in (("bias_1", (num_1,)), ("bias_2", (num_2,)), ("coupling", (num_1, num_2)))
        ]
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Unnormalised log density of states [..., V + H]."""
        return -self.machine().energy(inputs)

    def machine(self) -> RestrictedBoltzmannMachine:
        """p(z) with the current weights and the log Z that was last estimated."""
        weights = (tf.convert_to_tensor(weight) for weight in (self.bias_1, self.bias_2, self.coupling))
        return RestrictedBoltzmannMachine(*weights, log_partition=tf.convert_to_tensor(self.log_partition))

    def followed_machine(self) -> RestrictedBoltzmannMachine:
        """The machine at the step before, which the chains are samples of."""
        return RestrictedBoltzmannMachine(*(tf.convert_to_tensor(weight) for weight in self.followed))


class FairCoins(keras.initializers.Initializer):
    """Zeros and ones of equal probability. The seed is drawn when it is made, as Keras' own initialisers do."""

    def __init__(self) -> None:
        self.uniform = keras.initializers.RandomUniform(0.0, 1.0)

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> tf.Tensor:
        return keras.ops.cast(self.uniform(shape) < 0.5, dtype)


class BoltzmannHead(keras.layers.Layer):
    """Features [..., F] to a restricted Boltzmann machine for each observation, batch [...].

    Linear maps give fields h and couplings J of spins; the couplings pass a batch normalisation of their own and are
    1.5 / sqrt(V) times what leaves it. In zeros and ones: W = 4 J, b_1 = 2 (h_1 - row sums of J), and b_2 likewise with
    the column sums.

    References:
        DVAE##, figure 3a; the parametrisation is that of the published code.
    """

    def __init__(
        self, num_units: tuple[int, int], options: BlockOptions, *, kernel_initializer: str = "he_normal", **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.num_units = tuple(num_units)
        num_1, num_2 = self.num_units
        self.fields = Dense(num_1 + num_2, kernel_initializer=kernel_initializer, name="fields")
        # No bias before a normalisation that takes it away.
        self.couplings = Dense(
            num_1 * num_2, use_bias=not options.batch_norm, kernel_initializer=kernel_initializer, name="couplings"
        )
        self.normalization = options.normalization([num_1 * num_2], "normalization")

    @property
    def linear_layers(self) -> list[keras.layers.Dense]:
        """The layers before the normalisation of the couplings."""
        return [self.fields, self.couplings]

    def build(self, input_shape: Sequence[Any]) -> None:
        self.fields.build(input_shape)
        self.couplings.build(input_shape)
        if self.normalization is not None:
            self.normalization.build()
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns fields h_1 [..., V] and h_2 [..., H] and couplings J [..., V, H]."""
        num_1, num_2 = self.num_units
        field_1, field_2 = tf.split(self.fields(inputs), [num_1, num_2], axis=-1)
        raw = self.couplings(inputs)
        if self.normalization is not None:
            raw = self.normalization(raw, training=training)
        scaled = (COUPLING_SCALE / np.sqrt(num_1)).astype(np.float32) * raw
        return field_1, field_2, tf.reshape(scaled, tf.concat([tf.shape(raw)[:-1], [num_1, num_2]], axis=0))

    def machine(self, inputs: tf.Tensor, training: bool = False) -> RestrictedBoltzmannMachine:
        """q(z | x)."""
        field_1, field_2, coupling = self(inputs, training=training)
        return RestrictedBoltzmannMachine.from_ising(field_1, field_2, coupling)


class DirectedHead(keras.layers.Layer):
    """Groups of binary units, each drawn given the features and the groups before: q(z | x) = prod_g q(z_g | c, z_<g).

    Features [..., F] and a function that draws a group from its logits give all logits and all draws, [..., M]. Every
    group's logits are one linear layer of the features and the draws before.

    Args:
        num_units: M.
        num_groups: L, which divides M.

    Raises:
        ValueError: groups that do not divide the units.

    References:
        DVAE##, figure 3c.
    """

    def __init__(self, num_units: int, num_groups: int, *, kernel_initializer: str = "he_normal", **kwargs) -> None:
        super().__init__(**kwargs)
        if num_groups < 1 or num_units % num_groups:
            raise ValueError(f"groups must divide the {num_units} units, found {num_groups}")
        self.num_units, self.num_groups = num_units, num_groups
        self.group_layers = [
            Dense(num_units // num_groups, kernel_initializer=kernel_initializer, name=f"group_{index}")
            for index in range(num_groups)
        ]

    @property
    def linear_layers(self) -> list[keras.layers.Dense]:
        """The layers of the groups."""
        return list(self.group_layers)

    def build(self, input_shape: Sequence[Any]) -> None:
        for index, layer in enumerate(self.group_layers):
            layer.build((*input_shape[:-1], input_shape[-1] + index * self.num_units // self.num_groups))
        self.built = True

    def call(
        self, inputs: tf.Tensor, draw: Callable[[tf.Tensor, int], tf.Tensor] | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns logits and draws, each [..., M]; `draw(logits, group)` defaults to the means.

        The draws may have more leading axes than the features, for several samples.
        """
        logits, draws = [], []
        for index, layer in enumerate(self.group_layers):
            if draws:
                before = tf.concat(draws, axis=-1)
                shape = tf.concat([tf.shape(before)[:-1], tf.shape(inputs)[-1:]], axis=0)
                said = layer(tf.concat([tf.broadcast_to(inputs, shape), before], axis=-1))
            else:
                said = layer(inputs)
            drawn = tf.sigmoid(said) if draw is None else draw(said, index)
            logits.append(said + tf.zeros_like(drawn))
            draws.append(drawn)
        return tf.concat(logits, axis=-1), tf.concat(draws, axis=-1)

    def logits_of(self, inputs: tf.Tensor, draws: tf.Tensor, *, stopped: bool = False) -> tf.Tensor:
        """Logits [..., M] of given draws [..., M]; `stopped` takes the weights as fixed, though not the draws."""
        groups, logits = tf.split(draws, self.num_groups, axis=-1), []
        for index, layer in enumerate(self.group_layers):
            kernel, bias = tf.convert_to_tensor(layer.kernel), tf.convert_to_tensor(layer.bias)
            if stopped:
                kernel, bias = tf.stop_gradient(kernel), tf.stop_gradient(bias)
            width = inputs.shape[-1]
            said = product(keras.ops.matmul, inputs, kernel[:width]) + bias
            if index:
                said += product(keras.ops.matmul, tf.concat(groups[:index], axis=-1), kernel[width:])
            logits.append(said + tf.zeros_like(groups[index]))
        return tf.concat(logits, axis=-1)

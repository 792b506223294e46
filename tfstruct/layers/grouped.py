"""Dense layers with a group axis: one small network per latent node, computed together."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfstruct.layers.precision import product


@functools.cache
def batched_matmul_is_fast() -> bool:
    """Batched kernels win on a GPU; XLA on a CPU runs them without Eigen, many times slower than a loop."""
    return bool(tf.config.list_logical_devices("GPU"))


def grouped_matmul(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Multiplies each group by its own matrix.

    Args:
        inputs: [..., G, I].
        kernel: [G, I, O].

    Returns:
        [..., G, O].
    """
    if batched_matmul_is_fast():
        return product(functools.partial(tf.einsum, "...gi,gio->...go"), inputs, kernel)
    products = [product(tf.matmul, inputs[..., group, :], kernel[group]) for group in range(kernel.shape[0])]
    return tf.stack(products, axis=-2)


def ragged_matmul(inputs: Sequence[tf.Tensor], kernels: Sequence[tf.Tensor]) -> tf.Tensor:
    """Multiplies group g's inputs [..., I_g] by its matrix [I_g, O]; returns [..., G, O]."""
    if not batched_matmul_is_fast():
        return tf.stack(
            [product(tf.matmul, values, kernel) for values, kernel in zip(inputs, kernels, strict=True)], axis=-2
        )
    width = max(kernel.shape[0] for kernel in kernels)
    padded_inputs, padded_kernels = [], []
    for values, kernel in zip(inputs, kernels, strict=True):
        missing = width - kernel.shape[0]
        padded_inputs.append(tf.pad(values, [[0, 0]] * (values.shape.rank - 1) + [[0, missing]]))
        padded_kernels.append(tf.pad(kernel, [[0, missing], [0, 0]]))
    joined = tf.stack(padded_inputs, axis=-2), tf.stack(padded_kernels)
    return product(functools.partial(tf.einsum, "...gi,gio->...go"), *joined)


class GroupedDense(keras.layers.Layer):
    """`groups` independent dense layers: [..., groups, I] -> [..., groups, units]."""

    def __init__(self, groups: int, units: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.groups, self.units = groups, units

    def build(self, input_shape: Sequence[Any]) -> None:
        fan_in = input_shape[-1]
        limit = float(np.sqrt(6.0 / (fan_in + self.units)))  # Glorot, with the fans of one group
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.groups, fan_in, self.units),
            initializer=keras.initializers.RandomUniform(-limit, limit),
        )
        self.bias = self.add_weight(name="bias", shape=(self.groups, self.units), initializer="zeros")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return grouped_matmul(inputs, tf.convert_to_tensor(self.kernel)) + self.bias


class Normalization(keras.layers.Layer):
    """Batch normalisation of every feature over all leading axes: [..., *features] -> the same shape.

    Keras' layer is tied to one rank at build time; here [B, F], [K, B, F] and [K, B, N, F] all do.

    Args:
        features: shape of the features, each with statistics, scale and offset of its own.
        momentum: of the moving averages.
        epsilon: added to the variance.
        synchronized: whether statistics are taken over all devices of a strategy.
    """

    def __init__(
        self, features: Sequence[int], *, momentum: float, epsilon: float, synchronized: bool, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.size = int(np.prod(features))
        self.normalization = keras.layers.BatchNormalization(
            momentum=momentum, epsilon=epsilon, synchronized=synchronized, name="normalization"
        )

    def build(self, input_shape: object = None) -> None:
        self.normalization.build((None, self.size))
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        flat = tf.reshape(inputs, [-1, self.size])
        return tf.reshape(self.normalization(flat, training=training), tf.shape(inputs))


class LayerNormalization(keras.layers.Layer):
    """Layer normalisation over the last axis, with a scale and an offset for every feature of every group.

    [..., *features] -> the same shape; Keras' layer would share the scale among the groups.

    Args:
        features: shape of the features, the last axis normalised.
        epsilon: added to the variance.

    References:
        Ba, Kiros & Hinton, Layer Normalization, 2016.
    """

    def __init__(self, features: Sequence[int], *, epsilon: float, **kwargs) -> None:
        super().__init__(**kwargs)
        self.features, self.epsilon = tuple(features), epsilon

    def build(self, input_shape: object = None) -> None:
        self.gamma = self.add_weight(name="gamma", shape=self.features, initializer="ones")
        self.beta = self.add_weight(name="beta", shape=self.features, initializer="zeros")
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        del training  # the same at all times
        centred = inputs - tf.reduce_mean(inputs, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        return centred * tf.math.rsqrt(variance + self.epsilon) * self.gamma + self.beta


def flatten_last_two(inputs: tf.Tensor) -> tf.Tensor:
    """[..., G, F] -> [..., G * F]."""
    groups, features = inputs.shape[-2:]
    return tf.reshape(inputs, tf.concat([tf.shape(inputs)[:-2], [groups * features]], axis=0))


def split_last(inputs: tf.Tensor, groups: int) -> tf.Tensor:
    """[..., G * F] -> [..., G, F]."""
    features = inputs.shape[-1] // groups
    return tf.reshape(inputs, tf.concat([tf.shape(inputs)[:-1], [groups, features]], axis=0))

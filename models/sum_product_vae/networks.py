"""Small networks, one for every leaf of a sum-product network, computed together as one batched network.

The leaf axis comes first, [L, N, ...]: each layer is then one batched matrix product over leaves. Hidden layers are
softplus; kernels start as truncated normals with He's variance and biases as zeros, as in the published code of SPVAE.
"""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfstruct.layers.precision import product

_TRUNCATION = 0.87962566103423978  # standard deviation of a normal cut at +-2


def he_normal(fan_in: int) -> keras.initializers.Initializer:
    """Truncated normal of variance 2 / fan_in; Keras' own takes a leaf axis for a part of a filter."""
    return keras.initializers.TruncatedNormal(stddev=float(np.sqrt(2.0 / fan_in)) / _TRUNCATION)


def softplus(x: tf.Tensor) -> tf.Tensor:
    """log(1 + exp(x)) to an absolute error of 1e-7, in half the time of the operation that is exact below -16 too."""
    size = tf.where(x >= 0.0, x, -x)  # has a slope at 0, where all units without input and bias start; abs has none
    return 0.5 * (x + size) + tf.math.log(1.0 + tf.exp(-size))


def leaf_matmul(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """[L, N, I] times [L, I, O]."""
    if kernel.shape[0] == 1:  # no batch: the plain product is faster
        return product(tf.matmul, inputs[0], kernel[0])[tf.newaxis]
    return product(tf.matmul, inputs, kernel)


class LeafDense(keras.layers.Layer):
    """A linear map of every leaf: [L, N, I] -> [L, N, units]."""

    def __init__(self, num_leaves: int, units: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_leaves, self.units = num_leaves, units

    def build(self, input_shape: Sequence[Any]) -> None:
        fan_in = input_shape[-1]
        self.kernel = self.add_weight(
            name="kernel", shape=(self.num_leaves, fan_in, self.units), initializer=he_normal(fan_in)
        )
        self.bias = self.add_weight(name="bias", shape=(self.num_leaves, 1, self.units), initializer="zeros")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return leaf_matmul(inputs, tf.convert_to_tensor(self.kernel)) + tf.convert_to_tensor(self.bias)


def _taps(height: int, width: int, stride: int) -> np.ndarray:
    """Which of the nine taps connects a pixel [height * width] to one of the smaller image: zeros and ones [.., .., 9].

    With "same" padding, as TensorFlow places it.
    """

    def along(size: int) -> np.ndarray:
        small = -(-size // stride)
        before = max((small - 1) * stride + 3 - size, 0) // 2
        offset = np.arange(size)[:, np.newaxis] - stride * np.arange(small) + before
        return np.eye(4, 3)[np.where((offset < 0) | (offset > 2), 3, offset)]

    joint = np.einsum("ijk,abc->iajbkc", along(height), along(width))
    return joint.reshape(height * width, -1, 9)


class LeafConv(keras.layers.Layer):
    """A convolution 3 x 3 of every leaf, or its transpose: [L, N, h, w, C] -> [L, N, h', w', filters].

    "Same" padding; h' = h / stride, or h * stride transposed.

    Args:
        num_leaves: L.
        filters: channels that come out.
        stride: of both axes.
        transpose: whether it enlarges.
    """

    def __init__(self, num_leaves: int, filters: int, *, stride: int = 1, transpose: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_leaves, self.filters, self.stride, self.transpose = num_leaves, filters, stride, transpose

    def build(self, input_shape: Sequence[Any]) -> None:
        channels = input_shape[-1]
        self.kernel = self.add_weight(
            name="kernel", shape=(self.num_leaves, 9, channels, self.filters), initializer=he_normal(9 * channels)
        )
        self.bias = self.add_weight(name="bias", shape=(self.num_leaves, 1, 1, 1, self.filters), initializer="zeros")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        kernel, bias = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.bias)
        num, height, width, channels = tf.shape(inputs)[1], *inputs.shape[2:]
        factor = self.stride if self.transpose else 1
        large = height * factor, width * factor
        small = tuple(-(-size // self.stride) for size in large)
        out_height, out_width = large if self.transpose else small
        if self.num_leaves == 1:
            image, filters = inputs[0], tf.reshape(kernel, [3, 3, channels, self.filters])
            if self.transpose:
                shape = [num, out_height, out_width, self.filters]
                filters = tf.transpose(filters, [0, 1, 3, 2])
                convolve = functools.partial(
                    tf.nn.conv2d_transpose, output_shape=shape, strides=self.stride, padding="SAME"
                )
            else:
                convolve = functools.partial(tf.nn.conv2d, strides=self.stride, padding="SAME")
            return product(convolve, image, filters)[tf.newaxis] + bias
        # One batched product by the matrices of the convolutions: a leaf's image is small, and convolutions in as many
        # groups as there are leaves have no fast kernel.
        taps = tf.constant(_taps(*large, self.stride), kernel.dtype)
        pixels = "ji" if self.transpose else "ij"  # i comes in, j goes out
        matrices = tf.einsum(f"{pixels}k,lkcf->licjf", taps, kernel)
        matrices = tf.reshape(
            matrices, [self.num_leaves, height * width * channels, out_height * out_width * self.filters]
        )
        result = leaf_matmul(tf.reshape(inputs, [self.num_leaves, num, height * width * channels]), matrices)
        return tf.reshape(result, [self.num_leaves, num, out_height, out_width, self.filters]) + bias


class LeafMLP(keras.layers.Layer):
    """Separate multilayer perceptrons for each kind of output: [L, N, I] -> a list of [L, N, output_units].

    Args:
        num_leaves: L.
        hidden_units: of each network.
        output_units: of each network.
        num_networks: how many there are for each leaf; they share nothing but the input.
    """

    def __init__(
        self,
        num_leaves: int,
        hidden_units: Sequence[int],
        output_units: int,
        *,
        num_networks: int,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.num_leaves, self.num_networks = num_leaves, num_networks
        # The networks read the same input, so their first layers are one product; later ones add to the leaf axis.
        widths = (*hidden_units, output_units)
        self.first = LeafDense(num_leaves, num_networks * widths[0], name="dense_0")
        self.later = [
            LeafDense(num_networks * num_leaves, units, name=f"dense_{place}")
            for place, units in enumerate(widths[1:], 1)
        ]

    def build(self, input_shape: Sequence[Any]) -> None:
        self.first.build(input_shape)
        units = self.first.units // self.num_networks
        for layer in self.later:
            layer.build((self.num_networks * self.num_leaves, None, units))
            units = layer.units

    def call(self, inputs: tf.Tensor) -> list[tf.Tensor]:
        features = tf.concat(tf.split(self.first(inputs), self.num_networks, axis=-1), axis=0)
        for layer in self.later:
            features = layer(softplus(features))
        return tf.split(features, self.num_networks, axis=0)


class LeafConvEncoder(keras.layers.Layer):
    """Two convolutions, a dense layer and linear heads: [L, N, h * w * C] -> a list of [L, N, output_units].

    Args:
        num_leaves: L.
        image_shape: (h, w, C) of one leaf's inputs; h and w must be divisible by stride**2.
        filters: of the two convolutions.
        stride: of both.
        dense_units: of the dense layer.
        output_units: of each head.
        num_heads: how many.
    """

    def __init__(
        self,
        num_leaves: int,
        image_shape: tuple[int, int, int],
        filters: tuple[int, int],
        stride: int,
        dense_units: int,
        output_units: int,
        *,
        num_heads: int = 2,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.num_leaves, self.image_shape, self.num_heads = num_leaves, tuple(image_shape), num_heads
        self.convolutions = [
            LeafConv(num_leaves, count, stride=stride, name=f"conv_{place}") for place, count in enumerate(filters)
        ]
        self.dense = LeafDense(num_leaves, dense_units, name="dense")
        self.heads = LeafDense(num_leaves, num_heads * output_units, name="heads")
        self.features = feature_map(image_shape, stride, filters[-1])

    def build(self, input_shape: object = None) -> None:
        channels = self.image_shape[-1]
        for layer in self.convolutions:
            layer.build((self.num_leaves, None, None, None, channels))
            channels = layer.filters
        self.dense.build((self.num_leaves, None, int(np.prod(self.features))))
        self.heads.build((self.num_leaves, None, self.dense.units))

    def call(self, inputs: tf.Tensor) -> list[tf.Tensor]:
        num = tf.shape(inputs)[1]
        images = tf.reshape(inputs, [self.num_leaves, num, *self.image_shape])
        for layer in self.convolutions:
            images = softplus(layer(images))
        flat = tf.reshape(images, [self.num_leaves, num, int(np.prod(self.features))])
        return tf.split(self.heads(softplus(self.dense(flat))), self.num_heads, axis=-1)


class LeafConvDecoder(keras.layers.Layer):
    """A dense layer to a feature map, a transposed convolution and one that holds all heads.

    [L, N, I] -> a list of [L, N, h * w * C], the heads on one trunk.

    Args:
        num_leaves: L.
        image_shape: (h, w, C) of one leaf's outputs.
        filters: those of the encoder; the feature map has the second number, the transposed convolution the first.
        stride: of both.
        num_heads: how many.
    """

    def __init__(
        self,
        num_leaves: int,
        image_shape: tuple[int, int, int],
        filters: tuple[int, int],
        stride: int,
        *,
        num_heads: int,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.num_leaves, self.image_shape, self.num_heads = num_leaves, tuple(image_shape), num_heads
        self.features = feature_map(image_shape, stride, filters[1])
        self.dense = LeafDense(num_leaves, int(np.prod(self.features)), name="dense")
        self.hidden = LeafConv(num_leaves, filters[0], stride=stride, transpose=True, name="conv_0")
        self.heads = LeafConv(num_leaves, num_heads * image_shape[-1], stride=stride, transpose=True, name="conv_1")

    def build(self, input_shape: Sequence[Any]) -> None:
        self.dense.build(input_shape)
        self.hidden.build((self.num_leaves, None, *self.features))
        self.heads.build((self.num_leaves, None, None, None, self.hidden.filters))

    def call(self, inputs: tf.Tensor) -> list[tf.Tensor]:
        num = tf.shape(inputs)[1]
        features = tf.reshape(softplus(self.dense(inputs)), [self.num_leaves, num, *self.features])
        images = self.heads(softplus(self.hidden(features)))
        size = int(np.prod(self.image_shape))
        return [tf.reshape(head, [self.num_leaves, num, size]) for head in tf.split(images, self.num_heads, axis=-1)]


def feature_map(image_shape: Sequence[int], stride: int, filters: int) -> tuple[int, int, int]:
    """Shape after two convolutions of a stride.

    Raises:
        ValueError: a height or width that two strides do not divide.
    """
    height, width = image_shape[:2]
    if height % stride**2 or width % stride**2:
        raise ValueError(
            f"two convolutions of stride {stride} need sides divisible by {stride**2}, found {height} x {width}"
        )
    return height // stride**2, width // stride**2, filters

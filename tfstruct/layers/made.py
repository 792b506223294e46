"""A masked autoregressive network: every output sees only the inputs before it, and a context."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfstruct.bijectors.order import resolve_order
from tfstruct.layers.precision import product

# What mixes units would lead around the masks.
ELEMENTWISE = (
    "elu", "gelu", "leaky_relu", "linear", "mish", "relu", "selu", "sigmoid", "silu", "softplus", "softsign", "swish",
    "tanh",
)  # fmt: skip


def make_masks(places: np.ndarray, hidden_units: Sequence[int], has_context: bool) -> list[np.ndarray]:
    """Returns the masks of the kernels, Boolean [inputs, units] from the first layer to the outputs.

    A hidden unit of degree d sees the inputs of places below d and is seen by the outputs of places d and above. The
    degrees of a layer are spread evenly, so that a layer narrower than the input still serves every output. Degree 0
    sees the context alone: without such units the first output could not depend on it.

    Args:
        places: of the dimensions in the order, [D].
        hidden_units: widths of the hidden layers.
        has_context: whether the first layer also reads a context.
    """
    dim = len(places)
    lowest = 0 if has_context or dim == 1 else 1
    degrees = [np.round(np.linspace(lowest, dim - 1, units)).astype(np.int64) for units in hidden_units]
    seen, masks = places + 1, []  # an input of place p counts as a unit of degree p + 1
    for layer in degrees:
        masks.append(seen[:, np.newaxis] <= layer)
        seen = layer
    masks.append(seen[:, np.newaxis] <= places)
    return masks


def check_masks(masks: Sequence[np.ndarray], places: np.ndarray) -> None:
    """Raises ValueError, naming input and output, if a path leads from an input to an output not after it."""
    paths = np.asarray(masks[0], np.int64)
    for mask in masks[1:]:
        paths = np.minimum(paths @ np.asarray(mask, np.int64), 1)  # whether there is a path, not how many
    wrong = np.argwhere((paths > 0) & (places[:, np.newaxis] >= places))
    if len(wrong):
        source, target = wrong[0]
        raise ValueError(
            f"the masks let output {target} (place {places[target]}) see input {source} (place {places[source]}): "
            "they do not keep to the order"
        )


class MADE(keras.layers.Layer):
    """Masked autoencoder for distribution estimation, with a context.

    [..., D] and a context [..., C] to `outputs_per_dim` tensors [..., D], of which entry i depends on the inputs whose
    place in the order is before that of i, and on the context. The context's leading axes may be fewer; they broadcast.

    Args:
        dim: D.
        hidden_units: widths of the hidden layers, at least one.
        context_dim: C; 0 for no context.
        outputs_per_dim: number of tensors returned.
        activation: name of a Keras activation that works unit by unit.
        order: `forward`, `reversed`, or the place of each dimension.
        output_scale: factor on the initial kernel of the output layer; small, a flow starts near a scaling.

    Raises:
        ValueError: sizes below 1, an activation that mixes units, an order that is no permutation; at build masks that
            do not keep to the order.

    References:
        Germain et al., MADE, ICML 2015; the context of Kingma et al., Improved Variational Inference with Inverse
        Autoregressive Flow, NIPS 2016.
    """

    def __init__(
        self,
        dim: int,
        hidden_units: Sequence[int],
        *,
        context_dim: int = 0,
        outputs_per_dim: int = 2,
        activation: str = "relu",
        order: str | Sequence[int] = "forward",
        output_scale: float = 0.1,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if dim < 1 or outputs_per_dim < 1 or not hidden_units or min(hidden_units) < 1 or context_dim < 0:
            raise ValueError(
                "MADE needs dim, outputs_per_dim and at least one width of hidden_units to be 1 or more and "
                f"context_dim 0 or more, found dim={dim}, outputs_per_dim={outputs_per_dim}, "
                f"hidden_units={tuple(hidden_units)}, context_dim={context_dim}"
            )
        self.dim, self.hidden_units, self.context_dim = dim, tuple(hidden_units), context_dim
        self.outputs_per_dim, self.output_scale = outputs_per_dim, output_scale
        if activation not in ELEMENTWISE:
            raise ValueError(f"the activation must work unit by unit: {', '.join(ELEMENTWISE)}; found {activation!r}")
        self.activation = keras.activations.get(activation)
        self.order = resolve_order(order, dim)

    def build(self, input_shape: object = None) -> None:
        masks = make_masks(self.order, self.hidden_units, self.context_dim > 0)
        check_masks(masks, self.order)
        masks[-1] = np.tile(masks[-1], [1, self.outputs_per_dim])
        self.masks = [mask.astype(np.float32) for mask in masks]
        self.kernels, self.biases = [], []
        for index, mask in enumerate(self.masks):
            fan_in, units = mask.shape
            limit = float(np.sqrt(6.0 / (fan_in + units))) * (self.output_scale if index == len(masks) - 1 else 1.0)
            initializer = keras.initializers.RandomUniform(-limit, limit)
            self.kernels.append(self.add_weight(name=f"kernel_{index}", shape=mask.shape, initializer=initializer))
            self.biases.append(self.add_weight(name=f"bias_{index}", shape=(units,), initializer="zeros"))
        if self.context_dim:
            self.context_kernel = self.add_weight(
                name="context_kernel", shape=(self.context_dim, self.hidden_units[0]), initializer="glorot_uniform"
            )
        self.built = True

    def call(self, inputs: tf.Tensor, context: tf.Tensor | None = None) -> list[tf.Tensor]:
        self.check_context(context)
        features = inputs
        for index in range(len(self.kernels)):
            features = self._linear(index, features, context)
            if index < len(self.kernels) - 1:
                features = self.activation(features)
        return tf.split(features, self.outputs_per_dim, axis=-1)

    def with_jacobian(
        self, inputs: tf.Tensor, context: tf.Tensor | None = None
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Returns what `call` does, and d output[i] / d input[j] of each output as [..., j, i].

        All D tangents go through the layers together, as one product a layer: the work of D passes in one.
        """
        self.check_context(context)
        features, tangents = inputs, None
        for index in range(len(self.kernels)):
            features = self._linear(index, features, context)
            kernel = self._masked_kernel(index)
            tangents = kernel if tangents is None else product(tf.matmul, tangents, kernel)
            if index < len(self.kernels) - 1:
                with tf.GradientTape() as tape:
                    tape.watch(features)
                    activated = self.activation(features)
                tangents *= tape.gradient(activated, features)[..., tf.newaxis, :]  # elementwise: the slopes
                features = activated
        return tuple(tf.split(values, self.outputs_per_dim, axis=-1) for values in (features, tangents))

    def check_context(self, context: tf.Tensor | None) -> None:
        """Raises ValueError for a context that is missing, not asked for, or of another width."""
        found = 0 if context is None else context.shape[-1]
        if found != self.context_dim:
            raise ValueError(f"this network was built for a context of {self.context_dim} features, found {found}")

    def _masked_kernel(self, index: int) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.kernels[index])
        return kernel * tf.constant(self.masks[index], kernel.dtype)

    def _linear(self, index: int, features: tf.Tensor, context: tf.Tensor | None) -> tf.Tensor:
        features = product(_last_axis, features, self._masked_kernel(index)) + self.biases[index]
        if index == 0 and context is not None:
            features += product(_last_axis, context, tf.convert_to_tensor(self.context_kernel))
        return features


def _last_axis(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Not `@`: that takes no single vector, and multiplies a batch of samples matrix by matrix."""
    return tf.tensordot(inputs, kernel, axes=1)

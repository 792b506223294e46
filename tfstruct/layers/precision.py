"""Matrix products and convolutions of networks in half precision, in a scope; what goes in and comes out is float32."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

_DTYPE: contextvars.ContextVar[tf.DType | None] = contextvars.ContextVar("product_dtype", default=None)


@contextlib.contextmanager
def product_precision(name: str) -> Iterator[None]:
    """Products of networks that are traced in this scope, and of their gradients, are computed in a precision.

    Weights, activations, normalisations, samples and log-probabilities stay float32: a product rounds what it takes and
    what it gives to 8 bits (mixed precision, Micikevicius et al., ICLR 2018). bfloat16 has the range of float32, so the
    loss needs no scale.

    Args:
        name: `float32` or `bfloat16`.

    Raises:
        ValueError: another precision.
    """
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be float32 or bfloat16, found {name!r}")
    token = _DTYPE.set(None if name == "float32" else tf.bfloat16)
    try:
        yield
    finally:
        _DTYPE.reset(token)


def product(multiply: Callable[[Any, Any], tf.Tensor], inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Returns multiply(inputs, kernel), which is linear in both, in the scope's precision."""
    dtype = _DTYPE.get()
    if dtype is None:
        return multiply(inputs, kernel)
    return tf.cast(multiply(tf.cast(inputs, dtype), tf.cast(kernel, dtype)), inputs.dtype)


class Dense(keras.layers.Dense):
    """Keras' dense layer, its product in the scope's precision."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        del training
        outputs = product(keras.ops.matmul, inputs, tf.convert_to_tensor(self.kernel))
        if self.use_bias:
            outputs += tf.convert_to_tensor(self.bias)
        return outputs if self.activation is None else self.activation(outputs)

"""A Keras layer that owns the networks of an inverse autoregressive flow."""

from collections.abc import Sequence

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfstruct.bijectors import inverse_autoregressive
from tfstruct.bijectors.inverse_autoregressive import InverseAutoregressive
from tfstruct.layers.made import MADE


class InverseAutoregressiveFlow(keras.layers.Layer):
    """A chain of inverse autoregressive steps whose order is reversed from one to the next.

    A base sample [..., D] and a context [..., C] to the flowed vector and its log slopes, each [..., D]; the sum of the
    log slopes is log |det dy/dx| (nats). Reversing the networks' order rather than the vector is the same flow up to
    the numbering of dimensions, and moves no data.

    Args:
        dim: D.
        steps: number of steps, at least 1.
        hidden_units: widths of the hidden layers of each step's network.
        context_dim: C; 0 for no context.
        activation: of the networks.
        gate_bias: see InverseAutoregressive.

    Raises:
        ValueError: no steps, or sizes that MADE refuses.
    """

    def __init__(
        self,
        dim: int,
        steps: int,
        hidden_units: Sequence[int],
        *,
        context_dim: int = 0,
        activation: str = "relu",
        gate_bias: float = 2.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if steps < 1:
            raise ValueError(f"a flow needs at least one step, found {steps}")
        self.gate_bias = gate_bias
        self.networks = [
            MADE(
                dim,
                hidden_units,
                context_dim=context_dim,
                activation=activation,
                order="reversed" if index % 2 else "forward",
                name=f"step_{index}",
            )
            for index in range(steps)
        ]

    def build(self, input_shape: object = None) -> None:
        for network in self.networks:
            network.build()
        self.built = True

    def bijector(self, context: tf.Tensor | None = None) -> tfb.Chain:
        """Returns the flow at a context, for use inside the method that asks for it.

        Raises:
            ValueError: a context that is missing, not asked for, or of another width.
        """
        self.networks[0].check_context(context)
        steps = [InverseAutoregressive(network, context, gate_bias=self.gate_bias) for network in self.networks]
        return inverse_autoregressive.chain(steps)

    def call(self, inputs: tf.Tensor, context: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        return inverse_autoregressive.forward_and_log_slopes(self.bijector(context), inputs)

    def invert(self, outputs: tf.Tensor, context: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the base vector of a flowed one, and the log slopes there, each [..., D]; D network passes a step."""
        return inverse_autoregressive.inverse_and_log_slopes(self.bijector(context), outputs)

    def push_score(
        self, inputs: tf.Tensor, score: tf.Tensor, context: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the flowed vector, its log slopes and the score of its density, given the base's; each [..., D]."""
        return inverse_autoregressive.push_score(self.bijector(context), inputs, score)

"""Gaussians over the latents of many VAEs, several for each: the components of their priors."""

import keras
import numpy as np
import tensorflow as tf

from tfstruct.distributions.gaussian import LOG_TWO_PI

_LOG_EXCESS_START = float(np.log(np.e - 1.0))


class GaussianComponents(keras.layers.Layer):
    """Log densities of latents [V, N, Z] under the I diagonal Gaussians of each of V VAEs, in nats: [V, I, N].

    Precisions are 1 + exp(weight), so that no component is wider than a posterior of an SPVAE can be; they start as e,
    and means as N(0, 1). The squares are matrix products: one component more costs Z multiplications for each latent
    and no memory, and the rounding error grows with the square of a latent in standard deviations.

    Args:
        num_vaes: V.
        num_components: I.
        latent_dim: Z.

    Examples:
        >>> GaussianComponents(16, 64, 8)(tf.zeros([16, 5, 8])).shape
        TensorShape([16, 64, 5])
    """

    def __init__(self, num_vaes: int, num_components: int, latent_dim: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_vaes, self.num_components, self.latent_dim = num_vaes, num_components, latent_dim

    def build(self, input_shape: object = None) -> None:
        shape = (self.num_vaes, self.num_components, self.latent_dim)
        self.mean = self.add_weight(name="mean", shape=shape, initializer=keras.initializers.RandomNormal(stddev=1.0))
        self.log_excess = self.add_weight(
            name="log_excess_precision", shape=shape, initializer=keras.initializers.Constant(_LOG_EXCESS_START)
        )
        self.built = True

    def call(self, z: tf.Tensor) -> tf.Tensor:
        mean, precision = self._parameters()
        squares = tf.matmul(precision, tf.square(z), transpose_b=True)
        squares -= 2.0 * tf.matmul(precision * mean, z, transpose_b=True)
        constant = precision * tf.square(mean) - tf.math.log(precision) + LOG_TWO_PI
        return -0.5 * (squares + tf.reduce_sum(constant, axis=-1, keepdims=True))

    def sample(self, noise: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
        """Turns standard normal noise [V, N, Z] into draws of chosen components, zeros and ones [V, N, I]."""
        mean, precision = self._parameters()
        return chosen @ mean + noise * (chosen @ tf.math.rsqrt(precision))

    def _parameters(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Means and precisions, each [V, I, Z]."""
        return tf.convert_to_tensor(self.mean), 1.0 + tf.exp(tf.convert_to_tensor(self.log_excess))

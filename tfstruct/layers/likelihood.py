"""Likelihoods p(x | z): layers that turn the decoder's output into a distribution of x.

Each has `log_prob`, `mean` and `sample`, and builds its TensorFlow Probability distribution inside them.
"""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfstruct import random

tfd = tfp.distributions


class BernoulliLikelihood(keras.layers.Layer):
    """Independent pixels in {0, 1}; the decoder's output [..., X] holds their logits."""

    is_binary = True

    def build(self, input_shape: object = None) -> None:
        self.built = True

    def distribution(self, features: tf.Tensor) -> tfd.Distribution:
        """Returns p(x | z) with event [X]."""
        return tfd.Independent(tfd.Bernoulli(logits=features), reinterpreted_batch_ndims=1)

    def log_prob(self, features: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Log p(x | z) in nats: features [..., X] and x [B, X] to [..., B]."""
        return self.distribution(features).log_prob(x)

    def mean(self, features: tf.Tensor) -> tf.Tensor:
        """E[x | z], [..., X]."""
        return tf.sigmoid(features)

    def sample(self, features: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draws x, [B, X], with one key per row or one for all."""
        return tf.cast(_row_uniform(seed, features) < tf.sigmoid(features), features.dtype)


class GaussianLikelihood(keras.layers.Layer):
    """Independent real values: mean sigmoid(f), log variance a linear map of f with a floor.

    The floor is smooth: log variance = floor + softplus(linear(f) - floor). Without one the density of a pixel
    that is constant in the data grows without bound.

    Args:
        dims: X.
        log_variance_floor: least log variance.

    References:
        Graph VAE, section 4.1 and appendix A.2.1 (CIFAR-10).
    """

    is_binary = False

    def __init__(self, dims: int, log_variance_floor: float, **kwargs) -> None:
        super().__init__(**kwargs)
        self.log_variance_floor = log_variance_floor
        self.log_variance = keras.layers.Dense(dims, name="log_variance")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.log_variance.build(input_shape)

    def distribution(self, features: tf.Tensor) -> tfd.Distribution:
        """Returns p(x | z) with event [X]."""
        floor = self.log_variance_floor
        log_variance = floor + tf.nn.softplus(self.log_variance(features) - floor)
        normal = tfd.Normal(tf.sigmoid(features), tf.exp(0.5 * log_variance))
        return tfd.Independent(normal, reinterpreted_batch_ndims=1)

    def log_prob(self, features: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Log p(x | z) in nats, a density: features [..., X] and x [B, X] to [..., B]."""
        return self.distribution(features).log_prob(x)

    def mean(self, features: tf.Tensor) -> tf.Tensor:
        """E[x | z], [..., X]."""
        return tf.sigmoid(features)

    def sample(self, features: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draws x, [B, X], with one key per row or one for all."""
        normal = self.distribution(features).distribution
        return normal.loc + normal.scale * random.to_normal(_row_uniform(seed, features))


def _row_uniform(seed: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
    shape = tf.shape(features)
    return random.uniform(seed, shape if len(seed.shape) == 1 else shape[1:], features.dtype)


def make_likelihood(name: str, dims: int, *, log_variance_floor: float) -> keras.layers.Layer:
    """Returns the likelihood layer of a name; raises ValueError that lists the names for any other."""
    if name == "bernoulli":
        return BernoulliLikelihood(name="likelihood")
    if name == "gaussian":
        return GaussianLikelihood(dims, log_variance_floor, name="likelihood")
    raise ValueError(f"likelihood must be bernoulli or gaussian, found {name!r}")

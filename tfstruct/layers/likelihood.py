"""Likelihoods p(x | z): layers that turn a decoder's output into a distribution of whole observations."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfstruct import random
from tfstruct.data.support import REAL
from tfstruct.distributions.color_pixels import ColorLogisticMixturePixels
from tfstruct.distributions.pixels import LogVarianceGaussianPixels, Pixels, make_pixels
from tfstruct.layers.precision import Dense


class Likelihood(keras.layers.Layer):
    """Independent pixels of one family, or colours of independent pixels.

    Args:
        pixels: the family.
        dims: X, the number of values of an observation.

    Attributes:
        num_outputs: what the decoder gives for an observation, O.
        support: where observations lie, one of tfstruct.data.support.
        scale: what an observation is divided by to lie in [0, 1].
        has_mean_logits: whether the decoder's outputs are the logits of E[x] / scale, one for each value.
    """

    def __init__(self, pixels: Pixels, dims: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.pixels = pixels
        self.num_outputs = dims // pixels.num_values * pixels.num_networks * pixels.num_outputs
        self.support, self.scale, self.has_mean_logits = pixels.support, pixels.scale, pixels.has_mean_logits

    def build(self, input_shape: object = None) -> None:
        self.built = True

    def parameters(self, features: tf.Tensor) -> Sequence[tf.Tensor]:
        """What the family takes of the decoder's output [..., O], each [..., X * P]."""
        return tf.split(features, self.pixels.num_networks, axis=-1)

    def log_prob(self, features: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Log p(x | z) in nats: features [..., O] and x [B, X] to [..., B]."""
        return tf.reduce_sum(self.pixels.log_prob(self.parameters(features), x), axis=-1)

    def mean(self, features: tf.Tensor) -> tf.Tensor:
        """E[x | z], [..., X], in the units of x."""
        return self.pixels.mean(self.parameters(features))

    def sample(self, features: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draws x, [B, X], with one key per row or one for all."""
        parameters = self.parameters(features)
        dims = parameters[0].shape[-1] // self.pixels.num_outputs * self.pixels.num_values
        shape = [dims * self.pixels.num_uniforms]
        shape = shape if len(seed.shape) > 1 else [tf.shape(features)[0], *shape]
        uniforms = random.uniform(seed, shape, features.dtype)
        return self.pixels.sample(parameters, tf.split(uniforms, self.pixels.num_uniforms, axis=-1))


class GaussianLikelihood(Likelihood):
    """Independent real values: mean sigmoid(f), log variance a linear map of f with a floor.

    Args:
        dims: X.
        log_variance_floor: least log variance.

    References:
        Graph VAE, section 4.1 and appendix A.2.1 (CIFAR-10).
    """

    def __init__(self, dims: int, log_variance_floor: float, **kwargs) -> None:
        super().__init__(LogVarianceGaussianPixels(log_variance_floor), dims, **kwargs)
        self.num_outputs, self.support = dims, REAL
        self.log_variance = Dense(dims, name="log_variance")

    def build(self, input_shape: Sequence[Any]) -> None:
        self.log_variance.build(input_shape)

    def parameters(self, features: tf.Tensor) -> Sequence[tf.Tensor]:
        return [features, self.log_variance(features)]


def make_likelihood(
    name: str, event_shape: Sequence[int], *, log_variance_floor: float = -7.0, num_components: int = 5
) -> Likelihood:
    """Returns the likelihood layer of a name.

    Args:
        name: bernoulli; gaussian; of the integers 0..255 binomial, categorical, logistic_mixture, spline. A mixture of
            logistics of images [h, w, 3] has colours that depend on one another.
        event_shape: of one observation.
        log_variance_floor: of gaussian.
        num_components: of logistic_mixture and spline.

    Raises:
        ValueError: another name; the known ones are listed.
    """
    dims = math.prod(event_shape)
    if name == "gaussian":
        return GaussianLikelihood(dims, log_variance_floor, name="likelihood")
    if name == "logistic_mixture" and len(event_shape) == 3 and event_shape[-1] == 3:
        return Likelihood(ColorLogisticMixturePixels(num_components), dims, name="likelihood")
    return Likelihood(make_pixels(name, precision_floor=1.0, num_components=num_components), dims, name="likelihood")

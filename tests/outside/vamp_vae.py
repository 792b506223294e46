"""A system as a package of somebody else's would add it: a VAE whose prior mixes posteriors of learned pseudo-inputs.

p(z) = mean over c of q(z | u_c), so that the encoder belongs to p as well as to q.

References:
    Tomczak & Welling, VAE with a VampPrior, AISTATS 2018.
"""

import math
from typing import Literal

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field

from tfstruct import random
from tfstruct.distributions.gaussian import gaussian_log_prob
from tfstruct.inference.objectives import Draws, ImportanceTerms
from tfstruct.layers.likelihood import make_likelihood
from tfstruct.layers.mlp import MLP, BlockOptions
from tfstruct.math import log_mean_exp
from tfstruct.models import config as config_lib
from tfstruct.models.presets import SHORT, register_preset
from tfstruct.models.query import Query
from tfstruct.models.registry import SYSTEMS, SystemEntry
from tfstruct.models.system import System
from tfstruct.settings import Count


class Model(config_lib.Model):
    """Networks and prior."""

    num_latents: Count = Field(default=40, description="Z")
    num_components: Count = Field(default=500, description="of the prior")
    hidden_units: tuple[Count, ...] = (300, 300)


class Config(config_lib.Config):
    """Data, training and evaluation are those of every system."""

    system: Literal["vamp_vae"] = "vamp_vae"
    model: Model = Model()


class VampVAE(System):
    """p(x | z) is Bernoulli, q(z | x) a diagonal Gaussian, p(z) the mixture over pseudo-inputs in (0, 1)."""

    config: Config

    def __init__(self, config: Config, **kwargs) -> None:
        super().__init__(config, **kwargs)
        options, block = self.config.model, BlockOptions("tanh", batch_norm=False)
        self.num_latents, self.dims = options.num_latents, math.prod(self.event_shape)
        self.encoder = MLP(options.hidden_units, 2 * self.num_latents, block, name="encoder")
        self.decoder = MLP(options.hidden_units, self.dims, block, name="decoder")
        self.likelihood = make_likelihood("bernoulli", self.event_shape)

    def build(self, input_shape: object = None) -> None:
        """Makes all weights."""
        self.encoder.build((None, self.dims))
        self.decoder.build((None, self.num_latents))
        self.pseudo_inputs = self.add_weight(
            name="pseudo_inputs",
            shape=(self.config.model.num_components, self.dims),
            initializer=keras.initializers.RandomNormal(stddev=1.0),
        )
        self.built = True

    def _posterior(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and log variance, each [..., Z]."""
        loc, log_variance = tf.split(self.encoder(x), 2, axis=-1)
        return loc, 6.0 * tf.tanh(log_variance / 6.0)

    def _components(self) -> tuple[tf.Tensor, tf.Tensor]:
        return self._posterior(tf.sigmoid(tf.convert_to_tensor(self.pseudo_inputs)))

    def _flat(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.cast(x, tf.float32), [-1, self.dims])

    def _shaped(self, flat: tf.Tensor) -> tf.Tensor:
        return tf.reshape(flat, tf.concat([tf.shape(flat)[:-1], self.event_shape], axis=0))

    def terms(self, x: tf.Tensor, draws: Draws) -> ImportanceTerms:
        """See System; nothing is relaxed, and nothing shared by rows."""
        flat = self._flat(x)
        loc, log_variance = self._posterior(flat)
        noise = random.sample_normal(draws.seed, draws.num_samples, tf.shape(flat)[0], [self.num_latents])
        z = loc + tf.exp(0.5 * log_variance) * noise
        fixed = tf.stop_gradient(loc), tf.stop_gradient(log_variance)
        components = tf.reduce_sum(gaussian_log_prob(z[..., tf.newaxis, :], *self._components()), axis=-1)
        return ImportanceTerms(
            log_likelihood=self.likelihood.log_prob(self.decoder(z), flat),
            log_prior=log_mean_exp(components, axis=-1),
            log_posterior=tf.reduce_sum(gaussian_log_prob(z, loc, log_variance), axis=-1),
            log_posterior_path=tf.reduce_sum(gaussian_log_prob(z, *fixed), axis=-1) if draws.path else None,
        )

    def sample(self, num: int | tf.Tensor, *, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System: a component, then its Gaussian, then pixels."""
        latent_key, pixel_key = random.split(seed)
        choice_key, noise_key = random.split(random.keys_of_samples(latent_key, 1, num)[0])
        loc, log_variance = self._components()
        chosen = tf.cast(random.uniform(choice_key, []) * float(self.config.model.num_components), tf.int32)
        noise = random.normal(noise_key, [self.num_latents])
        z = tf.gather(loc, chosen) + tf.exp(0.5 * tf.gather(log_variance, chosen)) * noise
        logits = self.decoder(z)
        return {
            "x_mean": self._shaped(self.likelihood.mean(logits)),
            "x": self._shaped(self.likelihood.sample(logits, pixel_key)),
        }

    def encode(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System."""
        loc, log_variance = self._posterior(self._flat(x))
        return {"z_mean": loc, "z_std": tf.exp(0.5 * log_variance)}

    def decode(self, z: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System."""
        return {"x_mean": self._shaped(self.likelihood.mean(self.decoder(z)))}

    def reconstruct(self, x: tf.Tensor, *, seed: tf.Tensor) -> tf.Tensor:
        """See System."""
        encoded = self.encode(x)
        noise = random.sample_normal(seed, 1, tf.shape(encoded["z_mean"])[0], [self.num_latents])[0]
        return self.decode(encoded["z_mean"] + encoded["z_std"] * noise)["x_mean"]

    def component_probs(self, x: tf.Tensor, *, seed: tf.Tensor) -> tf.Tensor:
        """Probabilities of the prior's components given a draw of q(z | x), [B, num_components]."""
        loc, log_variance = self._posterior(self._flat(x))
        z = loc + tf.exp(0.5 * log_variance) * random.sample_normal(seed, 1, tf.shape(loc)[0], [self.num_latents])[0]
        logits = tf.reduce_sum(gaussian_log_prob(z[..., tf.newaxis, :], *self._components()), axis=-1)
        return tf.nn.softmax(logits)

    @property
    def queries(self) -> dict[str, Query]:
        """See System; one more than others have."""
        own = Query(("x", "seed"), "estimate", lambda model, inputs: {"probs": model.component_probs(**inputs)})
        return super().queries | {"component_probs": own}


_TINY = {
    "model.num_latents": 6,
    "model.num_components": 5,
    "model.hidden_units": (24,),
    "optimizer.learning_rate": 3e-3,
    **SHORT,
}
SYSTEMS.register("vamp_vae", SystemEntry(Config, lambda: VampVAE))
register_preset("vamp_vae/tiny", "VAE with a VampPrior, small, 200 steps, for tests.", Config, _TINY)


def log_prior(model: VampVAE, z: np.ndarray) -> np.ndarray:
    """Log p(z) of latents [..., Z] in float64, for comparison."""
    loc, log_variance = (np.asarray(part, np.float64) for part in model._components())
    squares = (z[..., np.newaxis, :] - loc) ** 2 * np.exp(-log_variance)
    logs = -0.5 * (squares + log_variance + np.log(2.0 * np.pi)).sum(axis=-1)
    return np.logaddexp.reduce(logs, axis=-1) - np.log(len(loc))

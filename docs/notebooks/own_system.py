# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own system
#
# A system is a class with five methods and a config. Training, evaluation, export and serving come with them. This one is
# a VAE with two latents whose prior is a mixture of ten Gaussians, all of them learned.

# %%
# %matplotlib inline
import tempfile
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

import tfstruct
from tfstruct import plotting, random
from tfstruct.data import load, mnist
from tfstruct.distributions.gaussian import gaussian_log_prob
from tfstruct.evaluation import report
from tfstruct.inference.objectives import ImportanceTerms
from tfstruct.layers.likelihood import make_likelihood
from tfstruct.layers.mlp import MLP, BlockOptions
from tfstruct.models import presets
from tfstruct.models.config import Config as BaseConfig
from tfstruct.models.presets import SHORT, register_preset
from tfstruct.models.registry import SYSTEMS, SystemEntry
from tfstruct.models.system import System
from tfstruct.training.run import train

NUM_LATENTS, NUM_COMPONENTS = 2, 10


class Config(BaseConfig):
    """Data, training and evaluation are those of every system."""

    system: Literal["mixture_vae"] = "mixture_vae"


class MixtureVAE(System):
    """p(x | z) is Bernoulli, q(z | x) a diagonal Gaussian, p(z) a mixture of unit Gaussians."""

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        block = BlockOptions("relu", batch_norm=False)
        self.encoder = MLP((256,), 2 * NUM_LATENTS, block, name="encoder")
        self.decoder = MLP((256,), 784, block, name="decoder")
        self.likelihood = make_likelihood("bernoulli", self.event_shape)

    def build(self, input_shape=None):
        self.encoder.build((None, 784))
        self.decoder.build((None, NUM_LATENTS))
        self.means = self.add_weight(
            name="means", shape=(NUM_COMPONENTS, NUM_LATENTS), initializer=keras.initializers.RandomNormal(stddev=2.0)
        )
        self.logits = self.add_weight(name="logits", shape=(NUM_COMPONENTS,), initializer="zeros")
        self.built = True

    def posterior(self, x):
        return tf.split(self.encoder(tf.reshape(tf.cast(x, tf.float32), [-1, 784])), 2, axis=-1)

    def log_prior(self, z):
        parts = gaussian_log_prob(z[..., tf.newaxis, :], tf.convert_to_tensor(self.means), tf.zeros([NUM_LATENTS]))
        weights = tf.nn.log_softmax(tf.convert_to_tensor(self.logits))
        return tf.reduce_logsumexp(tf.reduce_sum(parts, axis=-1) + weights, axis=-1)

    def draw(self, x, seed, num_samples):  # [K, B, 2]
        loc, log_variance = self.posterior(x)
        noise = random.sample_normal(seed, num_samples, tf.shape(loc)[0], [NUM_LATENTS])
        return loc + tf.exp(0.5 * log_variance) * noise

    def terms(self, x, draws):
        z = self.draw(x, draws.seed, draws.num_samples)
        loc, log_variance = self.posterior(x)
        fixed = tf.stop_gradient(loc), tf.stop_gradient(log_variance)
        return ImportanceTerms(
            log_likelihood=self.likelihood.log_prob(self.decoder(z), tf.reshape(tf.cast(x, tf.float32), [-1, 784])),
            log_prior=self.log_prior(z),
            log_posterior=tf.reduce_sum(gaussian_log_prob(z, loc, log_variance), axis=-1),
            log_posterior_path=tf.reduce_sum(gaussian_log_prob(z, *fixed), axis=-1) if draws.path else None,
        )

    def sample(self, num, *, seed):
        component_key, latent_key, pixel_key = random.split(seed, 3)
        uniform = random.uniform(random.keys_of_samples(component_key, 1, num)[0], [])
        chosen = random.choose(uniform, tf.broadcast_to(tf.nn.log_softmax(self.logits), [num, NUM_COMPONENTS]))
        noise = random.sample_normal(latent_key, 1, num, [NUM_LATENTS])[0]
        z = tf.gather(tf.convert_to_tensor(self.means), chosen) + noise
        logits = self.decoder(z)
        drawn = {"x_mean": self.likelihood.mean(logits), "x": self.likelihood.sample(logits, pixel_key)}
        return {name: tf.reshape(x, [-1, 28, 28]) for name, x in drawn.items()}

    def encode(self, x):
        loc, log_variance = self.posterior(x)
        return {"z_mean": loc, "z_std": tf.exp(0.5 * log_variance)}

    def decode(self, z):
        return {"x_mean": tf.reshape(self.likelihood.mean(self.decoder(z)), [-1, 28, 28])}

    def reconstruct(self, x, *, seed):
        return self.decode(self.draw(x, seed, 1)[0])["x_mean"]


SYSTEMS.register("mixture_vae", SystemEntry(Config, lambda: MixtureVAE))
preset = register_preset(
    "mixture_vae/tiny", "A VAE with a mixture as prior on dynamically binarised MNIST.", Config, SHORT
)

# %% [markdown]
# The trainer knows it now: validation, checkpoints, resuming and best weights included.

# %%
folder = tempfile.mkdtemp()
changes = ["training.steps=3000", "training.validate_every=1000", "training.batch_size=128"]
train(presets.get("mixture_vae/tiny", changes), folder)
run = report.TrainedRun(folder)
print(report.summary_line(report.evaluate(run, num_samples=100, images=500)))

# %%
test = load("mnist", "dynamic").test[:1000]
latents = run.use().encode(test)["z_mean"].numpy()
plotting.draw_latent_map(latents, mnist.read("test", "labels")[:1000].astype(int), title="digit")

# %% [markdown]
# Two latents are few, and the map shows what they are used for. An export needs this module no more: the bundle answers
# with TensorFlow alone.

# %%
tfstruct.export(run.use(), f"{folder}/export/1", test)
bundle = tfstruct.load(f"{folder}/export")
print(np.round(bundle.log_prob(test[:3], seed=0)["log_prob"], 1), "nats")
plotting.draw_grid(bundle.sample(20, seed=1)["x_mean"], columns=10)

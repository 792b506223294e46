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
# # Flows: posteriors that bend
#
# A Gaussian posterior cannot follow a true posterior that is curved. An inverse autoregressive flow (IAF) sends a draw of
# the Gaussian through networks whose Jacobian is triangular, so the density of the result stays exact.

# %%
# %matplotlib inline
import tempfile

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from matplotlib.figure import Figure

from tfstruct.evaluation import report
from tfstruct.layers.flow import InverseAutoregressiveFlow
from tfstruct.models import presets
from tfstruct.training.run import train

# %% [markdown]
# ## One flow by itself
#
# We fit a flow of two dimensions to a target that no Gaussian fits: y | x ~ N(x², 1/4), x ~ N(0, 1). The loss is
# E_q[log q(z) - log p(z)], the KL divergence from q to p, since p is normalised.

# %%
flow = InverseAutoregressiveFlow(2, steps=4, hidden_units=(32, 32), context_dim=1)
flow.build()
base = tfp.distributions.MultivariateNormalDiag(tf.zeros([2]))
posterior = tfp.distributions.TransformedDistribution(base, flow.bijector(tf.ones([1])))
normal = tfp.distributions.Normal


def target_log_prob(z):
    return normal(0.0, 1.0).log_prob(z[..., 0]) + normal(z[..., 0] ** 2, 0.5).log_prob(z[..., 1])


@tf.function(autograph=False)
def step(seed, size=512):
    with tf.GradientTape() as tape:
        z = posterior.sample(size, seed=seed)
        divergence = tf.reduce_mean(posterior.log_prob(z) - target_log_prob(z))
    gradients = tape.gradient(divergence, flow.trainable_variables)
    optimizer.apply_gradients(zip(gradients, flow.trainable_variables, strict=True))
    return divergence


optimizer = keras.optimizers.Adam(3e-3)
history = [float(step(tf.constant([0, number]))) for number in range(1500)]
print(f"KL divergence: {history[0]:.2f} nats at the start, {np.mean(history[-100:]):.3f} at the end")

# %%
z = posterior.sample(2000, seed=[1, 0]).numpy()
figure = Figure(figsize=(5, 4), layout="constrained")
axes = figure.add_subplot(xlabel="first dimension", ylabel="second dimension", title="2,000 draws of the flow")
axes.scatter(*z.T, s=4, linewidths=0)
figure

# %% [markdown]
# The density is exact. Of a point from elsewhere it takes one network pass for each dimension, so we check it on a few: the
# same numbers, whether the flow remembers how it drew a point or has to invert itself.

# %%
drawn = posterior.sample(5, seed=[2, 0])
remembered, inverted = posterior.log_prob(drawn), posterior.log_prob(tf.identity(drawn))
print(f"largest difference: {np.abs(remembered - inverted).max():.1e} nats")

# %% [markdown]
# ## In a VAE
#
# What a better posterior buys is a smaller gap between the bound (ELBO) and log p(x). Two short runs, of the same VAE with
# and without a flow:

# %%
for name in ("vae/mnist_quick", "iaf_vae/mnist_quick"):
    folder = tempfile.mkdtemp()
    train(presets.get(name, ["training.steps=1500", "training.validate_every=1500"]), folder)
    mean = report.evaluate(report.TrainedRun(folder), num_samples=200, images=300)["mean"]
    gap = mean["log_likelihood"] - mean["elbo"]
    print(f"{name}: log p(x) {mean['log_likelihood']:.2f}, ELBO {mean['elbo']:.2f}, gap {gap:.2f} nats")

# %% [markdown]
# One seed and 1,500 steps show the size of the gap and not which model is better in the end. The
# [tables](../systems/flows.md) have runs of full length.

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
# # Load a pretrained model and score with it
#
# A bundle answers with TensorFlow alone: it gives estimates of log p(x), draws, latents and reconstructions. This
# notebook loads the Graph VAE of MNIST that comes with the package.

# %%
# %matplotlib inline
import numpy as np

import tfstruct
from tfstruct import plotting
from tfstruct.data import load

model = tfstruct.load("graph_vae/mnist")
test = load("mnist", "dynamic").test[:500]  # zeros and ones: the test set was binarised once

# %% [markdown]
# The card tells where the model comes from. What matters most for a score is the data that it was trained on, and its
# log-likelihood on the test set.

# %%
card = model.card
print(card["preset"], "trained on", card["data"]["name"], card["data"]["variant"])
print("importance samples K of a score:", card["num_samples"])

# %% [markdown]
# Draws from the model, as means of p(x | z):

# %%
plotting.draw_grid(model.sample(40, seed=1)["x_mean"], columns=10)

# %% [markdown]
# ## What is likely and what is not
#
# Scores are in nats. Each has a standard error, since log p(x) is estimated with importance samples; the error of the
# mean over rows is far larger, because digits differ. We compare test digits with the same digits upside down and with
# the same pixels in random places.

# %%
shuffled = np.random.default_rng(0).permuted(test.reshape(len(test), -1), axis=1).reshape(test.shape)
sets = {"test digits": test, "upside down": test[:, ::-1], "pixels shuffled": shuffled}
scores = {name: model.log_prob(rows, seed=0) for name, rows in sets.items()}
for name, found in scores.items():
    values = found["log_prob"]
    error = values.std(ddof=1) / np.sqrt(len(values))
    print(
        f"{name:16} {values.mean():9.1f} +- {error:.1f} nats; error of one estimate {np.median(found['std_err']):.2f}"
    )

# %%
plotting.draw_scores({name: found["log_prob"] for name, found in scores.items()})

# %% [markdown]
# The three overlap where a digit looks much the same upside down. A single low score is no proof of an anomaly: see the
# notebook on anomaly detection for thresholds that keep their promise.
#
# ## Latents and reconstructions

# %%
latents = model.encode(test)["z_mean"]
print("latents:", latents.shape[1], "of which vary by more than 0.01:", int(np.sum(latents.var(axis=0) > 0.01)))
plotting.draw_reconstructions(test[:10].astype(float), model.reconstruct(test[:10], seed=2))

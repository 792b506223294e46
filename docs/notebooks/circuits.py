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
# # Ask a circuit
#
# A sum-product VAE puts small VAEs on the tiles of an image and joins them by a circuit of sums and products. So it
# answers what a plain VAE cannot: log p of some pixels with the others integrated out, draws of the missing given the
# observed, and which part of an image is out of place.

# %%
# %matplotlib inline
import numpy as np
from matplotlib.figure import Figure

import tfstruct
from tfstruct import plotting
from tfstruct.data import load

model = tfstruct.load("spvae/mnist_missing")
test = load("mnist", "discrete").test[:200].astype(np.float32)

# %% [markdown]
# ## Marginal and conditional
#
# `observed` is true where a pixel is known. What stands in the other places has no effect, NaN neither.

# %%
observed = np.broadcast_to(np.arange(28)[:, np.newaxis] < 14, (28, 28))  # the upper half
joint = model.log_prob(test, seed=0)["log_prob"]
upper = model.marginal_log_prob(np.where(observed, test, np.nan), observed, seed=0)["log_prob"]
print(f"log p(upper half)              {upper.mean():9.1f} nats")
print(f"log p(lower half | upper half) {(joint - upper).mean():9.1f} nats")

# %% [markdown]
# What the halves tell of one another shows when they do not belong together: the lower half of another digit is less
# probable given this upper half than its own.

# %%
mixed = np.where(observed, test, np.roll(test, 1, axis=0))
own, others = joint - upper, model.log_prob(mixed, seed=0)["log_prob"] - upper
change = others - np.roll(own, 1)
error = change.std(ddof=1) / np.sqrt(len(change))
print(
    f"log p of a lower half, given a foreign upper half in place of its own: {change.mean():+.2f} +- {error:.2f} nats"
)


# %% [markdown]
# ## Inpainting
#
# Three pixels of ten are known, here and there:

# %%
scattered = np.random.default_rng(1).random((28, 28)) < 0.3
found = model.inpaint(test[:10], scattered, seed=1)["x_mean"]
plotting.draw_reconstructions(test[:10] / 255.0, np.clip(found / 255.0, 0, 1), names=("original", "inpainted"))

# %% [markdown]
# A whole half is harder for this model. The tiles below have no pixel to go by, and the circuit ties them together by
# little more than which leaf each of them takes:

# %%
found = model.inpaint(test[:10], observed, seed=1)["x_mean"]
plotting.draw_reconstructions(test[:10] / 255.0, np.clip(found / 255.0, 0, 1), names=("original", "inpainted"))

# %% [markdown]
# ## What is out of place?
#
# `region_log_prob` gives log p(tile | all other pixels) for each tile. We put a tile of noise into each image and ask
# which tile fits worst, compared with how that tile fits in other images.

# %%
generator = np.random.default_rng(0)
damaged, row, column = test.copy(), 14, 7  # a tile of 7 x 7 pixels
damaged[:, row : row + 7, column : column + 7] = generator.permuted(
    test[:, row : row + 7, column : column + 7].reshape(len(test), -1), axis=1
).reshape(-1, 7, 7)
usual = model.region_log_prob(test, seed=0)["conditional"]
unusual = model.region_log_prob(damaged, seed=0)["conditional"]
standardised = (unusual - usual.mean(axis=0)) / usual.std(axis=0)
worst = np.argmin(standardised, axis=1)
tile = 4 * (row // 7) + column // 7
print(f"the damaged tile fits worst in {np.mean(worst == tile):.0%} of the images; by chance it would be 6 %")

# %%
figure = Figure(figsize=(6.5, 3), layout="constrained")
left, right = figure.subplots(1, 2)
left.imshow(damaged[1], cmap="gray")
left.set(title="a tile with its pixels shuffled", xticks=[], yticks=[])
shown = right.imshow(standardised[1].reshape(4, 4), cmap="viridis")
right.set(title="standardised log p(tile | rest)", xticks=[], yticks=[])
figure.colorbar(shown)
figure

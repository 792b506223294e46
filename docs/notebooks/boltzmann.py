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
# # Boltzmann machines: log Z, and a prior with modes
#
# A restricted Boltzmann machine (RBM) gives probabilities to binary vectors that several modes share. Its density
# needs log Z, a sum over all states. For small machines we can sum; for large ones annealed importance sampling (AIS)
# estimates it.

# %%
# %matplotlib inline
import numpy as np
from matplotlib.figure import Figure

import tfstruct
from tfstruct import plotting
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from tfstruct.inference import log_partition

# %% [markdown]
# ## Exact, and by annealing

# %%
generator = np.random.default_rng(0)
couplings = generator.normal(size=(30, 12)).astype(np.float32)
rbm = RestrictedBoltzmannMachine(generator.normal(size=30), generator.normal(size=12), couplings)
exact = float(rbm.exact_log_partition())
rows = []
for temperatures in (10, 30, 100, 300, 1000):
    found = log_partition(rbm, num_temperatures=temperatures, num_chains=500)
    rows.append((temperatures, float(found.log_partition) - exact, float(found.std_err)))
    print(f"{temperatures:5} temperatures: error {rows[-1][1]:+.3f} nats, standard error {rows[-1][2]:.3f}")

# %% [markdown]
# With few temperatures the estimate is too low more often than too high: exp of it is unbiased, so its logarithm is a
# lower bound on average. The standard error does not see what the chains never visited.

# %%
figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.add_subplot(xlabel="temperatures", ylabel="error of log Z, nats", xscale="log")
axes.errorbar(*zip(*rows, strict=True), fmt="o", capsize=3)
axes.axhline(0.0, color="0.6", linewidth=1)
figure

# %% [markdown]
# Chains that start from samples of the machine and anneal backwards give an upper bound. Together they are a bracket:

# %%
samples = rbm.sample(500, seed=[0, 3])
below = log_partition(rbm, num_temperatures=300, num_chains=500)
above = log_partition(rbm, num_temperatures=300, num_chains=500, method="reverse", initial=samples[:, :30])
print(f"from below {float(below.log_partition):.3f} +- {float(below.std_err):.3f}")
print(f"from above {float(above.log_partition):.3f} +- {float(above.std_err):.3f}, exact {exact:.3f}")

# %% [markdown]
# ## A trained one
#
# DVAE## has such a machine as its prior, and one for every image as its posterior. Latents are binary when the model is
# evaluated. The card of the pretrained model has its log Z.

# %%
model = tfstruct.load("boltzmann_vae/mnist_100")
metrics = model.card["metrics"]
for end, name in (("below", "prior_log_partition"), ("above", "prior_log_partition_upper")):
    print(f"log Z of the prior from {end}: {metrics[name]:.3f} +- {metrics[f'{name}_std_err']:.3f} nats")

# %%
plotting.draw_grid(model.sample(40, seed=1)["x_mean"], columns=10)

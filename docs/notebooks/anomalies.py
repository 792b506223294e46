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
# # Anomaly detection with calibrated scores
#
# A low log p(x) is no p-value: how low is too low? A calibrated bundle compares each score with those of held-out normal
# rows, and gives a p-value that keeps its promise for rows like these: at most the part alpha of normal rows is flagged.

# %%
# %matplotlib inline
import numpy as np

import tfstruct
from tfstruct import plotting
from tfstruct.data import load
from tfstruct.evaluation import foreign
from tfstruct.serving.client import row_seeds

model = tfstruct.load("graph_vae/mnist")
alpha, count = 0.05, 300
data = load("mnist", "dynamic")
sets = {
    "test digits": foreign.spread(data.test, count),
    "upside down": foreign.spread(data.test, count)[:, ::-1],
    "noise": foreign.rows("noise", "dynamic", (28, 28), count=count),
    "constant": foreign.rows("constant", "dynamic", (28, 28), count=count),
}
answers = {
    name: model.anomaly(np.asarray(rows, np.float32), alpha=alpha, seed=row_seeds(0, len(rows)))
    for name, rows in sets.items()
}

# %%
for name, found in answers.items():
    flagged = found["is_anomaly"]
    error = np.sqrt(flagged.mean() * (1 - flagged.mean()) / len(flagged))
    print(f"{name:12} flagged {flagged.mean():6.1%} +- {error:.1%}, median p-value {np.median(found['p_value']):.4f}")

# %% [markdown]
# The first line is the false alarm rate. It may miss alpha = 5 % a little, because MNIST's test digits were written by
# other people than those that the bundle was calibrated on. Digits upside down show the limit: several are digits still.
#
# ## Why not log p(x) alone?
#
# Images with little in them have a high density whatever they show:

# %%
plotting.draw_scores({name: model.log_prob(np.asarray(rows, np.float32))["log_prob"] for name, rows in sets.items()})

# %% [markdown]
# The bundle therefore combines several scores, each calibrated by itself; the card says how well every one of them finds
# foreign data, with intervals. `tfstruct-calibrate` makes such a bundle of a model of yours.

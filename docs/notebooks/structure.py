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
# # Learn a structure and test its edges
#
# A Graph VAE has groups of latents, its nodes, and an edge from each node to every later one. Each edge has a gate
# whose probability is learned with the weights. Here we train a small one for a minute, look at the gates, and then
# ask of each edge what it is worth.

# %%
# %matplotlib inline
import tempfile

import numpy as np

from tfstruct import plotting
from tfstruct.evaluation import report
from tfstruct.models import presets
from tfstruct.training.logging import read_rows
from tfstruct.training.run import train

folder = tempfile.mkdtemp()
config = presets.get("graph_vae/mnist_quick", ["training.steps=2000", "training.validate_every=1000"])
result = train(config, folder)
run = report.TrainedRun(folder)
run

# %%
rows = read_rows(f"{folder}/metrics.jsonl")
plotting.draw_curves(rows, metric="bound")

# %% [markdown]
# All gates start at one half. The bound prefers open ones as soon as the nodes below have something to say:

# %%
gates = np.array([row["train/gate_probabilities"] for row in rows])
edges = run.use().gates.edges
plotting.draw_gate_trajectories([row["step"] for row in rows], gates, edges)

# %%
plotting.draw_structure(np.array(run.structure()["edge_probabilities"]), decided=0.1)

# %% [markdown]
# Dashed edges have not decided yet: 2,000 steps are few, the published runs take 120,000 and more. An evaluation rounds
# every gate.
#
# ## What is an edge worth?
#
# `edges=True` flips one gate at a time, keeps everything else, and estimates the change of the log-likelihood over the
# same images with the same noise. A change below zero says that the model is better with the edge as it is. The standard
# error is over images.

# %%
found = report.evaluate(run, num_samples=50, images=300, edges=True, edge_samples=20, edge_images=300)
print(report.summary_line(found))
for line in report.edge_lines(found):
    print(line)

# %% [markdown]
# A flip without retraining says how much this model uses an edge. It does not say how good a model without that edge
# could become: for that, train one with `model.adjacency`, and compare the two with `tfstruct-compare`.

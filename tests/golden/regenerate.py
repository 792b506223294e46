"""Rewrites losses.json: python tests/golden/regenerate.py. A commit that changes it says why."""

import json
import pathlib
from importlib import metadata

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.data import load
from tfstruct.data.pipeline import batch_indices
from tfstruct.models import presets, registry
from tfstruct.training.loop import TrainLoop, device_state
from tfstruct.training.state import initial_state, stack_states
from tfstruct.training.step import TrainStep, over_replicas

PATH = pathlib.Path(__file__).with_name("losses.json")
PRESETS = (
    "graph_vae/tiny",
    "vae/tiny",
    "ladder_vae/tiny",
    "fc_vae/tiny",
    "iaf_vae/tiny",
    "graph_iaf_vae/tiny",
    "boltzmann_vae/tiny",
    "spvae/tiny",
    "dense_vae/tiny",
    "conv_spvae/tiny",
    "conv_vae/tiny",
)
STEPS = 20


def mean_loss(preset: str) -> float:
    """The mean loss of the first 20 steps of a preset on embedded MNIST, seed 0."""
    config = presets.get(preset)
    data = load("mnist", "dynamic")
    model = registry.build(config)
    model.adapt(data.train)
    step = TrainStep(model, data.train_transform)
    state = device_state(stack_states([initial_state(step.functional, random.key(0), len(data.train))]))
    indices = batch_indices([0], 0, STEPS, config.training.batch_size, len(data.train))
    loop = TrainLoop(over_replicas(step, 1), "graph")
    _, metrics = loop(state, 0, tf.constant(data.train), indices)
    return float(metrics["loss"][0])


if __name__ == "__main__":
    versions = {name: metadata.version(name) for name in ("tensorflow", "keras", "tensorflow-probability", "numpy")}
    losses = {preset: np.round(mean_loss(preset), 4) for preset in PRESETS}
    PATH.write_text(json.dumps({"versions": versions, "losses": losses}, indent=2) + "\n", encoding="utf-8")

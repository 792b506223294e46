"""Every system takes every likelihood."""

from typing import get_args

import numpy as np
import pytest
import tensorflow as tf

from tests.reference.draws import training_draws
from tfstruct import random
from tfstruct.inference.objectives import Draws
from tfstruct.models import presets, registry
from tfstruct.models.config import LikelihoodName

KEY, SHARED_KEY = random.key(17), random.key(5)


@pytest.mark.parametrize("likelihood", get_args(LikelihoodName))
@pytest.mark.parametrize("preset", ["graph_vae/tiny", "boltzmann_vae/tiny", "spvae/tiny"])
def test_every_system_takes_every_likelihood(preset, likelihood):
    shape = (4, 4, 3) if preset != "spvae/tiny" else (4, 4)
    changes = {"model.likelihood": likelihood, "model.num_components": 4, "data.event_shape": shape}
    if preset == "spvae/tiny":
        changes["model.delta"] = 2
    system = registry.build(presets.get(preset).replace(changes), seed=3)
    levels = 256 if system.likelihood.support == "integers_0_255" else 2
    x = tf.constant(np.random.default_rng(0).integers(0, levels, size=[4, *shape]), tf.float32)
    with tf.GradientTape() as tape:
        bound = system.objective(x, training_draws(system, KEY, SHARED_KEY)).generative_loss
    assert np.isfinite(bound)
    gradients = tape.gradient(bound, system.decoder.trainable_variables)
    assert all(np.any(gradient != 0.0) and np.all(np.isfinite(gradient)) for gradient in gradients)
    drawn = system.sample(3, seed=KEY)
    assert drawn["x"].shape == drawn["x_mean"].shape == (3, *shape)
    assert system.reconstruct(x, seed=KEY).shape == x.shape
    rows = tf.gather(x, [2, 0])
    keys = random.row_keys(tf.range(4, dtype=tf.int64))
    whole, part = (
        tf.stack(system.terms(given, Draws(own, 2))[:3]) for given, own in ((x, keys), (rows, tf.gather(keys, [2, 0])))
    )
    np.testing.assert_allclose(part, tf.gather(whole, [2, 0], axis=2), rtol=1e-4, atol=1e-4)

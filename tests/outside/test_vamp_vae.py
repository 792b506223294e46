"""A system from outside the package goes the whole way: terms, training, evaluation, export, serving."""

import numpy as np
import pytest
import tensorflow as tf

import tfstruct
from tests.outside import vamp_vae
from tests.trainers import tiny
from tfstruct import random
from tfstruct.inference.objectives import Draws
from tfstruct.models import build, presets
from tfstruct.serving.signatures import ServedSystem

SHORT = ("training.steps=20", "training.steps_per_call=10", "training.validate_every=20", "training.compiler=graph",
         "model.num_components=3", "export.num_samples=4", "export.chunk=2")  # fmt: skip


def test_the_prior_is_the_mixture_and_samples_follow_it():
    model = build(presets.get("vamp_vae/tiny", ["model.num_latents=2", "data.event_shape=(2,2)"]), seed=3)
    model.pseudo_inputs.assign(3.0 * np.random.default_rng(0).normal(size=model.pseudo_inputs.shape))
    x = np.array([[[0, 1], [1, 1]]], np.float32)
    terms = model.terms(x, Draws(random.key(1), 4))
    noise = random.sample_normal(random.key(1), 4, 1, [2]).numpy()
    encoded = model.encode(x)
    z = encoded["z_mean"].numpy() + encoded["z_std"].numpy() * noise
    np.testing.assert_allclose(terms.log_prior, vamp_vae.log_prior(model, z.astype(np.float64)), rtol=1e-5)
    # Each pixel's mean over samples is that over the prior, by a grid over z: a standard error of at most 0.004.
    axis = np.linspace(-9.0, 9.0, 400)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    weights = np.exp(vamp_vae.log_prior(model, grid)) * (axis[1] - axis[0]) ** 2
    assert abs(weights.sum() - 1.0) < 1e-3
    expected = weights @ model.decode(tf.constant(grid, tf.float32))["x_mean"].numpy().reshape(-1, 4)
    drawn = model.sample(20_000, seed=random.key(5))["x"].numpy().reshape(-1, 4)
    np.testing.assert_allclose(drawn.mean(axis=0), expected, atol=0.016)


def test_it_trains_evaluates_exports_and_serves_by_the_programs(tmp_path):
    run, own = tmp_path / "run", ["--import=tests.outside.vamp_vae"]
    sets = [f"--set={setting}" for setting in SHORT]
    calls = (
        ("train", "--preset=vamp_vae/tiny", f"--workdir={run}", *sets),
        ("evaluate", f"--workdir={run}", "--images=50", "--num_samples=5", "--nopictures"),
        ("export", f"--workdir={run}", f"--output={tmp_path / 'model/1'}"),
    )
    for name, *arguments in calls:
        done = tiny.run_program(name, *arguments, *own, cwd=tiny.CHECKOUT)
        assert done.returncode == 0, done.stderr
    model = tfstruct.load(tmp_path / "model")
    assert model.card["system"] == "vamp_vae"
    drawn = model.sample(3, seed=1)["x"]
    assert drawn.shape == (3, 28, 28)
    assert np.isfinite(model.log_prob(drawn)["log_prob"]).all()
    # Its own question goes the same way as those that every system has.
    assert model.card["exactness"]["component_probs"] == "estimate"
    seeds = np.arange(3)
    found = model.query("component_probs", x=drawn, seed=seeds)["probs"]
    system = tfstruct.load_run(run)
    served = ServedSystem(system, num_samples=4, chunk=2, bits_per_dim_offset=None)
    inside = tf.constant([[np.full([28, 28], 0.5)], [drawn[1]]], tf.float32)[:, 0]
    apart = served.signatures()["component_probs"](x=inside, seed=tf.constant([0, 1], tf.int64))["probs"]
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(apart[1], found[1], rtol=1e-4, atol=1e-6)
    assert np.isnan(apart[0]).all()
    with pytest.raises(ValueError, match="component_probs takes seed, x, found x"):
        model.query("component_probs", x=drawn)
    with pytest.raises(ValueError, match="no signature 'component_prob'; did you mean component_probs"):
        model.query("component_prob", x=drawn, seed=0)

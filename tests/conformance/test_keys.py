"""No draw of a system shares its random numbers with another: a key is drawn from once."""

import numpy as np
import pytest
import tensorflow as tf

from tests.conformance.systems import SYSTEMS
from tests.reference.draws import training_draws
from tfstruct import random
from tfstruct.inference.objectives import Draws
from tfstruct.models import presets, registry

# What draws in a way of its own; their conformance on other presets is that of these.
PRESETS = ("graph_vae/tiny", "boltzmann_vae/tiny", "vamp_vae/tiny", "spvae/tiny", "spvae/tiny_components")
QUICK = {"boltzmann_vae/tiny": ("model.sample_sweeps=2",)}
KEY, NUM = random.key(17), 3
#: one key for all rows, and one for each
KEYS = {"one key": KEY, "row keys": random.row_keys(np.arange(5, 5 + NUM))}


@pytest.fixture(scope="module", params=PRESETS)
def system(request):
    return registry.build(presets.get(request.param, QUICK.get(request.param, ())), seed=3)


def ways(system):
    """What draws, by name, as functions of a key."""
    x = tf.constant(np.random.default_rng(3).integers(0, 2, [NUM, 28, 28]), tf.float32)
    is_boltzmann = system.config.system == "boltzmann_vae"
    options = {"num_temperatures": 2} if is_boltzmann else {}
    found = {
        "sample": lambda key: system.sample(NUM, seed=key),
        "evaluation": lambda key: system.terms(x, Draws(key, 2, options=options)),
        "training": lambda key: system.terms(x, training_draws(system, key, random.key(5))),
        "reconstruct": lambda key: system.reconstruct(x, seed=key, **options),
    }
    if hasattr(system, "inpaint"):
        observed = tf.constant(np.arange(28) < 14) & tf.fill(x.shape, True)
        found["inpaint"] = lambda key: system.inpaint(x, observed, seed=key, num_samples=2)
    return found


def test_all_that_is_covered_belongs_to_every_system():
    assert {presets.get(name).system for name in PRESETS} == set(SYSTEMS)


# Planted once: pixels of samples drawn with the key of the latents.
@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("way", ["sample", "evaluation", "training", "reconstruct", "inpaint"])
def test_no_key_is_drawn_from_twice(system, way, kind, monkeypatch):
    function, uniform, drawn = ways(system).get(way), random.uniform, []
    if function is None:
        pytest.skip("this system does not do that")

    def recording(key, *arguments):
        drawn.extend(map(bytes, np.asarray(key).reshape(-1, 2)))
        return uniform(key, *arguments)

    monkeypatch.setattr(random, "uniform", recording)
    function(KEYS[kind])
    assert drawn
    assert len(set(drawn)) == len(drawn)

"""Graph VAEs of a few weights, for enumeration and float64."""

import numpy as np
import pytest
import tensorflow as tf

from tests.reference import networks
from tests.reference.draws import draws, training_draws
from tests.reference.graph_vae import GraphVAE as Twin
from tests.trainers import tiny
from tfstruct import random
from tfstruct.inference.objectives import group_gradients
from tfstruct.models import registry

STRUCTURES = ("independent", "chain", "full", "learned", "explicit")
EVERY_STRUCTURE = pytest.mark.parametrize("structure", STRUCTURES)
SHARED_TOP_DOWN = pytest.mark.parametrize("share_top_down", [False, True])
KEY = random.key(17)
K, B = 3, 4
EXPLICIT = ((0, 0, 0), (0, 0, 0), (1, 1, 0))
#: settings of small flows for `model.flow`; tanh has no kink for a difference to straddle
FLOW = {"steps": 2, "hidden_units": (5, 4), "context_dim": 3, "activation": "tanh"}


def config(structure="learned", overrides=(), **model):
    """A config of three nodes over four pixels; `explicit` is a collider with learned gates."""
    options = dict(
        num_latents=6,
        num_nodes=3,
        encoder_units=(5, 4),
        feature_units=4,
        bottom_up_units=3,
        top_down_units=4,
        decoder_units=(5,),
        batch_norm_epsilon=1e-2,
    )
    options |= {"adjacency": EXPLICIT} if structure == "explicit" else {"structure": structure}
    overrides = ["objective.allow_biased_gradient=True", *overrides]
    return tiny.changed("graph_vae/tiny", overrides, event_shape=(2, 2), **options | model)


def build(structure="learned", rng=None, scale=0.5, **model):
    """The model of such a config; with `rng` all its weights are random."""
    system = registry.build(config(structure, **model))
    if rng is not None:
        networks.randomize(system, rng, scale)
    return system


def weights(system):
    """All weights of a system by path without its name."""
    return networks.named_weights(system)


def posterior_groups(system):
    """The weights of the posterior as pairs: what they belong to, and the variables."""
    is_context = lambda variable: "/bottom_up/context/" in variable.path  # noqa: E731
    return [
        ("encoder", system.encoder.trainable_variables),
        ("bottom_up", [v for v in system.bottom_up.trainable_variables if not is_context(v)]),
        ("context", [v for v in system.bottom_up.trainable_variables if is_context(v)]),
        ("top_down", [v for layer in system.posterior_top_down for v in layer.trainable_variables]),
        *[(flow.name, flow.trainable_variables) for flow in system.flows],
    ]


def assign(system, values):
    """Gives the weights of a system the values by path that there are for them; all must be used."""
    unused = set(values)
    for variable in system.variables:
        path = variable.path.partition("/")[2]
        if path in values:
            variable.assign(values[path])
            unused.discard(path)
    assert not unused, unused


def twin(system, gates=None):
    """The NumPy twin of a system; by default at its most probable gates."""
    gates = np.asarray(system.gates.hard() if gates is None else gates, np.float64)
    return Twin(weights(system), system.adjacency, gates, system.config.model)


def images(rng, num, binary=True):
    """Rows [num, 2, 2]."""
    values = rng.uniform(size=[num, 2, 2])
    return (values < 0.5).astype(np.float64) if binary else values


def noise(system, num_samples=K, batch=B):
    """The noise that `terms` draws from KEY."""
    drawn = random.sample_normal(KEY, num_samples, batch, [system.num_nodes, system.node_dim])
    return drawn.numpy().astype(np.float64)


def terms(system, x, num_samples=K, **kwargs):
    """The importance terms of rows at KEY."""
    return system.terms(tf.convert_to_tensor(x), draws(KEY, num_samples, **kwargs))


def total(found):
    """The log weights of importance terms."""
    return (found.log_likelihood + found.log_prior - found.log_posterior).numpy()


def assert_every_weight_gets_a_gradient(settings, rng):
    """Every trainable weight of a config's model gets a finite gradient of its objective that is not zero."""
    system, x = registry.build(settings), tf.constant(images(rng, 8))
    with tf.GradientTape(persistent=True) as tape:
        result = system.objective(x, training_draws(system, KEY, random.key(5)))
    variables = [variable.value for variable in system.trainable_variables]
    gradients = group_gradients(tape, result, variables, [variable.value for variable in system.needs.posterior])
    for variable, value in zip(system.trainable_variables, gradients, strict=True):
        assert np.all(np.isfinite(value)), variable.path
        assert np.any(value != 0.0), variable.path

"""Every setting of every system's model has an effect: none is taken, documented and then forgotten on its way."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.reference import networks
from tests.reference.draws import training_draws
from tfstruct import random
from tfstruct.inference.objectives import Draws
from tfstruct.models import presets, registry
from tfstruct.settings import Settings

KEY, ROWS = random.key(17), 3
GAUSSIAN, MIXTURE = {"likelihood": "gaussian"}, {"likelihood": "logistic_mixture"}
DIRECTED = {"posterior": "directed"}
FLOW = {"flow.steps": 2, "flow.hidden_units": (3,), "flow.context_dim": 2}
CONV = {"leaf_network": "conv", "delta": 4, "conv_filters": (2, 2), "conv_units": 3}
RANDOM = {"structure": "random"}
#: of a preset what makes it small, and of each setting a value that is not its default, and what must go with it
BASES = {
    "graph_vae/tiny": {
        "num_latents": 6, "num_nodes": 3, "encoder_units": (5,), "feature_units": 4, "bottom_up_units": 3,
        "top_down_units": 3, "decoder_units": (5,), "structure": "full",
    },
    "boltzmann_vae/tiny": {
        "num_units_1": 4, "num_units_2": 4, "encoder_units": (5,), "decoder_units": (5,), "prior_chains": 6,
        "prior_sweeps": 2, "posterior_sweeps": 2, "sample_sweeps": 3,
    },
    "spvae/tiny": {"delta": 2, "num_latents": 2, "hidden_units": (3, 3)},
}  # fmt: skip
NORMALISED = {"batch_norm": (False,), "batch_norm_momentum": (0.5,), "batch_norm_epsilon": (0.3,)}
LIKELIHOOD = {"likelihood": ("binomial",), "num_components": (3, MIXTURE)}
SETTINGS = {
    "graph_vae/tiny": {
        **NORMALISED,
        **LIKELIHOOD,
        "num_latents": (9,),
        "num_nodes": (2,),
        "structure": ("chain",),
        "adjacency": (((0, 0, 0), (0, 0, 0), (1, 1, 0)),),
        "encoder_units": ((6,),),
        "feature_units": (5,),
        "bottom_up_units": (4,),
        "top_down_units": (4,),
        "decoder_units": ((6,),),
        "encoder_activation": ("tanh",),
        "activation": ("tanh",),
        "layer_norm": (True, {"batch_norm": False}),
        "share_top_down": (True,),
        "straight_through": (True, {"structure": "learned"}),
        "flow.steps": (3, FLOW),
        "flow.hidden_units": ((4,), FLOW),
        "flow.context_dim": (3, FLOW),
        "flow.activation": ("tanh", FLOW),
        "flow.gate_bias": (0.5, FLOW),
        "log_variance_floor": (-1.0, GAUSSIAN),
        "log_variance_bound": (0.4,),
    },
    "boltzmann_vae/tiny": {
        **NORMALISED,
        **LIKELIHOOD,
        "num_units_1": (5,),
        "num_units_2": (5,),
        "posterior": ("directed",),
        "groups": (2, DIRECTED),
        "relaxation": ("concrete",),
        "sharpness.piecewise_linear": (2.0,),
        "sharpness.concrete": (2.0, {"relaxation": "concrete"}),
        "sharpness.gumbolt": (2.0, {"relaxation": "gumbolt", **DIRECTED}),
        "sharpness.power": (2.0, {"relaxation": "power", **DIRECTED}),
        "posterior_sweeps": (3,),
        "relaxed_sweeps": (2,),
        "prior_sampler": ("persistent", {"prior_sweeps": 1, "prior_chains": 40}),
        "prior_chains": (8,),
        "prior_sweeps": (3,),
        "sample_sweeps": (4,),
        "encoder_units": ((6,),),
        "decoder_units": ((6,),),
        "activation": ("elu",),
        "log_variance_floor": (-1.0, GAUSSIAN),
    },
    "spvae/tiny": {
        **LIKELIHOOD,
        "structure": ("bisected",),
        "delta": ((2, 4),),
        "tree_depth": (3, RANDOM),
        "tree_repetitions": (3, RANDOM),
        "tree_seed": (1, RANDOM),
        "num_leaves": (3,),
        "num_sums": (3,),
        "products": ("hadamard",),
        "leaf_vaes": ("shared",),
        "num_latents": (3,),
        "leaf_network": ("conv", {**CONV, "leaf_network": "mlp"}),
        "hidden_units": ((4, 3),),
        "conv_filters": ((2, 3), CONV),
        "conv_stride": (2, CONV),
        "conv_units": (4, CONV),
        "precision_floor": (3.0, GAUSSIAN),
        "mask_input": (True,),
        "missing_fraction": (0.9,),
    },
}
#: seen only where there are several devices, by their own tests; what only one value is allowed of; another system
ELSEWHERE = {
    "graph_vae/tiny": {"batch_norm_synchronized"},
    "boltzmann_vae/tiny": {"batch_norm_synchronized", "conditional"},
    "spvae/tiny": {"batch_norm"},
}


def names_of(settings, prefix=""):
    """The names of all settings, those of groups within it with a dot."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from names_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def config_of(preset, *changes):
    joined = {f"model.{name}": value for change in (BASES[preset], *changes) for name, value in change.items()}
    return presets.get(preset).replace({"data.event_shape": (4, 8), "training.structure_fraction": 0.0} | joined)


@functools.cache
def numbers_of(json):
    """Of a config as JSON: shapes of the weights; numbers of evaluation, samples, a training pass, what it leaves."""
    config = registry.parse_config(json)
    system = registry.build(config, seed=3)
    networks.randomize(system, np.random.default_rng(17), 0.7)
    x = tf.constant(np.random.default_rng(18).integers(0, 2, [ROWS, 4, 8]), tf.float32)
    options = {"num_temperatures": 2} if config.system == "boltzmann_vae" else {}
    found = [system.terms(x, Draws(KEY, 1, options=options))[:3]]
    found += [system.sample(ROWS, seed=KEY), system.encode(x)]
    found += [system.terms(x, training_draws(system, KEY, random.key(5)))[:3]]
    found += [[variable.numpy() for variable in system.non_trainable_variables]]
    shapes = [(variable.path.partition("/")[2], tuple(variable.shape)) for variable in system.variables]
    return shapes, [np.asarray(number) for number in tf.nest.flatten(found)]


@pytest.mark.parametrize("preset", SETTINGS)
def test_every_setting_of_a_model_is_listed(preset):
    assert set(names_of(presets.get(preset).model)) == set(SETTINGS[preset]) | ELSEWHERE[preset]


@pytest.mark.parametrize(("preset", "name"), [(preset, name) for preset in SETTINGS for name in SETTINGS[preset]])
def test_a_setting_has_an_effect(preset, name):
    value, *context = SETTINGS[preset][name]
    before, after = (numbers_of(config_of(preset, *context, change).to_json()) for change in ({}, {name: value}))
    if before[0] == after[0]:
        assert any(one.shape != two.shape or np.any(one != two) for one, two in zip(before[1], after[1], strict=True))

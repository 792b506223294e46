"""Presets: each is complete, and families of one data preset have as many weights as can be."""

import functools

import numpy as np
import pytest

from tfstruct import settings as settings_lib
from tfstruct.data import datasets
from tfstruct.models import presets, registry
from tfstruct.models.config import Config

DATA_PRESETS = ("tiny", "mnist_quick", "mnist", "mnist_static", "mnist_thresholded", "omniglot", "cifar10")
SIZES = [name for name in DATA_PRESETS if name != "mnist_static"]


@functools.cache
def _num_weights(name, encoder_change=0):
    config = presets.get(name)
    config = config.replace({"model.encoder_units": [width + encoder_change for width in config.model.encoder_units]})
    return sum(int(np.prod(variable.shape)) for variable in registry.build(config).trainable_variables)


def test_every_family_has_every_data_preset():
    families = ("graph_vae", "vae", "ladder_vae", "fc_vae", "iaf_vae", "graph_iaf_vae")
    expected = {f"{family}/{data}" for family in families for data in DATA_PRESETS}
    assert expected <= set(presets.PRESETS)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_names_data_that_exist_and_settings_that_can_be(name):
    config = presets.get(name)
    assert config.data.variant in datasets.variants_of(config.data.name)
    assert config.preset == name


def test_the_full_size_graph_vae_has_the_weights_of_the_paper_without_biases_under_normalisation():
    # Counted by hand from appendix A.2.1 with M = 80, N = 5: encoder, bottom up, two top-down nets, decoder, gates.
    normalised = 2 * 512
    encoder = 784 * 512 + 2 * 512 * 512 + 3 * normalised + 512 * 256
    tail = 2 * 256 + 256 * 16 + 16 + 16 * 32 + 32
    bottom_up = 5 * (256 * 256 + tail)
    top_down = sum(16 * parents * 256 + tail for parents in (1, 2, 3, 4))
    decoder = 80 * 512 + 2 * 512 * 512 + 3 * normalised + 512 * 784 + 784
    assert _num_weights("graph_vae/mnist") == encoder + bottom_up + 2 * top_down + decoder + 10


@pytest.mark.parametrize("family", ["vae", "iaf_vae"])
@pytest.mark.parametrize("data", SIZES)
def test_a_vae_without_structure_has_at_least_the_weights_of_the_graph_vae_and_hardly_more(data, family):
    graph, plain = _num_weights(f"graph_vae/{data}"), _num_weights(f"{family}/{data}")
    assert graph <= plain < 1.02 * graph


@pytest.mark.parametrize("data", SIZES)
def test_the_graph_vae_with_flows_has_at_most_the_weights_of_the_one_without_and_hardly_fewer(data):
    graph, with_flows = _num_weights(f"graph_vae/{data}"), _num_weights(f"graph_iaf_vae/{data}")
    assert 0.98 * graph < with_flows <= graph


@pytest.mark.parametrize("data", ["tiny", "mnist_quick", "mnist", "cifar10"])
@pytest.mark.parametrize(("family", "change"), [("vae", -1), ("iaf_vae", -1), ("graph_iaf_vae", 1)])
def test_no_other_encoder_width_brings_a_family_nearer_to_the_graph_vae(data, family, change):
    nearer = _num_weights(f"{family}/{data}", change)
    assert np.sign(nearer - _num_weights(f"graph_vae/{data}")) == change


@pytest.mark.parametrize("data", DATA_PRESETS)
def test_the_vae_with_a_flow_has_one_node_without_structure_and_one_flow_over_all_latents(data):
    config, plain = presets.get(f"iaf_vae/{data}"), presets.get(f"vae/{data}")
    assert config.model.num_nodes == 1
    assert config.model.structure == "independent"
    assert config.training.structure_fraction == 0.0
    assert config.model.num_latents == plain.model.num_latents
    model = registry.build(config)
    assert model.needs.structure == []
    (flow,) = model.flows
    assert [network.dim for network in flow.networks] == [config.model.num_latents] * 2


@pytest.mark.parametrize("data", DATA_PRESETS)
def test_the_graph_vae_with_flows_learns_gates_first_and_has_a_flow_for_each_node(data):
    config, graph = presets.get(f"graph_iaf_vae/{data}"), presets.get(f"graph_vae/{data}")
    assert config.model.structure == "learned"
    assert 0 < config.training.structure_fraction < 1
    assert config.model.num_nodes == graph.model.num_nodes > 1
    model = registry.build(config)
    assert len(model.needs.structure) == 1
    assert len(model.flows) == config.model.num_nodes
    for flow in model.flows:
        assert [network.dim for network in flow.networks] == [config.model.num_latents // config.model.num_nodes] * 2


@pytest.mark.parametrize("family", ["graph_vae", "vae", "ladder_vae", "fc_vae"])
def test_families_without_flows_have_none(family):
    config = presets.get(f"{family}/tiny")
    assert config.model.flow.steps == 0
    assert registry.build(config).flows == []


def test_two_phases_are_for_the_models_with_flows_and_their_rival_on_thresholded_images():
    phased = {name for name in presets.PRESETS if presets.get(name).training.structure_fraction}
    assert phased == {f"graph_iaf_vae/{data}" for data in DATA_PRESETS} | {"graph_vae/mnist_thresholded"}
    fractions = {presets.get(name).training.structure_fraction for name in phased - {"graph_iaf_vae/tiny"}}
    assert fractions == {0.2}


@pytest.mark.parametrize("name", [name for name in presets.PRESETS if name.startswith("graph_iaf_vae/")])
def test_the_first_phase_is_whole_calls(name):
    # A call of another length is another program to compile.
    options = presets.get(name).training
    assert round(options.structure_fraction * options.steps) % options.steps_per_call == 0


@pytest.mark.parametrize("overrides", [{"model.flow.steps": 2}, "model.flow.steps=2"])
def test_overrides_that_are_no_list_are_refused(overrides):
    with pytest.raises(ValueError, match="overrides are a list of 'key=value' strings, found"):
        presets.get("graph_vae/tiny", overrides)


def test_a_negative_number_of_flow_steps_is_refused_by_name():
    with pytest.raises(ValueError, match="model.flow.steps must be at least 0, found -1"):
        registry.build(presets.get("graph_vae/tiny", ["model.flow.steps=-1"]))


@pytest.mark.parametrize("family", ["graph_vae", "vae", "ladder_vae", "fc_vae", "iaf_vae", "graph_iaf_vae"])
def test_thresholded_presets_are_the_mnist_ones_on_thresholded_images_with_early_stopping(family):
    config, dynamic = presets.get(f"{family}/mnist_thresholded"), presets.get(f"{family}/mnist")
    assert (config.data.name, config.data.variant) == ("mnist", "thresholded")
    assert config.training.patience > 0
    changed = {line.partition(":")[0] for line in settings_lib.differences(dynamic, config)}
    # Learned gates are compared with those of the model with flows, and trained as they are there.
    own = {"training.structure_fraction", "objective.gradient"} if family == "graph_vae" else set()
    assert changed == {"preset", "data.variant", "training.patience", *own}


def test_an_unknown_preset_lists_the_near_names():
    with pytest.raises(ValueError, match="did you mean graph_vae/mnist"):
        presets.get("graph_vae/mnits")


def test_a_setting_of_another_system_is_named_as_such():
    with pytest.raises(
        ValueError, match=r"model.layer_norm is a setting of graph_vae, and spvae/tiny is sum_product_vae"
    ):
        presets.get("spvae/tiny", ["model.layer_norm=True"])
    with pytest.raises(ValueError, match="unknown setting 'model.layer_nrm'"):
        presets.get("spvae/tiny", ["model.layer_nrm=True"])


@pytest.mark.parametrize("name", ["graph_vae/mnist_quick", "boltzmann_vae/tiny", "spvae/mnist_missing"])
def test_overrides_of_a_config_make_it_of_its_preset(name):
    changes = ["training.seed=3", "data.file='a b'", "data.event_shape=(4, 7)", "optimizer.learning_rate=0.25"]
    changed = presets.get(name, changes)
    found = settings_lib.overrides(changed, presets.get(name))
    assert sorted(found) == sorted(change.replace("='a b'", "='a b'") for change in changes)
    assert settings_lib.differences(presets.get(name, found), changed) == []


def test_unknown_settings_of_a_preset_are_named_and_names_are_taken_once():
    kind = type(presets.get("graph_vae/tiny"))
    made = presets.Preset("graph_vae/x", "", kind, {"model.num_nodes": 2, "data.file": "a"}).make()
    assert (made.preset, made.model.num_nodes, made.data.file) == ("graph_vae/x", 2, "a")
    assert [line.partition(":")[0] for line in settings_lib.differences(made, kind())] == [
        "data.file",
        "model.num_nodes",
        "preset",
    ]
    with pytest.raises(ValueError, match="preset graph_vae/x: unknown setting 'model.num_node'; near it"):
        presets.Preset("graph_vae/x", "", kind, {"model.num_node": 2}).make()
    with pytest.raises(ValueError, match="preset 'graph_vae/tiny' exists already"):
        presets.register_preset("graph_vae/tiny", "", kind)


def test_settings_given_together_are_joined_and_later_ones_count(monkeypatch):
    monkeypatch.setattr(presets, "PRESETS", type(presets.PRESETS)("preset"))
    made = presets.register_preset("a/b", "", Config, {"x": 1, "y": 1}, {"x": 2}, {"z": 3})
    assert made.settings == {"x": 2, "y": 1, "z": 3}
    assert presets.PRESETS["a/b"] is made

"""Presets: each is complete, and the plain VAE is never the smaller model."""

import numpy as np
import pytest

from tfstruct.data import datasets
from tfstruct.models import presets, registry
from tfstruct.training import settings

DATA_PRESETS = ("tiny", "mnist_quick", "mnist", "mnist_static", "omniglot", "cifar10")


def _num_weights(name):
    model = registry.build(presets.get(name))
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def test_every_family_has_every_data_preset():
    families = ("graph_vae", "vae", "ladder_vae", "fc_vae")
    expected = {f"{family}/{data}" for family in families for data in DATA_PRESETS}
    assert expected <= set(presets.names())


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_names_data_that_exist_and_settings_that_can_be(name):
    config = presets.get(name)
    settings.check(config)
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


@pytest.mark.parametrize("data", [name for name in DATA_PRESETS if name != "mnist_static"])
def test_the_plain_vae_has_at_least_the_weights_of_the_graph_vae_and_hardly_more(data):
    graph, plain = _num_weights(f"graph_vae/{data}"), _num_weights(f"vae/{data}")
    assert graph <= plain < 1.02 * graph


def test_an_unknown_preset_lists_the_near_names():
    with pytest.raises(ValueError, match="did you mean graph_vae/mnist"):
        presets.get("graph_vae/mnits")

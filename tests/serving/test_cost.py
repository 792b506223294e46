"""The operations of a score, counted by hand for a small model."""

import numpy as np
import pytest

from tfstruct.models import presets, registry
from tfstruct.serving.cost import flop_of_score


def test_the_products_of_the_networks_are_counted_once_for_the_encoder_and_for_every_sample_of_the_decoder():
    model = registry.build(presets.get("dense_vae/tiny", ["model.hidden_units=(7, 5)", "model.num_latents=3"]))
    encoder = 2 * (784 * 7 + 7 * 5 + 5 * 3 * 2)
    decoder = 2 * (3 * 7 + 7 * 5 + 5 * 784)
    one, ten = (flop_of_score(model, samples, {}) for samples in (1, 10))
    # Beside the products there are elementwise operations, some of each pixel and unit.
    assert encoder + decoder < one < encoder + decoder + 40 * 784
    assert decoder <= (ten - one) / 9 < decoder + 40 * 784
    assert (ten - one) % 9 == 0
    assert np.isfinite(one)


def test_a_model_with_loops_has_no_count():
    model = registry.build(presets.get("boltzmann_vae/tiny"))
    assert flop_of_score(model, 3, model.terms_options(model.config.export)) is None


@pytest.mark.parametrize("preset", ["graph_vae/tiny", "spvae/tiny"])
def test_the_cost_grows_by_the_same_for_each_sample(preset):
    model = registry.build(presets.get(preset))
    one, two, three = (flop_of_score(model, samples, {}) for samples in (1, 2, 3))
    assert 0 < two - one == three - two < one

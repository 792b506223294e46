"""Presets of sum-product VAEs: the paper's tables, its protocol and ours."""

import numpy as np
import pytest

from tfstruct import settings as settings_lib
from tfstruct.models import presets, registry
from tfstruct.training.loop import resolve_compiler

FAMILIES = ("spvae", "dense_vae", "conv_spvae", "conv_vae")
ROWS = [f"{data}_{kind}" for data in ("mnist", "cifar10", "svhn") for kind in ("continuous", "discrete")]
# SPVAE, table 2 and its published logs: latents and hidden or dense units.
SIZES = {
    "spvae": [(25, 30), (25, 30), (25, 32), (25, 30), (25, 32), (50, 32)],
    "dense_vae": [(200, 300), (200, 300), (50, 300), (200, 600), (100, 300), (100, 600)],
    "conv_spvae": [(25, 64), (25, 64), (25, 32), (25, 32), (25, 64), (25, 64)],
    "conv_vae": [(200, 64), (200, 64), (150, 128), (150, 128), (150, 128), (200, 128)],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_of_the_papers_tables_is_there_with_its_sizes(family):
    for row, (latents, units) in zip(ROWS, SIZES[family], strict=True):
        for suffix in ("", "_published"):
            config = presets.get(f"{family}/{row}{suffix}")
            options = config.model
            assert options.num_latents == latents
            assert (options.conv_units if family.startswith("conv") else options.hidden_units[0]) == units
            assert options.likelihood == ("gaussian" if row.endswith("continuous") else "binomial")
            assert config.data.variant == row.rpartition("_")[2]
            is_plain = not family.endswith("spvae")
            assert (options.structure, options.num_leaves) == (("single", 1) if is_plain else ("poon_domingos", 2))
            assert config.optimizer.learning_rate == (1e-3 if is_plain else 1e-2)
            assert (config.objective.name, config.objective.num_samples) == ("iwae", 5)
            assert config.training.batch_size == 128


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row", ROWS)
def test_the_published_protocol_changes_data_and_stopping_alone(family, row):
    clean, published = presets.get(f"{family}/{row}"), presets.get(f"{family}/{row}_published")
    changed = {line.partition(":")[0] for line in settings_lib.differences(clean, published)}
    schedule = {f"schedules.learning_rate_factor.{name}" for name in ("fractions", "interpolation", "values")}
    training = {f"training.{name}" for name in ("steps", "steps_per_call", "validate_every", "patience")}
    assert changed == {"preset", "data.train_images", "training.validation_images", *training, *schedule}
    assert published.data.train_images == 128 * 128 + 1_000
    assert (published.training.validate_every, published.training.patience) == (128, 11)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row", ["mnist_continuous", "mnist_discrete", "cifar10_continuous", "svhn_discrete"])
def test_presets_build_with_leaves_on_a_grid_of_four_by_four(family, row):
    model = registry.build(presets.get(f"{family}/{row}"))
    assert model.num_leaves == (32 if family.endswith("spvae") else 1)
    assert model.graph.counts(num_leaves=2, num_sums=2).leaf_regions in (1, 16)


# What differs from the paper's preparation is read where the preset is chosen.
@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("mnist_discrete", ("last 10,000", "drawn", "rounded", "clamped")),
        ("cifar10_continuous", ("45,000", "40,000", "grey", "noise of 1/255")),
        ("svhn_discrete", ("63,257", "73,257", "extra set", "is not rounded", "clamped")),
        ("svhn_continuous_published", ("17,384", "11th", "extra set")),
    ],
)
def test_descriptions_name_what_differs_from_the_paper(row, named):
    for family in FAMILIES:
        description = presets.PRESETS[f"{family}/{row}"].description
        assert all(text in description for text in named), description


def test_convolutions_over_whole_images_are_left_to_the_graph_on_a_cpu():
    for preset, compiler in (("conv_vae", "graph"), ("conv_spvae", "xla"), ("dense_vae", "xla"), ("spvae", "xla")):
        assert resolve_compiler(presets.get(f"{preset}/tiny")) == compiler
    assert resolve_compiler(presets.get("conv_vae/tiny", ["training.compiler=xla"])) == "xla"


def test_logistic_mixtures_are_of_grey_levels_as_they_are_and_in_bits():
    config = presets.get("spvae/mnist_logistic")
    assert (config.data.variant, config.model.likelihood) == ("levels", "logistic_mixture")


def test_components_are_those_of_one_vae_for_each_of_the_same_tiles():
    model = registry.build(presets.get("spvae/mnist_components"))
    assert (model.leaves.num_vaes, model.num_leaves, model.leaves.leaves_per_vae) == (16, 16 * 64, 64)
    counts = model.structure_report()["circuit"]
    assert (counts["internal_regions"], counts["products"], counts["sums"]) == (15, 15 * 64, 14 * 64 + 1)
    assert counts["sum_weights"] == 14 * 64**2 + 64
    logistic = registry.build(presets.get("spvae/mnist_logistic"))
    assert model.leaf_regions != logistic.leaf_regions  # halving leaves them in another order
    assert sorted(model.leaf_regions) == sorted(logistic.leaf_regions)


def test_the_preset_for_missing_pixels_reads_and_draws_masks():
    config, discrete = presets.get("spvae/mnist_missing"), presets.get("spvae/mnist_discrete")
    changed = {line.partition(":")[0] for line in settings_lib.differences(discrete, config)}
    assert changed == {"preset", "model.mask_input", "model.missing_fraction"}
    grown = [
        sum(int(np.prod(variable.shape)) for variable in registry.build(one).trainable_variables)
        for one in (discrete, config)
    ]
    assert grown[1] - grown[0] == 32 * 2 * 49 * 30  # the masks' part of the encoders' first kernels

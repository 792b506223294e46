"""Bits per dimension of models without latents: exact, and flagged where a model is worse."""

import numpy as np
import pytest

from tfstruct.data import load
from tfstruct.evaluation import baselines

RNG = np.random.default_rng(0)


def data_of(folder, splits, variant="none"):
    np.savez(folder / "rows.npz", **splits)
    return load("file", variant, data_file=folder / "rows.npz")


def test_the_histogram_of_zeros_and_ones_is_that_of_every_dimension(tmp_path):
    train = np.array([[0, 1], [0, 1], [1, 1]], np.uint8)
    data = data_of(tmp_path, {"train": train, "validation": train, "test": np.array([[1, 0], [0, 1]], np.uint8)})
    found = baselines.bits_per_dim(data, data.test)
    # One row's weight more, half of it for each value: 1.5 of 4 ones in the first dimension, 3.5 of 4 in the second.
    expected = -np.mean(np.log2([1.5 / 4, 0.5 / 4, 2.5 / 4, 3.5 / 4]))
    assert found == {"uniform": 1.0, "histogram": pytest.approx(expected, abs=1e-12)}


@pytest.mark.parametrize("variant", ["none", "dequantized", "levels"])
def test_the_histogram_of_levels_is_a_count_of_bytes_whether_or_not_noise_is_added(variant, tmp_path):
    train, test = (RNG.integers(0, 256, (count, 2, 3), dtype=np.uint8) // 32 * 32 for count in (50, 7))
    data = data_of(tmp_path, {"train": train, "validation": test, "test": test}, variant)
    found = baselines.bits_per_dim(data, data.test)
    probability = ((train[:, None] == test[None]).sum(axis=0) + 1.0 / 256) / 51
    assert found == {"uniform": 8.0, "histogram": pytest.approx(-np.mean(np.log2(probability)), abs=1e-9)}


def test_binarised_intensities_count_as_their_means(tmp_path):
    train = np.array([[0.25, 1.0], [0.75, 0.5]], np.float32)
    data = data_of(tmp_path, {"train": train, "validation": train, "test": np.ones((1, 2), np.float32)}, "dynamic")
    found = baselines.bits_per_dim(data, np.ones((1, 2), np.uint8))
    assert found["histogram"] == pytest.approx(-np.mean(np.log2([1.5 / 3, 2.0 / 3])), abs=1e-12)


def test_real_values_have_no_bits(tmp_path):
    rows = RNG.normal(size=(4, 2))
    assert baselines.bits_per_dim(data_of(tmp_path, {"train": rows, "validation": rows, "test": rows}), rows) is None


def test_a_model_that_is_worse_by_more_than_its_error_is_flagged():
    simple = {"uniform": 1.0, "histogram": 0.5}
    assert (
        baselines.flags(simple, 0.51, 0.01)
        == baselines.flags(simple, None, 0.0)
        == baselines.flags(None, 9.0, 0.0)
        == []
    )
    assert baselines.flags(simple, 0.6, 0.01) == [
        "worse than no model: 0.6000 bits/dim, the histogram model has 0.5000"
    ]
    assert len(baselines.flags(simple, 1.1, 0.01)) == 2

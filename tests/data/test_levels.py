"""Grey levels as they are, and training on the first rows of a set."""

import numpy as np
import pytest

from tests.trainers import tiny, tiny_circuit
from tfstruct import data
from tfstruct.data import datasets, variants
from tfstruct.data.support import INTEGERS
from tfstruct.training.data import load_data

MNIST_CHECKSUM = "a5f9d30e6ce516b9af18d4101a4afc6925d6f8448d2e29c8bf1ed7e41b8fb9db"


def splits(rows):
    return {name: rows + number for number, name in enumerate(variants.SPLITS)}


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_levels_are_the_bytes_themselves_in_grey_and_in_colour(rng, shape):
    rows = splits(rng.integers(0, 250, size=[4, *shape], dtype=np.uint8))
    rendering = variants.render("levels", rows)
    for name in variants.SPLITS:
        np.testing.assert_array_equal(rendering.splits[name], rows[name])
        assert rendering.splits[name].dtype == np.uint8
    assert (rendering.support, rendering.bits_per_dim_offset) == (INTEGERS, 0.0)
    assert variants.train_transform("levels") == "cast"


def test_levels_of_floats_are_refused(rng):
    with pytest.raises(ValueError, match="levels needs uint8 intensities 0..255, found float32"):
        variants.render("levels", splits(rng.random([4, 6, 5]).astype(np.float32)))


def test_mnist_has_levels_that_are_the_same_everywhere():
    loaded = data.load("mnist", "levels")
    assert loaded.checksum == MNIST_CHECKSUM
    np.testing.assert_array_equal(loaded.train, data.load("mnist", "dynamic").train)
    assert (loaded.support, loaded.train_transform, loaded.bits_per_dim_offset) == (INTEGERS, "cast", 0.0)
    data.require_support(loaded.test[:500], loaded.support, "test rows")


@pytest.mark.parametrize("name", datasets.names())
def test_sets_of_bytes_have_levels(name):
    assert ("levels" in data.variants_of(name)) == (name not in ("binarized_mnist", "omniglot", "omniglot_burda"))


def test_a_file_of_integers_has_levels_and_one_of_other_numbers_has_none(rng, tmp_path):
    levels = rng.integers(0, 256, size=[30, 2, 3])
    np.save(tmp_path / "levels.npy", levels.astype(np.float64))
    loaded = data.load("file", "levels", data_file=tmp_path / "levels.npy")
    assert (loaded.support, loaded.train.dtype) == (INTEGERS, np.uint8)
    for rows in (rng.random([30, 2, 3]), rng.integers(0, 2, size=[30, 2, 3])):
        np.save(tmp_path / "other.npy", rows)
        with pytest.raises(ValueError, match="variant levels does not fit this file") as caught:
            data.load("file", "levels", data_file=tmp_path / "other.npy")
        assert "levels" not in str(caught.value).partition("possible besides")[2]


# The first rows ------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    return tiny.write_rows(tmp_path / "rows.npz", event_shape=tiny_circuit.SHAPE, num=50)


def test_the_first_training_rows_are_taken_and_no_other_split_changes(file):
    whole = load_data(tiny_circuit.config(file))
    assert len(whole.train) == 50
    for count in (1, 7, 50):
        part = load_data(tiny_circuit.config(file, f"data.train_images={count}"))
        np.testing.assert_array_equal(part.train, whole.train[:count])
        for name in ("validation", "test"):
            np.testing.assert_array_equal(part.split(name), whole.split(name))
        assert part.checksum == whole.checksum  # of the set, which says where the rows come from


def test_more_rows_than_there_are_and_less_than_none_are_refused(file):
    with pytest.raises(ValueError, match=r"data.train_images must be 0 \(all\) to 50, found 51"):
        load_data(tiny_circuit.config(file, "data.train_images=51"))
    with pytest.raises(ValueError, match="data.train_images must be at least 0, found -1"):
        tiny_circuit.config(file, "data.train_images=-1")


def test_other_systems_have_the_setting_too(file):
    assert len(load_data(tiny.vae_config(file)).train) == 50
    assert len(load_data(tiny.vae_config(file, "data.train_images=9")).train) == 9


@pytest.mark.parametrize(
    ("likelihood", "is_grey", "message"),
    [
        ("binomial", False, "binomial is for data of support integers_0_255; file/none has binary"),
        ("categorical", False, "categorical is for data of support integers_0_255; file/none has binary"),
        ("logistic_mixture", False, "logistic_mixture is for data of support integers_0_255; file/none has binary"),
        ("gaussian", True, "gaussian is for data of support unit_interval or real; file/none has integers_0_255"),
    ],
)
def test_data_that_a_likelihood_is_no_density_of_are_refused(file, tmp_path, likelihood, is_grey, message):
    chosen = tiny_circuit.write_levels(tmp_path / "levels.npz") if is_grey else file
    with pytest.raises(ValueError, match=f"the likelihood {message}"):
        load_data(tiny_circuit.config(chosen, f"model.likelihood={likelihood}"))

"""Data sets by name, without any prepared folder."""

import dataclasses
import time

import numpy as np
import pytest
from scipy import io

from tfstruct import data
from tfstruct.data import datasets, mnist

# Bits that must be the same on every machine: an evaluation on one is then an evaluation on all.
MNIST_CHECKSUMS = {
    "dynamic": "3fe9beac4f7f6cc88d6910281ecd2537bfe44c3979b35d4ef247ae057eabea79",
    "static": "7a453c09d4551e92614cf0fdbada135bcf58d112d3e70abffd82a3ec4694782d",
    "thresholded": "6a1999d136813ffaf8a4895013152e37e88ba46c01e8da6827e105e46558beb8",
    "grey": "e7a31b0f1edd7ff724946232f02f95edeb92cd2b562abd2359ec6f4a1e36b49a",
    "dequantized": "cc8c53c71a6f1cabf54917b7bda80563303003e14b6132c563d96f292100219c",
    "discrete": "2b4e93984f3d52c274ab4945edb7ce1e868ef4d30f7bc142c6d2fa8611090e87",
}


@pytest.fixture
def burda_folder(tmp_path):
    """A file like Burda's with ten training images, at its place under a data directory."""
    generator = np.random.default_rng(0)
    images = {name: generator.random((784, count)) for name, count in (("data", 1355), ("testdata", 7))}
    folder = tmp_path / "downloads" / "manual"
    folder.mkdir(parents=True)
    io.savemat(folder / "chardata.mat", images)
    return tmp_path, images


@pytest.mark.parametrize("variant", MNIST_CHECKSUMS)
def test_mnist_has_the_same_bits_everywhere(variant):
    assert data.load("mnist", variant).checksum == MNIST_CHECKSUMS[variant]


def test_mnist_is_split_into_the_first_50000_and_the_last_10000_training_images():
    loaded = data.load("mnist", "dynamic")
    np.testing.assert_array_equal(loaded.train, mnist.read("train")[:50_000])
    assert (loaded.validation.shape, loaded.test.shape) == ((10_000, 28, 28), (10_000, 28, 28))
    # Binarised rows have ink only where the images have some, and everywhere where they are white.
    validation = mnist.read("train")[50_000:]
    assert not loaded.validation[validation == 0].any()
    assert loaded.validation[validation == 255].all()
    assert (loaded.event_shape, loaded.dims) == ((28, 28), 784)
    assert (loaded.train_transform, loaded.support, loaded.bits_per_dim_offset) == ("binarize", "binary", 0.0)


def test_continuous_mnist_fills_the_unit_interval_and_has_no_bits_per_dimension():
    loaded = data.load("mnist", "continuous")
    assert (loaded.train.min(), loaded.train.max(), loaded.bits_per_dim_offset) == (0.0, 1.0, None)


@pytest.mark.parametrize("variant", MNIST_CHECKSUMS)
def test_declared_support_holds_the_final_values(variant):
    loaded = data.load("mnist", variant)
    data.require_support(loaded.test[:500], loaded.support, "test rows")


def test_event_shape_reshapes_rows_and_must_have_their_size():
    assert data.load("mnist", "grey", event_shape=(784,)).train.shape == (50_000, 784)
    with pytest.raises(ValueError, match=r"event_shape \(32, 32\) does not fit rows of shape \(28, 28\)"):
        data.load("mnist", "grey", event_shape=(32, 32))


def test_unknown_splits_are_refused_with_the_names_there_are():
    loaded = data.load("mnist", "thresholded")
    assert loaded.split("validation") is loaded.validation
    with pytest.raises(ValueError, match="unknown split 'valid'; there are train, validation, test"):
        loaded.split("valid")


def test_unknown_names_and_variants_are_refused_with_near_ones_and_all():
    with pytest.raises(
        ValueError, match="unknown data set 'minst'; did you mean mnist.* There are binarized_mnist, cifar10, .*file"
    ):
        data.load("minst", "dynamic")
    with pytest.raises(ValueError, match="unknown variant of the data set mnist 'dynamics'; did you mean dynamic"):
        data.load("mnist", "dynamics")
    with pytest.raises(ValueError, match="variant of the data set binarized_mnist 'grey'. There are static."):
        data.load("binarized_mnist", "grey")


def test_data_file_goes_with_the_name_file_only(tmp_path):
    with pytest.raises(ValueError, match="goes with the name 'file' and only with it"):
        data.load("mnist", "dynamic", data_file=tmp_path / "rows.npy")
    with pytest.raises(ValueError, match="goes with the name 'file' and only with it"):
        data.load("file", "none")


def test_checksum_depends_on_values_types_and_shapes():
    rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
    sums = {
        datasets.checksum({"train": values}) for values in (rows, rows.reshape(4, 3), rows.astype(np.int8), rows[::-1])
    }
    assert len(sums) == 4
    assert datasets.checksum({"train": rows}) == datasets.checksum({"train": np.asfortranarray(rows)})


def test_checksum_of_pieces_is_that_of_the_whole(monkeypatch):
    rows = {"train": np.arange(1000).reshape(100, 10)}
    whole = datasets.checksum(rows)
    monkeypatch.setattr(datasets, "HASH_BYTES", 160)
    assert datasets.checksum(rows) == whole


def test_a_dataset_cannot_be_changed():
    loaded = data.load("mnist", "thresholded")
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.name = "other"


@pytest.mark.parametrize("name", ["binarized_mnist", "fashion_mnist", "cifar10", "svhn_cropped", "omniglot"])
def test_a_set_that_is_not_prepared_fails_at_once_with_folder_and_command(tmp_path, name):
    start = time.monotonic()
    with pytest.raises(data.DatasetNotFoundError) as caught:
        data.load(name, data.variants_of(name)[-1], data_dir=tmp_path)
    assert time.monotonic() - start < 5
    assert f"{tmp_path}/{name}/VERSION" in str(caught.value)
    assert f"tfds.builder('{name}', data_dir='{tmp_path}').download_and_prepare()" in str(caught.value)


def test_the_data_directory_comes_from_the_environment_when_not_given(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        data.load("cifar10", "grey")


def test_burda_images_are_transposed_and_the_last_1345_held_out(burda_folder):
    folder, images = burda_folder
    loaded = data.load("omniglot_burda", "grey", data_dir=folder)
    assert (loaded.train.shape, loaded.validation.shape) == ((10, 28, 28), (1345, 28, 28))
    # Pixel (r, c) of a column-major image is entry 28 c + r.
    assert loaded.train[3, 5, 9] == np.float32(images["data"][28 * 9 + 5, 3])
    assert loaded.validation[0, 27, 0] == np.float32(images["data"][27, 10])
    assert loaded.test[6, 0, 1] == np.float32(images["testdata"][28, 6])


def test_burda_images_are_binarised_as_in_the_published_experiments(burda_folder):
    folder, _ = burda_folder
    grey = data.load("omniglot_burda", "grey", data_dir=folder)
    dynamic = data.load("omniglot_burda", "dynamic", data_dir=folder)
    for name in ("validation", "test"):
        unit = np.random.RandomState(1).rand(*grey.split(name).shape)
        np.testing.assert_array_equal(dynamic.split(name), unit < grey.split(name))
    np.testing.assert_array_equal(dynamic.train, grey.train)
    assert dynamic.train_transform == "binarize"


def test_missing_and_foreign_burda_files_are_named(tmp_path):
    with pytest.raises(data.DatasetNotFoundError, match="curl -L --create-dirs -o .*chardata.mat https://"):
        data.load("omniglot_burda", "grey", data_dir=tmp_path)
    io.savemat(tmp_path / "chardata.mat", {"data": np.zeros((10, 20))})
    with pytest.raises(ValueError, match=r"must hold data of shape \[784, n\]; found shape \(10, 20\)"):
        data.load("omniglot_burda", "grey", data_dir=tmp_path)

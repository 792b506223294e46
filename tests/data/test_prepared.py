"""Prepared TFDS folders: written here by TFDS itself from a few small images, read back through `load`."""

import numpy as np
import pytest

from tfstruct import data
from tfstruct.data import datasets, omniglot, prepared

tfds = pytest.importorskip("tensorflow_datasets")

CHARACTERS = ["Magi_0", "Magi_1", "Old_(script)_0"]


def _prepare(folder, dataset, features, examples, version="3.0.0", num_shards=None):
    """Writes a TFDS folder of a name; `examples` maps each split to pairs of a key and an example."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = tfds.core.Version(version)
        pkg_dir_path = folder

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in examples}

        def _generate_examples(self, split):
            yield from examples[split]

    config = tfds.download.DownloadConfig(
        try_download_gcs=False,
        compute_stats=tfds.download.ComputeStatsMode.SKIP,
        num_shards=num_shards,
    )
    Builder(data_dir=folder).download_and_prepare(download_config=config)


def _images(count, shape, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def _prepare_images(folder, name, shape, counts, num_shards=None):
    features = {"image": tfds.features.Image(shape=shape, encoding_format="png"), "label": np.int64}
    images = {split: _images(count, shape, seed) for seed, (split, count) in enumerate(counts.items())}
    examples = {
        split: [(index, {"image": image, "label": index}) for index, image in enumerate(rows)]
        for split, rows in images.items()
    }
    _prepare(folder, name, features, examples, num_shards=num_shards)
    return images


def _sorted(rows):
    return np.array(sorted(np.asarray(rows).reshape(len(rows), -1).tolist()))


def test_colour_images_keep_their_bytes_and_the_last_ones_are_held_out(tmp_path, monkeypatch):
    images = _prepare_images(tmp_path, "svhn_cropped", (32, 32, 3), {"train": 30, "test": 20, "extra": 5})
    source = datasets.SOURCES["svhn_cropped"]
    assert source.read.keywords == {"name": "svhn_cropped", "validation_count": 10_000}
    monkeypatch.setitem(source.read.keywords, "validation_count", 10)
    loaded = data.load("svhn_cropped", "dequantized", data_dir=tmp_path)
    assert (loaded.train.shape, loaded.validation.shape) == ((20, 32, 32, 3), (10, 32, 32, 3))
    levels = np.floor(loaded.validation * 256).astype(np.uint8)
    np.testing.assert_array_equal(_sorted(np.concatenate([loaded.train, levels])), _sorted(images["train"]))
    np.testing.assert_array_equal(_sorted(np.floor(loaded.test * 256)), _sorted(images["test"]))
    assert data.load("svhn_cropped", "grey", data_dir=tmp_path).event_shape == (32, 32)


def test_fewer_training_images_than_are_held_out_are_refused(tmp_path):
    _prepare_images(tmp_path, "cifar10", (32, 32, 3), {"train": 10, "test": 5})
    with pytest.raises(ValueError, match="cannot hold out 5,000 of 10 training rows"):
        data.load("cifar10", "grey", data_dir=tmp_path)


def test_binarized_mnist_keeps_its_bits_without_channel_and_shuffles_its_evaluation_splits(tmp_path):
    features = {"image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png")}
    counts = {"train": 30, "validation": 20, "test": 25}
    rows = {split: _images(count, (28, 28, 1), count) % 2 for split, count in counts.items()}
    examples = {split: [(index, {"image": row}) for index, row in enumerate(rows[split])] for split in rows}
    _prepare(tmp_path, "binarized_mnist", features, examples, "1.0.0")
    loaded = data.load("binarized_mnist", "static", data_dir=tmp_path)
    stored = prepared.read_images(prepared.open_prepared("binarized_mnist", tmp_path), "test")
    for split in rows:
        assert loaded.split(split).shape == (len(rows[split]), 28, 28)
        np.testing.assert_array_equal(_sorted(loaded.split(split)), _sorted(rows[split]))
    assert (loaded.test != stored).any()
    assert (loaded.support, loaded.train_transform, loaded.bits_per_dim_offset) == ("binary", "cast", 0.0)


def test_the_newest_prepared_version_is_read_and_unfinished_ones_are_not(tmp_path):
    for version in ("3.0.0", "3.0.10", "3.0.9"):
        folder = tmp_path / "cifar10" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").touch()
    unfinished = tmp_path / "cifar10" / "incomplete.AB12_4.0.0"
    unfinished.mkdir()
    (unfinished / "dataset_info.json").touch()
    (tmp_path / "cifar10" / "5.0.0").mkdir()
    assert prepared.find_prepared("cifar10", tmp_path).name == "3.0.10"


def test_rows_of_several_files_come_one_file_after_the_other(tmp_path):
    images = _prepare_images(tmp_path, "cifar10", (4, 4, 1), {"train": 600}, num_shards=3)
    builder = prepared.open_prepared("cifar10", tmp_path)
    assert builder.info.splits["train"].num_shards == 3
    read = prepared.read_features(builder, "train", {"image": np.asarray, "label": np.asarray})
    np.testing.assert_array_equal(read["image"], images["train"][read["label"]])
    shards = [
        prepared.read_features(builder, f"train[{shard}shard]", {"label": np.asarray})["label"] for shard in range(3)
    ]
    np.testing.assert_array_equal(read["label"], np.concatenate(shards))


@pytest.fixture
def omniglot_folder(tmp_path):
    """A small Omniglot: three characters in two splits; the drawer is the number of inked pixels."""
    features = {
        "image": tfds.features.Image(shape=(105, 105, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=CHARACTERS),
    }
    examples = {"train": [], "test": []}
    for label, character in enumerate(CHARACTERS):
        for drawer in range(1, 21):
            image = np.full((105, 105, 3), 255, np.uint8)
            image[label, :drawer] = 0
            # The key that TFDS's own builder gives: alphabet, number of the character, name of the file.
            key = f"{character}_{label + 1:04d}_{drawer:02d}.png"
            examples["test" if label == 2 else "train"].append((key, {"image": image, "label": label}))
    _prepare(tmp_path, "omniglot", features, examples)
    return tmp_path


def test_the_drawers_of_omniglot_are_found_from_the_order_of_the_files(omniglot_folder):
    builder = prepared.open_prepared("omniglot", omniglot_folder)
    for split, labels in (("train", [0, 1]), ("test", [2])):
        converters = {"image": lambda images: (images[..., 0] == 0).sum((1, 2)), "label": np.asarray}
        read = prepared.read_features(builder, split, converters)
        assert read["image"].tolist() != sorted(read["image"])
        order = omniglot.order_drawings(split, read["label"], CHARACTERS)
        np.testing.assert_array_equal(read["label"][order], np.repeat(np.array(labels)[:, None], 20, axis=1))
        np.testing.assert_array_equal(read["image"][order], [np.arange(1, 21)] * len(labels))


def test_drawings_other_than_the_published_ones_are_refused(omniglot_folder):
    with pytest.raises(ValueError, match="ordered by character and drawer, have sha256 .* cannot be trusted"):
        data.load("omniglot", "dynamic", data_dir=omniglot_folder)


def test_a_character_without_its_20_drawings_is_refused():
    labels = np.repeat([0, 1], 20)[1:]
    with pytest.raises(ValueError, match="the character Magi_0 of Omniglot's train split has 19 drawings"):
        omniglot.order_drawings("train", labels, CHARACTERS)


def test_area_average_counts_the_ink_under_each_cell_in_225ths():
    ink = np.zeros((2, 105, 105), bool)
    ink[0] = True
    ink[1, 0, 3] = True  # columns 12 to 15 of 15 per cell: three quarters of the pixel in the first cell
    average = omniglot.area_average(ink)
    np.testing.assert_array_equal(average[0], 225)
    assert (average[1, 0, 0], average[1, 0, 1], average[1].sum()) == (12, 4, 16)


def test_omniglot_is_split_by_drawer():
    ink = np.broadcast_to(np.arange(1, 21, dtype=np.uint8)[:, None, None], (3, 20, 28, 28))
    splits = omniglot.split_by_drawer(ink)
    drawers = {name: sorted(set((rows[:, 0, 0] * 225).round().tolist())) for name, rows in splits.items()}
    assert drawers == {"train": list(range(1, 15)), "validation": [15], "test": list(range(16, 21))}
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 42, "validation": 3, "test": 15}

"""Data sets by name: splits, stored rows and their meaning.

`load("mnist", "dynamic")` needs nothing but this package. The other named sets are read from folders that
TensorFlow Datasets prepared beforehand, and `load("file", variant, data_file=...)` reads a user's own rows.
"""

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfstruct import random
from tfstruct.data import files, mnist, omniglot, prepared, variants
from tfstruct.data.support import BINARY, INTEGERS, require_binary
from tfstruct.data.variants import Rendering, render
from tfstruct.files import shaped
from tfstruct.registry import Registry, require_known

__all__ = ["Dataset", "checksum", "hold_out", "load", "names", "require_binary", "variants_of"]

_ORDER_SEED = 5923
HASH_BYTES = 2**26


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of rows and what they mean.

    Attributes:
        name: as given to `load`.
        variant: as given to `load`.
        train: [n, *event_shape] as stored, uint8 or float32 (a mapped file keeps its type):
            `tfstruct.data.variants.training_rows` turns batches of it into model input.
        validation: [n, *event_shape], final values, ready for a model after a cast to float32.
        test: [n, *event_shape], final values as well.
        train_transform: the first argument of `training_rows`: `cast`, `binarize` or `dequantize`.
        support: where values lie once transformed: `binary`, `unit_interval`, `integers_0_255` or `real`.
        bits_per_dim_offset: bits per dimension are nll / (dims ln 2) + this, for nll in nats. 0 for binary
            values and integers; 8 for `dequantized`, whose densities live on [0, 1) and stand for 256 levels;
            None where bits per dimension have no meaning.
        checksum: sha256 of the stored arrays, their types and shapes.
        description: one sentence on source, split and variant.
    """

    name: str
    variant: str
    train: np.ndarray = dataclasses.field(repr=False)
    validation: np.ndarray = dataclasses.field(repr=False)
    test: np.ndarray = dataclasses.field(repr=False)
    train_transform: str
    support: str
    bits_per_dim_offset: float | None
    checksum: str
    description: str

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one row; the channel axis is left out when there is one channel."""
        return tuple(int(size) for size in self.train.shape[1:])

    @property
    def dims(self) -> int:
        """Number of values in one row, D."""
        return math.prod(self.event_shape)

    def split(self, name: str) -> np.ndarray:
        """Returns `train`, `validation` or `test`; raises ValueError for any other name."""
        if name not in variants.SPLITS:
            raise ValueError(f"unknown split {name!r}; there are {', '.join(variants.SPLITS)}")
        return getattr(self, name)


@dataclasses.dataclass(frozen=True)
class Source:
    """How to read a named set, and the variants it has; outside packages register theirs in SOURCES.

    Attributes:
        read: (folder of prepared sets, or None) to intensities [n, *event] by split (`train`, `validation`, `test`):
            uint8 in 0..255, or floats in [0, 1], which have no `dequantized` and `levels`.
        variants: those it has, of tfstruct.data.variants.
        description: what it is, for reports and cards.
        render: (variant, intensities) to rows; what `tfstruct.data.variants.render` does unless the set has its own.
        is_embedded: whether the set comes with its package, and needs no preparation.
    """

    read: Callable[[str | os.PathLike | None], Mapping[str, np.ndarray]]
    variants: tuple[str, ...]
    description: str
    render: Callable[[str, Mapping[str, np.ndarray]], Rendering] = render
    is_embedded: bool = False


def names() -> tuple[str, ...]:
    """Returns the names that `load` knows."""
    return (*SOURCES, "file")


def variants_of(name: str) -> tuple[str, ...]:
    """Returns the variants of a data set; ValueError for an unknown name. A file may have fewer."""
    require_known(name, names(), "data set")
    return variants.VARIANTS if name == "file" else SOURCES[name].variants


def load(
    name: str,
    variant: str,
    *,
    data_dir: str | os.PathLike | None = None,
    data_file: str | os.PathLike | None = None,
    event_shape: Sequence[int] | None = None,
    use_validation: bool = False,
) -> Dataset:
    """Loads a data set, the same rows for the same arguments every time; never uses the network.

    Args:
        name: one of `names()`: `mnist` (inside this package), `binarized_mnist`, `fashion_mnist`, `cifar10`,
            `svhn_cropped`, `omniglot` (prepared TFDS folders), `omniglot_burda` (`chardata.mat`) or `file`.
        variant: one of `variants_of(name)`; `tfstruct.data.variants` says what they mean.
        data_dir: folder of prepared sets; default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        data_file: a .npy, .npz, .csv or .parquet file or a folder of images, for the name `file` and no other; see
            `tfstruct.data.files` and `tfstruct.data.tables`.
        event_shape: gives rows this shape, in row-major order; default the shape they have. Rows of a file
            get it before the variant is applied, those of a named set afterwards.
        use_validation: whether the validation rows are training rows as well, after those of the training split; they
            stay what they are as validation rows.

    Raises:
        ValueError: for an unknown name or variant (listing near names and all names), for a variant the set
            does not have, for a file that does not fit, and for an event shape of another size.
        DatasetNotFoundError: at once, if a set is not prepared, with the command that prepares it.
    """
    require_known(variant, variants_of(name), f"variant of the data set {name}")
    if (name == "file") != (data_file is not None):
        raise ValueError(f"data_file goes with the name 'file' and only with it; found {name!r}, {data_file!r}")
    if data_file is not None:
        data = files.read(data_file, event_shape)
        # Before the variant, which has to know the images of flat rows.
        makes_grey = data.support == INTEGERS and variants.makes_grey(variant)
        splits = {
            split: shaped(rows, _with_colours(rows, event_shape) if makes_grey else event_shape)
            for split, rows in data.splits.items()
        }
        data = dataclasses.replace(data, splits=_joined(splits) if use_validation else splits)
        rendering = files.render(data, variant)
        description = f"User file {os.path.basename(data_file)}, {data.origin}"
    else:
        source = SOURCES[name]
        splits = source.read(data_dir)
        rendering = source.render(variant, _joined(splits) if use_validation else splits)
        splits = {split: shaped(rows, event_shape) for split, rows in rendering.splits.items()}
        rendering = dataclasses.replace(rendering, splits=splits)
        description = source.description
    rows = {split: rendering.splits[split] for split in variants.SPLITS}
    return Dataset(
        name=name,
        variant=variant,
        **rows,
        train_transform=variants.train_transform(variant),
        support=rendering.support,
        bits_per_dim_offset=rendering.bits_per_dim_offset,
        checksum=checksum(rows),
        description=f"{description}; {_VARIANT_PHRASES[variant]}{_JOINED_PHRASE * use_validation}.",
    )


def _with_colours(rows: np.ndarray, event_shape: Sequence[int] | None) -> Sequence[int] | None:
    """The shape of stored rows that become grey rows of an event shape: it lacks the axis of colours that they have."""
    if event_shape and len(event_shape) == 2 and math.prod(rows.shape[1:]) == 3 * math.prod(event_shape):
        return (*event_shape, 3)
    return event_shape


def checksum(rows: Mapping[str, np.ndarray]) -> str:
    """Returns the sha256, in hexadecimal, of arrays with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, values in rows.items():
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        step = max(1, HASH_BYTES // max(1, values[:1].nbytes))
        for start in range(0, len(values), step):  # a mapped file need not fit into memory
            digest.update(np.ascontiguousarray(values[start : start + step]).data)
    return digest.hexdigest()


def hold_out(rows: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Splits rows into `train` and the last `count`, `validation`; raises ValueError if none would remain."""
    if len(rows) <= count:
        raise ValueError(f"cannot hold out {count:,} of {len(rows):,} training rows for validation")
    return {"train": rows[:-count], "validation": rows[-count:]}


def _joined(splits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds the validation rows to the training rows."""
    return {**splits, "train": np.concatenate([splits["train"], splits["validation"]])}


def _render_binarized_mnist(variant: str, splits: Mapping[str, np.ndarray]) -> variants.Rendering:
    del variant  # `static` as published
    return variants.Rendering(dict(splits), BINARY, 0.0)


def _render_burda(variant: str, splits: Mapping[str, np.ndarray]) -> variants.Rendering:
    """Binarised validation and test rows are as in the published experiments on this file.

    Vahdat, Andriyash & Macready, Undirected Graphical Models as Approximate Posteriors, ICML 2020, draw once
    with NumPy's legacy generator, seeded with 1 for each split; their likelihoods are of exactly these bits.
    """
    rendering = variants.render(variant, splits)
    for split in ("validation", "test") if variant in ("dynamic", "static") else ():
        rows = splits[split]
        rendering.splits[split] = (np.random.RandomState(1).random_sample(rows.shape) < rows).astype(np.uint8)
    return rendering


def _shuffled(rows: np.ndarray, split: str) -> np.ndarray:
    """Puts rows into a fixed order in which the first n are a fair sample."""
    return rows[random.permutation(_ORDER_SEED, variants.SPLITS.index(split), len(rows))]


def _read_mnist(data_dir: str | os.PathLike | None) -> dict[str, np.ndarray]:
    del data_dir  # the files are inside the package
    return {**hold_out(mnist.read("train"), 10_000), "test": mnist.read("test")}


def _read_prepared(data_dir: str | os.PathLike | None, *, name: str, validation_count: int) -> dict[str, np.ndarray]:
    builder = prepared.open_prepared(name, data_dir)
    train = prepared.read_images(builder, "train")
    return {**hold_out(train, validation_count), "test": prepared.read_images(builder, "test")}


def _read_binarized_mnist(data_dir: str | os.PathLike | None) -> dict[str, np.ndarray]:
    builder = prepared.open_prepared("binarized_mnist", data_dir)
    splits = {split: prepared.read_images(builder, split) for split in variants.SPLITS}
    for split in ("validation", "test"):  # the published test file is sorted by class
        splits[split] = _shuffled(splits[split], split)
    return splits


def _read_omniglot(data_dir: str | os.PathLike | None) -> dict[str, np.ndarray]:
    # Ordered by character as read.
    return {split: _shuffled(rows, split) for split, rows in omniglot.read_original(data_dir).items()}


_FROM_FLOATS = ("dynamic", "static", "thresholded", "grey", "continuous", "discrete")
_FROM_BYTES = ("dynamic", "static", "thresholded", "grey", "dequantized", "continuous", "discrete", "levels")

_OWN = {
    "mnist": Source(
        _read_mnist,
        _FROM_BYTES,
        "MNIST, the first 50,000 training images, the last 10,000 as validation, the official test set",
        is_embedded=True,
    ),
    "binarized_mnist": Source(
        _read_binarized_mnist,
        ("static",),
        "MNIST as binarised by Larochelle & Murray (2011), published splits of 50,000, 10,000 and 10,000, "
        "validation and test in a fixed shuffled order",
        _render_binarized_mnist,
    ),
    "fashion_mnist": Source(
        functools.partial(_read_prepared, name="fashion_mnist", validation_count=10_000),
        _FROM_BYTES,
        "Fashion-MNIST from TFDS, the last 10,000 of 60,000 training images as validation, official test set",
    ),
    "cifar10": Source(
        functools.partial(_read_prepared, name="cifar10", validation_count=5_000),
        _FROM_BYTES,
        "CIFAR-10 from TFDS, the last 5,000 of 50,000 training images as validation, official test set",
    ),
    "svhn_cropped": Source(
        functools.partial(_read_prepared, name="svhn_cropped", validation_count=10_000),
        _FROM_BYTES,
        "Cropped SVHN from TFDS without the extra images, the last 10,000 of 73,257 training images as "
        "validation, official test set",
    ),
    "omniglot": Source(
        _read_omniglot,
        _FROM_FLOATS,
        "Omniglot from TFDS, all 32,460 drawings at 28x28 by exact area average, drawers 1-14 as train, 15 "
        "as validation, 16-20 as test (not Burda's file)",
    ),
    "omniglot_burda": Source(
        omniglot.read_burda,
        _FROM_FLOATS,
        "Omniglot in Burda's chardata.mat, the last 1,345 training images in file order as validation",
        _render_burda,
    ),
}
SOURCES: Registry[Source] = Registry("data set")
for _name, _source in _OWN.items():
    SOURCES.register(_name, _source)

_JOINED_PHRASE = "; the validation rows are training rows as well"
_VARIANT_PHRASES = {
    "dynamic": "training rows binarised at every visit, validation and test once by a fixed key",
    "static": "binarised once for all",
    "thresholded": "1 where the intensity is at least one half",
    "grey": "grey intensities in [0, 1]",
    "dequantized": "(x + u) / 256, u drawn at every training visit and fixed for validation and test",
    "continuous": "grey, stretched per image, on the 1/255 grid plus one draw of N(0, 1/255^2) noise",
    "discrete": "grey, stretched per image and rounded to 0..255",
    "levels": "the integers 0..255 as they are",
    "none": "values as they are",
}

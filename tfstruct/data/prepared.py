"""Image rows of TFDS folders that are already prepared; nothing here uses the network.

`tfds.load` of a set that is not there tries downloads and cloud buckets for minutes when there is no network.
A prepared folder needs none of that: it describes itself, and `tfds.builder_from_directory` reads it.
"""

import importlib.util
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_BATCH = 500


class DatasetNotFoundError(FileNotFoundError, ValueError):
    """A data set or a file that is not where it was looked for; the message says how to get it there."""


def data_directory(data_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Returns the folder of data sets: `data_dir`, else $TFDS_DATA_DIR, else TFDS's own default."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(chosen).expanduser()


def find_prepared(name: str, data_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Returns the folder of the newest prepared version of a TFDS data set.

    Raises:
        DatasetNotFoundError: at once, naming the folder looked in and the command that prepares the set.
    """
    root = data_directory(data_dir)
    versions = [
        path.parent for path in (root / name).glob("*/dataset_info.json") if _VERSION.fullmatch(path.parent.name)
    ]
    if not versions:
        command = (
            'python -c "import tensorflow_datasets as tfds; '
            f'tfds.builder({name!r}, data_dir={str(root)!r}).download_and_prepare()"'
        )
        raise DatasetNotFoundError(
            f"the data set {name} is not prepared: there is no {root / name}/VERSION/dataset_info.json. "
            f"Where there is a network, prepare it once with\n    {command}\n"
            "or say where it is by data_dir or $TFDS_DATA_DIR. (The data set mnist needs no preparation.)"
        )
    return max(versions, key=lambda path: tuple(int(part) for part in path.name.split(".")))


def open_prepared(name: str, data_dir: str | os.PathLike | None = None) -> Any:
    """Returns the TFDS builder of a prepared data set; see `find_prepared` for errors."""
    folder = find_prepared(name, data_dir)
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise ModuleNotFoundError(
            f"{name} is read with tensorflow-datasets: pip install tensorflow-datasets importlib_resources"
        )
    import tensorflow_datasets as tfds  # seconds to import, and most uses never need it

    return tfds.builder_from_directory(str(folder))


def read_features(
    builder: Any, split: str, converters: Mapping[str, Callable[[np.ndarray], np.ndarray]]
) -> dict[str, np.ndarray]:
    """Reads features of all examples of a split, in the order of the files.

    Args:
        builder: a TFDS builder whose data are prepared.
        split: name of a TFDS split.
        converters: for each feature to read, what is applied to each batch of it as it is read, so that large
            images never lie in memory together.

    Returns:
        For each feature, the converted batches joined, [n, ...].
    """
    import tensorflow_datasets as tfds

    # One shard after the other: the default interleaves several, and the order would depend on their number.
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    examples = builder.as_dataset(split=split, shuffle_files=False, read_config=config)
    chosen = examples.map(lambda example: {name: example[name] for name in converters})
    parts: dict[str, list[np.ndarray]] = {name: [] for name in converters}
    for batch in chosen.batch(_BATCH).as_numpy_iterator():
        for name, convert in converters.items():
            parts[name].append(convert(batch[name]))
    return {name: np.concatenate(pieces) for name, pieces in parts.items()}


def read_images(builder: Any, split: str) -> np.ndarray:
    """Reads uint8 images [n, h, w, 3], or [n, h, w] where they have one channel."""
    return read_features(builder, split, {"image": _without_single_channel})["image"]


def _without_single_channel(images: np.ndarray) -> np.ndarray:
    return images[..., 0] if images.shape[-1] == 1 else images

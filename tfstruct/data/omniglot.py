"""Omniglot at 28x28: the original drawings by exact area average, and Burda's file.

The original images are 105x105 in black and white. 105 * 4 = 28 * 15: with every pixel repeated 4 times along
both axes, each of the 28x28 cells holds 15 * 15 = 225 of the small pixels, and the ink among them is an
integer k in 0..225. The intensity k / 225 is the exact area average.

Burda's file is another reduction of the same drawings with another split. The two are different data sets:
likelihoods on one do not compare with likelihoods on the other.

References:
    Lake, Salakhutdinov & Tenenbaum, Human-level concept learning through probabilistic program induction,
        Science 2015.
    Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016.
"""

import hashlib
import os
from collections.abc import Sequence

import numpy as np

from tfstruct.data import prepared

DRAWERS = 20  # every character was drawn once by each of 20 people
VALIDATION_DRAWER = 15
CELL_INK = 225
# sha256 of k, uint8 [32460, 28, 28], ordered by label and drawer.
_SHA256 = "da16123c4956c6ae54678b30e50726cade49d77830a2f23d372ddf71d46268c8"
_BURDA_FILE = "chardata.mat"
_BURDA_URL = "https://raw.githubusercontent.com/yburda/iwae/master/datasets/OMNIGLOT/chardata.mat"
_BURDA_VALIDATION = 1345


def area_average(ink: np.ndarray) -> np.ndarray:
    """Reduces drawings to 28x28 exactly.

    Args:
        ink: [n, 105, 105] of 0 and 1 or booleans; 1 where there is ink.

    Returns:
        uint8 [n, 28, 28] in 0..225: the share of ink in each cell, in units of 1/225.
    """
    # How many quarters of each of the 105 pixels lie in each of the 28 cells of 15 quarters, along one axis.
    overlap = np.repeat(np.eye(28, dtype=np.float32), 15, axis=1).reshape(28, 105, 4).sum(axis=2)
    # Sums of integers up to 225 are exact in float32.
    return (overlap @ np.asarray(ink, np.float32) @ overlap.T).astype(np.uint8)


def drawers_in_file_order(split: str, label: int, label_name: str) -> np.ndarray:
    """Returns who drew the 20 examples of a character, in the order in which TFDS stores them.

    TFDS keeps no drawer with an example, but sorts the examples of a split by the md5 of the split's name
    followed by the example's key, and the key ends with the name of the original file, LABEL_DRAWER.png.

    Args:
        split: the TFDS split, `train` or `test`.
        label: number of the character, from 0.
        label_name: TFDS's name of that label, ALPHABET_CHARACTER.

    Returns:
        int [20], a permutation of 1..20.
    """
    keys = [f"{split}{label_name}_{label + 1:04d}_{drawer:02d}.png" for drawer in range(1, DRAWERS + 1)]
    digests = [hashlib.md5(key.encode(), usedforsecurity=False).digest() for key in keys]
    return np.array(sorted(range(DRAWERS), key=digests.__getitem__)) + 1


def order_drawings(split: str, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Returns indices [n / 20, 20] that order a TFDS split by label (first axis) and drawer (second).

    Args:
        split: the TFDS split, `train` or `test`.
        labels: [n], the label of each example in the order of the files.
        names: TFDS's name of every label.

    Raises:
        ValueError: if a character does not have 20 drawings.
    """
    order = np.argsort(labels, kind="stable")
    present, counts = np.unique(labels, return_counts=True)
    if (counts != DRAWERS).any():
        wrong = int(np.argmax(counts != DRAWERS))
        raise ValueError(
            f"the character {names[present[wrong]]} of Omniglot's {split} split has {counts[wrong]} "
            f"drawings, expected {DRAWERS}"
        )
    rows = order.reshape(-1, DRAWERS)
    result = np.empty_like(rows)
    for row, label in enumerate(present):
        result[row, drawers_in_file_order(split, int(label), names[int(label)]) - 1] = rows[row]
    return result


def read_original(data_dir: str | os.PathLike | None = None) -> dict[str, np.ndarray]:
    """Reads all 32,460 drawings from the TFDS folder `omniglot`, split by drawer.

    Returns:
        float32 [n, 28, 28] in [0, 1] for `train` (drawers 1-14, n = 22,722), `validation` (drawer 15, 1,623)
        and `test` (drawers 16-20, 8,115), each ordered by character. All splits have all 1,623 characters of
        both TFDS splits.

    Raises:
        DatasetNotFoundError: if the folder is not there.
        ValueError: if the drawings or the drawers found for them are not the published ones.
    """
    builder = prepared.open_prepared("omniglot", data_dir)
    names: list[str] = builder.info.features["label"].names
    labels, drawings = [], []
    for split in ("train", "test"):
        # Ink is black on white; the three channels are equal.
        converters = {"image": lambda images: area_average(images[..., 0] == 0), "label": np.asarray}
        examples = prepared.read_features(builder, split, converters)
        order = order_drawings(split, examples["label"], names)
        labels.append(examples["label"][order[:, 0]])
        drawings.append(examples["image"][order])
    by_label = np.concatenate(drawings)[np.argsort(np.concatenate(labels), kind="stable")]
    found = hashlib.sha256(by_label.tobytes()).hexdigest()
    if found != _SHA256:
        raise ValueError(
            f"the drawings in {builder.data_path}, ordered by character and drawer, have sha256 {found}, "
            f"expected {_SHA256}: the split by drawer cannot be trusted"
        )
    return split_by_drawer(by_label)


def split_by_drawer(ink: np.ndarray) -> dict[str, np.ndarray]:
    """Splits ink [characters, 20, 28, 28] in 0..225 into float32 intensities of the three splits."""
    last_train = VALIDATION_DRAWER - 1
    parts = {
        "train": ink[:, :last_train],
        "validation": ink[:, last_train : last_train + 1],
        "test": ink[:, last_train + 1 :],
    }
    return {name: part.reshape(-1, 28, 28).astype(np.float32) / np.float32(CELL_INK) for name, part in parts.items()}


def read_burda(data_dir: str | os.PathLike | None = None) -> dict[str, np.ndarray]:
    """Reads Burda's `chardata.mat`, from the data directory or its folder `downloads/manual`.

    Returns:
        float32 [n, 28, 28] in [0, 1] in the order of the file: `train` (23,000), `validation` (the last
        1,345 training images) and `test` (8,070).

    Raises:
        DatasetNotFoundError: naming both folders and the command that fetches the file.
        ValueError: if the file does not hold `data` and `testdata`, [784, n].
    """
    root = prepared.data_directory(data_dir)
    manual = root / "downloads" / "manual" / _BURDA_FILE
    path = next((path for path in (manual, root / _BURDA_FILE) if path.is_file()), None)
    if path is None:
        raise prepared.DatasetNotFoundError(
            f"neither {manual} nor {root / _BURDA_FILE} is there. Where there is a network, fetch it once "
            f"with\n    curl -L --create-dirs -o {manual} {_BURDA_URL}"
        )
    from scipy import io  # only this one set needs it

    arrays = io.loadmat(str(path), variable_names=["data", "testdata"])
    images = {}
    for key in ("data", "testdata"):
        columns = arrays.get(key)
        if columns is None or columns.ndim != 2 or columns.shape[0] != 784:
            found = "nothing" if columns is None else f"shape {columns.shape}"
            raise ValueError(f"{path} must hold {key} of shape [784, n]; found {found}")
        # Each column is an image in column-major order.
        images[key] = columns.T.reshape(-1, 28, 28).transpose(0, 2, 1).astype(np.float32)
    return {
        "train": images["data"][:-_BURDA_VALIDATION],
        "validation": images["data"][-_BURDA_VALIDATION:],
        "test": images["testdata"],
    }

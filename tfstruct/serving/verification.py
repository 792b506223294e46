"""Checking a bundle with TensorFlow alone: files, graph, warm-up records, golden values."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from tfstruct import progress
from tfstruct.files import DAMAGE, require_size
from tfstruct.serving import card as card_lib
from tfstruct.serving import trust, warmup
from tfstruct.serving.client import LoadedModel
from tfstruct.serving.contents import CARD_NAME, GOLDEN_NAME, LARGEST_BYTES, DamagedBundleError, verify_files

_TOLERANCE = 1e-4


def verify(folder: str | Path, *, sha256: str | None = None) -> None:
    """Checks a bundle: its files, that its graph only computes, warm-up records, and that it gives its golden values.

    All but the last without loading the graph.

    Args:
        folder: the bundle.
        sha256: see `tfstruct.load`.

    Raises:
        DamagedBundleError: a check fails; the message names the file or the output.
        UntrustedBundleError: the graph has something that no bundle of this library has.
    """
    folder = Path(folder)
    verify_files(folder, sha256)
    card = card_lib.read(folder / CARD_NAME)
    card_lib.check(card, folder / CARD_NAME)
    trust.check(folder, card)
    warmup.check(folder, card)
    try:
        with open(folder / GOLDEN_NAME, "rb") as file, np.load(file, allow_pickle=False) as archive:
            left = LARGEST_BYTES[GOLDEN_NAME]
            for name in archive.files:
                left -= require_size(archive.zip, name, left)
            golden = dict(archive)
        missing = {"x", "seed"} - golden.keys()
        if missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
    except DAMAGE as error:
        raise DamagedBundleError(f"{folder / GOLDEN_NAME} is not what an export writes: {error}") from None
    model = LoadedModel(folder, verify=False)
    try:
        found = golden_outputs(model, golden["x"], golden["seed"])
        _compare(folder, found, golden)
    except DamagedBundleError:
        raise
    except (IndexError, TypeError, ValueError, tf.errors.OpError) as error:  # of other shapes or types
        raise DamagedBundleError(f"{folder / GOLDEN_NAME} is not what an export writes: {error}") from None


def _compare(folder: Path, found: dict[str, dict[str, np.ndarray]], golden: dict[str, np.ndarray]) -> None:
    """Raises DamagedBundleError unless outputs are the golden ones."""
    for signature, outputs in found.items():
        for name, output in outputs.items():
            expected = golden.get(f"{signature}/{name}")
            if expected is None:
                raise DamagedBundleError(f"{folder / GOLDEN_NAME} has no {name} of the signature {signature}")
            if output.shape != expected.shape or not np.allclose(
                output, expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
            ):
                raise DamagedBundleError(f"{folder}: signature {signature} does not give its golden {name}")


def golden_outputs(model: LoadedModel, x: np.ndarray, seed: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Returns the outputs of every signature for observations and one seed each."""
    signatures = [item for item in model.card["signatures"].items() if item[0] != "serving_default"]
    return {
        name: model.query(name, **warmup.example(signature["inputs"], x, seed))
        for name, signature in progress.track(signatures, "signature", "asking every signature")
    }

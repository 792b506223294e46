"""Using an exported model with TensorFlow alone: no Keras, no TensorFlow Probability, no model code."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct.registry import did_you_mean
from tfstruct.serving import card as card_lib
from tfstruct.serving import trust
from tfstruct.serving.contents import CARD_NAME, DamagedBundleError, verify_files
from tfstruct.serving.inputs import row_seeds
from tfstruct.serving.released import URL_VARIABLE, Released
from tfstruct.serving.scoring import ServedModel

__all__ = ["ROOT_VARIABLE", "LoadedModel", "find", "list_models", "load", "roots", "row_seeds"]
ROOT_VARIABLE = "TFSTRUCT_MODELS"


def load(
    name: str | os.PathLike[str],
    *,
    version: int | None = None,
    sha256: str | None = None,
    allow_untrusted: bool = False,
) -> "LoadedModel":
    """Opens an exported model, whose graph is checked first: it may compute, and do nothing else (`serving.trust`).

    Args:
        name: `<system>/<preset>`, which is looked for under $TFSTRUCT_MODELS, the models that come with the package,
            and `saved_models` in the current folder, and then fetched from the release (see `serving.released`); or a
            folder that holds `card.json`, or folders of numbered versions that do. A text that begins with `.` or `/`
            is a folder only.
        version: of several numbered versions; default the largest.
        sha256: of the bundle's SHA256SUMS, as `tfstruct-verify` prints it, to accept that bundle and no other.
        allow_untrusted: skips the check of the graph. A SavedModel is a program: it may then read and write files, or
            run Python, when it is loaded or called. Only for bundles of people whose programs you would run.

    Raises:
        FileNotFoundError: nothing there; the message lists the near names (see `list_models`) and where it looked.
        OSError: a released model that cannot be fetched.
        DamagedBundleError: a file is not what was exported.
        UntrustedBundleError: the graph has something that no bundle of this library has.
        ValueError: the folder's files are not a model of this library.
    """
    return LoadedModel(find(name, version=version), sha256=sha256, allow_untrusted=allow_untrusted)


def roots() -> list[Path]:
    """Returns the folders in which named models are looked for."""
    package = Path(__file__).resolve().parents[1]
    is_checkout = (package.parent / "setup.py").exists()
    candidates = [(package.parent if is_checkout else package) / "saved_models", Path("saved_models")]
    if os.environ.get(ROOT_VARIABLE):
        candidates.insert(0, Path(os.environ[ROOT_VARIABLE]))
    return candidates


def find(name: str | os.PathLike[str], *, version: int | None = None) -> Path:
    """Returns the folder of an exported model; see `load`."""
    # A name is that of a model that is known: a folder of that name in the current one does not take its place.
    is_path = isinstance(name, os.PathLike) or Path(name).is_absolute() or name.startswith(".")
    places = [Path(name)] if is_path else [*(root / name for root in roots()), Path(name)]
    for place in places:
        if (place / CARD_NAME).exists():
            return place
        numbers = sorted(
            int(child.name)
            for child in (place.iterdir() if place.is_dir() else ())
            if child.name.isdecimal() and (child / CARD_NAME).exists()
        )
        if version is not None and numbers and version not in numbers:
            raise FileNotFoundError(f"{place} has the versions {numbers}, not {version}")
        if numbers:
            return place / str(numbers[-1] if version is None else version)
    if (Path(name) / "checkpoints").is_dir():
        raise FileNotFoundError(f"{name} is a training run, not an exported model: tfstruct-export makes one of it")
    released = Released.read()
    fetched = None if is_path else released.fetch(str(name), version)
    if fetched is not None:
        return fetched
    looked = ", ".join(str(place) for place in places)
    if released.versions(str(name)):
        raise FileNotFoundError(
            f"{name} is a released model that is not installed: looked for a {CARD_NAME} in {looked}. Set "
            f"{ROOT_VARIABLE} to the folder that has it as {name}/<version>, or {URL_VARIABLE} to the address of the "
            "release's archives"
        )
    hint = did_you_mean(str(name), list_models())
    raise FileNotFoundError(f"no exported model {str(name)!r}{hint} Looked for a {CARD_NAME} in {looked}")


def list_models() -> list[str]:
    """Returns the names, `<system>/<preset>`, of the models that `load` finds by name or fetches, sorted."""
    cards = [card for root in roots() for card in root.glob(f"*/*/*/{CARD_NAME}") if card.parent.name.isdecimal()]
    found = {f"{card.parents[2].name}/{card.parents[1].name}" for card in cards}
    return sorted(found.union(Released.read().names()))


class LoadedModel(ServedModel):
    """An exported model in this process; its signatures as methods on NumPy arrays (see `scoring.Questions`).

    Attributes:
        path: folder of the export.
        card: what is known of the model: data, config, metrics, versions.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        verify: bool = True,
        sha256: str | None = None,
        allow_untrusted: bool = False,
    ) -> None:
        self.path = Path(path)
        if verify:
            verify_files(self.path, sha256)
        self.card: dict[str, Any] = card_lib.read(self.path / CARD_NAME)
        if verify and not allow_untrusted:
            card_lib.check(self.card, self.path / CARD_NAME)
            trust.check(self.path, self.card)
        try:
            self._module = tf.saved_model.load(str(self.path))
        except (tf.errors.OpError, IndexError, KeyError, ValueError) as error:  # of graph, index and data
            raise DamagedBundleError(f"{self.path} cannot be loaded: {getattr(error, 'message', error)}") from None
        #: the graph's functions by name, of tensors
        self.signatures: Mapping[str, Any] = self._module.signatures

    def __repr__(self) -> str:
        return f"LoadedModel({str(self.path)!r}, preset={self.card.get('preset')!r})"

    @property
    def weights(self) -> Any:
        """What holds the variables of the graph, to be kept with functions that are made of it."""
        return self._module.weights

    def _run(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self.signatures[signature](**{name: tf.constant(values) for name, values in inputs.items()})
        return {name: values.numpy() for name, values in outputs.items()}

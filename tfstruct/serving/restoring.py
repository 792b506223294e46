"""The Keras models behind bundles."""

import json
import os
import re
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfstruct.functional import Functional
from tfstruct.models import registry
from tfstruct.models.system import System
from tfstruct.serving import card as card_lib
from tfstruct.serving import client, weights
from tfstruct.serving.contents import CARD_NAME, DamagedBundleError, verify_files

# In a bundle that is calibrated the first weights are the model's and others its background's, once more each time.
_KEY = re.compile(r"weights/(?:0/)*(\d+)/(values|scales)/\.ATTRIBUTES/VARIABLE_VALUE")


def load_keras(name: str | os.PathLike[str], *, version: int | None = None, sha256: str | None = None) -> System:
    """Returns the Keras model behind a pretrained or exported model, with its weights, to train on or to take apart.

    The weights are those of the bundle, rounded where it has them rounded (`card["weights_dtype"]`); log Z and the like
    are the bundle's. Nothing of the bundle's graph is run.

    Args:
        name: as for `tfstruct.load`.
        version: likewise.
        sha256: likewise.

    Raises:
        FileNotFoundError: nothing there, as for `tfstruct.load`.
        DamagedBundleError: a file is not what was exported.
        ValueError: a system that is not registered, or weights of another version of this library.

    Examples:
        >>> model = load_keras("graph_vae/mnist")
        >>> model.num_nodes
        10
    """
    folder = client.find(name, version=version)
    verify_files(folder, sha256)
    card = card_lib.read(folder / CARD_NAME)
    card_lib.check(card, folder / CARD_NAME)
    model = registry.build(registry.parse_config(json.dumps(card["config"])))
    _assign(Functional(model), folder)
    return model


def _assign(functional: Functional, folder: Path) -> None:
    """Writes a bundle's weights into a model; raises ValueError unless it has as many, of the same shapes."""
    try:
        reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        found: dict[int, dict[str, np.ndarray]] = {}
        for key in reader.get_variable_to_shape_map():
            if match := _KEY.fullmatch(key):
                found.setdefault(int(match[1]), {})[match[2]] = reader.get_tensor(key)
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise DamagedBundleError(f"{folder}: its weights cannot be read: {error}") from None
    variables = functional.parameters.variables + functional.statistics.variables
    wanted = {number: tuple(variable.shape) for number, variable in enumerate(variables)}
    if found.keys() != wanted.keys():
        raise ValueError(
            f"{folder} has {len(found)} weights, expected {len(wanted)}: another version of this library wrote it"
        )
    for number, variable in enumerate(variables):
        try:
            value = weights.unpacked(found[number]["values"], found[number].get("scales"), wanted[number])
        except ValueError as error:
            raise ValueError(f"{folder}: {variable.path} {error}: another version of this library wrote it") from None
        variable.assign(value)

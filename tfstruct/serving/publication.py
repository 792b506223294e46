"""Writing a bundle: a SavedModel with a card, golden values and checksums, whole or not at all."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct import progress
from tfstruct.files import read_json, replacing, to_json, write_checksums, write_text, writing
from tfstruct.serving import warmup
from tfstruct.serving.client import LoadedModel
from tfstruct.serving.contents import CARD_NAME, GOLDEN_NAME, PAGE_NAME
from tfstruct.serving.page import to_markdown
from tfstruct.serving.slim import slim
from tfstruct.serving.verification import golden_outputs, verify


def require_new(output: str | Path) -> Path:
    """Returns the folder of a bundle that is to be written; raises FileExistsError if there is one."""
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists already; nothing was written")
    return output


def publish(
    output: str | Path,
    module: tf.Module,
    signatures: Mapping[str, Callable],
    card: dict[str, Any],
    rows: np.ndarray,
    check: Callable[[dict[str, np.ndarray]], None],
) -> Path:
    """Writes a bundle.

    Args:
        output: the folder to make.
        module: what holds the variables.
        signatures: concrete functions by name.
        card: what is known of the model; the number of warm-up records is added to it.
        rows: valid observations [n, *event_shape], for golden outputs and warm-up.
        check: takes the golden inputs and outputs, `<signature>/<output>`, and raises ValueError if they are wrong.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists already.
        ValueError: what `check` and the bundle's own checks find.
    """
    output = require_new(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    # A sibling whose name is not a number: a server that watches the folder never sees half a version.
    aside = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        progress.message("writing the bundle")
        with writing(output, tf.errors.OpError):
            tf.saved_model.save(module, str(aside), signatures=dict(signatures))
            slim(aside)
            records = warmup.write(aside, card["signatures"], rows) if warmup.is_available() else 0
            write_text(aside / CARD_NAME, to_json(card | {"warmup_records": records}, indent=2, sort_keys=True) + "\n")
            write_text(aside / PAGE_NAME, to_markdown(read_json(aside / CARD_NAME)))
        golden = golden_values(LoadedModel(aside, verify=False), rows)
        check(golden)
        with writing(output):
            with replacing(aside / GOLDEN_NAME) as file:
                np.savez(file, allow_pickle=False, **golden)
            write_checksums(aside)
        progress.message("verifying the bundle")
        verify(aside)
        aside.chmod(0o755)
        try:
            aside.rename(output)
        except OSError:
            require_new(output)  # another process made it meanwhile
            raise
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return output


def golden_values(model: LoadedModel, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs and outputs of every signature for a few rows: `<signature>/<output>`."""
    seed = np.arange(len(rows), dtype=np.int64)
    values = {"x": rows, "seed": seed}
    for signature, outputs in golden_outputs(model, rows, seed).items():
        values |= {f"{signature}/{name}": output for name, output in outputs.items()}
    return values

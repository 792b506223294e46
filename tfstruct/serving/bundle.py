"""Export bundles: a SavedModel with a card, golden values and checksums, written whole or not at all."""

import datetime
import json
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct import config as config_lib
from tfstruct.evaluation.report import TrainedRun, environment
from tfstruct.files import read_json, sha256, to_json, write_text
from tfstruct.models import presets
from tfstruct.models.system import System
from tfstruct.serving import warmup
from tfstruct.serving.client import (
    CARD_NAME,
    CHECKSUMS_NAME,
    DamagedBundleError,
    LoadedModel,
    bundle_files,
    verify_files,
)
from tfstruct.serving.signatures import ServedSystem
from tfstruct.serving.slim import slim

SCHEMA_VERSION = 1
GOLDEN_NAME = "golden.npz"
_GOLDEN_ROWS = 4
_TOLERANCE = 1e-4


def export(
    run: TrainedRun,
    output: str | Path,
    *,
    replica: int | None = None,
    num_samples: int | None = None,
    chunk: int | None = None,
    weights_dtype: str = "float32",
) -> Path:
    """Writes the best weights of a run as a bundle.

    Args:
        run: the trained run.
        output: the folder to make; TensorFlow Serving wants its last part to be a number, the version.
        replica: which one; default the one with the best validation bound.
        num_samples: K of the signatures; default the config's.
        chunk: importance samples computed at once; default the config's.
        weights_dtype: `float32` or `float16` (half the size, computation in float32).

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists already.
        ValueError: a replica that does not exist, numbers below 1.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists already; nothing was written")
    options = run.config.export
    num_samples = options.num_samples if num_samples is None else num_samples
    chunk = min(options.chunk if chunk is None else chunk, num_samples)
    if num_samples < 1 or chunk < 1:
        raise ValueError(f"num_samples and chunk must be at least 1, found {num_samples} and {chunk}")
    replica = int(np.argmax(run.weights.bounds)) if replica is None else replica
    model = run.use(replica)
    prepared = model.prepare_evaluation(run.config.evaluation)
    # Both now: what the card says of the structure puts the weights into the model once more, as they were stored.
    served, exact = (_served(run, model, num_samples, chunk, dtype) for dtype in (weights_dtype, "float32"))
    output.parent.mkdir(parents=True, exist_ok=True)
    # A sibling whose name is not a number: a server that watches the folder never sees half a version.
    aside = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        signatures = served.signatures()
        tf.saved_model.save(served, str(aside), signatures=signatures)
        slim(aside)
        card = _card(run, replica, served, signatures, num_samples, weights_dtype) | {"prepared": prepared}
        # Rows of the test split, so that a warm-up request takes the path of a real one.
        rows = np.asarray(run.data.test[:_GOLDEN_ROWS], np.float32)
        card["warmup_records"] = warmup.write(aside, card["signatures"], rows) if warmup.is_available() else 0
        write_text(aside / CARD_NAME, to_json(card, indent=2, sort_keys=True) + "\n")
        golden = _golden(LoadedModel(aside, verify=False), rows)
        _compare_with_model(golden, exact)
        np.savez(aside / GOLDEN_NAME, **golden)
        write_checksums(aside)
        verify(aside)
        aside.chmod(0o755)
        aside.rename(output)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return output


def _served(run: TrainedRun, model: System, num_samples: int, chunk: int, weights_dtype: str) -> ServedSystem:
    return ServedSystem(
        model,
        num_samples=num_samples,
        chunk=chunk,
        terms_options=model.terms_options(run.config.export),
        bits_per_dim_offset=None if model.is_conditional else run.data.bits_per_dim_offset,
        weights_dtype=weights_dtype,
    )


def _card(
    run: TrainedRun,
    replica: int,
    served: ServedSystem,
    signatures: dict[str, Any],
    num_samples: int,
    weights_dtype: str,
) -> dict[str, Any]:
    data, config = run.data, run.config
    return {
        "schema_version": SCHEMA_VERSION,
        "system": config.system,
        "preset": config.preset,
        "config": json.loads(config_lib.to_json(config)),
        "data": {
            "name": data.name,
            "variant": data.variant,
            "checksum": data.checksum,
            "description": data.description,
        },
        "event_shape": list(data.event_shape),
        "part_shapes": [list(shape) for shape in run.model.part_shapes],
        "target": run.model.target,
        "support": data.support,
        "bits_per_dim_offset": data.bits_per_dim_offset,
        "likelihood": config.model.likelihood,
        "num_parameters": int(sum(np.prod(variable.shape) for variable in run.model.trainable_variables)),
        "num_stored_weights": len(served.weights),
        "weights_dtype": weights_dtype,
        "num_samples": num_samples,
        "exactness": {name: kind for name, kind in run.model.exactness.items() if name in signatures},
        "leaf_regions": run.model.leaf_regions if run.model.has_regions else [],
        "structure": run.structure(replica),
        "training": {
            "seed": config.training.seed + replica,
            "best_step": int(run.weights.steps[replica]),
            "trained_steps": run.weights.trained_steps,
            "validation_bound": float(run.weights.bounds[replica])
            if np.isfinite(run.weights.bounds[replica])
            else None,
            "environment": run.folder.environment(),
        },
        "recipe": _recipe(run, weights_dtype),
        "metrics": _metrics(run, replica),
        "signatures": {
            name: {
                "inputs": _specs({spec.name: spec for spec in tf.nest.flatten(function.structured_input_signature)}),
                "outputs": _specs(function.structured_outputs),
            }
            for name, function in signatures.items()
        },
        "exported": environment(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "license": "Apache-2.0",
    }


def _recipe(run: TrainedRun, weights_dtype: str) -> list[str]:
    """Commands that make the bundle again; RUN and BUNDLE are folders of the user's."""
    config, commit = run.config, run.folder.environment().get("commit")
    changes = config_lib.overrides(config, presets.get(config.preset))
    train = ["tfstruct-train", f"--preset={config.preset}", "--workdir=RUN", *(f"--set={change}" for change in changes)]
    return [
        *([f"git checkout {commit}"] if commit else []),
        shlex.join(train),
        "tfstruct-evaluate --workdir=RUN",
        f"tfstruct-export --workdir=RUN --output=BUNDLE --weights_dtype={weights_dtype}",
    ]


def _metrics(run: TrainedRun, replica: int) -> dict[str, Any] | None:
    """What evaluation.json says of the weights that are exported; None if it is of others."""
    path = run.folder.path / "evaluation.json"
    if not path.exists():
        return None
    evaluation = read_json(path)
    evaluated = evaluation["replicas"][replica] if replica < len(evaluation["replicas"]) else {}
    # The run may have gone on since: only the numbers of these weights on these data belong on the card.
    is_of_these = (
        evaluation["data"]["checksum"] == run.data.checksum
        and evaluated.get("best_step") == int(run.weights.steps[replica])
        and evaluated.get("validation_bound") == float(run.weights.bounds[replica])
    )
    if not is_of_these:
        return None
    return {"data": evaluation["data"], "num_samples": evaluation["num_samples"], **evaluated}


def _specs(structure: dict[str, tf.TensorSpec]) -> dict[str, dict[str, Any]]:
    return {
        name: {"dtype": spec.dtype.name, "shape": [size if size is not None else -1 for size in spec.shape]}
        for name, spec in structure.items()
    }


def _golden(model: LoadedModel, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs and outputs of every signature for a few rows: `<signature>/<output>`."""
    seed = np.arange(len(rows), dtype=np.int64)
    values = {"x": rows, "seed": seed}
    for signature, outputs in golden_outputs(model, rows, seed).items():
        values |= {f"{signature}/{name}": output for name, output in outputs.items()}
    return values


def _compare_with_model(golden: dict, exact: ServedSystem) -> None:
    """Raises ValueError unless the stored model scores as the float32 model does, to what float16 weights allow."""
    expected = exact.log_prob(tf.constant(golden["x"]), tf.constant(golden["seed"]))["log_prob"].numpy()
    found = golden["log_prob/log_prob"]
    if not np.allclose(found, expected, rtol=2e-3, atol=0.05):
        raise ValueError(
            f"the exported model does not score as the trained one: log_prob {found.tolist()} for {expected.tolist()}; "
            "export with weights_dtype=float32"
        )


def golden_outputs(model: LoadedModel, x: np.ndarray, seed: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Returns the outputs of every signature for observations and one seed each."""
    outputs = {
        "log_prob": model.log_prob(x, seed=seed),
        "elbo": model.elbo(x, seed=seed),
        "encode": model.encode(x),
        "reconstruct": {"x_mean": model.reconstruct(x, seed=seed)},
    }
    if model.is_conditional:
        outputs["conditional_log_prob"] = model.conditional_log_prob(*model.parts(x), seed=seed)
    else:
        outputs["sample"] = model.sample(len(seed), seed=seed)
    if model.allows_missing:
        observed = warmup.half_observed(x)
        outputs["marginal_log_prob"] = model.marginal_log_prob(x, observed, seed=seed)
        outputs["inpaint"] = model.inpaint(x, observed, seed=seed)
    if model.has_regions:
        outputs["region_log_prob"] = model.region_log_prob(x, seed=seed)
    return outputs


def write_checksums(folder: Path) -> None:
    """Writes SHA256SUMS of all other files, in the format of `sha256sum --check`."""
    lines = [f"{sha256(path)}  {path.relative_to(folder)}" for path in bundle_files(folder)]
    write_text(folder / CHECKSUMS_NAME, "\n".join(lines) + "\n")


def verify(folder: str | Path) -> None:
    """Checks a bundle's files, then that every signature gives its golden values.

    Raises:
        DamagedBundleError: either check fails; the message names the file or the output.
    """
    folder = Path(folder)
    verify_files(folder)
    with np.load(folder / GOLDEN_NAME, allow_pickle=False) as archive:
        golden = dict(archive)
    model = LoadedModel(folder, verify=False)
    for signature, outputs in golden_outputs(model, golden["x"], golden["seed"]).items():
        for name, output in outputs.items():
            expected = golden[f"{signature}/{name}"]
            if output.shape != expected.shape or not np.allclose(
                output, expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
            ):
                raise DamagedBundleError(f"{folder}: signature {signature} does not give its golden {name}")

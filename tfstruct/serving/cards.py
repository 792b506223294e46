"""Cards of bundles: what a model is, what it was trained on, how, and how well it does."""

import datetime
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct.evaluation.report import TrainedRun, environment
from tfstruct.files import read_json
from tfstruct.models import presets
from tfstruct.models.system import System
from tfstruct.serving import cost
from tfstruct.serving.card import SCHEMA_VERSION
from tfstruct.serving.signatures import ServedSystem
from tfstruct.settings import overrides
from tfstruct.training.workdir import earlier_commits


def of_model(
    model: System, served: ServedSystem, signatures: Mapping[str, Any], num_samples: int, weights_dtype: str
) -> dict[str, Any]:
    """Returns what is known of a model whoever trained it."""
    config = model.config
    return {
        "schema_version": SCHEMA_VERSION,
        "system": config.system,
        "preset": config.preset,
        "about": presets.PRESETS[config.preset].description if config.preset in presets.PRESETS else "",
        "references": list(model.references),
        "config": json.loads(config.to_json()),
        "data": {
            "name": config.data.name,
            "variant": config.data.variant,
            "checksum": None,
            "description": "as the config names it, not checked: the model was exported without its run",
        },
        "event_shape": list(model.event_shape),
        "part_shapes": [list(shape) for shape in model.target.part_shapes],
        "target": model.target.name,
        "support": model.likelihood.support,
        "likelihood": config.model.likelihood,
        "num_parameters": int(sum(np.prod(variable.shape) for variable in model.trainable_variables)),
        "num_stored_weights": len(served.weights),
        "weights_dtype": weights_dtype,
        "num_samples": num_samples,
        "flop_of_score": cost.flop_of_score(model, num_samples, model.terms_options(config.export)),
        "exactness": {name: query.exactness for name, query in model.queries.items() if query.exactness},
        "leaf_regions": model.leaf_regions if "region_log_prob" in model.queries else [],
        "structure": model.structure_report(),
        "image": served.images.about() if "image_log_prob" in signatures and served.images is not None else None,
        "training": {},
        "recipe": [],
        "metrics": None,
        "signatures": signature_specs(signatures),
        "exported": environment(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "license": "Apache-2.0",
    }


def of_run(run: TrainedRun, replica: int, weights_dtype: str) -> dict[str, Any]:
    """Returns what a run adds: its data, its training, the commands that make it again, and its evaluation."""
    data, bound = run.data, float(run.weights.bounds[replica])
    path = run.folder.path / "evaluation.json"
    evaluation = read_json(path) if path.exists() else None
    return {
        "data": {
            "name": data.name,
            "variant": data.variant,
            "checksum": data.checksum,
            "description": data.description,
        },
        "support": data.support,
        "structure": run.structure(replica),
        "training": {
            "seed": run.config.training.seed + replica,
            "best_step": int(run.weights.steps[replica]),
            "trained_steps": run.trained_steps,
            "validation_bound": bound if np.isfinite(bound) else None,
            "environment": run.folder.environment(),
        },
        "recipe": _recipe(run, evaluation, weights_dtype),
        "metrics": None if evaluation is None else _metrics(run, evaluation, replica),
    }


def _recipe(run: TrainedRun, evaluation: Mapping[str, Any] | None, weights_dtype: str) -> list[str]:
    """Commands that make the bundle again; RUN and BUNDLE are folders of the user's."""
    config, here = run.config, environment()
    changes = overrides(config, presets.get(config.preset))
    train = ["tfstruct-train", f"--preset={config.preset}", "--workdir=RUN", *(f"--set={change}" for change in changes)]
    evaluated = evaluation or {"command": [""], "environment": here}
    evaluate = ["tfstruct-evaluate", "--workdir=RUN", *_evaluation_options(evaluated["command"])]
    steps = (
        (run.folder.environment(), shlex.join(train)),
        (evaluated["environment"], shlex.join(evaluate)),
        (here, f"tfstruct-export --workdir=RUN --output=BUNDLE --weights_dtype={weights_dtype}"),
    )
    lines: list[str] = []
    checkout = ""
    begun = [commit or "a commit that was not recorded" for commit in earlier_commits(run.folder.environment())]
    if begun:
        lines.append(f"# trained until it was stopped by {', then '.join(begun)}, and resumed by the next")
    for made_in, command in steps:  # often by different commits: what is trained for days outlives some
        before, checkout = checkout, _checkout(made_in.get("commit"))
        lines += [command] if checkout == before else [checkout, command]
    return lines


def _checkout(commit: str | None) -> str:
    """The command that goes to a commit, with a comment where that is not all there is to know."""
    if not commit:
        return "# the commit was not recorded"
    clean = commit.removesuffix("-dirty")
    return f"git checkout {clean}" + ("" if clean == commit else "  # with changes that were not committed")


def _evaluation_options(command: Sequence[str]) -> list[str]:
    """The flags of the evaluation whose numbers are on the card, but where its files are."""
    program, *parts = command
    flags: list[str] = []
    for part in parts if program == "tfstruct-evaluate" else []:
        if part.startswith("--"):
            flags.append(part)
        elif flags:  # the value of a flag without "="
            flags[-1] += f"={part}"
    return [flag for flag in flags if not flag.startswith(("--workdir=", "--data_dir="))]


def _metrics(run: TrainedRun, evaluation: Mapping[str, Any], replica: int) -> dict[str, Any] | None:
    """What an evaluation says of the weights that are exported; None if it is of others."""
    evaluated = evaluation["replicas"][replica] if replica < len(evaluation["replicas"]) else {}
    # The run may have gone on since: only the numbers of these weights on these data belong on the card.
    is_of_these = (
        evaluation["data"]["checksum"] == run.data.checksum
        and evaluated.get("best_step") == int(run.weights.steps[replica])
        and evaluated.get("validation_bound") == float(run.weights.bounds[replica])
    )
    if not is_of_these:
        return None
    about = {name: evaluation[name] for name in ("data", "num_samples", "settings") if name in evaluation}
    return about | evaluated


def signature_specs(functions: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns inputs and outputs of concrete functions, or loaded signatures, by name."""
    return {
        name: {
            "inputs": _specs({spec.name: spec for spec in tf.nest.flatten(function.structured_input_signature)}),
            "outputs": _specs(function.structured_outputs),
        }
        for name, function in functions.items()
    }


def _specs(structure: dict[str, tf.TensorSpec]) -> dict[str, dict[str, Any]]:
    return {
        name: {"dtype": spec.dtype.name, "shape": [size if size is not None else -1 for size in spec.shape]}
        for name, spec in structure.items()
    }

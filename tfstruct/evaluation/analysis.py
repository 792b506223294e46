"""What `tfstruct-analyse` does with a run: the analyses that its system offers, their settings, and their results."""

import inspect
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from tfstruct.evaluation.report import TrainedRun, evaluation_rows
from tfstruct.files import PathLike, write_json
from tfstruct.models.registry import SYSTEMS, Analysis
from tfstruct.models.standardised import Standardised
from tfstruct.registry import Registry
from tfstruct.settings import Settings, apply_overrides
from tfstruct.training.workdir import environment

SCHEMA_VERSION = 2


def offered(system: str | None = None) -> Registry[Analysis]:
    """Returns what a system offers, by name; of all systems without one."""
    found: Registry[Analysis] = Registry("analysis")
    for name in [system] if system else SYSTEMS:
        for key, part in SYSTEMS[name].analyses().items():
            found.register(key, part)
    return found


def settings_of(part: Analysis) -> Settings:
    """Returns the settings of an analysis at their defaults: the keyword-only arguments of its function."""
    types = typing.get_type_hints(part.function)
    parameters = inspect.signature(part.function).parameters.values()
    fields: dict[str, Any] = {
        entry.name: (types[entry.name], entry.default) for entry in parameters if entry.kind is entry.KEYWORD_ONLY
    }
    return pydantic.create_model(part.function.__name__, __base__=Settings, **fields)()


def analyse(
    part: Analysis,
    name: str,
    run: TrainedRun | None,
    *,
    replica: int = 0,
    rows: int | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the results of an analysis, with what they are of.

    Args:
        part: the analysis.
        name: of it.
        run: what is analysed; None for an analysis that takes no run.
        replica: of the run.
        rows: number of rows from the front of the split; 0 for all; default the analysis's.
        overrides: `key=value` for its settings.

    Raises:
        ValueError: an unknown setting, a run where none is taken, or a number of rows or a replica that there is not.
    """
    settings = apply_overrides(settings_of(part), overrides)
    result: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "analysis": name, "settings": settings.model_dump()}
    if part.takes_run != (run is not None):
        raise ValueError(f"the analysis {name} takes {'a' if part.takes_run else 'no'} run")
    if run is None:
        return result | {"results": part.function(**dict(settings))}
    values = evaluation_rows(run.data, part.split)
    count = (min(part.num_rows, len(values)) if rows is None else rows) or len(values)
    if count > len(values):
        raise ValueError(f"rows must be 0 (all) to {len(values)}, the size of the {part.split} split, found {count}")
    model, rows_of_model = run.use(replica), values[:count]
    if isinstance(model, Standardised):  # analyses look into the system, whose units are other ones
        model, rows_of_model = model.system, model.standardise(rows_of_model).numpy()
    result["run"] = {
        "workdir": str(run.folder.path),
        "preset": run.config.preset,
        "replica": replica,
        "best_step": int(run.weights.steps[replica]),
        "data": f"{run.data.name}/{run.data.variant}",
        "split": part.split,
        "rows": count,
        "standardised": run.config.data.standardise,
    }
    return result | {"results": part.function(*part.subject(model, rows_of_model), **dict(settings))}


def write(path: PathLike, result: dict[str, Any]) -> Path:
    """Writes the numbers of a result, without its arrays, and where they were computed; returns the file."""
    return write_json(path, _without_arrays(result) | {"environment": environment()})


def _without_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_arrays(part) for name, part in value.items() if not isinstance(part, np.ndarray)}
    return value

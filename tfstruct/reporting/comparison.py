"""The part of a page that puts several runs beside one another."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfstruct import plotting
from tfstruct.evaluation import comparison
from tfstruct.evaluation.report import TrainedRun
from tfstruct.reporting.parts import Drawn, Part
from tfstruct.training.logging import METRICS_NAME, read_rows


def names_of(runs: Sequence[TrainedRun]) -> list[str]:
    """Returns a short name for each run: the end of its path that tells it from the others."""
    paths = [run.folder.path.resolve() for run in runs]
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-length:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"a run was given twice, found {', '.join(map(str, paths))}")


def of_runs(runs: Sequence[TrainedRun]) -> Part:
    """Returns the comparison: curves over one another and, where all were evaluated alike, likelihoods.

    Raises:
        ValueError: fewer than two runs, or one that was given twice.
    """
    names = names_of(runs)
    curves = {name: read_rows(run.folder.path / METRICS_NAME) for name, run in zip(names, runs, strict=True)}
    figures = []
    if all(any("validation/bound" in row for row in rows) for rows in curves.values()):
        caption = "Validation bounds over training; a thin line for each seed, a thick one for their mean."
        figures.append(Drawn(plotting.draw_runs(curves, metric="validation/bound"), caption))
    try:
        groups = [comparison.read_group(name, [run.folder.path]) for name, run in zip(names, runs, strict=True)]
        result = comparison.compare(groups)
    except (FileNotFoundError, ValueError) as error:
        return Part("Comparison", [f"Likelihoods do not compare: {error}."], figures=figures)
    setting = result["setting"]
    text = [
        f"{setting['name']}/{setting['variant']}, {setting['split']} split, {setting['images']:,} rows, "
        f"K={setting['num_samples']:,}. Differences are those of each run less {names[0]}, over the same rows."
    ]
    differences = [None, *result["differences"]]
    rows = []
    for model, difference in zip(result["models"], differences, strict=True):
        change = (
            "" if difference is None else _with_error(-difference["log_likelihood"], difference["std_err_over_images"])
        )
        rows.append(
            (
                model["name"], f"{model['num_parameters']:,}", str(model["num_seeds"]),
                _with_error(model["log_likelihood"], model["std_err_over_images"]), _spread(model["std_over_seeds"]),
                f"{model['elbo']:.2f}", change, _spread(difference and difference["std_err_over_seeds"]),
            )
        )  # fmt: skip
    values = {group.name: np.mean(group.log_prob, axis=1) for group in groups}
    errors = {model["name"]: model["std_err_over_images"] for model in result["models"]}
    caption = (
        "Log-likelihood of each run with one standard error over the rows; dots are its seeds, where there are several."
    )
    figures.append(Drawn(plotting.draw_means(values, errors, axis="log-likelihood, nats"), caption))
    heading = (
        "run", "parameters", "seeds", "log-likelihood ± s.e. over rows, nats", "standard deviation over seeds", "ELBO",
        "difference ± s.e. over rows", "its s.e. over seeds",
    )  # fmt: skip
    return Part("Comparison", text, heading, rows, figures)


def _spread(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}")

"""Likelihoods of several models on the same images: seeds as the sample, images paired."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfstruct import markdown
from tfstruct.evaluation.report import evaluation_stem
from tfstruct.files import PathLike, read_json
from tfstruct.math import mean_and_std_err


class Group(NamedTuple):
    """The seeds of one model.

    Attributes:
        name: of the model, as given by the caller.
        log_prob: of every seed and image, nats, [R, n].
        elbo: of every seed, nats, [R].
        setting: what must agree for numbers to compare: data, split, images, K.
        num_parameters: trainable weights, those that a mask multiplies by 0 included.
        flags: of all its evaluations.
    """

    name: str
    log_prob: np.ndarray
    elbo: np.ndarray
    setting: dict[str, Any]
    num_parameters: int
    flags: tuple[str, ...] = ()


def read_group(name: str, workdirs: Sequence[PathLike], *, split: str = "test", tag: str = "") -> Group:
    """Reads the evaluations of runs of one model that differ in their seeds; their replicas are put together.

    Raises:
        FileNotFoundError: a folder without that evaluation.
        ValueError: no folder, two runs of the same seed, runs of different presets, sizes or numbers of steps or
            evaluated differently, or files that do not belong together.
    """
    if not workdirs:
        raise ValueError(f"{name}: no run was given")
    stem = evaluation_stem(split, tag)
    reports, scores = [], []
    for workdir in workdirs:
        path = Path(workdir) / f"{stem}.json"
        if not path.exists():
            there = sorted(found.name for found in Path(workdir).glob("evaluation*.json")) or ["none"]
            flags = [f"--workdir={workdir}", *([f"--split={split}"] if split != "test" else [])]
            flags += [f"--tag={tag}"] if tag else []
            raise FileNotFoundError(
                f"{path} does not exist (evaluations there: {', '.join(there)}); run tfstruct-evaluate "
                f"{' '.join(flags)} first, with the number of samples that the others have"
            )
        reports.append(read_json(path))
        scores_path = path.with_name(f"{stem}_log_prob.npz")
        with np.load(scores_path) as archive:
            scores.append(archive["log_prob"].astype(np.float64))
        expected = (len(reports[-1]["replicas"]), reports[-1]["data"]["images"])
        if scores[-1].shape != expected:
            raise ValueError(f"{scores_path} has shape {scores[-1].shape}, but {path.name} tells of {expected}")
        if not np.isfinite(scores[-1]).all():
            raise ValueError(f"{scores_path} holds log-likelihoods that are not finite, which have no mean to compare")
    run_keys = ("preset", "trained_steps", "num_parameters")
    settings = [_setting(report) | {key: report[key] for key in run_keys} for report in reports]
    for workdir, setting in zip(workdirs, settings, strict=True):
        _require_equal(settings[0], setting, f"{name}: {workdirs[0]}", str(workdir))
    seeds = [replica["seed"] for report in reports for replica in report["replicas"]]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{name}: a seed was given twice, found seeds {seeds}")
    elbo = np.array([float(replica["elbo"]) for report in reports for replica in report["replicas"]])
    flags = sorted({flag for report in reports for flag in report["flags"]})
    return Group(name, np.concatenate(scores), elbo, _setting(reports[0]), reports[0]["num_parameters"], tuple(flags))


def compare(groups: Sequence[Group]) -> dict[str, Any]:
    """Compares every group with the first.

    Returns:
        `setting`; `models`, for each its mean over seeds of the log-likelihood and the ELBO (nats), the standard
        deviation of the former over seeds, and the seeds' own numbers; `differences`, for each later group the first
        one's mean log-likelihood minus its, with a standard error over seeds (two independent samples; None for single
        seeds) and one over images (paired, seeds averaged).

    Raises:
        ValueError: fewer than two groups, two of the same name, or groups scored on other images or by another number
            of samples.
    """
    if len(groups) < 2:
        raise ValueError(f"a comparison needs at least two models, found {len(groups)}")
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        raise ValueError(f"two models have the same name, found {', '.join(names)}")
    first, *others = groups
    for other in others:
        _require_equal(first.setting, other.setting, first.name, other.name)
    return {
        "setting": first.setting,
        "models": [_summary(group) for group in groups],
        "differences": [_difference(first, other) for other in others],
    }


def _setting(report: Mapping[str, Any]) -> dict[str, Any]:
    data = report["data"]
    names = ("name", "variant", "split", "images", "checksum")
    return {name: data[name] for name in names} | {"num_samples": report["num_samples"]}


def _require_equal(first: Mapping[str, Any], other: Mapping[str, Any], first_name: str, other_name: str) -> None:
    different = [f"{key} {first[key]} / {other[key]}" for key in first if first[key] != other[key]]
    if different:
        raise ValueError(f"{first_name} and {other_name} do not compare: {'; '.join(different)}")


def _summary(group: Group) -> dict[str, Any]:
    means = group.log_prob.mean(axis=1)
    return {
        "name": group.name,
        "num_parameters": group.num_parameters,
        "num_seeds": len(means),
        "log_likelihood": float(means.mean()),
        "std_over_seeds": float(means.std(ddof=1)) if len(means) > 1 else None,
        "std_err_over_images": _std_err(group.log_prob.mean(axis=0)),
        "elbo": float(group.elbo.mean()),
        "seeds": means.tolist(),
        "flags": list(group.flags),
    }


def _difference(first: Group, other: Group) -> dict[str, Any]:
    one, two = first.log_prob.mean(axis=1), other.log_prob.mean(axis=1)
    over_seeds = None
    if len(one) > 1 and len(two) > 1:
        over_seeds = float(np.sqrt(one.var(ddof=1) / len(one) + two.var(ddof=1) / len(two)))
    paired = first.log_prob.mean(axis=0) - other.log_prob.mean(axis=0)
    return {
        "first": first.name,
        "other": other.name,
        "log_likelihood": float(one.mean() - two.mean()),
        "std_err_over_seeds": over_seeds,
        "std_err_over_images": _std_err(paired),
        "elbo": float(first.elbo.mean() - other.elbo.mean()),
    }


def _std_err(values: np.ndarray) -> float | None:
    """None, which JSON has, for a single value."""
    return mean_and_std_err(values)[1] if len(values) > 1 else None


def to_markdown(result: Mapping[str, Any]) -> str:
    """Returns a comparison as two tables for people."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    setting = result["setting"]
    lines = [
        f"{setting['name']} ({setting['variant']}), {setting['split']} split, {setting['images']} images, "
        f"K={setting['num_samples']}; nats",
        "",
    ]
    heading = ["model", "parameters", "seeds", "log-likelihood", "std over seeds", "s.e. over images", "ELBO"]
    keys = ("log_likelihood", "std_over_seeds", "std_err_over_images", "elbo")
    models = [
        [
            model["name"],
            f"{model['num_parameters']:,}",
            str(model["num_seeds"]),
            *(number(model[key]) for key in keys),
        ]
        for model in result["models"]
    ]
    lines += [*markdown.table(heading, models), ""]
    heading = ["difference", "log-likelihood", "s.e. over seeds", "s.e. over images", "ELBO"]
    keys = ("log_likelihood", "std_err_over_seeds", "std_err_over_images", "elbo")
    differences = [
        [f"{difference['first']} - {difference['other']}", *(number(difference[key]) for key in keys)]
        for difference in result["differences"]
    ]
    lines += markdown.table(heading, differences)
    flagged = [f"FLAGGED {model['name']}: {flag}" for model in result["models"] for flag in model["flags"]]
    return "\n".join(lines + ["", *flagged] if flagged else lines)

"""Results of a table: every number with where it comes from, in files that are written and never typed.

`<table>.json` holds for every row and seed the evaluation, what it cost and where it was computed, and the paired
differences; `<table>.npz` holds the log-likelihood of every image, from which means, standard errors and differences
can be computed again, and the ELBO of every image of evaluations that kept it. Entries of runs that are no longer at
hand stay in the files as long as the row means the same.
"""

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from tfstruct import settings
from tfstruct.evaluation.report import evaluation_stem
from tfstruct.files import PathLike, read_json, replacing, sha256, write_json
from tfstruct.math import mean_and_std_err
from tfstruct.models.registry import parse_config
from tfstruct.models.tables import METRICS, Evaluation, Row, Table
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.logging import read_rows
from tfstruct.training.workdir import earlier_commits

SCHEMA_VERSION = 1
_CONFIDENCE = 0.95
_ELBO = "/elbo"
_OF_A_RUN = {"training.seed", "training.replicas", "training.initial_weights"}  # in which the runs of a row differ


class Results(NamedTuple):
    """The results of a table.

    Attributes:
        document: the contents of the JSON file.
        scores: log-likelihood of every image, nats, float32 [n], by `<row>/<seed>`; ELBO by `<row>/<seed>/elbo`.
    """

    document: dict[str, Any]
    scores: dict[str, np.ndarray]

    def seeds(self, row: str) -> dict[str, dict[str, Any]]:
        """Entries of a row by seed; empty for a row that was not run."""
        return self.document["rows"].get(row, {}).get("seeds", {})


def is_current(table: Table, row: Row, entry: Mapping[str, Any]) -> bool:
    """Whether results of a row mean what the row, and the row that it starts from, mean now.

    Settings and ways of evaluating that came later have their defaults.
    """
    if _plain(Evaluation(0)) | entry["evaluation"] != _plain(row.evaluation) or entry["start_from"] != row.start_from:
        return False
    if row.start_from and _differences(table.row(row.start_from), json.dumps(entry["start_config"])):
        return False
    return not _differences(row, json.dumps(entry["config"]))


def _differences(row: Row, text: str) -> list[str]:
    """In what a stored config differs from that of a row, one line for each setting."""
    lines = settings.differences(parse_config(text), row.config())
    return [line for line in lines if line.partition(":")[0] not in _OF_A_RUN]


def _plain(evaluation: Evaluation) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(evaluation)))


def paths(folder: PathLike, table: Table) -> tuple[Path, Path]:
    """The JSON file and the scores of a table."""
    stem = Path(folder) / table.name
    return stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.npz")


def read(folder: PathLike, table: Table) -> Results:
    """Reads the results of a table; entries of rows that are now defined otherwise are left out with a warning.

    Raises:
        ValueError: files that do not belong together.
    """
    path, scores_path = paths(folder, table)
    empty = {"schema_version": SCHEMA_VERSION, "table": table.name, "rows": {}, "differences": []}
    if not path.exists():
        return Results(empty, {})
    document = read_json(path)
    with np.load(scores_path) as archive:
        scores = dict(archive)
    expected = {f"{row}/{seed}" for row, entry in document["rows"].items() for seed in entry["seeds"]}
    if not expected <= set(scores):
        raise ValueError(f"{path} and {scores_path.name} hold different runs: {sorted(expected - set(scores))}")
    # A writer that was killed before the JSON leaves more.
    scores = {name: values for name, values in scores.items() if name.removesuffix(_ELBO) in expected}
    known = {row.name: row for row in table.rows}
    for name, entry in list(document["rows"].items()):
        if name not in known or not is_current(table, known[name], entry):
            warnings.warn(f"{path}: row {name} is defined otherwise now; its old results are left out", stacklevel=2)
            for seed in document["rows"].pop(name)["seeds"]:
                del scores[f"{name}/{seed}"]
                scores.pop(f"{name}/{seed}{_ELBO}", None)
    return Results(document, scores)


def read_run(row: Row, workdir: Path) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """The entries and scores, by seed, of a run that was trained and evaluated.

    Raises:
        ValueError: a run of another config than the row's, or an evaluation that is not the row's or is older than the
            weights.
    """
    different = _differences(row, (workdir / "config.json").read_text(encoding="utf-8"))
    if different:
        listing = "\n  ".join(different)
        raise ValueError(f"{workdir} is no run of the row {row.name}; there / in the row:\n  {listing}")
    stem = evaluation_stem(row.evaluation.split, row.evaluation.tag)
    report = read_json(workdir / f"{stem}.json")
    asked, trained = row.evaluation, max(Checkpoints(workdir / "checkpoints").steps(), default=report["trained_steps"])
    found = (report["num_samples"], report["data"]["split"], report["trained_steps"])
    expected = (asked.num_samples, asked.split, trained)
    if found != expected or (asked.images and report["data"]["images"] != asked.images):
        raise ValueError(
            f"{workdir / stem}.json has K, split and trained steps {found} and {report['data']['images']} images, "
            f"expected {expected} and {asked.images or 'all'} images"
        )
    if asked.edges and any(replica.get("edge_effects") is None for replica in report["replicas"]):
        raise ValueError(f"{workdir / stem}.json does not say what edges are worth, expected that of every seed")
    environment = read_json(workdir / "environment.json")
    with np.load(workdir / f"{stem}_log_prob.npz") as archive:
        per_image = {name: archive[name].astype(np.float32) for name in ("log_prob", "elbo") if name in archive}
    config_digest = sha256(workdir / "config.json")
    training = {
        "steps": report["trained_steps"],
        "seconds": read_rows(workdir / "metrics.jsonl")[-1]["seconds"],
        "replicas": len(report["replicas"]),
        "config_sha256": config_digest,
        **_provenance(environment),
        "data": environment["data"],
    }
    entries, scores = {}, {}
    for place, replica in enumerate(report["replicas"]):
        seed = str(replica["seed"])
        entries[seed] = {
            **replica,
            "training": training,
            "evaluation": {
                "num_samples": report["num_samples"],
                "data": report["data"],
                "target": report["target"],
                "settings": report["settings"],
                "seconds": report["seconds"],
                **_provenance(report["environment"] | {"command": report["command"]}),
            },
        }
        scores[seed] = per_image["log_prob"][place]
        if "elbo" in per_image:
            scores[f"{seed}{_ELBO}"] = per_image["elbo"][place]
    return entries, scores


def _provenance(environment: Mapping[str, Any]) -> dict[str, Any]:
    names = ("command", "commit", "time", "platform", "cpu_count", "gpus", "python", "versions")
    earlier = earlier_commits(environment)
    return {name: environment.get(name) for name in names} | ({"earlier_commits": earlier} if earlier else {})


def merge(table: Table, results: Results, runs: Sequence[tuple[Row, Path]]) -> Results:
    """Adds the runs that are at hand and computes what depends on several of them."""
    rows, scores = dict(results.document["rows"]), dict(results.scores)
    for row, workdir in runs:
        entries, found = read_run(row, workdir)
        old = rows.get(row.name, {}).get("seeds", {})
        rows[row.name] = {"seeds": {**old, **entries}}
        scores |= {f"{row.name}/{seed}": values for seed, values in found.items()}
    ordered = {}
    for row in table.rows:
        if row.name in rows:
            seeds = dict(sorted(rows[row.name]["seeds"].items(), key=lambda item: int(item[0])))
            ordered[row.name] = _row_document(table, row, seeds, scores)
    document = {
        "schema_version": SCHEMA_VERSION,
        "table": table.name,
        "title": table.title,
        "source": table.source,
        "rows": ordered,
        "differences": differences(table, ordered, scores),
    }
    return Results(document, dict(sorted(scores.items())))


def _row_document(
    table: Table, row: Row, seeds: dict[str, dict[str, Any]], scores: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    summary = {}
    for metric in METRICS:
        values = [float(entry[metric]) for entry in seeds.values() if entry.get(metric) is not None]
        if len(values) == len(seeds):
            summary[metric] = {
                "mean": float(np.mean(values)),
                "std_over_seeds": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            }
    quantiles = [entry.get("rate_quantiles", {}).get("0.99") for entry in seeds.values()]
    if None not in quantiles:  # rates of single images run away where the mean does not show it
        summary["rate"]["quantile_99"] = float(np.mean([float(value) for value in quantiles]))
    checksums = {entry["evaluation"]["data"]["checksum"] for entry in seeds.values()}
    if len(checksums) > 1:
        raise ValueError(f"the seeds of row {row.name} were scored on different data, checksums {sorted(checksums)}")
    images = np.mean([scores[f"{row.name}/{seed}"].astype(np.float64) for seed in seeds], axis=0)
    summary["log_likelihood"]["std_err_over_images"] = float(mean_and_std_err(images)[1]) if len(images) > 1 else None
    return {
        "title": row.title,
        "group": row.group,
        "preset": row.preset,
        "overrides": list(row.overrides),
        "start_from": row.start_from,
        "start_config": json.loads(table.row(row.start_from).config().to_json()) if row.start_from else None,
        "steps": row.config().training.steps,
        "paper_steps": row.paper_steps,
        "published": {name: number._asdict() for name, number in row.published.items()},
        "evaluation": _plain(row.evaluation),
        "config": json.loads(row.config().to_json()),
        "summary": summary,
        "flags": sorted({flag for entry in seeds.values() for flag in entry["flags"]}),
        "seeds": seeds,
    }


def differences(
    table: Table, rows: Mapping[str, Mapping[str, Any]], scores: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """First row minus the other for every difference of a table whose two rows were run.

    Seeds are two independent samples (Welch's interval of 95 % from two seeds on), images are paired.
    """
    found = []
    for first, other, claim in table.differences:
        if first not in rows or other not in rows:
            continue
        one, two = (
            [scores[f"{name}/{seed}"].astype(np.float64) for seed in rows[name]["seeds"]] for name in (first, other)
        )
        data = [next(iter(rows[name]["seeds"].values()))["evaluation"]["data"] for name in (first, other)]
        if any(data[0][key] != data[1][key] for key in ("checksum", "split", "images")):
            raise ValueError(f"rows {first} and {other} were scored on different images, found {data}")
        means = [np.array([values.mean() for values in group]) for group in (one, two)]
        paired = np.mean(one, axis=0) - np.mean(two, axis=0)
        entry = {
            "first": first,
            "other": other,
            "claim": claim,
            "num_seeds": [len(one), len(two)],
            "log_likelihood": float(means[0].mean() - means[1].mean()),
            "std_err_over_images": float(mean_and_std_err(paired)[1]) if len(paired) > 1 else None,
            "std_err_over_seeds": None,
            "interval": None,
        }
        if min(entry["num_seeds"]) > 1:
            variances = [group.var(ddof=1) / len(group) for group in means]
            entry["std_err_over_seeds"] = float(np.sqrt(sum(variances)))
            interval = scipy.stats.ttest_ind(*means, equal_var=False).confidence_interval(_CONFIDENCE)
            entry["interval"] = [float(interval.low), float(interval.high)]
        found.append(entry)
    return found


def write(folder: PathLike, table: Table, results: Results) -> Path:
    """Writes both files of a table; returns the JSON file."""
    path, scores_path = paths(folder, table)
    with replacing(scores_path) as file:
        np.savez_compressed(file, allow_pickle=False, **results.scores)
    write_json(path, results.document)
    return path

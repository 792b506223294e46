"""One evaluation and one schema for all systems: `evaluation.json`."""

import functools
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfstruct import progress
from tfstruct.data import datasets, variants
from tfstruct.evaluation import baselines, plausibility
from tfstruct.files import PathLike, read_json, replacing, write_json
from tfstruct.functional import Functional
from tfstruct.inference.held_out import HeldOutScorer
from tfstruct.math import bits_per_dim
from tfstruct.models import registry
from tfstruct.models.config import Config, Evaluation
from tfstruct.models.system import System
from tfstruct.settings import apply_overrides
from tfstruct.training.data import load_data
from tfstruct.training.initial import require_layout
from tfstruct.training.loop import resolve_compiler
from tfstruct.training.workdir import Workdir, environment, program_command

SCHEMA_VERSION = 2
_PREPARATION = ("prior_temperatures", "prior_chains", "posterior_temperatures")


class TrainedRun:
    """A finished or interrupted run: its config, data, model and best weights.

    Args:
        workdir: folder of the run.
        data_dir: folder of prepared data sets.

    Raises:
        FileNotFoundError: the folder holds no run or no checkpoint.
        ValueError: the checkpoint's weights do not fit the model; the message names the first that differ.
    """

    def __init__(self, workdir: PathLike, *, data_dir: str | None = None) -> None:
        self.folder = Workdir(workdir)
        self.config: Config = self.folder.config()
        state = self.folder.run_state()
        # Not the state itself, whose moments are twice as large again as the weights.
        self.weights, self.trained_steps, self._data_checksum = state.weights, state.step, state.data_checksum
        self._fixed_uncertainties = state.fixed_uncertainties
        self._learning_rate_scale = np.asarray(state.train.learning_rate_scale)
        self._data_dir = data_dir
        self.model: System = registry.build(self.config)
        self._functional = Functional(self.model)
        for name, layout in self._functional.layout.items():
            require_layout(state.layout[name], layout, str(self.folder.path))
        self._started_from = self.folder.environment().get("starts_from") or {}

    @functools.cached_property
    def data(self) -> datasets.Dataset:
        """The data of the run; raises ValueError if they are not those that it was trained on."""
        data = load_data(self.config, self._data_dir)
        if data.checksum != self._data_checksum:
            raise ValueError(
                f"{self.folder.path} was trained on other data than {data.name}/{data.variant} is now: "
                f"checksum {self._data_checksum[:12]}..., found {data.checksum[:12]}..."
            )
        return data

    def __repr__(self) -> str:
        return (
            f"TrainedRun({str(self.folder.path)!r}, preset={self.config.preset!r}, replicas={self.num_replicas}, "
            f"trained_steps={self.trained_steps})"
        )

    @property
    def num_replicas(self) -> int:
        """R."""
        return len(self.weights.parameters)

    @property
    def trained_on_validation(self) -> bool:
        """Whether the validation rows were trained on, here or in the run that this one started from."""
        return bool(self.config.data.use_validation or self._started_from.get("use_validation"))

    def training_flags(self, split: str) -> list[str]:
        """Returns what an evaluation of a split must say of the training, that of the run it started from included."""
        flags = sorted({*self.config.training_flags, *self._started_from.get("flags", [])})
        if split == "validation" and self.trained_on_validation:
            flags.append("not held out: the validation rows were trained on")
        if (self._learning_rate_scale < 1.0).any():
            scales = ", ".join(f"{scale:g}" for scale in self._learning_rate_scale)
            flags.append(f"diverged: the learning rate of the replicas was multiplied by {scales} (0: given up)")
        return flags

    def use(self, replica: int = 0) -> System:
        """Puts the best weights of a replica into the model and returns it.

        Raises:
            ValueError: no such replica.
        """
        if not 0 <= replica < self.num_replicas:
            raise ValueError(f"the run has replicas 0..{self.num_replicas - 1}, found {replica}")
        self._functional.assign(self.weights.parameters[replica], self.weights.statistics[replica])
        return self.model

    def structure(self, replica: int = 0) -> dict[str, Any]:
        """Returns the structure_report of a replica, and how decided it was when fixed; the model stays as it is.

        `largest_gate_uncertainty_when_fixed` is there in the second of two phases, whose gates are exact zeros and
        ones.
        """
        before = self._functional.parameters.values(), self._functional.statistics.values()
        report = self.use(replica).structure_report()
        self._functional.assign(*before)
        fixed = self._fixed_uncertainties
        return report if fixed is None else report | {"largest_gate_uncertainty_when_fixed": float(fixed[replica])}


def load_run(workdir: PathLike, *, replica: int = 0) -> System:
    """Returns the Keras model of a run with its best weights, ready for evaluation; the data are not needed.

    Args:
        workdir: folder of the run.
        replica: of the run.

    Raises:
        FileNotFoundError: the folder holds no run or no checkpoint.
        ValueError: no such replica, or weights that do not fit the model.
    """
    run = TrainedRun(workdir)
    model = run.use(replica)
    model.prepare_evaluation(run.config.evaluation)
    return model


def evaluation_stem(split: str = "test", tag: str = "") -> str:
    """Returns the name, without suffix, of the files that an evaluation writes.

    Raises:
        ValueError: a tag that is not made of letters, digits, `-` and `_`, or starts with the name of a split.
    """
    if tag and (not re.fullmatch(r"[A-Za-z0-9_-]+", tag) or tag.startswith(variants.SPLITS)):
        raise ValueError(f"a tag is made of letters, digits, - and _ and starts with no split's name, found {tag!r}")
    return "_".join(part for part in ("evaluation", "" if split == "test" else split, tag) if part)


def evaluate(
    run: TrainedRun,
    *,
    split: str = "test",
    num_samples: int | None = None,
    images: int | None = None,
    batch_size: int | None = None,
    chunk: int | None = None,
    seed: int = 0,
    tag: str = "",
    overrides: Sequence[str] = (),
    data: datasets.Dataset | None = None,
    edges: bool = False,
    edge_samples: int = 100,
    edge_images: int = 1_000,
) -> dict[str, Any]:
    """Scores a split with the best weights of every replica; writes evaluation.json and the scores of each image.

    Args:
        run: the trained run.
        split: `train`, `validation` or `test`.
        num_samples: K; default the config's.
        images: number of images from the front of the split; 0 for all; default the config's.
        batch_size: images computed at once; default the config's.
        chunk: importance samples computed at once; default the config's.
        seed: of the importance samples.
        tag: keeps evaluations of one split, by other numbers of samples say, in files of their own.
        overrides: `evaluation.key=value` for settings that are no argument here.
        data: what to score in place of the run's own data (see `other_data.load`); without a tag its files are named
            after it.
        edges: whether to measure what each edge of a Graph VAE is worth (see `System.edge_effects`).
        edge_samples: importance samples for that.
        edge_images: number of images for that, from the front of the split; all where there are fewer.

    Returns:
        What was written to `evaluation.json` (other splits: `evaluation_<split>.json`; a tag comes last).

    Raises:
        ValueError: an unknown split, a bad tag or one of an evaluation of other data, edges of a model that has none,
            or numbers below what is possible.
    """
    data = run.data if data is None else data
    if not tag and data.checksum != run.data.checksum:
        tag = f"{data.name}_{data.variant}"
    stem = evaluation_stem(split, tag)
    _check_same_data(run.folder.path / f"{stem}.json", data)
    edge_effects = run.model.edge_effects if edges else None
    if edges and edge_effects is None:
        raise ValueError(f"edges must be those of a Graph VAE with possible edges, found a run of {run.config.preset}")
    asked = {"num_samples": num_samples, "batch_size": batch_size, "chunk": chunk, "images": images}
    options = evaluation_settings(run.config, overrides)
    options = options.replace({name: value for name, value in asked.items() if value is not None})
    num_samples, batch_size, chunk = options.num_samples, options.batch_size, options.chunk
    rows = evaluation_rows(data, split)
    # The config's number may be meant for a larger set; one that was asked for must be possible.
    images = min(options.images, len(rows)) if images is None else images
    if images > len(rows):
        raise ValueError(f"images must be 0 (all) to {len(rows)}, found {images}")
    rows = rows[:images] if images else rows
    start = time.monotonic()
    make_scorer = functools.partial(
        HeldOutScorer,
        run.model,
        chunk=chunk,
        compiler=resolve_compiler(run.config),
        terms_options=run.model.terms_options(options),
    )
    scorer = make_scorer(num_samples=num_samples, batch_size=min(batch_size, len(rows)))
    edge_scorer = None
    if edges:
        edge_rows = rows[:edge_images]
        edge_scorer = make_scorer(num_samples=edge_samples, batch_size=min(batch_size, len(edge_rows)))
    simple = None
    # Other data may be of another variant, whose numbers are in other units.
    if not run.model.target.is_conditional and data.bits_per_dim_offset == run.data.bits_per_dim_offset:
        simple = baselines.bits_per_dim(run.data, rows) or baselines.log_densities(run.data, rows)
    replicas, log_probs, elbos = [], [], []
    for replica in range(run.num_replicas):
        parameters = run.weights.parameters[replica]
        statistics, prepared = scorer.prepare(parameters, run.weights.statistics[replica], options, seed=seed)
        with progress.watched(rows, f"evaluating replica {replica + 1} of {run.num_replicas}") as watched:
            estimate = scorer(parameters, statistics, watched, seed=seed)
        log_probs.append(estimate.log_prob)
        elbos.append(estimate.elbo)
        report = _replica_report(run, data, replica, scorer.summarise(estimate))
        spread, flags = plausibility.over_images(estimate, num_samples)
        report |= spread | prepared
        scorer.functional.assign(parameters, statistics)
        own, own_flags = run.model.report(rows, options, report, seed=seed)
        report, flags = report | own, flags + own_flags
        if edge_effects is not None:
            report["edge_effects"] = edge_effects(edge_scorer, parameters, statistics, edge_rows, seed=seed)
        report["flags"] += flags + run.training_flags(split) + baselines.flags(simple, report, data.dims)
        replicas.append(report)
    result = {
        "schema_version": SCHEMA_VERSION,
        "system": run.config.system,
        "preset": run.config.preset,
        "data": {
            "name": data.name,
            "variant": data.variant,
            "split": split,
            "images": len(rows),
            "checksum": data.checksum,
            "description": data.description,
            "trained_on": {
                "name": run.data.name,
                "variant": run.data.variant,
                "checksum": run.data.checksum,
                "use_validation": run.trained_on_validation,
            },
        },
        "num_samples": num_samples,
        "settings": {name: value for name, value in options.items() if name in _PREPARATION},
        "target": run.model.target.name,
        "latents": run.model.evaluated_as,
        "baselines": simple,
        "replicas": replicas,
        "mean": _over_replicas(replicas, np.mean),
        "std": _over_replicas(replicas, lambda values: np.std(values, ddof=1) if len(values) > 1 else None),
        "flags": sorted({flag for replica in replicas for flag in replica["flags"]}),
        "trained_steps": run.trained_steps,
        "num_parameters": int(sum(np.prod(variable.shape) for variable in run.model.trainable_variables)),
        "seconds": round(time.monotonic() - start, 2),
        "environment": environment(),
        "command": program_command(),
    }
    # The report last: where it exists, the scores do.
    with replacing(run.folder.path / f"{stem}_log_prob.npz") as file:
        np.savez(file, log_prob=np.stack(log_probs), elbo=np.stack(elbos))
    write_json(run.folder.path / f"{stem}.json", result)
    return result


def evaluation_settings(config: Config, overrides: Sequence[str]) -> Evaluation:
    """Returns a config's evaluation settings with overrides applied.

    Raises:
        ValueError: an override of something else, an unknown key, or a value that cannot be.
    """
    for override in overrides:
        if not override.startswith("evaluation."):
            raise ValueError(f"only evaluation.key=value can be set for an evaluation, found {override!r}")
    return apply_overrides(config, overrides).evaluation


def evaluation_rows(data: datasets.Dataset, split: str) -> np.ndarray:
    """Returns final values of a split.

    Raises:
        ValueError: an unknown split, or a training split that is only defined up to fresh noise.
    """
    if split == "train" and data.train_transform != "cast":
        raise ValueError(
            f"the training rows of {data.name}/{data.variant} are drawn anew at every visit and have no fixed "
            "likelihood; use --split=validation or --split=test"
        )
    return data.split(split)


def _check_same_data(path: Path, data: datasets.Dataset) -> None:
    """Raises ValueError for an evaluation of other data that would be overwritten."""
    if not path.exists():
        return
    found = read_json(path).get("data", {})
    if found.get("checksum", data.checksum) != data.checksum:
        raise ValueError(
            f"tag must not be that of an evaluation of other data, found {path.name} of {found['name']}/"
            f"{found['variant']}; give --tag another name"
        )


def _replica_report(run: TrainedRun, data: datasets.Dataset, replica: int, summary: Any) -> dict[str, Any]:
    config = run.config
    offset = None if run.model.target.is_conditional else data.bits_per_dim_offset
    bits = None if offset is None else bits_per_dim(summary.log_likelihood, data.dims, offset)
    report = {
        "seed": config.training.seed + replica,
        "best_step": int(run.weights.steps[replica]),
        "validation_bound": float(run.weights.bounds[replica]),
        "log_likelihood": summary.log_likelihood,
        "std_err": summary.std_err,
        "bits_per_dim": bits,
        "elbo": summary.elbo,
        "elbo_std_err": summary.elbo_std_err,
        "rate": summary.rate,
        "distortion": summary.distortion,
        "effective_sample_size": summary.effective_sample_size,
        "flags": plausibility.flags(
            data.name,
            data.variant,
            log_likelihood=summary.log_likelihood,
            num_samples=summary.num_samples,
            effective_sample_size=summary.effective_sample_size,
            bits_per_dim=bits,
            is_conditional=run.model.target.is_conditional,
        ),
    }
    return report | run.structure(replica)


def _over_replicas(replicas: list[dict[str, Any]], statistic: Any) -> dict[str, Any]:
    names = ("log_likelihood", "bits_per_dim", "elbo", "rate", "distortion", "effective_sample_size")
    result = {}
    for name in names:
        values = [replica[name] for replica in replicas]
        if None not in values:
            with np.errstate(invalid="ignore"):
                number = statistic(values)
            result[name] = None if number is None else float(number)
    return result


def summary_line(result: dict[str, Any]) -> str:
    """Returns one line for people: the likelihood with its standard error, and where it comes from."""
    data, mean, std = result["data"], result["mean"], result["std"]
    mean = {name: float(value) for name, value in mean.items()}
    if len(result["replicas"]) > 1:
        spread = f"{float(std['log_likelihood']):.2f} (standard deviation over {len(result['replicas'])} seeds)"
    else:
        spread = f"{float(result['replicas'][0]['std_err']):.2f} (standard error over images)"
    bits = f", {mean['bits_per_dim']:.4f} bits/dim" if "bits_per_dim" in mean else ""
    bits += baselines.text(result.get("baselines"))
    largest = max(float(replica["rate_quantiles"]["1.0"]) for replica in result["replicas"])
    quantity = "log-likelihood" if result["target"] == "log p(x)" else result["target"]
    return (
        f"{data['name']} ({data['variant']}), {data['split']} split, {data['images']} images, "
        f"K={result['num_samples']}: {quantity} {mean['log_likelihood']:.2f} +- {spread} nats{bits}; "
        f"ELBO {mean['elbo']:.2f}, rate {mean['rate']:.2f} (largest {largest:.2f}), "
        f"distortion {mean['distortion']:.2f}"
    )


def edge_lines(result: dict[str, Any]) -> list[str]:
    """Returns what the edges of each replica are worth, a line each, for people; none where it was not measured."""
    lines = []
    for replica in result["replicas"]:
        effects = replica.get("edge_effects")
        if effects is None:
            continue
        lines.append(
            f"seed {replica['seed']}, edges flipped one at a time ({effects['images']} images, K="
            f"{effects['num_samples']}), change of the log-likelihood:"
        )
        named = [
            (f"{'close' if edge['is_open'] else 'open'} z{edge['parent'] + 1} -> z{edge['child'] + 1}", edge)
            for edge in effects["edges"]
        ]
        named += [("open all", effects["all_open"]), ("close all", effects["all_closed"])]
        if effects["undecided"] is not None:
            named.append((f"average over {len(effects['undecided']['edges'])} undecided", effects["undecided"]))
        lines += [f"  {name}: {float(part['change']):.3f} +- {float(part['std_err']):.3f} nats" for name, part in named]
    return lines

"""Runs as the trainer and the evaluation leave them, made up in no time, and a program that makes them."""

import json
import sys

import numpy as np

from tfstruct.evaluation.report import evaluation_stem
from tfstruct.models.tables import Difference, Evaluation, Published, Row, Table

GRAPH, OPEN = ("training.steps=100",), ("training.steps=50", "model.decoder_units=(8, 8)")
TABLE = Table(
    "graph_vae/made_up",
    "Made up",
    "nowhere",
    (
        Row("graph", "Graph VAE", "graph_vae/tiny", Evaluation(5, 40), group="A", overrides=GRAPH, seeds=(0, 1, 2)),
        Row(
            "open",
            "fine-tuned",
            "graph_vae/tiny",
            Evaluation(5, 40),
            group="A",
            overrides=OPEN,
            published={"log_likelihood": Published(-80.5, 0.25)},
            paper_steps=2_000,
            start_from="graph",
        ),
        Row("other", "unrun", "vae/tiny", Evaluation(5, 40), group="B", published={"elbo": Published(-99.0)}),
        Row("absent", "no data", "vae/cifar10", Evaluation(5), group="B", missing="no network"),
    ),
    differences=(
        Difference("open", "graph", "Tuning helps."),
        Difference("open", "other"),
        Difference("graph", "open"),
    ),
)
IMAGES = 40


def scores(row, seed, images=IMAGES):
    """Log-likelihoods of a run: seeds and rows differ, images alike."""
    difficulty = np.random.default_rng(1).normal(-100.0, 10.0, size=images)
    shift = {"graph": 0.0, "open": 3.0}[row] + 0.25 * seed
    return (difficulty + shift + 0.1 * np.random.default_rng([seed, len(row)]).normal(size=images)).astype(np.float32)


def write_training(row, workdir, seeds=(0,)):
    """What a finished training leaves."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(row.config().to_json())
    data = {"checksum": "c" * 64, "description": "made up"}
    environment = {"commit": "abc", "command": ["tfstruct-train"], "gpus": [], "versions": {}, "data": data}
    (workdir / "environment.json").write_text(json.dumps(environment))
    (workdir / "metrics.jsonl").write_text(json.dumps({"step": 100, "seconds": 3_600.0}) + "\n")
    (workdir / "best").mkdir(exist_ok=True)
    for place in range(len(seeds)):
        (workdir / "best" / f"replica_{place}.weights.h5").touch()


#: two edges: one that matters, one that does not
EDGES = {
    "num_samples": 5,
    "images": IMAGES,
    "edges": [
        {"is_open": True, "change": -1.5, "std_err": 0.25},
        {"is_open": False, "change": 0.01, "std_err": 0.02},
    ],
    "all_open": {"change": 0.01, "std_err": 0.02},
    "all_closed": {"change": -1.5, "std_err": 0.25},
    "undecided": None,
}


def write_evaluation(row, workdir, seeds=(0,), flags=()):
    """What an evaluation leaves."""
    values = np.stack([scores(row.name, seed) for seed in seeds])
    replicas = [
        {
            "seed": seed,
            "log_likelihood": float(own.mean(dtype=np.float64)),
            "std_err": 1.0,
            "bits_per_dim": 0.2,
            "elbo": float(own.mean(dtype=np.float64)) - 2.0,
            "rate": 20.0,
            "rate_quantiles": {"0.5": 20.0, "0.99": 40.0 + seed, "1.0": 60.0},
            "flags": list(flags),
            "edge_effects": EDGES if row.evaluation.edges else None,
        }
        for seed, own in zip(seeds, values, strict=True)
    ]
    data = {"name": "mnist", "variant": "dynamic", "split": "test", "images": IMAGES, "checksum": "c" * 64}
    report = {
        "replicas": replicas,
        "trained_steps": row.config().training.steps,
        "num_samples": row.evaluation.num_samples,
        "data": data,
        "target": "log p(x)",
        "settings": {},
        "seconds": 1.0,
        "environment": {"commit": "abc"},
        "command": ["tfstruct-evaluate"],
    }
    stem = evaluation_stem(row.evaluation.split, row.evaluation.tag)
    (workdir / f"{stem}.json").write_text(json.dumps(report))
    np.savez(workdir / f"{stem}_log_prob.npz", log_prob=values, elbo=values - 2.0)


# A program that stands for tfstruct-train and tfstruct-evaluate: it takes steps of ten milliseconds, goes on from the
# step that it left, saves at SIGTERM as the trainer does, notes which processors it had, and leaves prepared files.
_STAND_IN = """
import json, os, pathlib, shutil, signal, sys, time
program, workdir, prepared, source = sys.argv[1:]
workdir = pathlib.Path(workdir)
if program == "train":
    if source and not (pathlib.Path(source) / "best").exists():
        raise SystemExit("the run to start from is not trained")
    workdir.mkdir(parents=True, exist_ok=True)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    progress = workdir / "steps"
    steps = int(progress.read_text()) if progress.exists() else 0
    with open(workdir / "starts", "a") as file:
        file.write(f"{steps} {len(os.sched_getaffinity(0))}\\n")
    while steps < 100:
        time.sleep(0.01)
        steps += 1
        if stopped:
            progress.write_text(str(steps))
            raise SystemExit(143)
    if (workdir.parent / "fail").exists():
        raise SystemExit("no more memory")
shutil.copytree(prepared, workdir, dirs_exist_ok=True)
"""


def stand_in(program, unit, source):
    """Command of the stand-in for a unit."""
    prepared = unit.workdir.with_name(f"{unit.workdir.name}.{program}.prepared")
    prepared.mkdir(parents=True, exist_ok=True)
    write = write_training if program == "train" else write_evaluation
    write(unit.row, prepared, unit.seeds)
    return [sys.executable, "-c", _STAND_IN, program, str(unit.workdir), str(prepared), str(source or "")]

"""Runs that start from another run's weights, and runs on the validation rows."""

import json
import shutil

import numpy as np
import pytest

from tests.trainers import tiny
from tfstruct import random
from tfstruct.evaluation import report
from tfstruct.functional import Functional
from tfstruct.models import registry
from tfstruct.training import run as training
from tfstruct.training import trainer
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.initial import start_from
from tfstruct.training.state import initial_state, stack_states
from tfstruct.training.workdir import Workdir

FROZEN = ("optimizer.learning_rate=0.0", "training.steps=2", "training.steps_per_call=2", "training.validate_every=2")


@pytest.fixture(scope="module")
def source(file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("source") / "run"
    training.train(tiny.vae_config(file), workdir)
    return workdir


def final(workdir):
    return Checkpoints(workdir / "checkpoints").latest().arrays


@pytest.mark.parametrize("ema_momentum", [0.0, 0.9])
def test_a_run_starts_from_the_best_weights_of_another(file, source, tmp_path, ema_momentum):
    changes = (f"training.initial_weights={source}", f"optimizer.ema_momentum={ema_momentum}")
    training.train(tiny.vae_config(file, *FROZEN, *changes), tmp_path / "run")
    best = Workdir(source).run_state().weights
    found = final(tmp_path / "run")
    np.testing.assert_array_equal(found["state/parameters"], best.parameters)
    if ema_momentum:
        np.testing.assert_allclose(found["averages/parameters"], best.parameters, rtol=1e-6)
    training.train(tiny.vae_config(file, *FROZEN), tmp_path / "fresh")
    assert np.abs(final(tmp_path / "fresh")["state/parameters"] - best.parameters).max() > 0.1
    # Batch statistics go along: two steps of momentum 0.9 leave four fifths of them.
    fresh = np.abs(final(tmp_path / "fresh")["state/statistics"] - best.statistics).max()
    assert np.abs(found["state/statistics"] - best.statistics).max() < 0.5 * fresh


def test_one_replica_starts_several_and_two_do_not_start_three(source, tmp_path):
    functional = Functional(registry.build(Workdir(source).config()))
    three = stack_states([initial_state(functional, random.key(seed)) for seed in range(3)])
    best = Workdir(source).run_state().weights.parameters
    np.testing.assert_array_equal(start_from(three, functional, source).parameters, np.repeat(best, 3, axis=0))
    stored = Checkpoints(source / "checkpoints").latest()
    two = {name: np.repeat(values, 2, axis=0) for name, values in stored.arrays.items()}
    Checkpoints(tmp_path / "checkpoints").save(20, two, stored.metadata)
    with pytest.raises(ValueError, match="has 2 replicas, .* found training.replicas=3"):
        start_from(three, functional, tmp_path)


def test_the_best_weights_start_a_run_not_the_latest(source, tmp_path):
    stored = Checkpoints(source / "checkpoints").latest()
    better = {name: values.copy() for name, values in stored.arrays.items()}
    better["best/parameters"] += 1.0
    Checkpoints(tmp_path / "checkpoints").save(20, better, stored.metadata)
    functional = Functional(registry.build(Workdir(source).config()))
    state = stack_states([initial_state(functional, random.key(0), is_averaged=True)])
    found = start_from(state, functional, tmp_path)
    np.testing.assert_array_equal(found.parameters, better["best/parameters"])
    np.testing.assert_array_equal(found.averages["parameters"], better["best/parameters"])


def test_resuming_does_not_need_the_source(file, source, tmp_path):
    copy = tmp_path / "copy"
    Checkpoints(copy / "checkpoints").save(20, final(source), Checkpoints(source / "checkpoints").latest().metadata)
    shutil.copy(source / "config.json", copy)
    config = tiny.vae_config(file, *FROZEN, f"training.initial_weights={copy}")
    training.train(config, tmp_path / "run")
    shutil.rmtree(copy)
    assert training.train(config, tmp_path / "run", resume="must").step == 2
    config = config.replace({"training.initial_weights": "moved"})  # nor its name
    assert training.train(config, tmp_path / "run", resume="must").step == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("model.decoder_units=(9,)",), r"other weights than this model .*decoder/dense_0/kernel \[6, 9\] / \[6, 8\]"),
        (("training.initial_weights=/nowhere",), "/nowhere/checkpoints holds no checkpoint"),
        (("training.structure_fraction=0.5",), "initial_weights does not go with training.structure_fraction"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_a_folder_is_made(file, source, tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        training.train(tiny.vae_config(file, *FROZEN, f"training.initial_weights={source}", *changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_on_the_validation_rows_visits_them_and_keeps_its_last_weights(file, tmp_path, monkeypatch):
    # Moves so long that the bound falls: by validation the weights of the beginning would be kept.
    changes = ("optimizer.learning_rate=3.0", "training.steps=6", "training.steps_per_call=2")
    visited = []
    steps = ("training.validate_every=2", "data.use_validation=True")
    original = trainer.Pipeline

    def remember(rows, **options):
        visited.append(rows)
        return original(rows, **options)

    monkeypatch.setattr(trainer, "Pipeline", remember)
    config = tiny.vae_config(file, *changes, *steps)
    training.train(config, tmp_path / "run")
    with np.load(file) as archive:
        np.testing.assert_array_equal(visited[0], np.concatenate([archive["train"], archive["validation"]]))
    weights = Workdir(tmp_path / "run").run_state().weights
    assert weights.steps.tolist() == [6]
    np.testing.assert_array_equal(weights.parameters, final(tmp_path / "run")["state/parameters"])
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert "validation rows are training rows as well" in environment["data"]["description"]
    after = tiny.vae_config(file, *steps[:1], "training.steps=2", f"training.initial_weights={tmp_path / 'run'}")
    training.train(after, tmp_path / "after")
    for name in ("run", "after"):
        run = report.TrainedRun(str(tmp_path / name))
        for split, is_flagged in (("validation", True), ("test", False)):
            flags = report.evaluate(run, split=split)["flags"]
            assert any(flag.startswith("not held out") for flag in flags) == is_flagged

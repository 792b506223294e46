import json
import shutil
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tests.training.fake_scorer import FakeScorer
from tfstruct.evaluation.report import TrainedRun
from tfstruct.training import run as training
from tfstruct.training import trainer, validation
from tfstruct.training.checkpoint import Checkpoints, WorkdirBusyError, WorkdirLock
from tfstruct.training.logging import read_rows
from tfstruct.training.phases import Phases
from tfstruct.training.workdir import Workdir


def snapshot(folder):
    """Every file of a folder with its bytes, and all names."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def finished(file, tmp_path_factory):
    """The folder and result of a run of 20 steps; not to be changed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, training.train(tiny.vae_config(file), workdir)


# What a run leaves ---------------------------------------------------------------------------------------------------


def test_a_run_leaves_config_environment_metrics_checkpoint_and_best_weights(file, finished):
    workdir, result = finished
    assert result.step == 20
    config = Workdir(workdir).config()
    assert config == tiny.vae_config(file).replace({"data.event_shape": (12,)})
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["compiler"] == "graph"
    assert len(environment["data"]["checksum"]) == 64
    rows = read_rows(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [10, 20]
    assert all(row["train/skipped"] == 0 for row in rows)
    assert "validation/bound" not in rows[0]
    state = Workdir(workdir).run_state()
    weights = state.weights
    assert state.step == 20
    np.testing.assert_array_equal(weights.bounds, result.best.bounds)
    np.testing.assert_array_equal(weights.steps, [20])
    assert np.isfinite(weights.bounds).all()


def test_a_checkpoint_says_which_code_wrote_it(finished):
    folder = Workdir(finished[0])
    noted = folder.environment()
    assert folder.run_state().made_by == {"commit": noted["commit"], "versions": noted["versions"]}
    assert noted["versions"]["keras"] == keras.__version__


def test_weights_that_were_damaged_are_not_loaded_whatever_byte_it_was(finished, tmp_path, rng):
    model = TrainedRun(finished[0]).model
    folder = shutil.copytree(finished[0] / "best", tmp_path / "best")
    path = folder / "replica_0.weights.h5"
    content = path.read_bytes()
    model.load_weights(path)
    expected = [np.array(variable) for variable in model.variables]
    for place in rng.choice(len(content), size=100, replace=False):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="replica_0.weights.h5 does not have the checksum in SHA256SUMS"):
            model.load_weights(path)
    for one, two in zip(model.variables, expected, strict=True):
        np.testing.assert_array_equal(one, two)
    for variable in model.variables:
        variable.assign(tf.zeros_like(variable))
    path.write_bytes(content)
    model.load_weights(str(path))
    for one, two in zip(model.variables, expected, strict=True):
        np.testing.assert_array_equal(one, two)


# Bug seen: a run that was stopped in the middle of a call compiled its program twice.
def test_a_run_compiles_its_program_once_whatever_calls_it_makes(file, tmp_path, monkeypatch):
    trainers = []

    def make(*arguments):
        trainers.append(trainer.Trainer(*arguments))
        return trainers[-1]

    monkeypatch.setattr(training, "Trainer", make)
    config = tiny.vae_config(file, "training.steps=25", "training.steps_per_call=7", "training.validate_every=10")
    training.train(config, tmp_path / "whole")
    training.train(config, tmp_path / "resumed")
    checkpoints = Checkpoints(tmp_path / "resumed/checkpoints")
    state = Workdir(tmp_path / "resumed").run_state()
    checkpoints.discard_after(-1)
    checkpoints.save(5, state.arrays(), state.metadata())  # in the middle of the first call
    training.train(config, tmp_path / "resumed")
    assert [each.loop.num_programs for each in trainers] == [1, 1, 1]


def test_each_replica_has_its_own_best_weights(file, tmp_path):
    training.train(tiny.vae_config(file, "training.replicas=2"), tmp_path)
    run = TrainedRun(tmp_path)
    assert np.any(run.weights.parameters[0] != run.weights.parameters[1])
    for replica in range(2):
        expected = [np.array(variable) for variable in run.use(replica).variables]
        run.model.load_weights(tmp_path / f"best/replica_{replica}.weights.h5")
        for variable, value in zip(run.model.variables, expected, strict=True):
            np.testing.assert_array_equal(variable, value)
            variable.assign(tf.zeros_like(variable))


def test_weights_laid_out_otherwise_are_refused_by_name_with_the_commit_that_wrote_them(file, finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    folder = Workdir(workdir)
    state = folder.run_state()
    path, shape = state.layout["parameters"][0]
    layout = state.layout | {"parameters": [[f"old/{path}", shape], *state.layout["parameters"][1:]]}
    other = state._replace(layout=layout, made_by={"commit": "ab12"})
    folder.checkpoints.save(state.step, other.arrays(), other.metadata())
    message = (
        rf"written by commit ab12\) has other weights than this model \(here / there\): {path} .* / None; old/{path}"
    )
    with pytest.raises(ValueError, match=message):
        training.train(tiny.vae_config(file), workdir)
    with pytest.raises(ValueError, match="another version of this library wrote them: use that one"):
        TrainedRun(workdir)


def test_training_raises_the_bound(finished):
    first, last = read_rows(finished[0] / "metrics.jsonl")
    assert last["train/bound"] > first["train/bound"] + 1.0


def test_a_finished_run_given_again_changes_no_weight_and_adds_no_row(file, tmp_path):
    short = ("training.steps=2", "training.steps_per_call=2")
    training.train(tiny.vae_config(file, *short), tmp_path / "run")
    before = Checkpoints(tmp_path / "run/checkpoints").latest().arrays
    rows = read_rows(tmp_path / "run/metrics.jsonl")
    result = training.train(tiny.vae_config(file, *short), tmp_path / "run", resume="must")
    assert result.step == 2
    after = Checkpoints(tmp_path / "run/checkpoints").latest().arrays
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert read_rows(tmp_path / "run/metrics.jsonl") == rows


def test_the_config_of_a_run_does_not_depend_on_the_devices(file, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.Trainer, "run", lambda run, about: None)
    training.train(tiny.vae_config(file), tmp_path / "run", strategy="mirrored")
    assert not Workdir(tmp_path / "run").config().model.batch_norm_synchronized


def test_a_mapped_data_file_trains_to_the_same_weights_as_one_in_memory(tmp_path):
    rows = tiny.binary_rows(np.random.default_rng(0), 120, (12,))
    np.save(tmp_path / "rows.npy", rows)
    finals = []
    for megabytes in (2000, 0):
        config = tiny.vae_config(tmp_path / "rows.npy", f"training.resident_megabytes={megabytes}", "training.steps=4")
        training.train(config, tmp_path / str(megabytes))
        finals.append(Checkpoints(tmp_path / str(megabytes) / "checkpoints").latest().arrays)
    for name, value in finals[0].items():
        np.testing.assert_array_equal(finals[1][name], value, err_msg=name)


# Best weights and patience, with validation bounds made up ----------------------------------------------------------


def train_with_bounds(monkeypatch, file, workdir, table, *overrides):
    """A run with the validation bounds of a table [validations, replicas]."""
    scorer = FakeScorer(np.ravel(table))
    monkeypatch.setattr(validation, "HeldOutScorer", lambda model, **options: scorer)
    overrides = (
        f"training.replicas={len(table[0])}",
        "training.steps=12",
        "training.steps_per_call=2",
        "training.validate_every=2",
        *overrides,
    )
    return training.train(tiny.vae_config(file, *overrides), workdir), scorer


def test_with_validation_rows_in_training_the_last_weights_are_kept_whatever_they_score(monkeypatch, file, tmp_path):
    falling = [[-1], [-2], [-3], [-4], [-5], [-6]]
    result, scorer = train_with_bounds(monkeypatch, file, tmp_path / "run", falling, "data.use_validation=True")
    assert result.best.steps.tolist() == [12]
    np.testing.assert_array_equal(result.best.parameters[0], scorer.seen[-1][0])


def test_the_best_weights_are_those_of_the_best_validation_of_each_replica(monkeypatch, file, tmp_path):
    table = [[-9, -7], [-5, -8], [-6, -6], [-7, -9], [-5, -6], [-8, -7]]
    result, scorer = train_with_bounds(monkeypatch, file, tmp_path / "run", table)
    np.testing.assert_array_equal(result.best.bounds, [-5, -6])
    np.testing.assert_array_equal(result.best.steps, [4, 6])  # of equal bounds the first
    for replica, place in ((0, 1), (1, 2)):
        parameters, statistics = scorer.seen[2 * place + replica]
        np.testing.assert_array_equal(result.best.parameters[replica], parameters)
        np.testing.assert_array_equal(result.best.statistics[replica], statistics)
    assert np.any(scorer.seen[2][0] != scorer.seen[10][0])
    assert result.step == 12
    assert not result.best.stopped.any()


def test_the_best_weights_are_chosen_on_the_first_validation_rows(monkeypatch, file, tmp_path):
    _, scorer = train_with_bounds(monkeypatch, file, tmp_path / "run", [[-1]] * 6, "training.validation_images=15")
    validation_rows = np.load(file)["validation"][:15]
    assert len(scorer.rows) == 6
    for rows in scorer.rows:
        np.testing.assert_array_equal(rows, validation_rows)


def test_patience_stops_one_replica_and_keeps_its_best_while_the_other_goes_on(monkeypatch, file, tmp_path):
    table = [[-5, -9], [-6, -8], [-7, -7], [-1, -6], [-1, -5], [-1, -4]]
    result, scorer = train_with_bounds(monkeypatch, file, tmp_path / "run", table, "training.patience=2")
    np.testing.assert_array_equal(result.best.stopped, [True, False])
    np.testing.assert_array_equal(result.best.bounds, [-5, -4])
    np.testing.assert_array_equal(result.best.steps, [2, 12])
    np.testing.assert_array_equal(result.best.parameters[0], scorer.seen[0][0])
    np.testing.assert_array_equal(result.best.parameters[1], scorer.seen[-1][0])
    assert result.step == 12


def test_training_ends_when_all_replicas_have_stopped_and_stays_ended(monkeypatch, file, tmp_path, capsys):
    table = [[-5], [-6], [-7], [-1], [-1], [-1]]
    result, _ = train_with_bounds(monkeypatch, file, tmp_path / "run", table, "training.patience=2")
    assert result.step == 6
    assert "stopped early at step 6" in capsys.readouterr().out
    again, scorer = train_with_bounds(monkeypatch, file, tmp_path / "run", table, "training.patience=2")
    assert again.step == 6
    assert not scorer.seen
    np.testing.assert_array_equal(again.best.bounds, [-5])


def test_a_resumed_run_keeps_the_best_weights_and_the_patience_of_before(monkeypatch, file, tmp_path):
    options = ("training.patience=3", "training.checkpoint_minutes=0.0")
    with pytest.raises(IndexError):  # the table ends: interrupted after the checkpoint of step 4
        train_with_bounds(monkeypatch, file, tmp_path / "run", [[-5], [-6]], *options)
    before = Checkpoints(tmp_path / "run/checkpoints").latest()
    assert before.step == 4
    result, _ = train_with_bounds(monkeypatch, file, tmp_path / "run", [[-7], [-8], [-9], [-9]], *options)
    np.testing.assert_array_equal(result.best.bounds, [-5])
    np.testing.assert_array_equal(result.best.steps, [2])
    np.testing.assert_array_equal(result.best.parameters, before.arrays["best/parameters"])
    assert np.any(result.best.parameters != before.arrays["state/parameters"])
    assert result.step == 8  # one validation without a new best before, two after


def test_no_call_crosses_a_validation_or_the_end():
    run = object.__new__(trainer.Trainer)
    run.options = types.SimpleNamespace(steps_per_call=4, validate_every=10, steps=23)
    run.pipeline, run.phases = types.SimpleNamespace(max_steps_per_call=None), Phases(23)
    run.state = types.SimpleNamespace(step=0)
    spans = [(0, 4), (4, 4), (8, 2), (10, 4), (14, 4), (18, 2), (20, 3)]
    assert run.spans() == spans
    run.state.step = 10
    assert run.spans() == spans[3:]
    run.pipeline.max_steps_per_call = 3
    assert run.spans() == [(10, 3), (13, 3), (16, 3), (19, 1), (20, 3)]


# Whose folder it is ---------------------------------------------------------------------------------------------------


def test_without_its_config_a_run_still_knows_its_settings(file, tmp_path):
    short = ("training.steps=4", "training.steps_per_call=2")
    training.train(tiny.vae_config(file, *short), tmp_path / "run")
    kept = (tmp_path / "run/config.json").read_bytes()
    (tmp_path / "run/config.json").unlink()
    before = snapshot(tmp_path / "run")
    with pytest.raises(ValueError, match=r"run of another config.*\n  optimizer.learning_rate: 0.02 / 0.5"):
        training.train(tiny.vae_config(file, *short, "optimizer.learning_rate=0.5"), tmp_path / "run")
    assert {name: value for name, value in snapshot(tmp_path / "run").items() if "lock" not in name} == {
        name: value for name, value in before.items() if "lock" not in name
    }
    training.train(tiny.vae_config(file, *short), tmp_path / "run")
    assert (tmp_path / "run/config.json").read_bytes() == kept


def test_another_config_is_refused_with_the_difference_and_changes_nothing(file, finished):
    workdir, _ = finished
    before = snapshot(workdir)
    with pytest.raises(ValueError, match="run of another config") as error:
        training.train(tiny.vae_config(file, "optimizer.learning_rate=0.5"), workdir)
    assert "optimizer.learning_rate: 0.02 / 0.5" in str(error.value)
    assert "training.steps" not in str(error.value)
    assert snapshot(workdir) == before


def test_a_config_that_was_changed_is_said_to_be_changed(file, finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    path = workdir / "config.json"
    path.write_text(path.read_text().replace('"learning_rate": 0.02', '"learning_rate": 0.03'))
    with pytest.raises(ValueError, match=r"config.json was changed since step_000000020.npz was written") as error:
        training.train(tiny.vae_config(file), workdir)
    assert "optimizer.learning_rate: 0.02 / 0.03" in str(error.value)


def test_settings_that_were_changed_in_the_file_and_asked_for_are_refused_too(file, finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    path = workdir / "config.json"
    path.write_text(path.read_text().replace('"learning_rate": 0.02', '"learning_rate": 0.03'))
    with pytest.raises(ValueError, match=r"was trained with other settings.*\n  optimizer.learning_rate: 0.02 / 0.03"):
        training.train(tiny.vae_config(file, "optimizer.learning_rate=0.03"), workdir)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_said_to_have_none(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    for path in (workdir / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    with (
        pytest.warns(RuntimeWarning, match="passed over a damaged checkpoint"),
        pytest.raises(ValueError, match="every checkpoint in .* is damaged"),
    ):
        TrainedRun(workdir)


def test_resume_never_refuses_a_folder_with_a_run_and_changes_nothing(file, finished):
    before = snapshot(finished[0])
    with pytest.raises(FileExistsError, match="resume=never"):
        training.train(tiny.vae_config(file), finished[0], resume="never")
    assert snapshot(finished[0]) == before


def test_resume_must_refuses_a_folder_without_a_run_and_makes_none(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="resume=must"):
        training.train(tiny.vae_config(file), tmp_path / "run", resume="must")
    assert not (tmp_path / "run").exists()


def test_an_unknown_resume_mode_is_refused_and_makes_no_folder(file, tmp_path):
    with pytest.raises(ValueError, match="auto, never, must, found 'perhaps'"):
        training.train(tiny.vae_config(file), tmp_path / "run", resume="perhaps")
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused_and_unchanged(file, finished):
    workdir, _ = finished
    with WorkdirLock(workdir):
        before = snapshot(workdir)
        with pytest.raises(WorkdirBusyError, match="in use by process"):
            training.train(tiny.vae_config(file), workdir)
        assert snapshot(workdir) == before


def test_a_folder_below_a_file_is_refused(file, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OSError, match="taken"):
        training.train(tiny.vae_config(file), tmp_path / "taken/run")
    assert (tmp_path / "taken").read_text() == "mine"

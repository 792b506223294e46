"""The programs from end to end, each in a process of its own."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import image

from tests.trainers import tiny
from tfstruct import random
from tfstruct.evaluation import report
from tfstruct.inference import likelihood
from tfstruct.inference.objectives import Draws
from tfstruct.models import presets
from tfstruct.serving import bundle, client


def flags(overrides):
    return [f"--set={override}" for override in overrides]


def succeed(name, *arguments):
    done = tiny.run_program(name, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """Trains, evaluates and exports a user's [12] binary rows; the folder of it all, and what was printed."""
    folder = tmp_path_factory.mktemp("journey")
    file = tiny.write_rows(folder / "rows.npz")
    printed = {
        "train": succeed(
            "train", "--preset=graph_vae/tiny", f"--workdir={folder / 'run'}", f"--data_file={file}", "--seed=3",
            *flags(tiny.SMALL),
        ),
        "evaluate": succeed("evaluate", f"--workdir={folder / 'run'}"),
        "export": succeed("export", f"--workdir={folder / 'run'}", f"--output={folder / 'model/1'}"),
    }  # fmt: skip
    return folder, printed


def test_a_users_bundle_is_calibrated_on_rows_of_the_users(journey, tmp_path):
    folder, _ = journey
    calibrated = tmp_path / "model/2"
    printed = succeed(
        "calibrate", f"--model={folder / 'model'}", f"--output={calibrated}", f"--data_file={folder / 'rows.npz'}",
        "--baselines", "--test_rows=30",
    )  # fmt: skip
    assert f"calibrated and verified: {calibrated}" in printed
    model = client.load(tmp_path / "model")
    calibration = model.card["calibration"]
    share = calibration["test"]["false_alarms"]["p_value"]["0.05"]
    assert "false alarms at alpha 0.05: {:.4f} [{:.4f}, {:.4f}] of normal test rows".format(*share) in printed
    assert {"isolation_forest", "gaussian_pca"} < set(calibration["test"]["false_alarms"])
    assert calibration["data"]["split"] == "validation"
    rows = np.load(folder / "rows.npz")["test"]
    assert set(model.anomaly(rows[:20])) >= {"p_value", "is_anomaly"}
    done = tiny.run_program("calibrate", f"--model={calibrated}", f"--output={calibrated}")
    assert done.returncode == 1
    assert "exists already; nothing was written" in done.stderr


def test_a_users_rows_are_trained_on_evaluated_and_exported(journey):
    folder, printed = journey
    assert "step 20, best validation log-likelihood" in printed["train"]
    config = json.loads((folder / "run/config.json").read_text())
    assert config["data"]["event_shape"] == [12]
    assert config["data"]["variant"] == "none"
    assert config["training"]["seed"] == 3
    evaluation = json.loads((folder / "run/evaluation.json").read_text())
    assert f"log-likelihood {evaluation['mean']['log_likelihood']:.2f} +- " in printed["evaluate"]
    assert evaluation["data"]["images"] == 40
    assert -12 * np.log(2) * 1.5 < evaluation["mean"]["log_likelihood"] < 0
    card = json.loads((folder / "model/1/card.json").read_text())
    assert card["event_shape"] == [12]
    assert card["metrics"]["log_likelihood"] == evaluation["mean"]["log_likelihood"]
    assert card["metrics"]["num_samples"] == 7
    assert f"exported and verified: {folder / 'model/1'}" in printed["export"]


# Several calls of the program in one process, because importing TensorFlow takes seconds.
SCORE_DRIVER = """
import contextlib, io, json, sys
from absl import flags
from tfstruct.trainers import score
results = []
for arguments in json.load(open(sys.argv[1])):
    sys.argv = ["tfstruct-score", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    for flag in flags.FLAGS.get_flags_for_module(score):
        flag.unparse()
    flags.FLAGS.unparse_flags()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            score.run()
        except SystemExit as exit:
            code = exit.code or 0
    results.append([code, out.getvalue(), err.getvalue()])
print("RESULTS" + json.dumps([results, sorted(sys.modules)]))
"""


def score_all(folder, cases):
    """Calls the program for each list of arguments; returns [status, output, errors] of each, and the modules."""
    (folder / "cases.json").write_text(json.dumps(cases))
    done = tiny.run_python(SCORE_DRIVER, folder / "cases.json")
    return json.loads(done.stdout.partition("RESULTS")[2])


def test_score_reads_npy_and_npz_with_keys_and_refuses_what_it_cannot_score(journey, tmp_path):
    folder, _ = journey
    rows = tiny.binary_rows(np.random.default_rng(1), 9, (12,))
    np.save(tmp_path / "rows.npy", rows)
    np.savez(tmp_path / "one.npz", anything=rows)
    np.savez(tmp_path / "two.npz", first=rows[:2], second=rows)
    np.save(tmp_path / "wide.npy", np.zeros([3, 13]))
    np.save(tmp_path / "grey.npy", rows + 0.5)
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    model, output = f"--model={folder / 'model'}", f"--output={tmp_path / 'none.npz'}"
    good = [("rows.npy", []), ("one.npz", []), ("two.npz", ["--key=second"])]
    bad = [
        ([model, f"--input={tmp_path / 'two.npz'}", output], "first, second"),
        (
            [model, f"--input={tmp_path / 'one.npz'}", f"--output={tmp_path}/../{tmp_path.name}/one.npz"],
            "take the place of",
        ),
        (
            [model, f"--input={tmp_path / 'rows.npy'}", output, "--runner_option=direct_num_workers=2"],
            "is of a --runner",
        ),
        ([model, f"--input={tmp_path / 'rows.npy'}", output, "--key=x"], "is one array"),
        ([model, f"--input={tmp_path / 'two.npz'}", output, "--key=thrid"], "no array 'thrid'"),
        ([model, f"--input={tmp_path / 'wide.npy'}", output], "[3, 13]"),
        ([model, f"--input={tmp_path / 'grey.npy'}", output], "must be 0 or 1"),
        ([model, f"--input={tmp_path / 'absent.npy'}", output], "there is no file"),
        ([model, f"--input={tmp_path / 'broken.npz'}", output], "no readable"),
        (
            [f"--model={folder / 'run'}", f"--input={tmp_path / 'rows.npy'}", output],
            "is a training run, not an exported model",
        ),
        ([f"--model={tmp_path}", f"--input={tmp_path / 'rows.npy'}", output], "no exported model"),
        ([model, f"--input={tmp_path / 'rows.npy'}", f"--output={tmp_path / 'no/where.npz'}"], "does not exist"),
    ]
    cases = [
        [model, f"--input={tmp_path / name}", f"--output={tmp_path / name}.scores.npz", *key] for name, key in good
    ]
    results, modules = score_all(tmp_path, cases + [arguments for arguments, _ in bad])

    expected = dict(np.load(tmp_path / "rows.npy.scores.npz"))
    names = expected.pop("path")
    assert set(names) == {str(tmp_path / "rows.npy")}
    assert set(expected) == {"row", "valid", "log_prob", "std_err", "bits_per_dim"}
    for (name, _), (code, printed, _) in zip(good, results[:3], strict=True):
        assert code == 0
        found = dict(np.load(tmp_path / f"{name}.scores.npz"))
        for key, value in expected.items():
            assert value.shape == (9,)
            np.testing.assert_array_equal(found[key], value)
        assert f"log-likelihood {expected['log_prob'].mean():.2f} +- " in printed
        assert "over 9 rows" in printed
    for (code, _, error), (_, part) in zip(results[3:], bad, strict=True):
        assert code == 1, error
        assert error.startswith("tfstruct-score: ")
        assert part in error
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "none.npz").exists()
    # TensorFlow itself imports Keras where it is installed; that nothing needs it is shown in tests/serving.
    blocked = ("tf_keras", "tensorflow_probability", "tfstruct.models", "tfstruct.training", "tfstruct.layers")
    assert not [module for module in modules if module.startswith(blocked)]


def test_sample_draws_a_file_of_samples(journey, tmp_path):
    folder, _ = journey
    printed = succeed("sample", f"--model={folder / 'model'}", "--num=5", f"--output={tmp_path / 'drawn.npz'}")
    drawn = dict(np.load(tmp_path / "drawn.npz"))
    assert drawn["x"].shape == drawn["x_mean"].shape == (5, 12)
    assert set(np.unique(drawn["x"])) <= {0.0, 1.0}
    assert "5 samples" in printed


def test_the_trainer_lists_its_presets_from_the_checkout():
    done = subprocess.run(
        [sys.executable, "trainers/train.py", "--list_presets"],
        cwd=tiny.CHECKOUT, env=tiny.ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    heading, *lines = done.stdout.splitlines()
    assert heading.split()[:3] == ["preset", "data", "steps"]
    assert max(map(len, [heading, *lines])) <= 120
    names = [line.split()[0] for line in lines if not line.startswith("*")]
    assert names == sorted(names)
    for system in ("graph_vae", "vae", "ladder_vae", "fc_vae"):
        assert f"{system}/tiny" in names


def test_the_trainer_lists_the_settings_of_a_preset_as_they_are_set():
    printed = succeed("train", "--preset=boltzmann_vae/tiny", "--list_settings", "--set=model.prior_sweeps=7")
    lines = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    assert list(lines) == list(presets.get("boltzmann_vae/tiny").names())
    assert lines["model.prior_sweeps"].split(maxsplit=1) == ["7", "at least 1; of the prior's chains at each step"]
    assert "rbm or directed" in lines["model.posterior"]


def test_quickstart_goes_the_whole_way(tmp_path):
    printed = succeed(
        "quickstart", "--preset=graph_vae/tiny", f"--workdir={tmp_path / 'run'}",
        *flags(["training.compiler=graph", "training.steps=20", "training.steps_per_call=10",
                "training.validate_every=20", "evaluation.images=50", "evaluation.num_samples=5"]),
    )  # fmt: skip
    for part in ("1/4", "2/4", "3/4", "4/4", "log-likelihood", "mnist (dynamic), test split, 50 images", "edges open"):
        assert part in printed
    assert (tmp_path / "run/evaluation.json").exists()
    assert (tmp_path / "run/export/1/card.json").exists()
    scores = np.load(tmp_path / "run/scores.npz")["log_prob"]
    assert scores.shape == (200,)
    assert np.isfinite(scores).all()
    for name in ("structure", "gates", "samples", "reconstructions", "curves"):
        assert image.imread(tmp_path / f"run/pictures/{name}.png")[..., :3].std() > 0.02, name


@pytest.mark.slow
def test_a_model_with_flows_trained_in_two_phases_is_evaluated_exported_and_scored(tmp_path):
    file, rows = tiny.write_rows(tmp_path / "rows.npz"), tiny.binary_rows(np.random.default_rng(1), 9, (12,))
    np.save(tmp_path / "new.npy", rows)
    printed = succeed(
        "train", "--preset=graph_iaf_vae/tiny", f"--workdir={tmp_path / 'run'}", f"--data_file={file}",
        # One size of calls and few operations: every trace takes seconds.
        *flags([*tiny.SMALL, "model.num_nodes=2", "model.batch_norm=False", "training.structure_fraction=0.5",
                "training.steps=8", "training.steps_per_call=4", "training.validate_every=4"]),
    )  # fmt: skip
    run = report.TrainedRun(str(tmp_path / "run"))
    (found,) = report.evaluate(run)["replicas"]
    bundle.export(run, tmp_path / "model/1")
    succeed(
        "score", f"--model={tmp_path / 'model'}", f"--input={tmp_path / 'new.npy'}", f"--output={tmp_path / 's.npz'}"
    )

    assert f"step 4: structure of seed 0 fixed, {found['open_edges']} of 1 edges open" in printed
    assert found["best_step"] == 8
    model = run.use(0)
    assert len(model.flows) == 2
    np.testing.assert_array_equal(np.abs(model.gates.logits), [1e4])
    estimate = likelihood.estimate(
        lambda keys: model.terms(rows, Draws(keys, 3)),
        # Of the program's default seed; purpose 1 is that of log_prob.
        random.fold_in(random.fold_in(random.row_keys(client.row_seeds(0, len(rows))), random.SERVING), 1),
        num_samples=7,
        chunk=3,
    )
    scores = np.load(tmp_path / "s.npz")
    np.testing.assert_allclose(scores["log_prob"], estimate.log_prob, rtol=0, atol=1e-4)
    np.testing.assert_allclose(scores["std_err"], estimate.std_err, rtol=0, atol=1e-4)
    assert len(np.unique(scores["log_prob"])) > 1


@pytest.mark.slow
def test_the_preset_of_tests_evaluates_a_users_few_rows(tmp_path):
    # The preset says 200 images; a user's test split has fewer.
    file = tiny.write_rows(tmp_path / "rows.npz")
    succeed(
        "train", "--preset=graph_vae/tiny", f"--workdir={tmp_path / 'run'}", f"--data_file={file}",
        "--set=training.compiler=graph", "--set=training.steps=20",
    )  # fmt: skip
    printed = succeed("evaluate", f"--workdir={tmp_path / 'run'}")
    assert "40 images" in printed


@pytest.mark.parametrize("name", ["train", "score"])
def test_help_of_an_installed_program_shows_what_it_does_and_its_flags(name):
    done = tiny.run_program(name, "--help")
    assert done.returncode == 0
    assert f"tfstruct-{name} --" in done.stdout
    expected = {"train": "--preset", "score": "--model"}[name]
    assert expected in done.stdout
    assert "--[no]debug" in done.stdout


def test_a_dry_run_prints_settings_and_estimates_and_makes_no_folder(tmp_path):
    changes = flags(["training.compiler=graph", "training.steps=20", "training.steps_per_call=10"])
    printed = succeed("train", "--preset=graph_vae/tiny", "--dry_run", f"--workdir={tmp_path / 'run'}", *changes)
    assert "training.steps=20" in printed
    assert re.search(r"[\d,]+ parameters, [\d,]+ MiB of memory", printed)
    assert re.search(r"compiles(, then [\d.]+ steps/s)?: \d+\.\d min for 20 steps", printed)
    assert not (tmp_path / "run").exists()

"""Training on parts of a training set: what is trained, what is taken from before, what is refused."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny, tiny_circuit
from tfstruct import config as config_lib
from tfstruct.evaluation import low_data, report
from tfstruct.training import run as training
from tfstruct.training.data import load_data
from tfstruct.training.workdir import Workdir

PRESETS = ["dense_vae/tiny", "spvae/tiny"]
SETTINGS = [
    *tiny_circuit.SETTINGS,
    "training.steps=1",
    "training.steps_per_call=1",
    "training.validate_every=1",
    "objective.num_samples=1",
]


@pytest.fixture
def file(tmp_path):
    return tiny.write_rows(tmp_path / "rows.npz", event_shape=tiny_circuit.SHAPE, num=50)


@pytest.fixture
def calls(monkeypatch):
    """Stands in for training and evaluation, and lists them: (folder, training images, seed) and (folder, K)."""
    made = types.SimpleNamespace(trained=[], evaluated=[])

    def name(path):
        return "/".join(path.parts[-3:])

    def train(config, folder, *, strategy, data_dir):
        assert (strategy, data_dir) == ("none", None)
        config = config_lib.copy(config)
        rows = load_data(config).train
        Workdir(folder).claim(config, "auto")
        made.trained.append((name(folder), len(rows), config.training.seed))

    def evaluate(run, *, num_samples, images, tag):
        assert images == 0  # all
        made.evaluated.append((name(run), num_samples))
        bound = -float(len(made.evaluated))
        result = {
            "replicas": [{"log_likelihood": bound, "std_err": 0.5, "best_step": 7}],
            "num_samples": num_samples,
            "data": {"checksum": load_data(Workdir(run).config()).checksum},
        }
        (run / f"evaluation_{tag}.json").write_text(json.dumps(result))
        return result

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(report, "TrainedRun", lambda folder, data_dir: Path(folder))
    monkeypatch.setattr(report, "evaluate", evaluate)
    return made


def call(file, workdir, names=PRESETS[:1], overrides=(), **options):
    said = []
    result = low_data.low_data(
        names, workdir, overrides=[*SETTINGS, f"data.file={str(file)!r}", *overrides],
        say=said.append, **{"num_samples": 3, "fractions": [1.0], **options},
    )  # fmt: skip
    assert len(said) == len(result["points"])
    return result


def test_models_are_trained_on_a_part_and_bound_the_whole_test_set(file, tmp_path, monkeypatch):
    tf.config.run_functions_eagerly(True)  # compiling would take most of the time
    steps, check = [], training._Run.check
    monkeypatch.setattr(training._Run, "check", lambda *arguments: steps.append(arguments[2:]) or check(*arguments))
    try:
        (point,) = call(file, tmp_path / "runs", fractions=[0.25], seeds=[4])["points"]
        assert steps == [(0, 1)]
        again = call(file, tmp_path / "runs", fractions=[0.25], seeds=[4], num_samples=5)
    finally:
        tf.config.run_functions_eagerly(False)
    assert len(steps) == 1  # another number of samples needs no training
    assert again["points"][0]["best_step"] == point["best_step"] == 1
    folder = tmp_path / "runs/dense_vae-tiny/0.25/4"
    scores = np.load(folder / "evaluation_low_data_log_prob.npz")["log_prob"]
    assert scores.shape == (1, 40)
    assert again["points"][0]["bound"] == pytest.approx(scores.mean(), rel=1e-6)
    assert again["points"][0]["std_err"] == pytest.approx(scores.std(ddof=1) / np.sqrt(40), rel=1e-4)
    assert point["bound"] != again["points"][0]["bound"]
    assert report.TrainedRun(str(folder)).data.train.shape == (12, *tiny_circuit.SHAPE)
    with pytest.raises(ValueError, match="holds a run of another config.*\n.*model.hidden_units"):
        call(file, tmp_path / "runs", overrides=["model.hidden_units=(5,)"], fractions=[0.25], seeds=[4])


def test_every_preset_fraction_and_seed_is_a_run_on_the_first_rows(file, tmp_path, calls):
    result = call(file, tmp_path / "runs", PRESETS, fractions=[1.0, 0.75], seeds=[0, 4])
    wanted = [
        (preset, fraction, images, seed)
        for fraction, images in ((1.0, 50), (0.75, 38))
        for preset in PRESETS
        for seed in (0, 4)
    ]
    assert calls.trained == [
        (f"{preset.replace('/', '-')}/{fraction:g}/{seed}", images, seed) for preset, fraction, images, seed in wanted
    ]
    assert calls.evaluated == [(folder, 3) for folder, _, _ in calls.trained]
    points = result["points"]
    assert [tuple(point[key] for key in ("preset", "fraction", "images", "seed")) for point in points] == wanted
    assert [point["bound"] for point in points] == [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0]
    assert {(point["std_err"], point["best_step"]) for point in points} == {(0.5, 7)}
    assert result["num_samples"] == 3
    assert result["data"] == {
        "name": "file", "variant": "none", "checksum": load_data(tiny_circuit.config(file)).checksum
    }  # fmt: skip


def test_what_is_done_is_not_done_again(file, tmp_path, calls):
    first = call(file, tmp_path / "runs", fractions=[1.0])
    more = call(file, tmp_path / "runs", fractions=[1.0, 0.5], seeds=[0, 1])
    assert more["points"][0] == first["points"][0]
    assert [(images, seed) for _, images, seed in calls.trained] == [(50, 0), (50, 1), (25, 0), (25, 1)]
    assert len(calls.evaluated) == 4
    assert call(file, tmp_path / "runs", fractions=[1.0, 0.5], seeds=[0, 1]) == more
    assert len(calls.trained) == len(calls.evaluated) == 4


def test_an_interrupted_run_is_trained_on_and_evaluated(file, tmp_path, calls, monkeypatch):
    train = training.train

    def interrupt(*arguments, **options):
        train(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            call(file, tmp_path / "runs")
    assert not calls.evaluated
    call(file, tmp_path / "runs")
    assert len(calls.trained) == 2
    assert len(calls.evaluated) == 1


@pytest.mark.parametrize(
    "change", [{"num_samples": 5}, {"overrides": ["model.hidden_units=(5,)"]}, {"overrides": ["evaluation.chunk=7"]}]
)
def test_other_settings_are_not_answered_with_an_old_evaluation(file, tmp_path, calls, change):
    call(file, tmp_path / "runs")
    found = call(file, tmp_path / "runs", **change)
    assert len(calls.trained) == len(calls.evaluated) == 2
    assert found["points"][0]["bound"] == -2.0
    assert found["num_samples"] == change.get("num_samples", 3)


def test_presets_of_different_data_are_refused_before_training(tmp_path, calls):
    with pytest.raises(ValueError, match="presets must have the same data, found .*continuous.*discrete") as caught:
        low_data.low_data(["spvae/mnist_continuous", "spvae/mnist_discrete"], tmp_path / "runs")
    assert "continuous" in str(caught.value)
    assert "discrete" in str(caught.value)
    assert not calls.trained


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, 0.009, float("nan")])
def test_fractions_outside_0_to_1_or_without_an_image_are_refused_before_training(file, tmp_path, calls, fraction):
    with pytest.raises(ValueError, match=f"fractions must be in .*, found {fraction}"):
        call(file, tmp_path / "runs", fractions=[1.0, fraction])
    assert not calls.trained


def test_the_fractions_of_the_paper_go_down_to_one_in_two_hundred():
    assert low_data.FRACTIONS[0] == 1.0
    assert low_data.FRACTIONS[-1] == 0.005
    assert list(low_data.FRACTIONS) == sorted(low_data.FRACTIONS, reverse=True)
    assert len(low_data.FRACTIONS) == 13


def test_the_table_has_a_line_for_each_fraction_and_the_mean_over_seeds(file):
    points = [
        {"preset": "spvae/a", "fraction": 0.5, "bound": -10.0},
        {"preset": "spvae/a", "fraction": 1.0, "bound": -8.0},
        {"preset": "spvae/a", "fraction": 1.0, "bound": -9.0},
        {"preset": "dense_vae/b", "fraction": 1.0, "bound": -7.25},
    ]
    lines = low_data.summary(points).splitlines()
    assert [line.split() for line in lines] == [
        ["fraction", "spvae/a", "dense_vae/b"],
        ["1", "-8.5", "-7.2"],
        ["0.5", "-10.0"],
    ]
    assert len({len(line) for line in lines}) == 1  # columns stand below their names


def test_no_preset_is_done_again(file, tmp_path, calls):
    call(file, tmp_path / "runs", PRESETS)
    call(file, tmp_path / "runs", PRESETS)
    assert len(calls.evaluated) == 2


def test_changed_data_are_not_answered_with_an_old_evaluation(file, tmp_path, calls):
    call(file, tmp_path / "runs")
    tiny.write_rows(file, event_shape=tiny_circuit.SHAPE, num=50, seed=3)
    call(file, tmp_path / "runs")  # training refuses such data
    assert len(calls.trained) == 2


def test_parts_are_those_of_the_rows_that_a_preset_takes(file, tmp_path, calls):
    result = call(file, tmp_path / "runs", fractions=[1.0, 0.5], overrides=["data.train_images=20"])
    assert [images for _, images, _ in calls.trained] == [point["images"] for point in result["points"]] == [20, 10]

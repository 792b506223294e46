"""A dry run measures the first steps and writes nothing."""

import math

import pytest

from tests.trainers import tiny
from tfstruct.models import registry
from tfstruct.training import dry_run as dry_run_lib
from tfstruct.training.dry_run import dry_run


@pytest.fixture
def config(tmp_path):
    return tiny.file_config(tiny.write_rows(tmp_path / "rows.npz", event_shape=(4,)), "training.compiler=graph")


def test_the_estimate_is_of_this_training_and_nothing_is_written(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    estimate = dry_run(config)
    model = registry.build(config.replace({"data.event_shape": (4,)}), seed=0)
    assert estimate.num_parameters == sum(math.prod(weight.shape) for weight in model.trainable_variables)
    assert estimate.megabytes > 50.0
    assert estimate.steps_per_second > 0.0
    assert estimate.seconds >= estimate.compile_seconds > 0.0
    assert sorted(tmp_path.rglob("*")) == before


def test_the_whole_time_follows_from_the_speed(config, monkeypatch):
    monkeypatch.setattr(dry_run_lib, "LEAST_SECONDS", 1e-9)  # one call after the first
    longer = config.replace({"training.steps": 1_000_000})
    estimate = dry_run(longer)
    left = estimate.seconds - estimate.compile_seconds
    assert left == pytest.approx(1_000_000 / estimate.steps_per_second, rel=0.01)


def test_a_training_of_one_call_has_no_speed(config):
    estimate = dry_run(config.replace({"training.steps": 1, "training.validate_every": 1}))
    assert math.isnan(estimate.steps_per_second)
    assert estimate.seconds == estimate.compile_seconds

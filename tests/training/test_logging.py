import io
import json
import logging
import math
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfstruct.training.logging import RunLog, read_rows


class Clock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def strict_rows(path):
    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def scalars(folder):
    found = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for record in tf.compat.v1.io.tf_record_iterator(str(path)):
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_standard_logging_is_not_shadowed():
    assert hasattr(logging, "getLogger")
    assert sys.modules["logging"] is logging
    assert "tfstruct" not in logging.__file__


def test_rows_and_scalars_of_one_model(tmp_path):
    clock = Clock()
    with RunLog(tmp_path / "run", num_replicas=1, total_steps=20, clock=clock) as log:
        clock.now += 2.5
        log.log(10, {"elbo": np.array([-98.25], np.float32), "learning_rate": 0.5}, {"elbo": tf.constant(-99.5)})
        log.log(np.int64(20), {"elbo": -97}, None)
    assert strict_rows(tmp_path / "run" / "metrics.jsonl") == [
        {
            "step": 10,
            "seconds": 2.5,
            "train/elbo": -98.25,
            "train/learning_rate": 0.5,
            "validation/elbo": -99.5,
        },
        {"step": 20, "seconds": 2.5, "train/elbo": -97.0},
    ]
    assert scalars(tmp_path / "run" / "tensorboard") == {
        ("train/elbo", 10): -98.25,
        ("train/learning_rate", 10): 0.5,
        ("validation/elbo", 10): -99.5,
        ("train/elbo", 20): -97.0,
    }


def test_replicas_are_lists_and_their_mean_is_the_scalar(tmp_path):
    with RunLog(tmp_path, num_replicas=2, total_steps=10) as log:
        log.log(10, {"elbo": np.array([-98.0, -100.0]), "learning_rate": 0.25})
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["train/elbo"] == [-98.0, -100.0]
    assert row["train/learning_rate"] == 0.25
    assert scalars(tmp_path / "tensorboard") == {
        ("train/elbo", 10): -99.0,
        ("replica_0/train/elbo", 10): -98.0,
        ("replica_1/train/elbo", 10): -100.0,
        ("train/learning_rate", 10): 0.25,
    }


@pytest.mark.parametrize(("num_replicas", "shape"), [(1, [2]), (2, [1]), (2, [3])])
def test_other_shapes_are_refused_and_write_no_row(tmp_path, num_replicas, shape):
    with RunLog(tmp_path, num_replicas=num_replicas, total_steps=10) as log:
        with pytest.raises(ValueError, match=r"train/elbo must have shape .*found \["):
            log.log(1, {"elbo": np.zeros(shape)})
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_not_finite_numbers_stay_strict_json_and_come_back(tmp_path):
    with RunLog(tmp_path, num_replicas=2, total_steps=9) as log:
        log.log(1, {"elbo": np.array([np.nan, -np.inf]), "rate": np.inf})
    (row,) = strict_rows(tmp_path / "metrics.jsonl")
    assert (row["train/elbo"], row["train/rate"]) == (["NaN", "-Infinity"], "Infinity")
    with RunLog(tmp_path, num_replicas=2, total_steps=9, resume_step=1):  # rewriting keeps it strict
        assert strict_rows(tmp_path / "metrics.jsonl") == [row]
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert math.isnan(row["train/elbo"][0])
    assert (row["train/elbo"][1], row["train/rate"]) == (-math.inf, math.inf)


def test_resuming_drops_later_rows_and_a_torn_line_and_keeps_the_clock(tmp_path):
    path = tmp_path / "metrics.jsonl"
    clock = Clock()
    with RunLog(tmp_path, total_steps=40, clock=clock) as log:
        for step in (10, 20, 30):
            clock.now += 1.0
            log.log(step, {"elbo": -step})
    with open(path, "a") as file:
        file.write('{"step": 40, "sec')
    clock.now += 1000.0
    with RunLog(tmp_path, total_steps=40, resume_step=20, clock=clock) as log:
        assert [row["step"] for row in read_rows(path)] == [10, 20]
        clock.now += 1.0
        log.log(30, {"elbo": -3.0})
    assert [(row["step"], row["seconds"], row["train/elbo"]) for row in strict_rows(path)] == [
        (10, 1.0, -10.0),
        (20, 2.0, -20.0),
        (30, 3.0, -3.0),
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]
    with RunLog(tmp_path, total_steps=40):
        assert path.read_text() == ""


def test_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\0\0\0\n{"step": 2}\n{"st')
    with pytest.warns(RuntimeWarning, match="line 2") as caught:
        assert read_rows(path) == [{"step": 1}, {"step": 2}]
    assert len(caught) == 1


def test_rows_are_there_before_closing(tmp_path):
    log = RunLog(tmp_path, total_steps=10)
    log.log(1, {"elbo": -1.0})
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1
    log.close()
    log.close()


def test_plain_lines_are_the_first_the_last_and_one_each_ten_seconds(tmp_path, capsys):
    clock = Clock()
    with RunLog(tmp_path, num_replicas=2, total_steps=3000, resume_step=1000, clock=clock) as log:
        for step in range(1100, 3001, 100):  # one second and 100 steps per row
            clock.now += 1.0
            log.log(step, {"loss": 0.0, "elbo": np.array([-98.0, -98.42]), "rate": 22.1})
        log.message("done")
    assert capsys.readouterr().out.splitlines() == [
        "step 1100/3000  elbo -98.21  rate 22.10",
        "step 2100/3000  elbo -98.21  rate 22.10  100 steps/s",
        "step 3000/3000  elbo -98.21  rate 22.10  100 steps/s",
        "done",
    ]


def test_run_that_ends_early_shows_its_last_step(tmp_path, capsys):
    clock = Clock()
    with RunLog(tmp_path, total_steps=3000, clock=clock) as log:
        log.log(1, {"bound": float("nan")}, {"bound": -1.0})
        clock.now += 4.0
        log.log(11, {"bound": -2.0})
    assert capsys.readouterr().out.splitlines() == [
        "step 1/3000  bound nan  validation bound -1.00",
        "step 11/3000  bound -2.00  2.50 steps/s",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_on_terminals_shows_step_bound_and_messages(tmp_path, monkeypatch):
    out, bar = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", bar)
    with RunLog(tmp_path, total_steps=30, resume_step=10) as log:
        log.log(20, {"elbo": -98.214}, {"elbo": -99.0})
        log.message("checkpoint written")
        log.log(30, {"elbo": -97.0})
    assert "30/30" in bar.getvalue()
    assert "step/s" in bar.getvalue()
    assert "elbo -97.00" in bar.getvalue()
    assert out.getvalue() == "checkpoint written\n"

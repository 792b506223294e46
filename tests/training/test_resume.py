"""A run that was interrupted and given again ends as the run that was not."""

import random
import signal
import subprocess
import time

import numpy as np
import pytest

from tests.trainers import tiny
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.logging import read_rows

STEPS = 200
# 7 does not divide the 200 rows: batches straddle epochs. A checkpoint after every call.
COURSE = (
    f"training.steps={STEPS}",
    "training.steps_per_call=2",
    "training.batch_size=7",
    "training.validate_every=80",
    "training.checkpoint_minutes=0.0",
)


def command(file, workdir, overrides):
    chosen = [*tiny.SMALL, *COURSE, *overrides]
    return [
        str(tiny.PROGRAMS / "tfstruct-train"),
        "--preset=graph_vae/tiny",
        f"--workdir={workdir}",
        f"--data_file={file}",
        *(f"--set={override}" for override in chosen),
    ]


def launch(file, workdir, *overrides):
    return subprocess.Popen(
        command(file, workdir, overrides),
        env=tiny.ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(file, workdir, *overrides):
    process = launch(file, workdir, *overrides)
    output, _ = process.communicate(timeout=250)
    assert process.returncode == 0, output
    return output


def interrupt(file, workdir, number, delay, *overrides, after=0):
    """Sends a run a signal some time after its first checkpoint beyond a step; returns exit code, step, output."""
    process = launch(file, workdir, *overrides)
    checkpoints = Checkpoints(workdir / "checkpoints")
    deadline = time.monotonic() + 200
    while max(checkpoints.steps(), default=0) <= after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    return process.returncode, checkpoints.latest().step, output


def final_arrays(workdir):
    checkpoint = Checkpoints(workdir / "checkpoints").latest()
    assert checkpoint.step == STEPS
    return checkpoint.arrays


def rows_without_time(workdir):
    rows = read_rows(workdir / "metrics.jsonl")
    assert all(row.pop("seconds") >= 0 for row in rows)
    return rows


def assert_same_run(found, expected):
    arrays, wanted = final_arrays(found), final_arrays(expected)
    assert arrays.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)
    assert rows_without_time(found) == rows_without_time(expected)


@pytest.fixture(scope="module")
def straight(file, tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    finish(file, workdir)
    return workdir


def test_the_undisturbed_run_logs_every_call_and_learns(straight):
    rows = rows_without_time(straight)
    assert [row["step"] for row in rows] == list(range(2, STEPS + 1, 2))
    assert [row["step"] for row in rows if "validation/bound" in row] == [80, 160, 200]
    assert rows[-1]["validation/bound"] > rows[0]["train/bound"] + 1.0


@pytest.fixture(scope="module")
def interrupted(file, tmp_path_factory):
    """A run that got SIGTERM, was given again, was killed, was given again; and what each of these left."""
    workdir = tmp_path_factory.mktemp("interrupted") / "run"
    terminated = (*interrupt(file, workdir, signal.SIGTERM, 0.0), read_rows(workdir / "metrics.jsonl")[-1]["step"])
    # Not of a fixed seed: a run that is killed at another moment each time must always pass.
    killed = interrupt(file, workdir, signal.SIGKILL, random.SystemRandom().uniform(0.0, 0.3), after=terminated[1])
    return workdir, terminated, killed, finish(file, workdir)


def test_sigterm_saves_the_step_it_stops_at_and_ends_with_143(interrupted):
    _, (code, step, output, last_row), _, _ = interrupted
    assert code == 143, output
    assert f"stopped by a signal at step {step}; the same command resumes" in output
    assert "Traceback" not in output
    assert last_row == step
    assert 0 < step < STEPS


def test_a_run_that_is_given_again_goes_on_from_its_last_checkpoint(interrupted):
    workdir, (_, first, _, _), (code, second, output), last_output = interrupted
    assert code == -signal.SIGKILL, output
    assert first < second < STEPS, "killed too late or too early to test anything"
    assert f"resuming {workdir} at step {first} of {STEPS}" in output
    assert f"resuming {workdir} at step {second} of {STEPS}" in last_output


def test_stopped_and_killed_and_given_again_is_the_same_run_bit_for_bit(interrupted, straight):
    assert_same_run(interrupted[0], straight)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_again_and_again_is_the_same_run_bit_for_bit(file, straight, tmp_path):
    kills = 0
    for _ in range(8):
        code, step, output = interrupt(file, tmp_path / "run", signal.SIGKILL, random.SystemRandom().uniform(0.0, 1.5))
        kills += code == -signal.SIGKILL
        if step == STEPS:
            break
    assert kills
    finish(file, tmp_path / "run")
    assert_same_run(tmp_path / "run", straight)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_compiled_run_of_two_replicas_killed_and_given_again_is_the_same(file, tmp_path):
    overrides = ("training.compiler=xla", "training.replicas=2", "training.steps_per_call=10")
    finish(file, tmp_path / "straight", *overrides)
    code, step, output = interrupt(file, tmp_path / "run", signal.SIGKILL, 0.05, *overrides)
    assert code == -signal.SIGKILL, output
    assert 0 < step < STEPS
    finish(file, tmp_path / "run", *overrides)
    assert_same_run(tmp_path / "run", tmp_path / "straight")

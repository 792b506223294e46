"""A run that diverges goes back to where it was well, more slowly, and nothing that is not finite is ever saved."""

import contextlib
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tests.training.fake_scorer import FakeScorer
from tests.training.test_loop import start, toy_state, toy_step
from tfstruct.data.pipeline import Call, batch_indices
from tfstruct.evaluation import report
from tfstruct.models import registry
from tfstruct.training import loop as loop_lib
from tfstruct.training import recovery, validation
from tfstruct.training import run as training
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.logging import read_rows
from tfstruct.training.state import Best, RunState, replica
from tfstruct.training.stop_signal import StopSignal
from tfstruct.training.workdir import Workdir

COURSE = (
    "training.steps=12",
    "training.steps_per_call=2",
    "training.validate_every=2",
    "training.checkpoint_minutes=0.0",
)


def train_with_bounds(monkeypatch, file, workdir, table, *overrides):
    """A run with the validation bounds of a table [validations, replicas], which are asked for one by one."""
    scorer = FakeScorer(np.ravel(table))
    monkeypatch.setattr(validation, "HeldOutScorer", lambda model, **options: scorer)
    overrides = (f"training.replicas={len(table[0])}", *COURSE, *overrides)
    return training.train(tiny.vae_config(file, *overrides), workdir)


def scales(workdir):
    return Workdir(workdir).run_state().train.learning_rate_scale


# One step ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["loss", "gradient", "statistics"])
def test_a_step_in_which_anything_is_not_finite_changes_nothing(what):
    step, stacked = start("optimizer.learning_rate=0.1")
    state = replica(stacked, 0)
    gradient, statistics = tf.ones_like(state.parameters), tf.ones_like(state.statistics)
    metrics = {"loss": tf.constant(1.0), "bound": tf.constant(-1.0)}
    after, found = step.apply(state, tf.constant(3), gradient, statistics, metrics)
    assert found["skipped"] == 0.0
    if what == "loss":
        metrics["loss"] = tf.constant(np.nan)
    elif what == "gradient":
        gradient = tf.concat([[np.inf], gradient[1:]], 0)
    else:
        statistics = tf.concat([statistics[:-1], [np.inf]], 0)
    after, found = step.apply(state, tf.constant(3), gradient, statistics, metrics)
    assert found["skipped"] == 1.0
    assert found["bound"] == 0.0
    for name in ("parameters", "first_moment", "second_moment", "statistics"):
        np.testing.assert_array_equal(getattr(after, name), getattr(state, name))


@pytest.mark.parametrize("name", ["parameters", "second_moment", "statistics"])
def test_a_replica_whose_state_is_not_finite_has_diverged(name):
    judged, state = judge()
    metrics = {"skipped": np.zeros([2]), "bound": np.array([-5.0, -5.0])}
    np.testing.assert_array_equal(judged.diverged(state, metrics), [False, False])
    values = np.array(getattr(state.train, name))
    values[1, 3] = np.inf
    state = state._replace(train=state.train._replace(**{name: values}))
    np.testing.assert_array_equal(judged.diverged(state, metrics), [False, True])


def test_the_learning_rate_is_scaled_and_a_scale_of_nothing_keeps_the_parameters():
    step, stacked = start()
    moves = {}
    for scale in (0.0, 0.5, 1.0):
        state = replica(stacked, 0)._replace(learning_rate_scale=tf.constant(scale))
        gradient = tf.random.stateless_normal(state.parameters.shape, [1, 2])
        after, _ = step.apply(state, tf.constant(0), gradient, state.statistics, {"loss": tf.constant(1.0)})
        moves[scale] = (after.parameters - state.parameters).numpy()
    np.testing.assert_array_equal(moves[0.0], 0.0)
    assert np.abs(moves[1.0]).min() > 0
    np.testing.assert_allclose(moves[0.5], 0.5 * moves[1.0], rtol=1e-3, atol=1e-7)


# Runs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 12.1])
def test_a_bound_that_cannot_be_takes_the_run_back_and_is_never_the_best(bad, monkeypatch, file, tmp_path, capsys):
    """Twelve binary pixels: a log probability above 0 is none, one above 12 nats no estimate of one."""
    table = [[-9], [-8], [bad], [-7], [-5], [-6], [-6]]
    result = train_with_bounds(monkeypatch, file, tmp_path / "run", table)
    assert result.step == 12
    np.testing.assert_array_equal(result.best.bounds, [-5])
    np.testing.assert_array_equal(result.best.steps, [8])
    np.testing.assert_array_equal(scales(tmp_path / "run"), [0.5])
    printed = capsys.readouterr().out
    assert "seed 0 diverged in the steps 4..5" in printed
    assert "its learning rate is halved, and the run goes on from step 4" in printed
    assert [row["step"] for row in read_rows(tmp_path / "run/metrics.jsonl")] == [2, 4, 6, 8, 10, 12]
    written = np.load(tmp_path / "run/diverged/step_000000004.npz")
    rows = len(np.load(file)["train"])
    np.testing.assert_array_equal(written["row_ids"], batch_indices([0], 4, 2, written["row_ids"].shape[2], rows))


def test_the_second_time_the_run_goes_back_further(monkeypatch, file, tmp_path, capsys):
    table = [[-9], [-8], [np.nan], [np.nan], [-7], [-6], [-5], [-4], [-3]]
    result = train_with_bounds(monkeypatch, file, tmp_path / "run", table)
    np.testing.assert_array_equal(result.best.bounds, [-3])
    np.testing.assert_array_equal(scales(tmp_path / "run"), [0.25])
    assert "goes on from step 2" in capsys.readouterr().out
    assert Checkpoints(tmp_path / "run/checkpoints").steps() == [10, 12]


def test_a_replica_that_is_given_up_ends_no_other(monkeypatch, file, tmp_path, capsys):
    falling = [[-9 + step, np.nan] for step in range(4)]
    table = [[-9, -9], *falling, [-8, -2], [-7, -2], [-6, -2], [-5, -2], [-4, -2], [-3, -2]]
    result = train_with_bounds(monkeypatch, file, tmp_path / "run", table)
    assert result.step == 12
    np.testing.assert_array_equal(result.best.stopped, [False, True])
    np.testing.assert_array_equal(result.best.bounds, [-4, -9])
    np.testing.assert_array_equal(scales(tmp_path / "run"), [1.0, 0.0])
    assert "seed 1 is given up" in capsys.readouterr().out
    flags = report.TrainedRun(str(tmp_path / "run")).training_flags("test")
    assert flags == ["diverged: the learning rate of the replicas was multiplied by 1, 0 (0: given up)"]


def test_the_others_are_trained_as_if_nothing_had_happened(monkeypatch, file, tmp_path):
    good = [[-9, -9]] * 6
    train_with_bounds(monkeypatch, file, tmp_path / "good", good)
    train_with_bounds(monkeypatch, file, tmp_path / "bad", [[-9, -9], [-9, np.nan], *good])
    found, expected = (Workdir(tmp_path / name).run_state().train for name in ("bad", "good"))
    np.testing.assert_array_equal(found.parameters[0], expected.parameters[0])
    assert np.any(found.parameters[1] != expected.parameters[1])


def test_a_run_that_always_diverges_ends_with_what_was_saved_before(monkeypatch, file, tmp_path):
    with pytest.raises(recovery.NonFiniteTrainingError, match=r"seed 0 diverged .*lower optimizer.learning_rate"):
        train_with_bounds(monkeypatch, file, tmp_path / "run", [[-9], [-8], *[[np.nan]] * 4])
    state = Workdir(tmp_path / "run").run_state()
    assert state.step == 2
    np.testing.assert_array_equal(state.best.bounds, [-9])


@pytest.mark.parametrize(("rate", "is_the_end"), [("1e38", True), ("1e9", True), ("1e5", False)])
def test_learning_rates_that_destroy_every_model_never_leave_what_is_not_finite(rate, is_the_end, file, tmp_path):
    options = (*COURSE, f"optimizer.learning_rate={rate}", "training.validation_samples=2")
    with pytest.raises(recovery.NonFiniteTrainingError) if is_the_end else contextlib.nullcontext():
        training.train(tiny.vae_config(file, *options), tmp_path / "run")
    for step in Checkpoints(tmp_path / "run/checkpoints").steps():
        for name, values in Checkpoints(tmp_path / "run/checkpoints").load(step).arrays.items():
            assert np.isfinite(values).all() or name == "best/bounds", name


def test_a_resumed_run_keeps_the_lower_learning_rate(monkeypatch, file, tmp_path):
    with pytest.raises(IndexError):  # the table ends after the checkpoint of step 8
        train_with_bounds(monkeypatch, file, tmp_path / "run", [[-9], [np.nan], [-8], [-7], [-6]])
    np.testing.assert_array_equal(scales(tmp_path / "run"), [0.5])
    train_with_bounds(monkeypatch, file, tmp_path / "run", [[-5], [-4]])
    np.testing.assert_array_equal(scales(tmp_path / "run"), [0.5])


def test_a_replica_that_is_done_is_not_brought_back(monkeypatch, file, tmp_path):
    table = [[-1, -9], [-2, -8], [-3, -7], [np.nan, -6], [np.nan, -5], [np.nan, -4]]
    result = train_with_bounds(monkeypatch, file, tmp_path / "run", table, "training.patience=2")
    np.testing.assert_array_equal(result.best.bounds, [-1, -4])
    np.testing.assert_array_equal(scales(tmp_path / "run"), [1.0, 1.0])


def test_the_last_weights_of_a_replica_that_is_given_up_are_not_kept_where_the_last_ones_count(
    monkeypatch, file, tmp_path
):
    table = [[-9, -9], *[[-8, np.nan]] * 4, *[[-8, -1]] * 6]
    result = train_with_bounds(monkeypatch, file, tmp_path / "run", table, "data.use_validation=True")
    np.testing.assert_array_equal(result.best.bounds, [-8, -9])
    np.testing.assert_array_equal(result.best.steps, [12, 2])


def test_without_a_checkpoint_the_run_begins_anew(monkeypatch, file, tmp_path):
    seen, loop = [], loop_lib.TrainLoop.run
    monkeypatch.setattr(
        loop_lib.TrainLoop, "run", lambda self, state, call, **options: (
            seen.append((call.first_step, np.array(state.parameters), np.array(state.learning_rate_scale))),
            loop(self, state, call, **options),
        )[1],
    )  # fmt: skip
    table = [[np.nan], *[[-9]] * 6]
    train_with_bounds(monkeypatch, file, tmp_path / "run", table, "training.checkpoint_minutes=1000.0")
    assert [first for first, _, _ in seen] == [0, 0, 2, 4, 6, 8, 10]
    np.testing.assert_array_equal(seen[1][1], seen[0][1])
    assert [scale[0] for _, _, scale in seen[:2]] == [1.0, 0.5]


def test_a_damaged_checkpoint_is_passed_over_on_the_way_back(monkeypatch, file, tmp_path, capsys):
    table, roll_back = [[-9], [-8], [np.nan], [np.nan], *[[-7]] * 4], recovery.Recovery.roll_back

    def damaging(self, *arguments):
        path = tmp_path / "run/checkpoints/step_000000002.npz"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        return roll_back(self, *arguments)

    monkeypatch.setattr(recovery.Recovery, "roll_back", damaging)
    with pytest.warns(RuntimeWarning, match="passed over a damaged checkpoint"):
        train_with_bounds(monkeypatch, file, tmp_path / "run", table)
    assert "goes on from step 2" not in capsys.readouterr().out


@pytest.mark.parametrize("minutes", ["0.0", "1000.0"])
def test_a_second_phase_that_always_diverges_ends(minutes, monkeypatch, file, tmp_path):
    scorer = FakeScorer([-9, -8, -7, *[np.nan] * 40])
    monkeypatch.setattr(validation, "HeldOutScorer", lambda model, **options: scorer)
    options = (*COURSE, "training.structure_fraction=0.5", f"training.checkpoint_minutes={minutes}")
    with pytest.raises(recovery.NonFiniteTrainingError):
        training.train(tiny.file_config(file, *options, preset="graph_vae/tiny"), tmp_path / "run")
    assert len(scorer.seen) < 20


def test_a_replica_that_is_given_up_stays_so_in_the_second_phase(monkeypatch, file, tmp_path):
    scores = [[-9, -9], *[[-8, np.nan]] * 4, *[[-8, -1]] * 9]
    scorer = FakeScorer(np.ravel(scores))
    monkeypatch.setattr(validation, "HeldOutScorer", lambda model, **options: scorer)
    options = (*COURSE, "training.structure_fraction=0.5", "training.replicas=2")
    result = training.train(tiny.file_config(file, *options, preset="graph_vae/tiny"), tmp_path / "run")
    np.testing.assert_array_equal(result.best.stopped, [False, True])
    np.testing.assert_array_equal(scales(tmp_path / "run"), [1.0, 0.0])


def judge(scale=(1.0, 1.0), **data):
    """A Recovery of two replicas of twelve values, which allows 10 skipped steps of 500, and their state."""
    config = tiny.config("training.steps_per_call=500", "training.max_skipped_fraction=0.02", preset="vae/tiny")
    model = registry.build(config.replace(data), seed=0)
    _, states = start(seeds=(0, 1))
    state = RunState(
        500, states._replace(learning_rate_scale=np.array(scale)), Best.before_validation(states), [0, 1], {}, ""
    )
    return recovery.Recovery(model, None, states, 500), state


def test_as_many_skipped_steps_as_are_allowed_are_no_divergence():
    metrics = {"skipped": np.array([10.0, 11.0]), "bound": np.array([-5.0, -5.0])}
    judged, state = judge()
    np.testing.assert_array_equal(judged.diverged(state, metrics), [False, True])
    judged, state = judge(scale=(1.0, 0.0))
    np.testing.assert_array_equal(judged.diverged(state, metrics), [False, False])


@pytest.mark.parametrize(("likelihood", "limit"), [("bernoulli", 12.0), ("binomial", 12.0), ("gaussian", np.inf)])
def test_only_densities_have_bounds_above_nothing(likelihood, limit):
    support = {"gaussian": "none", "binomial": "none", "bernoulli": "none"}[likelihood]
    judged, state = judge(**{"model.likelihood": likelihood, "data.variant": support})
    bounds = np.array([limit if np.isfinite(limit) else 1e6, 12.1])
    metrics = {"skipped": np.zeros([2]), "bound": bounds}
    np.testing.assert_array_equal(judged.diverged(state, metrics), [False, np.isfinite(limit)])


# Stopping ------------------------------------------------------------------------------------------------------------


def test_pieces_grow_until_they_take_as_long_as_they_should():
    pace = loop_lib.Pace(3.0)
    assert pace.size == 1
    pace.took(1, 40.0)  # compilation
    assert pace.size == 1
    assert not pace.is_worth_stopping(10_000)  # nothing is known yet
    pace.took(1, 0.1)
    assert pace.size == 4
    pace.took(4, 0.4)
    assert pace.size == 16
    pace.took(16, 1.6)
    assert pace.size == 30
    assert pace.is_worth_stopping(31)
    assert not pace.is_worth_stopping(29)
    pace.took(30, 300.0)
    assert pace.size == 1


@pytest.mark.parametrize("compiler", ["xla", "graph"])
def test_a_call_stops_between_pieces_and_going_on_gives_the_same_bits(compiler, monkeypatch):
    data, indices = tf.constant([[1.0], [10.0], [100.0]]), np.zeros([50, 2, 1], np.int32)
    indices[:] = np.random.default_rng(0).integers(0, 3, indices.shape)
    loop = loop_lib.TrainLoop(toy_step, compiler)
    whole, expected, num_steps = loop.run(toy_state(2), Call(0, data, indices, indices))
    assert num_steps == 50
    monkeypatch.setattr(loop_lib.Pace, "size", 7)
    monkeypatch.setattr(loop_lib.Pace, "is_worth_stopping", lambda pace, num: True)
    asked = iter([False, False, True])
    half, _, done = loop.run(toy_state(2), Call(0, data, indices, indices), should_stop=lambda: next(asked))
    assert done == 21
    again, _, rest = loop.run(half, Call(21, data, indices[21:], indices[21:]))
    assert rest == 29
    np.testing.assert_array_equal(again.parameters, whole.parameters)
    pieces, metrics, _ = loop.run(toy_state(2), Call(0, data, indices, indices))
    for name, value in expected.items():
        np.testing.assert_array_equal(metrics[name], value)


def command(file, workdir, *options):
    overrides = [f"--set={override}" for override in (*tiny.SMALL, "training.compiler=graph", *options)]
    program = str(tiny.PROGRAMS / "tfstruct-train")
    return [program, "--preset=vae/tiny", f"--workdir={workdir}", f"--data_file={file}", *overrides]


def heed():
    """In a program that is started: signals that the tests were started to ignore, by nohup or a shell, count."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_stops_a_long_call_within_ten_seconds(number, file, tmp_path):
    """A hundred thousand steps in one call, and no checkpoint before its end."""
    steps = [f"training.{name}=100000" for name in ("steps", "steps_per_call", "validate_every")]
    options = {"env": tiny.ENVIRONMENT, "stdout": subprocess.PIPE, "text": True, "preexec_fn": heed}
    started = subprocess.Popen(command(file, tmp_path / "run", *steps), **options)
    until = time.monotonic() + 120
    while not (tmp_path / "run/tensorboard").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(20)  # it has traced its program, and is in the middle of the call
    started.send_signal(number)
    sent = time.monotonic()
    time.sleep(0.1)
    started.send_signal(signal.SIGTERM)  # a second one does no harm
    printed, _ = started.communicate(timeout=100)
    assert time.monotonic() - sent < 10
    assert started.returncode == 128 + number
    step = Checkpoints(tmp_path / "run/checkpoints").latest().step
    assert 0 < step < 100_000
    assert f"stopped by a signal at step {step}" in printed


def test_a_training_whose_reader_is_gone_goes_on(file, tmp_path):
    options = ("training.steps=20", "training.steps_per_call=2", "training.validate_every=10")
    started = subprocess.Popen(
        command(file, tmp_path / "run", *options), env=tiny.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    started.stdout.close()
    errors = started.stderr.read().decode()
    assert started.wait(200) == 0, errors
    started.stderr.close()
    assert Checkpoints(tmp_path / "run/checkpoints").latest().step == 20


# Bug seen: the rate was kept by the next save alone, so a run that was ended before it came back as fast as it was.
def test_the_lower_learning_rate_is_saved_at_once(monkeypatch, file, tmp_path):
    with pytest.raises(IndexError):  # the table ends right after it went back
        train_with_bounds(monkeypatch, file, tmp_path / "run", [[-9], [np.nan]], "training.checkpoint_minutes=60.0")
    np.testing.assert_array_equal(scales(tmp_path / "run"), [0.5])


def test_signals_that_were_ignored_stay_so():
    """As nohup does for SIGHUP, and a shell for SIGINT of its background jobs."""
    before = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)]
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in zip((signal.SIGHUP, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)

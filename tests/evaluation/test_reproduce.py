"""Filling a table, with a program of milliseconds in place of training and evaluation."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest

from tests.evaluation import made_up_runs
from tests.evaluation.made_up_runs import TABLE
from tests.trainers import tiny
from tfstruct.evaluation import reproduce
from tfstruct.evaluation import results as results_lib
from tfstruct.evaluation import units as units_lib
from tfstruct.models import tables
from tfstruct.models.tables import Evaluation


@pytest.fixture
def runner(monkeypatch, tmp_path):
    """Makes runners of stand-in programs; what they say is in `said`."""
    monkeypatch.setattr(reproduce, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(
        reproduce,
        "command",
        lambda program, table, unit, data_dir: made_up_runs.stand_in(
            program, unit, units_lib.start_folder(table, unit)
        ),
    )

    def make(**options):
        made = reproduce.Runner(TABLE, tmp_path / "results", say=said.append, **options)
        return made

    said = []
    make.said = said
    return make


def todo(tmp_path, **options):
    return units_lib.units(TABLE, tmp_path / "runs", rows=options.pop("rows", ("graph", "open")), **options)


def starts(unit):
    """Step and number of processors at every start of a unit's training."""
    return [tuple(map(int, line.split())) for line in (unit.workdir / "starts").read_text().splitlines()]


def test_units_go_seed_by_seed_and_leave_out_what_has_no_data(tmp_path):
    found = units_lib.units(TABLE, tmp_path)
    assert [(unit.row.name, unit.seeds) for unit in found[:4]] == [
        ("graph", (0,)),
        ("open", (0,)),
        ("other", (0,)),
        ("graph", (1,)),
    ]
    assert {unit.row.name for unit in found} == {"graph", "open", "other"}
    assert {unit.row.name for unit in units_lib.units(TABLE, tmp_path, rows=["absent"])} == {"absent"}
    (together, *_) = units_lib.units(TABLE, tmp_path, rows=["graph"], per_run=8)
    assert (together.seeds, together.workdir.name) == ((0, 1, 2), "seed_0-2")
    with pytest.raises(ValueError, match=r"must follow one another, found \(0, 2\)"):
        units_lib.units(TABLE, tmp_path, seeds=(0, 2), per_run=2)
    with pytest.raises(ValueError, match="unknown row 'grph'; did you mean graph?"):
        units_lib.units(TABLE, tmp_path, rows=["grph"])


def test_runs_of_the_same_changes_share_a_folder_and_others_do_not(tmp_path):
    graph, tuned = (TABLE.row(name) for name in ("graph", "open"))
    again = dataclasses.replace(graph, name="again", evaluation=tuned.evaluation)
    folders = [units_lib.run_folder(TABLE, row) for row in (graph, again, tuned, TABLE.row("other"))]
    assert folders[0] == folders[1] != folders[2]
    assert folders[3] == "vae-tiny"
    assert folders[2] != units_lib.run_folder(TABLE, dataclasses.replace(tuned, start_from=""))
    assert all(len(folder) < 60 for folder in folders)


def test_commands_name_preset_seed_settings_and_the_run_to_start_from(tmp_path):
    unit = units_lib.units(TABLE, tmp_path, rows=["open"], seeds=(5,))[0]
    command = units_lib.command("train", TABLE, unit, "/data")
    source = units_lib.units(TABLE, tmp_path, rows=["graph"], seeds=(5,))[0].workdir
    assert command[1:] == [
        "-m",
        "tfstruct.trainers.train",
        "--preset=graph_vae/tiny",
        f"--workdir={unit.workdir}",
        "--seed=5",
        "--set=training.steps=50",
        "--set=model.decoder_units=(8, 8)",
        f"--set=training.initial_weights={source}",
        "--data_dir=/data",
    ]
    command = units_lib.command("evaluate", TABLE, unit, None)
    assert command[2:] == [
        "tfstruct.trainers.evaluate",
        f"--workdir={unit.workdir}",
        "--split=test",
        "--tag=k5_n40",
        "--nopictures",
        "--num_samples=5",
        "--images=40",
    ]


def test_commands_pass_on_other_data_settings_of_the_evaluation_and_replicas(tmp_path):
    evaluation = Evaluation(7, data="binarized_mnist/static", split="test", overrides=("evaluation.chunk=3",))
    row = dataclasses.replace(TABLE.row("graph"), evaluation=evaluation)
    unit = units_lib.Unit(row, (1, 2, 3), tmp_path / "run")
    command = units_lib.command("evaluate", TABLE, unit, None)
    assert command[-4:] == [
        "--num_samples=7",
        "--images=0",
        "--data=binarized_mnist/static",
        "--set=evaluation.chunk=3",
    ]
    assert "--tag=k7_binarized_mnist_static_chunk-3" in command
    asked = dataclasses.replace(row, evaluation=Evaluation(7, 20, edges=True))
    command = units_lib.command("evaluate", TABLE, unit._replace(row=asked), None)
    assert command[-4:] == ["--images=20", "--edges", "--edge_samples=7", "--edge_images=20"]
    assert "--tag=k7_n20_edges" in command
    assert {"--seed=1", "--replicas=3"} <= set(units_lib.command("train", TABLE, unit, None))


def test_a_run_to_start_from_that_was_not_asked_for_is_trained_first(runner, tmp_path):
    units = todo(tmp_path, rows=("open",), seeds=(0,))
    made = runner()
    assert made.run(units)
    assert made.failed == {}
    assert set(results_lib.read(tmp_path / "results", TABLE).document["rows"]) == {"graph", "open"}


def test_a_folder_of_another_definition_fails_alone(runner, tmp_path):
    units = todo(tmp_path, rows=("graph",), seeds=(0, 1))
    made_up_runs.write_training(TABLE.row("open"), units[0].workdir)
    made_up_runs.write_evaluation(TABLE.row("graph"), units[0].workdir)
    made = runner()
    assert not made.run(units)
    assert "is no run of the row graph" in made.failed["graph seed 0"]
    assert list(results_lib.read(tmp_path / "results", TABLE).seeds("graph")) == ["1"]


def test_an_error_of_the_runner_leaves_no_process_behind(runner, tmp_path, monkeypatch):
    (unit,) = todo(tmp_path, rows=("graph",), seeds=(0,))
    processes = []
    popen = reproduce.subprocess.Popen
    monkeypatch.setattr(
        reproduce.subprocess, "Popen", lambda *a, **k: processes.append(popen(*a, **k)) or processes[-1]
    )

    failed = []

    def fail_once(text):
        if processes and processes[0].poll() is None and not failed:
            failed.append(text)
            raise RuntimeError("no more memory")

    made = runner(progress_seconds=0.1)
    monkeypatch.setattr(made, "say", fail_once)
    with pytest.raises(RuntimeError, match="no more memory"):
        made.run([unit])
    assert processes[0].poll() is not None


def test_a_table_is_filled_in_order_of_dependence_with_one_processor_a_job(runner, tmp_path):
    units = todo(tmp_path, seeds=(0, 1))
    first = runner(jobs=2)
    assert first.run(units)
    assert first.failed == {}
    results = results_lib.read(tmp_path / "results", TABLE)
    assert {name: list(results.seeds(name)) for name in ("graph", "open")} == {"graph": ["0", "1"], "open": ["0", "1"]}
    assert [step for unit in units for step, _ in starts(unit)] == [0, 0, 0, 0]
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {count for unit in units for _, count in starts(unit)} <= {share, share + len(os.sched_getaffinity(0)) % 2}
    before = [path.read_bytes() for path in results_lib.paths(tmp_path / "results", TABLE)]
    assert runner().run(units)
    assert [path.read_bytes() for path in results_lib.paths(tmp_path / "results", TABLE)] == before
    assert all(len(starts(unit)) == 1 for unit in units)


def test_stopped_at_the_deadline_it_goes_on_to_the_same_files(runner, tmp_path):
    units = todo(tmp_path, seeds=(0,))
    seconds = 0.5
    while not (made := runner(deadline=time.monotonic() + seconds)).run(units):
        assert made.failed == {}
        seconds *= 1 if units[0].workdir.exists() else 2  # this machine takes longer to start a process
        assert seconds < 60
    taken = [step for unit in units for step, _ in starts(unit)]
    assert len(taken) > 2  # it was interrupted
    assert max(taken) > 0  # and went on from where it had been
    interrupted = [path.read_bytes() for path in results_lib.paths(tmp_path / "results", TABLE)]
    whole = tmp_path / "whole"
    assert reproduce.Runner(TABLE, whole, say=runner.said.append).run(
        units_lib.units(TABLE, whole / "runs", rows=("graph", "open"), seeds=(0,))
    )
    assert [path.read_bytes() for path in results_lib.paths(whole, TABLE)] == interrupted


def test_a_request_to_stop_ends_the_processes_and_keeps_their_steps(runner, tmp_path):
    unit = todo(tmp_path, rows=("graph",), seeds=(0,))[0]
    made = runner()

    def stop_once_started():
        while not (unit.workdir / "starts").exists():
            time.sleep(0.01)
        made.stop(signal.SIGTERM, None)

    threading.Thread(target=stop_once_started).start()
    assert not made.run([unit])
    assert 0 < int((unit.workdir / "steps").read_text()) < 100
    assert any("stopping" in line for line in runner.said)


def test_a_failed_run_is_named_and_does_not_stop_the_others(runner, tmp_path):
    units = todo(tmp_path, seeds=(0,))
    units += units_lib.units(TABLE, tmp_path / "elsewhere", rows=["graph"], seeds=(1,))
    units[0].workdir.parent.mkdir(parents=True)
    (units[0].workdir.parent / "fail").touch()
    made = runner()
    assert not made.run(units)
    assert made.failed == {"graph seed 0": "no more memory", "open seed 0": "waits for a run that failed"}
    assert list(results_lib.read(tmp_path / "results", TABLE).seeds("graph")) == ["1"]
    assert any("FAILED" in line and "no more memory" in line for line in runner.said)


def test_results_that_cannot_be_written_are_refused_before_anything_is_trained(runner, tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(OSError, match="results"):
        runner().run(todo(tmp_path, seeds=(0,)))
    assert not (tmp_path / "runs").exists()


def test_the_whole_last_message_of_a_failed_run_is_told(tmp_path):
    unit = todo(tmp_path, rows=("graph",), seeds=(0,))[0]
    unit.workdir.parent.mkdir(parents=True)
    errors = tempfile.TemporaryFile()
    errors.write(b"chatter\n  of a library\nerror: no data\n  say where\n  by --data_dir\n")
    job = reproduce._Job(unit, "train", None, 0, errors, 0)
    assert job.take_errors() == "error: no data say where by --data_dir"
    assert "of a library" in job.log.read_text()


def test_progress_is_that_of_the_process_and_not_of_the_one_before(runner, tmp_path):
    unit = todo(tmp_path, rows=("graph",), seeds=(0,))[0]
    unit.workdir.mkdir(parents=True)
    rows = [{"step": step, "seconds": step / 10} for step in (10, 20, 30)]
    (unit.workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = [runner()._progress(reproduce._Job(unit, "train", None, 0, None, first)) for first in (0, 20, 30)]
    assert told[0] == "graph seed 0: step 30 of 100, 10.0 steps/s, 0 min left"
    assert told[1:] == ["graph seed 0: compiling"] * 2


def test_results_of_another_machine_are_not_computed_again(runner, tmp_path):
    units = todo(tmp_path, rows=("graph",), seeds=(0,))
    assert runner().run(units)
    elsewhere = units_lib.units(TABLE, tmp_path / "empty", rows=["graph"], seeds=(0,))
    assert runner().run(elsewhere)
    assert not (tmp_path / "empty").exists()


def test_the_list_says_what_is_done_under_way_and_missing(runner, tmp_path):
    units = todo(tmp_path, seeds=(0, 1))
    runner().run(units[:1])
    units[2].workdir.mkdir(parents=True)
    lines = list(units_lib.status(units, results_lib.read(tmp_path / "results", TABLE)))
    assert lines == ["graph  0 done; 1 step 0 of 100", "open   0 missing; 1 missing"]


def test_rows_without_data_are_listed_with_the_reason_when_all_are_asked_for(tmp_path):
    units = units_lib.units(TABLE, tmp_path, seeds=(0,), is_whole=True)
    lines = list(units_lib.status(units, results_lib.read(tmp_path / "results", TABLE)))
    assert lines[-1] == "absent  no data: no network; 0 missing"


def test_the_reason_of_a_failure_is_that_of_its_own_process(runner, tmp_path):
    """Another trainer at work in the same folder writes into the same log."""
    (unit,) = todo(tmp_path, rows=("graph",), seeds=(0,))
    unit.workdir.parent.mkdir(parents=True)
    (unit.workdir.parent / "fail").touch()
    log = unit.workdir.with_name("seed_0.train.log")
    done = threading.Event()

    def write_on():
        while not done.wait(0.01):
            with open(log, "a") as file:
                file.write("step 7 of another\n")

    other = threading.Thread(target=write_on)
    other.start()
    made = runner()
    try:
        assert not made.run([unit])
    finally:
        done.set()
        other.join()
    assert made.failed == {"graph seed 0": "no more memory"}
    assert "no more memory" in log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells children of their parent's death")
def test_a_killed_runner_leaves_no_trainer_behind(tmp_path):
    program = f"""
import sys, time
from tests.evaluation import made_up_runs
from tfstruct.evaluation import reproduce, units
unit = units.units(made_up_runs.TABLE, {str(tmp_path)!r}, rows=["graph"], seeds=(0,))[0]
reproduce.command = lambda *_: [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
job = reproduce.Runner(made_up_runs.TABLE, {str(tmp_path)!r})._start(unit, set())
print("started", flush=True)
time.sleep(60)
"""
    runner = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tiny.CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        while "started" not in runner.stdout.readline():
            assert runner.poll() is None
        (log,) = tmp_path.glob("*/seed_0.train.log")
        while not log.read_text().strip():
            time.sleep(0.02)
    finally:
        runner.kill()
        runner.communicate()
    child = int(log.read_text())
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}")


@pytest.mark.parametrize("seeds", [(-1,), (0, -2)])
def test_negative_seeds_are_refused(tmp_path, seeds):
    with pytest.raises(ValueError, match="seeds must be at least 0, found"):
        units_lib.units(TABLE, tmp_path, seeds=seeds)


def test_no_jobs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="jobs must be at least 1, found 0"):
        reproduce.Runner(TABLE, tmp_path, jobs=0)


@pytest.mark.slow
def test_the_real_programs_interrupted_and_resumed_give_the_same_numbers(tmp_path):
    arguments = ["--table=graph_vae/tests", "--seeds=0", "--jobs=2"]
    summaries, scores = [], []
    for name, hours in (("whole", ()), ("parts", ("--hours=0.002",))):
        folders = [f"--workdir={tmp_path / name}", f"--results={tmp_path / name}"]
        codes = []
        while not codes or codes[-1] == 3:
            done = tiny.run_program("reproduce", *arguments, *folders, *(hours if len(codes) < 3 else ()))
            codes.append(done.returncode)
        assert codes[-1] == 0, done.stderr
        assert "| log-likelihood -150.00 +- 0.50 |" in done.stdout
        found = results_lib.read(tmp_path / name, tables.TABLES[tables.TESTS])
        summaries.append([row["summary"] for row in found.document["rows"].values()])
        scores.append(found.scores)
    assert len(codes) > 1
    assert summaries[0] == summaries[1]
    for key, values in scores[0].items():
        np.testing.assert_array_equal(scores[1][key], values)

"""Scoring jobs: the scores of the model itself, whoever computes them, in whatever pieces, however often they end."""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import signal
import subprocess
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

import tfstruct
from tests.trainers import tiny
from tfstruct.data import sources
from tfstruct.serving.batch import job as job_lib
from tfstruct.serving.batch import results
from tfstruct.serving.batch.job import Job, Question
from tfstruct.serving.inputs import row_seeds

NUM = 47


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(3).integers(0, 2, [NUM, 4]).astype(np.uint8)


@pytest.fixture
def file(rows, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    return str(tmp_path / "rows.npy")


def make(model, files, output, shard_rows=10, **question):
    found = sources.find(files, None, model.event_shape)
    question = {"batch_size": 4, "seed": 8} | question
    return Job(str(model.path), Question(**question), found, shard_rows, f"{output}.shards")


def scored(model, files, output, **options):
    job = make(model, files, output, **options)
    job.run(model, lambda num: None)
    return results.join(job, str(output)), load(output)


def load(path):
    if str(path).endswith(".npz"):
        return dict(np.load(path))
    table = pq.read_table(path)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


@pytest.mark.parametrize("name", ["scores.npz", "scores.parquet"])
@pytest.mark.parametrize("shard_rows", [10, 16, 1000])
def test_scores_are_those_of_the_model_in_the_order_of_the_rows(name, shard_rows, model, rows, file, tmp_path):
    summary, found = scored(model, [file], tmp_path / name, shard_rows=shard_rows)
    seeds = row_seeds(8, NUM)
    assert set(found) == {"path", "row", "valid", "log_prob", "std_err", "bits_per_dim"}
    for output, values in model.log_prob(rows, seed=seeds).items():
        np.testing.assert_allclose(found[output], values, rtol=1e-5)
    np.testing.assert_array_equal(found["row"], np.arange(NUM))
    assert set(found["path"]) == {file}
    assert found["valid"].all()
    assert (summary.rows, summary.valid) == (NUM, NUM)
    mean, error = summary.means["log_prob"]
    np.testing.assert_allclose(mean, found["log_prob"].mean(dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(error, found["log_prob"].std(ddof=1, dtype=np.float64) / np.sqrt(NUM), rtol=1e-5)
    assert os.listdir(tmp_path) == ["rows.npy", name] or sorted(os.listdir(tmp_path)) == ["rows.npy", name]


def test_seeds_go_on_over_files_and_shards(model, rows, file, tmp_path):
    for index, part in enumerate(np.split(rows, [9, 30])):
        np.save(tmp_path / f"part{index}.npy", part)
    _, whole = scored(model, [file], tmp_path / "whole.npz")
    _, parts = scored(model, [str(tmp_path / "part*.npy")], tmp_path / "parts.npz")
    np.testing.assert_array_equal(parts["row"], [*range(9), *range(21), *range(17)])
    np.testing.assert_allclose(parts["log_prob"], whole["log_prob"], rtol=1e-5)
    assert len(set(whole["log_prob"])) > 16  # four binary pixels have 16 values: each row has its own noise


def test_outputs_of_several_numbers_are_lists(model, rows, file, tmp_path):
    expected = model.encode(rows)
    for name in ("latents.npz", "latents.parquet"):
        _, found = scored(model, [file], tmp_path / name, signature="encode")
        for output in ("z_mean", "z_std"):
            np.testing.assert_allclose(found[output], expected[output], rtol=1e-5)


def test_a_damaged_shard_is_scored_again_and_shards_of_nobody_are_not_taken(model, file, tmp_path):
    _, expected = scored(model, [file], tmp_path / "expected.npz")
    job = make(model, [file], tmp_path / "scores.npz")
    job.run(model, lambda num: None)
    for shard, damage in zip(
        job.shards(), (lambda old: old[:-30], lambda old: old[:80] + b"!!" + old[82:]), strict=False
    ):
        path = pathlib.Path(job.path(shard))
        path.write_bytes(damage(path.read_bytes()))
    assert [shard.index for shard in job.begin()] == [0, 1]
    job.run(model, lambda num: None)
    results.join(job, str(tmp_path / "scores.npz"))
    np.testing.assert_array_equal(load(tmp_path / "scores.npz")["log_prob"], expected["log_prob"])
    job.run(model, lambda num: None)
    os.remove(f"{job.folder}/job.json")
    with pytest.raises(ValueError, match=r"scores of another job .*remove it"):
        job.begin()


def test_two_processes_do_not_score_to_one_file_and_a_failure_leaves_no_empty_folder(model, file, tmp_path):
    job = make(model, [file], tmp_path / "scores.npz")
    with job.alone():
        with pytest.raises(RuntimeError, match=r"another process scores to .*scores.npz"), job.alone():
            pass
    with contextlib.suppress(Ended), job.alone():
        assert job.begin()
        raise Ended
    assert os.listdir(tmp_path) == ["rows.npy"]


class Ended(Exception):
    """A run is ended."""


def test_an_ended_job_goes_on_and_gives_the_same_bits(model, file, tmp_path):
    _, expected = scored(model, [file], tmp_path / "expected.npz")
    job, batches = make(model, [file], tmp_path / "scores.npz"), itertools.count()

    def end(num):
        if next(batches) == 7:
            raise Ended

    with pytest.raises(Ended):
        job.run(model, end)
    assert len(job.begin()) == 3  # of five shards of three batches
    done = []
    make(model, [file], tmp_path / "scores.npz").run(model, done.append)
    assert sum(done) == 27
    results.join(job, str(tmp_path / "scores.npz"))
    found = load(tmp_path / "scores.npz")
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(
    "change", ["seed", "signature", "alpha", "batch_size", "shard_rows", "rows", "time", "key", "model"]
)
def test_scores_of_two_jobs_are_not_mixed(change, model, rows, file, tmp_path, monkeypatch):
    job = make(model, [file], tmp_path / "scores.npz")
    shard = job.begin()[0]
    job.write(shard, job.score(model, shard, shard.read()))
    options = {
        "seed": {"seed": 9},
        "signature": {"signature": "elbo"},
        "batch_size": {"batch_size": 5},
        "alpha": {"alpha": 0.1},
    }
    if change == "time":
        os.utime(file, (1e9, 1e9))
    if change == "rows":
        np.save(tmp_path / "rows.npy", rows[:40])
    if change == "model":
        monkeypatch.setattr(job_lib, "sha256", lambda path: "of another model")
    shard_rows = 11 if change == "shard_rows" else 10
    other = make(model, [file], tmp_path / "scores.npz", shard_rows=shard_rows, **options.get(change, {}))
    if change == "key":
        (source,) = other.sources
        other = dataclasses.replace(other, sources=[dataclasses.replace(source, key="another")])
        monkeypatch.setattr(sources.ArrayFile, "num_rows", NUM)
    differing = "rows" if change in ("time", "key") else change
    with pytest.raises(ValueError, match=rf"scores of another job \({differing} differ\); remove it"):
        other.begin()
    os.remove(job.path(shard))
    assert other.begin() == other.shards()  # nothing is lost: there was nothing yet


def test_rows_that_the_model_refuses_are_told_or_marked(model, rows, file, tmp_path):
    _, expected = scored(model, [file], tmp_path / "good.npz")
    wrong = rows.astype(np.float32)
    wrong[17, 2], wrong[30] = 0.5, np.nan
    wrong[20:24] = -1  # a whole batch
    np.save(file, wrong)
    with pytest.raises(job_lib.InvalidRowError, match=r"rows.npy, row 17: .*must be 0 or 1, found 0.5"):
        scored(model, [file], tmp_path / "scores.npz")
    # The shard before is kept, and not scored again.
    done = []
    job = make(model, [file], tmp_path / "scores.npz", keep_invalid=True)
    job.run(model, done.append)
    assert sum(done) == 37
    summary = results.join(job, str(tmp_path / "scores.npz"))
    found, valid = load(tmp_path / "scores.npz"), np.ones([NUM], bool)
    valid[[17, 20, 21, 22, 23, 30]] = False
    assert (summary.rows, summary.valid) == (NUM, NUM - 6)
    np.testing.assert_array_equal(found["valid"], valid)
    np.testing.assert_array_equal(found["log_prob"][~valid], -np.inf)  # as served
    np.testing.assert_array_equal(found["log_prob"][valid], expected["log_prob"][valid])
    np.testing.assert_allclose(summary.means["log_prob"][0], found["log_prob"][valid].mean(dtype=np.float64))


def test_a_wrong_row_is_named_by_its_place_in_its_file(model, rows, tmp_path):
    wrong = rows[:9].astype(np.float32)
    wrong[7] = 2.0
    np.save(tmp_path / "part0.npy", rows)
    np.save(tmp_path / "part1.npy", wrong)
    with pytest.raises(job_lib.InvalidRowError, match=r"part1.npy, row 7: "):
        scored(model, [str(tmp_path / "part*.npy")], tmp_path / "scores.npz")


def test_questions_that_the_model_does_not_answer_are_refused_before_anything_is_scored(model, file):
    (source,) = sources.find([file], None, model.event_shape)
    with pytest.raises(ValueError, match=r"answers no 'anomaly' of rows of numbers.*elbo, encode, log_prob"):
        Question("anomaly").check(model, source)
    with pytest.raises(ValueError, match="answers no 'lgo_prob' of rows of numbers; did you mean log_prob"):
        Question("lgo_prob").check(model, source)


def test_encoded_images_are_scored_and_a_broken_one_is_named(tmp_path, rng):
    model = tfstruct.load("spvae/mnist_discrete")
    files = [tf.io.encode_png(rng.integers(0, 256, [28, 28, 1], np.uint8)).numpy() for _ in range(4)]
    for index, content in enumerate([*files[:2], b"no image", *files[2:]]):
        (tmp_path / f"{index}.png").write_bytes(content)
    with pytest.raises(job_lib.InvalidRowError, match=r"2.png: no readable PNG or JPEG image; --invalid=mark"):
        scored(model, [str(tmp_path / "*.png")], tmp_path / "scores.npz", signature="anomaly", alpha=0.1)
    options = {"signature": "anomaly", "alpha": 0.1, "keep_invalid": True}
    _, found = scored(model, [str(tmp_path / "*.png")], tmp_path / "scores.npz", **options)
    np.testing.assert_array_equal(found["valid"], [True, True, False, True, True])
    assert found["is_anomaly"][2]
    assert found["p_value"][2] == 0.0
    assert np.isnan(found["log_prob"][2])
    assert [os.path.basename(path) for path in found["path"]] == [f"{index}.png" for index in range(5)]
    expected = model.image_anomaly(files, alpha=0.1, seed=row_seeds(8, 5)[[0, 1, 3, 4]])
    for output in ("log_prob", "p_value", "is_anomaly", "region_p_value"):
        np.testing.assert_allclose(found[output][found["valid"]], expected[output], rtol=1e-4)


def program(folder, output, *arguments):
    return [
        str(tiny.PROGRAMS / "tfstruct-score"), f"--model={folder}", f"--input={output.parent / 'rows.npy'}",
        f"--output={output}", "--seed=8", *arguments,
    ]  # fmt: skip


TWO_WORKERS = (
    "--runner=DirectRunner",
    "--runner_option=direct_num_workers=2",
    "--runner_option=direct_running_mode=multi_processing",
)


def test_a_pipeline_gives_the_same_bits(model, folder, file, tmp_path):
    _, expected = scored(model, [file], tmp_path / "expected.parquet")
    arguments = ("--batch_size=4", "--shard_rows=10", "--runner=DirectRunner")
    done = subprocess.run(
        program(folder, tmp_path / "scores.parquet", *arguments),
        env=tiny.ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"(standard error over {NUM} rows) nats" in done.stdout
    found = load(tmp_path / "scores.parquet")
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "all"])
def test_what_a_killed_worker_or_program_leaves_is_gone_on_from(victim, folder, tmp_path):
    """Beam's local runner waits for a dead worker for ever, so it is ended by hand; others start the shard anew."""
    many = np.random.default_rng(4).integers(0, 2, [40_000, 4]).astype(np.uint8)
    np.save(tmp_path / "rows.npy", many)
    sizes = ("--batch_size=50", "--shard_rows=500")
    command = program(folder, tmp_path / "scores.npz", *sizes, *TWO_WORKERS)
    running = subprocess.Popen(
        command, env=tiny.ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    shards = tmp_path / "scores.npz.shards"
    until = time.monotonic() + 120
    while len(list(shards.glob("*.npz"))) < 5:
        assert time.monotonic() < until
        assert running.poll() is None
        time.sleep(0.02)
    if victim == "worker":
        listed = subprocess.run(["pgrep", "-g", str(running.pid), "-f", "^[^ ]*python.*sdk_worker_main"],
                                capture_output=True, text=True, check=True).stdout.split()  # fmt: skip
        os.kill(int(listed[0]), signal.SIGKILL)
        time.sleep(1)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    left = len(list(shards.glob("*.npz")))
    assert 5 <= left < 80
    for output in ("scores.npz", "whole.npz"):
        arguments = program(folder, tmp_path / output, *sizes, *(TWO_WORKERS if output == "scores.npz" else ()))
        done = subprocess.run(arguments, env=tiny.ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    found, expected = load(tmp_path / "scores.npz"), load(tmp_path / "whole.npz")
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)

"""The benchmark's file: every round that was timed, and what the table says of them."""

import json

import numpy as np
import pytest

from tests.trainers import tiny

SMALL = ["--preset=graph_vae/tiny", *(f"--set={setting}" for setting in (*tiny.SMALL, "training.compiler=graph"))]


def measure(folder, *arguments):
    path = folder / "benchmark.json"
    program = tiny.run_program("benchmark", *arguments, "--rounds=3", f"--output={path}")
    assert program.returncode == 0, program.stderr
    return program, json.loads(path.read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    return measure(folder, *SMALL, "--against=model.structure=independent", "--steps=3")


def test_medians_ranges_and_ratios_are_those_of_the_rounds(done):
    program, written = done
    assert list(written["rounds"]) == ["graph_vae/tiny", "model.structure=independent"]
    first = np.array(written["rounds"]["graph_vae/tiny"])
    for name, row in written["rows"].items():
        speeds = np.array(written["rounds"][name])
        assert len(speeds) == 3
        assert (speeds > 0).all()
        assert row["per_second"] == sorted(speeds)[1]
        assert (row["slowest"], row["fastest"]) == (min(speeds), max(speeds))
        assert row["ratio"] == sorted(speeds / first)[1]
        assert row["least_ratio"] <= row["ratio"] <= row["greatest_ratio"]
        assert row["compile_seconds"] > 3 / min(speeds)  # a round, and tracing before it
        assert row["share_of_most"] == pytest.approx(row["per_second"] / row["most_per_second"])
        assert 0 < row["share_of_most"] < 1
        assert row["memory_bytes"] >= 0
        assert f"{name:46} {row['per_second']:9.1f} steps/s" in program.stdout
    assert written["rows"]["graph_vae/tiny"]["ratio"] == 1.0


def test_the_file_says_what_was_timed_and_where(done):
    _, written = done
    assert (written["preset"], written["work_of_a_round"]["graph_vae/tiny"]) == ("graph_vae/tiny", 3)
    assert written["batch_size"] > 0
    assert {"commit", "versions"} <= written["environment"].keys()


def test_scaling_says_by_what_power_a_step_grows_and_draws_it(tmp_path):
    figure = tmp_path / "scaling.png"
    scaling = ["--scaling=training.batch_size=8,64", "--scaling=replicas=1,2", f"--figure={figure}"]
    program, written = measure(tmp_path, *SMALL, *scaling, "--steps=3")
    batch, replicas = written["scaling"]["training.batch_size"], written["scaling"]["replicas"]
    for found, factor in ((batch, 8.0), (replicas, 2.0)):
        times = [1.0 / row["per_second"] for row in found["rows"]]
        assert found["exponent"] == pytest.approx(np.log(times[1] / times[0]) / np.log(factor))
    # The products of a batch and of replicas, the weights of replicas alone.
    least = [1.0 / row["most_per_second"] for row in replicas["rows"]]
    assert least[1] == pytest.approx(2.0 * least[0])
    assert 1.0 / batch["rows"][1]["most_per_second"] < 8.0 / batch["rows"][0]["most_per_second"]
    assert f"training.batch_size^{batch['exponent']:.2f}" in program.stdout
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_evaluation_and_log_partition_are_timed_beside_plain_loops(tmp_path):
    settings = ["--set=evaluation.num_samples=4", "--set=evaluation.batch_size=8", "--rows=20"]
    _, written = measure(tmp_path, *SMALL, *settings, "--measure=evaluation")
    assert set(written["work_of_a_round"].values()) == {16 * 4}  # whole batches
    assert len(written["rows"]) == 3
    small = ["--set=evaluation.prior_temperatures=3", "--set=evaluation.prior_chains=5"]
    _, written = measure(tmp_path, "--preset=boltzmann_vae/tiny", *small, "--measure=log_partition")
    assert list(written["rows"]) == ["tfstruct, one XLA program", "tfstruct, one graph", "a plain loop in NumPy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measure=log_partition"], "--measure=log_partition is for Boltzmann VAEs, found --preset=graph_vae/mnist"),
        (["--scaling=replicas=2"], "--scaling must be key=value,value,... of two or more positive numbers"),
        (["--figure=a.png"], "--figure draws what --scaling measures"),
        (["--against=dense_vae/mnist_continuous"], "their steps do not compare"),
        (["--against=data.variant=grey"], "all are timed on the same data; give data.variant=grey with --set"),
    ],
)
def test_what_cannot_be_timed_is_one_line(arguments, message):
    program = tiny.run_program("benchmark", *arguments)
    assert program.returncode == 1
    assert message in program.stderr
    assert len(program.stderr.strip().splitlines()) == 1

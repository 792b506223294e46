"""The benchmark's file: every round that was timed, and what the table says of them."""

import json

import numpy as np
import pytest

from tests.trainers import tiny


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "benchmark.json"
    small = [f"--set={setting}" for setting in (*tiny.SMALL, "training.compiler=graph")]
    arguments = ["--preset=graph_vae/tiny", *small, "--against=model.structure=independent", "--steps=3", "--rounds=3"]
    program = tiny.run_program("benchmark", *arguments, f"--output={path}")
    assert program.returncode == 0, program.stderr
    return program, json.loads(path.read_text())


def test_medians_ranges_and_ratios_are_those_of_the_rounds(done):
    program, written = done
    assert list(written["rounds"]) == ["graph_vae/tiny", "model.structure=independent"]
    first = np.array(written["rounds"]["graph_vae/tiny"])
    for name, row in written["rows"].items():
        speeds = np.array(written["rounds"][name])
        assert len(speeds) == 3
        assert (speeds > 0).all()
        assert row["steps_per_second"] == sorted(speeds)[1]
        assert (row["slowest"], row["fastest"]) == (min(speeds), max(speeds))
        assert row["ratio"] == sorted(speeds / first)[1]
        assert row["least_ratio"] <= row["ratio"] <= row["greatest_ratio"]
        assert row["compile_seconds"] > 3 / min(speeds)  # a round, and tracing before it
        assert f"{name:46} {row['steps_per_second']:9.1f} steps/s" in program.stdout
    assert written["rows"]["graph_vae/tiny"]["ratio"] == 1.0


def test_the_file_says_what_was_timed_and_where(done):
    _, written = done
    assert (written["preset"], written["steps_of_a_round"]) == ("graph_vae/tiny", 3)
    assert written["batch_size"] > 0
    assert {"commit", "versions"} <= written["environment"].keys()

"""Programs that cannot write: one line that names the file, and nothing half written.

A limit on the size of files makes the kernel refuse the write, as a full disk does, for libraries' writers as well.
"""

import json
import resource

import numpy as np
import pytest

from tests.trainers import tiny
from tfstruct.evaluation.report import TrainedRun
from tfstruct.serving import bundle
from tfstruct.training import run as training

ROWS = 2_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run, its model and rows to score."""
    folder = tmp_path_factory.mktemp("made")
    file = tiny.write_rows(folder / "rows.npz", event_shape=(4,))
    training.train(tiny.file_config(file), folder / "run")
    bundle.export(TrainedRun(folder / "run"), folder / "model/1")
    np.save(folder / "many.npy", tiny.binary_rows(np.random.default_rng(0), ROWS, [4]))
    return folder


TRAIN = "train --preset=graph_vae/tiny --workdir=HERE/run --data_file=MADE/rows.npz"
CALIBRATE = "calibrate --model=MADE/model --output=HERE/model/2 --data_file=MADE/rows.npz"
SCORE = "score --model=MADE/model --input=MADE/many.npy --output=HERE/s"

# Arguments, bytes that a file may have, what the message names, and what is left; MADE and HERE stand for folders.
CASES = {
    "train, checkpoint": (TRAIN, 10_000, "run/checkpoints/step_000000020.npz", {"run"}),
    "train, best weights": (TRAIN, 50_000, "run/best/replica_0.weights.h5", {"run"}),
    "evaluate": ("evaluate --workdir=MADE/run --tag=full", 100, "run/evaluation_full_log_prob.npz", set()),
    "export, graph": ("export --workdir=MADE/run --output=HERE/model/1", 100_000, "model/1", {"model"}),
    "calibrate": (CALIBRATE, 100_000, "model/2", {"model"}),
    "score, shard": (f"{SCORE}.npz --shard_rows=2000", 3_000, "s.npz.shards/000000.npz", set()),
    "score, npz": (f"{SCORE}.npz --shard_rows=100", 10_000, "s.npz", {"s.npz.shards"}),
    "score, parquet": (f"{SCORE}.parquet --shard_rows=100", 10_000, "s.parquet", {"s.parquet.shards"}),
    "prepare": ("prepare --input=MADE/many.npy --event_shape=4 --output=HERE/rows.npy", 3_000, "rows.npy", set()),
    "sample": ("sample --model=MADE/model --num=1000 --output=HERE/s.npz", 3_000, "s.npz", set()),
}


@pytest.mark.parametrize("case", CASES)
def test_a_program_that_cannot_write_says_which_file_and_leaves_none_half_written(case, made, tmp_path):
    command, limit, named, left = CASES[case]
    here = tmp_path / "here"
    here.mkdir()
    name, *arguments = command.replace("MADE", str(made)).replace("HERE", str(here)).split()
    if name == "train":
        arguments += [f"--set={setting}" for setting in tiny.SMALL]
    before = sorted(made.rglob("*"))
    done = tiny.run_program(
        name, *arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert done.returncode == 1, (done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    where = made if name == "evaluate" else here
    assert f"cannot write {named.rpartition('/')[2]}: " in lines[0]
    assert "File too large" in lines[0]
    assert lines[0].endswith(f"what was there before is intact: '{where / named}'")
    assert {path.name for path in here.iterdir()} == left
    files = [path for path in here.rglob("*") if path.is_file() and path.name != "train.lock"]
    assert not [path for path in files if path.name.startswith(".") or path.name.endswith((".tmp", ".h5"))]
    assert sorted(made.rglob("*")) == before
    for path in files:  # what is there is whole
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.suffix == ".npz":
            with np.load(path) as archive:
                assert all(len(archive[key]) for key in archive if key != "checkpoint.json")

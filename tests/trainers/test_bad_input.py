"""A mistake of the user ends with status 1 and one clear line on standard error, and leaves no folder."""

import os

import numpy as np
import pytest

from tests.trainers import tiny
from tfstruct.training.checkpoint import WorkdirLock

TINY = "--preset=graph_vae/tiny"
ADJACENCY = "--set=model.adjacency="


def write_files(folder):
    """Writes the data files of the cases."""
    rng = np.random.default_rng(0)
    binary = tiny.binary_rows(rng, 60, (12,))
    np.save(folder / "binary.npy", binary)
    np.save(folder / "grey.npy", rng.random([60, 12]))
    spoiled = rng.random([60, 12])
    spoiled[17, 3] = np.nan
    np.save(folder / "nan.npy", spoiled)
    infinite = binary.astype(np.float32)
    infinite[4, 0] = np.inf
    np.savez(folder / "inf.npz", train=infinite, validation=binary, test=binary)
    np.savez(folder / "shapes.npz", train=binary, validation=binary, test=binary[:, :11])
    np.savez(folder / "keys.npz", train=binary, tset=binary)
    np.save(folder / "empty.npy", np.zeros([0, 12], np.uint8))
    np.save(folder / "flat.npy", np.zeros([60], np.uint8))
    np.save(folder / "text.npy", np.array([["a", "b"]] * 60))
    (folder / "nothing.npy").write_bytes(b"")
    (folder / "noise.npz").write_bytes(b"PK\x03\x04 this is no archive")
    (folder / "table.txt").write_text("0,1\n1,0\n")


# Arguments by case, and what the message must hold.
CASES = {
    # unknown names, with the near ones
    "preset": (["--preset=graph_vea/tiny"], ["graph_vea/tiny", "graph_vae/tiny"]),
    "key": ([TINY, "--set=optimizer.learning_rat=0.1"], ["learning_rat'", "optimizer.learning_rate"]),
    "key without its group": ([TINY, "--set=learning_rate=0.1"], ["optimizer.learning_rate"]),
    "no value": ([TINY, "--set=training.steps"], ["key=value", "training.steps"]),
    "text for a number": ([TINY, "--set=training.steps=many"], ["training.steps takes an int", "many"]),
    "fraction for a count": ([TINY, "--set=training.steps=1.5"], ["training.steps takes an int", "1.5"]),
    "number for a switch": ([TINY, "--set=model.batch_norm=2"], ["model.batch_norm takes a bool", "2"]),
    "a group as a key": ([TINY, "--set=model=3"], ["unknown setting 'model'"]),
    "data set": ([TINY, "--set=data.name=mnits"], ["mnits", "mnist"]),
    "variant": ([TINY, "--set=data.variant=dynamik"], ["dynamik", "dynamic"]),
    "an argument without a flag": ([TINY, "steps=3"], ["unexpected argument 'steps=3'"]),
    # data
    "grey values of a file": ([TINY, "--data_file={data}/grey.npy"], ["binary", "data.variant=dynamic"]),
    "grey values of a set": ([TINY, "--set=data.variant=grey"], ["binary", "data.variant=dynamic"]),
    "nan": ([TINY, "--data_file={data}/nan.npy"], ["nan.npy", "NaN", "row 17"]),
    "infinity": ([TINY, "--data_file={data}/inf.npz"], ["inf.npz", "infinite", "row 4"]),
    "splits of two shapes": ([TINY, "--data_file={data}/shapes.npz"], ["shapes.npz", "(12,)", "(11,)"]),
    "keys": ([TINY, "--data_file={data}/keys.npz"], ["train, tset", "validation"]),
    "no rows": ([TINY, "--data_file={data}/empty.npy"], ["empty.npy", "empty"]),
    "no event axis": ([TINY, "--data_file={data}/flat.npy"], ["flat.npy", "(60,)"]),
    "text": ([TINY, "--data_file={data}/text.npy"], ["text.npy", "type <U1"]),
    "an empty file": ([TINY, "--data_file={data}/nothing.npy"], ["nothing.npy"]),
    "a damaged archive": ([TINY, "--data_file={data}/noise.npz"], ["noise.npz"]),
    "another format": ([TINY, "--data_file={data}/table.txt"], ["table.txt", ".npy, .npz, .csv, .parquet"]),
    "no such file": ([TINY, "--data_file={data}/absent.npy"], ["absent.npy", "does not exist"]),
    "shape of a set": ([TINY, "--set=data.event_shape=(14,14)"], ["(14, 14)", "(28, 28)"]),
    "shape of a file": (
        [TINY, "--data_file={data}/binary.npy", "--set=data.event_shape=(3,5)"],
        ["(3, 5)", "(12,)"],
    ),
    # models
    "latents not divisible": ([TINY, "--set=model.num_nodes=5"], ["num_latents=12, num_nodes=5"]),
    "a cycle": ([TINY, ADJACENCY + "((0,1,0),(1,0,0),(0,0,0))"], ["adjacency"]),
    "a loop": ([TINY, ADJACENCY + "((1,0,0),(0,0,0),(0,0,0))"], ["adjacency"]),
    "an adjacency of another size": ([TINY, ADJACENCY + "((0,0),(1,0))"], ["adjacency"]),
    "an adjacency that is no matrix": ([TINY, ADJACENCY + "((0,0,0),(1,0),(0,0,0))"], ["adjacency"]),
    "an adjacency of halves": ([TINY, ADJACENCY + "((0,0,0),(0.5,0,0),(0,0,0))"], ["adjacency"]),
    # devices
    "one device mirrored": ([TINY, "--strategy=mirrored"], ["at least two devices"]),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Exit status, standard output and error of every case, and the folder of their workdirs."""
    folder = tmp_path_factory.mktemp("bad")
    data, runs = folder / "data", folder / "runs"
    data.mkdir()
    runs.mkdir()
    write_files(data)
    arguments = {
        name: [
            *(argument.replace("{data}", str(data)) for argument in given),
            f"--workdir={runs / name.replace(' ', '_')}",
            "--set=training.steps=1",
        ]
        for name, (given, _) in CASES.items()
    }
    busy = runs / "busy"
    arguments["busy"] = [TINY, f"--workdir={busy}", f"--data_file={data / 'binary.npy'}"]
    (folder / "taken").write_text("a file")
    arguments["below a file"] = [TINY, f"--workdir={folder / 'taken/run'}", f"--data_file={data / 'binary.npy'}"]
    arguments["no workdir"] = [TINY]
    with WorkdirLock(busy):
        results = tiny.call_program("train", arguments)
        files = sorted(path.name for path in busy.iterdir())
    assert files == ["train.holder", "train.lock"]
    return results, runs


def assert_one_clear_line(result, parts):
    code, _, error = result
    assert code == 1, result
    assert error.startswith("tfstruct-train: "), error
    assert "Traceback" not in error
    for part in parts:
        assert part in error, error
    # A command that prepares data, or a list of differences, may follow the line.
    assert len(error.strip().splitlines()) == 1, error


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_clear_line_with_status_1_and_leaves_no_workdir(results, case):
    found, runs = results
    assert_one_clear_line(found[case], CASES[case][1])
    assert not (runs / case.replace(" ", "_")).exists()


def test_a_workdir_in_use_is_refused_with_its_holder(results):
    assert_one_clear_line(results[0]["busy"], ["in use by process", str(os.getpid())])


def test_a_workdir_below_a_file_is_refused(results):
    assert_one_clear_line(results[0]["below a file"], ["taken"])


def test_a_missing_workdir_is_asked_for(results):
    assert_one_clear_line(results[0]["no workdir"], ["--workdir"])


def test_the_console_script_ends_the_same_way(tmp_path):
    done = tiny.run_program("train", "--preset=graph_vea/tiny", f"--workdir={tmp_path / 'run'}")
    assert_one_clear_line((done.returncode, done.stdout, done.stderr), ["did you mean graph_vae/tiny"])
    assert not (tmp_path / "run").exists()


OUT_OF_MEMORY = """
import sys, warnings
import tensorflow as tf
from tfstruct.trainers import entry

def main():
    warnings.warn("a checkpoint was passed over", RuntimeWarning)
    raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating a tensor\\nand where")

sys.argv = ["tfstruct-train"]
try:
    entry.run(main)
except SystemExit as end:
    print(end.code)
"""


def test_warnings_and_a_lack_of_memory_are_a_line_each():
    done = tiny.run_python(OUT_OF_MEMORY)
    assert done.stdout.strip() == "1"
    assert done.stderr.strip().splitlines()[-2:] == [
        "tfstruct-train: warning: a checkpoint was passed over",
        "tfstruct-train: out of memory: OOM when allocating a tensor",
    ]

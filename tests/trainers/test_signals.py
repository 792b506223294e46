"""Programs that are told to end: with the status that says so, and nothing half written."""

import signal
import subprocess
import time

import numpy as np
import pytest

from tests.trainers import tiny
from tfstruct.training import run as training


def started(name, *arguments):
    command = [str(tiny.PROGRAMS / f"tfstruct-{name}"), *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=tiny.ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so does all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition, process, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_export_that_is_told_to_end_leaves_nothing(number, code, tmp_path):
    file = tiny.write_rows(tmp_path / "rows.npz", event_shape=(4,))
    training.train(tiny.file_config(file), tmp_path / "run")
    process = started("export", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'models/1'}")
    wait_for(lambda: list(tmp_path.glob("models/.1-*")), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert list((tmp_path / "models").iterdir()) == []
    assert number == signal.SIGTERM or errors.strip() == "tfstruct-export: interrupted"


def test_scoring_that_is_interrupted_keeps_its_shards_and_says_so_in_a_line(tmp_path):
    np.save(tmp_path / "rows.npy", (np.random.default_rng(0).random([3000, 28, 28]) < 0.2).astype(np.uint8))
    output = tmp_path / "scores.npz"
    process = started(
        "score", "--model=graph_vae/mnist", f"--input={tmp_path / 'rows.npy'}", f"--output={output}", "--shard_rows=20"
    )
    wait_for(lambda: list(tmp_path.glob("scores.npz.shards/*.npz")), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "tfstruct-score: interrupted"
    assert "Traceback" not in errors
    assert not output.exists()
    left = sorted(path.name for path in (tmp_path / "scores.npz.shards").iterdir())
    assert left[0] == "000000.npz"
    assert left[-1] == "job.json"


def test_the_first_ctrl_c_of_a_training_says_that_it_stops_after_this_call_and_the_log_that_it_compiles(tmp_path):
    file = tiny.write_rows(tmp_path / "rows.npz", event_shape=(4,))
    process = started(
        "train", "--preset=graph_vae/tiny", f"--data_file={file}", f"--workdir={tmp_path / 'run'}",
        "--set=training.compiler=graph", "--set=training.steps=10000000",
    )  # fmt: skip
    wait_for(
        lambda: (tmp_path / "run/metrics.jsonl").exists() and (tmp_path / "run/metrics.jsonl").read_text(), process
    )
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.strip() == "stopping after this call, and saving; Ctrl-C again ends at once, without saving"
    assert printed.splitlines()[0] == "compiling, once"
    assert "stopped by a signal" in printed.splitlines()[-1]

"""What TensorFlow writes at its start is held back, and nothing else."""

import os
import subprocess
import sys

import pytest

from tests.trainers import tiny
from tfstruct import quiet

NOISE = b"I0000 00:00:1795399458.081701   28895 port.cc:153] oneDNN custom operations are on.\n"
NO_GPU = b"E0000 00:00:1795399467.191642   28897 cuda_platform.cc:52] failed call to cuInit: UNKNOWN ERROR (303)\n"
FAULT = b"E0000 00:00:1795399467.191642   28897 file.cc:52] a fault\n"


def run(script, **environment):
    kept = {name: value for name, value in tiny.ENVIRONMENT.items() if name != quiet.LOG_LEVEL}
    return subprocess.run(
        [sys.executable, "-c", script], env=kept | environment, capture_output=True, text=True, timeout=120, check=True
    )


SCRIPT = "import os, tfstruct; tfstruct.load; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"


def test_the_first_use_of_tensorflow_is_quiet_and_leaves_errors_to_be_logged():
    done = run(SCRIPT)
    assert done.stderr == ""
    assert done.stdout == "2\n"


def test_a_level_that_was_set_stays_and_0_shows_everything():
    done = run(
        "import os, tfstruct; tfstruct.load; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])", TF_CPP_MIN_LOG_LEVEL="0"
    )
    assert done.stdout == "0\n"
    assert "oneDNN" in done.stderr


def write(*lines):
    for line in lines:
        os.write(2, line)


def test_only_noise_is_held_back(capfd, monkeypatch):
    monkeypatch.setattr(quiet.os.path, "exists", lambda path: False)
    with quiet.without_noise():
        write(NOISE, FAULT, NO_GPU, b"of another thread\n")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == (FAULT + b"of another thread\n").decode()


def test_a_gpu_that_does_not_start_is_no_noise(monkeypatch):
    monkeypatch.setattr(quiet.os.path, "exists", lambda path: path == "/dev/nvidia0")
    assert not quiet.is_noise(NO_GPU)
    assert quiet.is_noise(NOISE)


def test_everything_is_shown_when_the_import_fails(capfd):
    @quiet.without_noise()
    def fail():
        write(NOISE)
        raise ImportError("no such library")

    with pytest.raises(ImportError, match="no such"):
        fail()
    assert capfd.readouterr().err == NOISE.decode()

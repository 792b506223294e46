"""Small systems, data files and programs that the tests of training, evaluation and export share."""

import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf

from tfstruct.models import presets
from tfstruct.settings import read_overrides

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(sys.executable).parent
# One thread a pool: the machine has few cores, and sums come out in one order.
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1", "MPLBACKEND": "agg"}

VAE_PRESET = "vae/tiny"
# A network of a few hundred weights that runs without XLA, whose compilation would take most of the time.
SMALL = (
    "model.num_latents=6",
    "model.num_nodes=3",
    "model.encoder_units=(8,)",
    "model.feature_units=6",
    "model.bottom_up_units=6",
    "model.top_down_units=6",
    "model.decoder_units=(8,)",
    "training.compiler=graph",
    "training.batch_size=8",
    "training.steps=20",
    "training.steps_per_call=10",
    "training.validate_every=20",
    "training.validation_images=20",
    "training.validation_samples=3",
    "evaluation.images=0",
    "evaluation.num_samples=7",
    "evaluation.batch_size=16",
    "evaluation.chunk=3",
    "export.num_samples=7",
    "export.chunk=3",
)


def config(*overrides, preset="graph_vae/tiny", event_shape=(12,)):
    """A small config for rows of a shape, without a data set."""
    return changed(preset, [*SMALL, *overrides], event_shape=event_shape)


def changed(preset, overrides=(), event_shape=None, **model):
    """A preset's config with settings of its model changed too, all at once: they may go together only so."""
    config = presets.get(preset)
    changes = {f"model.{name}": value for name, value in model.items()}
    if event_shape is not None:
        changes["data.event_shape"] = event_shape
    return config.replace(changes | read_overrides(config, overrides))


def file_config(file, *overrides, preset="graph_vae/tiny"):
    """A small config for a data file."""
    chosen = ["data.name=file", f"data.file={str(file)!r}", "data.variant=none"]
    return presets.get(preset, [*SMALL, *chosen, *overrides])


def vae_config(file, *overrides):
    """A small plain VAE for a data file: it has fewer operations, hence the shortest trace."""
    return file_config(file, "optimizer.learning_rate=0.02", *overrides, preset=VAE_PRESET)


def binary_rows(rng, num, event_shape):
    """Rows of zeros and ones with structure: noisy copies of four patterns."""
    patterns = rng.integers(0, 2, size=[4, *event_shape])
    flips = rng.random([num, *event_shape]) < 0.1
    return (patterns[rng.integers(0, 4, size=num)] ^ flips).astype(np.uint8)


def write_rows(path, event_shape=(12,), num=200, seed=17):
    """Writes a data file of binary rows in three splits."""
    rows = binary_rows(np.random.default_rng(seed), num + 80, event_shape)
    np.savez(path, train=rows[:num], validation=rows[num : num + 40], test=rows[num + 40 :])
    return path


def record_header(length):
    """The first twelve bytes of a TFRecord that says how long it is, with a right checksum of that."""
    with tempfile.TemporaryDirectory() as folder:
        with tf.io.TFRecordWriter(f"{folder}/one") as writer:
            writer.write(struct.pack("<Q", length))
        crc = pathlib.Path(f"{folder}/one").read_bytes()[-4:]  # of the bytes of that record
    return struct.pack("<Q", length) + crc


def files_of(folder):
    """Paths of all files in a folder and its folders."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _command(name, *arguments):
    return [str(PROGRAMS / f"tfstruct-{name}"), *map(str, arguments)]


def start_program(name, *arguments, **environment):
    """Starts a console script with more in its environment; returns the running process."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(_command(name, *arguments), env=ENVIRONMENT | environment, **pipes)


def run_program(name, *arguments, timeout=240, **options):
    """Runs a console script; returns the finished process with its texts."""
    return subprocess.run(
        _command(name, *arguments),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def run_python(script, *arguments, timeout=240, **options):
    """Runs a script of its own in a fresh interpreter, outside the checkout; fails with its error output."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd="/",
        **options,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


# Importing TensorFlow takes longer than most calls, so one process makes them all. Each is a whole call of the program:
# flags, messages and exit status.
_DRIVER = """
import contextlib, importlib, io, json, sys
from absl import flags
from absl.testing import flagsaver
import tensorflow as tf

name, calls, eagerly = sys.argv[1:]
program = importlib.import_module(f"tfstruct.trainers.{name}")
tf.config.run_functions_eagerly(eagerly == "eagerly")
results = {}
for label, arguments in json.loads(calls).items():
    sys.argv = [f"tfstruct-{name}", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with contextlib.ExitStack() as stack:
                if flags.FLAGS.is_parsed():
                    stack.enter_context(flagsaver.flagsaver())
                flags.FLAGS.unparse_flags()
                for flag in flags.FLAGS.get_flags_for_module(program):
                    flag.unparse()
                program.run()
        except SystemExit as exit:
            code = exit.code or 0
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    results[label] = [code, out.getvalue(), err.getvalue()]
print("RESULTS" + json.dumps(results))
"""


def call_program(name, calls, *, eagerly=False):
    """Calls a program with each of several lists of arguments, by label; returns status, output and errors of each.

    Run eagerly nothing is compiled, which would take most of the time of small work.
    """
    done = run_python(_DRIVER, name, json.dumps(calls), "eagerly" if eagerly else "")
    return json.loads(done.stdout.partition("RESULTS")[2])

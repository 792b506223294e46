"""Servers of models in processes of their own, and small bundles for them."""

import contextlib
import json
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import tensorflow as tf

import tfstruct
from tests.reference import boltzmann_vae as small
from tests.trainers import tiny, tiny_circuit
from tfstruct import files
from tfstruct.models import registry
from tfstruct.serving.calibration import Rows, calibrate

#: iterations of the signature `slow`, a second or so
SLOW = 60_000


class Server:
    """A running `tfstruct-serve` on free ports of the loopback interface.

    Attributes:
        grpc: its address for gRPC.
        rest: the same for REST.
        models: folders of the bundles by the name of the model.
    """

    def __init__(self, *arguments, models=None):
        ports = ("--grpc_port=0", "--rest_port=0")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tfstruct.trainers.serve", *ports, *map(str, arguments)],
            env=tiny.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.models = dict(models or {})
        self.output = []
        lines = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(lines,), daemon=True)
        self._reader.start()
        while True:
            line = lines.get(timeout=180)
            if line is None:
                raise RuntimeError("the server did not start: " + "".join(self.output)[-3000:])
            if found := re.search(r"gRPC at (\S+), REST at http://(\S+)", line):
                self.grpc, self.rest = found.groups()
                return

    def _read(self, lines):
        for line in self.process.stdout:
            self.output.append(line)
            lines.put(line)
        lines.put(None)

    def said(self, text, seconds=60):
        """Waits until the server has written a text."""
        wait_for(lambda: text in "".join(self.output), seconds)

    def end(self, number=signal.SIGTERM):
        """Ends it; returns its exit status."""
        self.process.send_signal(number)
        status = self.process.wait(60)
        self._reader.join(10)
        self.process.stdout.close()
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.end()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def wait_for(condition, seconds=60):
    """Waits until something holds; fails where it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def export_all(folder, names=("vae", "spvae", "halves", "calibrated")):
    """Exports a plain VAE, a sum-product VAE, a conditional Boltzmann VAE, and a VAE of images that is calibrated.

    Returns:
        Their bundles by name.
    """
    circuit = tiny_circuit.write_levels(folder / "rows.npz")  # only named, not read
    configs = {
        "vae": tiny.config(preset="vae/tiny"),
        "spvae": tiny_circuit.config(circuit).replace({"data.event_shape": tiny_circuit.SHAPE}),
        "halves": small.config(*small.CONDITIONAL, event_shape=(2, 2), posterior="directed"),
    }
    bundles = {}
    configs["calibrated"] = configs["vae"].replace({"data.event_shape": (3, 4), "data.variant": "none"})
    for name in names:
        system = registry.build(configs[name], seed=1)
        rows = tiny.binary_rows(np.random.default_rng(0), 16, system.event_shape).astype(np.float32)
        if hasattr(system, "adapt"):
            system.adapt(rows)
        bundles[name] = tfstruct.export(system, folder / name / "1", rows, num_samples=5)
        if name == "calibrated":
            model = tfstruct.load(bundles[name])
            bundles[name] = calibrate(model, folder / name / "2", Rows(rows))
    return bundles


def copy_version(folder, number):
    """Publishes a copy of a version under another number, at once, as whoever publishes should."""
    aside = folder.parent / f".{number}"
    shutil.copytree(folder, aside)
    return aside.rename(folder.parent / str(number))


def export_odd(folder, like):
    """Writes a bundle with signatures that no system has: texts in and out, one that fails, one that takes a second.

    Args:
        folder: of the version.
        like: a bundle, whose card it takes.
    """
    module = tf.Module()
    module.offset = tf.Variable(1.0)

    def texts(image_bytes):
        return {"is_abc": tf.equal(image_bytes, b"abc"), "same_bytes": tf.identity(image_bytes)}

    def picky(x):
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(x >= 0.0), ["x is negative"])]):
            return {"y": x + module.offset}

    def slow(x):
        end = tf.while_loop(lambda step, _: step < SLOW, lambda step, y: (step + 1, tf.sin(y)), [0, x])
        return {"y": end[1]}

    x = tf.TensorSpec([None, 2], tf.float32, name="x")
    specs = {
        "texts": (texts, tf.TensorSpec([None], tf.string, name="image_bytes")),
        "picky": (picky, x),
        "slow": (slow, x),
    }
    specs["serving_default"] = specs["picky"]
    functions = {
        name: tf.function(function, input_signature=[spec], autograph=False).get_concrete_function()
        for name, (function, spec) in specs.items()
    }
    tf.saved_model.save(module, str(folder), signatures=functions)
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    (folder / "assets").rmdir()
    card = json.loads((like / "card.json").read_text()) | {"warmup_records": 0}
    card["signatures"] = {
        name: {
            "inputs": _specs({specs[name][1].name: specs[name][1]}),
            "outputs": _specs(function.structured_outputs),
        }
        for name, function in functions.items()
    }
    (folder / "card.json").write_text(json.dumps(card))
    files.write_checksums(folder)
    return folder


def _specs(specs):
    return {
        name: {"dtype": spec.dtype.name, "shape": [-1 if size is None else size for size in spec.shape]}
        for name, spec in specs.items()
    }

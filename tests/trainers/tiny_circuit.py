"""Small sum-product VAEs and data files that the tests of serving, evaluation and programs share."""

import numpy as np

from tests.trainers import tiny
from tfstruct.evaluation import report
from tfstruct.models import presets
from tfstruct.training import run as training

SHAPE = (2, 6)  # three tiles of 2 x 2, six rectangles, two levels of sums
SETTINGS = (
    "data.name=file",
    "data.variant=none",
    "model.delta=2",
    "model.num_latents=2",
    "model.hidden_units=(4,)",
    "training.compiler=graph",
    "training.steps=10",
    "training.steps_per_call=10",
    "training.validate_every=10",
    "training.validation_images=20",
    "training.validation_samples=1",
    "training.batch_size=8",
    "evaluation.images=0",
    "export.num_samples=7",  # not a multiple of the chunk
    "export.chunk=3",
)


def write_levels(path, event_shape=SHAPE, num=60, seed=17):
    """Writes a data file of grey levels in three splits."""
    rng = np.random.default_rng(seed)
    rows = tiny.binary_rows(rng, num + 80, event_shape) * 200 + rng.integers(0, 56, size=[num + 80, *event_shape])
    rows = rows.astype(np.uint8)
    np.savez(path, train=rows[:num], validation=rows[num : num + 40], test=rows[num + 40 :])
    return path


def config(file, *overrides, preset="spvae/tiny"):
    """A small config for a data file."""
    return presets.get(preset, [*SETTINGS, f"data.file={str(file)!r}", *overrides])


def train(file, folder, *overrides, preset="spvae/tiny"):
    """Trains a small system; returns the run."""
    training.train(config(file, *overrides, preset=preset), folder, strategy="none")
    return report.TrainedRun(str(folder))

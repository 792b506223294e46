"""Bits per dimension of dequantised levels: those of the levels, in evaluations as in bundles."""

import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tfstruct.data import datasets
from tfstruct.evaluation import report
from tfstruct.serving.signatures import ServedSystem
from tfstruct.training import run as training


# A density of values (x + u) / 256 in (0, 1) is 256 times as large per dimension as a probability of levels: without
# the correction 8 bits are missing.
def test_dequantised_levels_have_the_bits_of_their_cells(rng, tmp_path):
    rows = {name: rng.integers(0, 256, size=[num, 12]) for name, num in (("train", 40), ("validation", 8), ("test", 8))}
    np.savez(tmp_path / "levels.npz", **{name: values.astype(np.uint8) for name, values in rows.items()})
    changes = ["data.variant=dequantized", "model.likelihood=gaussian", "training.steps=2", "training.validate_every=2"]
    config = tiny.file_config(tmp_path / "levels.npz", *changes, preset=tiny.VAE_PRESET)
    training.train(config, tmp_path / "run")
    run = report.TrainedRun(str(tmp_path / "run"))
    (replica,) = report.evaluate(run)["replicas"]
    assert replica["bits_per_dim"] == pytest.approx(8.0 - replica["log_likelihood"] / (12 * np.log(2.0)), rel=1e-9)
    options = {"num_samples": 2, "chunk": 2, "bits_per_dim_offset": run.data.bits_per_dim_offset}
    served = ServedSystem(run.use(0), **options)
    found = served.log_prob(tf.constant(run.data.test), tf.range(8, dtype=tf.int64))
    np.testing.assert_allclose(found["bits_per_dim"], 8.0 - found["log_prob"] / (12 * np.log(2.0)), rtol=1e-5)
    # Grey levels, which --allow_other_variant scores, reach 1.0 and have no bits to compare.
    grey = datasets.load("file", "grey", data_file=tmp_path / "levels.npz")
    result = report.evaluate(run, data=grey)
    assert result["baselines"] is None
    assert result["replicas"][0]["bits_per_dim"] is None
    assert not any("worse than no model" in flag for flag in result["flags"])

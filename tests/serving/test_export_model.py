"""Models at hand as bundles, and runs as models."""

import numpy as np
import pytest
import tensorflow as tf

import tfstruct
from tests.trainers import tiny
from tfstruct import random
from tfstruct.evaluation import report
from tfstruct.models import registry


def test_a_model_at_hand_is_exported_and_scores_as_it_does(tmp_path):
    system = registry.build(tiny.config(), seed=1)
    system.compile(run_eagerly=True)
    rows = tiny.binary_rows(np.random.default_rng(0), 16, (12,)).astype(np.float32)
    system.fit(rows, batch_size=8, verbose=0)
    with pytest.raises(ValueError, match=r"rows must have shape \[n, \*\(12,\)\] with n > 0, found \[3, 5\]"):
        tfstruct.export(system, tmp_path / "bad/1", rows[:3, :5])
    with pytest.raises(ValueError, match="the rows of the bundle.*found 0.5"):
        tfstruct.export(system, tmp_path / "bad/1", 0.5 * rows)
    assert not (tmp_path / "bad").exists()
    output = tfstruct.export(system, tmp_path / "model/1", rows, num_samples=5)
    loaded = tfstruct.load(output)
    seeds = np.arange(4, dtype=np.int64)
    keys = random.fold_in(random.fold_in(random.row_keys(seeds), random.SERVING), 1)
    expected = system.estimate(tf.constant(rows[:4]), keys, num_samples=5, chunk=3).log_prob
    np.testing.assert_allclose(loaded.log_prob(rows[:4], seed=seeds)["log_prob"], expected, atol=1e-4)
    assert loaded.card["data"]["checksum"] is loaded.card["metrics"] is None
    assert loaded.card["preset"] == "graph_vae/tiny"


def test_a_run_gives_its_trained_model_without_its_data(trained, monkeypatch):
    monkeypatch.setattr(report, "load_data", lambda *_: pytest.fail("the data were read"))
    found, expected = tfstruct.load_run(trained.folder.path, replica=1), trained.use(1)
    assert found is not expected
    for one, two in zip(found.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(one, two)

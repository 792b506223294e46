"""Models at hand as bundles, and runs as models."""

import numpy as np
import pytest
import tensorflow as tf

import tfstruct
from tests.trainers import tiny
from tfstruct import random
from tfstruct.evaluation import report
from tfstruct.models import presets, registry
from tfstruct.serving.signatures import ServedSystem


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


def test_eight_bits_of_the_posterior_go_through_a_bundle_and_what_they_change_is_on_the_card(tmp_path):
    changes = {"data.event_shape": (70,), "model.encoder_units": (80,), "model.decoder_units": (80,)}
    system = registry.build(presets.get("vae/tiny").replace(changes), seed=1)
    rows = tiny.binary_rows(np.random.default_rng(0), 60, (70,)).astype(np.float32)
    own = {variable.path.replace("/", ".") for variable in system.needs.posterior}
    loaded = {}
    for dtype in ("float32", "int8", "int8_posterior"):
        served = ServedSystem(system, num_samples=5, chunk=5, bits_per_dim_offset=None, weights_dtype=dtype)
        eight = {weight.values.name.partition(":")[0] for weight in served.weights if weight.values.dtype == tf.int8}
        assert bool(eight - own) == (dtype == "int8")  # the decoder's are among them or not
        assert bool(eight & own) == (dtype != "float32")
        output = tfstruct.export(system, tmp_path / dtype / "1", rows, num_samples=5, weights_dtype=dtype)
        loaded[dtype] = tfstruct.load(output)
    seeds = np.arange(60)
    scores = {dtype: model.log_prob(rows, seed=seeds, batch_size=50)["log_prob"] for dtype, model in loaded.items()}
    for dtype in ("int8", "int8_posterior"):
        change, rounding = scores[dtype] - scores["float32"], loaded[dtype].card["rounding"]
        assert np.abs(change).max() > 1e-4
        assert rounding["log_prob_change"] == pytest.approx(change.mean(), abs=1e-4)
        assert rounding["std_err"] == pytest.approx(change.std(ddof=1) / 60**0.5, rel=0.02)
    with pytest.raises(ValueError, match="seed must be an integer, or integers"):
        loaded["int8"].query("sample", seed=3)
    with pytest.raises(ValueError, match="seed must be an integer, or integers"):
        loaded["int8"].query("log_prob", x=rows, seed=None)

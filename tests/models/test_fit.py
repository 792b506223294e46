"""Keras `fit` and `evaluate`: real-valued observations of a Graph VAE, and rows of another shape."""

import keras
import numpy as np
import pytest

from tests.reference import small
from tfstruct.models import presets, registry


def _gaussian(variant):
    config = small.config("full", [f"data.variant={variant}"], likelihood="gaussian")
    system = registry.build(config, seed=17)
    system.compile(run_eagerly=True)
    return system


def _rows(rng):
    return rng.integers(0, 256, size=[64, 2, 2]).astype(np.uint8)


# Fit reads uint8 rows as levels 0..255 of a density on (0, 1); evaluate must not read them as values up to 255.
def test_evaluate_reads_integer_rows_as_fit_does(rng):
    system, rows = _gaussian("dequantized"), _rows(rng)
    trained = system.fit(rows, batch_size=64, verbose=0).history["bound"][0]
    stored = system.evaluate(rows, batch_size=64, verbose=0, return_dict=True)["bound"]
    final = system.evaluate(((rows + 0.5) / 256).astype(np.float32), batch_size=64, verbose=0, return_dict=True)
    assert np.isfinite(trained)
    assert np.isfinite(final["bound"])
    assert stored == pytest.approx(final["bound"], abs=0.5)


def test_fit_takes_grey_values_where_the_likelihood_is_real_valued(rng):
    rows = (_rows(rng) / np.float32(255)).astype(np.float32)
    history = _gaussian("grey").fit(rows, batch_size=64, verbose=0).history
    assert np.isfinite(history["loss"][0])


def test_fit_reports_the_mean_over_the_epoch_and_not_the_last_batch(rng):
    system = registry.build(presets.get("graph_vae/tiny", ["model.batch_norm=False"]))
    system.compile(
        keras.optimizers.SGD(0.0), run_eagerly=True
    )  # weights stay: a batch's loss depends on its rows alone
    system.decoder.output_layer.bias.assign(np.full(784, -2.0))  # dark rows are likely, light ones are not
    dark, light = np.zeros([32, 28, 28], np.uint8), np.full([32, 28, 28], 255, np.uint8)
    losses = [system.fit(rows, batch_size=32, verbose=0).history["loss"][0] for rows in (dark, light)]
    rows = np.concatenate([dark, light])
    mean = system.fit(rows, batch_size=32, shuffle=False, verbose=0).history["loss"][0]
    assert losses[1] - losses[0] > 1000
    assert mean == pytest.approx(np.mean(losses), abs=10)


def test_rows_of_another_shape_are_refused():
    system = registry.build(presets.get("spvae/tiny"))
    system.compile(run_eagerly=True)
    rows = np.zeros([8, 784], np.float32)
    for method in (system.fit, system.evaluate):
        with pytest.raises(ValueError, match=r"must have shape \[n, \*\(28, 28\)\], found \[8, 784\]"):
            method(rows, verbose=0)

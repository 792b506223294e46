"""The Keras models behind bundles score as the bundles do."""

import json

import numpy as np
import pytest
import tensorflow as tf

import tfstruct
from tfstruct.files import write_checksums
from tfstruct.serving import bundle, client
from tfstruct.serving.contents import DamagedBundleError
from tfstruct.serving.signatures import ServedSystem


def served(model, num_samples):
    return ServedSystem(
        model,
        num_samples=num_samples,
        chunk=min(model.config.export.chunk, num_samples),
        terms_options=model.terms_options(model.config.export),
        bits_per_dim_offset=None,
    )


@pytest.mark.parametrize("name", ["graph_iaf_vae/mnist", "boltzmann_vae/mnist_structured", "spvae/mnist_discrete"])
def test_pretrained_models_score_as_their_golden_values_say(name):
    folder = client.find(name)
    golden = np.load(folder / "golden.npz")
    module = served(tfstruct.load_keras(name), json.loads((folder / "card.json").read_text())["num_samples"])
    score = tf.function(module.log_prob, autograph=False)
    found = score(tf.constant(golden["x"]), tf.constant(golden["seed"]))["log_prob"].numpy()
    np.testing.assert_allclose(found, golden["log_prob/log_prob"], rtol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8_posterior"])
def test_all_weights_are_those_that_the_bundle_has(trained, tmp_path, dtype):
    bundle.export(trained, tmp_path / "1", replica=1, num_samples=10, weights_dtype=dtype)
    found, expected = tfstruct.load_keras(tmp_path / "1"), trained.use(1)
    assert found.config == expected.config
    for mine, theirs in zip(found.variables, expected.variables, strict=True):
        tolerance = {"float32": 0.0, "float16": 2.0**-11, "int8_posterior": 0.01}[dtype]
        scale = np.abs(theirs.numpy()).max(initial=1e-7)
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), atol=tolerance * scale, rtol=0, err_msg=mine.path)


def test_a_model_trains_on_and_is_exported_again(folder, tmp_path):
    model = tfstruct.load_keras(folder)
    rows = np.random.default_rng(0).integers(0, 2, [64, 4]).astype(np.float32)
    model.compile("adam")
    before = model.evaluate(rows, verbose=0, return_dict=True)
    model.fit(rows, batch_size=32, epochs=30, verbose=0)
    after = model.evaluate(rows, verbose=0, return_dict=True)
    assert after["loss"] < before["loss"]
    bundle.export_model(model, tmp_path / "2", rows, num_samples=10)
    tfstruct.load(tmp_path / "2").log_prob(rows)


def test_a_background_is_not_taken_for_the_model(folder, tmp_path):
    """Those of calibrated bundles, calibrated once and twice, are the model's own weights."""
    from tfstruct.serving.calibration import Rows, calibrate

    rows = Rows(np.random.default_rng(0).integers(0, 2, [16, 4]).astype(np.float32))
    once = calibrate(client.load(folder), tmp_path / "1", rows, background=client.load(folder))
    twice = calibrate(client.load(once), tmp_path / "2", rows)
    for path in (once, twice):
        found, expected = tfstruct.load_keras(path).get_weights(), tfstruct.load_keras(folder).get_weights()
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_weights_of_another_layout_and_damaged_files_are_refused(copy):
    def change(**settings):
        card = json.loads((copy / "card.json").read_text())
        card["config"]["model"] |= settings
        (copy / "card.json").write_text(json.dumps(card))

    change(num_nodes=2)
    with pytest.raises(DamagedBundleError, match=r"card\.json"):
        tfstruct.load_keras(copy)
    write_checksums(copy)
    with pytest.raises(ValueError, match=r"weights, expected \d+: another version"):
        tfstruct.load_keras(copy)
    change(num_nodes=3, num_latents=9)
    write_checksums(copy)
    with pytest.raises(ValueError, match=r"has shape .*, expected .*: another version"):
        tfstruct.load_keras(copy)

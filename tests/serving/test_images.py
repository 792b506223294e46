"""Encoded images as inputs: decoded, resized and scaled in the graph as the rows that a model was trained on."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.trainers import tiny
from tfstruct.data import variants
from tfstruct.evaluation import report
from tfstruct.models import presets
from tfstruct.serving import bundle, calibration, client, warmup
from tfstruct.serving.images import ImageInput
from tfstruct.training import run as training

SEEDS = np.arange(6, dtype=np.int64)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, [6, 5, 4], np.uint8)


def decoded(event_shape, support, variant, files):
    spec = ImageInput.of(event_shape, support, variant)
    files = np.array(files, object)
    return tf.function(spec.decode, autograph=False)(tf.constant(files), tf.constant(SEEDS[: len(files)])).numpy()


@pytest.mark.parametrize(
    ("support", "variant"),
    [
        ("integers_0_255", "levels"),
        ("integers_0_255", "discrete"),
        ("integers_0_255", "none"),
        ("binary", "thresholded"),
        ("unit_interval", "grey"),
    ],
)
def test_images_become_what_the_variant_makes_of_their_pixels(images, support, variant):
    found = decoded((5, 4), support, variant, [png(image) for image in images])
    as_variant = "levels" if variant == "none" else variant
    expected = variants.render(as_variant, dict.fromkeys(variants.SPLITS, images)).splits["test"]
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=1e-6)


def test_dynamic_images_are_drawn_by_the_seed_of_their_row():
    image = np.full([1, 20, 20], 64, np.uint8)
    found = decoded((20, 20), "binary", "dynamic", [png(image[0])] * 6)
    assert set(np.unique(found)) == {0.0, 1.0}
    # 2,400 pixels, each 1 with probability 64 / 255.
    assert abs(found.mean() - 64 / 255) < 4.5 * np.sqrt(0.251 * 0.749 / found.size)
    assert all((found[0] != other).any() for other in found[1:])
    again = decoded((20, 20), "binary", "dynamic", [png(image[0])] * 3)
    np.testing.assert_array_equal(again, found[:3])
    extremes = decoded((2, 2), "binary", "static", [png(np.array([[0, 255], [255, 0]], np.uint8))])
    np.testing.assert_array_equal(extremes[0], [[0.0, 1.0], [1.0, 0.0]])


def test_images_of_any_size_and_colour_are_averaged_over_areas(rng):
    large = rng.integers(0, 256, [10, 8], np.uint8)
    found = decoded((5, 4), "integers_0_255", "levels", [png(large)])
    expected = large.reshape(5, 2, 4, 2).mean(axis=(1, 3))
    assert np.abs(found[0] - expected).max() <= 0.5 + 1e-4
    colour = np.repeat(large[..., np.newaxis], 3, axis=2)
    np.testing.assert_array_equal(decoded((5, 4), "integers_0_255", "levels", [png(colour)]), found)
    np.testing.assert_array_equal(
        decoded((5, 4, 3), "integers_0_255", "levels", [png(colour)])[0],
        np.repeat(found[0][..., np.newaxis], 3, axis=2),
    )


def test_jpeg_images_are_read_too():
    file = io.BytesIO()
    Image.fromarray(np.full([5, 4], 200, np.uint8)).save(file, "JPEG", quality=95)
    found = decoded((5, 4), "integers_0_255", "levels", [file.getvalue()])
    assert np.abs(found - 200).max() <= 3


@pytest.mark.parametrize(
    ("shape", "support", "variant"),
    [((12,), "binary", "none"), ((5, 4, 2), "binary", "dynamic"), ((5, 4), "real", "none"),
     ((5, 4), "unit_interval", "dequantized"), ((5, 4), "unit_interval", "continuous")],
)  # fmt: skip
def test_rows_that_are_no_images_or_have_noise_added_have_no_image_input(shape, support, variant):
    assert ImageInput.of(shape, support, variant) is None


def test_examples_are_images_of_the_rows(images):
    for rows in (images, images >= 128, images[..., np.newaxis]):
        scale = 255 if rows.dtype == bool else 1
        for row, file in zip(rows, warmup.encoded_images(rows.astype(np.float32)), strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), row.squeeze() * np.uint8(scale))


# Bundles --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(3)
    np.savez(folder / "rows.npz", generator.integers(0, 2, [200, 4, 4], np.uint8))
    small = ["data.name=file", f"data.file={folder / 'rows.npz'}", "data.variant=none", *tiny.SMALL]
    training.train(presets.get("graph_vae/tiny", small), folder / "run")
    return client.load(bundle.export(report.TrainedRun(folder / "run"), folder / "model/1", num_samples=5))


def test_a_bundle_scores_encoded_images_as_their_pixels(model):
    x = np.random.default_rng(0).integers(0, 2, [7, 4, 4])
    files = [png((image * 255).astype(np.uint8)) for image in x]
    assert model.card["image"] == {
        "size": [4, 4], "channels": 1, "resize": "area", "values": "1 from half intensity on"
    }  # fmt: skip
    expected, found = model.log_prob(x, seed=3), model.image_log_prob(files, seed=3, batch_size=4)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [([], "found list"), (b"one", "found bytes"), ("name.png", "found str"), (["a", b"b"], "found list of str")],
)
def test_what_is_no_list_of_files_is_refused(model, images, message):
    with pytest.raises(ValueError, match=f"a list of the bytes of PNG or JPEG files, {message}"):
        model.image_log_prob(images)


def test_bytes_that_are_no_image_are_an_error_of_the_request(model):
    with pytest.raises(ValueError, match="PNG or JPEG files, found one at place 1 that begins b'no image'"):
        model.image_log_prob([png(np.zeros([5, 4], np.uint8)), b"no image at all"])
    with pytest.raises(tf.errors.InvalidArgumentError):  # one that is cut off
        model.image_log_prob([png(np.zeros([5, 4], np.uint8))[:40]])


def test_a_calibrated_bundle_judges_encoded_images_as_their_pixels(model, tmp_path):
    x = np.random.default_rng(0).integers(0, 2, [30, 4, 4])
    rows = calibration.Rows(x.astype(np.float32), "rows", "none", "validation", "0" * 64)
    calibrated = client.load(calibration.calibrate(model, tmp_path / "model/2", rows))
    files = [png((image * 255).astype(np.uint8)) for image in x[:7]]
    expected, found = calibrated.anomaly(x[:7], alpha=0.3, seed=3), calibrated.image_anomaly(files, alpha=0.3, seed=3)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert len(np.unique(found["p_value"])) > 1

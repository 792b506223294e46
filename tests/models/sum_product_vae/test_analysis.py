"""Latent maps, completions and misplaced regions of models whose leaves are known."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tests.trainers import tiny_circuit
from tfstruct.models import registry
from tfstruct.models.sum_product_vae import analysis

SHAPE, TILES = (2, 8), 4  # tiles of 2 x 2


@pytest.fixture(autouse=True)
def eagerly():
    """Without compiling, which would take most of the time."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def build(*overrides, event_shape=SHAPE, delta=None, **options):
    changes = {"data.event_shape": event_shape} | ({} if delta is None else {"model.delta": delta})
    return registry.build(tiny_circuit.config("none", *overrides, **options).replace(changes), seed=3)


def known(logits, *overrides):
    """A model of two images that every region agrees on: p(x) = mean over k of prod over pixels of p(x_d | logits[k]).

    Leaf k of a region goes with leaf k of every other one, pixels do not depend on latents, and q(z | x) is the prior:
    every importance weight is exact.
    """
    model = build(*overrides)
    for variable in model.encoder.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    for layer in model.decoder.trainable_variables:
        layer.assign(np.zeros(layer.shape))
    places = model.scopes.variables
    bias = model.decoder.trainable_variables[-1]
    bias.assign(np.reshape(logits, [2, -1])[:, places].transpose(1, 0, 2).reshape(bias.shape))
    layout = model.sum_product.layout
    kinds, weights = np.arange(layout.num_leaf_nodes) % 2, np.full(layout.num_weights, -300.0)
    for level in layout.levels:
        num_regions, num_sums, _ = level.weight_places.shape
        child_kinds = kinds[level.children]
        for kind in range(2):
            agree = (child_kinds == kind).all(axis=0)
            of_sum = level.weight_places[:, min(kind, num_sums - 1)]
            weights[of_sum[agree & (of_sum >= 0)]] = 0.0
        kinds = np.concatenate([kinds, np.tile(np.arange(num_sums), num_regions)])
    model.sum_product.logits.assign(weights)
    return model


def exact(logits, x, observed=True, top=1):
    """log p(x_observed) of `known`, [n]; of grey levels for 0 and 255 alone, whose binomial coefficient is 1."""
    pixels = x[:, np.newaxis] * logits - top * np.logaddexp(0.0, logits)
    return special.logsumexp(np.sum(np.where(observed, pixels, 0.0), axis=(2, 3)), axis=1) - np.log(2.0)


# Latent maps ---------------------------------------------------------------------------------------------------------


def pixel_logits(leaf, z, pixel):
    """Different for every leaf, latent and pixel."""
    return 0.1 * leaf + np.sin(z[..., 0] + 2.0 * z[..., 1] + 0.5 * pixel * (1.0 + 0.3 * leaf))


def with_known_decoder(model):
    def decode(z):
        leaves = np.arange(model.num_leaves)[:, np.newaxis, np.newaxis]
        pixels = np.arange(model.scopes.size)
        return [tf.constant(pixel_logits(leaves, z.numpy()[:, :, np.newaxis].astype(np.float64), pixels))]

    model.leaves.decode = decode
    return model


@pytest.mark.parametrize(
    ("event_shape", "delta", "likelihood"),
    [((2, 6), (1, 3), "bernoulli"), ((4, 2, 3), (2, 1), "binomial"), ((4, 4), 2, "binomial")],
)
def test_every_leaf_has_its_pictures_in_its_place(event_shape, delta, likelihood):
    model = with_known_decoder(build(f"model.likelihood={likelihood}", event_shape=event_shape, delta=delta))
    points = 3
    maps = analysis.latent_maps(model, np.zeros([1, *event_shape]), points=points)["maps"]
    height, width, channels = (*event_shape, 1)[:3]
    assert maps.shape == (2, height * points, width * points, *event_shape[2:])
    quantiles = special.ndtri([1 / 6, 1 / 2, 5 / 6])
    step = (delta, delta) if isinstance(delta, int) else delta
    expected = np.zeros([2, height * points, width * points, channels])
    for number, region in enumerate(model.leaf_regions):
        top, left = np.unravel_index(region[0] // channels, (height, width))
        for place, variable in enumerate(region):
            pixel, channel = divmod(variable, channels)
            row, column = pixel // width - top, pixel % width - left
            for down in range(points):
                for right in range(points):
                    z = np.array([quantiles[down], quantiles[right]])
                    for leaf in range(2):
                        y = top * points + down * step[0] + row
                        x = left * points + right * step[1] + column
                        value = special.expit(pixel_logits(2 * number + leaf, z, place))
                        expected[leaf, y, x, channel] = value
    np.testing.assert_allclose(maps.reshape(expected.shape), expected, rtol=1e-5)


def captured(model, means):
    """The latents that a map decodes, given the posterior means [n, L, Z] of validation images."""
    seen = []
    model.encode = lambda x: {"z_mean": tf.constant(means.reshape(len(x), -1), tf.float32)}
    decode = model.leaves.decode
    model.leaves.decode = lambda z: seen.append(z.numpy()) or decode(z)
    analysis.latent_maps(model, np.zeros([len(means), *SHAPE]), points=4)
    return seen[0]


def test_many_latents_are_mapped_along_the_two_principal_directions_of_posterior_means(rng):
    model = build("model.num_latents=3")
    num, leaves = 50, model.num_leaves
    spread = np.array([0.3, 2.0, 1.0])
    scores = np.linalg.qr(rng.normal(size=[leaves, num, 4]) - np.eye(4)[0])[0]
    scores -= scores.mean(axis=1, keepdims=True)
    scores = np.linalg.qr(scores)[0][:, :, :3] * np.sqrt(num) * spread
    rotation = np.linalg.qr(rng.normal(size=[leaves, 3, 3]))[0]
    centre = rng.normal(size=[leaves, 1, 3])
    z = captured(model, (centre + scores @ rotation).swapaxes(0, 1))
    along = (z - centre) @ rotation.swapaxes(1, 2)
    quantiles = special.ndtri((np.arange(4) + 0.5) / 4)
    down, right = np.repeat(quantiles, 4), np.tile(quantiles, 4)
    np.testing.assert_allclose(along[..., 0], 0.0, rtol=0, atol=1e-5)
    # A direction has no sign.
    for axis, wanted, deviation in ((1, down, 2.0), (2, right, 1.0)):
        sign = np.sign(along[:, -1:, axis])
        np.testing.assert_allclose(sign * along[..., axis], np.tile(deviation * wanted, [leaves, 1]), rtol=0, atol=1e-5)


def test_a_single_latent_is_mapped_downwards(rng):
    means = rng.normal(size=[30, 8, 1])
    z = captured(build("model.num_latents=1"), means)[..., 0].reshape(8, 4, 4)
    np.testing.assert_array_equal(z, z[:, :, :1].repeat(4, axis=2))
    found = np.sort(z[:, :, 0], axis=1)
    quantiles = special.ndtri((np.arange(4) + 0.5) / 4)
    np.testing.assert_allclose(found, means[..., 0].mean(0)[:, None] + means[..., 0].std(0)[:, None] * quantiles, 1e-4)


# Completions ---------------------------------------------------------------------------------------------------------


def test_masks_hide_what_they_are_named_after():
    masks = analysis._masks((4, 8), 0)
    assert list(masks) == ["right half", "lower half", "centre", "80 % of pixels"]
    rows, columns = np.indices((4, 8))
    np.testing.assert_array_equal(masks["right half"], columns < 4)
    np.testing.assert_array_equal(masks["lower half"], rows < 2)
    np.testing.assert_array_equal(~masks["centre"], (rows >= 1) & (rows < 3) & (columns >= 2) & (columns < 6))
    coloured = analysis._masks((40, 50, 3), 1)["80 % of pixels"]
    assert coloured.mean() == pytest.approx(0.2, abs=0.04)
    np.testing.assert_array_equal(coloured, coloured[..., :1].repeat(3, axis=2))
    assert (coloured != analysis._masks((40, 50, 3), 2)["80 % of pixels"]).any()


def test_scores_are_exact_where_importance_weights_are(rng):
    logits = rng.normal(scale=1.5, size=[2, *SHAPE])
    model = known(logits)
    fill = rng.random(model.dims)
    model.pixel_mean.assign(fill)
    test = rng.integers(0, 2, size=[70, *SHAPE]).astype(np.uint8)  # more than are computed at once
    options = {"images": 3, "scored": 60, "draws": 2, "num_samples": 21, "seed": 4}
    result = analysis.inpainting(model, test, **options)
    for name, mask in analysis._masks(SHAPE, 4).items():
        part, x = result[name], test[:60].astype(float)
        expected = exact(logits, x) - exact(logits, x, mask)
        assert part["log_prob"] == pytest.approx(expected.mean(), abs=1e-4)
        assert part["std_err"] == pytest.approx(expected.std(ddof=1) / np.sqrt(60), rel=1e-3)
        shown, missing = test[:3].astype(float), ~mask
        errors = [shown - part["mean"], shown - fill.reshape(SHAPE)]
        for key, error in zip(("root_mean_square", "of_mean_image"), errors, strict=True):
            assert part[key] == pytest.approx(np.sqrt(np.mean(error[:, missing] ** 2)), rel=1e-5)
        np.testing.assert_array_equal(part["original"], shown)
        np.testing.assert_array_equal(part["observed"], np.where(mask, shown, np.nan))
        assert part["completed"].shape == (2, 3, *SHAPE)
        np.testing.assert_array_equal(part["completed"][:, :, mask], np.stack([shown[:, mask]] * 2))
    drawn = np.stack([part["completed"] for part in result.values()])
    assert np.any(drawn[:, 0] != drawn[:, 1])  # draws differ
    again = analysis.inpainting(model, test, **options)
    np.testing.assert_array_equal(again["centre"]["completed"], result["centre"]["completed"])


def test_the_two_estimates_of_a_score_share_their_noise(rng, monkeypatch):
    keys = []

    def score(rows, observed, key):
        keys.append(key.numpy())
        return np.zeros(len(rows))

    monkeypatch.setattr(analysis, "scorer", lambda *_: score)
    test = rng.integers(0, 2, size=[4, *SHAPE]).astype(np.uint8)
    analysis.inpainting(build(), test, images=1, draws=1, num_samples=1)
    assert len(keys) == 5
    np.testing.assert_array_equal(keys, keys[:1] * 5)


def test_grey_levels_are_completed_by_what_is_observed_in_units_of_one():
    patterns = np.zeros([2, *SHAPE])
    patterns[0, :, ::2] = patterns[1, :, 1::2] = 255
    model = known(np.where(patterns > 0, 14.0, -14.0), "model.likelihood=binomial")
    test = patterns[[0, 1, 1, 0, 1]].astype(np.uint8)
    result = analysis.inpainting(model, test, images=5, scored=5, draws=2, num_samples=20)
    for part in result.values():
        np.testing.assert_array_equal(part["original"], test / 255.0)
        np.testing.assert_allclose(part["completed"], np.stack([test / 255.0] * 2), rtol=0, atol=2 / 255)
        np.testing.assert_allclose(part["mean"], test / 255.0, rtol=0, atol=1e-4)
        assert part["root_mean_square"] < 1e-4
        assert part["of_mean_image"] == pytest.approx(0.5)
        assert part["log_prob"] == pytest.approx(0.0, abs=0.01)


# Misplaced regions ---------------------------------------------------------------------------------------------------


@pytest.fixture
def swaps(rng):
    """Images whose first three tiles are all black or all white, and a last tile that is improbable in all of them."""
    logits = np.full([2, *SHAPE], 0.03)
    logits[0] = -0.03
    logits[..., 6:] = -0.1
    rows = 255 * rng.integers(0, 2, size=[60, 1, 1], dtype=np.uint8) * np.ones(SHAPE, np.uint8)
    rows[..., 6:] = 255
    model = known(logits, "model.likelihood=binomial")
    return logits, rows, analysis.misplaced_regions(model, rows, images=55, num_samples=20)


def regions_of(image):
    return [image[..., 2 * place : 2 * place + 2] for place in range(TILES)]


def test_the_region_of_another_image_fits_worst(swaps):
    _, _, found = swaps
    assert found["first"] == 1.0
    assert found["first_std_err"] == 0.0
    # The last tile is the least probable one of every image, and belongs there.
    assert found["first_by_conditional"] == 0.0
    assert found["chance"] == 0.25


def test_one_region_of_every_image_that_is_scored_is_that_of_another_image(swaps):
    _, rows, found = swaps
    num = len(found["region"])
    assert 10 < num < 55
    assert found["image"].shape == found["swapped"].shape == found["map"].shape == (num, *SHAPE)
    assert {0.0, 1.0} == set(np.unique(found["image"]))
    assert {image.tobytes() for image in (255 * found["image"]).astype(np.uint8)} <= {row.tobytes() for row in rows}
    for image, swapped, region in zip(found["image"], found["swapped"], found["region"], strict=True):
        changed = [np.any(a != b) for a, b in zip(regions_of(image), regions_of(swapped), strict=True)]
        np.testing.assert_array_equal(changed, np.arange(TILES) == region)
    assert set(found["region"]) == {0, 1, 2}


def test_the_map_and_the_information_are_those_of_exact_densities(swaps):
    logits, _, found = swaps

    def fits(images):
        x, result = 255 * images, np.zeros(images.shape)
        for place in range(TILES):
            inside = np.zeros(SHAPE, bool)
            inside[:, 2 * place : 2 * place + 2] = True
            fit = exact(logits, x, top=255) - sum(exact(logits, x, mask, top=255) for mask in (inside, ~inside))
            result[:, inside] = fit[:, np.newaxis]
        return result

    np.testing.assert_allclose(found["map"], -fits(found["swapped"]), rtol=0, atol=5e-3)
    expected = fits(found["image"]).mean()
    assert expected == pytest.approx(0.75 * np.log(2.0), abs=1e-4)  # three tiles that know one another, and one alone
    assert found["information"] == pytest.approx(expected, abs=1e-3)
    assert found["information_std_err"] < 1e-4


def test_information_is_what_regions_without_ties_do_not_have(rng):
    logits = np.tile(rng.normal(size=[1, *SHAPE]), [2, 1, 1])  # both leaves of a region are the same
    test = rng.integers(0, 2, size=[20, *SHAPE]).astype(np.uint8)
    found = analysis.misplaced_regions(known(logits), test, images=20, num_samples=20)
    assert found["information"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("name", ["inpainting", "misplaced_regions"])
def test_any_number_of_samples_will_do(rng, name):
    test = rng.integers(0, 2, size=[20, *SHAPE]).astype(np.uint8)
    getattr(analysis, name)(build(), test, images=5, num_samples=3)


# Leaves that share a VAE ---------------------------------------------------------------------------------------------


def test_every_question_is_answered_by_tiles_of_one_vae_each(rng):
    model = build(preset="spvae/tiny_components")
    rows = rng.integers(0, 2, size=[30, *SHAPE]).astype(np.uint8)
    found = analysis.latent_maps(model, rows, points=3)
    maps = found["maps"]
    assert np.prod(found["grid"]) == TILES
    assert maps.shape == (1, 3 * SHAPE[0], 3 * SHAPE[1])  # one VAE for each tile, whatever the number of its leaves
    assert np.all((maps > 0.0) & (maps < 1.0))
    for part in analysis.inpainting(model, rows, images=2, scored=10, draws=2, num_samples=50).values():
        assert np.isfinite(part["log_prob"])
        assert part["log_prob"] < 0.0
    found = analysis.misplaced_regions(model, rows, images=20, num_samples=50)
    assert found["chance"] == 1.0 / TILES
    assert np.isfinite(found["information"])


# What is refused -----------------------------------------------------------------------------------------------------


def test_models_without_the_parts_of_a_question_are_refused():
    single = build("model.num_leaves=1", preset="dense_vae/tiny")
    trees = build("model.structure=random", event_shape=(12,))
    for model in (single, trees):
        with pytest.raises(ValueError, match="needs a model of several leaf regions that do not overlap"):
            analysis.misplaced_regions(model, np.zeros([2, *model.event_shape]))
    rows = np.zeros([2, 12])
    with pytest.raises(ValueError, match=r"inpainting is for images, found events of shape \(12,\)"):
        analysis.inpainting(trees, rows)
    with pytest.raises(ValueError, match="rectangles of one size"):
        analysis.latent_maps(trees, rows)
    with pytest.raises(ValueError, match=r"drawn over grey images, found events of shape \(12,\)"):
        analysis.region_graph(trees, rows)

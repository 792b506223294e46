"""Settings, masks and conventions of sum-product VAEs, and the model's own path gradient."""

import numpy as np
import pytest
import tensorflow as tf

from tests.reference import sum_product_vae as small
from tfstruct import random
from tfstruct.data import mnist
from tfstruct.inference import objectives
from tfstruct.inference.objectives import Draws
from tfstruct.models import presets, registry

KEY = random.key(17)


def test_training_hides_pixels_of_the_part_of_the_rows_that_it_should():
    model = small.system(event_shape=(4, 4), delta=2, missing_fraction=0.5, mask_input=True)
    x = np.ones([400, 4, 4], np.float32)
    whole = model.terms(x, Draws(KEY, 1))
    hidden = model.terms(x, Draws(KEY, 1, training=True))
    differs = np.any(np.asarray(whole[0] != hidden[0]), axis=(0, 2))
    # Some masks hide nothing; 400 rows have a standard error of 0.025.
    assert 0.35 < differs.mean() <= 0.56
    model = small.system(event_shape=(4, 4), delta=2)
    np.testing.assert_array_equal(
        model.terms(x, Draws(KEY, 1, training=True))[0],
        model.terms(x, Draws(KEY, 1))[0],
    )


def test_adapt_takes_the_mean_that_stands_for_missing_pixels():
    rows = mnist.read("train")[:50]
    for variant, name, scale in (("dynamic", "bernoulli", 255.0), ("levels", "binomial", 255.0)):
        model = registry.build(presets.get("spvae/tiny", [f"data.variant={variant}", f"model.likelihood={name}"]))
        model.adapt(rows)
        np.testing.assert_allclose(model.pixel_mean, rows.mean(axis=0).reshape(-1) / scale, rtol=1e-5, atol=1e-6)
    # In the model's own units: levels that come as floats, and zeros and ones that come as integers.
    model = registry.build(presets.get("spvae/tiny", ["data.variant=none", "model.likelihood=binomial"]))
    model.adapt(rows.astype(np.float32))
    np.testing.assert_allclose(model.pixel_mean, rows.mean(axis=0).reshape(-1) / 255.0, rtol=1e-4, atol=1e-6)
    model = registry.build(presets.get("spvae/tiny", ["data.variant=static"]))
    model.adapt((rows > 127).astype(np.uint8))
    np.testing.assert_allclose(model.pixel_mean, (rows > 127).mean(axis=0).reshape(-1), rtol=1e-4, atol=1e-6)
    model = registry.build(presets.get("spvae/tiny", ["data.variant=continuous", "model.likelihood=gaussian"]))
    model.adapt(rows / np.float32(255))
    np.testing.assert_allclose(model.pixel_mean, rows.mean(axis=0).reshape(-1) / 255.0, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.structure=grid",), "model.structure must be one of .*found 'grid'"),
        (("model.leaf_vaes=joint",), "model.leaf_vaes must be one of separate, shared, found 'joint'"),
        (("model.products=sum",), "products must be one of cross, hadamard, found 'sum'"),
        (("model.products=hadamard", "model.num_sums=3"), "needs num_leaves equal to num_sums, found 2 and 3"),
        (("model.likelihood=spline",), "num_components of likelihood=spline must be even, 2 to 128, found 5"),
        (("model.leaf_network=cnn",), "model.leaf_network must be one of mlp, conv, found 'cnn'"),
        (("model.num_leaves=0",), "model.num_leaves must be at least 1, found 0"),
        (("model.delta=28",), "model.delta must be less than a side of the image, found 28 .*structure=single"),
        (("model.structure=random", "model.tree_depth=11"), "model.tree_depth must be 1 to 10 for 784 .*found 11"),
        (("model.missing_fraction=1.5",), "model.missing_fraction must be at most 1, found 1.5"),
        (("model.batch_norm=True",), "model.batch_norm must be False, found True"),
        (("model.likelihood=poisson",), "likelihood must be one of .*found 'poisson'"),
        (("model.leaf_network=conv", "model.delta=5"), "rectangles of one size"),
        (("model.leaf_network=conv", "model.structure=random"), "rectangles of one size"),
        (("model.leaf_network=conv", "model.delta=7", "model.conv_stride=2"), "divisible by 4, found 7 x 7"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(overrides, message):
    with pytest.raises(ValueError, match=message):
        registry.build(presets.get("spvae/tiny", overrides))


def test_tiles_of_vectors_are_refused():
    with pytest.raises(ValueError, match="poon_domingos is for images.*structure=random"):
        small.system(event_shape=(6,))
    assert small.system(event_shape=(6,), structure="random").sample(3, seed=KEY)["x"].shape == (3, 6)


def test_colour_channels_of_a_tile_stay_together_under_convolutions(rng):
    model = small.system(event_shape=(4, 4, 3), delta=2, leaf_network="conv", mask_input=True, conv_filters=(2, 3))
    x = rng.integers(0, 2, size=(2, 4, 4, 3)).astype(np.float32)
    assert model.scopes.image_shape(model.event_shape) == (2, 2, 3)
    terms = model.terms(x, Draws(KEY, 2))
    # A leaf reads its own tile and no other.
    changed = x.copy()
    changed[:, :2, :2] = 1.0 - changed[:, :2, :2]
    other = model.terms(changed, Draws(KEY, 2))
    differs = np.any(np.asarray(terms[0] != other[0]), axis=(0, 1))
    np.testing.assert_array_equal(differs, np.arange(8) < 2)


def test_masks_stand_beside_the_channels_that_they_are_of():
    model = small.system(event_shape=(4, 4, 3), delta=2, leaf_network="conv", mask_input=True, conv_filters=(2, 3))
    values = tf.random.stateless_uniform([4, 2, 12], [0, 1])
    mask = tf.cast(values > 0.5, tf.float32)
    beside = model.leaves._inputs(values, mask).numpy()[::2].reshape(4, 2, 2, 2, 6)
    np.testing.assert_array_equal(beside[..., :3].reshape(4, 2, 12), values)
    np.testing.assert_array_equal(beside[..., 3:].reshape(4, 2, 12), mask)


def test_encodings_of_one_leaf_stand_beside_one_another(rng):
    model = small.system(num_latents=3)
    x = rng.integers(0, 2, size=(5, 2, 2)).astype(np.float32)
    encoded = model.encode(x)
    for leaf in range(model.num_leaves):
        mean, root = small.mlp(model.encoder, leaf, x.reshape(5, 4)[:, small.variables_of(model, leaf)])
        own = slice(3 * leaf, 3 * leaf + 3)
        np.testing.assert_allclose(encoded["z_mean"][:, own], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(encoded["z_std"][:, own], 1.0 / np.sqrt(1.0 + root**2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [-1.0, 300.0, np.nan])
def test_missing_grey_levels_are_filled_with_the_mean_whatever_they_are(value, rng):
    model = small.system(likelihood="binomial", structure="single")
    x = rng.integers(0, 256, size=(3, 2, 2)).astype(np.float32)
    observed = rng.random(x.shape) < 0.5
    given = np.where(observed, x, value).astype(np.float32)
    found = model.terms(given, Draws(KEY, 2, observed=observed))
    inputs = np.where(observed, x / 255.0, np.asarray(model.pixel_mean).reshape(2, 2)).reshape(3, 4)
    noise = np.asarray(random.sample_normal(KEY, 2, 3, [model.num_leaves, 1]), np.float64)
    for leaf in range(model.num_leaves):
        _, root = small.mlp(model.encoder, leaf, inputs)
        root[~observed.reshape(3, 4).any(axis=1)] = 0.0
        log_q = 0.5 * np.log((1.0 + root[:, 0] ** 2) / (2.0 * np.pi)) - 0.5 * noise[:, :, leaf, 0] ** 2
        np.testing.assert_allclose(found.log_posterior[..., leaf], log_q, rtol=1e-4, atol=1e-4)
    assert np.all(np.isfinite(found.log_likelihood))
    drawn = model.inpaint(given, observed, seed=KEY, num_samples=3)["x"]
    assert np.all(np.isfinite(drawn))


@pytest.mark.parametrize("leaf_vaes", ["separate", "shared"])
def test_the_models_path_gradient_has_the_mean_of_the_plain_one(leaf_vaes):
    model = small.system("objective.num_samples=2", leaf_vaes=leaf_vaes)
    rows, repeats = np.repeat(small.every_image()[5:7], 4_000, axis=0), 20
    variables = [variable.value for variable in model.needs.posterior]

    @tf.function(autograph=False)
    def gradients(key):
        with tf.GradientTape(persistent=True) as tape:
            terms = model.terms(rows, Draws(key, 2, path=True))
            losses = [objectives.iwae(terms, path=path).posterior_loss for path in (False, True)]
        return [tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(loss, variables)], 0) for loss in losses]

    draws = np.array([[g.numpy() for g in gradients(random.fold_in(KEY, tf.constant(r)))] for r in range(repeats)])
    # Along the mean of the plain gradient itself; 160,000 rows, known to 5 %.
    direction = draws[:, 0].mean(axis=0)
    difference = (draws[:, 1] - draws[:, 0]) @ direction / (direction @ direction)
    error = difference.std(ddof=1) / np.sqrt(repeats)
    assert error < 0.05
    assert abs(difference.mean()) < 4.0 * error

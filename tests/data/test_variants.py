"""Binarisation, grey levels, dequantisation: exact statements wherever there is one."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfstruct import random
from tfstruct.data import variants

KEY = random.key(7)
BYTES = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
FLOATS = (BYTES / np.float32(255)).astype(np.float32)
CASES = [("cast", BYTES), ("cast", FLOATS), ("binarize", BYTES), ("binarize", FLOATS), ("dequantize", BYTES)]


def _splits(rows):
    return dict.fromkeys(variants.SPLITS, rows)


@pytest.mark.parametrize(("transform", "rows"), CASES)
def test_training_rows_have_the_same_bits_eagerly_under_xla_and_vectorized_map(transform, rows):
    eager = variants.training_rows(transform, rows, KEY).numpy()
    compiled = tf.function(variants.training_rows, jit_compile=True)(transform, tf.constant(rows), KEY).numpy()
    keys = np.stack([random.key(3), KEY, random.key(9)])
    mapped = tf.vectorized_map(
        lambda key: variants.training_rows(transform, rows, key), keys, fallback_to_while_loop=False
    )
    np.testing.assert_array_equal(compiled, eager)
    np.testing.assert_array_equal(mapped[1], eager)
    assert eager.dtype == np.float32
    assert eager.shape == rows.shape


@pytest.mark.parametrize(("transform", "rows"), CASES)
def test_a_row_with_its_own_key_does_not_depend_on_the_other_rows(transform, rows):
    keys = random.fold_in(KEY, tf.range(len(rows)))
    whole = variants.training_rows(transform, rows, keys).numpy()
    part = variants.training_rows(transform, rows[2:3], keys[2:3]).numpy()
    np.testing.assert_array_equal(part, whole[2:3])
    np.testing.assert_array_equal(variants.training_rows(transform, rows[2], keys[2]), whole[2])


def test_training_rows_of_unknown_batch_size_have_the_same_bits():
    signature = [tf.TensorSpec([None, 5, 3], tf.uint8), tf.TensorSpec([2], tf.uint32)]
    traced = tf.function(lambda rows, key: variants.training_rows("binarize", rows, key), signature)
    np.testing.assert_array_equal(traced(BYTES, KEY), variants.training_rows("binarize", BYTES, KEY))


@pytest.mark.parametrize("rows", [BYTES, FLOATS])
def test_binarize_is_one_where_the_uniform_draw_lies_below_the_intensity(rows):
    unit = random.numpy_uniform(KEY, rows.shape)
    expected = unit.astype(np.float64) < (rows / np.float64(255) if rows.dtype == np.uint8 else rows)
    np.testing.assert_array_equal(variants.training_rows("binarize", rows, KEY), expected)


def test_every_grey_level_has_its_probability_over_all_draws_there_are():
    cells = np.arange(2**23, dtype=np.float32)
    unit = cells * np.float32(2.0**-23) + np.float32(2.0**-24)  # every value that random.uniform can return
    scaled = unit * np.float32(255)
    counts = np.cumsum(np.bincount(np.floor(scaled).astype(int), minlength=256))[:255]
    # counts[k - 1] draws lie below level k; the nearest integers to k 2**23 / 255 are the best there is.
    exact = np.arange(1, 256) * 2.0**23 / 255
    assert np.abs(counts - exact).max() <= 1
    assert counts[-1] == 2**23
    assert scaled.min() > 0


def test_draws_at_the_very_intensity_give_the_same_bits_eagerly_in_graphs_and_under_xla(monkeypatch):
    levels = np.arange(256, dtype=np.uint8)
    edge = (levels / np.float32(255)).astype(np.float32)
    draws = np.stack([np.nextafter(edge, np.float32(0)), edge, np.nextafter(edge, np.float32(1))])

    def binarize(rows, unit):
        monkeypatch.setattr(random, "uniform", lambda key, shape: unit)
        return variants.training_rows("binarize", rows, KEY)

    rows = np.broadcast_to(levels, (3, 256))
    eager = binarize(rows, tf.constant(draws)).numpy()
    np.testing.assert_array_equal(tf.function(binarize)(tf.constant(rows), draws), eager)
    np.testing.assert_array_equal(tf.function(binarize, jit_compile=True)(tf.constant(rows), draws), eager)


def test_dequantized_values_stay_inside_the_cell_of_their_level_for_every_draw(monkeypatch):
    unit = np.array([2.0**-24, 0.5 - 2.0**-24, 0.5 + 2.0**-24, 1 - 2.0**-24], np.float32)
    monkeypatch.setattr(random, "uniform", lambda key, shape: tf.broadcast_to(unit, shape))
    rows = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, axis=1)
    values = variants.training_rows("dequantize", rows, KEY).numpy()
    np.testing.assert_array_equal(np.floor(values * 256), rows)
    assert (values * 256 > rows).all()
    assert values.max() < 1


def test_training_rows_refuse_unknown_transforms_and_dequantized_floats():
    with pytest.raises(ValueError, match="unknown transform 'binarise'; there are cast, binarize, dequantize"):
        variants.training_rows("binarise", BYTES, KEY)
    with pytest.raises(ValueError, match="needs integer intensities 0..255, found float32"):
        variants.training_rows("dequantize", FLOATS, KEY)


def test_grey_is_what_pillow_makes_of_every_kind_of_colour():
    rows = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), np.uint8)
    rows[0] = np.array([255, 255, 255])
    expected = np.stack([np.asarray(Image.fromarray(row).convert("L")) for row in rows])
    np.testing.assert_array_equal(variants.to_grey(rows), expected)


@pytest.mark.parametrize("variant", ["dynamic", "static", "thresholded", "grey", "continuous", "discrete"])
def test_colour_images_become_grey_except_when_dequantized(variant):
    rows = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3), np.uint8)
    assert variants.render(variant, _splits(rows)).splits["test"].shape == (4, 8, 8)
    assert variants.render("dequantized", _splits(rows)).splits["test"].shape == rows.shape


@pytest.mark.parametrize("rows", [BYTES, FLOATS])
def test_dynamic_and_static_share_validation_and_test_bits_which_differ_between_splits(rows):
    dynamic, static = (variants.render(name, _splits(rows)).splits for name in ("dynamic", "static"))
    np.testing.assert_array_equal(dynamic["validation"], static["validation"])
    np.testing.assert_array_equal(dynamic["test"], static["test"])
    assert (static["validation"] != static["test"]).any()
    assert (static["validation"] != static["train"]).any()
    np.testing.assert_array_equal(dynamic["train"], rows)


@pytest.mark.parametrize("variant", ["static", "dequantized", "continuous"])
def test_fixed_noise_of_a_row_does_not_depend_on_what_follows_it(variant):
    rows = np.random.default_rng(3).integers(0, 256, (250, 4, 4), np.uint8)
    whole = variants.render(variant, _splits(rows)).splits["test"]
    part = variants.render(variant, _splits(rows[:130])).splits["test"]
    np.testing.assert_array_equal(part, whole[:130])
    # Rows that are equal in different blocks draw different noise.
    same = variants.render(variant, _splits(np.repeat(rows[:1], 250, axis=0))).splits["test"]
    assert (same[0] != same[100]).any()
    assert (same[0] != same[1]).any()


def test_static_binarization_has_the_mean_of_the_intensities():
    rows = np.full((500, 784), 64, np.uint8)
    mean = variants.binarize(rows, "test").mean()
    deviation = np.sqrt(64 / 255 * 191 / 255 / rows.size)
    assert abs(mean - 64 / 255) < 4 * deviation


def test_threshold_is_one_half_for_bytes_and_floats():
    levels = np.arange(256, dtype=np.uint8)[:, None]
    for rows in (levels, levels / np.float32(255)):
        result = variants.render("thresholded", _splits(rows)).splits["test"]
        np.testing.assert_array_equal(result[:, 0], np.arange(256) >= 128)


def test_grey_divides_by_255():
    rendering = variants.render("grey", _splits(BYTES))
    np.testing.assert_array_equal(rendering.splits["train"], BYTES.astype(np.float32) / np.float32(255))
    assert rendering.support == "unit_interval"
    assert rendering.bits_per_dim_offset is None


def test_fixed_dequantized_rows_keep_their_levels_and_training_rows_stay_bytes():
    rendering = variants.render("dequantized", _splits(BYTES))
    np.testing.assert_array_equal(np.floor(rendering.splits["test"] * 256), BYTES)
    np.testing.assert_array_equal(rendering.splits["train"], BYTES)
    assert rendering.bits_per_dim_offset == 8.0
    with pytest.raises(ValueError, match="dequantized needs uint8 intensities 0..255, found float32"):
        variants.render("dequantized", _splits(FLOATS))


def test_discrete_stretches_each_image_to_0_and_255_and_a_constant_image_to_0():
    rows = np.array([[10, 20, 30], [0, 1, 255], [9, 9, 9]], np.uint8)
    result = variants.render("discrete", _splits(rows))
    np.testing.assert_array_equal(result.splits["test"], [[0, 128, 255], [0, 1, 255], [0, 0, 0]])
    assert (result.support, result.bits_per_dim_offset) == ("integers_0_255", 0.0)


def test_continuous_rows_are_the_grid_plus_noise_of_one_level_stretched_to_the_unit_interval():
    rows = np.full((200, 1002), 100, np.uint8)
    rows[:, 0], rows[:, 1] = 0, 200  # the grid value of all others is 127.5, rounded to 128
    result = variants.render("continuous", _splits(rows)).splits["test"].astype(np.float64)
    np.testing.assert_array_equal(result.min(axis=1), 0)
    np.testing.assert_array_equal(result.max(axis=1), 1)
    # The stretch moves the ends by about one level in 255: the noise keeps its size within a percent.
    inner = result[:, 2:] * 255
    assert abs(inner.std(axis=1).mean() - 1) < 0.02
    assert abs(inner.mean() - 128) < 1


def test_continuous_noise_is_reflected_at_the_ends():
    rows = np.zeros((50, 400), np.uint8)
    rows[:, :2] = 255
    result = variants.render("continuous", _splits(rows)).splits["test"]
    # Half of N(0, 1) noise around 0 is negative; reflected, all of it is half-normal with mean sqrt(2 / pi).
    assert abs(result[:, 2:].mean() * 255 - np.sqrt(2 / np.pi)) < 0.05


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="unknown variant 'none'; there are dynamic"):
        variants.render("none", _splits(BYTES))


@pytest.mark.parametrize("support", ["binary", "integers_0_255", "unit_interval"])
def test_corrupted_rows_keep_what_is_not_replaced_and_draw_the_rest_from_the_support(support):
    x = np.full([40, 28, 28], {"binary": 1.0, "integers_0_255": 77.0, "unit_interval": 0.25}[support], np.float32)
    keys = random.fold_in(KEY, tf.range(40))
    for found in (
        variants.corrupt(tf.constant(x), keys, 0.2, support).numpy(),
        variants.corrupt_once(x, "validation", 0.2, support),
    ):
        changed = found != x
        # A fifth of 31,360 values, of which a binary draw changes half: 4.5 standard errors.
        share = 0.1 if support == "binary" else 0.2 * 255 / 256 if support == "integers_0_255" else 0.2
        assert abs(changed.mean() - share) < 4.5 * np.sqrt(share * (1 - share) / x.size)
        assert found.dtype == x.dtype
        drawn = found[changed]
        if support == "binary":
            assert set(drawn.tolist()) == {0.0}
        elif support == "integers_0_255":
            assert (drawn == np.rint(drawn)).all()
            assert {drawn.min(), drawn.max()} == {0.0, 255.0}
        else:
            assert 0.0 < drawn.min() < 0.01 < 0.99 < drawn.max() < 1.0
            assert abs(drawn.mean() - 0.5) < 4.5 / np.sqrt(12 * len(drawn))


def test_corruption_leaves_the_other_random_numbers_of_a_step_alone_and_differs_between_rows():
    plain, *others = variants.prepare_batch(BYTES, KEY, "binarize")
    corrupted, *same = variants.prepare_batch(BYTES, KEY, "binarize", corruption=(0.5, "binary"))
    for first, second in zip(others, same, strict=True):
        np.testing.assert_array_equal(first, second)
    assert (corrupted != plain).numpy().any()
    rows = np.zeros([2, 28, 28], np.float32)
    first, second = variants.prepare_batch(rows, KEY, "cast", corruption=(0.5, "binary"))[0].numpy()
    assert (first != second).any()
    part = variants.prepare_batch(rows[1:], KEY, "cast", first_row=1, corruption=(0.5, "binary"))[0]
    np.testing.assert_array_equal(part[0], second)


def test_real_values_cannot_be_corrupted():
    with pytest.raises(ValueError, match="draws from a bounded support, found real"):
        variants.corrupt(tf.zeros([2, 3]), random.fold_in(KEY, tf.range(2)), 0.1, "real")

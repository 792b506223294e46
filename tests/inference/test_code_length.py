"""Lengths of adaptive codes against a coder that goes from pixel to pixel, and sums over everything that there is."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfstruct.inference.code_length import code_length


def _coded_one_by_one(image, support):
    """-log of the probability that an adaptive coder gives to a plane, pixel by pixel, in float64."""
    height, width = image.shape
    at = lambda row, column: (  # noqa: E731
        int(image[row, column]) if 0 <= row and 0 <= column < width else 0
    )
    counts, length = {}, 0.0
    for row, column in itertools.product(range(height), range(width)):
        if support == "binary":
            places = ((0, -1), (-1, -1), (-1, 0), (-1, 1), (0, -2), (-2, 0), (-1, 2))
            context = tuple(at(row + down, column + right) for down, right in places)
            symbol, size, alpha = int(image[row, column]), 2, 0.5
        else:
            left, above, corner = at(row, column - 1), at(row - 1, column), at(row - 1, column - 1)
            if corner >= max(left, above):
                prediction = min(left, above)
            elif corner <= min(left, above):
                prediction = max(left, above)
            else:
                prediction = left + above - corner
            context = sum(abs(left - corner) + abs(corner - above) >= least for least in (1, 32, 128))
            symbol, size, alpha = (int(image[row, column]) - prediction) % 256, 256, 0.05
        seen = counts.setdefault(context, {})
        length -= np.log((seen.get(symbol, 0) + alpha) / (sum(seen.values()) + size * alpha))
        seen[symbol] = seen.get(symbol, 0) + 1
    return length


@pytest.mark.parametrize(("support", "top"), [("binary", 2), ("integers_0_255", 256)])
@pytest.mark.parametrize("shape", [(7, 9), (5, 4, 3), (11,), (1, 1)])
def test_the_length_is_that_of_a_coder_that_goes_from_pixel_to_pixel(rng, run, support, top, shape):
    x = rng.integers(0, top, (3, *shape))
    x[1] = np.sort(x[1].ravel()).reshape(shape)
    x[2] = top - 1
    planes = x.reshape(3, 1, 1, -1) if len(shape) == 1 else x.reshape(3, *shape, 1) if len(shape) == 2 else x
    planes = planes if len(shape) == 1 else np.moveaxis(planes, -1, 1)
    expected = [sum(_coded_one_by_one(plane, support) for plane in row) for row in planes]
    found = run(lambda rows: code_length(rows, support), tf.constant(x, tf.float32))
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_probabilities_of_all_binary_images_sum_to_one():
    images = np.array(list(itertools.product((0, 1), repeat=12)), np.float32).reshape(-1, 3, 4)
    total = np.exp(-code_length(tf.constant(images), "binary").numpy().astype(np.float64)).sum()
    assert abs(total - 1.0) < 1e-5


def test_probabilities_of_all_values_of_a_pixel_sum_to_that_of_the_pixels_before():
    before = np.array([[9, 200, 31, 0, 0]], np.float32)
    with_one_more = np.concatenate([np.tile(before, [256, 1]), np.arange(256, dtype=np.float32)[:, np.newaxis]], axis=1)
    lengths = code_length(tf.constant(with_one_more), "integers_0_255").numpy().astype(np.float64)
    expected = code_length(tf.constant(before), "integers_0_255")
    np.testing.assert_allclose(-np.log(np.exp(-lengths).sum()), expected[0], rtol=1e-5)


def test_real_values_have_no_lossless_code():
    with pytest.raises(ValueError, match="binary or integers_0_255, found real"):
        code_length(tf.zeros([1, 2]), "real")

"""Masks of pixels hidden while training."""

import numpy as np
import pytest
import tensorflow as tf

from tfstruct import random
from tfstruct.models.sum_product_vae.masks import random_masks

ROWS = 4_000
KEYS = random.fold_in(random.key(3), tf.range(ROWS))


def _masks(event_shape, fraction):
    return np.asarray(random_masks(KEYS, event_shape, fraction)).reshape(ROWS, *event_shape)


def _is_rectangle(hidden):
    rows, columns = np.flatnonzero(hidden.any(axis=1)), np.flatnonzero(hidden.any(axis=0))
    return len(rows) > 0 and hidden[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_the_asked_part_of_the_rows_loses_pixels():
    # 4,000 rows: a standard error of 0.008; one in 400 rectangles covers no pixel's middle of 20 x 20.
    assert abs((~_masks((20, 20), 0.3)).any(axis=(1, 2)).mean() - 0.3) < 0.03
    assert _masks((20, 20), 0.0).all()


def test_of_images_half_of_the_masks_are_rectangles_with_uniform_corners():
    hidden = ~_masks((20, 20), 1.0)
    is_empty = ~hidden.any(axis=(1, 2))  # corners that no pixel's middle is between: 1 in 20 along each axis
    rectangles = np.array([_is_rectangle(mask) for mask in hidden]) | is_empty
    # 4,000 masks: a standard error of 0.008; a few masks of single pixels hide one or all of them.
    assert abs(rectangles.mean() - 0.5) < 0.04
    # Two uniform corners are a third of the side apart on average; their area's mean is a ninth.
    assert abs(hidden[rectangles].mean() - 1 / 9) < 0.02
    assert abs(hidden[rectangles].mean(axis=0)[10, 10] - 0.25) < 0.04
    # The others lose every pixel with a probability that is uniform: half of them on average, with all rates.
    rates = hidden[~rectangles].mean(axis=(1, 2))
    np.testing.assert_allclose(np.quantile(rates, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.05)


def test_the_kinds_of_masks_and_their_rates_do_not_depend_on_which_rows_lose_pixels():
    hidden = ~_masks((20, 20), 0.5)
    hidden = hidden[hidden.any(axis=(1, 2))]
    rectangles = np.array([_is_rectangle(mask) for mask in hidden])
    assert abs(rectangles.mean() - 0.47) < 0.06  # a tenth of the rectangles covers nothing
    rates = hidden[~rectangles].mean(axis=(1, 2))
    np.testing.assert_allclose(np.quantile(rates, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.06)


def test_a_rectangle_hides_the_pixels_whose_middle_it_covers():
    hidden = ~_masks((20, 20), 1.0)
    hidden = hidden[[_is_rectangle(mask) or not mask.any() for mask in hidden]]
    # A middle at u of the side is between two uniform corners with probability 2 u (1 - u); of the row in the middle a
    # half. 2,000 masks: standard errors of 0.011 in the middle and 0.004 at the edges, where a half pixel makes 0.024.
    middles = (np.arange(20) + 0.5) / 20
    for profile in (hidden[:, :, 10].mean(axis=0), hidden[:, 10].mean(axis=0)):
        np.testing.assert_allclose(profile, middles * (1 - middles), atol=0.045)
        np.testing.assert_allclose(profile[[0, -1]], middles[[0, -1]] * (1 - middles[[0, -1]]), atol=0.014)


def test_all_channels_of_a_pixel_of_a_rectangle_go_together():
    hidden = ~_masks((6, 5, 3), 1.0)
    together = (hidden.any(axis=-1) == hidden.all(axis=-1)).all(axis=(1, 2))
    assert abs(together.mean() - 0.5) < 0.04
    assert all(_is_rectangle(mask[..., 0]) for mask in hidden[together] if mask.any())


def test_vectors_lose_single_values():
    rates = (~_masks((50,), 1.0)).mean(axis=1)
    np.testing.assert_allclose(np.quantile(rates, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.05)


@pytest.mark.parametrize("event_shape", [(7,), (4, 5)])
def test_a_rows_mask_depends_on_its_key_alone(event_shape):
    np.testing.assert_array_equal(
        np.asarray(random_masks(KEYS[5:9], event_shape, 0.7)), np.asarray(random_masks(KEYS, event_shape, 0.7))[5:9]
    )

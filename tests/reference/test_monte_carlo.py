import numpy as np
import pytest

from tests.reference.monte_carlo import assert_mean_close


def test_a_right_mean_passes(rng):
    assert_mean_close(rng.normal(3.0, 1.0, size=[10_000, 2]), [3.0, 3.0], resolution=0.06)


def test_a_mean_off_by_twice_the_resolution_fails(rng):
    with pytest.raises(AssertionError, match="mean off by"):
        assert_mean_close(rng.normal(3.1, 1.0, size=10_000), 3.0, resolution=0.06)


def test_too_few_samples_to_see_the_bug_fail(rng):
    with pytest.raises(AssertionError, match="too few samples"):
        assert_mean_close(rng.normal(3.0, 1.0, size=100), 3.0, resolution=0.06)


def test_samples_that_are_not_finite_fail():
    with pytest.raises(AssertionError, match="not finite"):
        assert_mean_close(np.array([0.0, np.nan]), 0.0, resolution=1.0)

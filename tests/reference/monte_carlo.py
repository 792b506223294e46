"""The one way in which the suite checks a Monte-Carlo mean."""

import numpy as np


def assert_mean_close(samples, expected, *, resolution, sigmas=5.0):
    """Checks the mean of independent samples [n, ...], and that the check could have failed.

    Args:
        samples: independent draws along the first axis.
        expected: the exact mean.
        resolution: size of the bug that the test wants to see, in the units of the samples; the test fails when
            its own confidence interval is wider than that.
        sigmas: half width of the interval in standard errors; 5 is a false alarm in 1.7 million.
    """
    samples = np.asarray(samples, np.float64)
    assert len(samples) > 1, "a mean of one sample has no standard error"
    assert np.all(np.isfinite(samples)), "a sample is not finite"
    half_width = sigmas * samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert np.all(half_width <= resolution), f"too few samples to see the bug: {half_width} > {resolution}"
    error = np.abs(samples.mean(axis=0) - np.asarray(expected, np.float64))
    # Samples that do not vary leave only the rounding of their mean.
    rounding = 1e-12 * (1.0 + np.abs(np.asarray(expected, np.float64)))
    assert np.all(error <= half_width + rounding), f"mean off by {error}, allowed {half_width}"


def paired_difference(one, two):
    """Mean of one - two along the first axis, drawn with the same noise, and its standard error."""
    difference = one - two
    return difference.mean(axis=0), difference.std(axis=0, ddof=1) / np.sqrt(len(difference))

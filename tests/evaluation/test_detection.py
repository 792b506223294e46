"""Figures of detection against scikit-learn, sums over all pairs, and resampling."""

import itertools

import numpy as np
import pytest
from sklearn import metrics

from tfstruct.evaluation import baselines, detection, foreign

CASES = {
    "apart": (np.arange(5.0, 9.0), np.arange(4.0)),
    "mixed": (np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.6]), np.array([2.7, 1.8, 2.0, 8.0])),
    "ties": (np.array([1.0, 1.0, 2.0, 2.0, 3.0]), np.array([1.0, 2.0, 2.0, 0.0, 3.0, 1.0])),
    "the wrong way round": (np.zeros(3), np.ones(4)),
    "never computed": (np.array([0.0, 1.0]), np.array([-np.inf, -np.inf, 2.0])),
}


@pytest.mark.parametrize("case", CASES)
def test_areas_are_those_of_scikit_learn(case):
    normal, other = CASES[case]
    is_foreign = np.repeat([0, 1], [len(normal), len(other)])
    scores = -np.nan_to_num(np.concatenate([normal, other]))
    assert detection.auroc(normal, other).value == pytest.approx(metrics.roc_auc_score(is_foreign, scores))
    found = detection.average_precision(normal, other).value
    assert found == pytest.approx(metrics.average_precision_score(is_foreign, scores))


def test_the_area_is_the_share_of_pairs_in_their_order():
    normal, other = CASES["ties"]
    pairs = [(b < a) + 0.5 * (a == b) for a, b in itertools.product(normal, other)]
    assert detection.auroc(normal, other).value == pytest.approx(np.mean(pairs))


def test_the_interval_of_the_area_has_the_width_of_resampling(rng):
    normal, other = rng.normal(1.0, 1.0, 300), rng.normal(0.0, 2.0, 150)
    drawn = [detection.auroc(rng.choice(normal, 300), rng.choice(other, 150)).value for _ in range(1_000)]
    value, low, high = detection.auroc(normal, other)
    assert low < value < high
    # 1,000 resamples give the standard deviation to 2.2 %; three of that, and what n - 1 for n changes.
    assert (high - low) / (2 * 1.959964) == pytest.approx(np.std(drawn), rel=0.08)


def test_the_interval_of_a_share_is_wilsons():
    value, low, high = detection.share(np.array([True] * 3 + [False] * 37))
    z, n, p = 1.959964, 40, 3 / 40
    middle, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n),
    )
    assert (value, low, high) == pytest.approx((p, middle - half, middle + half), rel=1e-6)
    assert detection.share(np.zeros(10, bool)).low == 0.0 < detection.share(np.zeros(10, bool)).high


@pytest.mark.parametrize("variant", ["dynamic", "discrete", "levels", "grey"])
def test_noise_and_constant_images_are_rendered_as_the_models_own(variant):
    shape = (28, 28)
    noise = foreign.rows("noise", variant, shape, count=50)
    constant = foreign.rows("constant", variant, shape, count=50)
    top = {"dynamic": 1, "grey": 1}.get(variant, 255)
    for rows in (noise, constant):
        assert rows.shape == (50, *shape)
        assert rows.dtype == np.float32
        assert 0 <= rows.min() <= rows.max() <= top
    # 39,200 uniform intensities: their mean is within 4.5 standard errors of one half.
    assert abs(noise.mean() / top - 0.5) < 4.5 * (0.5 if variant == "dynamic" else 0.29) / np.sqrt(noise.size)
    if variant != "dynamic":
        assert (constant == constant[:, :1, :1]).all()
        assert (constant != 0).any() == (variant != "discrete")  # stretched, a constant image is black
    np.testing.assert_array_equal(foreign.rows("noise", variant, shape, count=3), noise[:3])


def test_images_of_another_size_are_averaged_over_areas():
    rows = foreign.rows("mnist", "levels", (14, 14), count=2)
    images = np.asarray(mnist_levels()[[0, 5_000]], np.float64)
    expected = np.rint(images.reshape(2, 14, 2, 14, 2).mean(axis=(2, 4)))
    np.testing.assert_allclose(rows, expected, atol=1)  # where a mean lies half way
    assert foreign.rows("mnist", "levels", (14, 14, 3), count=2).shape == (2, 14, 14, 3)


def mnist_levels():
    from tfstruct.data import load

    return load("mnist", "levels").test


def test_foreign_data_that_are_not_there_are_refused_with_near_names():
    with pytest.raises(ValueError, match="fashion_mnist"):
        foreign.rows("fashion_mnits", "dynamic", (28, 28), count=2)
    with pytest.raises(ValueError, match=r"foreign data are images; .* shape \[12\]"):
        foreign.rows("noise", "dynamic", (12,), count=2)


def test_baselines_rank_far_rows_below_normal_ones(rng):
    normal = rng.normal(0.0, 1.0, (400, 4, 5))
    scores = baselines.fit(normal[:300])
    assert set(scores) == {"isolation_forest", "gaussian_pca"}
    for score in scores.values():
        assert detection.auroc(score(normal[300:]), score(normal[300:] * 4.0)).value > 0.9
    # A Gaussian of full rank but one: its log density is that of scipy within the noise that it lumps together.
    assert scores["gaussian_pca"](normal[:2]).shape == (2,)

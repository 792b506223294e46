import numpy as np
import pytest

from tfstruct.data import datasets
from tfstruct.evaluation import plausibility
from tfstruct.inference.likelihood import LikelihoodEstimate

GOOD = {"log_likelihood": -85.0, "num_samples": 5000, "effective_sample_size": 50.0, "bits_per_dim": 0.15}


def flags(name="mnist", variant="dynamic", **changes):
    return plausibility.flags(name, variant, **(GOOD | changes))


def test_a_plausible_result_has_no_flag():
    assert flags() == []


@pytest.mark.parametrize(
    ("name", "variant", "ceiling"), [(*key, value) for key, value in plausibility._CEILINGS.items()]
)
def test_a_likelihood_is_flagged_exactly_above_the_ceiling_of_its_data(name, variant, ceiling):
    assert flags(name, variant, log_likelihood=ceiling) == []
    (flag,) = flags(name, variant, log_likelihood=np.nextafter(ceiling, np.inf))
    assert flag.startswith("implausible")
    assert name in flag
    assert variant in flag


def test_every_ceiling_is_of_a_data_set_and_variant_there_is():
    for name, variant in plausibility._CEILINGS:
        assert variant in datasets.variants_of(name)


def test_data_without_a_ceiling_have_no_likelihood_that_is_too_good():
    assert flags("file", "none", log_likelihood=-0.1) == []


@pytest.mark.parametrize(("bits", "count"), [(0.0, 0), (-1e-9, 1), (None, 0)])
def test_bits_per_dimension_are_flagged_below_zero(bits, count):
    assert len(flags(bits_per_dim=bits)) == count


@pytest.mark.parametrize(
    ("num_samples", "size", "count"), [(100, 2.0, 0), (100, 1.99, 1), (99, 1.0, 0), (5000, 1.0, 1)]
)
def test_a_small_effective_sample_size_is_flagged_as_loose(num_samples, size, count):
    found = flags(num_samples=num_samples, effective_sample_size=size)
    assert len(found) == count
    assert all(flag.startswith("loose") for flag in found)


# What a mean over images hides -------------------------------------------------------------------------------


def estimate(rate, effective_draws=50.0, effective_sample_size=20.0):
    rate = np.asarray(rate, np.float64)
    full = np.ones_like(rate)
    return LikelihoodEstimate(
        log_prob=-90.0 * full,
        std_err=full,
        effective_sample_size=effective_sample_size * full,
        elbo=-rate - 70.0,
        rate=rate,
        distortion=70.0 * full,
        effective_draws=effective_draws * full,
    )


def test_the_spread_over_images_is_that_of_numpy(rng):
    rate = rng.gamma(20.0, size=1_000)
    found, flagged = plausibility.over_images(estimate(rate), 50)
    assert flagged == []
    for text, level in (("0.5", 50), ("0.9", 90), ("0.99", 99), ("1.0", 100)):
        assert found["rate_quantiles"][text] == pytest.approx(np.percentile(rate, level))
        assert found["negative_elbo_quantiles"][text] == pytest.approx(np.percentile(rate, level) + 70.0)
    assert (found["runaway_images"], found["images_with_few_samples"]) == (0, 0.0)
    few, _ = plausibility.over_images(
        estimate(rate, effective_sample_size=np.where(np.arange(1_000) < 30, 1.9, 2.0)), 50
    )
    assert few["images_with_few_samples"] == 0.03


# Bug seen: images with rates of thousands of nats, which the importance-weighted likelihood does not show.
@pytest.mark.parametrize(
    ("largest", "others", "count"),
    [(500.0, 25.0, 0), (500.1, 25.0, 1), (900.0, 100.0, 0), (1000.1, 100.0, 1), (np.inf, 25.0, 1), (np.nan, 25.0, 1)],
)
def test_a_rate_above_500_nats_and_10_medians_is_runaway(largest, others, count):
    found, flagged = plausibility.over_images(estimate([others] * 99 + [largest]), 50)
    assert found["runaway_images"] == count
    assert len(flagged) == count
    if count:
        assert flagged[0].startswith("runaway: 1 of 100 images")
    if np.isfinite(largest) and count:
        assert f"lower the mean ELBO by {(largest - others) / 100:.2f} nats" in flagged[0]


def test_ratios_of_few_effective_draws_are_flagged():
    draws = np.where(np.arange(200) < 3, 9.9, 40.0)
    _, (flag,) = plausibility.over_images(estimate(np.zeros(200), effective_draws=draws), 50)
    assert flag.startswith("unequilibrated: 2 %")
    draws[0] = 10.0
    assert plausibility.over_images(estimate(np.zeros(200), effective_draws=draws), 50)[1] == []
    # Draws of equal weights are no ratio, however few they are.
    assert plausibility.over_images(estimate(np.zeros(200), effective_draws=5.0), 5)[1] == []


# Bug seen: a conditional model was never flagged, not even for NaN.
def test_conditional_likelihoods_have_no_ceiling_but_must_be_finite_and_not_loose():
    assert flags(log_likelihood=-30.0, is_conditional=True) == []
    assert len(flags(log_likelihood=-30.0)) == 1
    assert flags(log_likelihood=float("nan"), is_conditional=True)[0].startswith("not finite")
    assert flags(effective_sample_size=1.0, is_conditional=True)[0].startswith("loose")

import numpy as np
import pytest

from tfstruct.data import datasets
from tfstruct.evaluation import plausibility

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

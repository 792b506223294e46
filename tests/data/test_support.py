"""Where values lie."""

import numpy as np
import pytest

from tfstruct.data import support


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 1]], "binary"),
        ([[0.0, 1.0]], "binary"),
        ([[True, False]], "binary"),
        ([[0.0, 0.5]], "unit_interval"),
        ([[0, 255]], "integers_0_255"),
        ([[0.0, 2.0]], "integers_0_255"),
        ([[0, 256]], "real"),
        ([[-1, 1]], "real"),
        ([[0.5, 2.0]], "real"),
    ],
)
def test_summary_names_the_narrowest_support(values, expected):
    assert support.summarize(np.array(values)).support == expected


def test_join_is_the_summary_of_all_arrays_together():
    parts = [support.summarize(np.array([[0.0, 1.0]])), support.summarize(np.array([[0.25]]))]
    assert support.join(parts).support == "unit_interval"


def test_pieces_of_a_large_array_count_as_one(monkeypatch):
    monkeypatch.setattr(support, "CHUNK_BYTES", 16)
    values = np.zeros((10, 4), np.float32)
    values[3, 1], values[7, 2], values[9, 0] = np.nan, np.inf, 3.5
    summary = support.summarize(values)
    assert (summary.non_finite, summary.first_non_finite, summary.maximum) == (2, 3, 3.5)
    with pytest.raises(ValueError, match=r"found nan at index \(3, 1\) and 3 such values of 40"):
        support.require_binary(values, "rows")


@pytest.mark.parametrize("values", [np.array([[0, 1]], np.uint8), np.array([[0.0, 1.0]]), [[True]], 1.0])
def test_binary_values_pass(values):
    support.require_binary(values, "rows")


def test_grey_values_are_refused_with_value_place_count_and_remedy():
    values = np.array([[0.0, 1.0], [0.25, 0.5]], np.float32)
    expected = (
        r"training rows must be 0 or 1; found 0.25 at index \(1, 0\) and 2 such values of 4. "
        r"Use `--set data.variant=dynamic` .* or `--set data.variant=thresholded`"
    )
    with pytest.raises(ValueError, match=expected):
        support.require_binary(values, "training rows")


@pytest.mark.parametrize(
    ("name", "values"),
    [("unit_interval", [1.5]), ("integers_0_255", [0.5]), ("integers_0_255", [256]), ("real", [np.nan])],
)
def test_every_support_refuses_what_it_does_not_hold(name, values):
    with pytest.raises(ValueError, match="1 such values of 1"):
        support.require_support(np.array(values), name, "rows")


def test_values_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="found values of type <U1"):
        support.require_binary(np.array(["1"]), "rows")
    with pytest.raises(ValueError, match="unknown support 'bits'; there are binary"):
        support.require_support([1], "bits", "rows")


def test_real_vectors_under_a_bernoulli_model_are_sent_to_the_gaussian():
    with pytest.raises(ValueError, match="Use `--set model.likelihood=gaussian --set data.standardise=True`") as caught:
        support.require_binary(np.array([[-1.5, 2.0]]), "rows")
    assert "data.variant" not in str(caught.value)

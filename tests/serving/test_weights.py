"""Weights as bundles store them."""

import numpy as np
import pytest

from tfstruct.serving.weights import DTYPES, StoredWeight, dtypes

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(scale=[0.01, 0.1, 1.0], size=[2, 150, 3]).astype(np.float32)


def twin(values):
    """Eight bits in groups of 64 inputs, in float64, one number after another."""
    result = np.zeros(values.shape)
    for place in np.ndindex(*values.shape[:-2], values.shape[-1]):
        column = (*place[:-1], slice(None), place[-1])
        for start in range(0, values.shape[-2], 64):
            group = values[column][start : start + 64].astype(np.float64)
            scale = float(np.float16(np.abs(group).max() / 127))
            result[column][start : start + 64] = [0.0 if scale == 0 else round(x / scale) * scale for x in group]
    return result


def test_float32_is_the_weight_itself():
    np.testing.assert_array_equal(StoredWeight(KERNEL, "float32", "w").value(), KERNEL)


def test_eight_bits_are_those_of_the_twin():
    stored = StoredWeight(KERNEL, "int8", "w")
    assert stored.values.dtype == "int8"
    assert stored.values.shape == (2, 3, 64, 3)
    assert stored.scales.dtype == "float16"
    assert stored.scales.shape == (2, 3, 1, 3)
    np.testing.assert_allclose(stored.value(), twin(KERNEL), rtol=1e-6, atol=1e-9)


def test_the_error_is_at_most_half_a_step_of_the_group():
    found = StoredWeight(KERNEL, "int8", "w").value().numpy()
    for start in (0, 64, 128):
        group = KERNEL[:, start : start + 64]
        step = np.abs(group).max(axis=1, keepdims=True) / 127
        assert np.all(np.abs(found[:, start : start + 64] - group) <= 0.51 * step)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_what_is_rounded_once_stays(dtype):
    once = StoredWeight(KERNEL, dtype, "w").value().numpy()
    np.testing.assert_array_equal(StoredWeight(once, dtype, "w").value(), once)


def test_groups_of_zeros_are_zeros():
    values = KERNEL.copy()
    values[:, :64] = 0.0
    found = StoredWeight(values, "int8", "w").value().numpy()
    np.testing.assert_array_equal(found[:, :64], 0.0)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("shape", [(150,), (63, 5), ()])
def test_weights_of_few_inputs_are_kept_in_half_precision(shape):
    values = RNG.normal(size=shape).astype(np.float32)
    stored = StoredWeight(values, "int8", "w")
    assert stored.scales is None
    np.testing.assert_array_equal(stored.value(), values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e6), ("int8", 1e8), ("float32", np.nan), ("int8", np.nan)])
def test_weights_beyond_a_dtype_are_refused_by_name(dtype, value):
    values = KERNEL.copy()
    values[0, 0, 0] = value
    with pytest.raises(ValueError, match="dense/kernel holds values that are not finite"):
        StoredWeight(values, dtype, "dense/kernel")


def test_a_choice_is_one_dtype_for_all_weights_or_one_for_those_of_the_posterior():
    is_posterior = [True, False, True]
    for dtype in DTYPES:
        assert dtypes(dtype, is_posterior) == [dtype] * 3
    assert dtypes("int8_posterior", is_posterior) == ["int8", "float16", "int8"]
    with pytest.raises(ValueError, match="one of float32, float16, int8, int8_posterior, found 'bfloat16'"):
        dtypes("bfloat16", is_posterior)

"""Weights as bundles store them."""

import contextlib

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tfstruct.functional import Functional
from tfstruct.models import presets, registry
from tfstruct.serving.weights import CHOICES, StoredWeight, rounded, store, unpacked

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(scale=[0.01, 0.1, 1.0], size=[2, 150, 3]).astype(np.float32)


def twin(values):
    """Eight bits in groups of 50 of the 150 inputs, in float64, one number after another."""
    result = np.zeros(values.shape)
    for place in np.ndindex(*values.shape[:-2], values.shape[-1]):
        column = (*place[:-1], slice(None), place[-1])
        for start in range(0, 150, 50):
            group = values[column][start : start + 50].astype(np.float64)
            scale = float(ml_dtypes.bfloat16(np.abs(group).max() / 127))
            result[column][start : start + 50] = [0.0 if scale == 0 else round(x / scale) * scale for x in group]
    return result


def test_float32_is_the_weight_itself():
    np.testing.assert_array_equal(StoredWeight(KERNEL, "float32", "w").value(), KERNEL)


def test_eight_bits_are_those_of_the_twin():
    stored = StoredWeight(KERNEL, "int8", "w")
    assert stored.values.dtype == "int8"
    assert stored.values.shape == (2, 3, 50, 3)
    assert stored.scales.dtype == "bfloat16"
    assert stored.scales.shape == (2, 3, 1, 3)
    np.testing.assert_allclose(stored.value(), twin(KERNEL), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-8, 1e4])
def test_the_error_is_at_most_half_a_step_of_the_group(size):
    found = StoredWeight(size * KERNEL, "int8", "w").value().numpy()
    for start in (0, 50, 100):
        group = size * KERNEL[:, start : start + 50]
        step = np.abs(group).max(axis=1, keepdims=True) / 127
        assert np.all(np.abs(found[:, start : start + 50] - group) <= 0.51 * step)


@pytest.mark.parametrize(("inputs", "shape"), [(64, (1, 64, 5)), (65, (2, 33, 5)), (784, (13, 61, 5))])
def test_groups_are_equal_and_hardly_filled_up(inputs, shape):
    stored = StoredWeight(RNG.normal(size=[inputs, 5]).astype(np.float32), "int8", "w")
    assert tuple(stored.values.shape) == shape
    assert stored.value().shape == (inputs, 5)


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-8])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_what_is_rounded_once_stays(dtype, size):
    once = StoredWeight(np.float32(size) * KERNEL, dtype, "w").value().numpy()
    np.testing.assert_array_equal(StoredWeight(once, dtype, "w").value(), once)


def test_groups_of_zeros_are_zeros():
    values = KERNEL.copy()
    values[:, :50] = 0.0
    found = StoredWeight(values, "int8", "w").value().numpy()
    np.testing.assert_array_equal(found[:, :50], 0.0)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("shape", [(150,), (63, 5), ()])
def test_weights_of_few_inputs_are_kept_in_half_precision(shape):
    values = RNG.normal(size=shape).astype(np.float32)
    stored = StoredWeight(values, "int8", "w")
    assert stored.scales is None
    np.testing.assert_array_equal(stored.value(), values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "value"), [("float16", 1e6), ("int8", np.inf), ("float32", np.nan), ("int8", np.nan)]
)
def test_weights_beyond_a_dtype_are_refused_by_name(dtype, value):
    values = KERNEL.copy()
    values[0, 0, 0] = value
    with pytest.raises(ValueError, match="dense/kernel holds values that are not finite"):
        StoredWeight(values, dtype, "dense/kernel")


@pytest.fixture(scope="module")
def functional():
    return Functional(registry.build(presets.get("vae/tiny")))


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_is_one_dtype_for_all_parameters_or_one_for_those_of_the_posterior(functional, choice):
    parameters = functional.parameters.variables
    stored = store(functional, choice)
    for variable, weight in zip(parameters, stored, strict=False):
        own, other = ("int8", "float16") if choice == "int8_posterior" else (choice, choice)
        is_own = any(variable is posterior for posterior in functional.model.needs.posterior)
        expected = StoredWeight(variable.numpy(), own if is_own else other, "w")
        assert weight.values.dtype == expected.values.dtype
        np.testing.assert_array_equal(weight.value(), expected.value())
    statistics = stored[len(parameters) :]
    assert len(statistics) == len(functional.statistics.variables)
    assert all(weight.values.dtype == tf.float32 for weight in statistics)


def test_another_choice_is_refused(functional):
    with pytest.raises(ValueError, match="one of float32, float16, int8, int8_posterior, found 'bfloat16'"):
        store(functional, "bfloat16")


def test_a_model_is_rounded_for_a_while(functional):
    before = [variable.numpy() for variable in functional.model.variables]
    values = [weight.value().numpy() for weight in store(functional, "float16")]
    with contextlib.suppress(KeyboardInterrupt), rounded(functional, "float16"):
        for variable, value in zip(functional.parameters.variables, values, strict=False):
            np.testing.assert_array_equal(variable, value)
        for variable in functional.model.variables:
            variable.assign(tf.ones_like(variable.value))
        raise KeyboardInterrupt
    assert any(np.any(value != old) for value, old in zip(values, before, strict=False))
    for variable, old in zip(functional.model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, old)


def test_the_program_offers_every_choice():
    done = tiny.run_program("export", "--workdir=run", "--output=1", "--weights_dtype=int4")
    assert f"value should be one of <{'|'.join(CHOICES)}>" in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize(("values", "scales", "match"), [
    ((2, 3, 50, 3), (2, 3, 1, 1), r"has scales \[2, 3, 1, 1\] for a weight \[2, 150, 3\]"),
    ((2, 3, 50, 3), (2, 1, 1, 3), "has scales"),
    ((2, 3, 51, 3), (2, 3, 1, 3), r"has shape \[2, 3, 51, 3\], expected \[2, 3, 50, 3\]"),
    ((2, 150, 3), (2, 3, 1, 3), "has shape"),
    ((2, 3, 50, 3), None, r"has shape \[2, 3, 50, 3\], expected \[2, 150, 3\]"),
])  # fmt: skip
def test_what_belongs_to_another_weight_is_refused(values, scales, match):
    with pytest.raises(ValueError, match=match):
        unpacked(np.zeros(values, np.int8), None if scales is None else np.ones(scales), KERNEL.shape)

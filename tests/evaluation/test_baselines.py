"""Bits per dimension of models without latents: exact, and flagged where a model is worse."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from tfstruct.data import load
from tfstruct.evaluation import baselines

RNG = np.random.default_rng(0)


def data_of(folder, splits, variant="none"):
    np.savez(folder / "rows.npz", **splits)
    return load("file", variant, data_file=folder / "rows.npz")


def test_the_histogram_of_zeros_and_ones_is_that_of_every_dimension(tmp_path):
    train = np.array([[0, 1], [0, 1], [1, 1]], np.uint8)
    data = data_of(tmp_path, {"train": train, "validation": train, "test": np.array([[1, 0], [0, 1]], np.uint8)})
    found = baselines.bits_per_dim(data, data.test)
    # One row's weight more, half of it for each value: 1.5 of 4 ones in the first dimension, 3.5 of 4 in the second.
    expected = -np.mean(np.log2([1.5 / 4, 0.5 / 4, 2.5 / 4, 3.5 / 4]))
    assert found == {"uniform": 1.0, "histogram": pytest.approx(expected, abs=1e-12)}


@pytest.mark.parametrize("variant", ["none", "dequantized", "levels"])
def test_the_histogram_of_levels_is_a_count_of_bytes_whether_or_not_noise_is_added(variant, tmp_path):
    train, test = (RNG.integers(0, 256, (count, 2, 3), dtype=np.uint8) // 32 * 32 for count in (50, 7))
    data = data_of(tmp_path, {"train": train, "validation": test, "test": test}, variant)
    found = baselines.bits_per_dim(data, data.test)
    probability = ((train[:, None] == test[None]).sum(axis=0) + 1.0 / 256) / 51
    assert found == {"uniform": 8.0, "histogram": pytest.approx(-np.mean(np.log2(probability)), abs=1e-9)}


def test_binarised_intensities_count_as_their_means(tmp_path):
    train = np.array([[0.25, 1.0], [0.75, 0.5]], np.float32)
    data = data_of(tmp_path, {"train": train, "validation": train, "test": np.ones((1, 2), np.float32)}, "dynamic")
    found = baselines.bits_per_dim(data, np.ones((1, 2), np.uint8))
    assert found["histogram"] == pytest.approx(-np.mean(np.log2([1.5 / 3, 2.0 / 3])), abs=1e-12)


def test_real_values_have_no_bits(tmp_path):
    rows = RNG.normal(size=(4, 2))
    assert baselines.bits_per_dim(data_of(tmp_path, {"train": rows, "validation": rows, "test": rows}), rows) is None


def test_real_rows_are_compared_with_gaussians(tmp_path):
    mixing = np.array([[1.0, 0.0, 0.0], [2.0, 0.5, 0.0], [0.0, 1.0, 3.0]])
    train, test = (5.0 + RNG.normal(size=(count, 3)) @ mixing.T for count in (400, 50))
    data = data_of(tmp_path, {"train": train, "validation": test, "test": test})
    seen, new = data.train.astype(np.float64), data.test.astype(np.float64)
    found = baselines.log_densities(data, data.test)
    alone = stats.norm(seen.mean(axis=0), seen.std(axis=0)).logpdf(new).sum(axis=1)
    together = stats.multivariate_normal(seen.mean(axis=0), np.cov(seen, rowvar=False, bias=True)).logpdf(new)
    assert found == {
        "independent Gaussians": pytest.approx(alone.mean(), rel=1e-9),
        "Gaussian": pytest.approx(together.mean(), rel=1e-9),
    }
    few = dataclasses.replace(data, train=data.train[:29])
    assert list(baselines.log_densities(few, data.test)) == ["independent Gaussians"]
    still = data.train.copy()
    still[:, 1] = 2.0
    assert baselines.log_densities(dataclasses.replace(data, train=still), data.test) is None
    again = data.train.copy()
    again[:, 1] = 2.0 * again[:, 0]
    assert list(baselines.log_densities(dataclasses.replace(data, train=again), data.test)) == ["independent Gaussians"]


@pytest.mark.parametrize("kind", ["sum", "classes", "opposite"])
@pytest.mark.parametrize("seed", range(4))
def test_values_that_others_give_have_no_gaussian_whose_density_is_rounding(kind, seed, tmp_path):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(500, 3))
    dependent = {
        "sum": values[:, :1] + values[:, 1:2],
        "classes": np.eye(4)[rng.integers(0, 4, 500)],
        "opposite": np.stack([chosen := rng.integers(0, 2, 500), 1 - chosen], axis=1),
    }
    rows = np.concatenate([values, dependent[kind]], axis=1)
    data = data_of(tmp_path, {"train": rows[:400], "validation": rows[400:], "test": rows[400:]})
    assert list(baselines.log_densities(data, data.test)) == ["independent Gaussians"]


def test_densities_are_of_all_rows_however_many_are_read_at_a_time(tmp_path):
    rows = RNG.normal(3.0, 2.0, size=(2_500, 2, 2)) + RNG.normal(size=(2_500, 1, 1))
    data = data_of(tmp_path, {"train": rows, "validation": rows, "test": rows})
    new = data.test.reshape(-1, 4).astype(np.float64)
    together = stats.multivariate_normal(new.mean(axis=0), np.cov(new, rowvar=False, bias=True)).logpdf(new)
    assert baselines.log_densities(data, data.test)["Gaussian"] == pytest.approx(together.mean(), rel=1e-9)


def test_zeros_and_ones_have_no_densities(tmp_path):
    rows = RNG.integers(0, 2, (40, 2))
    assert baselines.log_densities(data_of(tmp_path, {"train": rows, "validation": rows, "test": rows}), rows) is None


def report(bits, log_likelihood=0.0, std_err=0.0):
    return {"bits_per_dim": bits, "log_likelihood": log_likelihood, "std_err": std_err}


def test_a_model_that_is_worse_by_more_than_its_error_is_flagged():
    simple = {"uniform": 1.0, "histogram": 0.5}
    error = 0.01 * 7 * np.log(2.0)  # of the log-likelihood of seven values whose bits have the error 0.01
    assert baselines.flags(simple, report(0.51, std_err=error), 7) == baselines.flags(None, report(9.0), 7) == []
    assert baselines.flags(simple, report(0.6, std_err=error), 7) == [
        "worse than no model: 0.6000 bits/dim, the histogram model has 0.5000"
    ]
    assert len(baselines.flags(simple, report(1.1, std_err=error), 7)) == 2
    gaussian = {"independent Gaussians": -18.3}
    assert baselines.flags(gaussian, report(None, -18.49, 0.1), 7) == []
    assert baselines.flags(gaussian, report(None, -18.51, 0.1), 7) == [
        "worse than no model: -18.51 nats, the independent Gaussians model has -18.30"
    ]


def test_baselines_stand_beside_the_models_number():
    assert baselines.text({"uniform": 1.0, "histogram": 0.5}) == " (uniform 1.0000, histogram 0.5000)"
    assert baselines.text({"independent Gaussians": -18.3, "Gaussian": -16.234}) == (
        " (independent Gaussians -18.30, Gaussian -16.23)"
    )
    assert baselines.text(None) == ""

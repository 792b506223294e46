"""The detector in the manner of scikit-learn: its own checks, false alarms, units."""

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import tfstruct
from tfstruct.evaluation.detector import DensityDetector

FAST = {"overrides": ("model.hidden_units=(8, 8)", "model.num_latents=2"), "num_samples": 10, "random_state": 0}


def ring(rng, count):
    """Points near a circle: their mean is as far from all of them as anything."""
    angle = rng.uniform(0, 2 * np.pi, count)
    return np.stack([3 * np.cos(angle), 3 * np.sin(angle)], axis=1) + 0.2 * rng.normal(size=[count, 2])


@pytest.fixture(scope="module")
def fitted():
    return DensityDetector(steps=800, random_state=3).fit(ring(np.random.default_rng(0), 1_600))


def test_the_middle_of_a_ring_is_an_anomaly_and_its_points_are_not(fitted, rng):
    normal, other = ring(rng, 500), 0.3 * rng.normal(size=[100, 2])
    assert (fitted.predict(other) == -1).mean() > 0.95
    # 400 rows set the threshold: each adds as much variance as a row that is decided on.
    assert abs((fitted.predict(normal) == -1).mean() - 0.05) < 4.5 * np.sqrt(0.05 * 0.95 * (1 / 500 + 1 / 400))
    np.testing.assert_array_equal(fitted.predict(normal) == -1, fitted.decision_function(normal) < 0)
    p_values = fitted.p_values(normal)
    assert abs(p_values.mean() - 0.5) < 4.5 * np.sqrt((1 / 500 + 1 / 400) / 12)
    assert fitted.p_values(other).max() < p_values.mean()


def test_what_no_density_can_be_computed_of_is_an_anomaly(fitted):
    far = np.array([[1e15, 0.0], [1e25, 1e25], [-1e38, 1e38]])
    assert (fitted.predict(far) == -1).all()
    assert (fitted.score_samples(far) < fitted.calibration_.min()).all()
    np.testing.assert_allclose(fitted.p_values(far), 1 / (len(fitted.calibration_) + 1))


def test_scores_are_densities_in_the_units_of_the_rows(fitted):
    grid = np.linspace(-6.0, 6.0, 121)
    points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    mass = np.exp(fitted.score_samples(points).astype(np.float64)).sum() * (grid[1] - grid[0]) ** 2
    # Importance samples are without bias; one set of 100 serves all points, so the sum has an error of its own.
    assert mass == pytest.approx(1.0, abs=0.1)


# One place too far is one alarm more among hundreds of rows, which no share of alarms shows.
@pytest.mark.parametrize("rate", [0.04, 0.11, 0.2, 0.34, 0.97])
def test_of_the_rows_held_out_those_are_anomalies_whose_p_values_are_at_most_the_rate(rate, rng, monkeypatch):
    monkeypatch.setattr(DensityDetector, "score_samples", lambda _, rows: rows[:, 0].astype(np.float64))
    detector = DensityDetector(false_alarm_rate=rate, steps=1, random_state=0).fit(rng.normal(size=[80, 2]))
    assert len(detector.calibration_) == 20
    p_values = np.arange(2, 22) / 21.0  # ascending scores: of each the part that is as low, itself once more
    np.testing.assert_array_equal(detector.calibration_ < detector.offset_, p_values <= rate)


def test_binary_rows_make_a_model_of_zeros_and_ones(rng):
    rows = (rng.random([200, 6]) < 0.2).astype(float)
    detector = DensityDetector(steps=100, **FAST).fit(rows)
    states = np.array(np.meshgrid(*[[0.0, 1.0]] * 6)).reshape(6, -1).T
    total = np.exp(detector.score_samples(states).astype(np.float64)).sum()
    assert total == pytest.approx(1.0, abs=0.1)
    with pytest.raises(ValueError, match="fitted to zeros and ones, found other values"):
        detector.score_samples(rows + 0.5)


def test_it_stands_in_a_pipeline_and_is_found_by_its_name(rng):
    assert tfstruct.DensityDetector is DensityDetector
    rows = rng.normal(5.0, 3.0, [60, 3])
    pipeline = make_pipeline(StandardScaler(), DensityDetector(steps=20, **FAST)).fit(rows)
    assert set(pipeline.predict(rows)) <= {-1, 1}


@pytest.mark.parametrize("setting", [{"false_alarm_rate": 0.0}, {"held_out": 1.0}])
def test_settings_out_of_range_are_refused(rng, setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} must be above 0 and below 1"):
        DensityDetector(**setting).fit(rng.normal(size=[20, 2]))


@pytest.mark.slow
@parametrize_with_checks([DensityDetector(steps=20, **FAST)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)

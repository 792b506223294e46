"""Calibrated anomaly scores: p-values against counting, uniform for normal rows, and bundles that have them."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tfstruct
from tfstruct import files
from tfstruct.inference.code_length import code_length
from tfstruct.serving import contents, verification
from tfstruct.serving.anomaly import AnomalyScores
from tfstruct.serving.calibration import Rows, calibrate
from tfstruct.serving.contents import DamagedBundleError, UntrustedBundleError

ABOUT = {"name": "file", "variant": "none", "split": "validation", "checksum": "0"}
DIMS = 3
CARD = {"support": "real", "event_shape": [DIMS], "part_shapes": [], "leaf_regions": [], "signatures": {}}


def gaussian(x, seed):
    """log N(x; 0, 1), without the constant, which changes no rank; not finite outside the support."""
    del seed
    return {"log_prob": -0.5 * tf.reduce_sum(tf.square(x), axis=1)}


def made(normal, card=None, functions=None, background=None):
    scores = AnomalyScores(functions or {"log_prob": gaussian}, CARD | (card or {}), [], background)
    scores.calibrate(scores.statistics(np.asarray(normal, np.float32), np.arange(len(normal))))
    return scores


def asked(scores, x, alpha=0.05):
    x = tf.constant(x, tf.float32)
    answers = scores.anomaly(x, tf.range(len(x), dtype=tf.int64), tf.fill([len(x)], alpha))
    return {name: values.numpy() for name, values in answers.items()}


def test_p_values_are_the_counts_of_normal_rows_that_are_as_unusual(rng):
    normal, x = rng.normal(size=(41, DIMS)), rng.normal(size=(30, DIMS)) * 1.5
    log_prob = lambda rows: -0.5 * np.sum(np.float32(rows).astype(np.float64) ** 2, axis=1)  # noqa: E731
    center = log_prob(normal[::2]).mean()
    score = {"likelihood": log_prob, "typicality": lambda rows: -np.abs(log_prob(rows) - center)}

    def p(rows, name):
        table = score[name](normal[::2])
        return np.array([(1 + np.sum(table <= s)) / (len(table) + 1) for s in score[name](rows)])

    def least(rows):
        return np.minimum(p(rows, "likelihood"), p(rows, "typicality"))

    table = least(normal[1::2])
    expected = np.array([(1 + np.sum(table <= s)) / (len(table) + 1) for s in least(x)])
    found = asked(made(normal), x)
    for name in score:
        np.testing.assert_allclose(found[f"{name}_p_value"], p(x, name), rtol=1e-6)
    np.testing.assert_allclose(found["p_value"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["typicality_score"], score["typicality"](x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["is_anomaly"], found["p_value"] <= np.float32(0.05))


def test_p_values_of_other_normal_rows_are_uniform(rng):
    found = asked(made(rng.normal(size=(4_000, DIMS))), rng.normal(size=(4_000, DIMS)))
    for name in ("p_value", "likelihood_p_value", "typicality_p_value"):
        # Two samples of 2,000 and 4,000: at a level of 1e-4 a largest deviation above 0.061 would be seen.
        assert stats.kstest(found[name], "uniform").statistic < 0.061
    # Each alarm is one of 4,000 draws; the table of 2,000 adds as much variance again and half.
    assert abs(found["is_anomaly"].mean() - 0.05) < 4.5 * np.sqrt(0.05 * 0.95 * (1 / 4_000 + 1 / 2_000))


def test_each_row_has_a_false_alarm_rate_of_its_own(rng):
    scores, x = made(rng.normal(size=(200, DIMS))), rng.normal(size=(5, DIMS))
    p_value = asked(scores, x)["p_value"]
    alpha = np.array([0.0, 1.0, p_value[2], np.nextafter(p_value[3], np.float32(0)), 0.5], np.float32)
    found = scores.anomaly(tf.constant(x, tf.float32), tf.range(5, dtype=tf.int64), tf.constant(alpha))["is_anomaly"]
    np.testing.assert_array_equal(found, [False, True, True, False, p_value[4] <= 0.5])


def test_a_row_outside_the_support_is_an_anomaly_at_every_rate_and_disturbs_no_other(rng):
    def of_binary(x, seed):
        inside = tf.reduce_all((x == 0.0) | (x == 1.0), axis=1)
        return {"log_prob": tf.where(inside, gaussian(x, seed)["log_prob"], tf.constant(-np.inf))}

    normal = rng.integers(0, 2, (50, DIMS))
    scores = made(normal, {"support": "binary"}, {"log_prob": of_binary})
    rows = normal[:5].astype(np.float32)
    expected = asked(scores, rows)
    rows[1], rows[3] = np.nan, 1e9
    found = asked(scores, rows, alpha=0.0)
    np.testing.assert_array_equal(found["valid"], [True, False, True, False, True])
    np.testing.assert_array_equal(found["is_anomaly"], [False, True, False, True, False])
    for name, values in found.items():
        if name not in ("valid", "is_anomaly"):
            np.testing.assert_array_equal(values[::2], expected[name][::2], err_msg=name)
            np.testing.assert_array_equal(values[[1, 3]], 0.0 if name.endswith("p_value") else -np.inf, err_msg=name)


def test_scores_are_compared_with_a_code_and_with_a_background(rng):
    normal = rng.integers(0, 2, (20, DIMS)).astype(np.float32)
    found = asked(
        made(normal, {"support": "binary"}, background=lambda x, seed: {"log_prob": 3.0 * tf.reduce_sum(x, axis=1)}),
        normal,
    )
    log_prob = -0.5 * normal.sum(axis=1)
    np.testing.assert_allclose(found["complexity_score"], log_prob + code_length(tf.constant(normal), "binary"), 1e-6)
    np.testing.assert_allclose(found["background_score"], log_prob - 3.0 * normal.sum(axis=1), 1e-6)


def test_of_a_conditional_model_the_code_is_that_of_the_modelled_part_once_the_given_one_is_known(rng):
    card = {"support": "binary", "event_shape": [6, 5], "part_shapes": [[2, 5], [4, 5]]}
    x = rng.integers(0, 2, (20, 6, 5)).astype(np.float32)
    found = asked(made(x, card, {"log_prob": lambda x, seed: {"log_prob": tf.zeros(tf.shape(x)[0])}}), x)
    expected = code_length(tf.constant(x), "binary") - code_length(tf.constant(x[:, :2]), "binary")
    np.testing.assert_allclose(found["complexity_score"], expected, rtol=1e-5)


def test_regions_have_p_values_of_their_own(rng):
    def by_region(x, seed):
        del seed
        return {
            "contribution": -tf.square(x),
            "structure": tf.zeros(tf.shape(x)[0]),
            "conditional": -tf.abs(x),
        }

    card = {"leaf_regions": [[0], [1], [2]], "signatures": {"region_log_prob": {"outputs": {"conditional": {}}}}}
    normal = rng.normal(size=(99, DIMS)).astype(np.float32)
    scores = made(normal, card, {"region_log_prob": by_region})
    x = np.array([[0.0, 9.0, normal[7, 2]]], np.float32)
    found = asked(scores, x)
    at_the_last = (1 + np.sum(np.abs(normal[:, 2]) >= np.abs(normal[7, 2]))) / 100
    np.testing.assert_allclose(found["region_p_value"], [[1.0, 0.01, at_the_last]], rtol=1e-6)
    np.testing.assert_allclose(found["log_prob"], -np.sum(x**2, axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"), [(np.zeros([3, DIMS]), "found 3 rows, 0 of them"), (np.full([9, DIMS], np.inf), "9 rows, 9 ")]
)
def test_too_few_or_impossible_normal_rows_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        made(rows)


# Bundles --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(trained):
    return np.asarray(trained.data.validation, np.float32), np.asarray(trained.data.test, np.float32)


@pytest.fixture(scope="module")
def calibrated(model, rows, tmp_path_factory):
    """The tiny bundle with itself as background; half of the normal rows are enough for a test."""
    foreign = {"ones": np.ones([30, 4], np.float32)}
    return tfstruct.load(
        calibrate(
            model,
            tmp_path_factory.mktemp("calibrated") / "tiny/2",
            Rows(rows[0], **ABOUT),
            background=model,
            test=Rows(rows[1], **ABOUT | {"split": "test"}),
            foreign=foreign,
            baselines={"sum": lambda values: -values.sum(axis=1)},
        )
    )


def test_a_calibrated_bundle_answers_as_before_and_says_what_is_unusual(model, calibrated, rows):
    verification.verify(calibrated.path)
    x = rows[1][:20]
    for name in ("log_prob", "elbo"):
        before, after = (getattr(served, name)(x, seed=3) for served in (model, calibrated))
        for key in before:
            np.testing.assert_array_equal(before[key], after[key])
    found = calibrated.anomaly(x, seed=3)
    np.testing.assert_array_equal(found["log_prob"], model.log_prob(x, seed=3)["log_prob"])
    # The background is the model itself.
    np.testing.assert_allclose(found["background_score"], 0.0, atol=1e-5)
    np.testing.assert_array_equal(found["is_anomaly"], found["p_value"] <= 0.05)
    assert calibrated.anomaly(x, alpha=1.0)["is_anomaly"].all()
    each = np.linspace(0.0, 1.0, 20)
    np.testing.assert_array_equal(
        calibrated.anomaly(x, alpha=each, seed=3, batch_size=7)["is_anomaly"], found["p_value"] <= np.float32(each)
    )


def test_the_card_and_its_page_say_how_well_the_scores_do(calibrated, rows):
    calibration = calibrated.card["calibration"]
    assert (calibration["rows"], calibration["data"]) == (len(rows[0]), ABOUT)
    assert calibration["scores"] == ["likelihood", "typicality", "complexity", "background"]
    assert calibration["background"]["preset"] == "graph_vae/tiny"
    alarms = calibration["test"]["false_alarms"]
    assert set(alarms) == {*calibration["scores"], "p_value", "sum"}
    found = calibration["foreign"]["ones"]
    assert found["rows"] == 30
    assert set(found["scores"]) == set(alarms)
    # The sum ranks a row of ones below every other: only rows of ones themselves tie.
    is_ones = (rows[1] == 1).all(axis=1)
    assert found["scores"]["sum"]["auroc"][0] == pytest.approx(1.0 - is_ones.mean() / 2)
    page = (calibrated.path / contents.PAGE_NAME).read_text()
    area = "{:.3f} [{:.3f}, {:.3f}]".format(*found["scores"]["p_value"]["auroc"])
    assert f"| p_value | {area} |" in page
    assert "log p(x) less log p(x) of a model of corrupted data (graph_vae/tiny)" in page
    assert " --model=BUNDLE --output=CALIBRATED --background=BACKGROUND" in page


def test_a_calibrated_bundle_is_calibrated_anew_and_keeps_its_background(calibrated, rows, tmp_path):
    again = tfstruct.load(calibrate(calibrated, tmp_path / "3", Rows(rows[1], **ABOUT)))
    assert again.card["calibration"]["background"] == calibrated.card["calibration"]["background"]
    assert again.card["calibration"]["test"] is None
    x = rows[1][:10]
    np.testing.assert_array_equal(again.anomaly(x)["background_score"], calibrated.anomaly(x)["background_score"])
    np.testing.assert_array_equal(
        again.query("background_log_prob", x=x, seed=0)["log_prob"],
        calibrated.query("background_log_prob", x=x, seed=0)["log_prob"],
    )


@pytest.mark.parametrize("alpha", [-0.1, 1.1, np.nan, "a", [0.1, 0.2], True])
def test_a_false_alarm_rate_that_is_none_is_refused(calibrated, rows, alpha):
    with pytest.raises(ValueError, match=r"alpha must be a number in \[0, 1\], or one for each row"):
        calibrated.anomaly(rows[1][:3], alpha=alpha)


def test_a_model_that_is_not_calibrated_says_so(model, rows):
    with pytest.raises(ValueError, match="is not calibrated for anomalies; tfstruct-calibrate does that"):
        model.anomaly(rows[1][:3])


def test_rows_that_the_model_cannot_score_and_folders_that_exist_are_refused_before_anything_is_computed(
    model, rows, tmp_path
):
    with pytest.raises(ValueError, match="must be 0 or 1"):
        calibrate(model, tmp_path / "1", Rows(rows[0] * 0.5, **ABOUT))
    with pytest.raises(ValueError, match=r"shape \[N, 4\]"):
        calibrate(model, tmp_path / "1", Rows(rows[0], **ABOUT), foreign={"other": np.zeros([2, 5])})
    (tmp_path / "2").mkdir()
    with pytest.raises(FileExistsError, match="nothing was written"):
        calibrate(model, tmp_path / "2", Rows(rows[0], **ABOUT))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2"]


def test_a_background_of_other_observations_is_refused(model, rows, tmp_path):
    other = tfstruct.load(model.path)
    other.card = other.card | {"support": "real"}
    with pytest.raises(ValueError, match="other observations than the model: support real, expected binary"):
        calibrate(model, tmp_path / "1", Rows(rows[0], **ABOUT), background=other)


def test_the_schema_of_a_card_knows_calibrations(calibrated, tmp_path):
    copy = shutil.copytree(calibrated.path, tmp_path / "1")
    card = json.loads((copy / contents.CARD_NAME).read_text())
    card["calibration"]["rows"] = "many"
    (copy / contents.CARD_NAME).write_text(json.dumps(card))
    files.write_checksums(copy)
    with pytest.raises((DamagedBundleError, UntrustedBundleError), match="calibration.rows"):
        tfstruct.load(copy)

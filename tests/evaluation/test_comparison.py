import json
import math

import numpy as np
import pytest

from tfstruct.evaluation import comparison, report
from tfstruct.evaluation.comparison import Group, compare, read_group, to_markdown

SETTING = {"name": "mnist", "variant": "static", "split": "test", "images": 3, "checksum": "c", "num_samples": 7}


def group(name, log_prob, elbo=None, **setting):
    log_prob = np.array(log_prob, np.float64)
    elbo = np.array(log_prob.mean(axis=1) - 2.0 if elbo is None else elbo)
    return Group(name, log_prob, elbo, SETTING | setting, 1234)


def write(folder, seeds, log_prob, elbo=-9.0, split="test", tag="", **changes):
    """Files as an evaluation writes them."""
    folder.mkdir(exist_ok=True)
    stem = report.evaluation_stem(split, tag)
    data = {"name": "mnist", "variant": "static", "split": split, "images": 3, "checksum": "c"}
    written = {
        "data": data | {key: value for key, value in changes.items() if key in data},
        "num_samples": changes.get("num_samples", 7),
        "num_parameters": changes.get("num_parameters", 1234),
        "preset": changes.get("preset", "vae/tiny"),
        "trained_steps": changes.get("trained_steps", 20),
        "flags": changes.get("flags", []),
        "replicas": [{"seed": seed, "elbo": elbo} for seed in seeds],
    }
    (folder / f"{stem}.json").write_text(json.dumps(written))
    np.savez(folder / f"{stem}_log_prob.npz", log_prob=np.array(log_prob, np.float32))
    return folder


def test_means_deviations_and_differences_are_those_worked_out_by_hand():
    first = group("a", [[-1.0, -2.0, -3.0], [-3.0, -4.0, -8.0]], elbo=[-3.0, -6.0])
    other = group("b", [[-2.0, -3.0, -4.0], [-4.0, -4.0, -4.0], [-6.0, -8.0, -7.0]], elbo=[-5.0, -6.0, -10.0])
    result = compare([first, other])
    a, b = result["models"]
    # Seeds: a -2, -5; b -3, -4, -7.
    assert a["seeds"] == [-2.0, -5.0]
    assert a["log_likelihood"] == -3.5
    assert a["std_over_seeds"] == pytest.approx(math.sqrt(4.5))
    assert b["log_likelihood"] == pytest.approx(-14 / 3)
    assert b["std_over_seeds"] == pytest.approx(math.sqrt(13 / 3))
    assert a["elbo"] == -4.5
    # Images, seeds averaged: a -2, -3, -5.5; b -4, -5, -5.
    assert a["std_err_over_images"] == pytest.approx(math.sqrt(3.25 / 3))
    (difference,) = result["differences"]
    assert (difference["first"], difference["other"]) == ("a", "b")
    assert difference["log_likelihood"] == pytest.approx(-3.5 + 14 / 3)
    assert difference["std_err_over_seeds"] == pytest.approx(math.sqrt(4.5 / 2 + 13 / 9))
    # Paired: 2, 2, -0.5, with variance 25 / 12.
    assert difference["std_err_over_images"] == pytest.approx(math.sqrt(25 / 12 / 3))
    assert difference["elbo"] == pytest.approx(-4.5 + 7.0)


def test_every_model_is_compared_with_the_first():
    groups = [group(name, [[value] * 3]) for name, value in (("a", -1.0), ("b", -3.0), ("c", -2.5))]
    differences = compare(groups)["differences"]
    assert [(row["other"], row["log_likelihood"]) for row in differences] == [("b", 2.0), ("c", 1.5)]


def test_a_single_seed_has_no_error_over_seeds():
    result = compare([group("a", [[-1.0, -2.0, -3.0]]), group("b", [[-1.0, -2.0, -4.0], [-2.0, -2.0, -2.0]])])
    assert result["models"][0]["std_over_seeds"] is None
    assert result["differences"][0]["std_err_over_seeds"] is None
    assert result["models"][1]["std_over_seeds"] is not None
    assert "| a | 1,234 | 1 | -2.00 | - | 0.58 | -4.00 |" in to_markdown(result)


@pytest.mark.parametrize(
    ("key", "value"),
    [("variant", "dynamic"), ("split", "validation"), ("images", 2), ("checksum", "d"), ("num_samples", 100)],
)
def test_numbers_that_do_not_compare_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=f"a and b do not compare: {key} {SETTING[key]} / {value}"):
        compare([group("a", [[-1.0] * 3]), group("b", [[-1.0] * 3], **{key: value})])


def test_two_models_of_one_name_are_refused():
    with pytest.raises(ValueError, match="the same name, found a, a"):
        compare([group("a", [[-1.0] * 3]), group("a", [[-2.0] * 3])])


def test_one_model_is_no_comparison():
    with pytest.raises(ValueError, match="at least two models, found 1"):
        compare([group("a", [[-1.0] * 3])])


def test_the_seeds_of_several_folders_are_one_group(tmp_path):
    one = write(tmp_path / "one", [0, 1], [[-1, -2, -3], [-4, -5, -6]], elbo=-8.0)
    two = write(tmp_path / "two", [2], [[-7, -8, -9]], elbo=-10.0)
    found = read_group("a", [one, two])
    np.testing.assert_array_equal(found.log_prob, [[-1, -2, -3], [-4, -5, -6], [-7, -8, -9]])
    np.testing.assert_array_equal(found.elbo, [-8.0, -8.0, -10.0])
    assert found.setting == SETTING
    assert found.num_parameters == 1234


def test_a_split_and_a_tag_choose_the_files(tmp_path):
    folder = write(tmp_path / "run", [0], [[-1, -1, -1]])
    write(folder, [0], [[-2, -2, -2]], split="validation", tag="k100")
    assert read_group("a", [folder]).log_prob.mean() == -1.0
    assert read_group("a", [folder], split="validation", tag="k100").log_prob.mean() == -2.0
    there = r"evaluation_k5.json does not exist \(evaluations there: evaluation.json, evaluation_validation_k100.json\)"
    with pytest.raises(FileNotFoundError, match=there + ".*--tag=k5 first, with the number of samples"):
        read_group("a", [folder], tag="k5")


def test_runs_of_one_model_must_differ_in_their_seeds_and_in_nothing_else(tmp_path):
    one = write(tmp_path / "one", [0], [[-1, -2, -3]])
    with pytest.raises(ValueError, match="a seed was given twice"):
        read_group("a", [one, write(tmp_path / "two", [0], [[-1, -2, -3]])])
    with pytest.raises(ValueError, match="do not compare: num_samples 7 / 8"):
        read_group("a", [one, write(tmp_path / "three", [1], [[-1, -2, -3]], num_samples=8)])
    for key, value in (("num_parameters", 99), ("preset", "fc_vae/tiny"), ("trained_steps", 10)):
        with pytest.raises(ValueError, match=f"do not compare: {key} .* / {value}"):
            read_group("a", [one, write(tmp_path / "four", [1], [[-1, -2, -3]], **{key: value})])
    with pytest.raises(ValueError, match="no run was given"):
        read_group("a", [])


def test_files_that_do_not_belong_together_or_have_no_mean_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(1, 4\), but evaluation.json tells of \(1, 3\)"):
        read_group("a", [write(tmp_path / "one", [0], [[-1, -2, -3, -4]])])
    for value in (np.nan, -np.inf):
        with pytest.raises(ValueError, match="not finite"):
            read_group("a", [write(tmp_path / "two", [0], [[-1, value, -3]])])


def test_flags_of_the_evaluations_are_shown(tmp_path):
    folder = write(tmp_path / "one", [0], [[-1, -2, -3]], flags=["undecided: a gate"])
    result = compare([read_group("a", [folder]), group("b", [[-1.0] * 3])])
    assert result["models"][0]["flags"] == ["undecided: a gate"]
    assert to_markdown(result).endswith("\n\nFLAGGED a: undecided: a gate")
    assert "FLAGGED" not in to_markdown(compare([group("a", [[-1.0] * 3]), group("b", [[-1.0] * 3])]))


def test_what_an_evaluation_writes_can_be_compared(run, result, tmp_path):
    report.evaluate(run, num_samples=5, tag="k5")
    found = read_group("a", [run.folder.path], tag="k5")
    assert found.setting["num_samples"] == 5
    assert found.log_prob.shape == (2, 40)
    untagged = read_group("a", [run.folder.path])
    assert untagged.setting["num_samples"] == result["num_samples"] == 7
    assert untagged.log_prob.mean() == pytest.approx(result["mean"]["log_likelihood"], rel=1e-6)
    (difference,) = compare([found, found._replace(name="b", log_prob=found.log_prob - 0.25)])["differences"]
    assert difference["log_likelihood"] == pytest.approx(0.25)


def test_a_tag_that_is_no_name_is_refused_before_anything_is_scored(run, monkeypatch):
    monkeypatch.setattr(report, "HeldOutScorer", None)
    for tag in ("a/b", "..", "k 5", "validation", "train_k5", "test"):
        with pytest.raises(ValueError, match="letters, digits, - and _ and starts with no split's name, found"):
            report.evaluate(run, tag=tag)


def test_stems_name_split_and_tag():
    stems = [comparison.evaluation_stem(*pair) for pair in (("test", ""), ("test", "k5"), ("validation", "k5"))]
    assert stems == ["evaluation", "evaluation_k5", "evaluation_validation_k5"]

"""Evaluations of other data than a run was trained on, and of what its edges are worth."""

import json

import numpy as np
import pytest

from tests.trainers import tiny
from tfstruct.data import datasets
from tfstruct.evaluation import comparison, other_data, report

SHAPE = (28, 28)


@pytest.fixture
def other(tmp_path):
    """Other rows of the shape of the run's."""
    return datasets.load("file", "none", data_file=tiny.write_rows(tmp_path / "x.npz", event_shape=(6, 6), seed=5))


def test_other_data_are_scored_into_files_of_their_own(run, result, other):
    before = (run.folder.path / "evaluation.json").read_bytes()
    found = report.evaluate(run, data=other)
    assert (run.folder.path / "evaluation.json").read_bytes() == before
    written = json.loads((run.folder.path / "evaluation_file_none.json").read_text())
    assert written["data"] == found["data"]
    assert found["data"]["checksum"] == other.checksum != run.data.checksum
    own = {"name": "file", "variant": "none", "checksum": run.data.checksum, "use_validation": False}
    assert found["data"]["trained_on"] == own
    assert result["data"]["trained_on"]["checksum"] == result["data"]["checksum"] == run.data.checksum
    # The rows are the other ones.
    with np.load(run.folder.path / "evaluation_file_none_log_prob.npz") as archive:
        own = np.load(run.folder.path / "evaluation_log_prob.npz")["log_prob"]
        assert np.abs(archive["log_prob"] - own).max() > 0.1
    workdirs = [run.folder.path]
    groups = [comparison.read_group("own", workdirs), comparison.read_group("other", workdirs, tag="file_none")]
    with pytest.raises(ValueError, match="own and other do not compare: checksum "):
        comparison.compare(groups)


def test_a_tag_never_overwrites_an_evaluation_of_other_data(run, other):
    report.evaluate(run, num_samples=2, images=2, tag="mine")
    before = (run.folder.path / "evaluation_mine.json").read_bytes()
    with pytest.raises(ValueError, match=r"tag must not be that of an evaluation of other data, found evaluation_mine"):
        report.evaluate(run, data=other, tag="mine")
    assert (run.folder.path / "evaluation_mine.json").read_bytes() == before
    report.evaluate(run, num_samples=2, images=3, tag="mine")  # the same data again


def test_the_runs_own_data_named_again_are_the_runs_own(run, result):
    found = report.evaluate(run, data=run.data)
    assert not (run.folder.path / f"evaluation_{run.data.name}_{run.data.variant}_x.json").exists()
    assert found["mean"] == result["mean"]


def test_what_fits_the_model_is_loaded():
    config = tiny.config(event_shape=SHAPE)
    assert (config.data.name, config.data.variant, config.model.likelihood) == ("mnist", "dynamic", "bernoulli")
    for label in ("mnist/static", "mnist/dynamic"):
        data = other_data.load(config, label)
        assert f"{data.name}/{data.variant}" == label
    assert other_data.load(config, "mnist/thresholded", allow_other_variant=True).variant == "thresholded"


@pytest.mark.parametrize(
    ("label", "shape", "allow", "message"),
    [
        (
            "mnist/thresholded",
            SHAPE,
            False,
            "data must be of the variant that the model was trained on, dynamic, found",
        ),
        ("mnist/grey", SHAPE, False, "data must have support binary for the likelihood bernoulli, found mnist/grey"),
        ("mnist/grey", SHAPE, True, "with unit_interval"),
        (
            "mnist/static",
            (12,),
            True,
            r"rows of shape \(12,\), as mnist/dynamic has, found mnist/static with \(28, 28\)",
        ),
        ("mnist", SHAPE, True, "data must be name/variant of a named data set, such as mnist/dynamic, found 'mnist'"),
        ("file/none", SHAPE, True, "found 'file/none'"),
        ("mnits/static", SHAPE, True, "did you mean mnist"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(label, shape, allow, message):
    with pytest.raises(ValueError, match=message):
        other_data.load(tiny.config(event_shape=shape), label, allow_other_variant=allow)


def test_edges_are_reported_and_printed_on_request(run, result):
    found = report.evaluate(run, edges=True, edge_samples=4, edge_images=20, num_samples=2, tag="edges")
    for replica, own in zip(found["replicas"], result["replicas"], strict=True):
        effects = replica["edge_effects"]
        assert (effects["num_samples"], effects["images"]) == (4, 20)
        assert len(effects["edges"]) == own["possible_edges"] == 3
        assert "edge_effects" not in own
    lines = report.edge_lines(found)
    assert report.edge_lines(result) == []
    edge = found["replicas"][0]["edge_effects"]["edges"][0]
    assert (
        lines[1]
        == f"  {'close' if edge['is_open'] else 'open'} z1 -> z2: {edge['change']:.3f} +- {edge['std_err']:.3f} nats"
    )
    assert any("average over 3 undecided" in line for line in lines)
    assert "with --edges also averages" in "".join(result["flags"])

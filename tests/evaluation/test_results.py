import dataclasses
import json
import warnings

import numpy as np
import pytest
import scipy.stats

from tests.evaluation import made_up_runs
from tests.evaluation.made_up_runs import TABLE, scores
from tfstruct.evaluation import results as results_lib
from tfstruct.evaluation.units import units
from tfstruct.models.tables import Evaluation
from tfstruct.training.checkpoint import Checkpoints


def fill(folder, workdir, seeds=(0, 1, 2), names=("graph", "open"), per_run=1, table=TABLE):
    """Results of made-up runs; returns them as read back."""
    done = [unit for unit in units(table, workdir, rows=names, seeds=seeds, per_run=per_run)]
    for unit in done:
        made_up_runs.write_training(unit.row, unit.workdir, unit.seeds)
        made_up_runs.write_evaluation(unit.row, unit.workdir, unit.seeds, flags=["loose"] * (unit.row.name == "open"))
    old = results_lib.read(folder, table)
    merged = results_lib.merge(table, old, [(unit.row, unit.workdir) for unit in done])
    results_lib.write(folder, table, merged)
    return results_lib.read(folder, table)


def test_every_number_comes_from_the_scores_of_images(tmp_path):
    found = fill(tmp_path / "results", tmp_path / "runs")
    for name in ("graph", "open"):
        values = np.stack([scores(name, seed) for seed in range(3)]).astype(np.float64)
        summary = found.document["rows"][name]["summary"]["log_likelihood"]
        assert summary["mean"] == pytest.approx(values.mean(), rel=1e-12)
        assert summary["std_over_seeds"] == pytest.approx(values.mean(axis=1).std(ddof=1), rel=1e-9)
        over_images = values.mean(axis=0)
        expected = over_images.std(ddof=1) / np.sqrt(len(over_images))
        assert summary["std_err_over_images"] == pytest.approx(expected, rel=1e-9)
        assert found.document["rows"][name]["summary"]["rate"]["quantile_99"] == pytest.approx(41.0)
        for seed in range(3):
            np.testing.assert_array_equal(found.scores[f"{name}/{seed}"], scores(name, seed))
            np.testing.assert_array_equal(found.scores[f"{name}/{seed}/elbo"], scores(name, seed) - 2.0)


def test_differences_pair_images_and_take_seeds_as_independent(tmp_path):
    first, reverse = fill(tmp_path / "results", tmp_path / "runs").document["differences"]
    one, two = (np.stack([scores(name, seed) for seed in range(3)]).astype(np.float64) for name in ("open", "graph"))
    assert (first["first"], first["other"], first["num_seeds"]) == ("open", "graph", [3, 3])
    assert first["log_likelihood"] == pytest.approx(one.mean() - two.mean(), rel=1e-9)
    paired = one.mean(axis=0) - two.mean(axis=0)
    assert first["std_err_over_images"] == pytest.approx(paired.std(ddof=1) / np.sqrt(40), rel=1e-9)
    assert first["std_err_over_images"] < 0.1 < one.mean(axis=0).std(ddof=1) / np.sqrt(40)  # pairing matters here
    means = one.mean(axis=1), two.mean(axis=1)
    variances = [values.var(ddof=1) / 3 for values in means]
    assert first["std_err_over_seeds"] == pytest.approx(np.sqrt(sum(variances)), rel=1e-9)
    degrees = sum(variances) ** 2 / sum(value**2 / 2 for value in variances)  # Welch-Satterthwaite
    half = scipy.stats.t.ppf(0.975, degrees) * np.sqrt(sum(variances))
    expected = [first["log_likelihood"] - half, first["log_likelihood"] + half]
    np.testing.assert_allclose(first["interval"], expected, rtol=1e-9)
    assert reverse["log_likelihood"] == -first["log_likelihood"]


def test_single_seeds_have_no_interval(tmp_path):
    difference = fill(tmp_path / "results", tmp_path / "runs", seeds=(4,)).document["differences"][0]
    assert difference["interval"] is difference["std_err_over_seeds"] is None
    assert difference["std_err_over_images"] > 0


def test_provenance_stands_beside_every_number(tmp_path):
    entry = fill(tmp_path / "results", tmp_path / "runs").seeds("open")["1"]
    assert entry["training"]["commit"] == entry["evaluation"]["commit"] == "abc"
    assert entry["training"]["seconds"] == 3_600.0
    assert entry["training"]["data"]["checksum"] == entry["evaluation"]["data"]["checksum"] == "c" * 64
    assert len(entry["training"]["config_sha256"]) == 64
    assert (entry["evaluation"]["num_samples"], entry["evaluation"]["data"]["images"]) == (5, 40)


def test_results_of_runs_that_are_gone_stay_and_order_does_not_matter(tmp_path):
    whole = fill(tmp_path / "a", tmp_path / "runs")
    fill(tmp_path / "b", tmp_path / "runs", seeds=(2,), names=("open",))
    fill(tmp_path / "b", tmp_path / "elsewhere", seeds=(1, 0), names=("open",))
    found = fill(tmp_path / "b", tmp_path / "third", names=("graph",))
    assert found.document == whole.document
    for path, other in zip(
        results_lib.paths(tmp_path / "a", TABLE), results_lib.paths(tmp_path / "b", TABLE), strict=True
    ):
        assert path.read_bytes() == other.read_bytes()


def test_replicas_of_one_run_are_seeds(tmp_path):
    alone, together = fill(tmp_path / "a", tmp_path / "a"), fill(tmp_path / "b", tmp_path / "b", per_run=3)
    assert together.document["rows"]["graph"]["summary"] == alone.document["rows"]["graph"]["summary"]
    assert together.seeds("graph")["2"]["training"]["replicas"] == 3


def redefine(table, name, **changes):
    rows = tuple(dataclasses.replace(row, **changes) if row.name == name else row for row in table.rows)
    return dataclasses.replace(table, rows=rows)


@pytest.mark.parametrize(
    "changes", [{"overrides": ("training.steps=101",)}, {"evaluation": Evaluation(6, 40)}, {"preset": "fc_vae/tiny"}]
)
def test_results_of_a_row_that_means_something_else_now_are_left_out_aloud(tmp_path, changes):
    fill(tmp_path / "results", tmp_path / "runs")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = results_lib.read(tmp_path / "results", redefine(TABLE, "graph", **changes))
    assert any("row graph is defined otherwise now" in str(warning.message) for warning in caught)
    # What starts from the row means something else as well, unless the row is only scored otherwise.
    assert list(found.document["rows"]) == (["open"] if "evaluation" in changes else [])
    assert {name.partition("/")[0] for name in found.scores} == set(found.document["rows"])


def test_results_of_a_row_with_another_start_are_left_out(tmp_path):
    fill(tmp_path / "results", tmp_path / "runs")
    with pytest.warns(UserWarning, match="row open is defined otherwise now"):
        found = results_lib.read(tmp_path / "results", redefine(TABLE, "open", start_from=""))
    assert list(found.document["rows"]) == ["graph"]


def test_settings_that_came_later_do_not_make_results_old(tmp_path):
    fill(tmp_path / "results", tmp_path / "runs")
    path, _ = results_lib.paths(tmp_path / "results", TABLE)
    document = json.loads(path.read_text())
    for entry in document["rows"].values():
        del entry["config"]["optimizer"]["ema_momentum"]
    path.write_text(json.dumps(document))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(results_lib.read(tmp_path / "results", TABLE).document["rows"]) == {"graph", "open"}


def test_a_change_of_a_setting_that_the_results_do_not_know_makes_them_old(tmp_path):
    fill(tmp_path / "results", tmp_path / "runs", names=("graph",))
    path, _ = results_lib.paths(tmp_path / "results", TABLE)
    document = json.loads(path.read_text())
    del document["rows"]["graph"]["config"]["model"]["share_top_down"]
    path.write_text(json.dumps(document))
    assert set(results_lib.read(tmp_path / "results", TABLE).document["rows"]) == {"graph"}
    changed = redefine(TABLE, "graph", overrides=(*made_up_runs.GRAPH, "model.share_top_down=True"))
    with pytest.warns(UserWarning, match="row graph is defined otherwise now"):
        assert not results_lib.read(tmp_path / "results", changed).document["rows"]


def test_a_way_of_evaluating_that_came_later_has_its_default(tmp_path):
    fill(tmp_path / "results", tmp_path / "runs")
    path, _ = results_lib.paths(tmp_path / "results", TABLE)
    document = json.loads(path.read_text())
    for entry in document["rows"].values():
        del entry["evaluation"]["overrides"]
    path.write_text(json.dumps(document))
    assert set(results_lib.read(tmp_path / "results", TABLE).document["rows"]) == {"graph", "open"}


def test_a_writer_killed_between_the_two_files_loses_nothing(tmp_path):
    whole = fill(tmp_path / "results", tmp_path / "runs", seeds=(0,))
    path, scores_path = results_lib.paths(tmp_path / "results", TABLE)
    np.savez(scores_path, **whole.scores, **{"graph/1": np.zeros(3)})
    found = results_lib.read(tmp_path / "results", TABLE)
    assert found.document == whole.document
    assert set(found.scores) == set(whole.scores) > {"graph/0", "open/0"}


@pytest.mark.parametrize("change", [{"num_samples": 3}, {"trained_steps": 10}, {"data": {"images": 7}}])
def test_an_evaluation_that_is_not_the_rows_is_refused(tmp_path, change):
    (unit,) = units(TABLE, tmp_path, rows=["graph"], seeds=(0,))
    made_up_runs.write_training(unit.row, unit.workdir)
    made_up_runs.write_evaluation(unit.row, unit.workdir)
    Checkpoints(unit.workdir / "checkpoints").save(100, {}, {})
    results_lib.read_run(unit.row, unit.workdir)
    report = json.loads(unit.evaluation.read_text())
    report |= change if "data" not in change else {"data": report["data"] | change["data"]}
    unit.evaluation.write_text(json.dumps(report))
    with pytest.raises(ValueError, match=r"k5_n40.json has K, split and trained steps .* expected \(5, 'test', 100\)"):
        results_lib.read_run(unit.row, unit.workdir)


def test_numbers_of_different_images_are_not_put_together(tmp_path):
    found = fill(tmp_path / "results", tmp_path / "runs", seeds=(0, 1))
    found.document["rows"]["graph"]["seeds"]["1"]["evaluation"]["data"]["checksum"] = "d" * 64
    with pytest.raises(ValueError, match="the seeds of row graph were scored on different data"):
        results_lib.merge(TABLE, found, [])
    found.document["rows"]["graph"]["seeds"]["0"]["evaluation"]["data"]["checksum"] = "d" * 64
    with pytest.raises(ValueError, match="rows open and graph were scored on different images"):
        results_lib.merge(TABLE, found, [])


def test_a_metric_that_a_seed_lacks_has_no_mean(tmp_path):
    found = fill(tmp_path / "results", tmp_path / "runs")
    del found.document["rows"]["graph"]["seeds"]["1"]["bits_per_dim"]
    rows = results_lib.merge(TABLE, found, []).document["rows"]
    assert "bits_per_dim" not in rows["graph"]["summary"]
    assert "bits_per_dim" in rows["open"]["summary"]


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    fill(tmp_path / "results", tmp_path / "runs")
    path, scores_path = results_lib.paths(tmp_path / "results", TABLE)
    np.savez(scores_path, **{"graph/0": np.zeros(3)})
    with pytest.raises(ValueError, match="made_up.json and made_up.npz hold different runs: .*'graph/1'"):
        results_lib.read(tmp_path / "results", TABLE)


def test_a_run_of_another_config_is_refused_by_name(tmp_path):
    (unit,) = units(TABLE, tmp_path, rows=["graph"], seeds=(0,))
    made_up_runs.write_training(TABLE.row("open"), unit.workdir)
    made_up_runs.write_evaluation(unit.row, unit.workdir)
    with pytest.raises(ValueError, match=r"(?s)seed_0 is no run of the row graph; .*training.steps: 50 / 100"):
        results_lib.read_run(unit.row, unit.workdir)


def test_an_evaluation_that_lacks_the_edges_asked_for_is_refused(tmp_path):
    row = TABLE.row("graph")
    made_up_runs.write_training(row, tmp_path)
    made_up_runs.write_evaluation(row, tmp_path)
    asked = dataclasses.replace(row, evaluation=dataclasses.replace(row.evaluation, edges=True))
    (tmp_path / "evaluation_k5_n40.json").rename(tmp_path / "evaluation_k5_n40_edges.json")
    with pytest.raises(ValueError, match="evaluation_k5_n40_edges.json does not say what edges are worth"):
        results_lib.read_run(asked, tmp_path)
    made_up_runs.write_evaluation(asked, tmp_path)
    entries, _ = results_lib.read_run(asked, tmp_path)
    assert entries["0"]["edge_effects"] == made_up_runs.EDGES

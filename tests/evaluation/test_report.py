import json
import math

import numpy as np
import pytest

from tests.trainers import tiny
from tfstruct import random
from tfstruct.evaluation import report
from tfstruct.files import to_json
from tfstruct.functional import Functional
from tfstruct.inference.held_out import HeldOutScorer
from tfstruct.inference.objectives import Draws
from tfstruct.training import data as data_lib
from tfstruct.training import run as training
from tfstruct.training import trainer
from tfstruct.training.state import RunState
from tfstruct.training.workdir import Workdir

REPLICA_KEYS = {
    "seed", "best_step", "validation_bound", "log_likelihood", "std_err", "bits_per_dim", "elbo", "elbo_std_err",
    "rate", "distortion", "effective_sample_size", "flags",
    "rate_quantiles", "negative_elbo_quantiles", "runaway_images", "images_with_few_samples",
    # of a Graph VAE
    "active_units", "units_per_node", "node_rates",
    # of a learned structure
    "edge_probabilities", "open_edges", "possible_edges", "largest_gate_uncertainty",
}  # fmt: skip
KEYS = {
    "baselines",
    "schema_version", "system", "preset", "data", "num_samples", "settings", "target", "latents", "replicas", "mean",
    "std", "flags", "trained_steps", "num_parameters", "seconds", "environment", "command",
}  # fmt: skip
STATISTICS = ("log_likelihood", "bits_per_dim", "elbo", "rate", "distortion", "effective_sample_size")


def log_probs(run, split="test"):
    stem = "evaluation" if split == "test" else f"evaluation_{split}"
    with np.load(run.folder.path / f"{stem}_log_prob.npz") as archive:
        return archive["log_prob"]


def test_the_file_is_strict_json_with_exactly_the_keys_of_the_schema(run):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    result = report.evaluate(run)  # anew: other tests evaluate this run with other settings
    text = (run.folder.path / "evaluation.json").read_text()
    written = json.loads(text, parse_constant=refuse)
    assert set(written) == KEYS
    assert set(written["data"]) == {
        "name", "variant", "split", "images", "checksum", "description", "trained_on",
    }  # fmt: skip
    assert len(written["replicas"]) == 2
    for replica in written["replicas"]:
        assert set(replica) == REPLICA_KEYS
    assert set(written["mean"]) == set(written["std"]) == set(STATISTICS)
    assert written == json.loads(to_json(result))


def test_what_was_evaluated_is_said(run, result):
    assert result["data"]["images"] == len(run.data.test) == 40
    assert result["data"]["split"] == "test"
    assert result["data"]["checksum"] == run.data.checksum
    assert result["num_samples"] == 7
    assert result["trained_steps"] == 20
    assert [replica["seed"] for replica in result["replicas"]] == [0, 1]
    assert [replica["best_step"] for replica in result["replicas"]] == [20, 20]
    parameters = Functional(run.model).parameters.size
    assert result["num_parameters"] == parameters == run.weights.parameters.shape[1]


def test_mean_and_deviation_are_over_replicas(result):
    for name in STATISTICS:
        values = [replica[name] for replica in result["replicas"]]
        assert values[0] != values[1]
        assert result["mean"][name] == pytest.approx((values[0] + values[1]) / 2, rel=1e-12)
        assert result["std"][name] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2), rel=1e-9)


def test_each_replica_is_the_mean_of_its_images_with_the_error_of_that_mean(run, result):
    scores = log_probs(run).astype(np.float64)
    assert scores.shape == (2, 40)
    for replica, own in zip(result["replicas"], scores, strict=True):
        assert replica["log_likelihood"] == pytest.approx(own.sum() / 40, rel=1e-12)
        variance = ((own - own.mean()) ** 2).sum() / 39
        assert replica["std_err"] == pytest.approx(math.sqrt(variance / 40), rel=1e-9)
        assert replica["bits_per_dim"] == pytest.approx(-own.mean() / (36 * math.log(2)), rel=1e-6)
        assert replica["elbo"] == pytest.approx(-replica["rate"] - replica["distortion"], rel=1e-6)
        assert replica["elbo"] < replica["log_likelihood"] < 0
        assert 1.0 <= replica["effective_sample_size"] <= 7.0


@pytest.fixture(scope="module")
def counted(run):
    """Estimates of the first rows with K samples, whatever the batch and chunk."""

    def estimate(num_samples, batch_size, chunk, rows=None):
        scorer = HeldOutScorer(run.model, num_samples=num_samples, batch_size=batch_size, chunk=chunk, compiler="graph")
        rows = run.data.test[:10] if rows is None else rows
        return scorer(run.weights.parameters[0], run.weights.statistics[0], rows, seed=3)

    return estimate


def test_the_estimate_is_the_log_mean_of_exactly_k_weights(run, counted):
    rows, num_samples = np.asarray(run.data.test[:10], np.float32), 5
    estimate = counted(num_samples, 10, 2)  # the last chunk of two has one sample too many
    model = run.use(0)
    # Purpose 7 is the evaluation's; a row's key is folded with its place.
    keys = random.fold_in(random.fold_in(random.key(3), random.EVALUATION), np.arange(10))
    weights = []
    for sample in range(num_samples):
        terms = model.terms(rows, Draws(random.sample_keys(keys, 1, sample), 1))
        weights.append((terms.log_likelihood + terms.log_prior - terms.log_posterior).numpy()[0])
    weights = np.array(weights, np.float64)
    largest = weights.max(axis=0)
    expected = largest + np.log(np.exp(weights - largest).sum(axis=0) / num_samples)
    np.testing.assert_allclose(estimate.log_prob, expected, rtol=1e-5)
    np.testing.assert_allclose(estimate.elbo, weights.mean(axis=0), rtol=1e-5)
    assert np.abs(counted(6, 10, 2).log_prob - expected).max() > 1e-3  # one sample more would be seen


def test_batch_size_and_chunk_change_no_score(counted):
    expected, found = counted(5, 10, 5), counted(5, 3, 2)  # of both the last piece is not full
    for name in expected._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, err_msg=name)


def test_evaluating_again_gives_the_same_numbers_and_another_seed_others(run, result):
    again = report.evaluate(run, batch_size=7, chunk=2)
    assert again["mean"]["log_likelihood"] == pytest.approx(result["mean"]["log_likelihood"], rel=1e-6)
    other = report.evaluate(run, seed=1)
    assert abs(other["mean"]["log_likelihood"] - result["mean"]["log_likelihood"]) > 1e-4
    # Both wrote evaluation.json: leave it as the others want it.
    report.evaluate(run)


def test_another_split_goes_to_a_file_of_its_own(run, result):
    before = (run.folder.path / "evaluation.json").read_bytes()
    found = report.evaluate(run, split="validation", images=11, num_samples=2)
    assert found["data"]["images"] == 11
    assert json.loads((run.folder.path / "evaluation_validation.json").read_text())["num_samples"] == 2
    assert log_probs(run, "validation").shape == (2, 11)
    assert (run.folder.path / "evaluation.json").read_bytes() == before
    assert report.evaluate(run, split="train", num_samples=1)["data"]["images"] == 200


def test_the_training_split_of_a_dynamic_set_is_refused(tmp_path, rng):
    np.savez(tmp_path / "grey.npz", **{name: rng.random([30, 12]) for name in ("train", "validation", "test")})
    config = tiny.file_config(tmp_path / "grey.npz", "data.variant=dynamic")
    data = data_lib.load_data(config)
    assert data.train_transform == "binarize"
    with pytest.raises(ValueError, match="drawn anew at every visit"):
        report.evaluation_rows(data, "train")
    assert set(np.unique(report.evaluation_rows(data, "test"))) == {0, 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "unknown split 'tset'"),
        ({"images": 41}, r"0 \(all\) to 40, found 41"),
        ({"images": -1}, "found -1"),
        ({"num_samples": 0}, "at least 1, found 0"),
        ({"batch_size": -5}, "batch_size"),
        ({"chunk": -5}, "chunk"),
    ],
)
def test_impossible_requests_are_refused_and_leave_the_file(run, result, options, message):
    before = (run.folder.path / "evaluation.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        report.evaluate(run, **options)
    assert (run.folder.path / "evaluation.json").read_bytes() == before


def test_one_image_has_a_likelihood_without_an_error(run):
    found = report.evaluate(run, split="validation", images=1, num_samples=2)
    line = report.summary_line({**found, "replicas": found["replicas"][:1]})
    assert "1 images" in line


def test_the_line_for_people_has_likelihood_spread_and_source(result):
    line = report.summary_line(result)
    mean, std = result["mean"]["log_likelihood"], result["std"]["log_likelihood"]
    for part in (
        f"{mean:.2f} +- {std:.2f}",
        "over 2 seeds",
        "K=7",
        "40 images",
        "test split",
        "file (none)",
        "bits/dim (uniform 1.0000, ",
    ):
        assert part in line
    one = {**result, "replicas": result["replicas"][:1]}
    assert f"+- {result['replicas'][0]['std_err']:.2f} (standard error over images)" in report.summary_line(one)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of a training run"):
        report.TrainedRun(str(tmp_path))


def test_a_replica_that_does_not_exist_is_refused(run):
    for replica in (-1, 2):
        with pytest.raises(ValueError, match=r"replicas 0\.\.1"):
            run.use(replica)


def test_a_run_stopped_before_its_first_validation_is_not_evaluated_with_its_initial_weights(tmp_path, monkeypatch):
    file = tiny.write_rows(tmp_path / "rows.npz")
    config = tiny.file_config(file, "training.checkpoint_minutes=0.0", "optimizer.learning_rate=0.1")

    def stop(run):
        if run.state.step == 20:
            raise KeyboardInterrupt
        return None, np.zeros([1], bool)

    monkeypatch.setattr(trainer.Trainer, "validate", stop)
    with pytest.raises(KeyboardInterrupt):
        training.train(config, tmp_path / "run")
    arrays = Workdir(tmp_path / "run").checkpoints.latest().arrays
    initial = Functional(report.registry.build(Workdir(tmp_path / "run").config())).parameters.values()
    assert np.abs(arrays["state/parameters"][0] - initial).max() > 0.1
    try:
        weights = Workdir(tmp_path / "run").run_state().weights
    except (ValueError, FileNotFoundError):
        return  # refusing is fine
    np.testing.assert_array_equal(weights.parameters, arrays["state/parameters"])


def test_a_structure_is_told_without_touching_the_model(tmp_path):
    file = tiny.write_rows(tmp_path / "rows.npz")
    training.train(tiny.file_config(file, "training.replicas=2"), tmp_path / "run")
    run = report.TrainedRun(str(tmp_path / "run"))
    functional = Functional(run.use(1))
    functional.assign(functional.parameters.values() + 1.0, functional.statistics.values() + 2.0)
    before = functional.parameters.values(), functional.statistics.values()
    assert run.structure(0) != run.structure(1)
    for vector, expected in zip((functional.parameters, functional.statistics), before, strict=True):
        np.testing.assert_array_equal(vector.values(), expected)


def test_a_config_that_was_changed_and_weights_that_do_not_fit_it_are_named_with_the_folder(tmp_path, monkeypatch):
    file = tiny.write_rows(tmp_path / "rows.npz")
    training.train(tiny.file_config(file), tmp_path / "run")
    path = tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder_units"] = [9]
    path.write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"run/config.json was changed since step_.*\n  model.decoder_units: .* / \(9,\)"
    ):
        report.TrainedRun(str(tmp_path / "run"))
    # Checkpoints of earlier versions do not know it.
    monkeypatch.setattr(RunState, "config", "")
    message = r"run has other weights than this model .*decoder/dense_0/kernel \[\d+, 9\] / \[\d+, \d+\]"
    with pytest.raises(ValueError, match=message):
        report.TrainedRun(str(tmp_path / "run"))

"""Bundles of Boltzmann VAEs: one of log p(x), and one of log p(x_2 | x_1)."""

import numpy as np
import pytest
import tensorflow as tf

from tests.reference import boltzmann_vae as small
from tests.reference.boltzmann import states
from tests.trainers import tiny
from tfstruct.evaluation import report
from tfstruct.functional import Functional
from tfstruct.serving import bundle, client, verification, weights
from tfstruct.serving.signatures import ServedSystem
from tfstruct.training import run as training

SHAPE = (2, 2)
NUM_SAMPLES = 7  # not a multiple of the chunk
SETTINGS = (
    "data.name=file",
    "data.variant=none",
    "model.posterior_sweeps=2",
    "model.prior_sweeps=2",
    "training.steps=20",
    "training.steps_per_call=20",
    "training.validate_every=20",
    "training.validation_images=20",
    "training.batch_size=8",
    "training.compiler=graph",
    f"export.num_samples={NUM_SAMPLES}",
    "export.chunk=3",
)


def export(folder, *overrides, **model):
    """Trains and exports; returns the run, the model with the exported weights and the bundle's folder."""
    file = tiny.write_rows(folder / "rows.npz", event_shape=SHAPE)
    config = small.config(*SETTINGS, f"data.file={str(file)!r}", *overrides, event_shape=SHAPE, **model)
    training.train(config, folder / "run")
    run = report.TrainedRun(str(folder / "run"))
    output = bundle.export(run, folder / "model/1")
    system = run.use(0)
    system.prepare_evaluation(run.config.evaluation)
    return run, system, output


@pytest.fixture(scope="module")
def density(tmp_path_factory):
    run, system, folder = export(tmp_path_factory.mktemp("density"))
    return run, system, client.load(folder)


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    # Its machine would take as long to trace again.
    folder = tmp_path_factory.mktemp("halves")
    run, system, output = export(folder, *small.CONDITIONAL, posterior="directed")
    return run, system, client.load(output)


def every_row():
    return states(4).reshape(-1, *SHAPE).astype(np.float32)


# Every export compares the same scores of the density's; tracing them again takes half a minute.
@pytest.mark.parametrize("name", [pytest.param("density", marks=pytest.mark.slow), "halves"])
def test_scores_are_those_of_the_python_model_with_the_settings_of_the_export(name, request):
    run, system, model = request.getfixturevalue(name)
    served = ServedSystem(
        system,
        num_samples=NUM_SAMPLES,
        chunk=3,
        bits_per_dim_offset=None,
        terms_options=system.terms_options(run.config.export),
    )
    x, seed = every_row(), np.arange(16)
    expected = served.log_prob(tf.constant(x), tf.constant(seed, tf.int64))
    found = model.log_prob(x, seed=seed)
    for output in ("log_prob", "std_err"):
        np.testing.assert_allclose(found[output], expected[output], rtol=1e-4, atol=1e-4)
    assert model.card["num_samples"] == NUM_SAMPLES


def test_a_served_reconstruction_anneals_by_the_temperatures_of_the_export(density, monkeypatch):
    run, system, model = density
    x, seeds = every_row()[:4], np.arange(4, dtype=np.int64)
    served = ServedSystem(
        system,
        num_samples=NUM_SAMPLES,
        chunk=3,
        terms_options=system.terms_options(run.config.export),
        bits_per_dim_offset=0.0,
        weights_dtype="float32",
    )
    asked, binary = [], system.posterior.binary

    def remember(features, keys, num_temperatures):
        asked.append(num_temperatures)
        return binary(features, keys, num_temperatures)

    monkeypatch.setattr(system.posterior, "binary", remember)
    expected = served.reconstruct(tf.constant(x), tf.constant(seeds))["x_mean"]
    assert asked == [run.config.export.posterior_temperatures] != [run.config.evaluation.posterior_temperatures]
    np.testing.assert_allclose(model.reconstruct(x, seed=seeds), expected, atol=1e-5)


def test_a_density_says_its_log_z_and_its_target_on_the_card(density):
    run, system, model = density
    prepared, exact = model.card["prepared"], small.machine(system.prior).log_partition
    assert model.card["target"] == "log p(x)"
    assert model.card["part_shapes"] == []
    assert prepared["prior_log_partition"] == pytest.approx(float(system.prior.log_partition.numpy()), rel=1e-6)
    assert abs(prepared["prior_log_partition"] - exact) < 5.0 * prepared["prior_log_partition_std_err"] + 1e-3
    assert prepared["prior_temperatures"] == run.config.evaluation.prior_temperatures
    assert set(model.card["signatures"]) == {
        "serving_default", "log_prob", "elbo", "encode", "reconstruct", "sample", "image_log_prob"
    }  # fmt: skip


def test_log_z_in_a_bundle_is_that_of_the_weights_as_they_are_stored(rng, tmp_path):
    # A directed posterior, for it takes a fraction of the time to trace.
    system = small.build(rng, *SETTINGS, event_shape=SHAPE, posterior="directed")
    output = bundle.export_model(system, tmp_path / "1", every_row(), weights_dtype="float16")
    whole = system.prepare_evaluation(system.config.evaluation)["prior_log_partition"]
    with weights.rounded(Functional(system), "float16"):
        stored = system.prepare_evaluation(system.config.evaluation)["prior_log_partition"]
    assert abs(stored - whole) > 1e-5
    assert client.load(output).card["prepared"]["prior_log_partition"] == pytest.approx(stored, abs=1e-6)


def test_a_density_samples_and_has_no_parts(density):
    _, _, model = density
    first, again = model.sample(5, seed=3), model.sample(5, seed=3)
    assert first["x"].shape == first["x_mean"].shape == (5, *SHAPE)
    assert set(np.unique(first["x"])) <= {0.0, 1.0}
    np.testing.assert_array_equal(first["x_mean"], again["x_mean"])
    assert np.any(first["x_mean"] != model.sample(5, seed=4)["x_mean"])
    for call in (lambda: model.parts(every_row()), lambda: model.conditional_log_prob(every_row(), every_row())):
        with pytest.raises(ValueError, match="no conditional model"):
            call()


def test_a_conditional_bundle_has_a_signature_of_its_parts_and_none_that_samples(halves):
    _, _, model = halves
    assert model.is_conditional
    assert model.card["target"] == "log p(x_2 | x_1)"
    assert model.card["part_shapes"] == [[1, 2], [1, 2]]
    assert model.card["prepared"] == {}
    signatures = model.card["signatures"]
    assert set(signatures) == {
        "serving_default", "log_prob", "elbo", "encode", "reconstruct", "conditional_log_prob"
    }  # fmt: skip
    assert signatures["serving_default"] == signatures["conditional_log_prob"]
    assert {name: spec["shape"] for name, spec in signatures["conditional_log_prob"]["inputs"].items()} == {
        "x_given": [-1, 1, 2],
        "x_query": [-1, 1, 2],
        "seed": [-1],
    }
    with pytest.raises(ValueError, match=r"models log p\(x_2 \| x_1\); reconstruct completes observations"):
        model.sample(3)
    assert np.all(np.isnan(model.log_prob(every_row())["bits_per_dim"]))


def test_the_score_of_the_parts_is_that_of_the_whole(halves):
    _, _, model = halves
    x, seed = every_row(), np.arange(16)
    given, query = model.parts(x)
    np.testing.assert_array_equal(np.concatenate([given, query], axis=1), x)
    expected, found = model.log_prob(x, seed=seed), model.conditional_log_prob(given, query, seed=seed)
    assert set(found) == {"log_prob", "std_err"}
    signature = model.signatures["conditional_log_prob"]
    served = signature(x_given=tf.constant(given), x_query=tf.constant(query), seed=tf.constant(seed, tf.int64))
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name])
        np.testing.assert_allclose(served[name], value, rtol=1e-5, atol=1e-6)


def test_the_scores_of_all_lower_halves_sum_to_one(halves):
    _, _, model = halves
    query = states(2).reshape(-1, 1, 2)
    found = model.conditional_log_prob(np.ones([4, 1, 2]), query, seed=5)["log_prob"]
    assert np.exp(found.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-4)


def test_a_completion_keeps_what_is_given(halves):
    _, _, model = halves
    x = every_row()
    found = model.reconstruct(x)
    np.testing.assert_array_equal(found[:, :1], x[:, :1])
    assert np.all((found[:, 1:] > 0.0) & (found[:, 1:] < 1.0))


@pytest.mark.parametrize(
    ("given", "query", "message"),
    [
        (np.ones([3, 2]), np.ones([3, 1, 2]), "must have shapes"),
        (np.ones([3, 1, 2]), np.ones([3, 2, 2]), "must have shapes"),
        (np.ones([3, 1, 2]), np.ones([2, 1, 2]), "must have shapes"),
        (np.ones([0, 1, 2]), np.ones([0, 1, 2]), "N >= 1"),
        (np.ones([1, 1, 2]), np.full([1, 1, 2], 0.5), "must be 0 or 1"),
        (np.full([1, 1, 2], np.nan), np.ones([1, 1, 2]), "must be finite"),
    ],
)
def test_parts_of_other_shapes_or_values_are_refused(halves, given, query, message):
    with pytest.raises(ValueError, match=message):
        halves[2].conditional_log_prob(given, query)


@pytest.mark.parametrize("name", ["density", "halves"])
def test_a_bundle_verifies(name, request):
    verification.verify(request.getfixturevalue(name)[2].path)

"""Standardised data: densities, samples and means are those of the data as given."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tfstruct import random
from tfstruct.data import support
from tfstruct.evaluation import analysis, baselines, report
from tfstruct.functional import Functional
from tfstruct.inference.objectives import Draws
from tfstruct.models import registry
from tfstruct.models.graph_vae.model import GraphVAE
from tfstruct.models.standardised import Standardised
from tfstruct.serving import bundle, client
from tfstruct.training import run as training

KEY = random.key(3)
SCALES, OFFSETS = np.array([1.0, 64.0, 0.125, 8.0, 2.0, 0.5]), np.array([0.0, -500.0, 1.0, 32.0, 7.0, -0.25])
REAL = ("model.likelihood=gaussian", "data.standardise=True")


def real_rows(num=200):
    rng = np.random.default_rng(5)
    rows = rng.normal(size=[num, 6])
    rows[:, 1] += rows[:, 0]
    return rows


def changed(preset, *overrides, **model):
    return tiny.changed(preset, [*REAL, *overrides], event_shape=(6,), **model)


def graph_model():
    return registry.build(changed("graph_vae/tiny", *tiny.SMALL))


def circuit_model():
    config = changed("spvae/tiny", structure="random", tree_depth=2, tree_repetitions=2)
    return registry.build(config)


@pytest.fixture(params=[graph_model, circuit_model], ids=["graph", "circuit"])
def model(request):
    made = request.param()
    made.adapt(real_rows() * SCALES + OFFSETS)
    return made


def test_mean_and_deviation_are_taken_piece_by_piece(monkeypatch):
    monkeypatch.setattr(support, "CHUNK_BYTES", 7 * 6 * 8)
    rows = real_rows() * SCALES + 1e6
    mean, std = support.mean_and_std(rows)
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(std, rows.std(axis=0), rtol=1e-9)


@pytest.mark.parametrize("value", [0.1, 1e6 + 0.1])
def test_a_value_that_never_changes_has_no_deviation_by_rounding(value):
    mean, std = support.mean_and_std(np.full([1_000, 2], value))  # float64, as a mapped file keeps it
    np.testing.assert_array_equal(mean, value)
    np.testing.assert_array_equal(std, 0.0)


def test_standardised_values_have_mean_a_half_and_deviation_a_sixth_and_come_back(model):
    rows = real_rows() * SCALES + OFFSETS
    rows[:, 4] = 3.0
    model.adapt(rows)
    found = model.standardise(rows).numpy()
    np.testing.assert_allclose(found.mean(axis=0), 0.5, atol=1e-4)
    np.testing.assert_allclose(np.delete(found, 4, axis=1).std(axis=0), 1 / 6, atol=1e-5)
    assert model.scale.numpy()[4] == 1.0  # a value that never changes keeps its unit
    np.testing.assert_allclose(model.restore(model.standardise(rows)), rows, rtol=1e-4, atol=1e-3)


def test_the_density_is_that_of_standardised_values_times_the_jacobian(model):
    rows = tf.constant(real_rows(5) * SCALES + OFFSETS, tf.float32)
    found = model.log_prob(rows, num_samples=4)
    inner = model.system.log_prob(model.standardise(rows), num_samples=4)
    np.testing.assert_allclose(found, inner - np.log(model.scale.numpy()).sum(), rtol=1e-5)
    assert abs(np.log(model.scale.numpy()).sum()) > 1.0


def test_other_units_of_the_data_change_densities_by_their_jacobian_alone(model):
    rows = real_rows(5).astype(np.float32)
    model.adapt(real_rows())
    before, drawn = model.log_prob(rows, num_samples=4), model.sample(3, seed=KEY)
    means = model.reconstruct(tf.constant(rows), seed=KEY)
    model.adapt(real_rows() * SCALES + OFFSETS)
    scaled = (rows * SCALES + OFFSETS).astype(np.float32)
    after = model.log_prob(scaled, num_samples=4)
    np.testing.assert_allclose(after, before - np.log(SCALES).sum(), atol=1e-3)
    for name, values in model.sample(3, seed=KEY).items():
        np.testing.assert_allclose(values, drawn[name] * SCALES + OFFSETS, rtol=1e-4, atol=1e-3)
    found = model.reconstruct(tf.constant(scaled), seed=KEY)
    np.testing.assert_allclose(found, means * SCALES + OFFSETS, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(model.decode(model.encode(scaled)["z_mean"])["x_mean"], model(scaled), rtol=1e-5)


def test_the_bound_in_training_is_that_of_the_data_and_its_gradient_the_systems(model):
    rows, functional = tf.constant(real_rows(5) * SCALES + OFFSETS, tf.float32), Functional(model)
    draws = Draws(KEY, 1, training=True, shared_seed=KEY, scheduled=dict.fromkeys(model.needs.schedules, 1.0))
    gradients, bounds = [], []
    for asked, x in ((model, rows), (model.system, model.standardise(rows))):
        with tf.GradientTape() as tape:
            result = asked.objective(x, draws)
        gradients.append(tape.gradient(result.generative_loss, model.trainable_variables))
        bounds.append(result.bound)
    np.testing.assert_allclose(bounds[0], bounds[1] - np.log(model.scale.numpy()).sum(), rtol=1e-4)
    for one, two in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)
    assert {"shift", "scale"} <= {path.rpartition("/")[2] for path in functional.statistics.paths}


def test_a_circuit_corrects_the_observed_values_alone_and_its_regions_their_own():
    model = circuit_model()
    model.adapt(real_rows() * SCALES + OFFSETS)
    rows = tf.constant(real_rows(4) * SCALES + OFFSETS, tf.float32)
    keys = random.fold_in(KEY, tf.range(4))
    observed = np.zeros([4, 6], bool)
    estimate = lambda **options: model.estimate(rows, keys, num_samples=5, chunk=5, **options).log_prob  # noqa: E731
    np.testing.assert_allclose(estimate(observed=tf.constant(observed)), 0.0, atol=1e-5)
    observed[:, [1, 3]] = True
    inner = model.system.estimate(
        model.standardise(rows), keys, num_samples=5, chunk=5, observed=tf.constant(observed)
    ).log_prob
    jacobian = np.log(model.scale.numpy()[[1, 3]]).sum()
    np.testing.assert_allclose(estimate(observed=tf.constant(observed)), inner - jacobian, rtol=1e-4, atol=1e-4)
    parts = model.region_log_prob(estimate(by_leaf=True))
    np.testing.assert_allclose(
        tf.reduce_sum(parts["contribution"], axis=1) + parts["structure"], estimate(), rtol=1e-4, atol=1e-3
    )
    drawn = model.inpaint(rows, tf.constant(observed), seed=keys, num_samples=5)
    for values in drawn.values():
        np.testing.assert_array_equal(values.numpy()[observed], rows.numpy()[observed])


class Mapped:
    """Rows as a file is mapped: what is asked for is read, here never more than a few."""

    def __init__(self, rows):
        self.rows, self.shape, self.dtype = rows, rows.shape, rows.dtype

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, item):
        assert item == 0 or len(range(*item.indices(len(self.rows)))) <= 10, "more is read than memory may hold"
        return self.rows[item]


def test_rows_are_never_in_memory_all_at_once(model, monkeypatch):
    rows = (real_rows() * SCALES + OFFSETS).astype(np.float32)
    expected = {variable.path: variable.numpy() for variable in model.variables}
    monkeypatch.setattr(support, "CHUNK_BYTES", 10 * 6 * 4)
    model.adapt(Mapped(rows))
    for variable in model.variables:
        np.testing.assert_allclose(variable, expected[variable.path], rtol=1e-5, atol=1e-6, err_msg=variable.path)
    if isinstance(model.system, GraphVAE):
        settings = model.config.evaluation.replace({"batch_size": 10})
        found, _ = model.report(Mapped(rows), settings, {}, seed=1)
        again, _ = model.system.report(model.standardise(rows).numpy(), settings, {}, seed=1)
        assert found == again


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on real rows in odd units."""
    folder = tmp_path_factory.mktemp("standardised")
    np.save(folder / "rows.npy", real_rows() * SCALES + OFFSETS)
    config = tiny.file_config(folder / "rows.npy", *REAL, preset="vae/tiny")
    training.train(config, folder / "run")
    return folder


def test_a_run_its_weights_and_its_bundle_have_the_standardiser(trained, tmp_path):
    run = report.TrainedRun(trained / "run")
    model = run.use()
    assert isinstance(model, Standardised)
    np.testing.assert_allclose(model.standardise(run.data.train).numpy().mean(axis=0), 0.5, atol=1e-4)
    result = report.evaluate(run)
    scores = np.load(trained / "run/evaluation_log_prob.npz")["log_prob"][0]
    assert result["mean"]["log_likelihood"] == pytest.approx(scores.mean(), rel=1e-5)
    assert -40.0 < scores.mean() < 0.0
    other = registry.build(run.config)
    other.load_weights(trained / "run/best/replica_0.weights.h5")
    np.testing.assert_array_equal(other.scale, model.scale)
    model.save(tmp_path / "model.keras")
    rows = run.data.test[:5].astype(np.float32)
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.log_prob(rows, num_samples=3), model.log_prob(rows, num_samples=3), rtol=1e-5)
    served = client.load(bundle.export(run, tmp_path / "bundle/1"))
    wide = np.random.default_rng(0).normal(size=[3, 6]) * 1e3
    for seed, x in enumerate((rows, wide.astype(np.float32))):
        found = served.log_prob(x, seed=seed)["log_prob"]
        assert np.isfinite(found).all()
    elbo = served.elbo(rows)
    np.testing.assert_allclose(elbo["elbo"], -(elbo["rate"] + elbo["distortion"]), rtol=1e-4)
    drawn = served.sample(400)["x"]
    assert abs(np.median(drawn[:, 1]) - OFFSETS[1]) < 3 * SCALES[1]
    np.testing.assert_allclose(served.reconstruct(rows)[:, 3].mean(), OFFSETS[3], atol=3 * SCALES[3])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.standardise=True"], "set model.likelihood=gaussian, found bernoulli"),
        ([*REAL, "data.corruption=0.1"], "does not go with data.corruption"),
    ],
)
def test_what_does_not_go_with_it_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny.changed("graph_vae/tiny", overrides)


def test_hidden_pixels_are_refused():
    with pytest.raises(ValueError, match="does not go with model.missing_fraction"):
        tiny.changed("spvae/tiny", [*REAL, "model.missing_fraction=0.2"])


def test_real_values_are_sent_to_the_likelihood_that_takes_them(tmp_path):
    np.save(tmp_path / "rows.npy", real_rows())
    with pytest.raises(ValueError, match=r"Use `--set model.likelihood=gaussian --set data.standardise=True`") as found:
        training.train(tiny.file_config(tmp_path / "rows.npy"), tmp_path / "run")
    assert "data.variant" not in str(found.value)
    config = tiny.file_config(tmp_path / "rows.npy", "model.likelihood=gaussian", preset="vae/tiny")
    with pytest.warns(UserWarning, match="reach from .* use `--set data.standardise=True`"):
        training.load_data(config)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_stands_beside_gaussians_in_the_units_of_the_data(trained):
    result = report.evaluate(report.TrainedRun(trained / "run"), num_samples=5, tag="beside")
    data = report.TrainedRun(trained / "run").data
    expected = baselines.log_densities(data, data.test)
    assert result["baselines"] == expected
    assert f"(independent Gaussians {expected['independent Gaussians']:.2f}" in report.summary_line(result)


def test_whole_numbers_and_zeros_and_ones_are_real_values_where_they_are_standardised(tmp_path):
    rows = np.random.default_rng(0).integers(0, 100, [60, 4])
    np.save(tmp_path / "rows.npy", rows)
    gaussian = "model.likelihood=gaussian"
    with pytest.raises(ValueError, match=r"has integers_0_255. Use `--set model.likelihood=gaussian --set data.stand"):
        training.load_data(tiny.file_config(tmp_path / "rows.npy", gaussian, preset="vae/tiny"))
    with pytest.raises(ValueError, match=r"for images, or else `--set model.likelihood=gaussian --set data"):
        training.load_data(tiny.file_config(tmp_path / "rows.npy", preset="vae/tiny"))
    for name in ("rows", "binary"):
        np.save(tmp_path / "binary.npy", rows > 50)
        config = tiny.file_config(tmp_path / f"{name}.npy", gaussian, "data.standardise=True", preset="vae/tiny")
        data = training.load_data(config)
        assert (data.support, data.bits_per_dim_offset) == ("real", None)  # a density has no bits per dimension
        model = training.train(config, tmp_path / name) and report.TrainedRun(tmp_path / name).use(0)
        x = data.test[:5].astype(np.float32)
        assert np.isfinite(model.log_prob(x, num_samples=5)).all()


def test_values_that_never_change_are_told(tmp_path):
    rows = real_rows()
    rows[:, 1] = 3.0
    np.save(tmp_path / "rows.npy", rows)
    config = tiny.file_config(
        tmp_path / "rows.npy", "model.likelihood=gaussian", "data.standardise=True", preset="vae/tiny"
    )
    with pytest.warns(UserWarning, match=r"1 of \d+ values of file/none are the same in all .* at index 1; log p"):
        training.load_data(config)


def test_an_analysis_is_of_the_system_and_its_own_units(trained):
    asked = []
    part = registry.Analysis(
        "what it is given", lambda model, rows: asked.append((model, rows)) or {}, lambda found: None
    )
    run = report.TrainedRun(trained / "run")
    result = analysis.analyse(part, "given", run)
    assert result["run"]["standardised"]
    ((model, rows),) = asked
    assert model is run.model.system
    np.testing.assert_allclose(rows.mean(), 0.5, atol=0.1)

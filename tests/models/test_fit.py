"""Keras `fit` and `evaluate`: real-valued observations of a Graph VAE, and rows of another shape."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.reference import small
from tfstruct import random
from tfstruct.models import presets, registry
from tfstruct.training.state import initial_state
from tfstruct.training.step import TrainStep


def _gaussian(variant):
    config = small.config("full", [f"data.variant={variant}"], likelihood="gaussian")
    system = registry.build(config, seed=17)
    system.compile(run_eagerly=True)
    return system


def _rows(rng):
    return rng.integers(0, 256, size=[64, 2, 2]).astype(np.uint8)


# Fit reads uint8 rows as levels 0..255 of a density on (0, 1); evaluate must not read them as values up to 255.
def test_evaluate_reads_integer_rows_as_fit_does(rng):
    system, rows = _gaussian("dequantized"), _rows(rng)
    trained = system.fit(rows, batch_size=64, verbose=0).history["bound"][0]
    stored = system.evaluate(rows, batch_size=64, verbose=0, return_dict=True)["bound"]
    final = system.evaluate(((rows + 0.5) / 256).astype(np.float32), batch_size=64, verbose=0, return_dict=True)
    assert np.isfinite(trained)
    assert np.isfinite(final["bound"])
    assert stored == pytest.approx(final["bound"], abs=0.5)


def test_fit_takes_grey_values_where_the_likelihood_is_real_valued(rng):
    rows = (_rows(rng) / np.float32(255)).astype(np.float32)
    history = _gaussian("grey").fit(rows, batch_size=64, verbose=0).history
    assert np.isfinite(history["loss"][0])


def test_fit_reports_the_mean_over_the_epoch_and_not_the_last_batch(rng):
    system = registry.build(presets.get("graph_vae/tiny", ["model.batch_norm=False"]))
    system.compile(
        keras.optimizers.SGD(0.0), run_eagerly=True
    )  # weights stay: a batch's loss depends on its rows alone
    system.decoder.output_layer.bias.assign(np.full(784, -2.0))  # dark rows are likely, light ones are not
    dark, light = np.zeros([32, 28, 28], np.uint8), np.full([32, 28, 28], 255, np.uint8)
    losses = [system.fit(rows, batch_size=32, verbose=0).history["loss"][0] for rows in (dark, light)]
    rows = np.concatenate([dark, light])
    mean = system.fit(rows, batch_size=32, shuffle=False, verbose=0).history["loss"][0]
    assert losses[1] - losses[0] > 1000
    assert mean == pytest.approx(np.mean(losses), abs=10)


# The schedules, the noise and the batch statistics of the functional loop, whose own numbers other tests know.
@pytest.mark.parametrize("preset", ["graph_vae/tiny", "spvae/tiny_components"])
def test_an_update_of_fit_is_that_of_the_training_step_of_the_same_number(preset, rng):
    overrides = ["training.steps=100", "training.seed=5", "schedules.kl_weight.values=(0.1,1.0)"]
    config = presets.get(preset, [*overrides, "schedules.kl_weight.fractions=(0.0,0.5)"])
    system, rows = registry.build(config, seed=3), rng.integers(0, 256, size=[16, 28, 28]).astype(np.uint8)
    step = TrainStep(system, system.train_transform)
    state = initial_state(step.functional, random.key(5))
    expected = step.gradient(state, tf.constant(7), rows)
    assert float(step.schedules["kl_weight"](7)) == pytest.approx(0.1 + 0.9 * 7 / 50)
    system.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    system.optimizer.build(system.trainable_variables)
    system.optimizer.iterations.assign(7)
    system.fit(rows, batch_size=16, shuffle=False, verbose=0)
    moved = state.parameters - step.functional.parameters.values()
    np.testing.assert_allclose(moved, expected.gradient, rtol=1e-4, atol=1e-4 * np.abs(expected.gradient).max())
    np.testing.assert_allclose(step.functional.statistics.values(), expected.statistics, rtol=1e-5, atol=1e-6)


def test_rows_of_another_shape_are_refused():
    system = registry.build(presets.get("spvae/tiny"))
    system.compile(run_eagerly=True)
    rows = np.zeros([8, 784], np.float32)
    for method in (system.fit, system.evaluate):
        with pytest.raises(ValueError, match=r"must have shape \[n, \*\(28, 28\)\], found \[8, 784\]"):
            method(rows, verbose=0)


# The config's optimizer -----------------------------------------------------------------------------------------------


def test_without_an_optimizer_the_learning_rate_follows_the_course_of_the_config(rng):
    steps = ("training.steps=10", "schedules.learning_rate_factor.fractions=(0.0,0.5,1.0)")
    linear = (
        "schedules.learning_rate_factor.values=(1.0,1.0,0.0)",
        "schedules.learning_rate_factor.interpolation=linear",
    )
    config = presets.get("spvae/tiny", [*steps, *linear])
    system = registry.build(config)
    system.compile(run_eagerly=True)
    assert isinstance(system.optimizer, keras.optimizers.Adam)
    rows, rates = rng.integers(0, 256, size=[32, 28, 28]).astype(np.uint8), []
    for _ in range(12):
        rates.append(float(system.optimizer.learning_rate))
        system.fit(rows, batch_size=32, verbose=0)
    expected = 1e-2 * np.interp(np.arange(12), [0, 5, 10], [1.0, 1.0, 0.0])
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-9)
    given = keras.optimizers.SGD(0.5)
    system.compile(given)
    assert system.optimizer is given


# Keras has defaults of its own for each, and its epsilon is ten times ours.
def test_the_moments_and_epsilon_of_the_optimizer_are_the_config_s():
    options = {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 0.25}
    system = registry.build(presets.get("spvae/tiny", [f"optimizer.{name}={value}" for name, value in options.items()]))
    system.compile()
    assert {name: getattr(system.optimizer, name) for name in options} == options


def test_the_weights_of_the_config_s_optimizer_are_averaged_if_it_says_so():
    system = registry.build(presets.get("spvae/tiny", ["optimizer.ema_momentum=0.75", "optimizer.clip_norm=2.0"]))
    system.compile()
    assert system.optimizer.use_ema
    assert system.optimizer.ema_momentum == 0.75
    assert system.optimizer.global_clipnorm == 2.0
    plain = registry.build(presets.get("spvae/tiny"))
    plain.compile()
    assert not plain.optimizer.use_ema
    assert plain.optimizer.global_clipnorm is None


@pytest.mark.filterwarnings("ignore:Keras fit starts the samplers")
def test_weight_decay_acts_on_the_weights_that_the_system_names(rng):
    rows, steps = rng.integers(0, 256, size=[16, 28, 28]).astype(np.uint8), {}
    for decay in (0.0, 0.5):
        system = registry.build(presets.get("boltzmann_vae/tiny", [f"optimizer.weight_decay={decay}"]), seed=3)
        before = {variable.path: variable.numpy() for variable in system.trainable_variables}
        system.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
        system.fit(rows, batch_size=16, verbose=0)
        steps[decay] = {
            variable.path: variable.numpy() - before[variable.path] for variable in system.trainable_variables
        }
    decayed = {variable.path for variable in system.needs.decayed}
    assert 0 < len(decayed) < len(before)
    for path, value in before.items():
        expected = steps[0.0][path] - (0.5 * value if path in decayed else 0.0)
        np.testing.assert_allclose(steps[0.5][path], expected, rtol=1e-4, atol=1e-5)


def test_fit_says_that_it_does_not_keep_the_samplers_of_rows(rng):
    rows = rng.integers(0, 256, size=[16, 28, 28]).astype(np.uint8)
    system = registry.build(presets.get("boltzmann_vae/tiny"))
    system.compile(run_eagerly=True)
    with pytest.warns(UserWarning, match="Keras fit starts the samplers of boltzmann_vae/tiny anew at every batch"):
        system.fit(rows, batch_size=16, verbose=0)


# Saving ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["graph_iaf_vae/tiny", "boltzmann_vae/tiny", "spvae/tiny_components"])
def test_a_fitted_model_is_saved_loaded_cloned_and_exported(preset, rng, tmp_path):
    system = registry.build(presets.get(preset, ["training.structure_fraction=0.0"]), seed=5)
    system.compile()
    system.optimizer.build(system.trainable_variables)
    for variable in system.variables:
        if variable.dtype == "float32":
            variable.assign(variable + 0.01 * rng.normal(size=variable.shape))
    x = rng.integers(0, 2, size=[3, 28, 28]).astype(np.float32)
    expected = system(x)
    system.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), expected)
    assert loaded.config == system.config
    assert float(loaded.optimizer.learning_rate) == float(system.optimizer.learning_rate)
    clone = keras.models.clone_model(system)
    assert type(clone) is type(system)
    assert np.any(clone(x) != expected)  # its weights are fresh
    system.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(exported.serve(tf.constant(x)), expected, rtol=1e-5, atol=1e-6)


def test_a_model_answers_with_plain_seeds(rng):
    system = registry.build(presets.get("graph_vae/tiny"))
    assert system.sample(3, seed=0)["x"].shape == (3, 28, 28)
    x = rng.integers(0, 2, size=[3, 28, 28])
    found = system.log_prob(x, num_samples=50, seed=1)
    np.testing.assert_array_equal(found, system.log_prob(x, num_samples=50, seed=1))
    assert np.any(found != system.log_prob(x, num_samples=50, seed=2))
    # One image of a batch has the score that it has alone.
    np.testing.assert_allclose(found[:1], system.log_prob(x[:1], num_samples=50, seed=1), rtol=1e-5)
    assert system.reconstruct(x, seed=4).shape == (3, 28, 28)

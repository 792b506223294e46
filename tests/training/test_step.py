import numpy as np
import pytest
import tensorflow as tf

from tests.reference.draws import training_draws
from tests.trainers import tiny
from tfstruct import random
from tfstruct.data.variants import prepare_batch
from tfstruct.models import registry
from tfstruct.training.loop import device_state
from tfstruct.training.state import initial_state
from tfstruct.training.step import TrainStep

PATH = (
    "objective.name=iwae",
    "objective.num_samples=3",
    "objective.gradient=path",
    "objective.allow_biased_gradient=True",
)


def make_step(*overrides, seed=0, **options):
    model = registry.build(tiny.config(*overrides, **options), seed=seed)
    step = TrainStep(model, "binarize")
    return step, device_state(initial_state(step.functional, random.key(11)))


@pytest.fixture(scope="module")
def rows():
    return tf.constant(np.random.default_rng(6).integers(0, 256, size=[8, 12]), tf.uint8)


def objective_of(step, state, number, rows):
    """The objective of a step computed with the Keras variables themselves."""
    x, seed, shared_seed = prepare_batch(
        rows, random.fold_in(random.fold_in(state.key, random.TRAINING_STEP), number), step.transform
    )
    draws = training_draws(step.model, seed, shared_seed, 1.0)
    return step.model.objective(x, draws, kl_weight=step.schedules["kl_weight"](tf.constant(number)))


def assert_states_equal(found, expected):
    for name in ("parameters", "first_moment", "second_moment", "statistics", "key"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


# Schedules ---------------------------------------------------------------------------------------------------


def test_the_learning_rate_schedule_scales_the_move_of_the_step_it_is_asked_at():
    step, state = make_step(
        "optimizer.learning_rate=0.25",
        "schedules.learning_rate_factor.fractions=(0.0, 0.5, 1.0)",
        "schedules.learning_rate_factor.values=(1.0, 0.2, 0.1)",
    )
    gradient = tf.random.stateless_normal(state.parameters.shape, [1, 2])
    for number, factor in ((0, 1.0), (5, 0.6), (10, 0.2), (15, 0.15), (30, 0.1)):
        after, _ = step.apply(state, tf.constant(number), gradient, state.statistics, {"loss": tf.constant(1.0)})
        expected, *_ = step.adam.update(
            tf.constant(number),
            tf.constant(0.25 * factor, tf.float32),
            gradient,
            state.parameters,
            state.first_moment,
            state.second_moment,
        )
        moved = after.parameters - state.parameters
        np.testing.assert_allclose(moved, expected - state.parameters, rtol=1e-5, atol=2e-7)
        assert np.abs(moved).max() > 0.02 * factor


def test_the_kl_weight_schedule_reaches_the_loss(rows):
    step, state = make_step("schedules.kl_weight.fractions=(0.0, 0.5)", "schedules.kl_weight.values=(0.0, 1.0)")
    for number, weight in ((0, 0.0), (4, 0.4), (10, 1.0), (19, 1.0)):
        metrics = step.gradient(state, tf.constant(number), rows).metrics
        assert metrics["rate"].numpy() > 0.1
        expected = metrics["distortion"] + weight * metrics["rate"]
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
        np.testing.assert_allclose(metrics["bound"], -(metrics["distortion"] + metrics["rate"]), rtol=1e-6)


def test_the_temperature_schedule_reaches_the_gates(rows, monkeypatch):
    step, state = make_step(
        "schedules.gate_temperature.fractions=(0.0, 1.0)",
        "schedules.gate_temperature.values=(1.0, 0.25)",
        "schedules.gate_temperature.interpolation=geometric",
    )
    seen, sample = [], step.model.gates.sample

    def spy(seed, temperature):
        seen.append(float(temperature))
        return sample(seed, temperature)

    monkeypatch.setattr(step.model.gates, "sample", spy)
    for number in (0, 10, 20):
        step.gradient(state, tf.constant(number), rows)
    np.testing.assert_allclose(seen, [1.0, 0.5, 0.25], rtol=1e-6)


# Gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["graph_vae/tiny", "vae/tiny", "ladder_vae/tiny", "fc_vae/tiny"])
def test_gradient_and_statistics_are_those_of_a_plain_keras_tape(rows, preset):
    step, state = make_step(preset=preset)
    number = tf.constant(0)
    gradient, statistics, metrics, _ = step.gradient(state, number, rows)
    variables = step.model.trainable_variables
    with tf.GradientTape() as tape:
        result = objective_of(step, state, number, rows)
    expected = tape.gradient(result.generative_loss, variables, unconnected_gradients="zero")
    expected = np.concatenate([np.ravel(piece) for piece in expected])
    assert np.linalg.norm(gradient - expected) <= 1e-6 * np.linalg.norm(expected)
    np.testing.assert_allclose(metrics["loss"], result.generative_loss, rtol=1e-6)
    # The layers of the plain model have moved their own averages meanwhile.
    np.testing.assert_allclose(statistics, step.functional.statistics.values(), rtol=1e-6, atol=1e-7)
    assert np.abs(statistics - state.statistics).max() > 1e-3


def test_path_gradient_trains_posterior_and_generator_by_their_own_losses(rows):
    step, state = make_step(*PATH)
    number = tf.constant(0)
    gradient = step.gradient(state, number, rows).gradient
    named = step.functional.parameters.named(gradient.numpy())
    posterior = step.model.needs.posterior
    places = {variable.path for variable in posterior}
    rest = [variable for variable in step.model.trainable_variables if variable.path not in places]
    with tf.GradientTape(persistent=True) as tape:
        result = objective_of(step, state, number, rows)
    assert result.posterior_loss is not result.generative_loss
    for loss, other, variables in (
        (result.posterior_loss, result.generative_loss, posterior),
        (result.generative_loss, result.posterior_loss, rest),
    ):
        found = np.concatenate([named[variable.path].ravel() for variable in variables])
        own, swapped = (
            np.concatenate([np.ravel(part) for part in tape.gradient(target, variables, unconnected_gradients="zero")])
            for target in (loss, other)
        )
        assert np.linalg.norm(found - own) <= 1e-6 * np.linalg.norm(own)
        assert np.linalg.norm(found - swapped) > 1e-2 * np.linalg.norm(own)


def test_a_step_depends_on_its_number_and_key_and_on_nothing_else(rows):
    step, state = make_step(preset="vae/tiny")  # nothing in it follows a schedule but the noise
    other_run = state._replace(key=tf.constant(random.key(12)))
    first, again, later, other = (
        step.gradient(which, tf.constant(number), rows)[2]["loss"].numpy()
        for which, number in ((state, 0), (state, 0), (state, 1), (other_run, 0))
    )
    assert first == again
    assert len({first, later, other}) == 3


def test_equal_stored_rows_get_different_noise_and_the_same_noise_however_the_batch_is_divided():
    rows = tf.fill([8, 12], tf.constant(128, tf.uint8))
    whole, seeds, shared = prepare_batch(rows, random.key(1), "binarize")
    assert len(np.unique(whole, axis=0)) == 8
    assert len(np.unique(seeds, axis=0)) == 8
    part, part_seeds, part_shared = prepare_batch(rows[4:], random.key(1), "binarize", first_row=4)
    np.testing.assert_array_equal(part, whole[4:])
    np.testing.assert_array_equal(part_seeds, seeds[4:])
    np.testing.assert_array_equal(part_shared, shared)


# Steps that are not finite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_parameter_that_is_not_finite_stops_the_update_and_is_counted(rows, value):
    step, state = make_step()
    spoiled = state.parameters.numpy()
    spoiled[3] = value
    state = state._replace(parameters=tf.constant(spoiled))
    after, metrics = step(state, tf.constant(0), rows)
    assert_states_equal(after, state)
    assert metrics["skipped"].numpy() == 1.0
    assert all(not np.any(metric) for name, metric in metrics.items() if name != "skipped")


def nan_loss(result):
    return result._replace(
        generative_loss=result.generative_loss * np.nan, posterior_loss=result.generative_loss * np.nan
    )


def nan_gradient(result):
    loss = result.generative_loss
    # The root of zero: its value is finite and its gradient is not.
    loss = loss + tf.sqrt(loss - loss)
    return result._replace(generative_loss=loss, posterior_loss=loss)


@pytest.mark.parametrize(("plant", "compiled"), [(nan_loss, False), (nan_gradient, False), (nan_loss, True)])
def test_a_loss_or_gradient_that_is_not_finite_changes_nothing_and_is_counted(rows, monkeypatch, plant, compiled):
    step, state = make_step(preset="vae/tiny")
    good, metrics = step(state, tf.constant(0), rows)
    assert metrics["skipped"].numpy() == 0.0
    for name in ("parameters", "first_moment", "second_moment", "statistics"):
        assert np.any(getattr(good, name) != getattr(state, name)), name
    objective = step.model.objective

    def planted(*arguments, **options):
        result = plant(objective(*arguments, **options))
        return result._replace(posterior_loss=result.generative_loss)

    monkeypatch.setattr(step.model, "objective", planted)
    call = tf.function(step, jit_compile=True, autograph=False) if compiled else step
    after, metrics = call(good, tf.constant(1), rows)
    assert_states_equal(after, good)
    assert metrics["skipped"].numpy() == 1.0
    assert metrics["loss"].numpy() == 0.0

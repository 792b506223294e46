"""Moving averages of the weights: what they are, that they are evaluated, and that they survive an interruption."""

import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tfstruct import random
from tfstruct.models import registry
from tfstruct.training import run as training
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.loop import device_state
from tfstruct.training.optimizer import moving_average
from tfstruct.training.phases import fixed_structure
from tfstruct.training.state import initial_state, stack_states
from tfstruct.training.step import TrainStep
from tfstruct.training.workdir import Workdir

MOMENTUM = 0.6


def twin(values, momentum):
    """The average after each of a series of values, from the first on, in float64."""
    average, rows = np.asarray(values[0], np.float64), []
    for step, value in enumerate(values[1:]):
        weight = min(momentum, (1 + step) / (10 + step))
        average = weight * average + (1 - weight) * np.asarray(value, np.float64)
        rows.append(average)
    return rows


def make_step(*overrides):
    model = registry.build(tiny.config("optimizer.learning_rate=0.1", *overrides))
    step = TrainStep(model, "binarize")
    is_averaged = bool(step.ema_momentum)
    return step, device_state(initial_state(step.functional, random.key(11), is_averaged=is_averaged))


@pytest.fixture(scope="module")
def rows():
    return tf.constant(np.random.default_rng(6).integers(0, 256, size=[8, 12]), tf.uint8)


def test_moving_average_equals_the_float64_recursion_with_a_momentum_that_rises(rng):
    values = rng.normal(size=[21, 5])
    expected = twin(values, 0.5)  # (1 + n) / (10 + n) passes 0.5 at n = 8
    average = tf.constant(values[0])
    for step, value in enumerate(values[1:]):
        average = moving_average(average, tf.constant(value), 0.5, tf.constant(step))
        np.testing.assert_allclose(average, expected[step], rtol=1e-12)


def test_training_averages_weights_and_batch_statistics_and_nothing_else_changes(rows):
    averaged, state = make_step(f"optimizer.ema_momentum={MOMENTUM}")
    plain, plain_state = make_step()
    assert plain_state.averages == {}
    history = [state]
    for number in range(12):
        state, _ = averaged(state, tf.constant(number), rows)
        plain_state, _ = plain(plain_state, tf.constant(number), rows)
        history.append(state)
        np.testing.assert_array_equal(state.parameters, plain_state.parameters)
    for name in ("parameters", "statistics"):
        expected = twin([getattr(past, name).numpy() for past in history], MOMENTUM)[-1]
        np.testing.assert_allclose(state.averages[name], expected, rtol=1e-5, atol=1e-6)
        assert np.abs(state.averages[name] - getattr(state, name)).max() > 1e-3

    # Weights go with the statistics of their own batches: averages with averages.
    for place, name in enumerate(("parameters", "statistics")):
        np.testing.assert_array_equal(state.evaluated[place], state.averages[name])
        np.testing.assert_array_equal(plain_state.evaluated[place], getattr(plain_state, name))


def test_the_momentum_rises_again_in_the_second_phase():
    step, state = make_step("optimizer.ema_momentum=0.9", "training.structure_fraction=0.5")  # of 20 steps
    moved = state._replace(parameters=state.parameters + 1.0)
    zeros, metrics = tf.zeros_like(state.parameters), {"loss": tf.constant(1.0)}
    for number, momentum in ((0, 0.1), (9, 10 / 19), (10, 0.1), (19, 10 / 19)):
        after, _ = step.apply(moved, tf.constant(number), zeros, state.statistics, metrics)
        found = (after.averages["parameters"] - state.averages["parameters"]) / 1.0
        np.testing.assert_allclose(found, 1.0 - momentum, rtol=1e-5)


def test_states_of_samplers_are_not_averaged():
    model = registry.build(tiny.presets.get("boltzmann_vae/tiny", ["optimizer.ema_momentum=0.5"]))
    step = TrainStep(model, "binarize")
    averaged = {path for path, chosen in zip(step.functional.statistics.paths, _chosen(step), strict=True) if chosen}
    assert averaged
    assert all(path.endswith(("moving_mean", "moving_variance")) for path in averaged)
    assert any(path.endswith("chains") for path in step.functional.statistics.paths)


def _chosen(step):
    layout = step.functional.statistics
    return [step._is_averaged_statistic[layout.place(variable)].all() for variable in layout.variables]


def test_a_skipped_step_changes_no_average(rows):
    step, state = make_step(f"optimizer.ema_momentum={MOMENTUM}")
    state, _ = step(state, tf.constant(0), rows)
    metrics = {"loss": tf.constant(np.nan, tf.float32)}
    after, _ = step.apply(state, tf.constant(1), tf.ones_like(state.parameters), state.statistics + 1.0, metrics)
    for name, values in state.averages.items():
        np.testing.assert_array_equal(after.averages[name], values)


def test_the_second_phase_averages_from_its_own_beginning_with_the_structure_fixed():
    step, state = make_step(f"optimizer.ema_momentum={MOMENTUM}")
    initial = stack_states([tf.nest.map_structure(lambda leaf: np.asarray(leaf), state)])
    learned = initial._replace(parameters=initial.parameters + 1.0)
    found = fixed_structure(learned, initial, step.functional)
    np.testing.assert_array_equal(found.averages["parameters"], found.parameters)
    assert (found.parameters != initial.parameters).any()


def test_best_weights_are_averages_and_resume_bit_for_bit(file, tmp_path):
    overrides = (f"optimizer.ema_momentum={MOMENTUM}", "training.validate_every=10", "training.checkpoint_minutes=0.0")
    config = tiny.vae_config(file, *overrides)
    training.train(config, tmp_path / "whole")
    whole = Checkpoints(tmp_path / "whole/checkpoints").latest()
    weights = Workdir(tmp_path / "whole").run_state().weights
    averages, latest = whole.arrays["averages/parameters"], whole.arrays["state/parameters"]
    assert weights.steps[0] == 20  # its bound still rises: the last validation is the best
    np.testing.assert_array_equal(weights.parameters, averages)
    assert np.abs(averages - latest).max() > 1e-3

    half = Checkpoints(tmp_path / "half/checkpoints")
    first = Checkpoints(tmp_path / "whole/checkpoints").load(10)
    half.save(10, first.arrays, first.metadata)
    (tmp_path / "half/config.json").write_bytes((tmp_path / "whole/config.json").read_bytes())
    training.train(config, tmp_path / "half", resume="must")
    resumed = half.latest().arrays
    for name, value in whole.arrays.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)

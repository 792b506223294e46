"""Ways that are timed beside each other do the same work: they end at the same weights, scores and log Z."""

import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tfstruct.benchmarks import inference, training
from tfstruct.models import presets, registry
from tfstruct.training.data import load_data
from tfstruct.training.initial import make_initial_state
from tfstruct.training.step import TrainStep

STEPS = 3


@pytest.fixture(scope="module")
def config():
    return presets.get("graph_vae/tiny", [*tiny.SMALL, "training.compiler=graph", "optimizer.epsilon=1e-3"])


@pytest.fixture(scope="module")
def ways(config):
    return training.training_ways(config, load_data(config), STEPS, 1)


def test_the_loop_and_one_call_per_step_end_at_the_same_weights(ways):
    states = [ways[name].make()() for name in ("tfstruct loop", "one XLA call per step", "one graph call per step")]
    expected, *others = (np.ravel(state.parameters) for state in states)
    for found in others:
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
    assert {way.work for way in ways.values()} == {STEPS}


@pytest.mark.parametrize("name", ["Keras fit, jit_compile=True", "Keras fit"])
def test_a_round_of_keras_fit_has_as_many_steps(name, ways):
    run = ways[name].make()
    before = int(run().model.optimizer.iterations)
    assert int(run().model.optimizer.iterations) - before == STEPS


def test_half_precision_is_not_compared_with_keras_in_full(config):
    half = config.replace({"training.precision": "bfloat16"})
    assert not [name for name in training.training_ways(half, load_data(half), STEPS, 1) if "Keras" in name]


@pytest.mark.parametrize("averages", [False, True])
def test_a_step_reads_and_writes_weights_moments_and_gradient_once(averages, config):
    config = config.replace({"optimizer.ema_momentum": 0.9 * averages})
    data = load_data(config)
    model = registry.build(config)
    size = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    start = make_initial_state(config, [model], [0], data)
    cost = training.step_cost(TrainStep(model, data.train_transform), start, data.train[:8])
    assert cost.bytes == 4 * size * (10 if averages else 8)


def test_plain_loops_of_importance_samples_estimate_what_the_scorer_does(config):
    settings = {"evaluation.num_samples": 200, "evaluation.batch_size": 8, "evaluation.chunk": 50}
    ways = inference.evaluation_ways(config.replace(settings), load_data(config), 8)
    scores, xla, graph = (np.ravel(tf.nest.flatten(way.make()())[0]) for way in ways.values())
    np.testing.assert_allclose(xla, graph, rtol=1e-4)
    assert xla.shape == scores.shape
    # Nats; half as many samples in the same mean would be off by log 2.
    assert abs(np.mean(xla - scores)) < 0.3


def test_annealing_in_numpy_finds_the_log_z_of_the_others():
    # Of so many units that chains which do not move are off by nats.
    ways = inference.partition_ways((60, 60), temperatures=300, chains=100)
    xla, graph, plain = (way.make()() for way in ways.values())
    assert xla == pytest.approx(graph, abs=1e-3)
    assert plain == pytest.approx(xla, abs=0.5)

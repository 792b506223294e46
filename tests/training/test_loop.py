import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tfstruct import random
from tfstruct.data.pipeline import batch_indices
from tfstruct.functional import Functional
from tfstruct.models import registry
from tfstruct.training.loop import TrainLoop, device_state, host_state
from tfstruct.training.state import TrainState, initial_state, replica, stack_states
from tfstruct.training.step import TrainStep, over_replicas

FLOATS = ("parameters", "first_moment", "second_moment", "statistics")
# So large an epsilon keeps Adam from dividing rounding errors by themselves where a gradient is next to zero.
GENTLE = "optimizer.epsilon=1e-3"


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(6).integers(0, 256, size=[30, 12], dtype=np.uint8)


def start(*overrides, seeds=(0,), preset="graph_vae/tiny"):
    """The training step of a config, and the stacked initial states of some seeds."""
    models = [registry.build(tiny.config(*overrides, preset=preset), seed=seed) for seed in seeds]
    states = [initial_state(Functional(model), random.key(seed)) for model, seed in zip(models, seeds, strict=True)]
    return TrainStep(models[0], "binarize"), device_state(stack_states(states))


def assert_states_close(found, expected, relative):
    for name in FLOATS:
        given, wanted = np.asarray(getattr(found, name)), np.asarray(getattr(expected, name))
        assert np.linalg.norm(given - wanted) <= relative * np.linalg.norm(wanted), name
    np.testing.assert_array_equal(found.key, expected.key)


# On a toy step whose answers are known --------------------------------------------------------------------------


def toy_state(num_replicas):
    zeros = tf.zeros([num_replicas, 1])
    key = tf.zeros([num_replicas, 2], tf.uint32)
    return TrainState(zeros, zeros, zeros, zeros, key, {})


def toy_step(state, step, rows, row_ids):
    """Adds the rows' sum to the parameters; odd steps of replica 1 are skipped, their metrics are zero."""
    total = tf.reduce_sum(tf.cast(rows, tf.float32), axis=1)
    kept = 1.0 - tf.cast(tf.range(2) * (step % 2), tf.float32)
    metrics = {
        "step": tf.cast(step, tf.float32) * kept,
        "pair": tf.stack([total[:, 0] * kept, kept], axis=1),
        "skipped": 1.0 - kept,
    }
    return state._replace(parameters=state.parameters + total), metrics


@pytest.mark.parametrize("compiler", ["xla", "graph"])
def test_metrics_are_means_over_the_steps_that_were_not_skipped(compiler):
    data = tf.constant([[1.0], [10.0], [100.0]])
    indices = np.array([[[0, 0], [1, 1]], [[0, 1], [2, 2]], [[2, 0], [0, 1]], [[1, 1], [0, 0]]], np.int32)
    state, metrics = TrainLoop(toy_step, compiler)(toy_state(2), 6, data, indices)
    totals = data.numpy()[indices].sum(axis=(2, 3))  # [steps, R]
    np.testing.assert_array_equal(state.parameters[:, 0], totals.sum(axis=0))
    np.testing.assert_array_equal(metrics["skipped"], [0.0, 2.0])
    np.testing.assert_allclose(metrics["step"], [(6 + 7 + 8 + 9) / 4, (6 + 8) / 2], rtol=1e-6)
    expected = [[totals[:, 0].mean(), 1.0], [totals[[0, 2], 1].mean(), 1.0]]
    np.testing.assert_allclose(metrics["pair"], expected, rtol=1e-6)


def test_metrics_of_a_call_whose_every_step_was_skipped_are_zero_and_not_nan():
    def step(state, number, rows, row_ids):
        return state, {"loss": tf.zeros([1]), "skipped": tf.ones([1])}

    _, metrics = TrainLoop(step, "graph")(toy_state(1), 0, tf.ones([1, 1]), np.zeros([3, 1, 1], np.int32))
    assert metrics["loss"] == 0.0
    assert metrics["skipped"] == 3.0


def test_an_unknown_compiler_is_refused_by_name():
    with pytest.raises(ValueError, match="xla, graph, found 'xia'"):
        TrainLoop(toy_step, "xia")


def test_calls_are_traced_once_also_shorter_ones():
    traces = []

    def step(state, number, rows, row_ids):
        traces.append(number)
        return toy_step(state, number, rows, row_ids)

    loop = TrainLoop(step, "graph")
    state, indices = toy_state(2), np.zeros([2, 2, 1], np.int32)
    state, _ = loop(state, 0, tf.ones([1, 1]), indices)
    first = len(traces)
    for number in (2, 4):
        state, _ = loop(state, number, tf.ones([1, 1]), indices)
    _, metrics = loop(state, 6, tf.ones([1, 1]), indices[:1])
    assert metrics["step"][0] == 6.0
    assert len(traces) == first


# On a system ----------------------------------------------------------------------------------------------------


def test_the_compiled_loop_of_20_steps_equals_20_single_steps_of_a_graph(rows):
    step, state = start(GENTLE)
    indices = batch_indices([0], 0, 20, 8, len(rows))
    looped, means = TrainLoop(over_replicas(step, 1), "xla")(state, 0, tf.constant(rows), indices)
    single = tf.function(step, autograph=False)
    current, sums = replica(state, 0), {}
    for number in range(20):
        current, metrics = single(current, tf.constant(number), tf.constant(rows[indices[number, 0]]))
        sums = {name: sums.get(name, 0.0) + value.numpy() for name, value in metrics.items()}
    assert_states_close(replica(looped, 0), current, 1e-5)
    moved = np.linalg.norm(looped.parameters - state.parameters) / np.linalg.norm(state.parameters)
    assert moved > 0.02  # a thousand times what the comparison above lets pass
    assert set(means) == set(sums)
    for name, value in sums.items():
        expected = value if name == "skipped" else value / 20
        np.testing.assert_allclose(means[name][0], expected, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("first", [10])
def test_two_calls_equal_one_bit_for_bit(rows, first):
    step, state = start(preset="vae/tiny")
    loop = TrainLoop(over_replicas(step, 1), "graph")
    data, indices = tf.constant(rows), batch_indices([0], 0, 20, 8, len(rows))
    whole, means = loop(state, 0, data, indices)
    half, first_means = loop(state, 0, data, indices[:first])
    again, second_means = loop(half, first, data, indices[first:])
    for name in (*FLOATS, "key"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name), err_msg=name)
    share = first / 20
    for name in ("loss", "rate", "gradient_norm"):
        combined = share * first_means[name] + (1 - share) * second_means[name]
        np.testing.assert_allclose(combined, means[name], rtol=1e-5)


SEEDS = (4, 5, 6)


def train_replicas(loop, state, rows, seeds=SEEDS):
    return loop(state, 0, tf.constant(rows), batch_indices(list(seeds), 0, 12, 8, len(rows)))


@pytest.fixture(scope="module", params=["vae/tiny", pytest.param("graph_vae/tiny", marks=pytest.mark.slow)])
def three(request):
    """A preset, and one traced loop over three replicas of it with their initial state."""
    step, state = start(GENTLE, seeds=SEEDS, preset=request.param)
    return request.param, TrainLoop(over_replicas(step, 3), "graph"), state


def test_replicas_trained_together_equal_the_same_seeds_trained_alone(rows, three):
    preset, loop, state = three
    together, metrics = train_replicas(loop, state, rows)
    for place, seed in enumerate(SEEDS):
        step, own_state = start(GENTLE, seeds=(seed,), preset=preset)
        alone, own_metrics = train_replicas(TrainLoop(over_replicas(step, 1), "graph"), own_state, rows, seeds=(seed,))
        # Batched kernels sum in another order: float32 rounding, carried through twelve steps.
        assert_states_close(replica(together, place), replica(alone, 0), 2e-5)
        np.testing.assert_allclose(metrics["loss"][place], own_metrics["loss"][0], rtol=1e-5)
    for name in ("parameters", "statistics"):
        trained = np.asarray(getattr(together, name))
        for other in (1, 2):
            distance = np.linalg.norm(trained[0] - trained[other]) / np.linalg.norm(trained[0])
            assert distance > 0.05, name


def test_replicas_of_equal_weights_and_rows_differ_by_the_noise_of_their_keys_alone(rows, three):
    _, loop, state = three
    first = tf.nest.map_structure(lambda leaf: tf.repeat(leaf[:1], 3, axis=0), state)
    keys = np.array(first.key)
    keys[2] = random.key(99)
    found, metrics = train_replicas(loop, first._replace(key=tf.constant(keys)), rows, seeds=(4, 4, 4))
    losses, distance = metrics["loss"], np.linalg.norm(found.parameters - found.parameters[:1], axis=1)
    size = np.linalg.norm(found.parameters[0])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert abs(losses[2] / losses[0] - 1.0) > 1e-3
    assert distance[1] <= 2e-5 * size
    assert distance[2] > 1e-3 * size


def test_a_replica_that_is_not_finite_does_not_touch_its_neighbours(rows, three):
    _, loop, state = three
    expected, _ = train_replicas(loop, state, rows)
    spoiled = state.parameters.numpy()
    spoiled[0, 0] = np.nan
    found, metrics = train_replicas(loop, state._replace(parameters=tf.constant(spoiled)), rows)
    np.testing.assert_array_equal(metrics["skipped"], [12.0, 0.0, 0.0])
    np.testing.assert_array_equal(found.parameters[0], spoiled[0])
    np.testing.assert_array_equal(found.parameters[1:], expected.parameters[1:])


def test_state_goes_to_the_host_and_back_unchanged():
    _, state = start(seeds=(0, 1))
    host = host_state(state)
    assert all(isinstance(leaf, np.ndarray) for leaf in host[:5])
    for leaf, back in zip(host[:5], device_state(host)[:5], strict=True):
        np.testing.assert_array_equal(leaf, back)

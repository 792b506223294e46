import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tfstruct import random
from tfstruct.data.pipeline import Call, batch_indices
from tfstruct.data.variants import prepare_batch
from tfstruct.functional import Functional
from tfstruct.models import presets, registry
from tfstruct.training import run as training
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.distribute import MirroredLoop, make_strategy
from tfstruct.training.logging import read_rows
from tfstruct.training.loop import Pace, TrainLoop, device_state
from tfstruct.training.replica_loop import ReplicaLoop
from tfstruct.training.state import TrainState, initial_state, stack_states
from tfstruct.training.step import TrainStep, over_replicas
from tfstruct.training.workdir import Workdir

GENTLE = "optimizer.epsilon=1e-3"
ROWS = np.random.default_rng(6).integers(0, 256, size=[30, 12], dtype=np.uint8)
# The gradient of a first step is in the first moment: 1 - beta_1 of it.
FIRST_STEP_FIELDS = ("first_moment", "second_moment", "parameters", "statistics")


@pytest.fixture(scope="module")
def strategy():
    assert len(tf.config.list_logical_devices("CPU")) == 2, "conftest.py makes two logical CPUs"
    return make_strategy("mirrored")


def start(*overrides, synchronized=False):
    config = tiny.config(GENTLE, *overrides, f"model.batch_norm_synchronized={synchronized}")
    model = registry.build(config)
    step = TrainStep(model, "binarize")
    return step, device_state(stack_states([initial_state(Functional(model), random.key(0))]))


def relative_distance(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30)


def indices(num_steps, batch_size=8):
    return batch_indices([0], 0, num_steps, batch_size, len(ROWS))


# What strategy there is -------------------------------------------------------------------------------------------


def test_strategies_by_name():
    assert make_strategy("none") is None
    assert make_strategy("auto") is None  # logical CPUs alone are no reason to mirror
    assert make_strategy("mirrored").num_replicas_in_sync == 2


def test_an_unknown_strategy_is_refused_by_name():
    with pytest.raises(ValueError, match="auto, none, mirrored, multi_worker, found 'miror'"):
        make_strategy("miror")


def test_mirroring_one_device_is_refused():
    with pytest.raises(ValueError, match="at least two devices"):
        make_strategy("mirrored", devices=["CPU:0"])


def test_a_batch_that_the_devices_cannot_share_is_refused(strategy):
    step, _ = start()
    with pytest.raises(ValueError, match="batch size 9 must be a multiple of the number of devices, 2"):
        MirroredLoop(step, strategy, batch_size=9, compiler="graph")


def test_several_replicas_on_several_devices_are_refused(strategy):
    step, state = start()
    loop = MirroredLoop(step, strategy, batch_size=8, compiler="graph")
    with pytest.raises(ValueError, match="one replica, found 2"):
        loop(state, 0, tf.constant(ROWS), np.zeros([1, 2, 8], np.int32))


# The same global batch gives the same numbers -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_batch_norm(strategy):
    """States and metrics after the first step and after five, mirrored and on one device."""
    step, state = start("model.batch_norm=False", "model.structure=full")
    mirrored = MirroredLoop(step, strategy, batch_size=8, compiler="xla")
    alone = TrainLoop(over_replicas(step, 1), "graph")
    results = {}
    for num_steps in (1, 5):
        results[num_steps] = [loop(state, 0, tf.constant(ROWS), indices(num_steps)) for loop in (mirrored, alone)]
    return state, results


def test_the_gradient_of_a_step_is_that_of_one_device(without_batch_norm):
    _, results = without_batch_norm
    (mirrored, _), (alone, _) = results[1]
    assert np.linalg.norm(alone.first_moment) > 0
    assert relative_distance(mirrored.first_moment, alone.first_moment) <= 1e-6


def test_five_steps_under_xla_are_those_of_one_device(without_batch_norm):
    state, results = without_batch_norm
    (mirrored, _), (alone, _) = results[5]
    for name in ("parameters", "first_moment", "second_moment"):
        assert relative_distance(getattr(mirrored, name), getattr(alone, name)) <= 1e-5, name
    assert relative_distance(alone.parameters, state.parameters) > 1e-3
    np.testing.assert_array_equal(mirrored.key, alone.key)


def test_metrics_are_those_of_the_global_batch(without_batch_norm):
    _, results = without_batch_norm
    for (_, mirrored), (_, alone) in results.values():
        assert mirrored.keys() == alone.keys()
        for name in alone:
            assert mirrored[name].shape == alone[name].shape
            np.testing.assert_allclose(mirrored[name], alone[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_products_of_bfloat16_differ_among_devices_by_their_rounding_alone(strategy, without_batch_norm):
    step, state = start("model.batch_norm=False", "model.structure=full", "training.precision=bfloat16")
    mirrored = MirroredLoop(step, strategy, batch_size=8, compiler="xla")
    (found, _), (expected, _) = (
        loop(state, 0, tf.constant(ROWS), indices(1)) for loop in (mirrored, TrainLoop(over_replicas(step, 1), "graph"))
    )
    (in_full, _) = without_batch_norm[1][1][1]
    assert relative_distance(found.first_moment, expected.first_moment) < 2**-8
    assert relative_distance(expected.first_moment, in_full.first_moment) > 1e-3


def test_synchronised_batch_norm_gives_the_gradient_and_statistics_of_one_device(strategy):
    step, state = start(synchronized=True)
    mirrored = MirroredLoop(step, strategy, batch_size=8, compiler="graph")
    (found, _), (expected, _) = (
        loop(state, 0, tf.constant(ROWS), indices(1)) for loop in (mirrored, TrainLoop(over_replicas(step, 1), "graph"))
    )
    for name in FIRST_STEP_FIELDS:
        assert relative_distance(getattr(found, name), getattr(expected, name)) <= 1e-5, name
    assert relative_distance(expected.statistics, state.statistics) > 1e-2


def test_free_bits_are_of_the_global_batch(strategy):
    # Each device's mean rates of four rows would leave other groups free.
    step, state = start("model.batch_norm=False", "objective.free_bits=0.002", "schedules.kl_weight.values=(1.0,1.0)")
    mirrored = MirroredLoop(step, strategy, batch_size=8, compiler="graph")
    (found, metrics), (expected, alone) = (
        loop(state, 0, tf.constant(ROWS), indices(1)) for loop in (mirrored, TrainLoop(over_replicas(step, 1), "graph"))
    )
    for name in FIRST_STEP_FIELDS[:3]:
        assert relative_distance(getattr(found, name), getattr(expected, name)) <= 1e-5, name
    np.testing.assert_allclose(metrics["loss"], alone["loss"], rtol=1e-6)


@pytest.mark.slow
def test_batch_norm_that_is_not_synchronised_would_differ(strategy):
    # So the comparison above can fail: each device's own statistics of four rows give another gradient.
    step, state = start(synchronized=False)
    mirrored = MirroredLoop(step, strategy, batch_size=8, compiler="graph")
    (found, _), (expected, _) = (
        loop(state, 0, tf.constant(ROWS), indices(1)) for loop in (mirrored, TrainLoop(over_replicas(step, 1), "graph"))
    )
    assert relative_distance(found.first_moment, expected.first_moment) > 1e-2


def test_devices_draw_different_noise_for_equal_rows(strategy):
    step, state = start("model.batch_norm=False", "model.structure=independent")
    same = np.zeros([1, 1, 8], np.int32)
    rows = tf.fill([1, 12], tf.constant(128, tf.uint8))

    class Spy:
        """Gives each device's part of the binarised batch a place of its own in the gradient."""

        gradient, apply = step.gradient, step.apply

    def gradient(state, number, part, first_row, row_ids):
        result = step.gradient(state, number, part, first_row, row_ids)
        x, seeds, _ = prepare_batch(
            part, random.fold_in(random.fold_in(state.key, random.TRAINING_STEP), number), step.transform, first_row
        )
        halves = tf.scatter_nd(
            [[first_row // 4]], [tf.concat([tf.reshape(x, [-1]), tf.cast(seeds[:, 0] % 1009, tf.float32)], 0)], [2, 52]
        )
        return result._replace(metrics={**result.metrics, "halves": 2.0 * halves})

    Spy.gradient = staticmethod(gradient)
    _, metrics = MirroredLoop(Spy, strategy, batch_size=8, compiler="graph")(state, 0, rows, same)
    seen = metrics["halves"][0]
    assert 0 < seen[0, :48].sum() < 48
    assert np.any(seen[0, :48] != seen[1, :48])
    assert not set(seen[0, 48:]) & set(seen[1, 48:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of the same run on two devices and on one, and the config of both."""
    folder = tmp_path_factory.mktemp("trained")
    file = tiny.write_rows(folder / "rows.npz")
    course = ("training.steps=4", "training.steps_per_call=2", "training.validate_every=4")

    def make():
        return tiny.file_config(file, GENTLE, *course, preset="vae/tiny")

    for strategy in ("mirrored", "none"):
        assert training.train(make(), folder / strategy, strategy=strategy).step == 4
    return folder, make


def test_training_end_to_end_on_two_devices_equals_one(trained):
    folder, _ = trained
    mirrored, alone = (Checkpoints(folder / name / "checkpoints").latest().arrays for name in ("mirrored", "none"))
    for name in ("state/parameters", "state/statistics", "best/parameters"):
        assert relative_distance(mirrored[name], alone[name]) <= 2e-5, name
    np.testing.assert_allclose(mirrored["best/bounds"], alone["best/bounds"], rtol=1e-5)


def test_a_run_begun_on_two_devices_goes_on_on_one(trained):
    folder, make = trained
    result = training.train(make(), folder / "mirrored", strategy="none", resume="must")
    assert result.step == 4


# Replicas ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["graph_vae/tiny", "boltzmann_vae/tiny"])
def test_replicas_on_two_devices_are_those_that_train_alone(preset, tmp_path):
    """With batch normalisation, and with samplers for every row."""
    file = tiny.write_rows(tmp_path / "rows.npz")
    course = ("training.steps=6", "training.steps_per_call=3", "training.validate_every=6")
    chosen = [f"data.file={str(file)!r}", "data.name=file", "data.variant=none", *course]

    def run(folder, strategy, *overrides):
        config = presets.get(preset, [*chosen, *overrides])
        training.train(config, tmp_path / folder, strategy=strategy)
        return Workdir(tmp_path / folder).run_state()

    together = run("together", "mirrored", "training.replicas=2")
    environment = Workdir(tmp_path / "together").environment()
    assert environment["devices"] == 2
    rows = read_rows(tmp_path / "together/metrics.jsonl")
    for place in range(2):
        alone = run(f"alone_{place}", "none", f"training.seed={place}")
        found = tf.nest.map_structure(lambda leaf, place=place: leaf[place : place + 1], together.train)
        tf.nest.map_structure(np.testing.assert_array_equal, found, alone.train)
        np.testing.assert_array_equal(together.best.bounds[place], alone.best.bounds[0])
        for one, two in zip(rows, read_rows(tmp_path / f"alone_{place}/metrics.jsonl"), strict=True):
            np.testing.assert_allclose(one["train/bound"][place], two["train/bound"], rtol=1e-6)


def test_replicas_that_the_devices_cannot_share_are_refused(tmp_path):
    file = tiny.write_rows(tmp_path / "rows.npz")
    with pytest.raises(ValueError, match="3 replicas cannot be shared equally by 2 devices"):
        training.train(tiny.vae_config(file, "training.replicas=3"), tmp_path / "run", strategy="mirrored")
    assert not (tmp_path / "run").exists()


def call(places):
    return Call(0, tf.constant(ROWS), places, places)


def test_devices_that_share_replicas_stop_after_the_same_step(monkeypatch):
    """In pieces: as one device does it all at once."""
    step, state = start("model.batch_norm=False", "model.structure=independent")
    stacked = tf.nest.map_structure(lambda leaf: tf.concat([leaf, leaf], 0), state)
    places = np.concatenate([indices(40)] * 2, axis=1)
    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    loop = ReplicaLoop(lambda num: TrainLoop(over_replicas(step, num), "graph", 40), devices, 2)
    expected, expected_metrics, _ = TrainLoop(over_replicas(step, 1), "graph", 40).run(state, call(indices(40)))
    found, metrics, num_steps = loop.run(stacked, call(places))
    assert num_steps == 40
    for place in range(2):
        np.testing.assert_array_equal(found.parameters[place], expected.parameters[0])
        np.testing.assert_allclose(metrics["bound"][place], expected_metrics["bound"][0], rtol=1e-5)
    monkeypatch.setattr(Pace, "size", 7)
    monkeypatch.setattr(Pace, "is_worth_stopping", lambda pace, num_steps: True)
    asked = iter([0, 0, 15])
    found, _, num_steps = loop.run(stacked, call(places), should_stop=lambda: next(asked))
    assert num_steps == 21
    expected, _, _ = TrainLoop(over_replicas(step, 1), "graph", 40).run(state, call(indices(40)[:21]))
    np.testing.assert_array_equal(found.parameters[1], expected.parameters[0])


def test_means_of_devices_that_share_replicas_leave_skipped_steps_out(monkeypatch):
    def step(state, number, rows, row_ids):  # every third step of the second replica is skipped
        kept = 1.0 - tf.cast(state.parameters[:, 0] > 0.0, tf.float32) * tf.cast(number % 3 == 0, tf.float32)
        return state, {"step": tf.cast(number, tf.float32) * kept, "skipped": 1.0 - kept}

    zeros = tf.zeros([2, 1])
    state = TrainState(
        tf.constant([[0.0], [1.0]]), zeros, zeros, zeros, tf.zeros([2, 2], tf.uint32), {}, {}, tf.ones(2)
    )
    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    monkeypatch.setattr(Pace, "size", 4)
    loop = ReplicaLoop(lambda num: TrainLoop(step, "graph", 10), devices, 2)
    _, metrics, _ = loop.run(state, call(np.concatenate([indices(10)] * 2, axis=1)))
    np.testing.assert_array_equal(metrics["skipped"], [0.0, 4.0])
    np.testing.assert_allclose(metrics["step"], [np.arange(10).mean(), np.mean([1, 2, 4, 5, 7, 8])], rtol=1e-6)


def test_a_signal_is_looked_for_every_ten_steps(strategy):
    step, state = start("model.batch_norm=False", "model.structure=independent")
    loop = MirroredLoop(step, strategy, batch_size=8, compiler="graph")
    asked = iter([0, 15])
    _, _, num_steps = loop.run(state, call(indices(25)), should_stop=lambda: next(asked))
    assert num_steps == 20

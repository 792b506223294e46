"""Chains that persist for every training row, and weight decay: what Boltzmann VAEs add to a training step."""

import numpy as np
import pytest
import tensorflow as tf

from tests.reference import boltzmann_vae as small
from tests.trainers import tiny
from tfstruct import random
from tfstruct.data.pipeline import Pipeline, batch_indices
from tfstruct.models import registry
from tfstruct.training import recovery, trainer
from tfstruct.training import run as training
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.distribute import MirroredLoop, make_strategy
from tfstruct.training.loop import TrainLoop, device_state, host_state
from tfstruct.training.state import initial_state, replica, stack_states
from tfstruct.training.step import TrainStep, over_replicas

# A call visits as many places as there are rows: blocks that are streamed then have the shape of resident rows.
NUM_ROWS, BATCH, K, STEPS = 12, 4, 2, 3
FLOATS = ("parameters", "first_moment", "second_moment", "statistics")
SETTINGS = (
    f"objective.num_samples={K}",
    "model.posterior_sweeps=2",
    "model.prior_sweeps=2",
    "model.prior_chains=16",
    "data.variant=none",
    f"training.steps={3 * STEPS}",
)


@pytest.fixture(scope="module")
def rows():
    return tiny.binary_rows(np.random.default_rng(6), NUM_ROWS, (2, 3))


def start(*overrides, seeds=(0,), num_rows=NUM_ROWS):
    """The training step of a config, and the stacked first states of some seeds."""
    models = [registry.build(small.config(*SETTINGS, *overrides), seed=seed) for seed in seeds]
    step = TrainStep(models[0], "cast")
    states = [
        initial_state(TrainStep(model, "cast").functional, random.key(seed), num_rows)
        for model, seed in zip(models, seeds, strict=True)
    ]
    return step, device_state(stack_states(states))


def single(*overrides):
    step, state = start(*overrides)
    return step, replica(state, 0)


def chains_of(state):
    return np.asarray(state.chains["posterior"])


def assert_same_states(found, expected):
    for name in (*FLOATS, "key"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(chains_of(found), chains_of(expected))


def gather(rows, places):
    return tf.constant(rows[np.asarray(places)]), tf.constant(places, tf.int32)


# A step ------------------------------------------------------------------------------------------------------

VISITED = [9, 2, 11, 4]


@pytest.fixture(scope="module")
def stepped(rows):
    """A step, its first state, and that after a visit of four rows."""
    step, state = single()
    batch, places = gather(rows, VISITED)
    after, metrics = step(state, tf.constant(0), batch, places)
    assert metrics["skipped"].numpy() == 0.0
    return step, state, after


def test_chains_of_visited_rows_move_and_those_of_others_stay(stepped):
    _, state, after = stepped
    before, moved = chains_of(state), chains_of(after)
    assert before.shape == moved.shape == (NUM_ROWS, K, 4)
    assert before.dtype == moved.dtype == np.uint8
    others = np.setdiff1d(np.arange(NUM_ROWS), VISITED)
    np.testing.assert_array_equal(moved[others], before[others])
    assert np.any(moved[VISITED] != before[VISITED], axis=(1, 2)).sum() >= 3
    assert set(np.unique(moved)) <= {0, 1}


# Bug seen: chains put back in the order of the batch, or those of one sample in the place of another's.
def test_new_chains_are_those_of_the_objective_at_the_places_of_their_rows(stepped, rows, monkeypatch):
    step, state, after = stepped
    seen, terms = {}, step.model.terms

    def recording(x, draws):
        found = terms(x, draws)
        seen.update(given=draws.chains["posterior"].numpy(), found=found.chains["posterior"].numpy())
        return found

    monkeypatch.setattr(step.model, "terms", recording)
    batch, places = gather(rows, VISITED)
    step.gradient(state, tf.constant(0), batch, row_ids=places)
    for sample, place in np.ndindex(K, BATCH):
        row = VISITED[place]
        np.testing.assert_array_equal(seen["given"][sample, place], chains_of(state)[row, sample])
        np.testing.assert_array_equal(seen["found"][sample, place], chains_of(after)[row, sample])


def test_the_next_visit_of_a_row_goes_on_from_its_own_chains(stepped, rows):
    step, _, after = stepped
    batch, places = gather(rows, [2, 3, 4, 5])
    flipped = chains_of(after).copy()
    flipped[2] = 1 - flipped[2]
    changed = after._replace(chains={"posterior": tf.constant(flipped)})
    one, two = (step.gradient(state, tf.constant(1), batch, row_ids=places) for state in (after, changed))
    np.testing.assert_array_equal(one.chains["posterior"][:, 1:], two.chains["posterior"][:, 1:])
    assert one.metrics["loss"].numpy() != two.metrics["loss"].numpy()


def test_a_step_that_is_not_finite_changes_no_chain(stepped, rows, monkeypatch):
    step, _, after = stepped
    objective = step.model.objective

    def planted(*arguments, **options):
        result = objective(*arguments, **options)
        return result._replace(generative_loss=result.generative_loss * np.nan, posterior_loss=result.posterior_loss)

    monkeypatch.setattr(step.model, "objective", planted)
    batch, places = gather(rows, [0, 1, 2, 3])
    found = step.gradient(after, tf.constant(1), batch, row_ids=places)
    assert np.any(found.chains["posterior"].numpy() != chains_of(after)[:4].transpose(1, 0, 2))
    skipped, metrics = step.apply(after, tf.constant(1), *found, places)
    assert metrics["skipped"].numpy() == 1.0
    assert_same_states(skipped, after)


# Bug seen: decay of every weight, or of the moments instead of the gradient.
def test_weight_decay_adds_to_the_gradient_of_decayed_weights_alone(stepped):
    step, _, state = stepped
    decay = 0.25
    decaying, _ = single(f"optimizer.weight_decay={decay}")
    plain, _ = single("optimizer.weight_decay=0.0")
    functional = step.functional.parameters
    decayed = {variable.path for variable in step.model.needs.decayed}
    parameters = functional.named(state.parameters.numpy())
    assert decayed < parameters.keys()
    added = np.concatenate(
        [
            decay * parameters[v.path].ravel() if v.path in decayed else np.zeros(v.shape).ravel()
            for v in functional.variables
        ]
    ).astype(np.float32)
    gradient = tf.constant(np.random.default_rng(1).normal(size=functional.size), tf.float32)
    rest = (state.statistics, {"loss": tf.constant(1.0)})
    found, _ = decaying.apply(state, tf.constant(3), gradient, *rest)
    expected, _ = plain.apply(state, tf.constant(3), gradient + added, *rest)
    for name in ("parameters", "first_moment", "second_moment"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-9)
    without, _ = plain.apply(state, tf.constant(3), gradient, *rest)
    moved = np.abs(found.first_moment - without.first_moment) > 1e-7
    assert moved.sum() > 0.9 * (added != 0.0).sum()
    assert not np.any(moved & (added == 0.0))


# Bug seen: each device kept the chains of its own rows alone, so a row that the other visited next began anew.
@pytest.mark.parametrize("compiler", ["graph", "xla"])
def test_two_devices_move_the_chains_of_all_rows_as_one(rows, compiler):
    normalised = {"graph": "model.batch_norm_synchronized=True", "xla": "model.batch_norm=False"}
    step, state = start("optimizer.epsilon=1e-3", normalised[compiler])
    mirrored = MirroredLoop(step, make_strategy("mirrored"), batch_size=BATCH, compiler=compiler)
    places = np.array([[[9, 2, 11, 4]], [[4, 9, 0, 1]], [[2, 0, 4, 11]]], np.int32)  # rows change devices
    results = [
        loop(state, 0, tf.constant(rows), places) for loop in (mirrored, TrainLoop(over_replicas(step, 1), "graph"))
    ]
    (found, metrics), (expected, expected_metrics) = results
    np.testing.assert_array_equal(chains_of(found), chains_of(expected))
    assert np.any(chains_of(found) != chains_of(state))
    for name in FLOATS:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-5)


# Loops -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loop():
    """The loop of one replica; of any, for weights, keys and chains are in the state."""
    return TrainLoop(over_replicas(start()[0], 1), "graph")


@pytest.fixture(scope="module")
def first():
    return start()[1]


def visits(*seeds):
    return batch_indices(list(seeds), 0, STEPS, BATCH, NUM_ROWS)


def test_streamed_rows_train_the_same_chains_as_resident_ones_bit_for_bit(loop, first, rows):
    ends = []
    for megabytes in (1, 0):
        pipeline = Pipeline(rows, seeds=[0], batch_size=BATCH, resident_megabytes=megabytes)
        assert pipeline.is_resident == bool(megabytes)
        state, moved = first, []
        for call in pipeline.calls([(1, STEPS), (1 + STEPS, STEPS)]):
            moved.append(not np.array_equal(call.indices, call.row_ids))
            state, metrics = loop(state, call.first_step, call.rows, call.indices, call.row_ids)
            assert metrics["skipped"] == 0.0
        assert any(moved) != pipeline.is_resident
        ends.append(state)
    assert_same_states(*ends)
    assert np.any(chains_of(ends[0]) != chains_of(first))


def test_rows_in_another_order_have_their_chains_in_that_order(loop, first, rows):
    order = np.random.default_rng(3).permutation(NUM_ROWS)
    shuffled = first._replace(chains={"posterior": tf.gather(first.chains["posterior"], order, axis=1)})
    found, _ = loop(shuffled, 0, tf.constant(rows[order]), visits(0))
    expected, _ = loop(first, 0, tf.constant(rows), order[visits(0)].astype(np.int32))
    np.testing.assert_array_equal(found.parameters, expected.parameters)
    np.testing.assert_array_equal(chains_of(found), chains_of(expected)[:, order])


SEEDS = (4, 5)


@pytest.fixture(scope="module")
def pair(rows):
    """The first state of two replicas of other seeds, and that after some steps together with its metrics."""
    step, state = start(seeds=SEEDS)
    return state, *TrainLoop(over_replicas(step, 2), "graph")(state, 0, tf.constant(rows), visits(*SEEDS))


# Bug seen: a Gibbs loop that vectorized_map cannot map. Batched products round otherwise than single ones.
@pytest.mark.parametrize("place", [0, 1])
def test_replicas_trained_together_equal_each_alone(place, pair, loop, rows):
    state, together, metrics = pair
    own_state = tf.nest.map_structure(lambda leaf: leaf[place : place + 1], state)
    alone, own = loop(own_state, 0, tf.constant(rows), visits(SEEDS[place]))
    for name in FLOATS:
        one, two = np.asarray(getattr(together, name))[place], np.asarray(getattr(alone, name))[0]
        assert np.linalg.norm(one - two) <= 1e-4 * np.linalg.norm(two), name
    np.testing.assert_allclose(metrics["loss"][place], own["loss"][0], rtol=1e-4)
    # A draw next to its threshold may fall on the other side of it.
    assert np.mean(chains_of(together)[place] != chains_of(alone)[0]) < 0.02


@pytest.mark.slow
def test_the_compiled_loop_equals_the_graph(loop, first, rows):
    expected, means = loop(first, 0, tf.constant(rows), visits(0))
    compiled = TrainLoop(over_replicas(start()[0], 1), "xla")
    found, own = compiled(first, 0, tf.constant(rows), visits(0))
    for name in FLOATS:
        one, two = np.asarray(getattr(found, name)), np.asarray(getattr(expected, name))
        assert np.linalg.norm(one - two) <= 1e-4 * np.linalg.norm(two), name
    np.testing.assert_allclose(own["loss"], means["loss"], rtol=1e-4)
    assert np.mean(chains_of(found) != chains_of(expected)) < 0.02


def test_replicas_have_chains_of_their_own(pair):
    before, after, metrics = pair
    for chains in (chains_of(before), chains_of(after)):
        assert chains.shape == (2, NUM_ROWS, K, 4)
        assert 0.2 < np.mean(chains[0] != chains[1]) < 0.8
    assert np.mean(chains_of(before) != chains_of(after)) > 0.1
    assert not np.any(metrics["skipped"])


# Runs --------------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def test_a_run_that_was_stopped_and_given_again_is_the_same_bit_for_bit(tmp_path, monkeypatch, loop):
    file = tiny.write_rows(tmp_path / "rows.npz", event_shape=(2, 3), num=NUM_ROWS)
    config = small.config(
        *SETTINGS, "data.name=file", f"data.file={str(file)!r}", f"training.batch_size={BATCH}",
        f"training.steps_per_call={STEPS}", "training.compiler=graph", "training.checkpoint_minutes=0.0",
    )  # fmt: skip
    # What validation does to the weights of the model is no part of the state; like tracing, it would take the time.
    monkeypatch.setattr(trainer.Trainer, "validate", lambda run: (None, np.zeros([1], bool)))
    monkeypatch.setattr(trainer, "TrainLoop", lambda *_: loop)
    training.train(config, tmp_path / "straight")
    seen, diverged = [], recovery.Recovery.diverged

    def stopping(self, state, *arguments):
        seen.append(state.step)
        if len(seen) == 2:
            raise StoppedError
        return diverged(self, state, *arguments)

    monkeypatch.setattr(recovery.Recovery, "diverged", stopping)
    with pytest.raises(StoppedError):
        training.train(config, tmp_path / "stopped")
    training.train(config, tmp_path / "stopped")
    assert seen == [STEPS, 2 * STEPS, 2 * STEPS, 3 * STEPS]  # the second call was lost, and made again
    straight, stopped = (Checkpoints(tmp_path / name / "checkpoints").latest() for name in ("straight", "stopped"))
    assert straight.step == stopped.step == 3 * STEPS
    assert straight.arrays.keys() == stopped.arrays.keys()
    for name, value in straight.arrays.items():
        np.testing.assert_array_equal(stopped.arrays[name], value, err_msg=name)
    chains = straight.arrays["chains/posterior"]
    assert chains.shape == (1, NUM_ROWS, K, 4)
    assert np.any(chains != chains_of(start()[1]))


def test_a_state_with_chains_goes_to_the_host_and_back_unchanged():
    _, state = start(seeds=(0, 1))
    host = host_state(state)
    assert isinstance(host.chains["posterior"], np.ndarray)
    assert_same_states(device_state(host), state)
    assert np.any(chains_of(host)[0] != chains_of(host)[1])

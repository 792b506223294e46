import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tfstruct import random
from tfstruct.functional import Functional, VectorLayout
from tfstruct.inference.objectives import Draws
from tfstruct.models import registry
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.state import Best, RunState, initial_state, replica, stack_states


@pytest.fixture(scope="module")
def functional():
    return Functional(registry.build(tiny.config()))


@pytest.fixture
def vector(functional, rng):
    return rng.normal(size=functional.parameters.size).astype(np.float32)


def bound_terms(functional, pieces, statistics, *, training=False):
    x = tf.constant(tiny.binary_rows(np.random.default_rng(5), 9, (12,)), tf.float32)
    with functional.bind(pieces, statistics) as scope:
        terms = functional.model.terms(x, Draws(random.key(3), 2, training=training, shared_seed=random.key(4)))
        return terms, functional.new_statistics(scope)


def test_split_then_join_is_the_identity(functional, vector):
    pieces = functional.parameters.split(tf.constant(vector))
    assert [tuple(piece.shape) for piece in pieces] == functional.parameters.shapes
    np.testing.assert_array_equal(functional.parameters.join(pieces), vector)


def test_assign_then_values_is_the_identity_and_every_variable_gets_its_own_piece(functional, vector):
    before = functional.parameters.values()
    try:
        functional.parameters.assign(vector)
        np.testing.assert_array_equal(functional.parameters.values(), vector)
        start = 0
        for variable in functional.model.trainable_variables:
            size = int(np.prod(variable.shape))
            np.testing.assert_array_equal(np.asarray(variable).ravel(), vector[start : start + size])
            start += size
        assert start == functional.parameters.size
    finally:
        functional.parameters.assign(before)


def test_named_gives_each_variable_under_its_own_path(functional, vector):
    named = functional.parameters.named(vector)
    assert list(named) == [variable.path for variable in functional.model.trainable_variables]
    assert len(set(named)) == len(functional.model.trainable_variables)
    np.testing.assert_array_equal(np.concatenate([value.ravel() for value in named.values()]), vector)


def test_parameters_and_statistics_are_all_weights_and_share_none(functional):
    parameters, statistics = set(functional.parameters.paths), set(functional.statistics.paths)
    assert statistics
    assert not parameters & statistics
    assert parameters | statistics == {variable.path for variable in functional.model.variables}


def test_two_weights_of_one_path_are_refused():
    twins = [keras.Variable(np.zeros(2, np.float32), name="same") for _ in range(2)]
    with pytest.raises(ValueError, match="same path"):
        VectorLayout(twins)


@pytest.mark.parametrize("size", [-1, 1])
def test_a_vector_of_another_size_is_refused_before_anything_is_written(functional, size):
    before = functional.parameters.values()
    wrong = np.ones([functional.parameters.size + size], np.float32)
    with pytest.raises(ValueError, match=f"expected a vector of {functional.parameters.size} values"):
        functional.parameters.assign(wrong)
    np.testing.assert_array_equal(functional.parameters.values(), before)


def test_a_layout_of_no_variables_has_an_empty_vector():
    layout = VectorLayout([])
    assert layout.values().shape == (0,)
    assert layout.join(layout.split(tf.zeros([0]))).shape == (0,)


def test_bound_layers_compute_with_the_given_tensors_and_leave_the_variables_alone(functional, vector, rng):
    statistics = np.abs(rng.normal(size=functional.statistics.size)).astype(np.float32) + 0.5
    before = functional.parameters.values(), functional.statistics.values()
    pieces = functional.parameters.split(tf.constant(0.3 * vector))
    bound, _ = bound_terms(functional, pieces, tf.constant(statistics))
    np.testing.assert_array_equal(functional.parameters.values(), before[0])
    np.testing.assert_array_equal(functional.statistics.values(), before[1])

    other = Functional(registry.build(tiny.config(), seed=1))
    other.assign(0.3 * vector, statistics)
    own = other.model.terms(
        tf.constant(tiny.binary_rows(np.random.default_rng(5), 9, (12,)), tf.float32), Draws(random.key(3), 2)
    )
    for field in ("log_likelihood", "log_prior", "log_posterior"):
        np.testing.assert_array_equal(getattr(bound, field), getattr(own, field))


def test_every_bound_statistic_is_used_in_evaluation(rng):
    functional = Functional(registry.build(tiny.config(preset="fc_vae/tiny")))  # a closed gate would hide some
    pieces = functional.parameters.split(tf.constant(functional.parameters.values()))
    # A random network: with weights as initialised, units that never fire would hide their statistics.
    pieces = [piece + tf.constant(0.3 * rng.normal(size=piece.shape), tf.float32) for piece in pieces]
    statistics = tf.constant(functional.statistics.values())
    with tf.GradientTape() as tape:
        tape.watch(statistics)
        terms, _ = bound_terms(functional, pieces, statistics)
        total = tf.add_n([tf.reduce_sum(tf.square(field)) for field in terms[:3]])
    gradient = functional.statistics.named(tape.gradient(total, statistics))
    assert all(np.abs(value).max() > 0 for value in gradient.values()), gradient.keys()


def test_training_moves_the_bound_statistics_and_not_the_variables(functional):
    before = functional.statistics.values()
    pieces = functional.parameters.split(tf.constant(functional.parameters.values()))
    given = before + np.float32(0.25)
    _, after = bound_terms(functional, pieces, tf.constant(given), training=True)
    np.testing.assert_array_equal(functional.statistics.values(), before)
    moved = functional.statistics.named(after.numpy() - given)
    assert all(np.abs(value).max() > 0 for value in moved.values())


def test_the_initial_state_is_the_weights_with_empty_moments(functional):
    state = initial_state(functional, random.key(2**33 + 5))
    np.testing.assert_array_equal(state.parameters, functional.parameters.values())
    np.testing.assert_array_equal(state.statistics, functional.statistics.values())
    np.testing.assert_array_equal(state.key, np.array([2, 5], np.uint32))
    assert not state.first_moment.any()
    assert not state.second_moment.any()


def test_replica_takes_out_what_stack_put_in(functional):
    states = [initial_state(functional, random.key(seed)) for seed in range(3)]
    states[1] = states[1]._replace(parameters=states[1].parameters + 1)
    stacked = stack_states(states)
    for place, state in enumerate(states):
        for found, expected in zip(replica(stacked, place)[:5], state[:5], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_seeds_differ_in_their_initial_weights_and_equal_seeds_do_not():
    first, again, other = (
        Functional(registry.build(tiny.config(), seed=seed)).parameters.values() for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.mean(first != other) > 0.5


def test_a_vector_says_where_a_variable_lies_and_refuses_others(functional):
    vector = np.arange(functional.parameters.size)
    named = functional.parameters.named(vector)
    for variable in functional.parameters.variables:
        np.testing.assert_array_equal(vector[functional.parameters.place(variable)], named[variable.path].ravel())
    with pytest.raises(ValueError, match="moving_mean is none of the"):
        functional.parameters.place(functional.statistics.variables[0])


# What a checkpoint holds ----------------------------------------------------------------------------------------------


@pytest.fixture
def found(functional, rng):
    states = [initial_state(functional, random.key(seed), is_averaged=True) for seed in range(2)]
    made_by = {"commit": "ab12", "versions": {"keras": "3"}}
    train = stack_states(states)._replace(chains={"posterior": np.zeros([2, 3, 4], bool)})
    best = Best.before_validation(train)
    return RunState(7, train, best, [4, 5], functional.layout, "ab12", np.array([0.5, 0.25]), "{}", made_by)


@pytest.mark.parametrize("fixed", [None, np.array([0.5, 0.25])])
def test_a_state_goes_through_a_checkpoint(found, tmp_path, fixed):
    found = found._replace(fixed_uncertainties=fixed)
    on_device = found._replace(train=tf.nest.map_structure(tf.constant, found.train))
    for place, state in enumerate((found, on_device)):
        checkpoints = Checkpoints(tmp_path / str(place))
        checkpoints.save(state.step, state.arrays(), state.metadata())
        read = RunState.from_checkpoint(checkpoints.latest())
        assert read._fields == found._fields
        tf.nest.map_structure(np.testing.assert_array_equal, read[:3], found[:3])
        assert read[3:6] == found[3:6]
        assert (read.config, read.made_by) == (found.config, found.made_by)
        np.testing.assert_array_equal(read.fixed_uncertainties, fixed)
        assert set(read.train.averages) == {"parameters", "statistics"}


def test_a_checkpoint_of_another_version_that_lacks_something_is_refused_in_a_line(found, tmp_path):
    arrays, metadata = found.arrays(), found.metadata()
    for name in ("best/bounds", "state/parameters", "layout"):
        checkpoints = Checkpoints(tmp_path / name.replace("/", "_"))
        path = checkpoints.save(
            7,
            {key: value for key, value in arrays.items() if key != name},
            {key: value for key, value in metadata.items() if key != name},
        )
        message = f"^{re.escape(str(path))} lacks '{name}': another version of this library wrote it; use that one$"
        with pytest.raises(ValueError, match=message):
            RunState.from_checkpoint(checkpoints.latest())


def test_the_weights_of_a_replica_are_its_best_or_if_it_was_never_validated_its_latest(found):
    latest = {name: values + 1.0 for name, values in found.train.averages.items()}
    best = found.best._replace(bounds=np.array([-np.inf, -3.0]), steps=np.array([0, 5]))
    weights = found._replace(train=found.train._replace(averages=latest), best=best).weights
    np.testing.assert_array_equal(weights.parameters, [latest["parameters"][0], found.best.parameters[1]])
    np.testing.assert_array_equal(weights.statistics, [latest["statistics"][0], found.best.statistics[1]])
    np.testing.assert_array_equal(weights.steps, [7, 5])
    np.testing.assert_array_equal(weights.bounds, [-np.inf, -3.0])

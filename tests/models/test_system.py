import random as python_random

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.reference import small
from tfstruct import random
from tfstruct.data.variants import prepare_batch
from tfstruct.functional import Functional, VectorLayout
from tfstruct.inference.objectives import Draws
from tfstruct.models.registry import seeded_initializers

KEY = random.key(17)


def test_every_row_of_a_batch_has_a_key_and_draws_of_its_own():
    x, row_keys, shared_key = prepare_batch(np.full([64, 50], 128, np.uint8), KEY, "binarize")
    assert x.dtype == tf.float32
    assert len(np.unique(x, axis=0)) == 64
    # The rows' keys differ from one another, from the shared key and from the step's.
    keys = np.concatenate([row_keys, [shared_key], [KEY]])
    assert len(np.unique(keys, axis=0)) == 66


def test_dividing_a_batch_changes_neither_its_draws_nor_its_keys():
    rows = np.arange(8 * 50, dtype=np.uint8).reshape(8, 50)
    x, row_keys, shared_key = prepare_batch(rows, KEY, "binarize")
    for first in (0, 4):
        part = prepare_batch(rows[first : first + 4], KEY, "binarize", tf.constant(first))
        np.testing.assert_array_equal(part[0], x[first : first + 4])
        np.testing.assert_array_equal(part[1], row_keys[first : first + 4])
        np.testing.assert_array_equal(part[2], shared_key)


def test_batches_of_other_steps_have_other_draws_and_keys():
    rows = np.full([4, 50], 128, np.uint8)
    first, second = (prepare_batch(rows, random.fold_in(KEY, step), "binarize") for step in (0, 1))
    for one, two in zip(first, second, strict=True):
        assert np.any(np.asarray(one) != np.asarray(two))


def test_seeded_initializers_repeat_and_leave_no_trace():
    values = []
    for seed in (1, 1, 2):
        python_random.seed(5)
        with seeded_initializers(seed):
            values.append(np.asarray(keras.initializers.GlorotUniform()([4, 4])))
        state = python_random.random()
        python_random.seed(5)
        assert state == python_random.random()
    np.testing.assert_array_equal(values[0], values[1])
    assert np.any(values[0] != values[2])


def test_bound_weights_act_as_assigned_ones_and_leave_the_model_alone(rng):
    system, x = small.build("learned"), tf.constant(small.images(rng, 3), tf.float32)
    functional = Functional(system)
    parameters, statistics = functional.parameters.values() + 0.1, functional.statistics.values() + 0.2

    def terms():
        return tf.stack(system.terms(x, Draws(KEY, 2))[:3]).numpy()

    before = terms()
    with functional.bind(functional.parameters.split(tf.constant(parameters)), tf.constant(statistics)):
        bound = terms()
    np.testing.assert_array_equal(terms(), before)
    functional.assign(parameters, statistics)
    np.testing.assert_array_equal(terms(), bound)
    assert np.any(bound != before)


def test_new_statistics_are_what_a_training_pass_leaves(rng):
    system, x = small.build("full"), tf.constant(small.images(rng, 6), tf.float32)
    functional = Functional(system)
    parameters, statistics = functional.parameters.values(), functional.statistics.values()
    asked = Draws(KEY, 2, training=True, path=True)
    with functional.bind(functional.parameters.split(tf.constant(parameters)), tf.constant(statistics)) as scope:
        system.terms(x, asked)
    found = functional.new_statistics(scope).numpy()
    np.testing.assert_array_equal(functional.statistics.values(), statistics)
    system.terms(x, asked)
    np.testing.assert_allclose(found, functional.statistics.values(), rtol=1e-6)
    assert np.any(found != statistics)


def test_a_vector_is_cut_and_joined_in_the_order_of_the_variables(rng):
    layout = VectorLayout(small.build("chain").trainable_variables)
    vector = rng.normal(size=layout.size).astype(np.float32)
    pieces = layout.split(tf.constant(vector))
    assert [tuple(piece.shape) for piece in pieces] == layout.shapes
    np.testing.assert_array_equal(layout.join(pieces), vector)
    layout.assign(vector)
    np.testing.assert_array_equal(layout.values(), vector)
    for variable, path in zip(layout.variables, layout.paths, strict=True):
        np.testing.assert_array_equal(layout.named(vector)[path], variable)


def test_a_vector_of_another_size_is_refused():
    layout = VectorLayout(small.build("chain").trainable_variables)
    with pytest.raises(ValueError, match=f"a vector of {layout.size} values, found shape"):
        layout.assign(np.zeros(layout.size + 1, np.float32))

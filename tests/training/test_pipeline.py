import tracemalloc

import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tfstruct import random
from tfstruct.data import pipeline as pipeline_lib
from tfstruct.data.pipeline import Pipeline, batch_indices
from tfstruct.functional import Functional
from tfstruct.models import registry
from tfstruct.training.loop import TrainLoop, device_state
from tfstruct.training.state import initial_state, stack_states
from tfstruct.training.step import TrainStep, over_replicas

ROWS = np.random.default_rng(6).integers(0, 256, size=[29, 12], dtype=np.uint8)


@pytest.mark.parametrize(("num_rows", "batch_size"), [(29, 8), (24, 8), (5, 8), (1, 3), (8, 1)])
def test_every_row_is_visited_exactly_once_an_epoch(num_rows, batch_size):
    epochs = 4
    steps = -(-epochs * num_rows // batch_size)
    visits = batch_indices([3], 0, steps, batch_size, num_rows).reshape(-1)
    for epoch in range(epochs):
        inside = visits[epoch * num_rows : (epoch + 1) * num_rows]
        np.testing.assert_array_equal(np.sort(inside), np.arange(num_rows))


def test_the_order_depends_on_the_seed_and_on_the_epoch():
    first, again, other = (batch_indices([seed], 0, 2, 500, 500)[:, 0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    for one, two in ((first[0], first[1]), (first[0], other[0]), (first[0], np.arange(500))):
        assert np.mean(one == two) < 0.05  # by chance one in 500 places agrees


def test_each_replica_has_the_order_of_its_seed():
    together = batch_indices([7, 8], 3, 5, 8, 29)
    for place, seed in enumerate((7, 8)):
        np.testing.assert_array_equal(together[:, place], batch_indices([seed], 3, 5, 8, 29)[:, 0])


@pytest.mark.parametrize("first_step", [0, 1, 3, 4, 17])
def test_the_position_is_a_function_of_the_step_alone(first_step):
    whole = batch_indices([3], 0, 20, 8, 29)
    np.testing.assert_array_equal(batch_indices([3], first_step, 3, 8, 29), whole[first_step : first_step + 3])


def test_late_steps_of_a_long_run_do_not_overflow():
    first_step = 2**31 // 128 + 5  # the place in the data exceeds 32 bits
    indices = batch_indices([0], first_step, 2, 128, 300)
    assert indices.min() >= 0
    assert indices.max() < 300


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_streaming_serves_exactly_the_rows_of_the_resident_way(dtype):
    rows, spans = ROWS.astype(dtype), [(0, 4), (4, 4), (8, 3)]
    resident = Pipeline(rows, seeds=[1, 2], batch_size=8, resident_megabytes=1)
    streaming = Pipeline(rows, seeds=[1, 2], batch_size=8, resident_megabytes=0)
    assert resident.is_resident
    assert not streaming.is_resident
    pairs = list(zip(resident.calls(spans), streaming.calls(spans), strict=True))
    assert [call.first_step for call, _ in pairs] == [0, 4, 8]
    for (first, steps), calls in zip(spans, pairs, strict=True):
        expected = rows[batch_indices([1, 2], first, steps, 8, len(rows))]
        for call in calls:
            assert call.first_step == first
            found = np.asarray(call.rows)[call.indices]
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(rows[call.row_ids], expected)


def test_processes_that_share_a_batch_read_the_rows_of_their_own_places_alone():
    spans = [(0, 4), (4, 3)]
    options = {"seeds": [1], "batch_size": 8, "resident_megabytes": 0}
    parts = [Pipeline(ROWS, places=places, **options) for places in (slice(0, 4), slice(4, 8))]
    for whole, first, second in zip(
        Pipeline(ROWS, **options).calls(spans), *(p.calls(spans) for p in parts), strict=True
    ):
        for call, places in ((first, slice(0, 4)), (second, slice(4, 8))):
            expected = ROWS[whole.row_ids[..., places]]
            np.testing.assert_array_equal(np.asarray(call.rows)[call.indices[..., places]], expected)
            np.testing.assert_array_equal(call.row_ids, whole.row_ids)  # a step that diverged names all
            assert len(call.rows) == len(whole.rows) // 2
            assert call.indices.shape == whole.indices.shape


def test_streamed_blocks_of_equal_calls_have_one_shape():
    streaming = Pipeline(ROWS, seeds=[1], batch_size=8, resident_megabytes=0)
    shapes = {tuple(call.rows.shape) for call in streaming.calls([(0, 2), (2, 2), (4, 2)])}
    assert shapes == {(16, 12)}


def test_a_streamed_call_is_no_larger_than_a_block(monkeypatch):
    monkeypatch.setattr(pipeline_lib, "BLOCK_BYTES", 1000)
    streaming = Pipeline(ROWS, seeds=[1, 2], batch_size=8, resident_megabytes=0)
    assert streaming.max_steps_per_call == 1000 // (12 * 8 * 2)
    monkeypatch.setattr(pipeline_lib, "BLOCK_BYTES", 1)
    assert streaming.max_steps_per_call == 1
    assert Pipeline(ROWS, seeds=[1], batch_size=8, resident_megabytes=1).max_steps_per_call is None


@pytest.mark.parametrize(("megabytes", "resident"), [(348 / 2**20, True), (347 / 2**20, False), (0, False)])
def test_the_limit_of_residence_counts_the_bytes_of_the_rows(megabytes, resident):
    assert Pipeline(ROWS, seeds=[0], batch_size=2, resident_megabytes=megabytes).is_resident == resident


def test_training_on_a_mapped_file_gives_the_same_state_bit_for_bit(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    model = registry.build(tiny.config(preset="vae/tiny"))
    step = TrainStep(model, "binarize")
    loop = TrainLoop(over_replicas(step, 1), "graph")
    states = []
    for rows, megabytes in ((ROWS, 1), (mapped, 0)):
        pipeline = Pipeline(rows, seeds=[0], batch_size=8, resident_megabytes=megabytes)
        state = device_state(stack_states([initial_state(Functional(model), random.key(0))]))
        for call in pipeline.calls([(0, 6), (6, 6)]):
            state, _ = loop(state, call.first_step, call.rows, call.indices)
        states.append(state)
    assert tf.reduce_max(tf.abs(states[0].first_moment)) > 0
    for name in ("parameters", "first_moment", "second_moment", "statistics", "key"):
        np.testing.assert_array_equal(getattr(states[0], name), getattr(states[1], name), err_msg=name)


@pytest.mark.parametrize(
    ("rows", "batch_size", "message"),
    [(ROWS[:0], 8, "training set is empty"), (ROWS, 0, "batch_size must be at least 1, found 0")],
)
def test_no_rows_and_no_batch_are_refused(rows, batch_size, message):
    with pytest.raises(ValueError, match=message):
        Pipeline(rows, seeds=[0], batch_size=batch_size, resident_megabytes=1)


def test_the_order_of_many_rows_takes_no_memory_and_visits_each_once_an_epoch(monkeypatch):
    monkeypatch.setattr(pipeline_lib, "SORTED_ROWS", 10)
    num_rows, batch = 300, 8
    visits = batch_indices([1, 2], 0, 75, batch, num_rows)  # two epochs
    for seed in range(2):
        epochs = visits[:, seed].reshape(2, num_rows)
        for epoch in epochs:
            np.testing.assert_array_equal(np.sort(epoch), np.arange(num_rows))
        assert (epochs[0] != epochs[1]).mean() > 0.9
    np.testing.assert_array_equal(batch_indices([1, 2], 30, 20, batch, num_rows), visits[30:50])
    monkeypatch.undo()
    tracemalloc.start()
    indices = batch_indices([0], 10**7, 100, 128, 2**31 - 1)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert len(np.unique(indices)) == indices.size
    with pytest.raises(ValueError, match="at most 2,147,483,647 rows"):
        batch_indices([0], 0, 1, 128, 2**31)

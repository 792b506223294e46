"""Joining requests, with a model that only counts what it is asked."""

import asyncio
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from tfstruct.serving.errors import RequestError
from tfstruct.serving.server.batching import Batcher
from tfstruct.serving.server.metrics import Metrics
from tfstruct.serving.server.settings import Settings


class Counting:
    """A version whose signature `double` doubles, fails where a value is 13, and waits for `may_go`."""

    name, number = "counting", 1

    def __init__(self):
        self.batches = []
        self.may_go = threading.Event()
        self.may_go.set()

    def signature(self, name):
        if name != "double":
            raise RequestError("FAILED_PRECONDITION", "not found")
        inputs = {"x": {"dtype": "float32", "shape": [-1, 2]}, "seed": {"dtype": "int64", "shape": [-1]}}
        return {"inputs": inputs, "outputs": {}}

    def run(self, signature, inputs):
        self.may_go.wait(20)
        self.batches.append(inputs["x"].tolist())
        if (inputs["x"] == 13).any():
            raise RuntimeError("a secret of the server")
        return {"y": 2 * inputs["x"], "seed": inputs["seed"]}


def inputs(*values):
    return {"x": np.array([[value, value] for value in values], np.float32), "seed": np.array(values, np.int64)}


def run(ask, **settings):
    """Runs a coroutine function of a batcher and a version; returns its result and the batches."""
    version, metrics = Counting(), Metrics()

    async def main():
        batcher = Batcher(Settings((), **{"threads": 1, "batch_timeout_ms": 50.0} | settings), metrics)
        try:
            return await ask(batcher, version)
        finally:
            batcher.close()

    return asyncio.run(main()), version.batches


def gather(batcher, version, requests, timeout=20.0):
    return asyncio.gather(
        *(batcher.answer(version, "double", request, timeout) for request in requests), return_exceptions=True
    )


def test_requests_that_come_together_are_computed_together_and_each_gets_its_own():
    requests = [inputs(1), inputs(2, 3), inputs(4)]
    found, batches = run(lambda batcher, version: gather(batcher, version, requests))
    assert batches == [[[1, 1], [2, 2], [3, 3], [4, 4]]]
    for answer, request in zip(found, requests, strict=True):
        np.testing.assert_array_equal(answer["y"], 2 * request["x"])
        np.testing.assert_array_equal(answer["seed"], request["seed"])


def test_a_batch_has_no_more_rows_than_it_may_and_a_large_request_goes_alone():
    requests = [inputs(1, 2), inputs(3, 4), inputs(5, 6, 7, 8, 9), inputs(10)]
    found, batches = run(lambda batcher, version: gather(batcher, version, requests), max_batch_size=4)
    assert [len(batch) for batch in batches] == [4, 5, 1]
    assert [len(answer["y"]) for answer in found] == [2, 2, 5, 1]


def test_a_full_batch_does_not_wait_for_more():
    async def ask(batcher, version):
        started = time.monotonic()
        await gather(batcher, version, [inputs(1), inputs(2)])
        return time.monotonic() - started

    seconds, batches = run(ask, max_batch_size=2, batch_timeout_ms=5000.0)
    assert seconds < 4
    assert len(batches) == 1


@pytest.mark.parametrize(("size", "lengths"), [(8, [1, 4]), (1, [1, 1, 1, 1, 1]), (2, [1, 2, 2])])
def test_what_comes_while_a_batch_is_computed_is_joined_although_a_thread_is_free(size, lengths):
    async def ask(batcher, version):
        version.may_go.clear()
        first = asyncio.create_task(batcher.answer(version, "double", inputs(1), 20.0))
        await asyncio.sleep(0.05)  # it is computed, alone
        others = [asyncio.create_task(batcher.answer(version, "double", inputs(v), 20.0)) for v in (2, 3, 4, 5)]
        await asyncio.sleep(0.05)
        version.may_go.set()
        return await asyncio.gather(first, *others)

    answers, batches = run(ask, threads=2, batch_timeout_ms=0.0, max_batch_size=size)
    assert sorted(len(batch) for batch in batches) == sorted(lengths)
    assert [answer["y"][0, 0] for answer in answers] == [2, 4, 6, 8, 10]


def test_what_comes_after_a_full_batch_is_joined_again():
    async def ask(batcher, version):
        await gather(batcher, version, [inputs(1), inputs(2)])  # a full batch
        version.may_go.clear()
        tasks = []
        for value in (3, 4, 5):
            tasks.append(asyncio.create_task(batcher.answer(version, "double", inputs(value), 20.0)))
            await asyncio.sleep(0.05)
        version.may_go.set()
        return await asyncio.gather(*tasks)

    _, batches = run(ask, threads=2, batch_timeout_ms=0.0, max_batch_size=2)
    assert sorted(len(batch) for batch in batches) == [1, 2, 2]


def test_rows_of_other_shapes_are_computed_apart():
    class AnyWidth(Counting):
        def signature(self, name):
            return {"inputs": {"x": {"dtype": "float32", "shape": [-1, -1]}}, "outputs": {}}

        def run(self, signature, inputs):
            self.batches.append(inputs["x"].shape)
            return {"y": 2 * inputs["x"]}

    async def ask(batcher, _):
        requests = [{"x": np.ones([1, width], np.float32)} for width in (2, 3, 2)]
        answers = await gather(batcher, version, requests)
        return [answer["y"].shape for answer in answers]

    version = AnyWidth()
    shapes, _ = run(ask, threads=1)
    assert shapes == [(1, 2), (1, 3), (1, 2)]
    assert sorted(version.batches) == [(1, 3), (2, 2)]


def test_room_is_given_back_when_nobody_waits_any_more_and_a_deadline_that_is_over_computes_nothing():
    async def ask(batcher, version):
        late = await gather(batcher, version, [inputs(1)], timeout=0.01)
        await asyncio.sleep(0.1)
        over = await gather(batcher, version, [inputs(2)], timeout=0.0)
        return late, over, await gather(batcher, version, [inputs(3)], timeout=5.0)

    (late, over, answers), batches = run(ask)
    assert late[0].code == over[0].code == "DEADLINE_EXCEEDED"
    assert "before the request was read" in over[0].message
    assert answers[0]["y"].tolist() == [[6, 6]]
    assert batches == [[[3, 3]]]


def test_a_server_that_goes_down_answers_what_waits():
    async def ask(batcher, version):
        version.may_go.clear()
        asked = gather(batcher, version, [inputs(1), inputs(2), inputs(3)])
        await asyncio.sleep(0.05)
        batcher.close()
        version.may_go.set()
        return await asyncio.wait_for(asked, 5.0)

    answers, _ = run(ask, max_batch_size=1, batch_timeout_ms=0.0)
    assert [getattr(answer, "code", "OK") for answer in answers] == ["OK", "UNAVAILABLE", "UNAVAILABLE"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (tf.errors.InvalidArgumentError(None, None, "a bad image"), "INVALID_ARGUMENT"),
        (tf.errors.ResourceExhaustedError(None, None, "no memory"), "RESOURCE_EXHAUSTED"),
        (MemoryError(), "RESOURCE_EXHAUSTED"),
    ],
)
def test_errors_of_the_graph_have_the_codes_of_their_kinds(error, code):
    class Failing(Counting):
        def run(self, signature, inputs):
            raise error

    answers, _ = run(lambda batcher, _: gather(batcher, Failing(), [inputs(1)]))
    assert answers[0].code == code
    assert code != "INVALID_ARGUMENT" or "a bad image" in answers[0].message


def test_a_request_that_makes_a_batch_fail_fails_alone_and_without_a_secret():
    found, batches = run(lambda batcher, version: gather(batcher, version, [inputs(1), inputs(13), inputs(3)]))
    assert [len(batch) for batch in batches] == [3, 1, 1, 1]
    assert found[0]["y"].tolist() == [[2, 2]]
    assert found[2]["y"].tolist() == [[6, 6]]
    assert found[1].code == "INTERNAL"
    assert "secret" not in found[1].message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros([1, 3], np.float32)}, r"x must have shape \[N, 2\] with N >= 1, found \[1, 3\]"),
        ({"x": np.zeros([0, 2], np.float32)}, r"found \[0, 2\]"),
        ({"x": np.zeros([1, 2], np.float64)}, "x must be float32, found float64"),
        ({"x": np.zeros([2, 2], np.float32)}, "the same number of rows, found"),
        ({"y": np.zeros([1, 2], np.float32)}, "takes the inputs x, seed, found seed, x, y"),
        ({"x": np.zeros([9, 2], np.float32), "seed": np.zeros([9], np.int64)}, "may have 8 rows, found 9"),
    ],
)
def test_a_wrong_request_is_refused_before_it_is_joined_with_others(change, message):
    requests = [inputs(1), inputs(2) | change, inputs(3)]
    found, batches = run(lambda batcher, version: gather(batcher, version, requests), max_rows=8)
    assert batches == [[[1, 1], [3, 3]]]
    assert found[1].code == "INVALID_ARGUMENT"
    with pytest.raises(RequestError, match=message):
        raise found[1]


def test_a_request_that_is_over_before_its_turn_is_not_computed():
    async def ask(batcher, version):
        version.may_go.clear()
        first = asyncio.ensure_future(batcher.answer(version, "double", inputs(1), 20.0))
        await asyncio.sleep(0.3)  # the only thread has it
        late = await gather(batcher, version, [inputs(2)], timeout=0.1)
        patient = asyncio.ensure_future(batcher.answer(version, "double", inputs(3), 20.0))
        gone = asyncio.ensure_future(batcher.answer(version, "double", inputs(4), 20.0))
        await asyncio.sleep(0.1)
        gone.cancel()
        version.may_go.set()
        return await first, late[0], await patient

    (first, late, patient), batches = run(ask)
    assert late.code == "DEADLINE_EXCEEDED"
    assert batches == [[[1, 1]], [[3, 3]]]
    assert patient["y"].tolist() == [[6, 6]]
    assert first["y"].tolist() == [[2, 2]]


def test_more_requests_than_there_is_room_for_are_refused_and_room_comes_back():
    async def ask(batcher, version):
        version.may_go.clear()
        waiting = asyncio.ensure_future(gather(batcher, version, [inputs(value) for value in range(5)]))
        await asyncio.sleep(0.2)
        version.may_go.set()
        return await waiting, await batcher.answer(version, "double", inputs(7), 20.0)

    (found, after), _ = run(ask, max_queued_requests=3)
    assert [getattr(answer, "code", "OK") for answer in found] == ["OK"] * 3 + ["RESOURCE_EXHAUSTED"] * 2
    assert after["y"].tolist() == [[14, 14]]

"""Connections to models: what is tried again, until when, and what is said of failures. No server is needed."""

import asyncio
import json

import httpx
import numpy as np
import pytest

import tfstruct
from tests.trainers import tiny
from tfstruct.serving import errors, remote, tensors, transports

CARD = {
    "preset": "p",
    "event_shape": [2],
    "support": "binary",
    "signatures": {
        "log_prob": {
            "inputs": {"x": {"dtype": "float32", "shape": [-1, 2]}, "seed": {"dtype": "int64", "shape": [-1]}},
            "outputs": {"log_prob": {"dtype": "float32", "shape": [-1]}},
        }
    },
}
TARGET = transports.Target("host:1", "m")
X = np.eye(2)


class Failing:
    """A connection that fails in given ways before it answers."""

    def __init__(self, *codes, seconds=0.0):
        self.codes, self.timeouts, self.seconds = list(codes), [], seconds
        self.at_once = self.most_at_once = 0

    def predict(self, signature, inputs, outputs, timeout):
        self.timeouts.append(timeout)
        if self.codes:
            raise errors.remote_error(self.codes.pop(0), "said", TARGET.asked(signature))
        return {"log_prob": inputs["x"].sum(axis=1) + inputs["seed"]}


class AsyncFailing(Failing):
    async def predict(self, *arguments):  # pyright: ignore[reportIncompatibleMethodOverride]
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.seconds)
        self.at_once -= 1
        return super().predict(*arguments)


def ask(connection, *, is_async, batch_size=100, concurrency=2, x=X, **patience):
    patience = remote.Patience(**patience)
    if not is_async:
        return remote.RemoteModel(TARGET, connection, CARD, patience).log_prob(x, batch_size=batch_size)

    async def main():
        model = remote.AsyncRemoteModel(TARGET, connection, CARD, patience, concurrency)
        return await model.log_prob(x, batch_size=batch_size)

    return asyncio.run(main())


@pytest.fixture(params=[False, True], ids=["waited for", "awaited"])
def is_async(request, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    return request.param


def failing(is_async, *codes, **options):
    return (AsyncFailing if is_async else Failing)(*codes, **options)


def test_a_server_that_is_away_or_full_is_asked_again(is_async):
    connection = failing(is_async, "UNAVAILABLE", "RESOURCE_EXHAUSTED", "UNAVAILABLE")
    assert ask(connection, is_async=is_async)["log_prob"].tolist() == [1, 1]
    assert len(connection.timeouts) == 4
    assert sorted(connection.timeouts, reverse=True) == connection.timeouts  # one deadline for all attempts


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "INTERNAL", "TOO_LARGE"])
def test_nothing_else_is_tried_again(is_async, code):
    connection = failing(is_async, code)
    with pytest.raises(errors.RemoteError, match="host:1, model 'm', signature 'log_prob': .*said") as error:
        ask(connection, is_async=is_async)
    assert error.value.code == code
    assert len(connection.timeouts) == 1


def test_no_more_often_than_it_may_be(is_async):
    connection = failing(is_async, *["UNAVAILABLE"] * 9)
    with pytest.raises(ConnectionError):
        ask(connection, is_async=is_async, retries=3)
    assert len(connection.timeouts) == 4


def test_not_after_the_deadline(is_async, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.2)
    connection = failing(is_async, *["UNAVAILABLE"] * 99)
    with pytest.raises(ConnectionError):
        ask(connection, is_async=is_async, retries=15, timeout=0.5)
    assert 2 <= len(connection.timeouts) <= 5
    assert all(0 < timeout <= 0.5 for timeout in connection.timeouts)


def test_chunks_come_back_in_their_order_and_no_more_are_under_way_than_may_be():
    x = np.tile(X, [10, 1])
    x[3] = 1
    connection = AsyncFailing(seconds=0.01)
    found = ask(connection, is_async=True, x=x, batch_size=2, concurrency=3)
    assert found["log_prob"].tolist() == x.sum(axis=1).tolist()
    assert connection.most_at_once == 3


def test_a_message_that_is_too_large_is_not_taken_for_a_full_server():
    error = errors.remote_error("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (9 vs. 4)", TARGET)
    assert isinstance(error, errors.MessageTooLargeError)
    assert not errors.is_worth_retrying(error)
    assert "smaller batch_size" in str(error)
    assert errors.is_worth_retrying(errors.remote_error("RESOURCE_EXHAUSTED", "256 requests wait", TARGET))


def rest(handler):
    transport = transports.RestTransport(transports.Target("host:1", "m", version=3))
    transport._client = httpx.Client(transport=httpx.MockTransport(handler))
    return transport


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (503, errors.ServerUnavailableError),
        (502, errors.ServerUnavailableError),
        (400, errors.RemoteInputError),
        (404, errors.UnknownModelError),
        (413, errors.MessageTooLargeError),
        (504, errors.RemoteTimeoutError),
        (500, errors.RemoteError),
    ],
)
def test_statuses_of_http_are_told_apart_and_what_proxies_say_is_passed_on(status, kind):
    for content in (b'{"error": "what was said"}', b"<html>what was said</html>"):
        connection = rest(lambda request, content=content: httpx.Response(status, content=content))
        with pytest.raises(kind, match="host:1, model 'm' version 3, signature 's'.*what was said") as error:
            connection.predict("s", {"x": X}, {}, 1.0)
        assert type(error.value) is kind
        assert errors.is_worth_retrying(error.value) == (status in (502, 503))


def test_numbers_that_are_not_finite_are_read_bare_and_as_texts():
    outputs = {"a": {"dtype": "float32", "shape": [-1]}, "b": {"dtype": "float32", "shape": [-1]}}
    for body in (
        b'{"outputs": {"a": [NaN, -Infinity, 0.5], "b": [Infinity, 1, 2]}}',  # TensorFlow Serving
        b'{"outputs": {"a": ["NaN", "-Infinity", 0.5], "b": ["Infinity", 1, 2]}}',  # tfstruct-serve
    ):
        found = rest(lambda request, body=body: httpx.Response(200, content=body)).predict("s", {"x": X}, outputs, 1.0)
        np.testing.assert_array_equal(found["a"], np.float32([np.nan, -np.inf, 0.5]))
        np.testing.assert_array_equal(found["b"], np.float32([np.inf, 1, 2]))


def test_replies_are_strict_json_whatever_is_in_them():
    outputs = {"a": np.float32([[np.nan, 1.1]]), "b": np.array([[-np.inf]]), "c_bytes": np.array([b"\xff"], object)}
    outputs["d"] = np.array(["ü".encode()], object)
    for rows in (True, False):
        reply = json.loads(tensors.reply_body(outputs, rows=rows), parse_constant=pytest.fail)
        found = reply["predictions"][0] if rows else {key: values[0] for key, values in reply["outputs"].items()}
        assert found == {"a": ["NaN", float(np.float32(1.1))], "b": ["-Infinity"], "c_bytes": {"b64": "/w=="}, "d": "ü"}


def test_a_reply_with_other_outputs_is_refused():
    outputs = {"a": {"dtype": "float32", "shape": [-1]}, "b": {"dtype": "float32", "shape": [-1]}}
    for body in (b'{"outputs": {"a": [1]}}', b'{"outputs": [1]}', b'{"predictions": [1]}', b"[]"):
        with pytest.raises(errors.RemoteError, match="signature 's'.*the reply has"):
            rest(lambda request, body=body: httpx.Response(200, content=body)).predict("s", {"x": X}, outputs, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": 1, "label": "stable"}, "a version or a label, not both"),
        ({"transport": "http"}, "transport must be grpc or rest, found 'http'"),
        ({"timeout": 0}, "timeout must be positive"),
        ({"retries": -1}, "retries not negative"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(options, message):
    with pytest.raises(ValueError, match=message):
        tfstruct.connect("host:1", "m", **options)


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_nobody_at_the_address_is_said_soon(transport):
    with pytest.raises(ConnectionError, match="127.0.0.1:1, model 'm': the server cannot be reached"):
        tfstruct.connect("127.0.0.1:1", "m", transport=transport, retries=1, timeout=20)


def test_a_server_that_tells_only_signatures_checks_the_support_itself():
    card = remote._completed({"signatures": CARD["signatures"]}, TARGET)
    model = remote.RemoteModel(TARGET, Failing(), card, remote.Patience())
    assert model.event_shape == (2,)
    assert not model.is_conditional
    assert model.log_prob(0.5 * X)["log_prob"].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"shape \[N, 2\]"):
        model.log_prob(np.zeros([2, 3]))
    with pytest.raises(ValueError, match="the support of m is not known"):
        _ = model.observation_scale


def test_connecting_imports_what_it_needs_and_names_what_is_missing():
    tiny.run_python(
        """
import sys, tfstruct
assert not {"grpc", "httpx", "tensorflow"} & set(sys.modules)
from tfstruct.serving import remote
assert not {"grpc", "httpx", "tensorflow"} & set(sys.modules)
tfstruct.connect("host:1", "m", transport="rest", card={"signatures": {}})
assert not {"grpc", "tensorflow"} & set(sys.modules)
for name, transport in (("grpc", "grpc"), ("httpx", "rest")):
    sys.modules[name] = None
    try:
        tfstruct.connect("host:1", "m", transport=transport)
    except ImportError as error:
        assert "pip install 'tfstruct[serving]'" in str(error), error
    else:
        raise AssertionError(name)
"""
    )

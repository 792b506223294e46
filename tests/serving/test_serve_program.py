"""What `tfstruct-serve` does beyond the interfaces of TensorFlow Serving: batches, limits, new versions, going down."""

import concurrent.futures
import json
import logging
import re
import shutil
import threading
import time

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import tfstruct
from tests import documented
from tests.serving import live
from tests.trainers import tiny
from tfstruct.serving import errors
from tfstruct.serving.server import app, versions
from tfstruct.serving.server.settings import Settings

LIMIT = 50_000  # bytes of a request


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with the models `vae` and `odd`."""
    folder = tmp_path_factory.mktemp("shelf")
    bundle = live.export_all(folder, ["vae"])["vae"]
    live.export_odd(folder / "odd/1", bundle)
    return folder


@pytest.fixture(scope="module")
def server(shelf):
    config = shelf / "models.config"
    config.write_text(labels(shelf, 1))
    arguments = [f"--models=vae={shelf / 'vae'}", f"--model_config_file={config}", "--poll_seconds=0.2"]
    arguments += ["--batch_timeout_ms=200", f"--max_body_bytes={LIMIT}", "--max_rows=50", "--threads=1"]
    with live.Server(*arguments) as started:
        yield started


def labels(shelf, number):
    return (
        f'model_config_list {{ config {{ name: "odd" base_path: "{shelf / "odd"}" model_platform: "tensorflow" '
        f'version_labels {{ key: "stable" value: {number} }} }} }}'
    )


def connect(server, name="vae", transport="grpc", **options):
    return tfstruct.connect(getattr(server, transport), name, transport=transport, **options)


def metric(server, name, **wanted):
    """Sum of a metric over all its labels that are as wanted."""
    text = httpx.get(f"http://{server.rest}/metrics").text
    found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.M)
    parts = [f'{key}="{value}"' for key, value in wanted.items()]
    return sum(float(value) for label, value in found if all(part in label for part in parts))


def at_once(function, arguments):
    with concurrent.futures.ThreadPoolExecutor(len(arguments)) as threads:
        return list(threads.map(function, arguments))


def outcome(function):
    """What a call returns or raises."""
    try:
        return function()
    except errors.RemoteError as error:
        return error


# Batches and limits --------------------------------------------------------------------------------------------------


def test_requests_of_several_clients_are_joined_and_a_bad_one_fails_alone(server):
    before = metric(server, "tfstruct_batch_requests_count", signature="picky")
    values = [1.0, 2.0, -3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    with connect(server, "odd") as by_grpc, connect(server, "odd", "rest") as by_rest:
        models = [by_grpc, by_rest] * 4

        def ask(place):
            x = np.full([2, 2], values[place], np.float32)
            return outcome(lambda: models[place]._run("picky", {"x": x}))

        found = at_once(ask, range(8))
    for value, answer in zip(values, found, strict=True):
        if value < 0:
            assert isinstance(answer, errors.RemoteInputError)
            assert "x is negative" in str(answer)
        else:
            np.testing.assert_array_equal(answer["y"], np.full([2, 2], value + 1))
    # Joined: one batch, and the eight requests again by themselves; never one run for each from the start.
    assert metric(server, "tfstruct_batch_requests_sum", signature="picky") == 16
    assert metric(server, "tfstruct_batch_requests_count", signature="picky") - before == 9


def test_requests_are_counted_by_names_that_exist(server):
    with connect(server) as model:
        before = metric(server, "tfstruct_requests_total", model="vae", interface="grpc", code="OK")
        model.elbo(np.zeros([3, 12]))
        assert metric(server, "tfstruct_requests_total", model="vae", interface="grpc", code="OK") == before + 1
    for place in range(3):
        httpx.post(f"http://{server.rest}/v1/models/nobody{place}:predict", json={"inputs": []})
    text = httpx.get(f"http://{server.rest}/metrics").text
    assert "nobody" not in text
    assert metric(server, "tfstruct_requests_total", model="", code="NOT_FOUND") >= 3
    assert metric(server, "tfstruct_request_seconds_count", signature="elbo") >= 1
    assert metric(server, "tfstruct_queued_requests") == 0


def test_what_is_too_large_is_refused_by_its_size(server):
    rows = np.zeros([2000, 12])
    for transport in ("grpc", "rest"):
        with connect(server, transport=transport) as model:
            with pytest.raises(errors.MessageTooLargeError, match="smaller batch_size"):
                model.log_prob(rows, batch_size=2000)
            with pytest.raises(errors.RemoteInputError, match="may have 50 rows, found 60"):
                model.log_prob(rows[:60], batch_size=60)
            assert model.log_prob(rows[:60], batch_size=30)["log_prob"].shape == (60,)
    reply = httpx.post(f"http://{server.rest}/v1/models/vae:predict", content=b" " * 10 * LIMIT)
    assert reply.status_code == 413
    assert "50000 bytes" in reply.json()["error"]


def test_a_small_message_cannot_ask_for_a_large_array(server):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "vae"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32(0), shape=[1, 12]))
    request.inputs["x"].tensor_shape.dim[0].size = 10**12
    request.inputs["seed"].CopyFrom(tf.make_tensor_proto(np.array([1])))
    with grpc.insecure_channel(server.grpc) as channel:
        with pytest.raises(grpc.RpcError, match="may have 50 rows, found 1000000000000") as error:
            prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_deadline_is_kept_and_the_server_goes_on(server):
    for transport in ("grpc", "rest"):
        with connect(server, "odd", transport) as model, connect(server, "odd", transport, timeout=0.1) as hasty:
            started = time.monotonic()
            with pytest.raises(TimeoutError, match="signature 'slow': no answer within the timeout"):
                hasty._run("slow", {"x": np.ones([1, 2], np.float32)})
            assert time.monotonic() - started < 5
            assert model._run("picky", {"x": np.ones([1, 2], np.float32)})["y"].tolist() == [[2, 2]]


def test_outside_the_support_is_minus_infinity_in_strict_json(server):
    content = {"signature_name": "log_prob", "inputs": {"x": [[0.5] * 12], "seed": [1]}}
    reply = httpx.post(f"http://{server.rest}/v1/models/vae:predict", json=content)
    found = json.loads(reply.text, parse_constant=pytest.fail)["outputs"]
    assert found["log_prob"] == ["-Infinity"]
    with connect(server, transport="rest") as by_rest:
        assert by_rest._run("log_prob", {"x": np.full([1, 12], 0.5), "seed": np.array([1])})["log_prob"] == [-np.inf]


def test_all_models_are_listed_with_their_cards(server, shelf):
    names = httpx.get(f"http://{server.rest}/v1/models").json()["models"]
    assert [model["name"] for model in names] == ["odd", "vae"]
    card = httpx.get(f"http://{server.rest}/v1/models/vae/versions/1/card").json()
    assert card == json.loads((shelf / "vae/1/card.json").read_text())
    with connect(server, transport="rest") as model:
        assert model.card == card


def test_the_calls_of_the_documents_are_answered(shelf):
    guide = "docs/guides/serving.md"
    curls = [call for page in (guide, "README.md") for call in documented.commands(page) if call[0] == "curl"]
    (block,) = [block for block in documented.blocks(guide, "python") if "tfstruct.connect(" in block.text]
    assert len(curls) == 3
    models = [f"--models={name}={shelf / 'vae'}" for name in ("graph_vae_mnist", "mine")]
    with live.Server(*models) as server:
        for _, *arguments in curls:
            url = arguments[-1].replace("127.0.0.1:8501", server.rest)
            reply = httpx.post(url, content=arguments[1]) if arguments[0] == "-d" else httpx.get(url)
            assert reply.status_code == 200, reply.text
        assert len(reply.json()["predictions"]) == 2
        names = {}
        exec(block.text.replace("127.0.0.1:8500", server.grpc), names)
        assert names["found"].shape == (3,)


# Versions ------------------------------------------------------------------------------------------------------------


def states(server, name="vae"):
    reply = httpx.get(f"http://{server.rest}/v1/models/{name}").json()
    return {
        int(one["version"]): (one["state"], one["status"]["error_message"]) for one in reply["model_version_status"]
    }


def test_a_new_version_takes_over_without_a_failed_request_and_a_damaged_one_does_not(server, shelf):
    done, failures, answers = threading.Event(), [], []

    def ask(transport):
        with connect(server, transport=transport, retries=0, card=shelf / "vae/1") as model:
            while not done.is_set():
                try:
                    answers.append(model.log_prob(np.ones([1, 12]), seed=3)["log_prob"][0])
                except Exception as error:
                    failures.append(error)

    askers = [threading.Thread(target=ask, args=(transport,)) for transport in ("grpc", "rest", "grpc")]
    for asker in askers:
        asker.start()
    try:
        live.wait_for(lambda: len(answers) > 3)
        live.copy_version(shelf / "vae/1", 2)
        live.wait_for(lambda: states(server) == {2: ("AVAILABLE", "")}, 120)
        damaged = shelf / "vae/.damaged"
        shutil.copytree(shelf / "vae/1", damaged)
        content = (damaged / "saved_model.pb").read_bytes()
        (damaged / "saved_model.pb").write_bytes(content[:-1])
        damaged.rename(shelf / "vae/3")
        live.wait_for(lambda: 3 in states(server))
        assert states(server)[3][0] == "END"
        assert "does not have the checksum" in states(server)[3][1]
        assert states(server)[2] == ("AVAILABLE", "")
        (shelf / "vae/3/saved_model.pb").write_bytes(content)  # what failed is looked at again once it changes
        live.wait_for(lambda: states(server) == {3: ("AVAILABLE", "")}, 120)
        count = len(answers)
        live.wait_for(lambda: len(answers) > count + 3)
        for number in (3, 2):  # taken back: the largest of what is left
            shutil.rmtree(shelf / f"vae/{number}")
        live.wait_for(lambda: states(server) == {1: ("AVAILABLE", "")}, 120)
    finally:
        done.set()
        for asker in askers:
            asker.join()
    assert failures == []
    np.testing.assert_allclose(answers, answers[0], rtol=1e-4)
    server.said("vae: version 3 cannot be served")


def test_a_label_moves_with_the_config_and_a_broken_config_changes_nothing(server, shelf):
    url = f"http://{server.rest}/v1/models/odd/labels/stable:predict"
    content = {"signature_name": "picky", "inputs": [[1, 1]]}
    assert httpx.post(url, json=content).status_code == 200
    (shelf / "models.config").write_text("model_config_list { config { nothing")
    server.said("models.config is no ModelServerConfig")
    assert httpx.post(url, json=content).status_code == 200
    (shelf / "models.config").write_text(labels(shelf, 7))
    server.said("label stable is of version 7, which is not loaded")
    assert httpx.post(url, json=content).status_code == 404
    (shelf / "models.config").write_text(labels(shelf, 1))
    live.wait_for(lambda: httpx.post(url, json=content).status_code == 200)


# Start and end -------------------------------------------------------------------------------------------------------


def test_sigterm_ends_the_server_when_all_requests_are_answered(shelf):
    arguments = [f"--models=odd={shelf / 'odd'}", "--threads=1", "--shutdown_notice_seconds=1.5", "--poll_seconds=0"]
    with live.Server(*arguments) as server:
        models = [connect(server, "odd", transport, retries=0) for transport in ("grpc", "rest", "grpc", "rest")]
        x = np.ones([1, 2], np.float32)
        with concurrent.futures.ThreadPoolExecutor(5) as threads:
            # Of shapes that are not joined, so that they take one after the other.
            asked = [threads.submit(model._run, "slow", {"x": x.repeat(64, 0)}) for model in models]
            live.wait_for(lambda: metric(server, "tfstruct_queued_requests") == 4)
            ended = threads.submit(server.end)
            live.wait_for(lambda: httpx.get(f"http://{server.rest}/v1/models/odd").status_code == 503, 5)
            assert models[0]._run("picky", {"x": x})["y"].tolist() == [[2, 2]]  # still answered
            assert [answer.result(60)["y"].shape for answer in asked] == [(64, 2)] * 4
            assert ended.result(60) == 0
        for model in models:
            with pytest.raises(ConnectionError):
                model._run("picky", {"x": x})
            model.close()


def test_a_server_that_cannot_start_says_why_and_exits_with_1(shelf, tmp_path):
    shutil.copytree(shelf / "odd/1", tmp_path / "damaged/1")
    (tmp_path / "damaged/1/card.json").write_text("{}")
    (tmp_path / "bad.config").write_text("model_config_list {")
    (tmp_path / "empty").mkdir()
    calls = {
        "nothing": [],
        "no bundle": ["--models=x=nowhere/at/all"],
        "damaged": [f"--models=x={tmp_path / 'damaged'}"],
        "empty": [f"--models=x={tmp_path / 'empty'}"],
        "name": [f"--models=a/b={shelf / 'odd'}"],
        "twice": [f"--models=a={shelf / 'odd'}", f"--models=a={shelf / 'vae'}"],
        "config": [f"--model_config_file={tmp_path / 'bad.config'}"],
    }
    messages = {
        "nothing": "no model to serve",
        "no bundle": "no exported model 'nowhere/at/all'",
        "damaged": "does not have the checksum",
        "empty": "no exported model",
        "name": "a model's name is a part of a URL, found 'a/b'",
        "twice": "named twice",
        "config": "bad.config is no ModelServerConfig",
    }
    for name, (code, _, said) in tiny.call_program("serve", calls).items():
        assert code == 1, (name, code, said)
        assert messages[name] in said, name


def test_a_taken_port_and_a_host_for_everybody_are_said(shelf, caplog, monkeypatch):
    monkeypatch.setattr(versions.Version, "warm_up", lambda *_: None)
    taken = app._listener("127.0.0.1", 0)
    taken.listen()
    settings = Settings((f"odd={shelf / 'odd'}",), rest_port=taken.getsockname()[1], grpc_port=0)
    with pytest.raises(OSError, match=r"cannot listen at 127\.0\.0\.1:\d+ for REST"):
        app.serve(settings)
    assert "no authentication" not in caplog.text
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="cannot listen at 192.0.2.1"):
        app.serve(settings._replace(host="192.0.2.1"))  # an address of documentation, which no machine has
    assert "192.0.2.1: whoever reaches it may use it, there is no authentication" in caplog.text
    taken.close()

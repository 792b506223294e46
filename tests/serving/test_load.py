"""A server under requests that no client should send, under a thousand clients, and under a million rows. Slow.

The figures are printed (`pytest -m slow -s tests/serving/test_load.py`); times depend on what else the machine does.
"""

import asyncio
import json
import pathlib
import random
import socket
import time

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import tfstruct
from tests.serving import live
from tfstruct.serving.inputs import row_seeds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ODD_REQUESTS, CLIENTS, SOAK_ROWS = 10_000, 1000, 1_000_000
GROWTH = 1.05  # of the server's memory

LARGE = 200 * 2**20  # bytes
WIDE = 100_000  # rows


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return live.export_all(tmp_path_factory.mktemp("load"), ["vae"])["vae"]


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).integers(0, 2, [64, 12]).astype(np.float32)


def memory(server):
    """Bytes of a server that are in memory."""
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def percentiles(seconds):
    return "p50 {:.1f} ms, p99 {:.1f} ms".format(*(1000 * np.quantile(seconds, q) for q in (0.5, 0.99)))


# Odd requests --------------------------------------------------------------------------------------------------------


def deep(draw):
    return b'{"inputs": ' + b"[" * draw.randrange(10, 20_000)


def noise(draw):
    return draw.randbytes(draw.randrange(0, 3000))


def body(**content):
    return lambda draw: json.dumps(content).encode()


def with_x(x, seed=(1,)):
    return body(signature_name="log_prob", inputs={"x": x, "seed": list(seed)})


#: bodies of predictions, and the statuses that they may get
BODIES = {
    "no rows": (body(instances=[]), {400}),
    "no rows in columns": (with_x([], ()), {400}),
    "unequal rows": (with_x([[0] * 12] * 2), {400}),
    "wrong width": (with_x([[0] * 11]), {400}),
    "ragged": (with_x([[0] * 12, [0]], (1, 2)), {400}),
    "texts": (with_x(["a"] * 3), {400}),
    "text for a number": (with_x([["0"] * 12]), {400}),
    "objects": (with_x([{"a": 1}]), {400}),
    "null": (with_x(None), {400}),
    "huge seed": (with_x([[0] * 12], (10**30,)), {400}),
    "seed with a fraction": (with_x([[0] * 12], (0.5,)), {400}),
    "no number": (with_x([[float("nan")] * 12]), {200}),  # outside the support: minus infinity
    "infinity": (with_x([[float("inf")] * 12]), {200}),
    "wrong key": (body(inputs={"y": [[0] * 12], "seed": [1]}), {400}),
    "key too many": (body(inputs={"x": [[0] * 12], "seed": [1], "z": [1]}), {400}),
    "unknown signature": (body(signature_name="log_porb", inputs={"x": [[0] * 12], "seed": [1]}), {400}),
    "signature of numbers": (body(signature_name=[1], inputs={}), {400}),
    "both forms": (body(inputs={}, instances=[]), {400}),
    "neither form": (body(nothing=1), {400}),
    "a list": (body(), {400}),
    "base64 that is none": (with_x([{"b64": "?"}]), {400}),
    "deep": (deep, {400}),
    "noise": (noise, {400}),
    "cut": (lambda draw: with_x([[0] * 12])(draw)[: draw.randrange(1, 60)], {400}),
}
PATHS = {
    ("GET", "/v1/models/nobody"): {404},
    ("POST", "/v1/models/nobody:predict"): {400, 404},  # the body is no JSON
    ("POST", "/v1/models/vae/versions/9:predict"): {400, 404},
    ("POST", "/v1/models/vae/versions/-1:predict"): {404},
    ("POST", "/v1/models/vae/labels/gone:predict"): {400, 404},
    ("POST", "/v1/models/vae:classify"): {404},
    ("PUT", "/v1/models/vae:predict"): {405},
    ("DELETE", "/v1/models/vae"): {405},
    ("POST", "/v1/models/../../etc/passwd"): {404},
    ("GET", "/page/../../secret"): {404},
    ("POST", "/"): {405},
    ("GET", "/v1/models/%00%ff"): {404},
}


def odd_rest(client, draw):
    """Sends an odd request; returns what it was, and whether the reply is one of those that fit."""
    if draw.random() < 0.2:
        (method, path), fit = draw.choice(list(PATHS.items()))
        return f"{method} {path}", client.request(method, path, content=noise(draw)).status_code in fit
    if draw.random() < 0.1:
        reply = client.request("GET", "/v1/models/vae", content=noise(draw))
        return "GET with a body", reply.status_code == 200
    name = draw.choice(list(BODIES))
    make, fit = BODIES[name]
    reply = client.post("/v1/models/vae:predict", content=make(draw))
    strict = json.loads(reply.text, parse_constant=lambda name: pytest.fail(f"the reply has {name}"))
    return name, reply.status_code in fit and (reply.status_code == 200) == ("error" not in strict)


def odd_grpc(stub, channel, draw):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "vae", "log_prob"
    good = {"x": np.zeros([1, 12], np.float32), "seed": np.ones([1], np.int64)}
    kind = draw.choice(["bytes", "dtype", "shape", "lies", "missing", "signature", "model", "texts", "no rows"])
    if kind == "bytes":
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        wanted = {"INTERNAL", "INVALID_ARGUMENT", "UNKNOWN", "NOT_FOUND"}
        try:
            call(b"\xff" + noise(draw), timeout=60)
        except grpc.RpcError as error:
            return kind, error.code().name in wanted
        return kind, False
    if kind == "dtype":
        good["x"] = good["x"].astype(np.float64)
    elif kind == "shape":
        good["x"] = np.zeros([1, draw.randrange(0, 40), 2], np.float32)
    elif kind == "missing":
        del good[draw.choice(["x", "seed"])]
    elif kind == "signature":
        request.model_spec.signature_name = noise(draw)[:9].hex() or "none"
    elif kind == "model":
        request.model_spec.name = "nobody"
    elif kind == "texts":
        good["x"] = np.array([["a"] * 12], object)
    elif kind == "no rows":
        good = {name: values[:0] for name, values in good.items()}
    for name, values in good.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    if kind == "lies":  # a shape of a terabyte, and one number
        request.inputs["x"].tensor_shape.dim[0].size = draw.choice([2**38, -1, 10**6])
    try:
        stub.Predict(request, timeout=60)
    except grpc.RpcError as error:
        return kind, error.code().name in {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"}
    return kind, False


def too_large(server):
    """Sends 200 MB of JSON; returns whether the server says that this is too much, or hangs up."""
    host, port = server.rest.split(":")
    with socket.create_connection((host, int(port)), 60) as connection:
        head = f"POST /v1/models/vae:predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {LARGE}\r\n\r\n"
        try:
            connection.sendall(head.encode())
            for _ in range(LARGE // 2**20):
                connection.sendall(b"[" * 2**20)
            return b" 413 " in connection.recv(100)
        except (ConnectionResetError, BrokenPipeError):
            return True


def test_ten_thousand_odd_requests_leave_the_server_as_it_was(bundle, rows):
    draw = random.Random(5)
    with live.Server(f"--models=vae={bundle.parent}", "--poll_seconds=0") as server:
        local = tfstruct.load(bundle)
        expected = local.log_prob(rows, seed=row_seeds(0, len(rows)))["log_prob"]
        client = httpx.Client(base_url=f"http://{server.rest}", timeout=120)
        channel = grpc.insecure_channel(server.grpc)
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def good():
            for transport in ("grpc", "rest"):
                with tfstruct.connect(getattr(server, transport), "vae", transport=transport) as remote:
                    found = remote.log_prob(rows, seed=row_seeds(0, len(rows)))["log_prob"]
                np.testing.assert_allclose(found, expected, rtol=1e-4)

        wide = with_x([[0] * 12] * WIDE, range(WIDE))(draw)
        wrong, before, started = {}, 0, time.monotonic()
        for count in range(ODD_REQUESTS):
            if count % 1000 == 0:
                assert too_large(server)
                assert client.post("/v1/models/vae:predict", content=wide).status_code == 400
                good()
            if count == 2000:
                before = memory(server)
            name, fits = odd_grpc(stub, channel, draw) if draw.random() < 0.3 else odd_rest(client, draw)
            if not fits:
                wrong[name] = wrong.get(name, 0) + 1
        good()
        growth = memory(server) / before
        print(f"\n{ODD_REQUESTS:,} odd requests in {time.monotonic() - started:.0f} s: memory x {growth:.3f}")
        assert wrong == {}
        assert growth < GROWTH
        assert server.process.poll() is None
        channel.close()
        client.close()


# Many clients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_a_thousand_clients_at_once_are_all_answered(transport, bundle, rows):
    local = tfstruct.load(bundle)
    seeds = np.arange(CLIENTS)
    x = rows[seeds % len(rows)]
    expected = local.log_prob(x, seed=seeds)["log_prob"]

    async def ask(server, index, seconds):
        address = getattr(server, transport)
        async with await tfstruct.connect_async(address, "vae", transport=transport, timeout=120, retries=20) as remote:
            answers = []
            for _ in range(3):
                started = time.monotonic()
                answers.append(await remote.log_prob(x[index : index + 1], seed=int(seeds[index])))
                seconds.append(time.monotonic() - started)
            return [answer["log_prob"][0] for answer in answers]

    async def all_of_them(server, seconds):
        return await asyncio.gather(*(ask(server, index, seconds) for index in range(CLIENTS)))

    with live.Server(f"--models=vae={bundle.parent}", "--max_queued_requests=2000") as server:
        seconds, started = [], time.monotonic()
        found = np.array(asyncio.run(all_of_them(server, seconds)))
        rate = 3 * CLIENTS / (time.monotonic() - started)
        print(f"\n{CLIENTS} clients, {transport}: {rate:.0f} requests/s, {percentiles(seconds)}")
        np.testing.assert_allclose(found, np.repeat(expected[:, None], 3, axis=1), rtol=1e-4)


def test_a_million_rows_leave_no_trace_and_versions_change_meanwhile(bundle, rows):
    size, batches = 1000, SOAK_ROWS // 1000
    x = np.tile(rows, [size // len(rows) + 1, 1])[:size]
    with live.Server(f"--models=vae={bundle.parent}", "--poll_seconds=0.2") as server:
        with tfstruct.connect(server.grpc, "vae", timeout=120, retries=0) as remote:
            expected = remote.log_prob(x, seed=row_seeds(0, size), batch_size=size)["log_prob"]
            before, started, last = 0, time.monotonic(), 1
            for batch in range(batches):
                if batch % (batches // 5) == batches // 10:  # a swap five times, each of another version
                    copied = live.copy_version(bundle, last := last + 1)
                    if last > 2:
                        (copied.parent / str(last - 1)).rename(copied.parent / f".gone{last}")
                if batch == batches // 5:
                    before = memory(server)
                found = remote.log_prob(x, seed=row_seeds(0, size), batch_size=size)["log_prob"]
                np.testing.assert_allclose(found, expected, rtol=1e-4)
        growth, rate = memory(server) / before, SOAK_ROWS / (time.monotonic() - started)
        print(f"\n{SOAK_ROWS:,} rows at {rate:,.0f} rows/s, {last} versions: memory x {growth:.3f}")
        assert growth < GROWTH


# Figures of a real model ---------------------------------------------------------------------------------------------


def test_times_of_a_pretrained_model():
    """Prints latencies in process and served, side by side, and what joining requests to batches gives."""
    model = tfstruct.load("graph_vae/mnist")
    images = (np.random.default_rng(1).random([1024, *model.event_shape]) < 0.2).astype(np.float32)
    print(f"\ncost of a score: {model.card['flop_of_score'] / 1e6:.0f} MFLOP, K={model.card['num_samples']}")
    with live.Server("--models=graph_vae/mnist", "--poll_seconds=0") as server:
        askers = {"in process": model}
        for transport in ("grpc", "rest"):
            askers[transport] = tfstruct.connect(
                getattr(server, transport), "graph_vae_mnist", transport=transport, timeout=300, card="graph_vae/mnist"
            )
        for size, repeats in ((1, 60), (64, 20), (1024, 3)):
            seconds = {name: [] for name in askers}
            for repeat in range(repeats):
                answers = []
                for name, asker in askers.items():  # in turn, so that all meet the same disturbances
                    started = time.perf_counter()
                    answers.append(asker.log_prob(images[:size], seed=repeat, batch_size=size)["log_prob"])
                    seconds[name].append(time.perf_counter() - started)
                for answer in answers[1:]:
                    np.testing.assert_allclose(answer, answers[0], rtol=1e-3)
            for name, times in seconds.items():
                ratio = np.median(np.array(times) / np.array(seconds["in process"]))
                print(f"log_prob, batch {size}, {name}: {percentiles(times)}, {ratio:.2f} of in process")
        for asker in list(askers.values())[1:]:
            asker.close()
    for signature in ("encode", "log_prob"):
        rates = {size: _rate(signature, size, images) for size in (1, 64)}
        print(
            f"{signature}, 32 clients: {rates[1]:.1f} rows/s alone, {rates[64]:.1f} joined: {rates[64] / rates[1]:.2f}"
        )


def _rate(signature, batch_size, images):
    """Rows a second of 32 clients that send one at a time."""
    seconds = 20

    async def client(address, index):
        # A connection each: one sends but a few requests at a time.
        async with await tfstruct.connect_async(address, "graph_vae_mnist", timeout=300) as remote:
            count, end = 0, time.monotonic() + seconds
            while time.monotonic() < end:
                seed = {} if signature == "encode" else {"seed": index}
                await remote.query(signature, x=images[index : index + 1], **seed)
                count += 1
            return count

    async def all_clients(address):
        return sum(await asyncio.gather(*(client(address, index) for index in range(32)))) / seconds

    with live.Server("--models=graph_vae/mnist", "--poll_seconds=0", f"--max_batch_size={batch_size}") as server:
        return asyncio.run(all_clients(server.grpc))

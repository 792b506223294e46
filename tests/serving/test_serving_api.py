"""What every server of our bundles must do: `tfstruct-serve` always, and TensorFlow Serving where there is one.

Against TensorFlow Serving, set

    TF_SERVING_ADDRESS   host:port of its gRPC
    TF_SERVING_REST      host:port of its REST interface; default: that host, port 8501
    TF_SERVING_MODELS    the models it serves, with their bundles: name=folder/of/the/version,...

The tests that need models made for them (texts, labels) are then skipped.
"""

import asyncio
import json
import os

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

import tfstruct
from tests.serving import live
from tfstruct.serving import warmup
from tfstruct.serving.remote import RemoteModel

TRANSPORTS = ("grpc", "rest")


class Other:
    """A TensorFlow Serving that somebody else has started."""

    def __init__(self):
        self.grpc = os.environ["TF_SERVING_ADDRESS"]
        self.rest = os.environ.get("TF_SERVING_REST", f"{self.grpc.rpartition(':')[0]}:8501")
        self.models = dict(part.split("=") for part in os.environ["TF_SERVING_MODELS"].split(","))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    return live.export_all(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=["tfstruct-serve", "TensorFlow Serving"])
def server(request):
    if request.param == "TensorFlow Serving":
        if "TF_SERVING_ADDRESS" not in os.environ:
            pytest.skip("TF_SERVING_ADDRESS names no TensorFlow Serving")
        yield Other()
        return
    bundles = request.getfixturevalue("bundles")
    folder = bundles["vae"].parents[1]
    live.export_odd(folder / "odd/1", bundles["vae"])
    live.copy_version(bundles["vae"], 3)
    (folder / "models.config").write_text(
        f"""model_config_list {{ config {{
        name: "labelled" base_path: "{folder / "vae"}" model_platform: "tensorflow"
        model_version_policy {{ specific {{ versions: 1 versions: 3 }} }}
        version_labels {{ key: "stable" value: 1 }} version_labels {{ key: "canary" value: 3 }} }} }}"""
    )
    arguments = [f"--models={name}={path.parent}" for name, path in bundles.items() if name != "vae"]
    arguments += [f"--models=odd={folder / 'odd'}", f"--models=vae={folder / 'vae/1'}"]
    arguments += [f"--model_config_file={folder / 'models.config'}", "--poll_seconds=0", "--max_body_bytes=1000000"]
    with live.Server(*arguments, models=bundles) as started:
        yield started


@pytest.fixture(scope="module")
def loaded(server):
    """The same models in this process."""
    return {name: tfstruct.load(folder) for name, folder in server.models.items()}


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def web(server):
    with httpx.Client(base_url=f"http://{server.rest}/v1/models", timeout=60) as client:
        yield client


@pytest.fixture
def first(server, loaded):
    """Name, local model and golden inputs of one model."""
    name = next(iter(server.models))
    return name, loaded[name], golden(server.models[name])


def golden(folder):
    with np.load(f"{folder}/golden.npz") as archive:
        return {"x": archive["x"], "seed": archive["seed"]}


def connect(server, name, transport, **options) -> RemoteModel:
    return tfstruct.connect(getattr(server, transport), name, transport=transport, **options)


def post(web, name, **content):
    return web.post(f"/{name}:predict", json=content)


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4, err_msg=name)


# Answers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_query_of_every_model_is_answered_as_by_the_bundle(server, loaded, transport):
    asked = set()
    for name, local in loaded.items():
        rows = golden(server.models[name])
        with connect(server, name, transport) as remote:
            assert remote.card["signatures"] == local.card["signatures"]
            for signature, specs in local.card["signatures"].items():
                inputs = warmup.example(specs["inputs"], rows["x"], rows["seed"])
                assert_close(remote.query(signature, batch_size=3, **inputs), local.query(signature, **inputs))
                asked.add(signature)
    if not isinstance(server, Other):
        needed = {"log_prob", "elbo", "encode", "reconstruct", "sample", "marginal_log_prob", "inpaint"}
        assert asked >= needed | {"region_log_prob", "conditional_log_prob", "serving_default"}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_methods_answer_as_those_of_a_loaded_model(server, first, transport):
    name, local, rows = first
    with connect(server, name, transport, card=server.models[name]) as remote:
        assert remote.event_shape == local.event_shape
        assert_close(remote.sample(3, seed=5, batch_size=2), local.sample(3, seed=5))
        np.testing.assert_allclose(remote.reconstruct(rows["x"]), local.reconstruct(rows["x"]), atol=1e-4)
        with pytest.raises(ValueError, match="observations must have shape"):
            remote.log_prob(rows["x"][:, :1])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_awaited_answers_are_the_same(server, first, transport):
    name, local, rows = first

    async def ask():
        address = getattr(server, transport)
        async with await tfstruct.connect_async(address, name, transport=transport, concurrency=2) as remote:
            scores, mean = await asyncio.gather(
                remote.log_prob(rows["x"], seed=rows["seed"], batch_size=1), remote.reconstruct(rows["x"])
            )
            with pytest.raises(ValueError, match="observations must have shape"):
                await remote.log_prob(rows["x"][:, :1])
        return scores, mean

    scores, mean = asyncio.run(ask())
    assert_close(scores, local.log_prob(rows["x"], seed=rows["seed"]))
    np.testing.assert_allclose(mean, local.reconstruct(rows["x"]), atol=1e-4)


def test_rows_and_columns_are_two_forms_of_one_request(web, first):
    name, local, rows = first
    x, seed = rows["x"][:2], rows["seed"][:2]
    instances = [{"x": one.tolist(), "seed": int(two)} for one, two in zip(x, seed, strict=True)]
    by_row = post(web, name, signature_name="log_prob", instances=instances).json()["predictions"]
    columns = post(web, name, signature_name="log_prob", inputs={"x": x.tolist(), "seed": seed.tolist()})
    by_column = columns.json()["outputs"]
    expected = local.log_prob(x, seed=seed)
    assert len(by_row) == 2
    for key, values in expected.items():
        np.testing.assert_allclose([float(row[key]) for row in by_row], values, rtol=1e-4)
        np.testing.assert_allclose([float(value) for value in by_column[key]], values, rtol=1e-4)
    assert post(web, name, inputs={"x": x.tolist(), "seed": seed.tolist()}).json()["outputs"].keys() == by_column.keys()


def test_a_single_input_needs_no_name_and_a_single_output_has_none(web, first):
    name, local, rows = first
    x, seed = rows["x"][:2], rows["seed"][:2]
    means = [local.encode(x)["z_mean"]] * 3
    bare = post(web, name, signature_name="encode", instances=x.tolist()).json()["predictions"]
    named = post(web, name, signature_name="encode", instances=[{"x": one.tolist()} for one in x]).json()["predictions"]
    column = post(web, name, signature_name="encode", inputs=x.tolist()).json()["outputs"]
    found = [[row["z_mean"] for row in bare], [row["z_mean"] for row in named], column["z_mean"]]
    np.testing.assert_allclose(found, means, rtol=1e-4)
    inputs = {"x": x.tolist(), "seed": seed.tolist()}
    single = post(web, name, signature_name="reconstruct", inputs=inputs).json()["outputs"]
    np.testing.assert_allclose(single, local.reconstruct(x, seed=seed), atol=1e-4)


def test_texts_go_through_base64_and_bytes(server, web, stub):
    if isinstance(server, Other):
        pytest.skip("needs a model that takes texts")
    texts = [b"abc", b"\x00\xff\x00", b""]
    encoded = [{"b64": "YWJj"}, {"b64": "AP8A"}, {"b64": ""}]
    for content in ({"instances": encoded}, {"instances": [{"image_bytes": text} for text in encoded]}):
        rows = post(web, "odd", signature_name="texts", **content).json()["predictions"]
        assert rows == [
            {"is_abc": text == b"abc", "same_bytes": code} for text, code in zip(texts, encoded, strict=True)
        ]
    columns = post(web, "odd", signature_name="texts", inputs={"image_bytes": encoded}).json()["outputs"]
    assert columns == {"is_abc": [True, False, False], "same_bytes": encoded}
    for wrong in ([{"b64": "?"}], [{"b65": "YWJj"}], [7], [["YWJj"]]):
        assert post(web, "odd", signature_name="texts", instances=wrong).status_code == 400
    for transport in TRANSPORTS:
        with connect(server, "odd", transport) as remote:
            found = remote.query("texts", image_bytes=texts)
            assert found["same_bytes"].tolist() == texts
            assert found["is_abc"].tolist() == [True, False, False]


# What there is -------------------------------------------------------------------------------------------------------


def test_status_says_which_version_answers(server, web, first):
    name, _, _ = first
    (state,) = [one for one in web.get(f"/{name}").json()["model_version_status"] if one["state"] == "AVAILABLE"]
    assert state["status"] == {"error_code": "OK", "error_message": ""}
    with grpc.insecure_channel(server.grpc) as channel:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        found = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=60)
        assert state["version"] in {str(one.version) for one in found.model_version_status}
        assert get_model_status_pb2.ModelVersionStatus.AVAILABLE in {one.state for one in found.model_version_status}
        request.model_spec.name = "nobody"
        with pytest.raises(grpc.RpcError) as error:
            model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=60)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
    assert web.get("/nobody").status_code == 404


def test_metadata_are_the_signatures_of_the_graph(web, stub, first):
    name, local, _ = first
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = name
    definitions = get_model_metadata_pb2.SignatureDefMap()
    stub.GetModelMetadata(request, timeout=60).metadata["signature_def"].Unpack(definitions)
    told = web.get(f"/{name}/metadata").json()["metadata"]["signature_def"]["signature_def"]
    for signature, specs in local.card["signatures"].items():
        for side in ("inputs", "outputs"):
            by_grpc, by_rest = getattr(definitions.signature_def[signature], side), told[signature][side]
            assert by_grpc.keys() == by_rest.keys() == specs[side].keys()
            for key, info in by_grpc.items():
                assert specs[side][key]["dtype"] == tf.as_dtype(info.dtype).name
                sizes = [str(size) for size in specs[side][key]["shape"]]
                assert [axis["size"] for axis in by_rest[key]["tensor_shape"]["dim"]] == sizes
                assert [str(axis.size) for axis in info.tensor_shape.dim] == sizes


def test_versions_and_labels_are_chosen_by_address(server, web, stub):
    if isinstance(server, Other):
        pytest.skip("needs a model with labels")
    rows = golden(server.models["vae"])
    inputs = {"x": rows["x"][:1].tolist(), "seed": [3]}
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "labelled"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(rows["x"][:1]))
    request.inputs["seed"].CopyFrom(tf.make_tensor_proto(np.array([3])))
    for path, number in (("", 3), ("/versions/1", 1), ("/versions/3", 3), ("/labels/stable", 1), ("/labels/canary", 3)):
        assert web.post(f"/labelled{path}:predict", json={"inputs": inputs}).status_code == 200
        told = web.get(f"/labelled{path}/metadata").json()
        assert told["model_spec"] == {"name": "labelled", "signature_name": "", "version": str(number)}
        kind, _, value = path.lstrip("/").partition("/")
        request.model_spec.ClearField("version_choice")
        if kind == "versions":
            request.model_spec.version.value = int(value)
        elif kind == "labels":
            request.model_spec.version_label = value
        assert stub.Predict(request, timeout=60).model_spec.version.value == number
    for transport in TRANSPORTS:
        with connect(server, "labelled", transport, label="stable") as remote:
            assert remote.log_prob(rows["x"])["log_prob"].shape == (len(rows["x"]),)
        for wrong in ({"version": 2}, {"label": "old"}):
            with pytest.raises(tfstruct.serving.errors.UnknownModelError, match="model 'labelled'"):
                connect(server, "labelled", transport, **wrong)


# Mistakes ------------------------------------------------------------------------------------------------------------

BAD = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND", "UNKNOWN"}


@pytest.mark.parametrize(
    "case", ["signature", "missing key", "other key", "shape", "rank", "dtype", "text", "no rows", "unequal rows"]
)
def test_wrong_inputs_are_refused_by_both_interfaces(web, stub, first, case):
    name, local, rows = first
    x, seed = rows["x"][:2], rows["seed"][:2]
    inputs, signature = {"x": x, "seed": seed}, "log_prob"
    if case == "signature":
        signature = "log_probability"
    elif case == "missing key":
        del inputs["seed"]
    elif case == "other key":
        inputs = {"y": x, "seed": seed}
    else:
        inputs["x"] = {
            "shape": x[..., :-1], "rank": x[0], "dtype": x > 0.5, "text": x.astype(str).astype(object),
            "no rows": x[:0], "unequal rows": x[:1],
        }[case]  # fmt: skip
    if case == "no rows":
        inputs["seed"] = seed[:0]
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = name, signature
    for key, values in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(values))
    lists = {key: values.tolist() for key, values in inputs.items()}
    reply = post(web, name, signature_name=signature, inputs=lists)
    if case == "no rows" and reply.status_code == 200:  # as TensorFlow Serving may: nothing for nothing
        assert reply.json()["outputs"]["log_prob"] == []
        return
    assert reply.status_code in (400, 404), reply.text
    assert reply.json().keys() == {"error"}
    assert "Traceback" not in reply.text
    with pytest.raises(grpc.RpcError) as error:
        stub.Predict(request, timeout=60)
    assert error.value.code().name in BAD
    assert "Traceback" not in error.value.details()


def test_requests_that_no_program_sends_leave_the_server_as_it_was(web, first):
    name, local, rows = first
    good = {"signature_name": "log_prob", "inputs": {"x": rows["x"][:1].tolist(), "seed": [3]}}
    before = web.post(f"/{name}:predict", json=good).json()
    odd = [
        b"", b"{", b"[1, 2]", b"7", b"null", b"\xff\xfe", b"[" * 100_000, b'{"inputs": ' * 2000, b'{"instances": []}',
        b'{"instances": [], "inputs": []}', b'{"instances": 7}', b'{"instances": [[[]]]}', b'{"inputs": {"x": 1e999}}',
        b'{"instances": [{"x": 1}, {"y": 2}]}', b'{"signature_name": 7, "inputs": [1]}',
        b'{"inputs": {"x": [[1], [1, 2]]}}',
        b'{"inputs": {"x": [0], "seed": [99999999999999999999999999]}}', b'{"inputs": {"x": null, "seed": {}}}',
    ]  # fmt: skip
    for body in odd:
        reply = web.post(f"/{name}:predict", content=body)
        assert 400 <= reply.status_code < 500, (body[:40], reply.text[:200])
    for path in ("/", f"/{name}:nothing", f"/{name}/versions/x:predict", f"/{name}/labels/:predict", "/a/b/c/d"):
        assert 400 <= web.post(path, json=good).status_code < 500, path
    for method in ("PUT", "DELETE"):
        assert 400 <= web.request(method, f"/{name}").status_code < 600
    assert 400 <= web.post("/nobody:predict", json=good).status_code < 500
    assert web.post(f"/{name}:predict", json=good).json() == before


def test_a_value_that_is_no_number_is_outside_the_support_and_spoils_no_other_row(web, first):
    name, local, rows = first
    expected = local.log_prob(rows["x"][1:2], seed=[4])["log_prob"][0]
    flat = rows["x"][:2].copy()
    flat.reshape(2, -1)[0, 0] = np.nan
    text = json.dumps({"signature_name": "log_prob", "inputs": {"x": flat.tolist(), "seed": [3, 4]}})
    assert "NaN" in text
    reply = web.post(f"/{name}:predict", content=text)
    assert reply.status_code == 200
    scores = [float(value) for value in json.loads(reply.text)["outputs"]["log_prob"]]
    assert scores[0] == -np.inf
    assert scores[1] == pytest.approx(expected, abs=1e-3)


def test_a_get_with_ten_megabytes_leaves_the_server_as_it_was(web, first):
    name, _, _ = first
    for _ in range(3):
        try:
            reply = web.request("GET", f"/{name}", content=b"x" * 10_000_000)
            assert reply.status_code < 500
        except httpx.TransportError:
            pass  # the server may end the connection
    assert web.get(f"/{name}").status_code == 200


def test_an_unknown_model_is_named_with_its_address(server):
    for transport in TRANSPORTS:
        with pytest.raises(LookupError, match=f"{getattr(server, transport)}, model 'nobody'"):
            connect(server, "nobody", transport)

"""The operator's examples in `serving/`: they parse, speak of bundles that exist, and use documented flags only."""

import json
import re

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from tests.trainers import tiny
from tfstruct.serving import warmup

FOLDER = tiny.CHECKOUT / "serving"
# Of tensorflow_model_server, as tensorflow_serving/g3doc/serving_config.md has them.
DOCUMENTED_FLAGS = {
    "model_name",
    "model_base_path",
    "model_config_file",
    "model_config_file_poll_wait_seconds",
    "allow_version_labels_for_unavailable_models",
    "monitoring_config_file",
    "enable_batching",
    "batching_parameters_file",
    "port",
    "rest_api_port",
    "rest_api_timeout_in_ms",
    "file_system_poll_wait_seconds",
    "enable_model_warmup",
}
INT64, STRING, BOOL = "google.protobuf.Int64Value", "google.protobuf.StringValue", "bool"
# The package tensorflow-serving-api lacks these two; their fields are those of BatchingParameters in
# servables/tensorflow/session_bundle_config.proto and of MonitoringConfig in config/monitoring_config.proto.
BATCHING = {
    "max_batch_size": INT64,
    "batch_timeout_micros": INT64,
    "max_enqueued_batches": INT64,
    "num_batch_threads": INT64,
    "thread_pool_name": STRING,
    "allowed_batch_sizes": "repeated int64",
    "pad_variable_length_inputs": BOOL,
}
MONITORING = {"prometheus_config": "tfstruct.tests.PrometheusConfig"}
PROMETHEUS = {"enable": BOOL, "path": "string"}
KINDS = {"bool": 8, "string": 9, "int64": 3}  # of FieldDescriptorProto.Type; 11 is a message


@pytest.fixture(scope="module")
def messages():
    """Classes of the messages that the package lacks."""
    file = descriptor_pb2.FileDescriptorProto(name="tests.proto", package="tfstruct.tests", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for name, fields in (("PrometheusConfig", PROMETHEUS), ("Batching", BATCHING), ("Monitoring", MONITORING)):
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), start=1):
            label, kind = (3, kind.removeprefix("repeated ")) if kind.startswith("repeated ") else (1, kind)
            entry = message.field.add(name=field, number=number, label=label, type=KINDS.get(kind, 11))
            if kind not in KINDS:
                entry.type_name = f".{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tfstruct.tests.{name}"))
        for name in ("Batching", "Monitoring")
    }


def parse(name, message):
    return text_format.Parse((FOLDER / name).read_text(), message)


def test_models_are_bundles_of_the_checkout_in_versions_that_they_have():
    config = parse("models.config", model_server_config_pb2.ModelServerConfig())
    assert len(config.model_config_list.config) >= 3
    labels = set()
    for model in config.model_config_list.config:
        folder = tiny.CHECKOUT / model.base_path.replace("/models/", "saved_models/", 1)
        assert model.name == "_".join(folder.parts[-2:])
        versions = {int(path.parent.name) for path in folder.glob("*/card.json")}
        assert versions
        chosen = set(model.model_version_policy.specific.versions) or versions
        assert chosen <= versions
        assert set(model.version_labels.values()) <= chosen
        labels |= model.version_labels.keys()
    assert labels == {"stable", "canary"}


def test_batches_have_the_sizes_that_bundles_are_warmed_up_for(messages):
    parameters = parse("batching_parameters.txt", messages["Batching"]())
    assert tuple(parameters.allowed_batch_sizes) == warmup.BATCH_SIZES
    assert parameters.max_batch_size.value == warmup.BATCH_SIZES[-1]
    assert parameters.num_batch_threads.value >= 1


def test_a_parameter_that_does_not_exist_is_found(messages):
    with pytest.raises(text_format.ParseError, match="no_such"):
        text_format.Parse("no_such { value: 1 }", messages["Batching"]())


def test_metrics_are_where_they_are_looked_for(messages):
    monitoring = parse("monitoring.config", messages["Monitoring"]()).prometheus_config
    assert monitoring.enable
    deployment = read("kubernetes.yaml")[0]
    assert deployment["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"] == monitoring.path


def read(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def container():
    return read("kubernetes.yaml")[0]["spec"]["template"]["spec"]["containers"][0]


def test_every_flag_is_documented_and_every_file_is_there():
    for arguments in (read("compose.yaml")[0]["services"]["tensorflow-serving"]["command"], container()["args"]):
        for argument in arguments:
            name, value = re.fullmatch(r"--([a-z_]+)=(.+)", argument).groups()
            assert name in DOCUMENTED_FLAGS
            if value.startswith("/config/"):
                assert (FOLDER / value.removeprefix("/config/")).exists()


def test_the_containers_can_write_nothing_and_have_limits():
    for service in read("compose.yaml")[0]["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()
        assert all(volume.endswith(":ro") for volume in service["volumes"])
        for volume in service["volumes"]:
            assert (FOLDER / volume.split(":")[0]).exists()
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    pod = read("kubernetes.yaml")[0]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container()["securityContext"]["readOnlyRootFilesystem"]
    assert container()["resources"]["limits"]
    mounted = {mount["name"]: mount.get("readOnly", False) for mount in container()["volumeMounts"]}
    assert mounted == {"models": True, "config": True, "tmp": False}


def test_readiness_is_the_status_of_a_model_that_is_served():
    config = parse("models.config", model_server_config_pb2.ModelServerConfig())
    urls = {f"/v1/models/{model.name}" for model in config.model_config_list.config}
    for probe in ("startupProbe", "readinessProbe"):
        assert container()[probe]["httpGet"]["path"] in urls


def guard():
    """The patterns of the map by which the proxy finds a GET with a body."""
    block = re.search(r"map .*?has_unwanted_body \{(.*?)\n  \}", (FOLDER / "nginx.conf").read_text(), re.S)[1]
    return re.findall(r'"~(.+)" 1;', block)


@pytest.mark.parametrize(
    ("method", "length", "encoding", "is_refused"),
    [
        ("GET", "", "", False),
        ("GET", "0", "", False),
        ("GET", "10000000", "", True),
        ("GET", "", "chunked", True),
        ("HEAD", "1", "", True),
        ("POST", "1000", "", False),
        ("POST", "", "chunked", False),
    ],
)
def test_the_proxy_refuses_a_get_with_a_body(method, length, encoding, is_refused):
    text = f"{method} {length} {encoding}"
    assert any(re.search(pattern, text) for pattern in guard()) == is_refused


def test_the_proxy_passes_on_what_clients_ask_and_nothing_else():
    text = (FOLDER / "nginx.conf").read_text()
    patterns = re.findall(r'location ~ "(.+)" \{', text)
    paths = [f"/v1/models/graph_vae_mnist{chosen}" for chosen in ("", "/versions/5", "/labels/stable")]
    for path in paths:
        for end in (":predict", "", "/metadata", "/card"):
            assert any(re.search(pattern, path + end) for pattern in patterns), path + end
    for path in (
        "/",
        "/v1/models",
        "/monitoring/prometheus/metrics",
        "/v1/models/a:classify",
        "/v1/models/a/b",
    ):
        assert not any(re.search(pattern, path) for pattern in patterns), path
    assert "client_max_body_size" in text
    assert "limit_req " in text


def test_cards_of_all_models_fit_the_files():
    """A request of 64 rows of any model fits into the size that the proxy lets through."""
    limit = int(re.search(r"client_max_body_size (\d+)m;", (FOLDER / "nginx.conf").read_text())[1]) * 2**20
    for path in (tiny.CHECKOUT / "saved_models").glob("*/*/*/card.json"):
        size = 1
        for axis in json.loads(path.read_text())["event_shape"]:
            size *= axis
        assert 64 * size * len("255.0, ") < limit

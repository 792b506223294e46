import hashlib
import json
import shlex

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.trainers import tiny
from tfstruct import settings as settings_lib
from tfstruct.evaluation import report
from tfstruct.functional import Functional
from tfstruct.models import presets
from tfstruct.serving import bundle, cards, client, publication, warmup


def graphs_of(folder):
    model = saved_model_pb2.SavedModel()
    model.ParseFromString((folder / "saved_model.pb").read_bytes())
    return [meta.graph_def for meta in model.meta_graphs]


# What is written -----------------------------------------------------------------------------------------------------


def test_the_weights_are_stored_once_each_with_their_values(trained, folder):
    functional = Functional(trained.use(int(np.argmax(trained.weights.bounds))))
    variables = functional.parameters.variables + functional.statistics.variables
    stored = {
        name: shape
        for name, shape in tf.train.list_variables(str(folder / "variables/variables"))
        if "_CHECKPOINTABLE_OBJECT_GRAPH" not in name
    }
    assert len(stored) == len(variables)
    assert sorted(map(tuple, stored.values())) == sorted(tuple(variable.shape) for variable in variables)
    count = sum(int(np.prod(shape)) for shape in stored.values())
    assert count == functional.parameters.size + functional.statistics.size
    (data,) = folder.glob("variables/variables.data-*")
    # Beside the weights the file holds the object graph, which does not grow with them.
    reader = tf.train.load_checkpoint(str(folder / "variables/variables"))
    object_graph = len(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    assert abs(data.stat().st_size - object_graph - 4 * count) <= 0.05 * 4 * count
    values = np.sort(np.concatenate([reader.get_tensor(name).ravel() for name in stored]))
    expected = np.sort(np.concatenate([functional.parameters.values(), functional.statistics.values()]))
    np.testing.assert_array_equal(values, expected)


def test_the_graph_is_not_compiled_and_has_neither_python_nor_stateful_draws(folder):
    operations, compiled, named = set(), [], set()
    for graph in graphs_of(folder):
        operations |= {node.op for node in graph.node}
        for function in graph.library.function:
            operations |= {node.op for node in function.node_def}
            named.add(function.signature.name)
            for holder in (function, *function.node_def):
                compiled += [holder for key in ("_XlaMustCompile",) if key in holder.attr and holder.attr[key].b]
    assert named
    assert len(operations) > 20
    assert not compiled
    random_operations = {name for name in operations if "Random" in name or "Multinomial" in name}
    assert not random_operations  # the noise is integer arithmetic on the seeds
    for forbidden in ("PyFunc", "EagerPyFunc", "PyFuncStateless", "WriteFile", "ReadFile", "XlaLaunch"):
        assert forbidden not in operations


def test_names_of_nodes_are_short_and_shapes_that_can_be_inferred_are_gone(folder):
    (graph,) = graphs_of(folder)
    nodes = [node for function in graph.library.function for node in function.node_def]
    assert len(nodes) > 1_000
    assert max(len(node.name) for node in nodes) <= 3
    assert not any({"_output_shapes", "_class"} & set(node.attr) for node in nodes)
    for function in graph.library.function:
        names = [node.name for node in function.node_def] + [part.name for part in function.signature.input_arg]
        assert len(set(names)) == len(names)
    assert not (folder / "fingerprint.pb").exists()


def test_warmup_records_of_many_rows_are_stored_small(trained, folder, model):
    from tensorflow_serving.apis import prediction_log_pb2

    sizes = {}
    for record in tf.data.TFRecordDataset(str(folder / warmup.WARMUP_NAME)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        values = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        rows = len(next(iter(values.values())))
        sizes[request.model_spec.signature_name, rows] = len(record.numpy())
        for name, value in values.items():
            assert value.shape == (rows, *model.card["signatures"]["log_prob"]["inputs"][name]["shape"][1:])
        if "x" in values:
            np.testing.assert_array_equal(values["x"], trained.data.test[:1] if rows == 1 else 0.0 * values["x"])
    assert {rows for _, rows in sizes} == set(warmup.BATCH_SIZES)
    assert len(sizes) == model.card["warmup_records"]
    assert max(sizes.values()) < 1_000


def test_the_checksums_are_those_of_sha256sum_and_of_every_file(folder):
    listed = {}
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        listed[name] = digest
    assert sorted(listed) == [name for name in tiny.files_of(folder) if name != "SHA256SUMS"]
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_the_card_says_what_the_model_is(trained, folder):
    card = json.loads((folder / "card.json").read_text())
    best = int(np.argmax(trained.weights.bounds))
    assert card["preset"] == "graph_vae/tiny"
    assert card["event_shape"] == [4]
    assert card["support"] == "binary"
    assert card["likelihood"] == "bernoulli"
    assert card["num_samples"] == 200
    assert card["weights_dtype"] == "float32"
    assert card["data"]["checksum"] == trained.data.checksum
    assert card["num_parameters"] == Functional(trained.model).parameters.size
    assert card["num_stored_weights"] == len(trained.model.variables)
    assert card["training"]["seed"] == best
    assert card["training"]["trained_steps"] == 20
    assert card["training"]["validation_bound"] == pytest.approx(trained.weights.bounds[best])
    assert card["config"]["training"]["replicas"] == 2
    assert {"tensorflow", "keras", "numpy"} <= set(card["exported"]["versions"])
    assert card["metrics"] is None  # this run was not evaluated


def test_the_recipe_on_the_card_makes_the_config_again(trained, folder):
    card = json.loads((folder / "card.json").read_text())
    *_, train, evaluate, export = (shlex.split(line) for line in card["recipe"])
    assert (train[0], evaluate, export[0]) == (
        "tfstruct-train",
        ["tfstruct-evaluate", "--workdir=RUN"],
        "tfstruct-export",
    )
    preset, workdir, *changes = train[1:]
    assert workdir == "--workdir=RUN"
    made = presets.get(preset.removeprefix("--preset="), [change.removeprefix("--set=") for change in changes])
    assert settings_lib.differences(made, trained.config) == []
    assert export[1:] == ["--workdir=RUN", "--output=BUNDLE", "--weights_dtype=float32"]


def test_the_signatures_of_the_card_are_those_of_the_model(folder, model):
    card = model.card["signatures"]
    signatures = model.signatures
    assert set(card) == set(signatures) == {
        "serving_default", "log_prob", "elbo", "encode", "reconstruct", "sample"
    }  # fmt: skip
    for name, function in signatures.items():
        found = {
            "inputs": {key: spec for key, spec in function.structured_input_signature[1].items()},
            "outputs": function.structured_outputs,
        }
        for side, specs in found.items():
            assert set(card[name][side]) == set(specs)
            for key, spec in specs.items():
                assert card[name][side][key]["dtype"] == spec.dtype.name
                shape = [-1 if size is None else size for size in spec.shape]
                assert card[name][side][key]["shape"] == shape
                assert shape[0] == -1, f"{name} {key} has a fixed batch"
                assert -1 not in shape[1:]


def test_other_replicas_can_be_exported_and_only_those_there_are(trained, folder, model, tmp_path):
    with pytest.raises(ValueError, match=r"replicas 0\.\.1, found 2"):
        bundle.export(trained, tmp_path / "none/1", replica=2)
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").iterdir())
    worse = int(np.argmin(trained.weights.bounds))
    other = client.load(bundle.export(trained, tmp_path / "1", replica=worse))
    assert other.card["training"]["seed"] == worse
    assert other.card["num_samples"] == 7
    x = np.eye(4)
    assert np.abs(other.encode(x)["z_mean"] - model.encode(x)["z_mean"]).max() > 1e-3


def stored_dtypes(output):
    """Of each variable in a bundle, by name."""
    found = tf.train.load_checkpoint(str(output / "variables/variables")).get_variable_to_dtype_map()
    return {name: dtype for name, dtype in found.items() if "OBJECT_GRAPH" not in name}


def test_half_precision_weights_take_half_the_bytes_and_score_nearly_the_same(trained, folder, model, tmp_path):
    output = bundle.export(trained, tmp_path / "1", num_samples=200, chunk=30, weights_dtype="float16")
    stored = list(stored_dtypes(output).values())
    # Moving averages stay whole: a variance may be larger than any float16.
    count = len(Functional(trained.model).parameters.variables)
    assert set(stored) == {tf.float16, tf.float32}
    assert stored.count(tf.float16) == count
    half = client.load(output)
    assert half.card["weights_dtype"] == "float16"
    x = states()
    found, expected = half.log_prob(x)["log_prob"], model.log_prob(x)["log_prob"]
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.02
    with pytest.raises(ValueError, match="one of float32, float16, int8, int8_posterior, found 'int4'"):
        bundle.export(trained, tmp_path / "2", weights_dtype="int4")
    assert not (tmp_path / "2").exists()


def test_what_rounding_changes_stands_on_the_card_and_the_model_keeps_its_weights(trained, model, tmp_path):
    assert model.card["rounding"] is None
    system = trained.use(0)
    before = [variable.numpy() for variable in system.variables]
    rows = trained.data.validation[:30].astype(np.float32)
    output = bundle.export_model(system, tmp_path / "1", rows, num_samples=50, chunk=25, weights_dtype="float16")
    for variable, values in zip(system.variables, before, strict=True):
        np.testing.assert_array_equal(variable, values, err_msg=variable.path)
    whole = client.load(bundle.export_model(system, tmp_path / "2", rows, num_samples=50, chunk=25))
    half, seeds = client.load(output), np.arange(30)
    change = half.log_prob(rows, seed=seeds)["log_prob"] - whole.log_prob(rows, seed=seeds)["log_prob"]
    rounding = half.card["rounding"]
    assert rounding["rows"] == 30
    assert rounding["log_prob_change"] == pytest.approx(change.mean(), abs=1e-5)
    assert rounding["std_err"] == pytest.approx(change.std(ddof=1) / 30**0.5, abs=1e-5)
    assert np.abs(change).max() > 1e-5


def test_weights_beyond_half_precision_are_refused_by_name(trained, tmp_path, monkeypatch):
    enlarged = trained.weights.parameters.copy()
    enlarged[:, 0] = 1e6
    monkeypatch.setattr(trained, "weights", trained.weights._replace(parameters=enlarged))
    with pytest.raises(ValueError, match="not finite in float16"):
        bundle.export(trained, tmp_path / "1", weights_dtype="float16")
    assert not (tmp_path / "1").exists()


def test_a_bundle_that_scores_otherwise_than_the_trained_model_is_refused(trained, tmp_path, monkeypatch):
    golden = publication.golden_values

    def shifted(model, rows):
        values = golden(model, rows)
        return values | {"log_prob/log_prob": values["log_prob/log_prob"] - 0.2}

    monkeypatch.setattr(publication, "golden_values", shifted)
    with pytest.raises(ValueError, match="does not score as the one in memory"):
        bundle.export(trained, tmp_path / "1")
    assert not (tmp_path / "1").exists()


def test_the_card_has_no_metrics_of_other_weights_or_data(trained, tmp_path):
    path = trained.folder.path / "evaluation.json"
    before = path.read_text() if path.exists() else None
    try:
        report.evaluate(trained, num_samples=2)
        evaluation = json.loads(path.read_text())
        bundle.export(trained, tmp_path / "1")
        assert client.load(tmp_path / "1").card["metrics"]["num_samples"] == 2
    finally:
        path.unlink()
        if before is not None:
            path.write_text(before)
    assert cards._metrics(trained, evaluation, 0)["num_samples"] == 2
    for place, value in (("best_step", -1), ("validation_bound", 0.0)):
        replicas = [replica | {place: value} for replica in evaluation["replicas"]]
        assert cards._metrics(trained, evaluation | {"replicas": replicas}, 0) is None
    other = evaluation | {"data": evaluation["data"] | {"checksum": "0"}}
    assert cards._metrics(trained, other, 0) is None


def states():
    return ((np.arange(16)[:, np.newaxis] >> np.arange(4)) & 1).astype(np.float32)


@pytest.mark.parametrize("options", [{"num_samples": 0}, {"chunk": 0}, {"num_samples": -3}])
def test_impossible_sample_counts_are_refused_and_nothing_is_written(trained, tmp_path, options):
    with pytest.raises(ValueError, match="at least 1"):
        bundle.export(trained, tmp_path / "model/1", **options)
    assert not (tmp_path / "model").exists()


def test_an_existing_folder_is_refused_and_untouched(trained, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1/mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        bundle.export(trained, tmp_path / "1")
    assert tiny.files_of(tmp_path) == ["1/mine.txt"]


def test_an_export_that_fails_on_the_way_leaves_nothing(trained, tmp_path, monkeypatch):
    def fail(folder):
        raise RuntimeError("planted")

    monkeypatch.setattr(publication, "write_checksums", fail)
    with pytest.raises(RuntimeError, match="planted"):
        bundle.export(trained, tmp_path / "model/1", num_samples=1)
    assert not list((tmp_path / "model").iterdir())


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (publication, "slim", OSError(28, "No space left on device")),
        (warmup, "write", tf.errors.ResourceExhaustedError(None, None, "No space left on device")),
        (publication, "write_text", OSError(28, "No space left on device")),
        (np, "savez", OSError(28, "No space left on device")),
    ],
)
def test_an_export_onto_a_full_disk_names_the_bundle_and_leaves_nothing(
    place, name, error, trained, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(place, name, fail)
    with pytest.raises(OSError, match="cannot write 1: No space left on device; what was") as raised:
        bundle.export(trained, tmp_path / "model/1", num_samples=1)
    assert raised.value.filename == str(tmp_path / "model/1")
    assert str(raised.value).count("cannot write") == 1
    assert not list((tmp_path / "model").iterdir())


def test_an_export_whose_folder_another_process_makes_meanwhile_leaves_that_one(trained, tmp_path, monkeypatch):
    output = tmp_path / "model/1"

    def meanwhile(folder):
        output.mkdir()
        (output / "theirs.txt").write_text("theirs")

    monkeypatch.setattr(publication, "verify", meanwhile)
    with pytest.raises(FileExistsError, match="1 exists already; nothing was written"):
        bundle.export(trained, output, num_samples=1)
    assert tiny.files_of(tmp_path) == ["model/1/theirs.txt"]

"""Bundles that do more than compute are refused before anything of them is loaded."""

import json
import os
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import function_pb2
from tensorflow.core.protobuf import saved_model_pb2

import tfstruct
from tests.trainers import tiny
from tfstruct import files
from tfstruct.serving import contents, trust, verification
from tfstruct.serving.contents import DamagedBundleError, UntrustedBundleError


def attacked(folder, attack):
    """A bundle whose graph an attacker has changed, and whose checksums as well."""
    path = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    attack(model.meta_graphs[0])
    path.write_bytes(model.SerializeToString())
    files.write_checksums(folder)
    return folder


def public(meta):
    """The function of a signature that a client calls."""
    names = [node.bare_concrete_function.concrete_function_name for node in meta.object_graph_def.nodes]
    return next(
        function for function in meta.graph_def.library.function if function.signature.name in set(names) - {""}
    )


def saver(meta, which):
    """The function that a server calls to save or restore."""
    place = {"save": meta.saver_def.save_tensor_name, "restore": meta.saver_def.restore_op_name}[which].partition(":")[
        0
    ]
    node = next(node for node in meta.graph_def.node if node.name == place)
    return next(f for f in meta.graph_def.library.function if f.signature.name == node.attr["f"].func.name)


def add_node(nodes, op, name="evil", inputs=(), **functions):
    node = nodes.add(name=name, op=op, input=inputs)
    for key, function in functions.items():
        node.attr[key].func.name = function
    return node


def add_function(meta, op):
    function = function_pb2.FunctionDef()
    function.signature.name = "hidden"
    add_node(function.node_def, op)
    meta.graph_def.library.function.append(function)


def compile_function(meta):
    public(meta).attr["_XlaMustCompile"].b = True


def compile_node(meta):
    public(meta).node_def[0].attr["_XlaMustCompile"].b = True


def save_from_a_signature(meta):
    add_node(public(meta).node_def, "PartitionedCall", f=saver(meta, "save").signature.name)


def save_from_a_while_loop(meta):
    add_node(public(meta).node_def, "StatelessWhile", cond="hidden", body=saver(meta, "save").signature.name)
    add_function(meta, "NoOp")


def save_by_a_signature_of_the_server(meta):
    outputs = meta.signature_def["log_prob"].outputs["log_prob"]
    outputs.name = meta.saver_def.save_tensor_name


def save_at_loading(meta):
    add_node(meta.graph_def.node, "NoOp", inputs=["^" + meta.saver_def.save_tensor_name.partition(":")[0]])


def save_while_restoring(meta):
    add_node(saver(meta, "restore").node_def, "SaveV2")


def save_as_restoring(meta):
    meta.saver_def.restore_op_name = meta.saver_def.save_tensor_name.partition(":")[0]


def restore_from_elsewhere(meta):
    add_node(saver(meta, "restore").node_def, "RestoreV2", inputs=["evil_path:output:0"])


def save_from_python(meta):
    node = next(node for node in meta.object_graph_def.nodes if node.HasField("bare_concrete_function"))
    node.bare_concrete_function.concrete_function_name = saver(meta, "save").signature.name


def add_an_asset(meta):
    meta.asset_file_def.add(filename="../../etc/passwd")


def add_a_resource(meta):
    meta.object_graph_def.nodes.add().resource.device = ""


def add_a_registered_object(meta):
    meta.object_graph_def.nodes.add(registered_name="Custom.Evil").user_object.identifier = "_generic_user_object"


def add_a_registered_saver(meta):
    meta.object_graph_def.nodes.add(registered_saver="Custom.Evil").user_object.identifier = "_generic_user_object"


def add_a_table(meta):
    meta.object_graph_def.nodes.add().user_object.identifier = "trackable_resource"


def call_what_is_not_there(meta):
    add_node(public(meta).node_def, "PartitionedCall", f="absent")


def call_from_a_list(meta):
    node = add_node(public(meta).node_def, "Case")
    node.attr["branches"].list.func.add().name = "absent"


def _node(meta, name):
    return next(node for node in meta.graph_def.node if node.name == name.partition(":")[0])


def restore_another_path(meta):
    add_node(meta.graph_def.node, "Const", name="elsewhere")
    _node(meta, meta.saver_def.restore_op_name).input[0] = "elsewhere"


def choose_the_path(meta):
    node = _node(meta, meta.saver_def.filename_tensor_name)
    node.op = "Const"


def restore_by_another_argument(meta):
    for node in saver(meta, "restore").node_def:
        if node.op == "RestoreV2":
            node.input[0] = saver(meta, "restore").signature.input_arg[1].name


ATTACKS = {
    "a list of functions": (call_from_a_list, "the operation Case|calls absent, which is not there"),
    "restored from a constant": (restore_another_path, "saves or restores at a place of its own choice"),
    "a constant as the path": (choose_the_path, "the graph chooses itself, by Const, where it saves and restores"),
    "restored from another argument": (restore_by_another_argument, "restores from a place of its own choice"),
    **{
        f"{op} in {place}": (attack, f"the operation {op}")
        for op in ("WriteFile", "ReadFile", "PrintV2", "PyFunc", "EagerPyFunc", "SaveV2", "RestoreV2", "XlaLaunch")
        for place, attack in (
            ("a signature", lambda meta, op=op: add_node(public(meta).node_def, op)),
            ("the graph", lambda meta, op=op: add_node(meta.graph_def.node, op)),
            ("a function that nothing calls", lambda meta, op=op: add_function(meta, op)),
        )
    },
    "assignment in a signature": (
        lambda meta: add_node(public(meta).node_def, "AssignVariableOp"),
        "the operation AssignVariableOp",
    ),
    "file written while saving": (
        lambda meta: add_node(saver(meta, "save").node_def, "WriteFile"),
        "the operation WriteFile",
    ),
    "function called by its name as an operation": (
        lambda meta: add_node(public(meta).node_def, saver(meta, "save").signature.name),
        "the operation __inference__traced_save",
    ),
    "compiled function": (compile_function, "is compiled by XLA"),
    "compiled node": (compile_node, "is compiled by XLA"),
    "saver called by a signature": (save_from_a_signature, "which saves or restores"),
    "saver called by a loop": (save_from_a_while_loop, "which saves or restores"),
    "saver as a signature of the server": (save_by_a_signature_of_the_server, "the signature log_prob saves"),
    "saver run at loading": (save_at_loading, "the node evil of the graph saves"),
    "saver inside the restorer": (save_while_restoring, "the operation SaveV2"),
    "saver as the restorer": (save_as_restoring, "has the operation"),
    "restored from elsewhere": (restore_from_elsewhere, "restores from a place of its own choice"),
    "saver called from Python": (save_from_python, "can be called"),
    "asset": (add_an_asset, "the asset ../../etc/passwd"),
    "resource": (add_a_resource, "an object of kind resource"),
    "registered object": (add_a_registered_object, "an object of kind Custom.Evil"),
    "registered saver": (add_a_registered_saver, "an object of kind"),
    "table": (add_a_table, "an object of type trackable_resource"),
    "missing function": (call_what_is_not_there, "calls absent, which is not there"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_changed_graph_is_refused_by_what_it_has(copy, name, monkeypatch):
    monkeypatch.setattr(tf.saved_model, "load", None)  # nothing is loaded
    attack, message = ATTACKS[name]
    attacked(copy, attack)
    for use in (tfstruct.load, verification.verify):
        with pytest.raises(UntrustedBundleError, match=message):
            use(copy)


def test_an_attacked_bundle_is_well_formed_but_for_the_attack(copy):
    verification.verify(attacked(copy, lambda meta: None))


def test_an_attacker_who_writes_the_checksums_anew_is_stopped_by_pinned_ones(copy):
    pinned = files.sha256(copy / "SHA256SUMS")
    assert tfstruct.load(copy, sha256=pinned.upper()).event_shape == (4,)
    card = json.loads((copy / "card.json").read_text())
    (copy / "card.json").write_text(json.dumps(card | {"license": "mine"}))
    files.write_checksums(copy)
    assert tfstruct.load(copy).card["license"] == "mine"
    for use in (tfstruct.load, verification.verify):
        with pytest.raises(DamagedBundleError, match=f"expected {pinned}"):
            use(copy, sha256=pinned)


def test_a_foreign_model_that_writes_a_file_is_refused_and_runs_only_when_asked_for(folder, tmp_path):
    path = tmp_path / "written"

    class Writer(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def log_prob(self, x):
            with tf.control_dependencies([tf.io.write_file(str(path), "mine")]):
                return {"log_prob": tf.reduce_sum(x, axis=-1)}

    module = Writer()
    output = tmp_path / "foreign"
    tf.saved_model.save(module, str(output), signatures={"log_prob": module.log_prob})
    (output / "fingerprint.pb").unlink()
    card = json.loads((folder / "card.json").read_text())
    rows, values = {"dtype": "float32", "shape": [-1, 4]}, {"dtype": "float32", "shape": [-1]}
    card["signatures"] = {"log_prob": {"inputs": {"x": rows}, "outputs": {"log_prob": values}}}
    (output / "card.json").write_text(json.dumps(card))
    files.write_checksums(output)
    with pytest.raises(UntrustedBundleError, match="the operation WriteFile.*allow_untrusted=True only if"):
        tfstruct.load(output)
    assert not path.exists()
    tfstruct.load(output, allow_untrusted=True).query("log_prob", x=np.zeros([1, 4]))
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("saved_model.cpb", "is no file of a bundle"),
        ("saved_model.pbtxt", "is no file of a bundle"),
        ("assets/words.txt", "is no file of a bundle"),
        ("assets.extra/tf_serving_warmup_requests.2", "is no file of a bundle"),
    ],
)
def test_files_that_tensorflow_may_read_in_place_of_the_checked_ones_are_refused(copy, name, message):
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"x")
    files.write_checksums(copy)
    with pytest.raises(UntrustedBundleError, match=message):
        tfstruct.load(copy)


def test_links_are_refused(copy, tmp_path):
    (copy / "saved_model.pb").rename(tmp_path / "elsewhere.pb")
    (copy / "saved_model.pb").symlink_to(tmp_path / "elsewhere.pb")
    with pytest.raises(UntrustedBundleError, match=r"saved_model\.pb is a link"):
        tfstruct.load(copy)


@pytest.mark.parametrize("name", ["SHA256SUMS", "card.json", "golden.npz", "saved_model.pb", "variables/other"])
def test_pipes_are_refused_and_not_waited_for(copy, name):
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    message = r"has no SHA256SUMS|is missing|is (a link or )?no file"
    with pytest.raises((UntrustedBundleError, DamagedBundleError), match=message):
        tfstruct.load(copy)


@pytest.mark.parametrize("content", [b"", b"no protocol buffer", b"\x12\xff\xff\xff\xff\x0f"])
def test_a_graph_that_cannot_be_parsed_is_damaged(copy, content):
    (copy / "saved_model.pb").write_bytes(content)
    files.write_checksums(copy)
    with pytest.raises(DamagedBundleError, match="is no SavedModel with one graph"):
        tfstruct.load(copy)


def rename_an_output(card):
    outputs = card["signatures"]["elbo"]["outputs"]
    outputs["bound"] = outputs.pop("elbo")


def fix_the_batch(card):
    card["signatures"]["elbo"]["inputs"]["x"]["shape"][0] = 1


def change_a_type(card):
    card["signatures"]["elbo"]["inputs"]["seed"]["dtype"] = "int32"


@pytest.mark.parametrize("change", [rename_an_output, fix_the_batch, change_a_type])
def test_a_graph_must_have_the_signatures_of_the_card(copy, change):
    card = json.loads((copy / "card.json").read_text())
    change(card)
    (copy / "card.json").write_text(json.dumps(card))
    files.write_checksums(copy)
    with pytest.raises(DamagedBundleError, match="other signatures than the card: elbo"):
        tfstruct.load(copy)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def ask_for_other_inputs(path):
    records = [bytes(record) for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]
    assert b"seed" in records[0]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record.replace(b"seed", b"sead"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "warm-up record .* cannot be read"),
        (flip, "warm-up record .* cannot be read"),
        (ask_for_other_inputs, "warm-up record 1 cannot be read: it asks "),
        (lambda path: path.unlink(), "has 0 warm-up records, expected"),
    ],
)
def test_bad_warm_up_records_are_found(copy, change, message):
    change(copy / contents.WARMUP_NAME)
    files.write_checksums(copy)
    with pytest.raises(DamagedBundleError, match=message):
        verification.verify(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda golden: golden.pop("x"), "golden.npz is not what an export writes: it has no x"),
        (lambda golden: golden.pop("log_prob/log_prob"), "golden.npz has no log_prob of the signature log_prob"),
        (None, "golden.npz is not what an export writes"),
    ],
)
def test_golden_values_that_are_missing_are_damage(change, message, copy):
    path = copy / "golden.npz"
    golden = dict(np.load(path))
    if change is None:
        path.write_bytes(path.read_bytes()[:100])
    else:
        change(golden)
        np.savez(path, **golden)
    files.write_checksums(copy)
    with pytest.raises(DamagedBundleError, match=message):
        verification.verify(copy)


def test_variables_that_cannot_be_read_are_damage(copy):
    (path,) = (copy / "variables").glob("*.index")
    path.write_bytes(path.read_bytes()[:-20])
    files.write_checksums(copy)
    with pytest.raises(DamagedBundleError, match="cannot be loaded"):
        verification.verify(copy)


def test_the_largest_bundle_of_the_checkout_is_checked_in_a_second():
    paths = (tiny.CHECKOUT / "saved_models").glob("*/*/*/saved_model.pb")
    folder = max(paths, key=lambda path: path.stat().st_size).parent
    card = json.loads((folder / "card.json").read_text())
    start = time.perf_counter()
    trust.check(folder, card)
    assert time.perf_counter() - start < 2.5


def test_the_program_says_what_is_right_and_what_to_pin_and_refuses_in_one_line(copy):
    done = tiny.run_program("verify", f"--model={copy}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == f"sha256 of SHA256SUMS: {files.sha256(copy / 'SHA256SUMS')}"
    attacked(copy, lambda meta: add_node(meta.graph_def.node, "WriteFile"))
    done = tiny.run_program("verify", f"--model={copy}")
    assert done.returncode == 1
    assert "the graph has the operation WriteFile" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

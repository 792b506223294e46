"""A bundle in processes that have never seen the code that made it."""

import json

import numpy as np
import pytest

from tests.trainers import tiny

TENSORFLOW_ALONE = """
import sys
for name in ("tfstruct", "keras", "tf_keras", "tensorflow_probability"):
    sys.modules[name] = None  # importing it is an error
import json
import numpy as np
import tensorflow as tf

folder, output = sys.argv[1:]
golden = dict(np.load(folder + "/golden.npz"))
feeds = {"x": golden["x"], "seed": golden["seed"]}
results = {}
model = tf.saved_model.load(folder)
for name, function in model.signatures.items():
    inputs = {key: tf.constant(feeds[key]) for key in function.structured_input_signature[1]}
    for key, value in function(**inputs).items():
        results[f"2/{name}/{key}"] = value.numpy()

# The loader of TensorFlow 1, which TensorFlow Serving uses.
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    meta = tf.compat.v1.saved_model.load(session, ["serve"], folder)
    for name, signature in meta.signature_def.items():
        if name.startswith("__"):
            continue
        inputs = {info.name: feeds[key] for key, info in signature.inputs.items()}
        outputs = {key: info.name for key, info in signature.outputs.items()}
        for key, value in session.run(outputs, inputs).items():
            results[f"1/{name}/{key}"] = value
np.savez(output, **results)
print(json.dumps(sorted(module for module in sys.modules if sys.modules[module] is not None)))
"""

CLIENT = """
import sys
for name in ("keras", "tf_keras", "tensorflow_probability", "tfstruct.models"):
    sys.modules[name] = None
import numpy as np
import tfstruct

folder, output = sys.argv[1:]
golden = dict(np.load(folder + "/golden.npz"))
model = tfstruct.load(folder)
x, seed = golden["x"], golden["seed"]
np.savez(
    output,
    **{f"log_prob/{key}": value for key, value in model.log_prob(x, seed=seed).items()},
    **{f"elbo/{key}": value for key, value in model.elbo(x, seed=seed).items()},
    **{f"encode/{key}": value for key, value in model.encode(x).items()},
    **{"reconstruct/x_mean": model.reconstruct(x, seed=seed)},
    **{f"sample/{key}": value for key, value in model.sample(len(seed), seed=seed).items()},
)
"""


@pytest.fixture(scope="module")
def golden(folder):
    return dict(np.load(folder / "golden.npz"))


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """Outputs of every signature by both loaders, and the modules that were imported."""
    output = tmp_path_factory.mktemp("alone") / "outputs.npz"
    done = tiny.run_python(TENSORFLOW_ALONE, folder, output)
    return dict(np.load(output)), json.loads(done.stdout)


def names_of(golden):
    return [name for name in golden if "/" in name]


def test_golden_values_cover_every_output_of_every_signature(golden, model):
    expected = {
        f"{name}/{key}"
        for name, signature in model.card["signatures"].items()
        for key in signature["outputs"]
        if name != "serving_default"
    }
    assert set(names_of(golden)) == expected
    assert len(golden["x"]) >= 2
    for name in names_of(golden):
        assert np.isfinite(golden[name]).all(), name
        if name != "sample/x":
            assert len(np.unique(golden[name], axis=0)) > 1, f"{name} is constant"


@pytest.mark.parametrize("loader", [2, 1], ids=["tf.saved_model.load", "TensorFlow 1 session"])
def test_tensorflow_alone_gives_the_golden_values(golden, alone, loader):
    outputs, _ = alone
    for name in names_of(golden):
        np.testing.assert_allclose(outputs[f"{loader}/{name}"], golden[name], rtol=1e-5, atol=1e-5, err_msg=name)
        if name.startswith("log_prob/"):
            default = outputs[f"{loader}/serving_default/{name.removeprefix('log_prob/')}"]
            np.testing.assert_array_equal(default, outputs[f"{loader}/{name}"])


def test_tensorflow_alone_imported_nothing_else(alone):
    _, modules = alone
    assert "tensorflow" in modules
    blocked = ("tfstruct", "keras", "tf_keras", "tensorflow_probability")
    assert not [module for module in modules if module.split(".")[0] in blocked]


def test_the_client_needs_neither_keras_nor_the_code_of_the_models(golden, folder, tmp_path):
    tiny.run_python(CLIENT, folder, tmp_path / "outputs.npz")
    outputs = dict(np.load(tmp_path / "outputs.npz"))
    assert set(outputs) == set(names_of(golden))
    for name, value in outputs.items():
        np.testing.assert_allclose(value, golden[name], rtol=1e-5, atol=1e-5, err_msg=name)

"""Smaller SavedModels answer as before."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfstruct.serving.slim import slim


def powers(weight, x, times):
    """x times a power of a weight, by a loop."""
    return tf.while_loop(lambda place, _: place < times, lambda place, y: (place + 1, y * weight), (0, x))[1]


class Module(tf.Module):
    """Signatures with a loop each, of which two are the same."""

    def __init__(self):
        super().__init__()
        self.weight, self.other = tf.Variable(2.0), tf.Variable(3.0)
        spec = [tf.TensorSpec([None], tf.float32, name="x")]
        self.answers = {
            "first": tf.function(lambda x: {"y": powers(self.weight, x, 3)}, spec),
            "second": tf.function(lambda x: {"y": 1.0 + powers(self.weight, x, 3)}, spec),
            "other_weight": tf.function(lambda x: {"y": powers(self.other, x, 3)}, spec),
            "other_length": tf.function(lambda x: {"y": powers(self.weight, x, 4)}, spec),
        }


def functions(folder):
    model = saved_model_pb2.SavedModel()
    model.ParseFromString((folder / "saved_model.pb").read_bytes())
    return model.meta_graphs[0].graph_def.library.function


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, module = tmp_path_factory.mktemp("model"), Module()
    tf.saved_model.save(module, str(path), signatures={k: f.get_concrete_function() for k, f in module.answers.items()})
    return path


def test_loops_that_are_the_same_are_kept_once_and_every_answer_stays(folder):
    before, size = functions(folder), (folder / "saved_model.pb").stat().st_size
    slim(folder)
    after = functions(folder)
    assert (folder / "saved_model.pb").stat().st_size < 0.9 * size
    # Weights are arguments of a loop's body, and its length is one of its condition's constants.
    assert sum("while_body" in function.signature.name for function in before) >= 4
    assert sum("while_body" in function.signature.name for function in after) == 1
    assert sum("while_cond" in function.signature.name for function in after) == 2
    signatures = tf.saved_model.load(str(folder)).signatures
    x = tf.constant([1.0, -0.5])
    for name, expected in {"first": 8 * x, "second": 1 + 8 * x, "other_weight": 27 * x, "other_length": 16 * x}.items():
        np.testing.assert_array_equal(signatures[name](x=x)["y"], expected, err_msg=name)


def test_a_function_has_each_constant_once_and_answers_as_before(tmp_path):
    module = tf.Module()
    module.weight = tf.Variable([1.0, 2.0])

    def constants(x):
        with tf.control_dependencies([tf.constant(7.0), tf.constant(7.0)]):
            y = (x + tf.constant([3.0, 4.0])) * tf.constant([3.0, 4.0]) + module.weight
        # Of equal bytes, but another type or shape; and one that is returned as it is.
        z = tf.cast(tf.constant([3, 4]), tf.float32) + tf.constant([[3.0, 4.0]])
        return {"y": y, "z": z + tf.zeros_like(y), "same": tf.constant([3.0, 4.0])}

    function = tf.function(constants, [tf.TensorSpec([2], tf.float32, name="x")])
    tf.saved_model.save(module, str(tmp_path), signatures={"constants": function.get_concrete_function()})
    x = tf.constant([0.5, -1.0])
    expected = tf.saved_model.load(str(tmp_path)).signatures["constants"](x=x)

    def repeated():
        values = [
            [(node.attr["value"].SerializeToString(), *node.input) for node in function.node_def if node.op == "Const"]
            for function in functions(tmp_path)
        ]
        return sum(len(found) - len(set(found)) for found in values)

    assert repeated() >= 2
    slim(tmp_path)
    assert repeated() == 0
    found = tf.saved_model.load(str(tmp_path)).signatures["constants"](x=x)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)

"""What every test relies on: fixed seeds, two logical CPUs, no GPU, two threads."""

import os

# Before TensorFlow is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

SEED = 17

tf.config.set_visible_devices([], "GPU")
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
tf.config.threading.set_intra_op_parallelism_threads(2)
tf.config.threading.set_inter_op_parallelism_threads(2)


@pytest.fixture(autouse=True)
def _fixed_seeds():
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - for code that still reads the global generator
    tf.random.set_seed(SEED)


@pytest.fixture
def rng():
    """A NumPy generator with the seed of the suite."""
    return np.random.default_rng(SEED)


@pytest.fixture
def float64():
    """Keras computes in float64 while the test runs."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield tf.float64
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


def _run_eager(function, *arguments):
    return function(*arguments)


def _run_graph(function, *arguments):
    return tf.function(function, autograph=False)(*arguments)


def _run_xla(function, *arguments):
    return tf.function(function, autograph=False, jit_compile=True)(*arguments)


@pytest.fixture(params=[_run_eager, _run_graph, _run_xla], ids=["eager", "graph", "xla"])
def run(request):
    """Calls a function of tensors eagerly, as a graph and compiled by XLA."""
    return request.param


@pytest.fixture(params=[_run_graph, _run_xla], ids=["graph", "xla"])
def compiled(request):
    """Calls a function of tensors as a graph and compiled by XLA, to be compared with calling it eagerly."""
    return request.param

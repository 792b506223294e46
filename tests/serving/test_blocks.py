"""Functions of rows in blocks: the same answers, in bounded memory, and one seed for all rows where one is given."""

import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tfstruct.models import registry
from tfstruct.serving.blocks import in_blocks
from tfstruct.serving.signatures import ServedSystem


@pytest.mark.parametrize("num", [0, 1, 3, 4, 5, 8, 11])
def test_rows_in_blocks_are_answered_in_their_order_and_by_blocks_of_so_many(num):
    traces = []

    def function(x, seed):
        traces.append(1)
        size = tf.fill(tf.shape(seed), tf.shape(x)[0])
        return {"sum": tf.reduce_sum(x, axis=1) + tf.cast(seed, tf.float32), "pair": (seed, size), "x": x}

    blocked = in_blocks(function, [tf.TensorSpec([None, 2]), tf.TensorSpec([None], tf.int64)], rows=4)
    x = np.arange(2.0 * num, dtype=np.float32).reshape(num, 2)
    seed = np.arange(num)[::-1] * 100
    for _ in range(2):
        found = blocked(tf.constant(x), tf.constant(seed, tf.int64))
    np.testing.assert_array_equal(found["sum"], x.sum(axis=1) + seed)
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_array_equal(found["pair"][0], seed)
    np.testing.assert_array_equal(found["pair"][1], [min(4, num - place // 4 * 4) for place in range(num)])
    assert len(traces) == 1


@pytest.fixture(scope="module")
def signatures():
    model = registry.build(tiny.changed("spvae/tiny", ["training.compiler=graph"]), seed=1)
    return model, ServedSystem(model, num_samples=5, chunk=2, bits_per_dim_offset=None).signatures()


NAMES = ("log_prob", "elbo", "reconstruct", "marginal_log_prob", "inpaint", "region_log_prob")


@pytest.mark.parametrize("name", NAMES)
def test_more_rows_than_a_block_are_answered_as_each_alone(signatures, name, rng):
    model, functions = signatures
    num = 150
    values = {
        "x": model.sample(num, seed=7)["x"].numpy(),
        "seed": rng.integers(0, 1 << 40, size=num),
        "observed": rng.random([num, *model.event_shape]) < 0.5,
    }

    def answers(rows):
        return functions[name](**{key: tf.constant(values[key][rows]) for key in model.queries[name].inputs})

    whole = answers(slice(None))
    for place in (0, 127, 128, 149):
        for key, value in answers(slice(place, place + 1)).items():
            np.testing.assert_allclose(whole[key][place], value[0], rtol=2e-5, atol=2e-5, err_msg=f"{key} {place}")
            assert len(whole[key]) == num


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_is_for_all_rows_and_another_number_of_them_fails(signatures, name, rng):
    model, functions = signatures
    inputs = model.queries[name].inputs
    rows = {"x": model.sample(3, seed=7)["x"], "observed": tf.constant(rng.random([3, *model.event_shape]) < 0.5)}

    def answers(seeds, **changes):
        values = rows | {"seed": tf.fill([seeds], tf.constant(9, tf.int64))} | changes
        return functions[name](*(values[key] for key in inputs))

    one, each = answers(1), answers(3)
    for key, value in each.items():
        np.testing.assert_array_equal(one[key], value)
    for num in (0, 2, 4):
        with pytest.raises(tf.errors.InvalidArgumentError):
            answers(num)
    if "observed" in inputs:
        with pytest.raises(tf.errors.InvalidArgumentError):
            answers(3, observed=rows["observed"][:2])


_MEMORY = """
import resource, sys
import numpy as np, tensorflow as tf
from tests.trainers import tiny
from tfstruct.models import registry
from tfstruct.serving.signatures import ServedSystem

model = registry.build(tiny.config(), seed=1)
log_prob = ServedSystem(model, num_samples=2000, chunk=2000, bits_per_dim_offset=None).signatures()["log_prob"]

def peak(num):
    x = tf.constant(np.zeros([num, *model.event_shape], np.float32))
    assert len(log_prob(x=x, seed=tf.constant([3], tf.int64))["log_prob"]) == num
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

few = peak(128)
print(few, peak(2560))
"""


def test_the_memory_of_a_request_does_not_grow_with_its_rows():
    few, many = map(
        float, tiny.run_python(f"import sys; sys.path.insert(0, {str(tiny.CHECKOUT)!r})" + _MEMORY).stdout.split()
    )
    # Unblocked, twenty times as many rows took 5 GB more.
    assert many - few < 300.0, (few, many)

"""Networks of leaves computed together against one network a leaf, and against loops in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tests.reference import networks
from tests.reference.monte_carlo import assert_mean_close
from tfstruct.models.sum_product_vae.networks import (
    LeafConv,
    LeafConvDecoder,
    LeafConvEncoder,
    LeafDense,
    LeafMLP,
    feature_map,
    softplus,
)

LEAVES = pytest.mark.parametrize("num_leaves", [1, 3])
N = 2

# The twin ----------------------------------------------------------------------------------------------------


def _softplus(x):
    return np.logaddexp(0.0, x)


def _conv(x, kernel, bias, stride, transpose):
    """One image [h, w, C] and kernel [9, C, F], padded as TensorFlow's "SAME": one tap after the other."""
    size = np.array(x.shape[:2])
    # A transposed convolution has the taps of the convolution from its own outputs to its inputs.
    large = size * stride if transpose else size
    small = size if transpose else -(-size // stride)
    before = np.maximum((small - 1) * stride + 3 - large, 0) // 2
    result = np.zeros([*(large if transpose else small), kernel.shape[-1]])
    for row, column in np.ndindex(*small):
        for tap in range(9):
            i, j = np.array([row, column]) * stride + divmod(tap, 3) - before
            if 0 <= i < large[0] and 0 <= j < large[1]:
                if transpose:
                    result[i, j] += x[row, column] @ kernel[tap]
                else:
                    result[row, column] += x[i, j] @ kernel[tap]
    return result + bias


def _weights_of_leaf(layer, leaf):
    """The part of every weight that is one leaf's, by path; networks of one leaf lie num_leaves apart."""
    return {path: value[leaf :: layer.num_leaves] for path, value in networks.named_weights(layer).items()}


def _random(layer, shape, rng):
    layer.build(shape)
    networks.randomize(layer, rng)
    return layer


def _assert_leaves_are_separate_layers(layer, make_single, x):
    """Every leaf's outputs are those of a layer of one leaf with the leaf's weights."""
    together = tf.nest.flatten(layer(tf.constant(x)))
    for leaf in range(layer.num_leaves):
        single = make_single()
        single.build((1, *x.shape[1:]))
        weights = _weights_of_leaf(layer, leaf)
        assert len(single.variables) == len(weights)
        for variable in single.variables:
            variable.assign(weights[variable.path.partition("/")[2]])
        alone = tf.nest.flatten(single(tf.constant(x[leaf : leaf + 1])))
        for found, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(found[leaf], expected[0], rtol=1e-11, atol=1e-12)


# Layers ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@LEAVES
def test_dense_is_a_product_for_every_leaf(num_leaves, rng, run):
    x = rng.normal(size=[num_leaves, N, 4])
    layer = _random(LeafDense(num_leaves, 5), x.shape, rng)
    expected = [x[leaf] @ layer.kernel.numpy()[leaf] + layer.bias.numpy()[leaf] for leaf in range(num_leaves)]
    np.testing.assert_allclose(run(layer, tf.constant(x)), expected, rtol=1e-12)


CONVOLUTIONS = pytest.mark.parametrize(
    ("stride", "transpose", "size"),
    [(stride, transpose, size) for stride in (1, 2) for transpose in (False, True) for size in ((4, 6), (5, 3))],
    ids=str,
)


@pytest.mark.usefixtures("float64")
@LEAVES
@CONVOLUTIONS
def test_convolution_is_its_twin(num_leaves, stride, transpose, size, rng):
    x = rng.normal(size=[num_leaves, N, *size, 2])
    layer = _random(LeafConv(num_leaves, 3, stride=stride, transpose=transpose), x.shape, rng)
    found = layer(tf.constant(x))
    for leaf, row in np.ndindex(num_leaves, N):
        kernel, bias = layer.kernel.numpy()[leaf], layer.bias.numpy()[leaf, 0, 0, 0]
        expected = _conv(x[leaf, row], kernel, bias, stride, transpose)
        np.testing.assert_allclose(found[leaf, row], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("float64")
@CONVOLUTIONS
def test_convolution_of_several_leaves_is_that_of_each(stride, transpose, size, rng):
    x = rng.normal(size=[3, N, *size, 2])
    layer = _random(LeafConv(3, 4, stride=stride, transpose=transpose), x.shape, rng)
    _assert_leaves_are_separate_layers(layer, lambda: LeafConv(1, 4, stride=stride, transpose=transpose), x)


@pytest.mark.usefixtures("float64")
@LEAVES
@pytest.mark.parametrize("hidden_units", [(), (6,), (6, 5)], ids=str)
@pytest.mark.parametrize("num_networks", [1, 2])
def test_mlp_is_separate_networks_for_every_leaf_and_output(num_leaves, hidden_units, num_networks, rng, run):
    x = rng.normal(size=[num_leaves, N, 4])
    layer = _random(LeafMLP(num_leaves, hidden_units, 3, num_networks=num_networks), x.shape, rng)
    found = run(layer, tf.constant(x))
    assert len(found) == num_networks
    _assert_leaves_are_separate_layers(layer, lambda: LeafMLP(1, hidden_units, 3, num_networks=num_networks), x)
    for leaf in range(num_leaves):
        weights = _weights_of_leaf(layer, leaf)
        for network in range(num_networks):
            units = weights["dense_0/kernel"].shape[-1] // num_networks
            columns = slice(network * units, (network + 1) * units)
            features = x[leaf] @ weights["dense_0/kernel"][0][:, columns] + weights["dense_0/bias"][0][:, columns]
            for place in range(1, 1 + len(hidden_units)):
                kernel, bias = (weights[f"dense_{place}/{name}"][network] for name in ("kernel", "bias"))
                features = _softplus(features) @ kernel + bias
            np.testing.assert_allclose(found[network][leaf], features, rtol=1e-11)


def _encoder(num_leaves, stride):
    return LeafConvEncoder(num_leaves, (4, 8, 2), (2, 3), stride, 5, 4, num_heads=2, name="encoder")


def _decoder(num_leaves, stride):
    return LeafConvDecoder(num_leaves, (4, 8, 2), (2, 3), stride, num_heads=2, name="decoder")


@pytest.mark.usefixtures("float64")
@LEAVES
@pytest.mark.parametrize("stride", [1, 2])
def test_encoder_is_its_twin_and_one_encoder_for_every_leaf(num_leaves, stride, rng):
    x = rng.normal(size=[num_leaves, N, 64])
    layer = _random(_encoder(num_leaves, stride), x.shape, rng)
    found = layer(tf.constant(x))
    _assert_leaves_are_separate_layers(layer, lambda: _encoder(1, stride), x)
    for leaf, row in np.ndindex(num_leaves, N):
        weights = {path: value[0] for path, value in _weights_of_leaf(layer, leaf).items()}
        images = x[leaf, row].reshape(4, 8, 2)
        for place in range(2):
            kernel, bias = weights[f"conv_{place}/kernel"], weights[f"conv_{place}/bias"][0, 0]
            images = _softplus(_conv(images, kernel, bias, stride, False))
        features = _softplus(images.ravel() @ weights["dense/kernel"] + weights["dense/bias"][0])
        heads = features @ weights["heads/kernel"] + weights["heads/bias"][0]
        for head, expected in zip(found, np.split(heads, 2), strict=True):
            assert head.shape == (num_leaves, N, 4)
            np.testing.assert_allclose(head[leaf, row], expected, rtol=1e-11)


@pytest.mark.usefixtures("float64")
@LEAVES
@pytest.mark.parametrize("stride", [1, 2])
def test_decoder_is_its_twin_and_one_decoder_for_every_leaf(num_leaves, stride, rng):
    x = rng.normal(size=[num_leaves, N, 5])
    layer = _random(_decoder(num_leaves, stride), x.shape, rng)
    found = layer(tf.constant(x))
    _assert_leaves_are_separate_layers(layer, lambda: _decoder(1, stride), x)
    for leaf, row in np.ndindex(num_leaves, N):
        weights = {path: value[0] for path, value in _weights_of_leaf(layer, leaf).items()}
        features = _softplus(x[leaf, row] @ weights["dense/kernel"] + weights["dense/bias"][0])
        images = features.reshape(4 // stride**2, 8 // stride**2, 3)
        images = _softplus(_conv(images, weights["conv_0/kernel"], weights["conv_0/bias"][0, 0], stride, True))
        images = _conv(images, weights["conv_1/kernel"], weights["conv_1/bias"][0, 0], stride, True)
        for head, expected in zip(found, np.split(images, 2, axis=-1), strict=True):
            assert head.shape == (num_leaves, N, 64)
            np.testing.assert_allclose(head[leaf, row], expected.ravel(), rtol=1e-11)


# A leaf that reads or writes another's images has a density that is none.
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("make", [_encoder, _decoder, lambda num, _: LeafMLP(num, (6, 5), 3, num_networks=2)])
def test_leaves_and_rows_do_not_meet(make, rng):
    x = tf.constant(rng.normal(size=[3, 4, 64]))
    layer = _random(make(3, 2), x.shape, rng)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.add_n([tf.reduce_sum(tf.sin(part[1, 2])) for part in layer(x)])
    gradient = tape.gradient(total, x).numpy()
    assert np.all(gradient[1, 2] != 0.0)
    gradient[1, 2] = 0.0
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.usefixtures("float64")
@LEAVES
@pytest.mark.parametrize("make", [_encoder, _decoder, lambda num, _: LeafMLP(num, (6, 5), 3, num_networks=2)])
def test_gradients_are_finite_differences(num_leaves, make, rng):
    x = tf.constant(rng.normal(size=[num_leaves, N, 64]))
    layer = _random(make(num_leaves, 2), x.shape, rng)
    total = lambda: tf.add_n([tf.reduce_sum(tf.sin(part)) for part in layer(x)])  # noqa: E731
    with tf.GradientTape() as tape:
        value = total()
    gradients = tape.gradient(value, [variable.value for variable in layer.variables])
    for variable, gradient in zip(layer.variables, gradients, strict=True):
        direction = rng.normal(size=variable.shape)
        expected = networks.difference([variable], [direction], total)
        assert networks.along([gradient], [direction]) == pytest.approx(expected, rel=1e-6, abs=1e-7), variable.path


@LEAVES
@pytest.mark.parametrize("make", [_encoder, _decoder])
def test_the_number_of_rows_may_be_unknown_while_tracing(num_leaves, make, rng):
    layer = make(num_leaves, 2)
    layer.build((num_leaves, None, 64))
    spec = tf.TensorSpec([num_leaves, None, 64])
    call = tf.function(lambda x: layer(x), autograph=False, input_signature=[spec])
    for num in (3, 5):
        x = tf.constant(rng.normal(size=[num_leaves, num, 64]), tf.float32)
        for found, expected in zip(call(x), layer(x), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# Beginnings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "fan_in"),
    [
        (LeafDense(40, 20), (40, None, 30), 30),
        (LeafConv(40, 8), (40, None, 4, 4, 10), 90),
        (LeafConv(40, 8, stride=2, transpose=True), (40, None, 4, 4, 10), 90),
    ],
    ids=["dense", "conv", "transposed"],
)
def test_kernels_start_as_truncated_normals_of_hes_variance_and_biases_as_zeros(layer, shape, fan_in):
    layer.build(shape)
    kernel = layer.kernel.numpy()
    # Fans counted over all leaves, or a normal cut without its correction (0.77 of the variance), are far outside.
    assert_mean_close(kernel.ravel() ** 2 * fan_in / 2.0, 1.0, resolution=0.05)
    assert_mean_close(kernel.ravel() * np.sqrt(fan_in / 2.0), 0.0, resolution=0.05)
    limit = 2.0 * np.sqrt(2.0 / fan_in) / 0.87962566
    assert 0.99 * limit < np.abs(kernel).max() <= limit * (1.0 + 1e-6)
    np.testing.assert_array_equal(layer.bias, 0.0)


def test_both_networks_of_an_mlp_start_with_the_fans_of_one():
    layer = LeafMLP(40, (30, 20), 10, num_networks=2)
    layer.build((40, None, 25))
    assert layer.count_params() == 40 * 2 * ((25 + 1) * 30 + (30 + 1) * 20 + (20 + 1) * 10)
    for dense, fan_in in zip([layer.first, *layer.later], (25, 30, 20), strict=True):
        assert_mean_close(dense.kernel.numpy().ravel() ** 2 * fan_in / 2.0, 1.0, resolution=0.1)


# Softplus ----------------------------------------------------------------------------------------------------


def test_softplus_and_its_slope_are_exact_to_the_last_digits():
    x = np.concatenate([np.linspace(-120.0, 10.0, 5_000), [-1e30, 1e4, 1e30]]).astype(np.float32)
    values = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(values)
        found = softplus(values)
    exact = _softplus(x.astype(np.float64))
    np.testing.assert_allclose(found, exact, rtol=2e-7, atol=1.2e-7)
    slope = 0.5 + 0.5 * np.tanh(0.5 * x.astype(np.float64))
    np.testing.assert_allclose(tape.gradient(found, values), slope, atol=3e-7)


def test_softplus_has_its_slope_at_zero_too():
    zero = tf.constant(0.0)
    with tf.GradientTape() as tape:
        tape.watch(zero)
        found = softplus(zero)
    assert float(tape.gradient(found, zero)) == pytest.approx(0.5, abs=1e-7)


# Refusals ----------------------------------------------------------------------------------------------------


def test_images_that_two_strides_do_not_divide_are_refused():
    assert feature_map((8, 12, 3), 2, 5) == (2, 3, 5)
    assert feature_map((7, 5, 3), 1, 5) == (7, 5, 5)
    for shape in ((6, 8, 1), (8, 6, 1)):
        with pytest.raises(ValueError, match=f"stride 2 need sides divisible by 4, found {shape[0]} x {shape[1]}"):
            LeafConvEncoder(1, shape, (2, 3), 2, 5, 4)
        with pytest.raises(ValueError, match="sides divisible by 4"):
            LeafConvDecoder(1, shape, (2, 3), 2, num_heads=1)

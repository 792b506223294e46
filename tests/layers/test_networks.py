import numpy as np
import pytest
import tensorflow as tf

from tests.reference import networks
from tfstruct.layers import grouped
from tfstruct.layers.mlp import MLP, BlockOptions, BottomUp, NodeHeads, TopDown

pytestmark = pytest.mark.usefixtures("float64")

BATCH_NORM = pytest.mark.parametrize("batch_norm", [True, False])
TRAINING = pytest.mark.parametrize("training", [True, False])
ADJACENCY = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]], bool)


@pytest.fixture(params=["loop", "batched"])
def matmul_branch(request, monkeypatch):
    monkeypatch.setattr(grouped, "batched_matmul_is_fast", lambda: request.param == "batched")


def _options(batch_norm, activation="tanh"):
    return BlockOptions(activation, batch_norm, momentum=0.9, epsilon=1e-2)


@TRAINING
@BATCH_NORM
@pytest.mark.parametrize("activation", ["elu", "relu"])
@pytest.mark.parametrize("leading", [(5,), (3, 5)])
def test_mlp_is_its_twin(leading, activation, batch_norm, training, rng, run):
    layer = MLP((4, 3), 2, _options(batch_norm, activation), name="net")
    layer.build((None, 6))
    networks.randomize(layer, rng)
    x = rng.normal(size=[*leading, 6])
    expected = networks.mlp(x, networks.named_weights(layer), activation, epsilon=1e-2, training=training)
    found = run(lambda x: layer(x, training=training), tf.constant(x))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@BATCH_NORM
def test_hidden_layers_have_a_bias_only_without_normalisation(batch_norm):
    layer = MLP((4, 3), 2, _options(batch_norm), name="net")
    layer.build((None, 6))
    paths = {path for path in networks.named_weights(layer) if path.endswith("bias")}
    assert paths == ({"output/bias"} if batch_norm else {"dense_0/bias", "dense_1/bias", "output/bias"})


@TRAINING
@BATCH_NORM
@pytest.mark.parametrize("leading", [(5,), (3, 5)])
@pytest.mark.usefixtures("matmul_branch")
def test_bottom_up_is_its_twin(leading, batch_norm, training, rng, run):
    layer = BottomUp(3, 2, 4, _options(batch_norm), name="net")
    layer.build((None, 6))
    networks.randomize(layer, rng)
    features = rng.normal(size=[*leading, 6])
    weights = networks.named_weights(layer)
    expected = networks.bottom_up(features, weights, 3, "tanh", epsilon=1e-2, training=training)
    found = run(lambda x: layer(x, training=training), tf.constant(features))
    for part, values in zip(found, expected, strict=True):
        assert part.shape == (*leading, 3, 2)
        np.testing.assert_allclose(part, np.stack(values, axis=-2), rtol=1e-10, atol=1e-12)


@TRAINING
@BATCH_NORM
@pytest.mark.parametrize("nodes", [(1, 3), (3,)])
@pytest.mark.usefixtures("matmul_branch")
def test_top_down_is_its_twin(nodes, batch_norm, training, rng, run):
    layer = TopDown(ADJACENCY, nodes, 2, 5, _options(batch_norm), name="net")
    layer.build()
    networks.randomize(layer, rng)
    inputs = [rng.normal(size=[3, 4, 2 * int(ADJACENCY[node].sum())]) for node in nodes]
    weights = networks.named_weights(layer)
    found = run(lambda *inputs: layer(list(inputs), training=training), *map(tf.constant, inputs))
    for place, node in enumerate(nodes):
        expected = networks.top_down(
            inputs[place], weights, node, place, len(nodes), "tanh", epsilon=1e-2, training=training
        )
        for part, values in zip(found, expected, strict=True):
            assert part.shape == (3, 4, len(nodes), 2)
            np.testing.assert_allclose(part[..., place, :], values, rtol=1e-10, atol=1e-12)


def test_top_down_has_the_weights_of_separate_networks():
    layer = TopDown(ADJACENCY, (1, 3), 2, 5, _options(False))
    layer.build()
    # 2 and 4 inputs to 5 hidden units; a bias each; 5 -> 2 and 2 -> 4 with biases.
    assert layer.count_params() == (2 + 4) * 5 + 2 * 5 + 2 * (5 * 2 + 2 + 2 * 4 + 4)


# Bug seen: log variances cut off, so that those beyond the limit had no gradient to come back by.
def test_means_and_log_variances_level_off_with_a_slope(rng):
    layer = NodeHeads(2, 3, name="net")
    layer.build((None, 2, 4))
    networks.randomize(layer, rng)
    inputs = tf.constant(3e3 * rng.normal(size=[50, 2, 4]))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        outputs = layer(inputs)
        totals = [tf.reduce_sum(tf.abs(values)) for values in outputs]
    for values, total, (start, end) in zip(outputs, totals, (layer.loc_limits, layer.log_variance_limits), strict=True):
        far = np.abs(values.numpy()) > start
        assert far.mean() > 0.1
        assert np.abs(values.numpy()).max() <= end
        slopes = tape.gradient(total, inputs).numpy()
        assert np.all(np.any(slopes != 0.0, axis=-1)[np.all(far, axis=-1)])


@pytest.mark.usefixtures("matmul_branch")
def test_grouped_matmul_is_a_loop_over_groups(rng, run):
    inputs, kernel = rng.normal(size=[2, 3, 4, 5]), rng.normal(size=[4, 5, 6])
    expected = np.stack([inputs[..., group, :] @ kernel[group] for group in range(4)], axis=-2)
    found = run(grouped.grouped_matmul, tf.constant(inputs), tf.constant(kernel))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.usefixtures("matmul_branch")
def test_ragged_matmul_is_a_loop_over_groups(rng, run):
    widths = (3, 1, 4)
    inputs, kernels = [rng.normal(size=[2, 3, w]) for w in widths], [rng.normal(size=[w, 5]) for w in widths]
    expected = np.stack([x @ kernel for x, kernel in zip(inputs, kernels, strict=True)], axis=-2)
    found = run(lambda *flat: grouped.ragged_matmul(flat[:3], flat[3:]), *map(tf.constant, inputs + kernels))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.usefixtures("matmul_branch")
def test_gradients_of_the_grouped_products_are_those_of_a_loop(rng):
    inputs = [tf.constant(rng.normal(size=[2, width])) for width in (3, 1)]
    kernels = [tf.constant(rng.normal(size=[width, 5])) for width in (3, 1)]
    upstream = rng.normal(size=[2, 2, 5])
    with tf.GradientTape() as tape:
        tape.watch([inputs, kernels])
        total = tf.reduce_sum(upstream * grouped.ragged_matmul(inputs, kernels))
    to_inputs, to_kernels = tape.gradient(total, [inputs, kernels])
    for group in range(2):
        expected = upstream[:, group] @ kernels[group].numpy().T
        np.testing.assert_allclose(to_inputs[group], expected, rtol=1e-12)
        np.testing.assert_allclose(to_kernels[group], inputs[group].numpy().T @ upstream[:, group], rtol=1e-12)


def test_grouped_dense_is_one_dense_layer_for_each_group(rng, run):
    layer = grouped.GroupedDense(3, 2, name="net")
    layer.build((None, 3, 4))
    networks.randomize(layer, rng)
    kernel, bias = (np.asarray(variable) for variable in (layer.kernel, layer.bias))
    x = rng.normal(size=[5, 3, 4])
    expected = np.stack([x[:, group] @ kernel[group] + bias[group] for group in range(3)], axis=1)
    np.testing.assert_allclose(run(layer, tf.constant(x)), expected, rtol=1e-12)


# Fans counted over all groups together would make the weights too small.
def test_grouped_dense_starts_with_the_glorot_limit_of_one_group():
    layer = grouped.GroupedDense(50, 20)
    layer.build((None, 50, 30))
    limit = np.sqrt(6.0 / 50.0)
    largest = np.abs(np.asarray(layer.kernel)).max()
    assert 0.999 * limit < largest <= limit
    np.testing.assert_array_equal(layer.bias, 0.0)


@TRAINING
@pytest.mark.parametrize("shape", [(6, 2, 3), (4, 6, 2, 3)])
def test_normalization_is_its_twin_over_all_leading_axes(shape, training, rng, run):
    layer = grouped.Normalization([2, 3], momentum=0.75, epsilon=1e-2, synchronized=False, name="net")
    layer.build()
    networks.randomize(layer, rng)
    weights = networks.below(networks.named_weights(layer), "normalization")
    x = rng.normal(size=shape)
    flat = x.reshape(*shape[:-2], 6)
    expected = networks.batch_norm(flat, weights, epsilon=1e-2, training=training).reshape(shape)
    np.testing.assert_allclose(
        run(lambda x: layer(x, training=training), tf.constant(x)), expected, rtol=1e-10, atol=1e-12
    )


def test_normalization_moves_its_averages_by_the_momentum_and_only_in_training(rng):
    layer = grouped.Normalization([3], momentum=0.75, epsilon=1e-2, synchronized=False, name="net")
    layer.build()
    networks.randomize(layer, rng)
    before = networks.below(networks.named_weights(layer), "normalization")
    x = rng.normal(size=[4, 6, 3])
    layer(tf.constant(x), training=False)
    for name, value in networks.below(networks.named_weights(layer), "normalization").items():
        np.testing.assert_array_equal(value, before[name])
    layer(tf.constant(x), training=True)
    after = networks.below(networks.named_weights(layer), "normalization")
    for name, statistic in (("moving_mean", x.mean((0, 1))), ("moving_variance", x.var((0, 1)))):
        np.testing.assert_allclose(after[name], 0.75 * before[name] + 0.25 * statistic, rtol=1e-10)


def test_flatten_and_split_are_inverse_and_keep_the_order(rng, run):
    x = rng.normal(size=[5, 2, 3])
    flat = run(grouped.flatten_last_two, tf.constant(x))
    np.testing.assert_array_equal(flat, x.reshape(5, 6))
    np.testing.assert_array_equal(run(lambda flat: grouped.split_last(flat, 2), flat), x)


# Layer normalisation and bounded variances --------------------------------------------------------------------------


@pytest.mark.parametrize("features", [(4,), (3, 4)])
def test_layer_normalisation_takes_mean_and_variance_of_each_group_of_each_row(features, rng, run):
    layer = grouped.LayerNormalization(features, epsilon=1e-2, name="net")
    layer.build()
    networks.randomize(layer, rng)
    x = rng.normal(size=[2, 5, *features])
    weights, expected = networks.named_weights(layer), np.empty_like(x)
    for index in np.ndindex(x.shape[:-1]):
        row = x[index]
        scaled = (row - row.mean()) / np.sqrt(np.mean((row - row.mean()) ** 2) + 1e-2)
        group = index[2:]
        expected[index] = weights["gamma"][group] * scaled + weights["beta"][group]
    np.testing.assert_allclose(run(layer, tf.constant(x)), expected, rtol=1e-10, atol=1e-12)


def test_networks_with_layer_normalisation_normalise_in_place_of_a_bias_and_know_no_batch(rng):
    options = BlockOptions("tanh", batch_norm=False, layer_norm=True, epsilon=1e-2)
    for layer, inputs in (
        (MLP((4, 3), 2, options, name="net"), rng.normal(size=[5, 6])),
        (BottomUp(3, 2, 4, options, name="net"), rng.normal(size=[5, 6])),
        (TopDown(ADJACENCY, (1,), 2, 4, options, name="net"), [rng.normal(size=[5, 2])]),
    ):
        layer.build((None, 6))
        networks.randomize(layer, rng)
        paths = networks.named_weights(layer)
        assert any(path.endswith("gamma") for path in paths)
        assert not any("moving" in path for path in paths)
        hidden_biases = [path for path in paths if path.endswith("bias") and path.startswith(("dense", "bias"))]
        assert hidden_biases == []
        whole = tf.nest.flatten(layer(inputs, training=True))
        part = tf.nest.flatten(layer(tf.nest.map_structure(lambda rows: rows[:2], inputs), training=True))
        for found, expected in zip(part, whole, strict=True):
            np.testing.assert_allclose(found, expected[:2], rtol=1e-10)
        twice = tf.nest.flatten(layer(tf.nest.map_structure(lambda rows: rows, inputs)))
        np.testing.assert_array_equal(twice[0], whole[0])


@pytest.mark.parametrize("kind", ["bottom_up", "top_down"])
def test_bounded_log_variances_are_a_tanh_and_keep_a_slope(kind, rng):
    options, bound = BlockOptions("tanh", batch_norm=False), 3.0
    if kind == "bottom_up":
        make = lambda value: BottomUp(2, 2, 4, options, log_variance_bound=value, name="net")  # noqa: E731
    else:
        make = lambda value: TopDown(ADJACENCY, (1,), 2, 4, options, log_variance_bound=value, name="net")  # noqa: E731
    free, bounded = make(0.0), make(bound)
    for layer in (free, bounded):
        layer.build((None, 6))
    networks.randomize(free, rng)
    bounded.set_weights(free.get_weights())
    x = rng.normal(size=[5, 6]) if kind == "bottom_up" else [rng.normal(size=[5, 2])]
    for factor in (1.0, 4.0):
        weights = [factor * weight for weight in free.get_weights()]
        free.set_weights(weights)
        bounded.set_weights(weights)
        loc, log_variance = free(x)
        found_loc, found = bounded(x)
        np.testing.assert_array_equal(found_loc, loc)
        inside = np.abs(log_variance) <= free.heads.log_variance_limits[0]
        expected = bound * np.tanh(log_variance.numpy() / bound)
        np.testing.assert_allclose(found.numpy()[inside], expected[inside], rtol=1e-10)
        assert np.abs(found).max() <= bound
    assert np.abs(log_variance).max() > bound

import itertools
import re

import numpy as np
import pytest
import tensorflow as tf

from tests.reference import flow as twin
from tests.reference import networks
from tfstruct.layers import made
from tfstruct.layers.made import MADE, check_masks, make_masks, resolve_order

pytestmark = pytest.mark.usefixtures("float64")

CONTEXT = pytest.mark.parametrize("context_dim", [0, 2])
ORDERS = pytest.mark.parametrize("order", ["forward", "reversed", (2, 0, 3, 1)], ids=str)
PERMUTATION = (2, 0, 3, 1)  # not its own inverse


def _network(rng, dim=4, hidden_units=(6, 5), **kwargs):
    """A network whose weights are all random."""
    network = MADE(dim, hidden_units, name="net", **kwargs)
    network.build()
    networks.randomize(network, rng)
    return network


def _context(rng, context_dim, *leading):
    return (tf.constant(rng.normal(size=[*leading, context_dim])),) if context_dim else ()


def _connections(masks):
    """Which input a path leads from to which output, by walking along all units."""
    reached = [{source} for source in range(len(masks[0]))]
    for mask in masks:
        reached = [{unit for at in units for unit in np.flatnonzero(mask[at])} for units in reached]
    result = np.zeros([len(masks[0]), masks[-1].shape[1]], bool)
    for source, targets in enumerate(reached):
        result[source, list(targets)] = True
    return result


# Orders ------------------------------------------------------------------------------------------------------


def test_an_order_gives_the_place_of_every_dimension():
    np.testing.assert_array_equal(resolve_order("forward", 4), [0, 1, 2, 3])
    np.testing.assert_array_equal(resolve_order("reversed", 4), [3, 2, 1, 0])
    np.testing.assert_array_equal(resolve_order(PERMUTATION, 4), PERMUTATION)
    np.testing.assert_array_equal(resolve_order(np.array(PERMUTATION), 4), PERMUTATION)
    np.testing.assert_array_equal(resolve_order("reversed", 1), [0])


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("backward", "must be one of forward, reversed or a permutation, found 'backward'"),
        ((0, 1, 1), r"must be a permutation of 0..2, found \[0, 1, 1\]"),
        ((1, 2, 3), r"must be a permutation of 0..2, found \[1, 2, 3\]"),
        ((0, 1, -1), r"found \[0, 1, -1\]"),
        ((0, 1), r"must be a permutation of 0..2, found \[0, 1\]"),
        ((0, 1, 2, 3), r"must be a permutation of 0..2, found \[0, 1, 2, 3\]"),
        (((0, 1, 2),), r"found \[\[0, 1, 2\]\]"),
    ],
)
def test_an_order_that_is_none_is_refused(order, message):
    with pytest.raises(ValueError, match=message):
        resolve_order(order, 3)
    with pytest.raises(ValueError, match=message):
        MADE(3, (4,), order=order)


# Masks -------------------------------------------------------------------------------------------------------


def test_masks_of_three_dimensions_written_out():
    first, last = make_masks(np.array([0, 1, 2]), (3,), has_context=True)
    np.testing.assert_array_equal(first, np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0]], bool))
    np.testing.assert_array_equal(last, np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1]], bool))
    first, last = make_masks(np.array([2, 0, 1]), (2,), has_context=False)
    np.testing.assert_array_equal(first, np.array([[0, 0], [1, 1], [0, 1]], bool))
    np.testing.assert_array_equal(last, np.array([[1, 0, 1], [1, 0, 0]], bool))


@pytest.mark.parametrize("has_context", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 5, 16])
def test_every_output_is_connected_to_every_earlier_input_and_to_no_other(dim, has_context, rng):
    for hidden_units in ((dim,), (2 * dim + 1,), (dim, dim), (dim + 3, dim, 5 * dim)):
        places = rng.permutation(dim)
        masks = make_masks(places, hidden_units, has_context)
        assert [mask.shape for mask in masks] == list(itertools.pairwise((dim, *hidden_units, dim)))
        np.testing.assert_array_equal(_connections(masks), places[:, np.newaxis] < places)
        check_masks(masks, places)


@pytest.mark.parametrize("has_context", [False, True])
@pytest.mark.parametrize("dim", [2, 5, 16])
def test_layers_narrower_than_the_input_keep_to_the_order_and_serve_every_output(dim, has_context, rng):
    for hidden_units in ((1,), (max(1, dim // 2),), (2 * dim, max(1, dim // 3)), (max(1, dim // 3), dim)):
        places = rng.permutation(dim)
        masks = make_masks(places, hidden_units, has_context)
        assert not np.any(_connections(masks) & (places[:, np.newaxis] >= places))
        check_masks(masks, places)
        served = masks[-1].any(axis=0)
        np.testing.assert_array_equal(served, np.ones(dim, bool) if has_context else places > 0)


@pytest.mark.parametrize("has_context", [False, True])
def test_every_forbidden_connection_is_found_and_named(has_context):
    places = np.array(PERMUTATION)
    masks = make_masks(places, (5, 6, 4), has_context)
    num_planted = np.zeros(4, int)
    for layer, mask in enumerate(masks):
        for planted in np.argwhere(~mask):
            wrong = [part.copy() for part in masks]
            wrong[layer][tuple(planted)] = True
            bad = _connections(wrong) & (places[:, np.newaxis] >= places)
            if not bad.any():
                continue
            num_planted[layer] += 1
            with pytest.raises(ValueError, match="do not keep to the order") as error:
                check_masks(wrong, places)
            output, its_place, source, other_place = map(int, re.findall(r"\d+", str(error.value)))
            assert bad[source, output]
            assert (its_place, other_place) == (places[output], places[source])
    assert np.all(num_planted >= 6)


def test_an_input_that_reaches_its_own_output_is_found():
    places = np.array([1, 0])
    with pytest.raises(ValueError, match=r"output 0 \(place 1\) see input 0 \(place 1\)"):
        check_masks([np.array([[True], [True]]), np.array([[True, False]])], places)


def test_a_forbidden_path_is_found_however_many_there_are():
    # 256**8 paths are zero in 64 bits.
    masks = [np.ones(shape, bool) for shape in [(1, 256), *[(256, 256)] * 7, (256, 1)]]
    with pytest.raises(ValueError, match="output 0"):
        check_masks(masks, np.array([0]))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_building_checks_the_masks(layer, monkeypatch):
    right = made.make_masks

    def wrong(*args):
        masks = right(*args)
        masks[layer] = np.ones_like(masks[layer])
        return masks

    MADE(4, (6, 5), context_dim=1).build()
    monkeypatch.setattr(made, "make_masks", wrong)
    with pytest.raises(ValueError, match="do not keep to the order"):
        MADE(4, (6, 5), context_dim=1).build()


# The network -------------------------------------------------------------------------------------------------


@CONTEXT
@ORDERS
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_the_network_is_its_twin(activation, order, context_dim, rng):
    for dim, hidden_units, outputs in ((4, (6, 6), 2), (4, (3,), 1), (4, (4, 8, 2), 3)):
        network = _network(
            rng, dim, hidden_units, order=order, activation=activation, context_dim=context_dim, outputs_per_dim=outputs
        )
        x, context = rng.normal(size=[5, dim]), _context(rng, context_dim, 5)
        found = network(tf.constant(x), *context)
        assert len(found) == outputs
        weights = networks.named_weights(network)
        for row in range(5):
            own = context[0][row].numpy() if context else None
            expected = twin.made(x[row], weights, order, activation, own, outputs)
            np.testing.assert_allclose([part[row] for part in found], expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("context_dim", [0, 3])
def test_a_network_of_one_dimension_is_its_twin(context_dim, rng):
    network, context = _network(rng, 1, (3, 2), context_dim=context_dim), _context(rng, context_dim, 2)
    found = network(tf.constant(rng.normal(size=[2, 1])), *context)
    for row in range(2):
        own = context[0][row].numpy() if context else None
        expected = twin.made(np.zeros(1), networks.named_weights(network), "forward", "relu", own)
        np.testing.assert_allclose([part[row] for part in found], expected, rtol=1e-10)
    assert np.array_equal(found[0][0], found[0][1]) == (context_dim == 0)


@CONTEXT
@ORDERS
def test_the_jacobian_of_every_output_has_exact_zeros_where_the_order_forbids_and_nowhere_else(order, context_dim, rng):
    network = _network(rng, order=order, activation="tanh", context_dim=context_dim, outputs_per_dim=3)
    x, context = rng.normal(size=[7, 4]), _context(rng, context_dim, 7)
    places = np.array(twin.places_of(order, 4))
    allowed = places[:, np.newaxis] > places  # [output, input]
    for part in range(3):
        jacobian = twin.jacobian(lambda x, part=part: network(x, *context)[part], x)
        np.testing.assert_array_equal(jacobian != 0.0, np.broadcast_to(allowed, [7, 4, 4]))


@CONTEXT
@ORDERS
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_with_jacobian_is_the_call_and_its_derivatives_by_reverse_mode(activation, order, context_dim, rng):
    network = _network(rng, 4, (6, 5, 3), order=order, activation=activation, context_dim=context_dim)
    x, context = rng.normal(size=[7, 4]), _context(rng, context_dim, 7)
    outputs, jacobians = network.with_jacobian(tf.constant(x), *context)
    for part, (output, jacobian) in enumerate(zip(outputs, jacobians, strict=True)):
        np.testing.assert_allclose(output, network(tf.constant(x), *context)[part], rtol=1e-12)
        expected = twin.jacobian(lambda x, part=part: network(x, *context)[part], x)
        np.testing.assert_allclose(np.swapaxes(jacobian, 1, 2), expected, rtol=1e-10, atol=1e-13)
        np.testing.assert_array_equal(np.swapaxes(jacobian, 1, 2) != 0.0, expected != 0.0)


@ORDERS
def test_every_output_depends_on_the_context(order, rng):
    network = _network(rng, order=order, activation="tanh", context_dim=2)
    x, (context,) = tf.constant(rng.normal(size=[7, 4])), _context(rng, 2, 7)
    for part in range(2):
        jacobian = twin.jacobian(lambda context, part=part: network(x, context)[part], context)
        assert jacobian.shape == (7, 4, 2)
        assert np.all(jacobian != 0.0)


@ORDERS
def test_without_a_context_the_first_output_in_the_order_is_constant(order, rng):
    network = _network(rng, order=order, activation="tanh")
    first = list(twin.places_of(order, 4)).index(0)
    for output in network(tf.constant(rng.normal(size=[7, 4]))):
        constant = np.all(output == output[:1], axis=0)
        np.testing.assert_array_equal(constant, np.arange(4) == first)


@pytest.mark.parametrize("leading", [(2, 3, 5), (3, 5), (1, 5), (5,), (1,), ()], ids=str)
def test_a_context_with_fewer_leading_axes_is_broadcast(leading, rng):
    network = _network(rng, context_dim=2)
    x, (context,) = tf.constant(rng.normal(size=[2, 3, 5, 4])), _context(rng, 2, *leading)
    whole = tf.broadcast_to(context, [2, 3, 5, 2])
    for found, expected in zip(network(x, context), network(x, whole), strict=True):
        assert found.shape == (2, 3, 5, 4)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert not np.allclose(found[0, 0, 0], found[0, 0, 1])
    narrow, wide = (network.with_jacobian(x, values)[1] for values in (context, whole))
    for found, expected in zip(narrow, wide, strict=True):
        assert found.shape == (2, 3, 5, 4, 4)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_single_vector_is_a_batch_of_one(rng):
    network = _network(rng, context_dim=2)
    x, (context,) = tf.constant(rng.normal(size=[1, 4])), _context(rng, 2, 1)
    for method in (network, network.with_jacobian):
        pairs = zip(tf.nest.flatten(method(x[0], context[0])), tf.nest.flatten(method(x, context)), strict=True)
        for found, expected in pairs:
            np.testing.assert_allclose(found, expected[0], rtol=1e-12)


@pytest.mark.parametrize("method", ["__call__", "with_jacobian"])
def test_a_context_of_the_wrong_kind_is_refused(method, rng):
    x, (context,) = tf.zeros([5, 4], tf.float64), _context(rng, 2, 5)
    with pytest.raises(ValueError, match="built for a context of 2 features, found 0"):
        getattr(_network(rng, context_dim=2), method)(x)
    with pytest.raises(ValueError, match="built for a context of 0 features, found 2"):
        getattr(_network(rng), method)(x, context)


@pytest.mark.parametrize(
    ("dim", "hidden_units", "kwargs", "message"),
    [
        (0, (3,), {}, "dim=0"),
        (2, (), {}, r"hidden_units=\(\)"),
        (2, (3, 0), {}, r"hidden_units=\(3, 0\)"),
        (2, (3,), {"outputs_per_dim": 0}, "outputs_per_dim=0"),
        (2, (3,), {"context_dim": -1}, "context_dim=-1"),
    ],
)
def test_bad_sizes_are_refused(dim, hidden_units, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MADE(dim, hidden_units, **kwargs)


def test_the_last_kernel_starts_small_by_the_output_scale():
    for scale in (0.1, 0.5):
        network = MADE(30, (40, 50), context_dim=7, output_scale=scale)
        network.build()
        for kernel, fans, factor in zip(network.kernels, (30 + 40, 40 + 50, 50 + 60), (1.0, 1.0, scale), strict=True):
            largest = np.abs(np.asarray(kernel)).max()
            assert 0.98 < largest / (factor * np.sqrt(6.0 / fans)) <= 1.0 + 1e-6
        largest = np.abs(np.asarray(network.context_kernel)).max()
        assert 0.95 < largest / np.sqrt(6.0 / (7 + 40)) <= 1.0 + 1e-6
        for bias in network.biases:
            np.testing.assert_array_equal(bias, 0.0)

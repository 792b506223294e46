import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special

from tests.reference import flow as twin
from tests.reference import networks
from tfstruct.bijectors import inverse_autoregressive
from tfstruct.bijectors.inverse_autoregressive import InverseAutoregressive
from tfstruct.layers.made import MADE

pytestmark = pytest.mark.usefixtures("float64")

tfd = tfp.distributions

PERMUTATION = (2, 0, 3, 1)
ORDERS = pytest.mark.parametrize("order", ["forward", "reversed", PERMUTATION], ids=str)
CONTEXT = pytest.mark.parametrize("context_dim", [0, 3])
BIAS = 0.7


def _network(rng, order="forward", dim=4, context_dim=0, scale=0.5, activation="tanh", **kwargs):
    network = MADE(dim, (6, 5), order=order, context_dim=context_dim, activation=activation, name="net", **kwargs)
    network.build()
    networks.randomize(network, rng, scale)
    return network


def _context(rng, context_dim, *leading):
    return tf.constant(rng.normal(size=[*leading, context_dim])) if context_dim else None


def _step(network, context=None, gate_bias=BIAS):
    return InverseAutoregressive(network, context, gate_bias=gate_bias)


def _three(rng, context_dim=0):
    """Networks of three steps in orders of their own."""
    return [_network(rng, order, context_dim=context_dim) for order in ("forward", "reversed", PERMUTATION)]


def _chain(steps, context=None):
    return inverse_autoregressive.chain([_step(network, context) for network in steps])


# One step ----------------------------------------------------------------------------------------------------


@CONTEXT
@ORDERS
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_a_step_is_its_twin(activation, order, context_dim, rng):
    network = _network(rng, order, context_dim=context_dim, activation=activation)
    x, context, weights = rng.normal(size=[5, 4]), _context(rng, context_dim, 5), networks.named_weights(network)
    y, log_slopes = _step(network, context).forward_and_log_slopes(tf.constant(x))
    z = rng.normal(size=[5, 4])
    inverse = _step(network, context).inverse(tf.constant(z))
    for row in range(5):
        own = None if context is None else context[row].numpy()
        expected = twin.step_forward(x[row], weights, order, activation, BIAS, own)
        np.testing.assert_allclose(y[row], expected[0], rtol=1e-10)
        np.testing.assert_allclose(log_slopes[row], expected[1], rtol=1e-10)
        solved = twin.step_inverse(z[row], weights, order, activation, BIAS, own)
        np.testing.assert_allclose(inverse[row], solved, rtol=1e-10, atol=1e-12)


@CONTEXT
@ORDERS
def test_the_jacobian_is_triangular_with_exact_zeros_and_the_slopes_on_its_diagonal(order, context_dim, rng):
    step = _step(_network(rng, order, context_dim=context_dim), _context(rng, context_dim, 7))
    x = tf.constant(rng.normal(size=[7, 4]))
    jacobian = twin.jacobian(step.forward, x)
    places = np.array(twin.places_of(order, 4))
    allowed = np.broadcast_to(places[:, np.newaxis] >= places, [7, 4, 4])
    np.testing.assert_array_equal(jacobian != 0.0, allowed)
    _, log_slopes = step.forward_and_log_slopes(x)
    np.testing.assert_allclose(np.diagonal(jacobian, axis1=1, axis2=2), np.exp(log_slopes), rtol=1e-12)
    _, log_det = step.forward_and_log_det(x)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian).logabsdet, rtol=1e-10, atol=1e-12)
    assert log_det.numpy().std() > 0.01


def test_a_step_of_two_dimensions_written_out():
    def network(x):
        first, second = x[..., :1], x[..., 1:]
        return tf.concat([2.0 * second, 3.0 + 0.0 * first], -1), tf.concat([second, 0.0 * first - 1.0], -1)

    step = InverseAutoregressive(network, order="reversed", gate_bias=0.5)
    y, log_det = step.forward_and_log_det(tf.constant([[0.3, -0.2]], tf.float64))
    first, second = special.expit(0.3), special.expit(-0.5)
    np.testing.assert_allclose(y, [[first * 0.3 + (1 - first) * -0.4, second * -0.2 + (1 - second) * 3.0]], rtol=1e-12)
    np.testing.assert_allclose(log_det, [np.log(first) + np.log(second)], rtol=1e-12)
    again = InverseAutoregressive(network, order="reversed", gate_bias=0.5)
    np.testing.assert_allclose(again.inverse(y), [[0.3, -0.2]], rtol=1e-12)


def test_the_default_gate_bias_is_two(rng):
    network, x = _network(rng), tf.constant(rng.normal(size=[5, 4]))
    found = InverseAutoregressive(network).forward_and_log_det(x)
    for one, two in zip(found, _step(network, gate_bias=2.0).forward_and_log_det(x), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_large_gate_bias_is_the_identity(rng):
    x = tf.constant(rng.normal(size=[5, 4]))
    y, log_det = _step(_network(rng), gate_bias=60.0).forward_and_log_det(x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_allclose(log_det, 0.0, atol=1e-24)
    np.testing.assert_allclose(_step(_network(rng), gate_bias=60.0).inverse(x), x, rtol=1e-15)


def test_the_context_changes_all_entries_of_a_step_both_ways(rng):
    network, x = _network(rng, context_dim=3), tf.constant(rng.normal(size=[5, 4]))
    first, second = (_step(network, _context(rng, 3, 5)) for _ in range(2))
    for one, two in zip(first.forward_and_log_slopes(x), second.forward_and_log_slopes(x), strict=True):
        assert np.all(np.abs(one - two) > 1e-6)
    assert np.all(np.abs(first.inverse(x) - second.inverse(x)) > 1e-6)


@pytest.mark.parametrize("leading", [(3, 5), (5,), (1,), ()], ids=str)
def test_a_context_with_fewer_leading_axes_serves_both_directions(leading, rng):
    network, context, x = _network(rng, context_dim=3), _context(rng, 3, *leading), rng.normal(size=[3, 5, 4])
    whole = tf.broadcast_to(context, [3, 5, 3])
    y, log_det = _step(network, context).forward_and_log_det(tf.constant(x))
    assert log_det.shape == (3, 5)
    for k, b in np.ndindex(3, 5):
        one, its_log_det = _step(network, whole[k, b][tf.newaxis]).forward_and_log_det(x[k, b][np.newaxis])
        np.testing.assert_allclose(y[k, b], one[0], rtol=1e-12)
        np.testing.assert_allclose(log_det[k, b], its_log_det[0], rtol=1e-12)
    np.testing.assert_allclose(_step(network, context).inverse(tf.identity(y)), x, rtol=1e-10, atol=1e-12)


# Inverse -----------------------------------------------------------------------------------------------------


@CONTEXT
@ORDERS
def test_a_new_object_inverts_a_step(order, context_dim, rng):
    network, context = _network(rng, order, context_dim=context_dim), _context(rng, context_dim, 5)
    x = rng.normal(size=[5, 4])
    y = _step(network, context).forward(tf.constant(x)).numpy()
    assert np.all(np.abs(y - x) > 1e-4)
    np.testing.assert_allclose(_step(network, context).inverse(tf.constant(y)), x, rtol=1e-10)
    z = _step(network, context).inverse(tf.constant(x)).numpy()
    np.testing.assert_allclose(_step(network, context).forward(tf.constant(z)), x, rtol=1e-10)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_values_come_from_the_weights_of_the_moment_and_not_from_a_cache(direction, rng):
    networks_, x = _three(rng), tf.constant(rng.normal(size=[5, 4]))
    flow = _chain(networks_)
    if direction == "inverse":
        y, back = flow.forward(x), inverse_autoregressive.inverse_and_log_slopes
    else:
        y, back = flow.inverse(x), inverse_autoregressive.forward_and_log_slopes
    for network in networks_:
        networks.randomize(network, rng)
    found = back(flow, y)
    for one, two in zip(found, back(_chain(networks_), tf.identity(y)), strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.all(np.abs(found[0] - x) > 1e-6)


@ORDERS
def test_the_jacobian_of_the_inverse_is_the_inverse_jacobian(order, rng):
    network, context = _network(rng, order, context_dim=3), _context(rng, 3, 5)
    x = rng.normal(size=[5, 4])
    y = _step(network, context).forward(tf.constant(x)).numpy()
    forward = twin.jacobian(lambda x: _step(network, context).forward(x), x)
    backward = twin.jacobian(lambda y: _step(network, context).inverse(y), y)
    np.testing.assert_allclose(backward, np.linalg.inv(forward), rtol=1e-10, atol=1e-14)


def test_gradients_of_the_inverse_are_those_of_central_differences(rng):
    networks_, y = _three(rng, 3), rng.normal(size=[5, 4])
    context, weigh = _context(rng, 3, 5).numpy(), rng.normal(size=[2, 5, 4])

    def total(y, context):
        x, log_slopes = inverse_autoregressive.inverse_and_log_slopes(_chain(networks_, context), y)
        return tf.reduce_sum(weigh[0] * x + weigh[1] * log_slopes)

    variables = [variable for network in networks_ for variable in network.variables]
    with tf.GradientTape() as tape:
        watched = tf.constant(y), tf.constant(context)
        tape.watch(watched)
        value = total(*watched)
    to_y, to_context, *to_weights = tape.gradient(value, [*watched, *(variable.value for variable in variables)])
    step = 1e-6
    move = rng.normal(size=y.shape)
    numeric = (total(y + step * move, context) - total(y - step * move, context)) / (2 * step)
    assert np.sum(to_y * move) == pytest.approx(float(numeric), rel=1e-6)
    move = rng.normal(size=context.shape)
    numeric = (total(y, context + step * move) - total(y, context - step * move)) / (2 * step)
    assert np.sum(to_context * move) == pytest.approx(float(numeric), rel=1e-6)
    moves, sides, start = [rng.normal(size=v.shape) for v in variables], [], [v.numpy() for v in variables]
    for side in (step, -step):
        for variable, value, move in zip(variables, start, moves, strict=True):
            variable.assign(value + side * move)
        sides.append(float(total(y, context)))
    analytic = sum(np.sum(gradient * move) for gradient, move in zip(to_weights, moves, strict=True))
    assert analytic == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-6)
    assert abs(analytic) > 0.1


def test_forward_takes_one_pass_and_inverse_one_for_each_dimension(rng):
    network, x, calls = _network(rng, dim=5), tf.constant(rng.normal(size=[2, 5])), []

    def counted(x):
        calls.append(x)
        return network(x)

    for method, expected in (("forward_and_log_slopes", 1), ("forward_and_log_det", 1), ("forward", 1), ("inverse", 5)):
        calls.clear()
        getattr(InverseAutoregressive(counted, order=network.order), method)(tf.identity(x))
        assert len(calls) == expected, method


# Chains ------------------------------------------------------------------------------------------------------


@CONTEXT
def test_a_chain_applies_its_first_step_first_and_adds_log_determinants(context_dim, rng):
    networks_, context = _three(rng, context_dim), _context(rng, context_dim, 5)
    x = tf.constant(rng.normal(size=[5, 4]))
    y, total = x, 0.0
    for network in networks_:
        y, log_slopes = _step(network, context).forward_and_log_slopes(y)
        total += log_slopes
    found, its_total = inverse_autoregressive.forward_and_log_slopes(_chain(networks_, context), x)
    np.testing.assert_array_equal(found, y)
    np.testing.assert_array_equal(its_total, total)
    jacobian = twin.jacobian(lambda x: _chain(networks_, context).forward(x), x)
    assert np.all(jacobian != 0.0)
    np.testing.assert_allclose(np.sum(its_total, axis=-1), np.linalg.slogdet(jacobian).logabsdet, rtol=1e-10)
    again, at_base = inverse_autoregressive.inverse_and_log_slopes(_chain(networks_, context), tf.identity(y))
    np.testing.assert_allclose(again, x, rtol=1e-10)
    np.testing.assert_allclose(at_base, total, rtol=1e-10)


@CONTEXT
def test_the_methods_of_the_library_agree_with_the_primitives(context_dim, rng):
    networks_, context = _three(rng, context_dim), _context(rng, context_dim, 5)
    x = tf.constant(rng.normal(size=[5, 4]))
    y, log_slopes = inverse_autoregressive.forward_and_log_slopes(_chain(networks_, context), x)
    log_det = np.sum(log_slopes, axis=-1)
    make = lambda: _chain(networks_, context)  # noqa: E731
    np.testing.assert_allclose(make().forward(x), y, rtol=1e-12)
    np.testing.assert_allclose(make().inverse(tf.identity(y)), x, rtol=1e-10)
    np.testing.assert_allclose(make().forward_log_det_jacobian(x, event_ndims=1), log_det, rtol=1e-10)
    np.testing.assert_allclose(make().inverse_log_det_jacobian(tf.identity(y), event_ndims=1), -log_det, rtol=1e-10)
    np.testing.assert_allclose(make().forward_log_det_jacobian(x, event_ndims=2), log_det.sum(), rtol=1e-10)
    step = _step(networks_[1], context)
    np.testing.assert_allclose(
        step.inverse_log_det_jacobian(x, event_ndims=1),
        -_step(networks_[1], context).forward_and_log_det(_step(networks_[1], context).inverse(x))[1],
        rtol=1e-10,
    )
    with pytest.raises(ValueError, match="event_ndims"):
        step.forward_log_det_jacobian(x, event_ndims=0)


def test_a_transformed_density_is_that_of_the_base_less_the_log_determinant(rng):
    networks_, x = _three(rng), tf.constant(rng.normal(size=[5, 4]))
    base = tfd.MultivariateNormalDiag(tf.zeros([4], tf.float64), tf.fill([4], tf.constant(1.3, tf.float64)))
    y, log_slopes = inverse_autoregressive.forward_and_log_slopes(_chain(networks_), x)
    found = tfd.TransformedDistribution(base, _chain(networks_)).log_prob(y)
    np.testing.assert_allclose(found, base.log_prob(x) - tf.reduce_sum(log_slopes, -1), rtol=1e-10)


def test_a_flowed_density_in_two_dimensions_integrates_to_one():
    rng = np.random.default_rng(3)  # weights that bend the plane and leave no ridge thinner than the grid
    networks_ = [_network(rng, order, 2, 3, scale=1.0) for order in ("forward", "reversed")]
    flow = _chain(networks_, _context(rng, 3, 1))
    axis = np.linspace(-7.0, 7.0, 401)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    base = tfd.MultivariateNormalDiag(tf.zeros([2], tf.float64), tf.ones([2], tf.float64))
    density = np.exp(tfd.TransformedDistribution(base, flow).log_prob(tf.constant(points)))
    assert density.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=1e-3)
    log_det = np.sum(inverse_autoregressive.inverse_and_log_slopes(flow, tf.constant(points[::97]))[1], axis=-1)
    assert log_det.std() > 0.5


# The score ---------------------------------------------------------------------------------------------------


def _pushed_and_expected(networks_, context, x):
    """A chain's `push_score` of a normal density at x, and the same from the inverse and reverse mode."""
    base = tfd.MultivariateNormalDiag(tf.constant([0.3, -0.2, 0.0, 1.0], tf.float64), tf.ones([4], tf.float64) * 1.3)
    pushed = inverse_autoregressive.push_score(_chain(networks_, context), x, (base.loc - x) / 1.69)
    y, log_slopes = inverse_autoregressive.forward_and_log_slopes(_chain(networks_, context), x)
    with tf.GradientTape() as tape:
        y = tf.identity(y)
        tape.watch(y)
        base_x, at_base = inverse_autoregressive.inverse_and_log_slopes(_chain(networks_, context), y)
        log_prob = base.log_prob(base_x) - tf.reduce_sum(at_base, axis=-1)
    return pushed, (y, log_slopes, tape.gradient(log_prob, y))


@CONTEXT
@ORDERS
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_the_score_pushed_through_a_step_is_that_of_the_flowed_density(activation, order, context_dim, rng):
    network = _network(rng, order, context_dim=context_dim, activation=activation)
    x, context = tf.constant(rng.normal(size=[5, 4])), _context(rng, context_dim, 5)
    for found, expected in zip(*_pushed_and_expected([network], context, x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("leading", [(3, 5), (5,)], ids=str)
def test_the_score_pushed_through_a_chain_is_that_of_the_flowed_density(leading, rng):
    networks_, x = _three(rng, 3), tf.constant(rng.normal(size=[3, 5, 4]))
    found, expected = _pushed_and_expected(networks_, _context(rng, 3, *leading), x)
    for one, two in zip(found, expected, strict=True):
        assert one.shape == (3, 5, 4)
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-11)


# Ways of running ---------------------------------------------------------------------------------------------


def test_both_directions_and_their_gradients_are_the_same_compiled(compiled, rng):
    networks_ = [_network(rng, (1, 2, 0), 3, 2)]

    def both(x, context):
        with tf.GradientTape() as tape:
            tape.watch([x, context])
            y, log_slopes = inverse_autoregressive.forward_and_log_slopes(_chain(networks_, context), x)
            z, at_base = inverse_autoregressive.inverse_and_log_slopes(_chain(networks_, context), tf.sin(x))
            total = tf.reduce_sum(tf.sin(y) + tf.cos(log_slopes) + tf.sin(z) + tf.cos(at_base))
        variables = [variable.value for network in networks_ for variable in network.variables]
        return [y, log_slopes, z, at_base, *tape.gradient(total, [x, context, *variables])]

    x, context = tf.constant(rng.normal(size=[5, 3])), _context(rng, 2, 5)
    for one, two in zip(compiled(both, x, context), both(x, context), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-12)


def test_the_number_of_rows_may_be_unknown_while_tracing(rng):
    network = _network(rng, context_dim=3)
    signature = [tf.TensorSpec([None, None, 4], tf.float64), tf.TensorSpec([None, 3], tf.float64)]

    @tf.function(autograph=False, input_signature=signature)
    def inverse(y, context):
        return _step(network, context).inverse(y)

    for batch in (5, 2):
        y, context = tf.constant(rng.normal(size=[3, batch, 4])), _context(rng, 3, batch)
        np.testing.assert_allclose(inverse(y, context), _step(network, context).inverse(y), rtol=1e-12)
    assert inverse.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("logit", [-30.0, 30.0])
def test_extreme_gates_stay_finite_and_exact_in_float32(logit):
    shift = [3e12, -1.0, 2e-3]
    network = MADE(3, (4,), dtype="float32")
    network.build()
    for variable in network.variables:
        variable.assign(tf.zeros_like(variable))
    network.biases[-1].assign([*shift, logit, logit, logit])
    x, score = np.array([[0.5, -2.0, 1e-3]]), np.array([[1.0, -3.0, 2.0]], np.float32)
    with tf.GradientTape(persistent=True) as tape:
        single = tf.constant(x, tf.float32)
        tape.watch(single)
        y, log_slopes = _step(network, gate_bias=0.0).forward_and_log_slopes(single)
        back = _step(network, gate_bias=0.0).inverse(single)
    gate, rest = special.expit(logit), special.expit(-logit)
    np.testing.assert_allclose(y, gate * x + rest * np.array(shift), rtol=1e-5)
    np.testing.assert_allclose(log_slopes, np.full([1, 3], special.log_expit(logit)), rtol=1e-5)
    np.testing.assert_allclose(back, x + np.exp(-logit) * (x - np.array(shift)), rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(y, single), np.full([1, 3], gate), rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(back, single), np.full([1, 3], 1.0 / gate), rtol=1e-5)
    pushed = _step(network, gate_bias=0.0).push_score(single, tf.constant(score))
    for one, two in zip(pushed, (y, log_slopes, score / gate), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)


def test_float32_agrees_with_float64(rng):
    double = [_network(rng, order, context_dim=3) for order in ("forward", "reversed")]
    single = [_network(rng, order, context_dim=3, dtype="float32") for order in ("forward", "reversed")]
    for one, two in zip(single, double, strict=True):
        for variable, value in zip(one.variables, two.variables, strict=True):
            variable.assign(value.numpy().astype(np.float32))
    x, context = tf.constant(rng.normal(size=[50, 4])), _context(rng, 3, 50)
    for function in (inverse_autoregressive.forward_and_log_slopes, inverse_autoregressive.inverse_and_log_slopes):
        found = function(_chain(single, tf.cast(context, tf.float32)), tf.cast(x, tf.float32))
        for one, two in zip(found, function(_chain(double, context), x), strict=True):
            assert one.dtype == tf.float32
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)

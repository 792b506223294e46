import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tests.reference.monte_carlo import assert_mean_close
from tfstruct.distributions.gated_gaussian_network import GatedGaussianNetwork, gated_parents
from tfstruct.distributions.gaussian import gaussian_log_prob

N, D = 4, 2


class LinearGaussian:
    """loc_i = b_i + sum_j parents_ij @ W_ij with constant variances, and the joint normal it amounts to."""

    def __init__(self, rng, num_nodes=N, node_dim=D):
        self.weights = rng.normal(size=[num_nodes, num_nodes, node_dim, node_dim])
        self.bias = rng.normal(size=[num_nodes, node_dim])
        self.log_variance = 0.5 * rng.normal(size=[num_nodes, node_dim])

    def conditional(self, parents):
        loc = tf.einsum("...ijd,ijde->...ie", parents, tf.cast(self.weights, parents.dtype))
        loc += tf.cast(self.bias, parents.dtype)
        return loc, tf.cast(self.log_variance, parents.dtype) + tf.zeros_like(loc)

    def moments(self, gates, adjacency):
        """Mean and covariance of z, flattened; slowly, from (I - A) z = b + e."""
        num_nodes, node_dim = self.bias.shape
        size = num_nodes * node_dim
        system, bias, variance = np.eye(size), np.zeros(size), np.ones(size)
        for child in range(num_nodes):
            rows = slice(child * node_dim, (child + 1) * node_dim)
            if not any(adjacency[child]):
                continue
            bias[rows], variance[rows] = self.bias[child], np.exp(self.log_variance[child])
            for parent in range(num_nodes):
                if adjacency[child][parent]:
                    columns = slice(parent * node_dim, (parent + 1) * node_dim)
                    system[rows, columns] -= gates[child][parent] * self.weights[child, parent].T
        inverse = np.linalg.inv(system)
        return inverse @ bias, inverse @ np.diag(variance) @ inverse.T


FULL = np.tri(N, k=-1, dtype=bool)
CHAIN = np.eye(N, k=-1, dtype=bool)
COLLIDER = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], bool)


def _gates(rng, adjacency):
    return np.where(adjacency, rng.uniform(size=adjacency.shape), 0.0)


def _nonlinear(weights):
    """tanh units per edge, so that an edge has weights of its own: [N, N, D, 2D]."""

    def conditional(parents):
        out = tf.reduce_sum(tf.tanh(tf.einsum("...ijd,ijde->...ije", parents, weights) + 0.3), axis=-2)
        return tf.split(out, 2, axis=-1)

    return conditional


def test_two_nodes_by_hand():
    network = GatedGaussianNetwork(
        lambda parents: (3.0 * tf.reduce_sum(parents, -2) + 1.0, tf.fill([2, 1], np.log(4.0).astype(np.float64))),
        gates=tf.constant([[0.0, 0.0], [0.5, 0.0]], tf.float64),
        node_dim=1,
    )
    # z0 = 2 under N(0, 1); z1 = 5 under N(3 * 0.5 * 2 + 1, 4): exponents -2 and -1/8, log 2 for the scale.
    expected = -np.log(2 * np.pi) - 2.0 - np.log(2.0) - 0.125
    assert float(network.log_prob([[2.0], [5.0]])) == pytest.approx(expected, abs=1e-14)
    np.testing.assert_allclose(
        network.node_log_prob([[2.0], [5.0]]),
        [-0.5 * np.log(2 * np.pi) - 2.0, -0.5 * np.log(2 * np.pi) - np.log(2.0) - 0.125],
        atol=1e-14,
    )


@pytest.mark.parametrize("log_variance", [-18.4, -2.0, 0.0, 3.0])
def test_gaussian_log_prob_is_scipys(log_variance):
    value = 0.7 + np.array([-2.0, 0.0, 0.5, 3.0]) * np.exp(0.5 * log_variance)
    expected = scipy.stats.norm.logpdf(value, 0.7, np.exp(0.5 * log_variance))
    found = gaussian_log_prob(tf.constant(value), tf.constant(0.7, tf.float64), tf.constant(log_variance, tf.float64))
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("adjacency", [FULL, CHAIN, COLLIDER, np.zeros([N, N], bool)])
def test_a_linear_network_is_the_joint_normal(adjacency, rng, run):
    linear, gates = LinearGaussian(rng), _gates(rng, adjacency)
    mean, covariance = linear.moments(gates, adjacency)
    z = rng.normal(size=[7, N, D])

    def log_prob(z, gates):
        return GatedGaussianNetwork(linear.conditional, gates, D, adjacency).log_prob(z)

    expected = scipy.stats.multivariate_normal(mean, covariance).logpdf(z.reshape(7, N * D))
    np.testing.assert_allclose(run(log_prob, tf.constant(z), tf.constant(gates)), expected, rtol=1e-10)


def test_float32_agrees_with_float64_at_ordinary_and_hard_points(rng):
    linear, gates = LinearGaussian(rng), _gates(rng, FULL)
    for log_variance in (0.0, -18.4):  # a scale of 1e-4
        linear.log_variance[:] = log_variance
        noise = rng.normal(size=[5, N, D])
        z = GatedGaussianNetwork(linear.conditional, tf.constant(gates), D).sample_from_noise(noise)
        z = tf.cast(tf.cast(z, tf.float32), tf.float64)
        results, gradients = [], []
        for dtype in (tf.float64, tf.float32):
            value = tf.cast(z, dtype)
            with tf.GradientTape() as tape:
                tape.watch(value)
                result = GatedGaussianNetwork(linear.conditional, tf.cast(gates, dtype), D).log_prob(value)
            assert result.dtype == dtype
            results.append(result.numpy())
            gradients.append(tape.gradient(result, value).numpy())
        assert np.all(np.isfinite(gradients[1]))
        if log_variance == 0.0:
            np.testing.assert_allclose(results[1], results[0], rtol=1e-4)
            np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)
        else:
            # Values near 1 are spaced 6e-8 apart, a thousandth of the scale.
            np.testing.assert_allclose(results[1], results[0], rtol=5e-3)


@pytest.mark.parametrize("adjacency", [FULL, COLLIDER])
def test_samples_have_the_moments_of_the_joint_normal(adjacency, rng):
    linear, gates = LinearGaussian(rng), _gates(rng, adjacency)
    linear.weights *= 0.5
    mean, covariance = linear.moments(gates, adjacency)
    network = GatedGaussianNetwork(linear.conditional, tf.constant(gates), D, adjacency)
    z = network.sample(100_000, seed=[0, 17]).numpy().reshape(-1, N * D)
    assert_mean_close(z, mean, resolution=0.1)
    centred = z - mean
    products = centred[:, :, np.newaxis] * centred[:, np.newaxis]
    # A gate that is forgotten moves some covariance by more than this.
    assert_mean_close(products, covariance, resolution=0.25)


def test_closed_gates_leave_a_product_of_independent_gaussians(rng):
    linear = LinearGaussian(rng)
    z = rng.normal(size=[3, N, D])
    network = GatedGaussianNetwork(linear.conditional, tf.zeros([N, N], tf.float64), D)
    loc, scale = linear.bias.copy(), np.exp(0.5 * linear.log_variance)
    loc[0], scale[0] = 0.0, 1.0
    np.testing.assert_allclose(network.log_prob(z), scipy.stats.norm.logpdf(z, loc, scale).sum(axis=(1, 2)), rtol=1e-12)


def test_a_node_without_possible_parents_is_standard_normal_whatever_the_conditional_says():
    def conditional(parents):
        return tf.fill([2, 1], np.float64(np.nan)), tf.fill([2, 1], np.float64(np.inf))

    network = GatedGaussianNetwork(conditional, tf.ones([2, 2], tf.float64), 1, np.zeros([2, 2], bool))
    assert float(network.log_prob([[1.0], [2.0]])) == pytest.approx(-np.log(2 * np.pi) - 2.5, abs=1e-14)
    np.testing.assert_array_equal(network.sample_from_noise(tf.constant([[1.0], [2.0]], tf.float64)), [[1.0], [2.0]])


@pytest.mark.parametrize(("child", "parent"), [(1, 0), (2, 0), (3, 1), (3, 2)])
def test_a_closed_gate_lets_exactly_no_gradient_through_its_edge(child, parent, rng):
    weights = tf.constant(rng.normal(size=[N, N, D, 2 * D]))
    z = tf.constant(rng.normal(size=[N, D]))
    for gate in (0.0, 1.0):
        gates = np.where(FULL, 0.7, 0.0)
        gates[child, parent] = gate
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([weights, z])
            network = GatedGaussianNetwork(_nonlinear(weights), tf.constant(gates), D)
            node = network.node_log_prob(z)[child]
        to_value = tape.gradient(node, z).numpy()[parent]
        to_weights = tape.gradient(node, weights).numpy()
        if gate == 0.0:
            np.testing.assert_array_equal(to_value, 0.0)
            np.testing.assert_array_equal(to_weights[child, parent], 0.0)
            assert all(np.all(to_weights[child, other] != 0.0) for other in range(child) if other != parent)
        else:
            assert np.all(to_value != 0.0)
            assert np.all(to_weights[child, parent] != 0.0)


def test_gates_on_impossible_edges_are_ignored(rng):
    linear = LinearGaussian(rng)
    z, noise = rng.normal(size=[3, N, D]), rng.normal(size=[3, N, D])
    gates = rng.uniform(0.2, 1.0, size=[N, N])
    for adjacency in (FULL, CHAIN, COLLIDER):
        everywhere = GatedGaussianNetwork(linear.conditional, tf.constant(gates), D, adjacency)
        masked = GatedGaussianNetwork(linear.conditional, tf.constant(np.where(adjacency, gates, 0.0)), D, adjacency)
        np.testing.assert_array_equal(everywhere.log_prob(z), masked.log_prob(z))
        np.testing.assert_array_equal(everywhere.sample_from_noise(noise), masked.sample_from_noise(noise))
        np.testing.assert_array_equal(everywhere.gates, np.where(adjacency, gates, 0.0))


def test_a_batch_of_gates_is_a_loop_over_them(rng):
    linear = LinearGaussian(rng)
    gates, z = np.stack([_gates(rng, FULL) for _ in range(3)]), rng.normal(size=[5, 3, N, D])
    batch = GatedGaussianNetwork(linear.conditional, tf.constant(gates), D)
    assert batch.batch_shape == [3]
    assert batch.event_shape == [N, D]
    assert batch.sample(5, seed=[0, 1]).shape == (5, 3, N, D)
    for place in range(3):
        single = GatedGaussianNetwork(linear.conditional, tf.constant(gates[place]), D)
        np.testing.assert_allclose(batch.log_prob(z)[:, place], single.log_prob(z[:, place]), rtol=1e-12)
        drawn = batch.sample_from_noise(z)[:, place]
        np.testing.assert_allclose(drawn, single.sample_from_noise(z[:, place]), rtol=1e-12)


def test_one_value_under_a_batch_of_gates_is_a_loop_over_them(rng):
    linear = LinearGaussian(rng)
    gates, z = np.stack([_gates(rng, FULL) for _ in range(3)]), rng.normal(size=[N, D])
    found = GatedGaussianNetwork(linear.conditional, tf.constant(gates), D).log_prob(z)
    expected = [float(GatedGaussianNetwork(linear.conditional, tf.constant(gate), D).log_prob(z)) for gate in gates]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_log_prob_of_draws_is_a_loop_over_single_draws(rng):
    network = GatedGaussianNetwork(_nonlinear(tf.constant(rng.normal(size=[N, N, D, 2 * D]))), _gates(rng, FULL), D)
    z = network.sample([3, 5], seed=[0, 17])
    assert z.shape == (3, 5, N, D)
    expected = [[float(network.log_prob(z[s, b])) for b in range(5)] for s in range(3)]
    np.testing.assert_allclose(network.log_prob(z), expected, rtol=1e-12)
    np.testing.assert_allclose(tf.reduce_sum(network.node_log_prob(z), -1), expected, rtol=1e-12)


def test_relabelling_nodes_with_their_adjacency_changes_nothing(rng):
    linear = LinearGaussian(rng)
    adjacency = COLLIDER  # nodes 0 and 1 may change places
    gates, z, order = _gates(rng, adjacency), rng.normal(size=[N, D]), [1, 0, 2, 3]
    before = GatedGaussianNetwork(linear.conditional, tf.constant(gates), D, adjacency).log_prob(z)
    linear.weights = linear.weights[np.ix_(order, order)]
    linear.bias, linear.log_variance = linear.bias[order], linear.log_variance[order]
    relabelled = gates[np.ix_(order, order)]
    after = GatedGaussianNetwork(linear.conditional, tf.constant(relabelled), D, adjacency[np.ix_(order, order)])
    np.testing.assert_allclose(after.log_prob(z[order]), before, rtol=1e-12)


def test_sampling_inverts_the_standardisation(rng):
    network = GatedGaussianNetwork(_nonlinear(tf.constant(rng.normal(size=[N, N, D, 2 * D]))), _gates(rng, FULL), D)
    noise = rng.normal(size=[6, N, D])
    z = network.sample_from_noise(tf.constant(noise))
    loc, log_variance = network.node_parameters(z)
    np.testing.assert_allclose((z - loc) * tf.exp(-0.5 * log_variance), noise, atol=1e-12)


def test_samples_are_the_same_however_they_are_computed(rng, compiled):
    weights, gates = rng.normal(size=[N, N, D, 2 * D]).astype(np.float32), _gates(rng, FULL).astype(np.float32)

    def draw(seed):
        return GatedGaussianNetwork(_nonlinear(tf.constant(weights)), tf.constant(gates), D).sample(6, seed=seed)

    np.testing.assert_allclose(compiled(draw, tf.constant([3, 17])), draw(tf.constant([3, 17])), rtol=1e-4, atol=1e-4)
    assert not np.allclose(compiled(draw, tf.constant([3, 17])), compiled(draw, tf.constant([3, 18])))


def test_the_density_of_a_nonlinear_pair_integrates_to_one():
    def conditional(parents):
        total = tf.reduce_sum(parents, -2)
        return 1.5 * tf.sin(2.0 * total), 0.7 * tf.cos(total) - 0.5

    network = GatedGaussianNetwork(conditional, tf.constant([[0.0, 0.0], [0.8, 0.0]], tf.float64), 1)
    axis = np.linspace(-9.0, 9.0, 721)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)[..., np.newaxis]
    total = np.exp(network.log_prob(grid).numpy()).sum() * (axis[1] - axis[0]) ** 2
    assert total == pytest.approx(1.0, abs=1e-10)


def test_gated_parents_scale_the_parent_of_each_child(rng):
    gates, value = rng.uniform(size=[3, 3]), rng.normal(size=[5, 3, 2])
    found = gated_parents(tf.constant(value), tf.constant(gates)).numpy()
    for b, child, parent in np.ndindex(5, 3, 3):
        np.testing.assert_array_equal(found[b, child, parent], gates[child, parent] * value[b, parent])


def _refused(gates, node_dim, adjacency, message):
    with pytest.raises(ValueError, match=message):
        GatedGaussianNetwork(lambda parents: None, gates, node_dim, adjacency)


def test_bad_arguments_are_refused():
    _refused(tf.zeros([2, 3]), 1, None, "gates must have shape")
    _refused(tf.zeros([3]), 1, None, "gates must have shape")
    _refused(tf.zeros([2, 2]), 0, None, "node_dim must be at least 1, found 0")
    _refused(tf.zeros([2, 2]), 1, np.zeros([3, 3]), "adjacency must have shape")
    _refused(tf.zeros([2, 2]), 1, [[0, 1], [1, 0]], "has a cycle")
    _refused(tf.zeros([2, 2]), 1, [[0, 1], [0, 0]], r"in the order \[1, 0\]")

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tests.reference import small
from tests.reference.monte_carlo import assert_mean_close
from tfstruct import random
from tfstruct.distributions.gaussian import fuse

pytestmark = pytest.mark.usefixtures("float64")

K, B = small.K, small.B


# The twin ----------------------------------------------------------------------------------------------------


@small.SHARED_TOP_DOWN
@small.EVERY_STRUCTURE
@pytest.mark.parametrize("variation", ["batch_norm", "no_batch_norm", "gaussian"])
def test_importance_terms_are_those_of_the_twin(structure, share_top_down, variation, rng):
    is_gaussian = variation == "gaussian"
    system = small.build(
        structure,
        rng,
        share_top_down=share_top_down,
        batch_norm=variation != "no_batch_norm",
        likelihood="gaussian" if is_gaussian else "bernoulli",
    )
    x, noise = small.images(rng, B, not is_gaussian), small.noise(system)
    twin, found = small.twin(system), small.terms(system, x, path=True)
    for k, b in np.ndindex(K, B):
        expected = twin.terms(x[b], noise[k, b])
        np.testing.assert_allclose(found.log_likelihood[k, b], expected.log_likelihood, rtol=1e-10)
        np.testing.assert_allclose(found.log_prior[k, b], expected.node_log_prior.sum(), rtol=1e-10)
        np.testing.assert_allclose(found.log_posterior[k, b], expected.node_log_posterior.sum(), rtol=1e-10)
        np.testing.assert_allclose(found.log_posterior_path[k, b], expected.node_log_posterior.sum(), rtol=1e-10)


@small.SHARED_TOP_DOWN
def test_importance_terms_at_fractional_gates_are_those_of_the_twin(share_top_down, rng, run):
    system = small.build("learned", rng, share_top_down=share_top_down)
    gates = np.where(system.adjacency, rng.uniform(size=[3, 3]), 0.0)
    x, noise, twin = small.images(rng, B), small.noise(system), small.twin(system, gates)
    found = run(lambda x, gates: small.terms(system, x, gates=gates), tf.constant(x), tf.constant(gates))
    for k, b in np.ndindex(K, B):
        expected = twin.terms(x[b], noise[k, b])
        np.testing.assert_allclose(found.log_likelihood[k, b], expected.log_likelihood, rtol=1e-10)
        np.testing.assert_allclose(found.log_prior[k, b], expected.node_log_prior.sum(), rtol=1e-10)
        np.testing.assert_allclose(found.log_posterior[k, b], expected.node_log_posterior.sum(), rtol=1e-10)


def test_float32_agrees_with_float64(rng):
    system = small.build("learned", rng)
    x = small.images(rng, B)
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")  # the fixture restores
    single = small.build("learned")
    small.assign(single, {path: value.astype(np.float32) for path, value in small.weights(system).items()})
    found, expected = small.terms(single, x.astype(np.float32)), small.terms(system, x)
    assert found.log_prior.dtype == tf.float32
    for one, two in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4)


@small.EVERY_STRUCTURE
def test_samples_are_decoded_ancestral_draws_of_the_prior(structure, rng):
    system = small.build(structure, rng)
    latent_key, pixel_key = random.split(small.KEY)
    noise = random.sample_normal(latent_key, 1, 5, [3, 2])[0].numpy().astype(np.float64)
    twin, z = small.twin(system), np.zeros([5, 3, 2])
    for row, node in np.ndindex(5, 3):
        loc, log_variance = twin.prior(node, z[row])
        z[row, node] = loc + np.exp(0.5 * log_variance) * noise[row, node]
    expected = system.decode(tf.constant(z.reshape(5, 6)))["x_mean"].numpy()
    found = system.sample(5, seed=small.KEY)
    np.testing.assert_allclose(found["x_mean"], expected, rtol=1e-10)
    unit = random.uniform(pixel_key, [5, 4]).numpy().reshape(5, 2, 2)
    np.testing.assert_array_equal(found["x"], (unit < expected).astype(float))


@small.EVERY_STRUCTURE
def test_encode_takes_every_node_at_the_means_of_its_parents(structure, rng):
    system = small.build(structure, rng)
    x, twin = small.images(rng, B), small.twin(system)
    found = system.encode(tf.constant(x))
    for b in range(B):
        terms = twin.terms(x[b], np.zeros([3, 2]))
        np.testing.assert_allclose(found["z_mean"][b], terms.z.reshape(-1), rtol=1e-10)
        # With zero noise log q is that of the scales alone.
        scale = found["z_std"].numpy()[b]
        expected = terms.node_log_posterior.sum()
        np.testing.assert_allclose(-np.log(scale).sum() - 3 * np.log(2 * np.pi), expected, rtol=1e-10)
    np.testing.assert_allclose(system(tf.constant(x)), system.decode(found["z_mean"])["x_mean"], rtol=1e-12)


def test_reconstructions_are_decoded_posterior_draws(rng):
    system = small.build("learned", rng)
    x, noise, twin = small.images(rng, B), small.noise(system, 1)[0], small.twin(system)
    z = np.stack([twin.terms(x[b], noise[b]).z.reshape(-1) for b in range(B)])
    expected = system.decode(tf.constant(z))["x_mean"]
    np.testing.assert_allclose(system.reconstruct(tf.constant(x), seed=small.KEY), expected, rtol=1e-10)


# Special cases -----------------------------------------------------------------------------------------------


@small.SHARED_TOP_DOWN
def test_learned_gates_that_are_all_open_are_the_full_structure(share_top_down, rng):
    learned = small.build("learned", rng, share_top_down=share_top_down)
    learned.gates.logits.assign([3.0, 3.0, 3.0])
    full, x = small.build("full", share_top_down=share_top_down), small.images(rng, B)
    values = small.weights(learned)
    values.pop("gates/logits")
    small.assign(full, values)
    for one, two in zip(small.terms(learned, x)[:3], small.terms(full, x)[:3], strict=True):
        np.testing.assert_array_equal(one, two)


@small.SHARED_TOP_DOWN
def test_learned_gates_in_the_pattern_of_a_chain_are_the_chain(share_top_down, rng):
    learned = small.build("learned", rng, share_top_down=share_top_down)
    learned.gates.logits.assign([3.0, -3.0, 3.0])  # edges (1, 0), (2, 0), (2, 1)
    chain, x = small.build("chain", share_top_down=share_top_down), small.images(rng, B)
    values = small.weights(learned)
    values.pop("gates/logits")
    for path in [path for path in values if path.endswith("top_down_2/kernel_2") or path == "prior_top_down/kernel_2"]:
        values[path] = values[path][2:]  # the rows that read node 1, the second parent of node 2
    small.assign(chain, values)
    for one, two in zip(small.terms(learned, x)[:3], small.terms(chain, x)[:3], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)


def test_closed_gates_and_silent_prior_heads_are_the_independent_prior(rng):
    learned, x = small.build("learned", rng), small.images(rng, B)
    small.assign(
        learned,
        {
            path: np.zeros_like(value)
            for path, value in small.weights(learned).items()
            if path.startswith("prior_top_down/heads")
        },
    )
    found = small.terms(learned, x, gates=tf.zeros([3, 3], tf.float64))
    # Closed gates leave q its constant top-down factor; p is standard normal at the same z.
    twin, noise = small.twin(learned, np.zeros([3, 3])), small.noise(learned)
    for k, b in np.ndindex(K, B):
        z = twin.terms(x[b], noise[k, b]).z
        np.testing.assert_allclose(found.log_prior[k, b], scipy.stats.norm.logpdf(z).sum(), rtol=1e-12)


def test_a_top_down_message_without_precision_leaves_the_independent_model(rng):
    learned, independent, x = small.build("learned", rng), small.build("independent"), small.images(rng, B)
    values = small.weights(learned)
    small.assign(independent, {path: value for path, value in values.items() if path in small.weights(independent)})
    silent = {path: np.zeros_like(value) for path, value in values.items() if "top_down" in path and "/heads/" in path}
    for node in (1, 2):
        # Log variance 15, the limit: a precision of 3e-7 of the bottom-up one.
        silent[f"posterior_top_down_{node}/heads/parameters/bias"] = np.array([[0.0, 0.0, 15.0, 15.0]])
    small.assign(learned, silent)
    for one, two in zip(small.terms(learned, x)[:3], small.terms(independent, x)[:3], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4)
    assert not np.array_equal(small.terms(learned, x).log_posterior, small.terms(independent, x).log_posterior)


# Fusion and rates --------------------------------------------------------------------------------------------


def test_fusion_is_the_normalised_product_of_two_gaussian_densities(rng):
    first, second = rng.normal(size=[2, 20]), rng.normal(size=[2, 20])
    loc, log_variance = fuse(tuple(map(tf.constant, first)), tuple(map(tf.constant, second)))
    for place in range(20):
        points = np.array([-2.0, 0.3, 5.0])
        product = sum(
            scipy.stats.norm.logpdf(points, pair[0, place], np.exp(0.5 * pair[1, place])) for pair in (first, second)
        )
        fused = scipy.stats.norm.logpdf(points, loc[place], np.exp(0.5 * log_variance[place]))
        np.testing.assert_allclose(np.diff(product - fused), 0.0, atol=1e-10)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_fusion_is_finite_at_the_limits_of_the_log_variances(dtype):
    for one, two in ((-15.0, 15.0), (15.0, -15.0), (-15.0, -15.0), (15.0, 15.0)):
        pairs = tf.constant([[1.0, one], [3.0, two]], dtype)
        with tf.GradientTape() as tape:
            tape.watch(pairs)
            loc, log_variance = fuse((pairs[0, 0], pairs[0, 1]), (pairs[1, 0], pairs[1, 1]))
            total = loc + log_variance
        share = 1.0 / (1.0 + np.exp(one - two))
        rtol = 1e-5 if dtype == tf.float32 else 1e-12
        np.testing.assert_allclose(loc, share * 1.0 + (1 - share) * 3.0, rtol=rtol)
        np.testing.assert_allclose(log_variance, -np.log(np.exp(-one) + np.exp(-two)), rtol=rtol)
        assert np.all(np.isfinite(tape.gradient(total, pairs)))


@small.SHARED_TOP_DOWN
@small.EVERY_STRUCTURE
def test_node_rates_are_the_divergence_from_the_prior_given_the_sampled_parents(structure, share_top_down, rng):
    system = small.build(structure, rng, scale=0.3, share_top_down=share_top_down)
    x, twin, num = small.images(rng, 2), small.twin(system), 600
    noise = random.sample_normal(small.KEY, num, 2, [3, 2]).numpy().astype(np.float64)
    expected = np.array([[twin.node_divergences(x[b], noise[k, b]) for b in range(2)] for k in range(num)])
    single = np.array(
        [
            [(lambda t: t.node_log_posterior - t.node_log_prior)(twin.terms(x[b], noise[k, b])) for b in range(2)]
            for k in range(num)
        ]
    )
    found = system.node_rates(tf.constant(x), seed=small.KEY, num_samples=num).numpy()
    np.testing.assert_allclose(found, single.mean(axis=0), rtol=1e-10)
    # The one-sample ratios average to the analytic divergence at the same parents.
    assert_mean_close(single - expected, 0.0, resolution=0.5)


# The bug of vae-latent-structure#4 is a divergence from N(0, I) for every node: it would not move at all.
def test_a_shifted_parent_moves_the_rate_of_its_child_as_the_closed_form_says(rng):
    system = small.build("chain", rng, batch_norm=False, activation="linear")
    x, moved = small.images(rng, 1), []
    for shift in (0.0, 2.0):
        bias = small.weights(system)["bottom_up/heads/parameters/bias"].copy()
        bias[0, :2] += shift  # the mean of the root
        small.assign(system, {"bottom_up/heads/parameters/bias": bias})
        twin = small.twin(system)
        own = [part[1] for part in twin.bottom_up(x[0].reshape(-1))]
        noise = small.noise(system, 200, 1)[:, 0]
        rates = []
        for sample in noise:
            z = twin.terms(x[0], sample).z
            loc, log_variance = twin.posterior(1, z, own)
            # The prior of the child is linear in its parent: mean A z0 + b, written out from the weights.
            prior_loc, prior_log_variance = _linear_prior(small.weights(system), z[0])
            draw = loc + np.exp(0.5 * log_variance) * sample[1]
            log_q = scipy.stats.norm.logpdf(draw, loc, np.exp(0.5 * log_variance)).sum()
            log_p = scipy.stats.norm.logpdf(draw, prior_loc, np.exp(0.5 * prior_log_variance)).sum()
            rates.append(log_q - log_p)
        found = system.node_rates(tf.constant(x), seed=small.KEY, num_samples=200).numpy()[0, 1]
        assert found == pytest.approx(np.mean(rates), rel=1e-10)
        moved.append(found)
    assert abs(moved[1] - moved[0]) > 0.1


def _linear_prior(weights, parent):
    hidden = parent @ weights["prior_top_down/kernel_1"] + weights["prior_top_down/bias"][0]
    hidden = (
        hidden @ weights["prior_top_down/heads/projection/kernel"][0]
        + weights["prior_top_down/heads/projection/bias"][0]
    )
    both = (
        hidden @ weights["prior_top_down/heads/parameters/kernel"][0]
        + weights["prior_top_down/heads/parameters/bias"][0]
    )
    return both[:2], np.clip(both[2:], -15, 15)


def test_node_rates_add_up_to_the_rate_of_the_importance_terms(rng):
    system, x = small.build("learned", rng), small.images(rng, B)
    terms = small.terms(system, x)
    expected = (terms.log_posterior - terms.log_prior).numpy().mean(axis=0)
    found = system.node_rates(tf.constant(x), seed=small.KEY, num_samples=K).numpy()
    np.testing.assert_allclose(found.sum(axis=1), expected, rtol=1e-10)


# The layers' own tests bound each alone; a model whose networks were not told of the bound passed.
@small.SHARED_TOP_DOWN
def test_the_bound_on_log_variances_is_that_of_every_network(share_top_down, rng):
    system = small.build("full", rng, scale=20.0, share_top_down=share_top_down, log_variance_bound=0.5)
    x, gates = tf.constant(small.images(rng, B)), system.gates.hard()
    bottom_up = system._bottom_up(x, training=False)
    draw = system.posterior.draw(bottom_up, gates, tf.constant(small.noise(system)), training=False)
    _, of_prior = system.prior(gates).node_parameters(draw.z)
    for log_variance in (bottom_up[1], *[said[1] for said in draw.top_down[1:]], of_prior[..., 1:, :]):
        assert 0.49 < np.abs(log_variance).max() <= 0.5


# Construction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"num_latents": 7}, "multiple of model.num_nodes, found num_latents=7, num_nodes=3"),
        ({"num_latents": 0}, "model.num_latents must be at least 1, found 0"),
        ({"structure": "tree"}, "found 'tree'"),
        ({"structure": "tree", "adjacency": small.EXPLICIT}, "found 'tree'"),
        ({"adjacency": ((0, 1, 0), (1, 0, 0), (0, 0, 0))}, "has a cycle"),
        ({"adjacency": ((0, 1), (0, 0))}, r"must have shape \[3, 3\]"),
        ({"likelihood": "poisson"}, "found 'poisson'"),
    ],
)
def test_a_bad_config_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        small.build(**model)

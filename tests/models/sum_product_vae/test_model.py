"""Sum-product VAEs against a NumPy twin, exact leaf densities and every image that there is."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tests.reference import networks
from tests.reference import sum_product_vae as small
from tfstruct import random
from tfstruct.inference import likelihood, objectives
from tfstruct.inference.objectives import Draws
from tfstruct.models import presets, registry

KEY = random.key(17)
# SPVAE, tables 1 and 2: weights of the six models with MLP leaves, from the published logs.
PUBLISHED = {
    "spvae/mnist_continuous": 413_352,
    "spvae/svhn_continuous": 511_080,
    "spvae/cifar10_continuous": 511_080,
    "spvae/mnist_discrete": 310_024,
    "spvae/svhn_discrete": 461_480,
    "spvae/cifar10_discrete": 353_704,
    "dense_vae/mnist_continuous": 1_545_168,
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_the_published_numbers_of_weights_come_out(preset):
    model = registry.build(presets.get(preset))
    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == PUBLISHED[preset]


def test_the_structure_of_the_paper_comes_out():
    assert registry.build(presets.get("spvae/mnist_continuous")).structure_report()["circuit"] == {
        "regions": 100,
        "leaf_regions": 16,
        "internal_regions": 84,
        "partitions": 200,
        "leaves": 32,
        "products": 800,
        "sums": 167,
        "sum_weights": 1_576,
    }


def _noise(keys, num_samples, batch, model):
    shape = [model.leaves.num_vaes, model.leaves.latent_dim]
    return np.asarray(random.sample_normal(keys, num_samples, batch, shape), np.float64)


CASES = {
    "tiles": {},
    "one leaf a region": {"num_leaves": 1},
    "three leaves and sums": {"num_leaves": 3, "num_sums": 3},
    "plain": {"structure": "single", "num_leaves": 1},
    "mixture of VAEs": {"structure": "single", "num_leaves": 3},
    "mask read": {"mask_input": True},
    "random trees": {"structure": "random", "tree_depth": 2, "tree_repetitions": 2},
    "unequal tiles": {"delta": 2},
    "shared": {"leaf_vaes": "shared", "num_leaves": 3, "num_sums": 3, "products": "hadamard", "structure": "bisected"},
    "shared, cross products": {"leaf_vaes": "shared", "num_leaves": 3, "num_sums": 2},
    "shared mixture": {"leaf_vaes": "shared", "structure": "single", "num_leaves": 3},
    "shared, unequal tiles": {"leaf_vaes": "shared", "delta": 2, "structure": "bisected", "mask_input": True},
    "shared random trees": {"leaf_vaes": "shared", "structure": "random", "tree_depth": 2, "tree_repetitions": 2},
}
#: the two ways for leaves to have VAEs, with what goes with either
EVERY_KIND = {
    "separate": {},
    "shared": {"leaf_vaes": "shared", "products": "hadamard", "structure": "bisected"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("is_whole", [True, False])
def test_terms_are_those_of_the_twin(case, is_whole, rng):
    model = small.system(event_shape=(3, 2), **({"num_latents": 2} | CASES[case]))
    x = rng.integers(0, 2, size=(5, 3, 2)).astype(np.float32)
    observed = None if is_whole else rng.random(x.shape) < 0.5
    if observed is not None:
        observed[0], observed[1] = False, True
    found = model.terms(x, Draws(KEY, 3, observed=observed, path=True))
    expected = small.terms(model, x, _noise(KEY, 3, 5, model), observed=observed)
    if model.num_leaves == 1:
        expected = expected[..., 0]
    for one, two in zip(found[:3], expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.log_posterior_path, expected[2], rtol=1e-4, atol=1e-4)
    if found.composition is not None:
        leaves = (expected[0] + expected[1] - expected[2]).mean(axis=0)
        np.testing.assert_allclose(
            found.composition.circuit.log_prob(tf.constant(leaves, tf.float32)),
            small.root(model, leaves),
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_path_terms_have_a_gradient_through_the_latents_alone(kind, rng):
    model, x = small.system(**EVERY_KIND[kind]), tf.constant(small.every_image().reshape(16, -1))
    leaves, fill = model.leaves, tf.convert_to_tensor(model.pixel_mean)
    weigh = tf.constant(rng.normal(size=[model.num_leaves, 3, 16]), tf.float32)
    of_vaes = tf.reduce_sum(tf.reshape(weigh, [leaves.num_vaes, -1, 3, 16]), axis=1)
    with tf.GradientTape(persistent=True) as tape:
        draw = leaves.draw(x, KEY, 3, fill)
        path = tf.reduce_sum(weigh * draw.log_posterior_path)
        mean, precision = (part[:, tf.newaxis] for part in leaves.posterior(x, None, fill))
        score = tf.stop_gradient(precision * (mean - draw.z))
        through_latents = tf.reduce_sum(of_vaes[..., tf.newaxis] * score * draw.z)
    for variable in model.encoder.trainable_variables:
        found, expected = (tape.gradient(value, variable.value) for value in (path, through_latents))
        assert np.any(expected != 0.0), variable.path
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4, err_msg=variable.path)


def test_terms_of_real_pixels_are_those_of_the_twin(rng):
    model = small.system(likelihood="gaussian")
    x = rng.random((4, 2, 2)).astype(np.float32)
    found = model.terms(x, Draws(KEY, 2))
    for one, two in zip(found[:3], small.terms(model, x, _noise(KEY, 2, 4, model), small.gaussian), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["binomial", "categorical", "logistic_mixture"])
def test_encoders_of_grey_levels_read_them_in_unit_scale(name, rng):
    levels = rng.integers(0, 256, size=(4, 2, 2)).astype(np.float32)
    grey = small.system(likelihood=name)
    encoded = grey.encode(levels)
    inputs = levels.reshape(4, 4) / 255.0
    for leaf in range(grey.num_leaves):
        mean, root = small.mlp(grey.encoder, leaf, inputs[:, small.variables_of(grey, leaf)])
        np.testing.assert_allclose(encoded["z_mean"][:, leaf : leaf + 1], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            encoded["z_std"][:, leaf : leaf + 1], 1.0 / np.sqrt(1.0 + root**2), rtol=1e-4, atol=1e-5
        )
    assert np.all(np.isfinite(objectives.iwae(grey.terms(levels, Draws(KEY, 3))).bound))
    drawn = grey.sample(50, seed=KEY)
    assert np.all(np.asarray(drawn["x"]) == np.clip(np.rint(drawn["x"]), 0, 255))
    assert np.all((np.asarray(drawn["x_mean"]) >= 0) & (np.asarray(drawn["x_mean"]) <= 255))


# Exact densities --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=EVERY_KIND)
def exact(request):
    """A system whose leaves have one latent; all 16 images, their leaf densities and densities."""
    model = small.system(**EVERY_KIND[request.param])
    x = small.every_image()
    leaves = small.exact_leaves(model, x)
    return model, x, leaves, small.root(model, leaves)


def test_the_exact_densities_of_the_reference_sum_to_one(exact):
    assert np.exp(exact[3]).sum() == pytest.approx(1.0, abs=1e-9)


# Theorems 1 and 2 of the paper: bounds of leaves give bounds of the whole, and tighter ones tighter ones.
def test_local_bounds_give_a_bound_that_rises_with_the_number_of_samples(exact):
    model, x, leaves, log_prob = exact
    draws = 4_000 * model.leaves.leaves_per_vae**2  # bounds of leaves that share their samples vary together
    rows = tf.repeat(tf.constant(x), draws, axis=0)
    means = []
    for name, num_samples in (("elbo", 1), ("iwae", 2), ("iwae", 20)):
        terms = model.terms(rows, Draws(KEY, num_samples))
        bounds = objectives.get(name)(terms).bound.numpy().reshape(len(x), draws).astype(float)
        means.append(bounds.mean(axis=1))
        # 4 standard errors, at most 0.06 nats, beyond which a mean above the exact value would be seen.
        error = bounds.std(axis=1) / np.sqrt(draws)
        assert error.max() < 0.015
        np.testing.assert_array_less(means[-1] - 4.0 * error, log_prob)
    assert np.all(means[0] < means[1])
    assert np.all(means[1] < means[2])
    assert np.max(log_prob - means[0]) > 0.05
    assert np.max(log_prob - means[2]) < 0.05
    # Theorem 1 itself: exact local bounds, here by averaging many, through the circuit.
    terms = model.terms(x, Draws(KEY, 20_000))
    local = np.asarray(objectives.log_weights(terms)).mean(axis=0)
    np.testing.assert_array_less(local, leaves)
    np.testing.assert_array_less(small.root(model, local), log_prob)


def test_the_estimate_of_the_density_is_unbiased(exact):
    model, x, _, log_prob = exact
    draws = 20_000
    rows = tf.repeat(tf.constant(x), draws, axis=0)
    bounds = objectives.iwae(model.terms(rows, Draws(KEY, 2))).bound
    ratios = np.exp(bounds.numpy().astype(float).reshape(len(x), draws) - log_prob[:, np.newaxis])
    error = ratios.std(axis=1) / np.sqrt(draws)
    assert error.max() < 0.01  # relative: a bias of 4 % of p(x) would be seen
    np.testing.assert_array_less(np.abs(ratios.mean(axis=1) - 1.0), 4.0 * error)


def _estimate(model, x, observed=None, num_samples=2_000):
    keys = random.fold_in(KEY, tf.range(len(x)))
    return likelihood.estimate(
        lambda chunk: model.terms(x, Draws(chunk, 500, observed=observed)),
        keys,
        num_samples=num_samples,
        chunk=500,
        composition=model.composition,
    )


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("mask_input", [False, True])
def test_marginals_of_every_mask_are_the_sums_over_what_is_missing(mask_input, kind):
    model = small.system(mask_input=mask_input, **EVERY_KIND[kind])
    x = small.every_image()
    table = np.exp(small.root(model, small.exact_leaves(model, x)))
    flat = x.reshape(16, 4)
    for mask in flat.astype(bool):
        same = np.all((flat[:, np.newaxis] == flat) | ~mask, axis=-1)
        exact_marginal = np.log(same @ table)
        found = _estimate(model, x, np.broadcast_to(mask.reshape(2, 2), x.shape))
        # 4.5 standard errors, each its own: at most 0.2 nats, for most images a tenth of that.
        assert found.std_err.numpy().max() < 0.05
        np.testing.assert_array_less(np.abs(found.log_prob - exact_marginal), 4.5 * found.std_err + 1e-5)
        if not mask.any():
            np.testing.assert_allclose(found.log_prob, 0.0, atol=1e-6)
            np.testing.assert_array_equal(found.std_err, 0.0)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_missing_pixels_may_hold_anything(kind, rng):
    model = small.system(**EVERY_KIND[kind])
    x, observed = rng.integers(0, 2, size=(3, 2, 2)).astype(np.float32), rng.random((3, 2, 2)) < 0.5
    one = _estimate(model, x, observed, 500).log_prob
    np.testing.assert_array_equal(_estimate(model, np.where(observed, x, 9.0), observed, 500).log_prob, one)


def test_samples_follow_the_exact_densities(exact):
    model, x, _, log_prob = exact
    draws = 20_000
    drawn = model.sample(draws, seed=KEY)["x"].numpy().reshape(draws, 4)
    counts = np.bincount(drawn.astype(int) @ (2 ** np.arange(4)), minlength=16)
    expected = draws * np.exp(log_prob[np.argsort(x.reshape(16, 4) @ (2 ** np.arange(4)))])
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3


def _completions(model, x, log_prob, row, missing, num_samples):
    """P-value of completions of one image against the exact conditional."""
    draws, dims = 20_000, model.dims
    observed = np.ones(dims, bool)
    observed[list(missing)] = False
    keys = random.fold_in(KEY, tf.range(draws))
    rows = np.repeat(x[row : row + 1], draws, axis=0)
    mask = np.broadcast_to(observed.reshape(model.event_shape), rows.shape)
    drawn = []
    for start in range(0, draws, 2_000):
        part = slice(start, start + 2_000)
        found = model.inpaint(rows[part], mask[part], seed=keys[part], num_samples=num_samples)["x"]
        drawn.append(found.numpy().reshape(-1, dims))
    drawn = np.concatenate(drawn)
    np.testing.assert_array_equal(drawn[:, observed], rows.reshape(draws, dims)[:, observed])
    flat = x.reshape(-1, dims)
    possible = np.all(flat[:, observed] == flat[row, observed], axis=1)
    counts = np.array([np.all(drawn == image, axis=1).sum() for image in flat[possible]])
    assert counts.sum() == draws
    expected = np.exp(log_prob[possible])
    return stats.chisquare(counts, draws * expected / expected.sum()).pvalue


@pytest.mark.parametrize("missing", [(2, 3), (0, 1, 2, 3)])
def test_completions_follow_the_exact_conditional(exact, missing):
    model, x, _, log_prob = exact
    assert _completions(model, x, log_prob, 6, missing, 50) > 1e-3


# Leaves that are observed in part choose among their latents by weight.
@pytest.mark.parametrize(
    ("event_shape", "options"),
    [
        ((2, 2), {"structure": "single", "num_leaves": 3}),
        ((2, 2), {"structure": "single", "num_leaves": 3, "leaf_vaes": "shared"}),
        ((5,), {"structure": "random", "tree_depth": 2, "tree_repetitions": 2, "leaf_vaes": "shared"}),
        ((5,), {"structure": "random", "tree_depth": 2, "tree_repetitions": 2}),
    ],
)
def test_completions_of_leaves_observed_in_part_and_of_unequal_leaves_follow_the_exact_conditional(
    event_shape, options
):
    model = small.system(event_shape=event_shape, **options)
    x = small.every_image(event_shape)
    log_prob = small.root(model, small.exact_leaves(model, x))
    assert np.exp(log_prob).sum() == pytest.approx(1.0, abs=1e-9)
    assert _completions(model, x, log_prob, 6, (1, 3), 100) > 1e-3
    drawn = model.sample(20_000, seed=KEY)["x"].numpy().reshape(-1, model.dims)
    counts = np.array([np.all(drawn == image, axis=1).sum() for image in x.reshape(-1, model.dims)])
    assert stats.chisquare(counts, 20_000 * np.exp(log_prob) / np.exp(log_prob).sum()).pvalue > 1e-3


# A latent of a component that was not chosen would do where components lie close together.
@pytest.mark.parametrize(
    ("options", "missing"),
    [({"structure": "bisected"}, (2, 3)), ({"structure": "single"}, (1, 3)), ({"structure": "single"}, (0, 1, 2, 3))],
    ids=["whole tiles", "part of a tile", "the only tile"],
)
def test_completions_and_samples_tell_components_apart(options, missing):
    model = small.system(leaf_vaes="shared", products="hadamard", **options)
    networks.randomize(model.decoder, np.random.default_rng(4), 1.6)
    model.components.mean.assign(np.broadcast_to([[[-1.3], [1.3]]], model.components.mean.shape))
    model.components.log_excess.assign(np.full(model.components.log_excess.shape, 0.5))
    x = small.every_image()
    log_prob = small.root(model, small.exact_leaves(model, x))
    assert np.exp(log_prob).sum() == pytest.approx(1.0, abs=1e-9)
    assert _completions(model, x, log_prob, 6, missing, 400) > 1e-3
    drawn = model.sample(20_000, seed=KEY)["x"].numpy().reshape(-1, 4)
    counts = np.array([np.all(drawn == image, axis=1).sum() for image in x.reshape(-1, 4)])
    assert stats.chisquare(counts, 20_000 * np.exp(log_prob) / np.exp(log_prob).sum()).pvalue > 1e-3


def test_regions_contribute_what_sums_to_the_density_and_their_conditionals_are_ratios(exact):
    model, x, leaves, log_prob = exact
    found = model.region_log_prob(tf.constant(leaves, tf.float32))
    np.testing.assert_allclose(
        found["contribution"].numpy().sum(axis=1) + found["structure"].numpy(), log_prob, rtol=1e-5
    )
    for region in range(4):
        without, alone = leaves.copy(), np.zeros_like(leaves)
        own = slice(2 * region, 2 * region + 2)
        without[:, own] = 0.0
        alone[:, own] = leaves[:, own]
        np.testing.assert_allclose(
            found["conditional"][:, region], log_prob - small.root(model, without), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(found["marginal"][:, region], small.root(model, alone), rtol=1e-4, atol=1e-5)
    assert np.all(found["structure"] < 1e-5)


@pytest.mark.parametrize("gap", [50.0, 95.0, 300.0])
def test_conditionals_of_regions_are_right_where_one_leaf_has_no_share_left_in_float32(gap):
    model = small.system()
    leaves = np.random.default_rng(2).normal(size=[3, model.num_leaves])
    leaves[:, 1] -= gap
    without = leaves.copy()
    without[:, :2] = 0.0
    found = model.region_log_prob(tf.constant(leaves, tf.float32))
    expected = small.root(model, leaves) - small.root(model, without)
    np.testing.assert_allclose(found["conditional"][:, 0], expected, rtol=1e-4, atol=1e-4)


def test_an_impossible_region_has_no_density_given_the_rest():
    model = small.system()
    leaves = np.full([1, model.num_leaves], -1.0, np.float32)
    leaves[0, :2] = -np.inf
    found = model.region_log_prob(tf.constant(leaves))
    assert np.isneginf(found["conditional"][0, 0])
    assert np.isneginf(found["marginal"][0, 0])
    assert np.all(np.isnan(found["conditional"][0, 1:]))


def test_reconstructions_weigh_leaves_by_their_posterior_and_decoding_by_their_prior(exact):
    model, x, _, _ = exact
    terms = model.terms(x, Draws(KEY, 1))
    noise = _noise(KEY, 1, 16, model)
    weights = np.asarray(objectives.log_weights(terms)[0], np.float64)
    for prior, found in ((False, model.reconstruct(x, seed=KEY)), (True, None)):
        values = np.zeros_like(weights) if prior else weights
        used = np.zeros_like(weights)
        for leaf in range(model.num_leaves):  # by differences of the recursion
            step = np.eye(model.num_leaves)[leaf] * 1e-5
            used[:, leaf] = (small.root(model, values + step) - small.root(model, values - step)) / 2e-5
        z = np.zeros([16, model.leaves.num_vaes])
        expected = np.zeros([16, 4])
        for leaf in range(model.num_leaves):
            (variable,), vae = small.variables_of(model, leaf), leaf // model.leaves.leaves_per_vae
            mean, root = small.mlp(model.encoder, vae, x.reshape(16, 4)[:, [variable]])
            z[:, vae] = (mean + noise[0, :, vae] / np.sqrt(1.0 + root**2))[:, 0]
            (logits,) = small.mlp(model.decoder, vae, z[:, vae : vae + 1])
            expected[:, variable] += used[:, leaf] / (1.0 + np.exp(-logits[:, 0]))
        found = model.decode(tf.constant(z, tf.float32))["x_mean"] if prior else found
        np.testing.assert_allclose(np.asarray(found).reshape(16, 4), expected, rtol=1e-4, atol=1e-5)

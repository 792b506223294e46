import itertools

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from scipy import special

from tests.reference import flow as flow_twin
from tests.reference import networks, small
from tests.reference.draws import draws
from tests.reference.monte_carlo import assert_mean_close
from tfstruct import random

pytestmark = pytest.mark.usefixtures("float64")

KEY = small.KEY
K, B = 2, 3
_CONTEXT = "bottom_up/context/"


def _build(structure="learned", rng=None, flow=(), **model):
    """A small model with flows; `flow` replaces some of their settings."""
    return small.build(structure, rng, flow={**small.FLOW, **dict(flow)}, **model)


def _terms(system, x, **kwargs):
    kwargs = {"seed": KEY, "num_samples": K, "shared_seed": random.key(5), **kwargs}
    return system.terms(tf.convert_to_tensor(x), draws(**kwargs))


def _draw(system, x, gates):
    """The latents [K, B, N, D] that `terms` draws from KEY."""
    bottom_up = system._bottom_up(tf.constant(x), training=False)
    return system.posterior.draw(
        bottom_up, tf.constant(gates), tf.constant(small.noise(system, K, B)), training=False
    ).z.numpy()


def _bound(terms, path=False):
    log_posterior = terms.log_posterior_path if path else terms.log_posterior
    return terms.log_likelihood + terms.log_prior - log_posterior


def _assert_terms(found, twin, x, noise):
    for k, b in np.ndindex(*noise.shape[:2]):
        expected = twin.terms(x[b], noise[k, b])
        np.testing.assert_allclose(found.log_likelihood[k, b], expected.log_likelihood, rtol=1e-10)
        np.testing.assert_allclose(found.log_prior[k, b], expected.node_log_prior.sum(), rtol=1e-10)
        log_posterior = expected.node_log_posterior.sum()
        np.testing.assert_allclose(found.log_posterior[k, b], log_posterior, rtol=1e-10)
        np.testing.assert_allclose(found.log_posterior_path[k, b], log_posterior, rtol=1e-10)


# Values ------------------------------------------------------------------------------------------------------


@small.SHARED_TOP_DOWN
@small.EVERY_STRUCTURE
def test_importance_terms_are_those_of_the_twin(structure, share_top_down, rng):
    system = _build(structure, rng, share_top_down=share_top_down)
    x = small.images(rng, B)
    _assert_terms(_terms(system, x, path=True), small.twin(system), x, small.noise(system, K, B))


@pytest.mark.parametrize(
    "flow",
    [{"context_dim": 0}, {"steps": 1, "activation": "relu", "gate_bias": -1.0}, {"steps": 3, "hidden_units": (2,)}],
    ids=lambda flow: next(iter(flow)),
)
def test_importance_terms_at_fractional_gates_are_those_of_the_twin(flow, rng):
    system, x = _build("learned", rng, flow, batch_norm=False, likelihood="gaussian"), small.images(rng, B, False)
    gates = np.where(system.adjacency, rng.uniform(size=[3, 3]), 0.0)
    found = _terms(system, x, path=True, gates=tf.constant(gates), training=True)
    _assert_terms(found, small.twin(system, gates), x, small.noise(system, K, B))


def test_one_node_without_structure_is_the_vae_with_a_flow_written_out(rng):
    system = _build("independent", rng, num_nodes=1, num_latents=3, batch_norm=False, activation="tanh")
    x, noise, w = small.images(rng, B), small.noise(system, K, B)[:, :, 0], small.weights(system)
    found = _terms(system, x, path=True)
    for k, b in np.ndindex(K, B):
        features = networks.mlp(x[b].reshape(1, 4), networks.below(w, "encoder"), "elu")[0]
        hidden = np.tanh(features @ w["bottom_up/dense/kernel"] + w["bottom_up/dense/bias"])
        context = hidden @ w["bottom_up/context/kernel"][0] + w["bottom_up/context/bias"][0]
        hidden = hidden @ w["bottom_up/heads/projection/kernel"][0] + w["bottom_up/heads/projection/bias"][0]
        both = hidden @ w["bottom_up/heads/parameters/kernel"][0] + w["bottom_up/heads/parameters/bias"][0]
        z = both[:3] + np.exp(0.5 * both[3:]) * noise[k, b]
        log_posterior = scipy.stats.norm.logpdf(z, both[:3], np.exp(0.5 * both[3:])).sum()
        for step, order in (("step_0", (0, 1, 2)), ("step_1", (2, 1, 0))):
            shift, logit = flow_twin.made(z, networks.below(w, f"flow_0/{step}"), order, "tanh", context)
            gate = special.expit(logit + 2.0)
            z = gate * z + (1.0 - gate) * shift
            log_posterior -= np.log(gate).sum()
        logits = networks.mlp(z.reshape(1, 3), networks.below(w, "decoder"), "tanh")[0]
        log_likelihood = scipy.stats.bernoulli.logpmf(x[b].reshape(4), special.expit(logits)).sum()
        np.testing.assert_allclose(found.log_likelihood[k, b], log_likelihood, rtol=1e-10)
        np.testing.assert_allclose(found.log_prior[k, b], scipy.stats.norm.logpdf(z).sum(), rtol=1e-10)
        np.testing.assert_allclose(found.log_posterior[k, b], log_posterior, rtol=1e-10)
        np.testing.assert_allclose(found.log_posterior_path[k, b], log_posterior, rtol=1e-10)


@small.SHARED_TOP_DOWN
@pytest.mark.parametrize("structure", ["learned", "explicit"])
def test_flows_with_silent_networks_and_wide_open_gates_are_the_model_without(structure, share_top_down, rng):
    plain, x = small.build(structure, rng, share_top_down=share_top_down), small.images(rng, B)
    flowed = _build(structure, rng, {"gate_bias": 60.0}, share_top_down=share_top_down)
    small.assign(flowed, small.weights(plain))
    paths = small.weights(flowed)
    assert set(paths) - set(small.weights(plain)) == {path for path in paths if path.startswith(("flow", _CONTEXT))}
    small.assign(flowed, {path: 0.0 * value for path, value in paths.items() if path.startswith("flow")})
    for one, two in zip(_terms(flowed, x)[:3], _terms(plain, x)[:3], strict=True):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(flowed.encode(x).values(), plain.encode(x).values(), strict=True):
        np.testing.assert_array_equal(one, two)


@small.EVERY_STRUCTURE
def test_encode_gives_flowed_centres_and_deviations_times_slopes(structure, rng):
    system = _build(structure, rng)
    x, twin = small.images(rng, B), small.twin(system)
    found = system.encode(tf.constant(x))
    for b in range(B):
        terms = twin.terms(x[b], np.zeros([3, 2]))
        np.testing.assert_allclose(found["z_mean"][b], terms.z.reshape(-1), rtol=1e-10)
        np.testing.assert_allclose(found["z_std"][b], terms.scale.reshape(-1), rtol=1e-10)
    np.testing.assert_allclose(system(tf.constant(x)), system.decode(found["z_mean"])["x_mean"], rtol=1e-12)


def test_reconstructions_are_decoded_flowed_draws(rng):
    system, x = _build("learned", rng), small.images(rng, B)
    noise, twin = small.noise(system, 1, B)[0], small.twin(system)
    z = np.stack([twin.terms(x[b], noise[b]).z.reshape(-1) for b in range(B)])
    expected = system.decode(tf.constant(z))["x_mean"]
    np.testing.assert_allclose(system.reconstruct(tf.constant(x), seed=KEY), expected, rtol=1e-10)


@small.SHARED_TOP_DOWN
def test_node_rates_are_those_of_the_twin_and_add_up_to_the_rate(share_top_down, rng):
    system = _build("learned", rng, share_top_down=share_top_down)
    x, noise, twin = small.images(rng, B), small.noise(system, K, B), small.twin(system)
    found = system.node_rates(tf.constant(x), seed=KEY, num_samples=K).numpy()
    for b in range(B):
        terms = [twin.terms(x[b], noise[k, b]) for k in range(K)]
        rates = np.mean([term.node_log_posterior - term.node_log_prior for term in terms], axis=0)
        np.testing.assert_allclose(found[b], rates, rtol=1e-10, atol=1e-12)
    terms = _terms(system, x)
    rate = np.mean(terms.log_posterior - terms.log_prior, axis=0)
    np.testing.assert_allclose(found.sum(axis=1), rate, rtol=1e-10)


def test_rows_with_keys_of_their_own_do_not_depend_on_their_place(rng):
    system, x, keys = _build("learned", rng), small.images(rng, B), random.row_keys(tf.range(B, dtype=tf.int64))
    order = [2, 0, 1]
    found = _terms(system, x[order], seed=tf.gather(keys, order), path=True)
    for one, two in zip(found[:4], _terms(system, x, seed=keys, path=True)[:4], strict=True):
        np.testing.assert_allclose(one, tf.gather(two, order, axis=1), rtol=1e-10)


def test_float32_agrees_with_float64(rng):
    system, x = _build("learned", rng), small.images(rng, B)
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")  # the fixture restores
    single = _build("learned")
    small.assign(single, {path: value.astype(np.float32) for path, value in small.weights(system).items()})
    found = _terms(single, x.astype(np.float32), path=True)
    for one, two in zip(found[:4], _terms(system, x, path=True)[:4], strict=True):
        assert one.dtype == tf.float32
        np.testing.assert_allclose(one, two, rtol=1e-4)


# All images of four pixels are summed over: a density of q that is not normalised, a flow whose determinant is left
# out, or a prior of other latents than those decoded moves the sum.
def test_importance_weights_of_all_images_sum_to_one_on_average(rng):
    system = _build("full", rng, {"gate_bias": 1.0}, scale=0.12, num_latents=4, num_nodes=2)
    for flow in system.flows:
        networks.randomize(flow, rng, 0.45)
    values = small.weights(system)
    values["bottom_up/heads/parameters/bias"][:, 2:] = 2.4  # q wider than p, so that the weights have a variance
    values["posterior_top_down_1/heads/parameters/bias"][:, 2:] = 3.0
    small.assign(system, values)
    every = np.array(list(itertools.product([0.0, 1.0], repeat=4))).reshape(16, 2, 2)
    weights = np.exp(_bound(_terms(system, every, num_samples=20_000)))
    assert_mean_close(weights.sum(axis=1), 1.0, resolution=0.02)


# Whose flow it is --------------------------------------------------------------------------------------------


def test_every_node_has_flow_weights_of_its_own_that_start_different():
    system = _build("learned")
    flows = [flow.trainable_variables for flow in system.flows]
    assert [len(variables) for variables in flows] == [2 * (3 * 2 + 1)] * 3
    assert len({id(variable) for variables in flows for variable in variables}) == 3 * 14
    for variables in zip(*flows, strict=True):
        if not variables[0].path.rpartition("/")[2].startswith("bias"):
            values = [variable.numpy() for variable in variables]
            assert all(np.all(values[one] != values[two]) for one, two in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(
    ("structure", "closed", "descendants"),
    [
        ("independent", (), [[0], [1], [2]]),
        ("chain", (), [[0, 1, 2], [1, 2], [2]]),
        ("chain", (1, 0), [[0], [1, 2], [2]]),
        ("explicit", (), [[0, 2], [1, 2], [2]]),
        ("explicit", (2, 1), [[0, 2], [1], [2]]),
    ],
)
def test_the_flow_of_a_node_moves_it_and_its_descendants_through_open_gates(structure, closed, descendants, rng):
    system, x = _build(structure, rng, activation="elu"), small.images(rng, B)
    gates = system.adjacency.astype(np.float64)
    if closed:
        gates[closed] = 0.0
    before = _draw(system, x, gates)
    for node, expected in enumerate(descendants):
        weights = small.weights(system)
        networks.randomize(system.flows[node], rng)
        moved = np.any(_draw(system, x, gates) != before, axis=(0, 1, 3))
        np.testing.assert_array_equal(np.flatnonzero(moved), expected)
        small.assign(system, weights)


def test_samples_of_the_prior_know_of_no_flow(rng):
    system = _build("learned", rng)
    before = system.sample(5, seed=KEY)["x_mean"]
    for flow in system.flows:
        networks.randomize(flow, rng)
    np.testing.assert_array_equal(system.sample(5, seed=KEY)["x_mean"], before)


@small.SHARED_TOP_DOWN
def test_posterior_variables_include_the_flows_and_the_context(share_top_down):
    system = _build("full", share_top_down=share_top_down)
    own = {id(variable) for variable in system.needs.posterior}
    expected = [*system.encoder.trainable_variables, *system.bottom_up.trainable_variables]
    for layer in [*system.flows, *([] if share_top_down else system.posterior_top_down)]:
        expected += layer.trainable_variables
    assert own == {id(variable) for variable in expected}
    assert len(own) == len(system.needs.posterior)


# Gradients ---------------------------------------------------------------------------------------------------


@small.SHARED_TOP_DOWN
@pytest.mark.parametrize(("child", "parent"), [(1, 0), (2, 0), (2, 1)])
def test_a_closed_gate_leaves_the_weights_of_its_edge_without_gradient(child, parent, share_top_down, rng):
    system = _build("learned", rng, share_top_down=share_top_down, activation="elu")
    names = [f"posterior_top_down_{child}/kernel_{child}"]
    if not share_top_down:
        names.append(f"prior_top_down/kernel_{child}")
    kernels = [v.value for v in system.trainable_variables if v.path.partition("/")[2] in names]
    assert len(kernels) == len(names)
    gates = np.where(system.adjacency, 0.8, 0.0)
    gates[child, parent] = 0.0
    with tf.GradientTape(persistent=True) as tape:
        terms = _terms(system, small.images(rng, B), gates=tf.constant(gates), training=True, path=True)
        bounds = [_bound(terms, path) for path in (False, True)]
    for bound in bounds:
        for gradient in tape.gradient(bound, kernels):
            reached = np.any(gradient.numpy().reshape(child, 2, -1) != 0.0, axis=(1, 2))  # two rows for each parent
            np.testing.assert_array_equal(reached, np.arange(child) != parent)


@small.SHARED_TOP_DOWN
def test_the_gradient_in_training_is_that_of_central_differences(share_top_down, rng):
    system, x = _build("learned", rng, share_top_down=share_top_down, activation="elu"), small.images(rng, B)
    others = [*system.decoder.trainable_variables, *system.gates.trainable_variables]
    total = lambda: tf.reduce_mean(_bound(_terms(system, x, training=True, gate_temperature=0.7)))  # noqa: E731
    with tf.GradientTape(persistent=True) as tape:
        bound = total()
    for name, variables in [*small.posterior_groups(system), ("others", others)]:
        directions = [rng.normal(size=variable.shape) for variable in variables]
        analytic = networks.along(tape.gradient(bound, [variable.value for variable in variables]), directions)
        assert analytic == pytest.approx(networks.difference(variables, directions, total), rel=1e-5, abs=1e-7), name
        assert abs(analytic) > 1e-3, name


@small.SHARED_TOP_DOWN
def test_the_path_gradient_is_the_total_one_less_the_score(share_top_down, rng):
    system, x = _build("learned", rng, share_top_down=share_top_down, activation="elu"), small.images(rng, B)
    weigh, gates = rng.normal(size=[K, B]), tf.Variable(np.where(system.adjacency, rng.uniform(size=[3, 3]), 0.0))
    z = _draw(system, x, gates)

    def log_posterior_at_fixed_z():
        twin = small.twin(system, gates)
        return sum(weigh[k, b] * twin.node_log_posterior(x[b], z[k, b]).sum() for k, b in np.ndindex(K, B))

    with tf.GradientTape(persistent=True) as tape:
        terms = _terms(system, x, path=True, gates=tf.convert_to_tensor(gates))
        total, path = (tf.reduce_sum(weigh * term) for term in (terms.log_posterior, terms.log_posterior_path))
    for name, variables in [*small.posterior_groups(system), ("gates", [gates])]:
        directions = [rng.normal(size=variable.shape) for variable in variables]
        values = [variable if variable is gates else variable.value for variable in variables]
        score = networks.difference(variables, directions, log_posterior_at_fixed_z)
        of_total, of_path = (networks.along(tape.gradient(part, values), directions) for part in (total, path))
        assert of_path == pytest.approx(of_total - score, rel=1e-5, abs=1e-6), name
        assert abs(score) > 1e-2, name
        assert abs(of_path) > 1e-2, name


# A part of the score that is left in the path term, or a determinant missing from one of the two, is a bias.
def test_the_score_that_the_path_gradient_leaves_out_is_zero_on_average(rng):
    system, x = _build("learned", rng, activation="elu"), small.images(rng, 1)
    variables, weigh = [variable.value for variable in system.needs.posterior], tf.ones([20_000, 1], tf.float64)
    directions = [rng.normal(size=variable.shape) for variable in variables]
    # Reverse mode twice gives every sample's derivative along the direction: the first is linear in the weights.
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(weigh)
        with tf.GradientTape(persistent=True) as inner:
            terms = _terms(system, x, num_samples=len(weigh), path=True)
            sums = [tf.reduce_sum(weigh * term) for term in (terms.log_posterior, terms.log_posterior_path)]
        pairs = [zip(inner.gradient(part, variables), directions, strict=True) for part in sums]
        along = [tf.add_n([tf.reduce_sum(gradient * direction) for gradient, direction in pair]) for pair in pairs]
    total, path = (outer.gradient(part, weigh).numpy()[:, 0] for part in along)
    assert np.std(total - path) > 0.1 * np.std(path)
    assert_mean_close(total - path, 0.0, resolution=0.1 * np.std(path))


def test_at_the_exact_posterior_the_path_gradient_of_every_sample_is_zero(rng):
    # Pixels that do not listen to z leave q = p = N(0, I). The third step undoes the shear of the first.
    system = _build("independent", rng, {"steps": 3}, num_nodes=2, num_latents=4, batch_norm=False)
    gate, values = special.expit(2.0), small.weights(system)
    values["decoder/output/kernel"][:] = 0.0
    values["bottom_up/heads/parameters/kernel"][:] = 0.0
    values["bottom_up/heads/parameters/bias"][:] = [0.0, 0.0, -6.0 * np.log(gate), -6.0 * np.log(gate)]
    for path in [path for path in values if "/step_0/" in path]:
        name = path.rpartition("/")[2]
        if name in ("kernel_2", "bias_2"):
            values[path][..., [0, 2, 3]] = 0.0  # all but the shift of the second dimension
        values[path.replace("step_0", "step_1")][:] = 0.0
        factor = {"kernel_0": gate**-2, "kernel_2": -(gate**2), "bias_2": -(gate**2)}.get(name, 1.0)
        values[path.replace("step_0", "step_2")][:] = factor * values[path]
    small.assign(system, values)
    variables = [variable.value for variable in system.needs.posterior]
    with tf.GradientTape(persistent=True) as tape:
        terms = _terms(system, small.images(rng, B), path=True)
        plain, path = (tf.unstack(tf.reshape(_bound(terms, which), [-1])) for which in (False, True))
    np.testing.assert_allclose(plain, np.reshape(terms.log_likelihood, [-1]), rtol=1e-10)
    for of_plain, of_path in zip(plain, path, strict=True):
        for gradient in tape.gradient(of_path, variables, unconnected_gradients="zero"):
            np.testing.assert_allclose(gradient, 0.0, atol=1e-10)
        assert max(np.abs(gradient).max() for gradient in tape.gradient(of_plain, variables)) > 0.1


@small.SHARED_TOP_DOWN
def test_path_terms_in_training_are_the_plain_ones_and_update_no_moving_average_again(share_top_down, rng):
    first = _build("learned", rng, share_top_down=share_top_down)
    second = _build("learned", share_top_down=share_top_down)
    small.assign(second, small.weights(first))
    before, x = small.weights(first), small.images(rng, B)
    assert _terms(first, x, training=True, path=False).log_posterior_path is None
    terms = _terms(second, x, training=True, path=True)
    np.testing.assert_allclose(terms.log_posterior_path, terms.log_posterior, rtol=1e-10)
    after = small.weights(first)
    for path, value in small.weights(second).items():
        np.testing.assert_array_equal(value, after[path], err_msg=path)
        assert np.any(value != before[path]) == ("moving" in path), path


@pytest.mark.parametrize("gradient", ["plain", "path"])
def test_every_weight_gets_a_gradient(gradient, rng):
    overrides = [f"objective.gradient={gradient}", "objective.num_samples=3"]
    config = small.config("learned", overrides, activation="elu", flow=small.FLOW)
    small.assert_every_weight_gets_a_gradient(config, rng)


def test_the_bound_and_its_path_gradient_are_the_same_compiled(compiled, rng):
    model = {"num_nodes": 2, "num_latents": 4, "encoder_units": (3,), "decoder_units": (3,), "batch_norm": False}
    system, x = _build("learned", rng, {"hidden_units": (4,)}, **model), tf.constant(small.images(rng, B))
    variables = [variable.value for variable in system.trainable_variables]

    def gradients(x):
        with tf.GradientTape() as tape:
            terms = _terms(system, x, training=True, path=True, gate_temperature=0.7)
            bound = tf.reduce_mean(_bound(terms, path=True))
        return [*terms[:4], *tape.gradient(bound, variables, unconnected_gradients="zero")]

    for one, two in zip(compiled(gradients, x), gradients(x), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-11)

"""What edges and latents of a Graph VAE are worth, against quadrature over three latents and the NumPy twin."""

import itertools

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tests.reference import small
from tfstruct.functional import Functional
from tfstruct.inference.held_out import HeldOutScorer
from tfstruct.models.graph_vae import structure as structure

IMAGES = np.array(list(itertools.product([0.0, 1.0], repeat=4))).reshape(16, 2, 2)
LOGITS = np.array([3.0, -4.0, 0.3], np.float32)


def log_evidence(system, gates):
    """log p(x | c) [16] by the trapezoidal rule over the standard normal noise of z in three dimensions."""
    axis = np.linspace(-6.0, 6.0, 41)
    noise = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3, 1)
    log_prior = np.sum(-0.5 * noise**2 - 0.5 * np.log(2.0 * np.pi), axis=(1, 2)) + 3 * np.log(axis[1] - axis[0])
    z = system.prior(tf.constant(gates, tf.float32)).sample_from_noise(tf.constant(noise, tf.float32))
    logits = system.decoder(z[..., 0]).numpy().astype(np.float64)
    pixels = IMAGES.reshape(16, 4)
    log_likelihood = scipy.special.log_expit(logits) @ pixels.T + scipy.special.log_expit(-logits) @ (1 - pixels).T
    return scipy.special.logsumexp(log_likelihood + log_prior[:, np.newaxis], axis=0)


def build(rng):
    """A model whose edges move the means of the latents, with a posterior that is wider than the prior."""
    system = small.build("learned", rng, scale=0.3, num_latents=3, share_top_down=True)
    for variable in system.decoder.trainable_variables:
        variable.assign(3.0 * variable.value)
    for layer in system.posterior_top_down:
        for variable in layer.trainable_variables:
            if variable.path.endswith("heads/parameters/kernel"):
                variable.assign(np.stack([np.full(variable.shape[:2], 1.5), np.zeros(variable.shape[:2])], axis=-1))
            elif "kernel" in variable.path:
                variable.assign(np.abs(2.0 * variable.numpy()))
    # What x says of the children is vague: given their parents they are drawn from the prior.
    bias = small.weights(system)["bottom_up/heads/parameters/bias"].copy()
    bias[:, 1] = [0.7, 6.0, 6.0]
    small.assign(system, {"bottom_up/heads/parameters/bias": bias})
    system.gates.logits.assign(LOGITS)
    return system


def effects(system, num_samples=4_000, **options):
    scorer = HeldOutScorer(system, num_samples=num_samples, batch_size=16, chunk=num_samples, compiler="graph")
    functional = Functional(system)
    weights = functional.parameters.values(), functional.statistics.values()
    return structure.edge_effects(scorer, *weights, IMAGES, **options), scorer


# Bugs seen: gates transposed, the change of the other sign, edges flipped one after another.
def test_changes_by_edges_are_those_of_the_evidence(rng):
    system = build(rng)
    found, scorer = effects(system)
    hard = system.gates.hard().numpy()
    base = log_evidence(system, hard)
    assert found["log_likelihood"] == pytest.approx(base.mean(), abs=0.01)
    assert (
        [(edge["child"], edge["parent"]) for edge in found["edges"]] == system.gates.edges == [(1, 0), (2, 0), (2, 1)]
    )
    assert [edge["is_open"] for edge in found["edges"]] == [True, False, True]
    np.testing.assert_allclose([edge["probability"] for edge in found["edges"]], scipy.special.expit(LOGITS), rtol=1e-6)
    changed = []
    for child, parent in system.gates.edges:
        gates = hard.copy()
        gates[child, parent] = 1.0 - gates[child, parent]
        changed.append(gates)
    changed += [np.tril(np.ones([3, 3], np.float32), -1), np.zeros([3, 3], np.float32)]
    expected = [log_evidence(system, gates) - base for gates in changed]
    parts = [*found["edges"], found["all_open"], found["all_closed"]]
    assert np.abs(np.mean(expected, axis=1)).min() > 0.025
    np.testing.assert_allclose([part["change"] for part in parts], np.mean(expected, axis=1), atol=0.01)
    # Standard errors are those of the estimates themselves, paired by image and by key.
    functional = Functional(system)
    weights = functional.parameters.values(), functional.statistics.values()
    scores = [scorer(*weights, IMAGES, gates=gates).log_prob.astype(np.float64) for gates in (hard, *changed)]
    std_err = np.std(np.array(scores[1:]) - scores[0], axis=1, ddof=1) / np.sqrt(16)
    np.testing.assert_allclose([part["std_err"] for part in parts], std_err, rtol=1e-9)
    assert all(np.isfinite(part["elbo_change"]) for part in parts)
    # One compilation, whatever the gates.
    assert scorer._estimate.experimental_get_tracing_count() == 1


def test_undecided_gates_are_summed_over_inside_the_logarithm(rng):
    system = build(rng)
    found = effects(system)[0]["undecided"]
    assert found["edges"] == [[2, 1]]
    hard = system.gates.hard().numpy()
    closed = hard.copy()
    closed[2, 1] = 0.0
    probability = scipy.special.expit(LOGITS[2])
    values = [log_evidence(system, gates) for gates in (hard, closed)]
    expected = np.logaddexp(np.log(probability) + values[0], np.log1p(-probability) + values[1])
    assert abs(np.mean(expected - values[0])) > 0.02
    assert found["log_likelihood"] == pytest.approx(expected.mean(), abs=0.01)
    assert found["change"] == pytest.approx(np.mean(expected - values[0]), abs=0.01)
    system.gates.logits.assign([3.0, -4.0, 5.0])
    assert effects(system, 10)[0]["undecided"] is None


def test_of_many_undecided_gates_the_least_decided_are_summed_over(rng, monkeypatch):
    monkeypatch.setattr(structure, "MAX_ENUMERATED_GATES", 2)
    system = build(rng)
    system.gates.logits.assign([0.1, 1.0, -0.2])
    found = effects(system, 10)[0]["undecided"]
    assert found["edges"] == [[1, 0], [2, 1]]


# Of the gate above both states are nearly as probable; here an average without weights would be far off.
def test_the_states_of_undecided_gates_are_weighed_by_their_probabilities(rng):
    system = build(rng)
    logits = np.array([3.0, -1.5, 1.2], np.float32)  # the first has decided
    system.gates.logits.assign(logits)
    found, scorer = effects(system, 20, seed=2)
    assert found["undecided"]["edges"] == [[2, 0], [2, 1]]
    functional = Functional(system)
    weights, terms = (functional.parameters.values(), functional.statistics.values()), []
    for states in itertools.product((0.0, 1.0), repeat=2):
        gates = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [*states, 0.0]], np.float32)
        log_prob = scorer(*weights, IMAGES, seed=2, gates=gates).log_prob.astype(np.float64)
        means = scipy.special.expit(logits[1:].astype(np.float64))
        terms.append(log_prob + np.log(np.where(states, means, 1.0 - means)).sum())
    expected = scipy.special.logsumexp(terms, axis=0).mean()
    unweighted = scipy.special.logsumexp([term - np.log(4.0) for term in terms], axis=0).mean()
    assert abs(expected - unweighted) > 0.02
    assert found["undecided"]["log_likelihood"] == pytest.approx(expected, rel=1e-5)


def test_an_edge_without_weight_changes_nothing_at_all(rng):
    system = build(rng)
    # The inputs of node 2 are its parents 0 and 1, one latent each.
    (kernel,) = system.posterior_top_down[system.children.index(2)].kernels
    kernel.assign(kernel.numpy() * np.array([[0.0], [1.0]], np.float32))
    found, _ = effects(system, 50)
    by_edge = {(edge["child"], edge["parent"]): edge for edge in found["edges"]}
    edge = by_edge[2, 0]
    assert (edge["change"], edge["std_err"], edge["elbo_change"]) == (0.0, 0.0, 0.0)
    assert by_edge[2, 1]["change"] != 0.0


def test_active_units_and_rates_of_nodes_are_the_twins(rng):
    system = build(rng)
    weights = small.weights(system)
    paths = [f"bottom_up/heads/parameters/{name}" for name in ("kernel", "bias")]
    kernel, bias = (weights[path].copy() for path in paths)
    kernel[2, :, 0] *= 200.0  # what x says of node 2 is all that varies much
    bias[:, 1] = [0.7, 0.0, 0.0]
    small.assign(system, dict(zip(paths, (kernel, bias), strict=True)))
    rows = np.concatenate([IMAGES] * 200)
    found = structure.LatentUse(system)(rows, batch_size=1_000, seed=3)
    twin = small.twin(system)
    variance = np.stack([twin.terms(x, np.zeros([3, 1])).z for x in IMAGES]).var(axis=0)
    assert found["active_units"] == (variance > 0.01).sum(axis=1).tolist()
    assert found["active_units"] == [0, 0, 1]
    assert found["units_per_node"] == 1
    generator = np.random.default_rng(17)
    rates = np.mean([twin.node_divergences(x, generator.normal(size=[3, 1])) for x in rows], axis=0)
    assert rates.min() > 0.05
    np.testing.assert_allclose(found["node_rates"], rates, rtol=0.04, atol=0.01)
    assert structure.LatentUse(system)(IMAGES, batch_size=7, seed=3)["active_units"] == found["active_units"]


def test_the_rates_of_nodes_do_not_depend_on_how_rows_are_batched(rng):
    use = structure.LatentUse(build(rng))
    # Equal rows: batches that drew the same noise would change the mean over all of them.
    rows = np.repeat(IMAGES[:1], 20, axis=0)
    whole = use(rows, batch_size=20, seed=3)["node_rates"]
    np.testing.assert_allclose(use(rows, batch_size=6, seed=3)["node_rates"], whole, rtol=1e-4, atol=1e-6)
    assert abs(use(rows[:6], batch_size=6, seed=3)["node_rates"][0] - whole[0]) > 1e-3

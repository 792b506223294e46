import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tests.reference import small
from tests.reference.draws import training_draws
from tests.reference.monte_carlo import assert_mean_close
from tfstruct import random
from tfstruct.functional import Functional
from tfstruct.inference.objectives import Draws, group_gradients
from tfstruct.models import registry

pytestmark = pytest.mark.usefixtures("float64")

K, B = small.K, small.B


# Gradients ---------------------------------------------------------------------------------------------------


@small.SHARED_TOP_DOWN
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("child", "parent"), [(1, 0), (2, 0), (2, 1)])
def test_a_closed_gate_leaves_the_weights_of_its_edge_without_gradient(child, parent, training, share_top_down, rng):
    system, x = small.build("learned", rng, share_top_down=share_top_down), small.images(rng, B)
    names = [f"posterior_top_down_{child}/kernel_{child}"]
    if not share_top_down:
        names.append(f"prior_top_down/kernel_{child}")
    kernels = [variable for variable in system.trainable_variables if variable.path.partition("/")[2] in names]
    assert len(kernels) == len(names)
    rows = slice(2 * parent, 2 * parent + 2)  # all earlier nodes are possible parents, two dimensions each
    for gate in (0.0, 1.0):
        gates = np.where(system.adjacency, 0.8, 0.0)
        gates[child, parent] = gate
        with tf.GradientTape() as tape:
            terms = small.terms(system, x, gates=tf.constant(gates), training=training)
            bound = tf.reduce_mean(terms.log_likelihood + terms.log_prior - terms.log_posterior)
        for gradient in tape.gradient(bound, [kernel.value for kernel in kernels]):
            if gate == 0.0:
                np.testing.assert_array_equal(gradient.numpy()[rows], 0.0)
            else:
                assert np.any(gradient.numpy()[rows] != 0.0)


def _directional(system, x, **kwargs):
    """Analytic and central-difference derivatives of the bound along one random direction of the weights."""
    functional = Functional(system)
    vector, statistics = functional.parameters.values(), functional.statistics.values()
    direction = np.random.default_rng(3).normal(size=vector.shape)

    def bound(vector):
        with functional.bind(functional.parameters.split(tf.constant(vector)), tf.constant(statistics)):
            terms = small.terms(system, x, **kwargs)
        return float(tf.reduce_mean(terms.log_likelihood + terms.log_prior - terms.log_posterior))

    pieces = functional.parameters.split(tf.constant(vector))
    with tf.GradientTape() as tape:
        tape.watch(pieces)
        with functional.bind(pieces, tf.constant(statistics)):
            terms = small.terms(system, x, **kwargs)
        total = tf.reduce_mean(terms.log_likelihood + terms.log_prior - terms.log_posterior)
    gradient = functional.parameters.join(tape.gradient(total, pieces, unconnected_gradients="zero")).numpy()
    step = 1e-6
    return gradient @ direction, (bound(vector + step * direction) - bound(vector - step * direction)) / (2 * step)


@small.SHARED_TOP_DOWN
@small.EVERY_STRUCTURE
def test_the_gradient_in_training_is_that_of_central_differences(structure, share_top_down, rng):
    model = {"activation": "elu", "share_top_down": share_top_down}  # no kink for the difference to straddle
    system, x = small.build(structure, rng, **model), small.images(rng, B)
    shared = {"training": True, "shared_seed": random.key(5), "gate_temperature": tf.constant(0.7, tf.float64)}
    analytic, numeric = _directional(system, x, **shared)
    assert analytic == pytest.approx(numeric, rel=1e-6)
    assert abs(analytic) > 1e-3


@small.SHARED_TOP_DOWN
@pytest.mark.parametrize("training", [False, True])
@small.EVERY_STRUCTURE
def test_path_terms_have_the_values_of_the_plain_ones(structure, training, share_top_down, rng):
    system, x = small.build(structure, rng, share_top_down=share_top_down), small.images(rng, B)
    terms = small.terms(system, x, training=training, path=True, shared_seed=random.key(5))
    np.testing.assert_allclose(terms.log_posterior_path, terms.log_posterior, rtol=1e-10)
    plain = small.terms(system, x, training=False)
    assert plain.log_posterior_path is None


@small.SHARED_TOP_DOWN
def test_path_terms_do_not_update_the_moving_averages_a_second_time(share_top_down, rng):
    first = small.build("learned", rng, share_top_down=share_top_down)
    second = small.build("learned", share_top_down=share_top_down)
    small.assign(second, small.weights(first))
    before, x = small.weights(first), small.images(rng, B)
    small.terms(first, x, training=True, path=False, shared_seed=random.key(5))
    small.terms(second, x, training=True, path=True, shared_seed=random.key(5))
    after = small.weights(first)
    for path, value in small.weights(second).items():
        np.testing.assert_array_equal(value, after[path], err_msg=path)
        if "moving" in path and "prior" not in path:
            assert np.any(value != before[path]), path


@pytest.mark.parametrize("share_top_down", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_training_updates_every_moving_average_once(share_top_down, training, rng):
    system, x = small.build("full", rng, share_top_down=share_top_down, batch_norm_momentum=0.75), small.images(rng, B)
    before = small.weights(system)
    small.terms(system, x, training=training, shared_seed=random.key(5))
    for path, value in small.weights(system).items():
        if "moving" in path and training:
            assert np.all(value != before[path]), path
        else:
            np.testing.assert_array_equal(value, before[path])
    if training:
        dense = before["encoder/dense_0/kernel"]
        mean = (x.reshape(B, 4) @ dense).mean(axis=0)
        path = "encoder/normalization_0/normalization/moving_mean"
        np.testing.assert_allclose(small.weights(system)[path], 0.75 * before[path] + 0.25 * mean, rtol=1e-10)


@small.SHARED_TOP_DOWN
def test_the_path_gradient_reaches_the_posterior_through_z_alone(share_top_down, rng):
    # With z cut off, log q by the path knows no parameter at all; without the cut it does.
    system, x = small.build("learned", rng, share_top_down=share_top_down), small.images(rng, B)
    z = tf.constant(rng.normal(size=[K, B, 3, 2]))
    gates = tf.constant(np.where(system.adjacency, 0.7, 0.0))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([z, gates])
        bottom_up = system._bottom_up(tf.constant(x), training=False)
        log_posterior = system.posterior.log_prob_path(z, z, bottom_up, gates, training=False)
    assert all(
        gradient is None for gradient in tape.gradient(log_posterior, [v.value for v in system.trainable_variables])
    )
    assert tape.gradient(log_posterior, gates) is None
    to_z = tape.gradient(log_posterior, z).numpy()
    # Compare with differences of the twin's log q, parents included.
    twin = small.twin(system, gates.numpy())

    def log_q(values, b):
        own = list(zip(*twin.bottom_up(x[b].reshape(-1)), strict=True))
        total = 0.0
        for node in range(3):
            loc, log_variance = twin.posterior(node, values, own[node])
            total += scipy.stats.norm.logpdf(values[node], loc, np.exp(0.5 * log_variance)).sum()
        return total

    for node, dim in np.ndindex(3, 2):
        step = np.zeros([3, 2])
        step[node, dim] = 1e-6
        values = z.numpy()[1, 2]
        numeric = (log_q(values + step, 2) - log_q(values - step, 2)) / 2e-6
        assert to_z[1, 2, node, dim] == pytest.approx(numeric, rel=1e-5, abs=1e-7)


# A score term that is forgotten, counted twice or of the wrong sign is a bias that averages do not remove.
@small.SHARED_TOP_DOWN
def test_path_and_plain_gradients_agree_in_expectation(share_top_down, rng):
    system, x = small.build("full", rng, share_top_down=share_top_down, activation="elu"), small.images(rng, 1)
    variables = [variable.value for variable in system.trainable_variables]

    @tf.function(autograph=False, jit_compile=True)
    def plain_gradient(key):
        with tf.GradientTape() as tape:
            terms = system.terms(tf.constant(x), Draws(key, 8))
            bound = tf.reduce_mean(terms.log_likelihood + terms.log_prior - terms.log_posterior)
        return tape.gradient(bound, variables, unconnected_gradients="zero")

    # The direction in which the gradient is large, from keys of its own: a random one may be nearly orthogonal to it.
    pilot = [plain_gradient(tf.constant(random.numpy_fold_in(small.KEY, 10_000 + index))) for index in range(200)]
    direction = [tf.reduce_mean(tf.stack(values), axis=0) for values in zip(*pilot, strict=True)]

    @tf.function(autograph=False, jit_compile=True)
    def gradients(key):
        with tf.GradientTape(persistent=True) as tape:
            terms = system.terms(tf.constant(x), Draws(key, 8, path=True))
            model = terms.log_likelihood + terms.log_prior
            plain = tf.reduce_mean(model - terms.log_posterior)
            path = tf.reduce_mean(model - terms.log_posterior_path)
        return [
            tf.add_n([tf.reduce_sum(g * d) for g, d in zip(part, direction, strict=True)])
            for part in (
                tape.gradient(plain, variables, unconnected_gradients="zero"),
                tape.gradient(path, variables, unconnected_gradients="zero"),
            )
        ]

    pairs = np.array([gradients(tf.constant(random.numpy_fold_in(small.KEY, index))) for index in range(1500)])
    size = np.abs(pairs.mean(axis=0)).max()
    assert np.std(pairs[:, 0] - pairs[:, 1]) > 0.0
    assert_mean_close(pairs[:, 0] - pairs[:, 1], 0.0, resolution=0.25 * size)


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
@pytest.mark.parametrize("gradient", ["plain", "path"])
@pytest.mark.parametrize(
    "model",
    [
        {"share_top_down": True},
        {"straight_through": True},
        {"batch_norm": False},
        {"likelihood": "gaussian"},
        {"adjacency": small.EXPLICIT},
    ],
    ids=lambda model: next(iter(model)),
)
def test_every_weight_gets_a_gradient_with_every_option(model, gradient, objective, rng):
    overrides = [f"objective.gradient={gradient}", f"objective.name={objective}", "objective.num_samples=3"]
    small.assert_every_weight_gets_a_gradient(small.config("learned", overrides, activation="elu", **model), rng)


def test_posterior_variables_are_those_of_q_alone():
    own = {variable.path.split("/")[1] for variable in small.build("full").needs.posterior}
    assert own == {"encoder", "bottom_up", "posterior_top_down_1", "posterior_top_down_2"}
    shared = {variable.path.split("/")[1] for variable in small.build("full", share_top_down=True).needs.posterior}
    assert shared == {"encoder", "bottom_up"}


@pytest.mark.parametrize("gradient", ["plain", "path"])
def test_group_gradients_take_each_groups_own_loss(gradient, rng):
    system, x = small.build("learned", rng), small.images(rng, B)
    system = registry.build(
        small.config("learned", [f"objective.gradient={gradient}", "objective.name=iwae", "objective.num_samples=3"])
    )
    with tf.GradientTape(persistent=True) as tape:
        result = system.objective(tf.constant(x), training_draws(system, small.KEY, random.key(5), 1.0))
    variables = [variable.value for variable in system.trainable_variables]
    posterior = [variable.value for variable in system.needs.posterior]
    found = group_gradients(tape, result, variables, posterior)
    of_q = {id(variable) for variable in posterior}
    generative = tape.gradient(result.generative_loss, variables, unconnected_gradients="zero")
    of_posterior = tape.gradient(result.posterior_loss, variables, unconnected_gradients="zero")
    differs = False
    for place, variable in enumerate(variables):
        expected = of_posterior[place] if id(variable) in of_q else generative[place]
        np.testing.assert_array_equal(found[place], expected)
        differs |= not np.allclose(of_posterior[place], generative[place])
    assert differs == (gradient == "path")

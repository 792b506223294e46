import numpy as np
import pytest
import tensorflow as tf

from tests.reference.monte_carlo import assert_mean_close
from tfstruct import random
from tfstruct.functional import Functional
from tfstruct.inference import likelihood
from tfstruct.inference.held_out import HeldOutScorer
from tfstruct.inference.objectives import Draws

WITH_X = ("serving_default", "log_prob", "elbo", "encode", "reconstruct")


@pytest.fixture(scope="module")
def signatures(model):
    return model.signatures


def states():
    return ((np.arange(16)[:, np.newaxis] >> np.arange(4)) & 1).astype(np.float32)


def call(signature, x, seed):
    names = signature.structured_input_signature[1]
    feeds = {"x": tf.constant(x, tf.float32), "seed": tf.constant(seed, tf.int64)}
    return {name: value.numpy() for name, value in signature(**{key: feeds[key] for key in names}).items()}


def assert_rows_close(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(3)
    return rng.integers(0, 2, size=[64, 4]).astype(np.float32), rng.integers(0, 2**62, size=[64])


@pytest.mark.parametrize("name", [*WITH_X, "sample"])
def test_the_answer_for_a_row_does_not_depend_on_the_rows_beside_it(signatures, batch, name):
    signature, (x, seed) = signatures[name], batch
    whole = call(signature, x, seed)
    for row in (0, 17, 63):
        alone = call(signature, x[row : row + 1], seed[row : row + 1])
        assert_rows_close(alone, {key: value[row : row + 1] for key, value in whole.items()})
    order = np.random.default_rng(4).permutation(64)
    assert_rows_close(call(signature, x[order], seed[order]), {key: value[order] for key, value in whole.items()})
    padded = call(signature, np.concatenate([x[:5], np.zeros([59, 4])]), np.concatenate([seed[:5], [0] * 59]))
    assert_rows_close({k: v[:5] for k, v in padded.items()}, {k: v[:5] for k, v in whole.items()})


@pytest.mark.parametrize("name", [*WITH_X, "sample"])
def test_no_rows_give_no_answers(signatures, name):
    for value in call(signatures[name], np.zeros([0, 4]), np.zeros([0])).values():
        assert len(value) == 0


@pytest.mark.parametrize("name", ["log_prob", "elbo", "reconstruct", "sample"])
def test_the_same_seed_gives_the_same_answer_and_another_seed_another(signatures, name):
    x = np.tile(states()[5], [8, 1])
    first = call(signatures[name], x, np.full([8], 7))
    again = call(signatures[name], x, np.full([8], 7))
    for key, value in first.items():
        np.testing.assert_array_equal(value, again[key])
        np.testing.assert_array_equal(value, np.repeat(value[:1], 8, axis=0))
    # The high and the low half of a seed both count, and its sign.
    other = call(signatures[name], x, [7, 8, 7 + 2**32, 7 + 2**62, -7, 2**63 - 1, -(2**63), 0])
    for key in set(first) - {"x"}:  # four sampled pixels agree by chance
        assert len(np.unique(other[key].reshape(8, -1), axis=0)) == 8, key


def test_the_default_signature_is_log_prob(signatures, batch):
    assert_rows_close(call(signatures["serving_default"], *batch), call(signatures["log_prob"], *batch))


def test_exported_scores_are_those_of_the_python_model_with_the_same_keys(trained, signatures, batch):
    x, seed = batch
    model = trained.use(int(np.argmax(trained.weights.bounds)))
    # Purpose 1 is that of log_prob.
    keys = random.fold_in(random.fold_in(random.row_keys(seed), random.SERVING), 1)
    estimate = likelihood.estimate(
        lambda sample_keys: model.terms(x, Draws(sample_keys, 25)),
        keys,
        num_samples=200,
        chunk=25,
    )
    found = call(signatures["log_prob"], x, seed)
    np.testing.assert_allclose(found["log_prob"], estimate.log_prob, atol=1e-4, rtol=0)
    np.testing.assert_allclose(found["std_err"], estimate.std_err, atol=1e-4, rtol=0)
    np.testing.assert_allclose(found["bits_per_dim"], -estimate.log_prob / (4 * np.log(2.0)), atol=1e-4, rtol=0)
    bounds = call(signatures["elbo"], x, seed)
    for name in ("elbo", "rate", "distortion"):
        np.testing.assert_allclose(bounds[name], getattr(estimate, name), atol=1e-4, rtol=0)
    # And nearly those of the evaluation, whose keys are others: within five standard errors each.
    best = int(np.argmax(trained.weights.bounds))
    scorer = HeldOutScorer(trained.model, num_samples=200, batch_size=64, chunk=25, compiler="graph")
    evaluated = scorer(trained.weights.parameters[best], trained.weights.statistics[best], x)
    errors = np.hypot(found["std_err"], evaluated.std_err)
    assert np.all(np.abs(found["log_prob"] - evaluated.log_prob) <= 5 * errors + 1e-4)


def test_encode_and_reconstruct_are_those_of_the_python_model(trained, signatures, batch):
    x, seed = batch
    model = trained.use(int(np.argmax(trained.weights.bounds)))
    assert_rows_close(call(signatures["encode"], x, seed), {k: v.numpy() for k, v in model.encode(x).items()})
    mean = model.reconstruct(
        tf.constant(x), seed=random.fold_in(random.fold_in(random.row_keys(seed), random.SERVING), 2)
    ).numpy()
    assert_rows_close(call(signatures["reconstruct"], x, seed), {"x_mean": mean})
    drawn = model.sample(64, seed=random.fold_in(random.fold_in(random.row_keys(seed), random.SERVING), 3))
    assert_rows_close(call(signatures["sample"], x, seed), {k: v.numpy() for k, v in drawn.items()})


def test_the_density_sums_to_one_over_all_sixteen_observations(signatures):
    repeats = 200
    x = np.repeat(states(), repeats, axis=0)
    log_prob = call(signatures["log_prob"], x, np.arange(len(x)))["log_prob"].astype(np.float64)
    # Independent estimates of the sum: each adds one estimate of every state. A missing term such as log 2 pi of
    # one latent, or a sum over pixels that forgot one, moves the sum by more than 0.1.
    sums = np.exp(log_prob).reshape(16, repeats).sum(axis=0)
    assert_mean_close(sums, 1.0, resolution=0.02)


def test_samples_are_zeros_and_ones_with_the_frequencies_of_the_density(signatures):
    drawn = call(signatures["sample"], None or np.zeros([4000, 4]), np.arange(4000))
    assert set(np.unique(drawn["x"])) == {0.0, 1.0}
    assert np.all((drawn["x_mean"] > 0) & (drawn["x_mean"] < 1))
    index = (drawn["x"] @ (2 ** np.arange(4))).astype(int)
    counts = np.eye(16)[index]
    log_prob = call(signatures["log_prob"], np.repeat(states(), 20, axis=0), np.arange(320))["log_prob"]
    density = np.exp(log_prob.astype(np.float64)).reshape(16, 20).mean(axis=1)
    assert_mean_close(counts, density, resolution=0.045)


def test_rows_outside_the_support_have_no_density_and_disturb_no_other(signatures, batch):
    x, seed = batch[0][:12].copy(), batch[1][:12]
    good = {name: call(signatures[name], x, seed) for name in WITH_X}
    bad, keep = np.arange(6) * 2 + 1, np.arange(6) * 2
    for row, value in zip(bad, (np.nan, np.inf, -np.inf, 0.5, 2.0, -1.0), strict=True):
        x[row, row % 4] = value
    for name in WITH_X:
        found = call(signatures[name], x, seed)
        assert_rows_close({k: v[keep] for k, v in found.items()}, {k: v[keep] for k, v in good[name].items()})
        for key in ("log_prob", "elbo"):
            if key in found:
                assert np.all(found[key][bad] == -np.inf)
        if "bits_per_dim" in found:
            assert np.all(found["bits_per_dim"][bad] == np.inf)
        if name in ("encode", "reconstruct"):
            assert all(np.isnan(value[bad]).all() for value in found.values())


def test_the_weights_of_the_module_are_all_weights(trained):
    functional = Functional(trained.model)
    assert set(functional.parameters.paths) | set(functional.statistics.paths) == {
        variable.path for variable in trained.model.variables
    }

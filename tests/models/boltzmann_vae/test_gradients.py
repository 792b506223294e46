import json

import numpy as np
import pytest
import tensorflow_probability as tfp

from tfstruct.models.boltzmann_vae import gradients as estimators
from tfstruct.models.boltzmann_vae.gradients import COMPARED_AT, OPTIMUM, Estimator

POINT = np.array([0.3, -0.2, 0.1, 0.4, -0.3])
TARGET = np.array(OPTIMUM)
DRAWS = 200_000


def numerical_gradient(function, at, step=1e-6):
    at = np.asarray(at, np.float64)
    moves = step * np.eye(len(at))
    return np.stack([(function(at + move) - function(at - move)) / (2.0 * step) for move in moves], axis=-1)


def mean_and_covariance(parameters):
    factor = np.array([[np.exp(parameters[2]), 0.0], [parameters[3], np.exp(parameters[4])]])
    return parameters[:2], np.linalg.inv(factor @ factor.T)


def gaussian(parameters):
    loc, covariance = mean_and_covariance(parameters)
    return tfp.distributions.MultivariateNormalTriL(loc, np.linalg.cholesky(covariance))


def draws_of(estimator, parameters=COMPARED_AT, num=DRAWS):
    return estimators.gradient_draws(estimator, parameters, num, np.random.default_rng(3))


def assert_mean_is(draws, expected):
    """The mean of draws [S, 5] lies within 4.5 standard errors of what is expected, in every component."""
    std_err = draws.std(axis=0) / np.sqrt(len(draws))
    assert std_err.max() < 0.013, "the resolution of the comparison; the gradient has norm 1.5"
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - expected), 4.5 * std_err + 1e-12)


def expected_term_2(parameters, num_sweeps):
    """The exact mean of the estimator without term I: source and cost are fixed, the kernel's parameters move.

    A sweep is linear in the state with Gaussian noise, so that the mean cost of what comes out is in closed form.
    """
    loc_0, covariance_0 = mean_and_covariance(np.asarray(parameters))
    inverse_0, inverse_p = np.linalg.inv(covariance_0), np.array(estimators.TARGET_PRECISION)

    def mean_cost(moved):
        loc, covariance = mean_and_covariance(moved)
        precision = np.linalg.inv(covariance)
        first, second = precision[0, 1] / precision[0, 0], precision[0, 1] / precision[1, 1]
        linear = np.array([[0.0, -first], [0.0, first * second]])
        noise = np.array([[precision[0, 0] ** -0.5, 0.0], [-second * precision[0, 0] ** -0.5, precision[1, 1] ** -0.5]])
        mean, spread = loc_0 - loc, covariance_0
        for _ in range(num_sweeps):
            mean, spread = linear @ mean, linear @ spread @ linear.T + noise @ noise.T
        mean = mean + loc

        def energy(centre, inverse):
            return 0.5 * (np.trace(inverse @ spread) + (mean - centre) @ inverse @ (mean - centre))

        return energy(np.array(estimators.TARGET_LOC), inverse_p) - energy(loc_0, inverse_0)

    return numerical_gradient(mean_cost, parameters)


def test_the_divergence_is_that_of_two_gaussians_and_zero_at_the_optimum():
    expected = tfp.distributions.kl_divergence(gaussian(POINT), gaussian(TARGET)).numpy()
    np.testing.assert_allclose(estimators.divergence(POINT), expected, rtol=1e-10)
    np.testing.assert_allclose(estimators.divergence(OPTIMUM), 0.0, atol=1e-14)
    both = np.stack([POINT, TARGET])
    np.testing.assert_allclose(estimators.divergence(both), [expected, 0.0], atol=1e-14)


def test_the_exact_gradient_is_that_of_finite_differences():
    expected = numerical_gradient(estimators.divergence, POINT)
    np.testing.assert_allclose(estimators.divergence_gradient(POINT), expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(estimators.divergence_gradient(OPTIMUM), np.zeros(5), atol=1e-12)


def test_the_score_and_the_density_are_those_of_a_gaussian(rng):
    z = rng.standard_normal([7, 2])
    log_prob = lambda parameters: estimators._Energy(parameters).log_prob(z)  # noqa: E731
    np.testing.assert_allclose(log_prob(POINT), gaussian(POINT).log_prob(z).numpy(), rtol=1e-10)
    expected = numerical_gradient(log_prob, POINT)
    np.testing.assert_allclose(estimators._Energy(POINT).score(z), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("num_sweeps", [0, 1, 3])
def test_gradients_through_samples_and_sweeps_are_those_of_finite_differences(rng, num_sweeps):
    start, noise = rng.standard_normal([6, 2]), rng.standard_normal([max(num_sweeps, 1), 6, 2])
    adjoint = tuple(rng.standard_normal([2, 6]))

    def forward(parameters):
        energy = estimators._Energy(parameters)
        if not num_sweeps:
            return energy.sample(noise[0])
        return np.stack(energy.sweeps(start, noise)[-1], axis=-1)

    expected = numerical_gradient(lambda parameters: (forward(parameters) * np.stack(adjoint, -1)).sum(-1), POINT)
    energy = estimators._Energy(POINT)
    if num_sweeps:
        found = energy.through_sweeps(energy.sweeps(start, noise), noise, adjoint)
    else:
        found = energy.through_sample(forward(POINT), adjoint)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def test_sweeps_leave_the_distribution_as_it_is(rng):
    energy = estimators._Energy(POINT)
    exact = energy.sample(rng.standard_normal([100_000, 2]))
    moved = np.stack(energy.sweeps(exact, rng.standard_normal([2, 100_000, 2]))[-1], axis=-1)
    loc, covariance = mean_and_covariance(POINT)
    for states in (exact, moved):
        np.testing.assert_allclose(states.mean(axis=0), loc, rtol=0, atol=0.02)
        np.testing.assert_allclose(np.cov(states.T), covariance, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    "estimator",
    [Estimator("reinforce"), Estimator("reparameterised"), *(Estimator("gibbs", t, True) for t in (1, 2, 8))],
    ids=lambda estimator: estimator.name,
)
def test_unbiased_estimators_have_the_exact_gradient_as_their_mean(estimator):
    assert_mean_is(draws_of(estimator), estimators.divergence_gradient(COMPARED_AT))


@pytest.mark.parametrize("num_sweeps", [1, 2, 4])
def test_without_term_1_the_mean_is_that_of_the_kernel_alone(num_sweeps):
    assert_mean_is(draws_of(Estimator("gibbs", num_sweeps)), expected_term_2(COMPARED_AT, num_sweeps))


def test_the_bias_shrinks_with_the_sweeps_and_noise_grows_with_term_1():
    exact = estimators.divergence_gradient(COMPARED_AT)
    bias = [np.linalg.norm(expected_term_2(COMPARED_AT, t) - exact) for t in (1, 2, 4, 8)]
    assert bias[0] > 2 * bias[1] > 4 * bias[2] > 8 * bias[3]
    found = estimators.gradient_error(
        Estimator("gibbs", 1), COMPARED_AT, num_draws=DRAWS, num_samples=1, generator=np.random.default_rng(0)
    )
    assert abs(found["bias"] - bias[0]) < 4 * found["bias_std_err"]
    assert np.isclose(found["l2_error"] ** 2, found["bias"] ** 2 + found["std"] ** 2)
    spread = [draws_of(Estimator("gibbs", 1, has_score_term), num=20_000).std() for has_score_term in (False, True)]
    assert spread[1] > 1.5 * spread[0]


def test_more_samples_take_off_noise_and_no_bias():
    one, ten = (
        estimators.gradient_error(
            Estimator("gibbs", 1), COMPARED_AT, num_draws=2_000, num_samples=num, generator=np.random.default_rng(0)
        )
        for num in (1, 10)
    )
    assert np.isclose(ten["std"], one["std"] / np.sqrt(10))
    assert ten["bias"] == one["bias"]


def test_path_gradients_have_no_noise_at_the_optimum():
    for estimator in (Estimator("gibbs", 2), Estimator("reparameterised")):
        np.testing.assert_allclose(draws_of(estimator, OPTIMUM, 100), 0.0, atol=1e-12)


def test_seeds_are_independent_and_all_learn():
    values = estimators.learn(
        Estimator("gibbs", 1),
        num_steps=300,
        num_seeds=4,
        num_samples=5,
        learning_rate=0.02,
        record=[0, 300],
        generator=np.random.default_rng(0),
    )
    assert values.shape == (2, 4)
    np.testing.assert_allclose(values[0], estimators.divergence(estimators.START))
    assert values[1].max() < 0.1 * values[0, 0]
    assert len(np.unique(values[1])) == 4


def test_an_analysis_is_json_and_the_same_for_the_same_seed():
    options = {"num_steps": 20, "num_seeds": 2, "num_draws": 50}
    first, again, other = (estimators.analyse_gradients(**options, seed=seed) for seed in (1, 1, 2))
    for result in (first, again, other):
        assert json.loads(json.dumps(result, allow_nan=False))["steps"][-1] == 20
        assert result.pop("seconds") >= 0
    assert first == again
    assert first["curves"] != other["curves"]
    assert list(first["curves"]) == [estimator.name for estimator in estimators.ESTIMATORS]
    assert all(len(curve["kl"]) == len(first["steps"]) for curve in first["curves"].values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimators.analyse_gradients(num_seeds=0), "num_seeds must be at least 1, found 0"),
        (lambda: estimators.analyse_gradients(learning_rate=0.0), "learning_rate must be positive, found 0.0"),
        (lambda: draws_of(Estimator("gumbel"), num=1), "gibbs, reinforce or reparameterised, found 'gumbel'"),
        (lambda: draws_of(Estimator("gibbs", 0), num=1), "at least 1 sweep, found 0"),
        (lambda: estimators.analyse_gradients(num_steps=1, num_draws=1), "num_draws must be at least 2, found 1"),
    ],
)
def test_impossible_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

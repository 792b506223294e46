"""Estimators of the gradient of KL(q || p) for an undirected q, on a Gaussian of two variables where all is exact.

q has the energy (z - m)' C C' (z - m) / 2 with C lower-triangular and of positive diagonal, so that its precision CC'
stays positive definite. Its parameters are an array [..., 5]: m_1, m_2, log C_11, C_21, log C_22. The cost of a state
is log q(z) - log p(z), whose mean is the divergence; no estimator differentiates its log q with respect to the
parameters, for that part has mean zero. All is NumPy in float64: vectors of seeds and draws, gradients by hand.

References:
    Vahdat, Andriyash & Macready, Undirected Graphical Models as Approximate Posteriors, ICML 2020 (DVAE##),
    sections 3 and 3.1, figure 2.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tfstruct import progress

#: of the paper: mean and precision of p
TARGET_LOC = (1.0, 1.0)
TARGET_PRECISION = ((1.1, 0.9), (0.9, 1.1))
#: where learning starts: N(0, 1) twice
START = (0.0, 0.0, 0.0, 0.0, 0.0)
#: where gradients are compared: away from the optimum, and correlated, for where q is factorial a sweep has no bias.
#: The mean is (0.5, 0.5) and the precision [[1, 0.6], [0.6, 1]]
COMPARED_AT = (0.5, 0.5, 0.0, 0.6, float(np.log(0.8)))
GIBBS_SWEEPS = (1, 2, 4, 8)
_CHUNK = 20_000
_ADAM = (0.9, 0.999)


class Estimator(NamedTuple):
    """A way of estimating the gradient.

    Attributes:
        kind: `gibbs`: through t reparameterised sweeps from an exact sample z' (term II of eq. 9); `reinforce`: the
            score of z times its cost; `reparameterised`: through an exact sample.
        num_sweeps: t, of `gibbs`.
        has_score_term: adds term I, the score of z' times the cost of z; of `gibbs`.
    """

    kind: str
    num_sweeps: int = 0
    has_score_term: bool = False

    @property
    def name(self) -> str:
        """For files and legends."""
        if self.kind != "gibbs":
            return self.kind
        return f"gibbs t={self.num_sweeps}{' with I' if self.has_score_term else ''}"


ESTIMATORS = (
    *(Estimator("gibbs", num_sweeps) for num_sweeps in GIBBS_SWEEPS),
    *(Estimator("gibbs", num_sweeps, True) for num_sweeps in GIBBS_SWEEPS),
    Estimator("reinforce"),
    Estimator("reparameterised"),
)


class _Energy:
    """q of parameters [..., 5]; everything it returns broadcasts against states [..., 2]."""

    def __init__(self, parameters: np.ndarray) -> None:
        self.loc_1, self.loc_2, self.log_11, self.c_21, self.log_22 = np.moveaxis(parameters, -1, 0)
        self.c_11, self.c_22 = np.exp(self.log_11), np.exp(self.log_22)
        self.precision_2 = self.c_21**2 + self.c_22**2
        # z_1 given z_2 has mean m_1 - slope_1 (z_2 - m_2) and standard deviation scale_1; and the other way round.
        self.slope_1, self.scale_1 = self.c_21 / self.c_11, 1.0 / self.c_11
        self.slope_2, self.scale_2 = self.c_11 * self.c_21 / self.precision_2, self.precision_2**-0.5

    def whitened(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """C' (z - m)."""
        centred_1, centred_2 = z[..., 0] - self.loc_1, z[..., 1] - self.loc_2
        return self.c_11 * centred_1 + self.c_21 * centred_2, self.c_22 * centred_2

    def log_prob(self, z: np.ndarray) -> np.ndarray:
        first, second = self.whitened(z)
        return self.log_11 + self.log_22 - 0.5 * (first**2 + second**2) - np.log(2.0 * np.pi)

    def log_prob_gradient(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """With respect to z."""
        first, second = self.whitened(z)
        return -self.c_11 * first, -self.c_21 * first - self.c_22 * second

    def score(self, z: np.ndarray) -> np.ndarray:
        first, second = self.whitened(z)
        centred_1, centred_2 = z[..., 0] - self.loc_1, z[..., 1] - self.loc_2
        along_1, along_2 = self.c_11 * first, self.c_21 * first + self.c_22 * second
        return np.stack(
            [along_1, along_2, 1.0 - along_1 * centred_1, -first * centred_2, 1.0 - self.c_22 * second * centred_2],
            axis=-1,
        )

    def sample(self, noise: np.ndarray) -> np.ndarray:
        """Draws m + C'^-1 noise."""
        centred_2 = noise[..., 1] / self.c_22
        centred_1 = (noise[..., 0] - self.c_21 * centred_2) / self.c_11
        return np.stack([self.loc_1 + centred_1, self.loc_2 + centred_2], axis=-1)

    def through_sample(self, z: np.ndarray, adjoint: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Pulls a gradient with respect to z = sample(noise) back to the parameters."""
        centred_1, centred_2 = z[..., 0] - self.loc_1, z[..., 1] - self.loc_2
        to_first = adjoint[0] / self.c_11
        to_second = (adjoint[1] - self.c_21 * to_first) / self.c_22
        # C' dz = -dC' (z - m) for fixed noise.
        return np.stack(
            [
                *adjoint,
                -to_first * self.c_11 * centred_1,
                -to_first * centred_2,
                -to_second * self.c_22 * centred_2,
            ],
            axis=-1,
        )

    def sweeps(self, z: np.ndarray, noise: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """States of Gibbs sampling, first coordinate first; noise [t, ..., 2]."""
        states = [(z[..., 0], z[..., 1])]
        for step in noise:
            new_1 = self.loc_1 - self.slope_1 * (states[-1][1] - self.loc_2) + self.scale_1 * step[..., 0]
            new_2 = self.loc_2 - self.slope_2 * (new_1 - self.loc_1) + self.scale_2 * step[..., 1]
            states.append((new_1, new_2))
        return states

    def through_sweeps(self, states: list, noise: np.ndarray, adjoint: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Pulls a gradient with respect to the last of the states back to the parameters; the first one is fixed."""
        to_1, to_2 = adjoint
        loc_1, loc_2, slope_1, slope_2, scale_1, scale_2 = (np.zeros_like(to_1) for _ in range(6))
        for (new_1, _), (_, old_2), step in zip(states[:0:-1], states[-2::-1], noise[::-1], strict=True):
            loc_2 += to_2
            loc_1 += self.slope_2 * to_2
            slope_2 -= to_2 * (new_1 - self.loc_1)
            scale_2 += to_2 * step[..., 1]
            to_1 = to_1 - self.slope_2 * to_2
            loc_1 += to_1
            loc_2 += self.slope_1 * to_1
            slope_1 -= to_1 * (old_2 - self.loc_2)
            scale_1 += to_1 * step[..., 0]
            to_1, to_2 = np.zeros_like(to_1), -self.slope_1 * to_1
        by_precision = -2.0 * slope_2 * self.slope_2 / self.precision_2 - scale_2 * self.scale_2 / self.precision_2
        log_11 = -slope_1 * self.slope_1 - scale_1 * self.scale_1 + slope_2 * self.slope_2
        c_21 = slope_1 / self.c_11 + slope_2 * self.c_11 / self.precision_2 + by_precision * self.c_21
        return np.stack([loc_1, loc_2, log_11, c_21, by_precision * self.c_22**2], axis=-1)


def _target_cholesky() -> np.ndarray:
    """Parameters [5] of p."""
    factor = np.linalg.cholesky(np.array(TARGET_PRECISION))
    return np.array([*TARGET_LOC, np.log(factor[0, 0]), factor[1, 0], np.log(factor[1, 1])])


#: parameters at which q is p
OPTIMUM = tuple(_target_cholesky())


def divergence(parameters: Any) -> np.ndarray:
    """Returns KL(q || p) of parameters [..., 5] in nats, [...]."""
    return _divergence_and_gradient(np.asarray(parameters, np.float64))[0]


def divergence_gradient(parameters: Any) -> np.ndarray:
    """Returns the exact gradient [..., 5] of KL(q || p)."""
    return _divergence_and_gradient(np.asarray(parameters, np.float64))[1]


def _divergence_and_gradient(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    target = np.array(TARGET_PRECISION)
    energy = _Energy(parameters)
    factor = np.zeros([*parameters.shape[:-1], 2, 2])
    factor[..., 0, 0], factor[..., 1, 0], factor[..., 1, 1] = energy.c_11, energy.c_21, energy.c_22
    covariance = np.linalg.inv(factor @ np.swapaxes(factor, -1, -2))
    shift = parameters[..., :2] - np.array(TARGET_LOC)
    pull = shift @ target
    log_det = 2.0 * (energy.log_11 + energy.log_22) - np.linalg.slogdet(target)[1]
    trace = np.einsum("ij,...ji->...", target, covariance)
    value = 0.5 * (trace + (shift * pull).sum(axis=-1) - 2.0 + log_det)
    of_factor = (covariance - covariance @ target @ covariance) @ factor  # of C, for the precision is CC'
    gradient = np.stack(
        [
            pull[..., 0],
            pull[..., 1],
            of_factor[..., 0, 0] * energy.c_11,
            of_factor[..., 1, 0],
            of_factor[..., 1, 1] * energy.c_22,
        ],
        axis=-1,
    )
    return value, gradient


def gradient_draws(
    estimator: Estimator, parameters: Any, num_samples: int, generator: np.random.Generator
) -> np.ndarray:
    """Draws single-sample estimates of the gradient of KL(q || p).

    Args:
        estimator: which.
        parameters: of q, [..., 5].
        num_samples: S, draws for each.
        generator: of the noise.

    Returns:
        [..., S, 5], nats per unit of the parameter.

    Raises:
        ValueError: an unknown kind, or a number of sweeps below 1.
    """
    parameters = np.asarray(parameters, np.float64)[..., np.newaxis, :]
    energy, target = _Energy(parameters), _Energy(np.array(OPTIMUM))
    shape = [*parameters.shape[:-2], num_samples, 2]
    exact = energy.sample(generator.standard_normal(shape))

    def cost(z: np.ndarray) -> np.ndarray:
        return (energy.log_prob(z) - target.log_prob(z))[..., np.newaxis]

    def cost_gradient(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own, other = energy.log_prob_gradient(z), target.log_prob_gradient(z)
        return own[0] - other[0], own[1] - other[1]

    if estimator.kind == "reinforce":
        return energy.score(exact) * cost(exact)
    if estimator.kind == "reparameterised":
        return energy.through_sample(exact, cost_gradient(exact))
    if estimator.kind != "gibbs":
        raise ValueError(f"an estimator is gibbs, reinforce or reparameterised, found {estimator.kind!r}")
    if estimator.num_sweeps < 1:
        raise ValueError(f"the Gibbs estimator needs at least 1 sweep, found {estimator.num_sweeps}")
    noise = generator.standard_normal([estimator.num_sweeps, *shape])
    states = energy.sweeps(exact, noise)
    z = np.stack(states[-1], axis=-1)
    result = energy.through_sweeps(states, noise, cost_gradient(z))
    return result + energy.score(exact) * cost(z) if estimator.has_score_term else result


def gradient_error(
    estimator: Estimator, parameters: Any, *, num_draws: int, num_samples: int, generator: np.random.Generator
) -> dict[str, Any]:
    """Compares an estimator with the exact gradient at one q.

    Args:
        estimator: which.
        parameters: of q, [5].
        num_draws: single-sample estimates from which everything is computed, at least 2.
        num_samples: S, of an estimate as it is used.
        generator: of the noise.

    Returns:
        `l2_error`: root mean square L2 distance of an estimate by S samples from the exact gradient; `bias`: L2 norm of
        the mean less the exact gradient, with the part that the finite number of draws adds taken off, and
        `bias_std_err`, that part; `std`: root of the total variance of an estimate by S samples; `mean`, [5].
    """
    if num_draws < 2:
        raise ValueError(f"num_draws must be at least 2, found {num_draws}")
    exact = divergence_gradient(parameters)
    total, squares, done = np.zeros(5), np.zeros(5), 0
    while done < num_draws:
        count = min(_CHUNK, num_draws - done)
        draws = gradient_draws(estimator, parameters, count, generator) - exact
        total, squares, done = total + draws.sum(axis=0), squares + (draws**2).sum(axis=0), done + count
    mean = total / num_draws
    variance = ((squares / num_draws - mean**2) * num_draws / (num_draws - 1)).sum()
    noise = variance / num_draws
    squared_bias = max(float((mean**2).sum() - noise), 0.0)
    return {
        "l2_error": float(np.sqrt(squared_bias + variance / num_samples)),
        "bias": float(np.sqrt(squared_bias)),
        "bias_std_err": float(np.sqrt(noise)),
        "std": float(np.sqrt(variance / num_samples)),
        "mean": (mean + exact).tolist(),
    }


def learn(
    estimator: Estimator,
    *,
    num_steps: int,
    num_seeds: int,
    num_samples: int,
    learning_rate: float,
    record: Sequence[int],
    generator: np.random.Generator,
) -> np.ndarray:
    """Minimises KL(q || p) from `START` with Adam.

    Args:
        estimator: of the gradient.
        num_steps: updates.
        num_seeds: R runs at once, independent of one another.
        num_samples: S, averaged for each update.
        learning_rate: of every step.
        record: steps at which the divergence is written down, ascending, 0 for the start.
        generator: of the noise.

    Returns:
        KL(q || p), nats, [len(record), R].
    """
    parameters = np.tile(np.array(START), [num_seeds, 1])
    mean, square = np.zeros_like(parameters), np.zeros_like(parameters)
    found, wanted = [], set(record)
    for step in range(num_steps + 1):
        if step in wanted:
            found.append(divergence(parameters))
        if step < num_steps:
            gradient = gradient_draws(estimator, parameters, num_samples, generator).mean(axis=-2)
            mean = _ADAM[0] * mean + (1.0 - _ADAM[0]) * gradient
            square = _ADAM[1] * square + (1.0 - _ADAM[1]) * gradient**2
            corrected = [value / (1.0 - rate ** (step + 1)) for value, rate in zip((mean, square), _ADAM, strict=True)]
            parameters -= learning_rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    return np.array(found)


def analyse_gradients(
    *,
    num_steps: int = 2_000,
    num_seeds: int = 50,
    num_samples: int = 1,
    num_draws: int = 200_000,
    learning_rate: float = 0.01,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares the estimators: the divergence over the steps of learning, and the errors of their gradients.

    Args:
        num_steps: of learning.
        num_seeds: runs of each estimator.
        num_samples: S, for each update.
        num_draws: single-sample estimates for the errors of the gradient.
        learning_rate: of Adam.
        seed: of the noise.

    Returns:
        The problem; `steps`, those at which `curves[name]["kl"]` (nats, mean over the seeds, with `kl_std_err`) was
        written down; `gradient`, the exact one and `errors[name]` as of `gradient_error`; `seconds`.

    Raises:
        ValueError: numbers that are too small.
    """
    for name, number in {"num_steps": num_steps, "num_seeds": num_seeds, "num_samples": num_samples}.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, found {number}")
    if not learning_rate > 0.0:
        raise ValueError(f"learning_rate must be positive, found {learning_rate}")
    start = time.monotonic()
    record = sorted({round(step) for step in np.linspace(0, num_steps, 101)})
    curves, errors = {}, {}
    for index, estimator in enumerate(progress.track(ESTIMATORS, "estimator", "learning by estimators")):
        learn_noise, error_noise = np.random.default_rng([seed, index]).spawn(2)
        values = learn(
            estimator,
            num_steps=num_steps,
            num_seeds=num_seeds,
            num_samples=num_samples,
            learning_rate=learning_rate,
            record=record,
            generator=learn_noise,
        )
        std_err = values.std(axis=1, ddof=1) / np.sqrt(num_seeds) if num_seeds > 1 else None
        curves[estimator.name] = {
            "kl": values.mean(axis=1).tolist(),
            "kl_std_err": None if std_err is None else std_err.tolist(),
        }
        errors[estimator.name] = gradient_error(
            estimator, COMPARED_AT, num_draws=num_draws, num_samples=num_samples, generator=error_noise
        )
    exact = divergence_gradient(COMPARED_AT)
    return {
        "target_loc": TARGET_LOC,
        "target_precision": TARGET_PRECISION,
        "start": START,
        "steps": record,
        "curves": curves,
        "gradient": {
            "at": COMPARED_AT,
            "exact": exact.tolist(),
            "norm": float(np.linalg.norm(exact)),
            "errors": errors,
        },
        "seconds": time.monotonic() - start,
    }

"""What trained Boltzmann machine posteriors are like: how hard log Z is, how many modes they have, how fast they mix.

Machines come in batches, one per image; the prior is a batch of one. Numbers are returned as plain lists and floats,
which JSON takes; `tfstruct.models.boltzmann_vae.figures` draws them.

References:
    Vahdat, Andriyash & Macready, Undirected Graphical Models as Approximate Posteriors, ICML 2020 (DVAE##), section
    4.1.1, figure 4 and appendix D.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfstruct import progress
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from tfstruct.inference import annealing
from tfstruct.inference.mean_field import mean_field
from tfstruct.math import log_mean_exp
from tfstruct.models.boltzmann_vae.machines import (
    Machines,
    Parts,
    annealed,
    compiled,
    equilibrated,
    machine_of,
    parts_of,
    require_ascending,
    require_at_least,
    stream_key,
)

#: of the standard deviation of log Z at which machines are compared, nats
LEVEL = 1e-2
_BLOCK = 100  # mean-field iterations between two looks at convergence
_SUBSETS = 20  # of the starts, over which the number of modes that they find is averaged


# Partition functions -----------------------------------------------------------------------------------------


def _anneal_back(parts: Parts, key: tf.Tensor, initial: tf.Tensor, num_temperatures: int) -> tf.Tensor:
    rbm = RestrictedBoltzmannMachine(*parts)
    return annealing.log_partition(
        rbm, num_temperatures=num_temperatures, method="reverse", initial=initial, seed=key
    ).log_partition


def reference_log_partition(
    rbm: RestrictedBoltzmannMachine, *, num_temperatures: int, num_chains: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Estimates log Z of machines with batch [B] by many temperatures, from below and from above.

    Returns:
        `forward` with its `std_err`, and `reverse`, nats, [B]; forward is on average below log Z, reverse above it as
        far as the resampled states that it starts from are equilibrated.
    """
    samples = annealed(rbm, stream_key(seed, 0), num_temperatures=num_temperatures, num_chains=num_chains)
    forward, std_err, _ = annealing.mean_weight(samples.log_weights)
    initial = equilibrated(samples, stream_key(seed, 1))
    anneal_back = compiled(_anneal_back, num_temperatures=num_temperatures)
    reverse = anneal_back(parts_of(rbm), stream_key(seed, 2), initial)
    return {"forward": forward.numpy(), "std_err": std_err.numpy(), "reverse": reverse.numpy()}


def log_partition_estimates(
    rbm: RestrictedBoltzmannMachine,
    num_temperatures: Sequence[int],
    *,
    num_chains: int,
    num_repeats: int,
    base: str = "biases",
    seed: int = 0,
) -> np.ndarray:
    """Estimates log Z of machines with batch [B] again and again by each of the numbers of temperatures.

    Args:
        rbm: the machines.
        num_temperatures: T of each point.
        num_chains: C, of an estimate.
        num_repeats: R, independent estimates of each machine.
        base: where annealing starts, `biases` or `uniform`.
        seed: of the chains.

    Returns:
        Nats, [len(num_temperatures), R, B].
    """
    result = []
    for index, count in enumerate(progress.track(num_temperatures, "number", "annealing by numbers of temperatures")):
        key = stream_key(seed, 3, index)
        samples = annealed(rbm, key, num_temperatures=count, num_chains=num_repeats * num_chains, base=base)
        log_weights = tf.reshape(tf.cast(samples.log_weights, tf.float64), [num_repeats, num_chains, -1])
        result.append(log_mean_exp(log_weights, axis=1).numpy())
    return np.stack(result)


def temperature_curve(
    estimates: np.ndarray, reference: np.ndarray, num_temperatures: Sequence[int], level: float = LEVEL
) -> dict[str, Any]:
    """Says how good estimates of log Z are for each number of temperatures.

    Args:
        estimates: nats, [len(num_temperatures), R, B].
        reference: log Z, nats, [B].
        num_temperatures: ascending.
        level: see `temperatures_for`.

    Returns:
        `num_temperatures`; `error`, the mean over repeats and machines of the absolute difference from the reference;
        `bias`, that of the difference; `std`, the standard deviation over repeats, mean over machines; all in nats,
        one for each T. `reaches`: of that mean, see `temperatures_for`; `reached_by_machine`: of each machine, [B].
    """
    difference = estimates - reference
    by_machine = estimates.std(axis=1, ddof=1)
    std = by_machine.mean(axis=1).tolist()
    each = [temperatures_for(num_temperatures, values.tolist(), level)["num_temperatures"] for values in by_machine.T]
    return {
        "num_temperatures": list(num_temperatures),
        "error": np.abs(difference).mean(axis=(1, 2)).tolist(),
        "bias": difference.mean(axis=(1, 2)).tolist(),
        "std": std,
        "reaches": temperatures_for(num_temperatures, std, level),
        "reached_by_machine": each,
    }


def temperatures_for(num_temperatures: Sequence[int], std: Sequence[float], level: float = LEVEL) -> dict[str, Any]:
    """Finds the number of temperatures at which the standard deviation falls to a level, between points of a curve.

    Returns:
        `num_temperatures`, interpolated in logarithms, None where the level is not reached; `is_upper_bound`: the level
        was already reached at the first point.
    """
    reached = [index for index, value in enumerate(std) if value <= level]
    if not reached:
        return {"num_temperatures": None, "is_upper_bound": False}
    index = reached[0]
    if index == 0 or std[index] <= 0.0:
        return {"num_temperatures": float(num_temperatures[index]), "is_upper_bound": True}
    along = np.log(std[index - 1] / level) / np.log(std[index - 1] / std[index])
    before, after = num_temperatures[index - 1], num_temperatures[index]
    return {"num_temperatures": float(before * (after / before) ** along), "is_upper_bound": False}


def analyse_temperatures(
    machines: Machines,
    *,
    num_temperatures: Sequence[int] = tuple(2**power for power in range(3, 13)),
    reference_temperatures: int = 2**14,
    num_chains: int = 50,
    num_repeats: int = 10,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares how many temperatures estimating log Z of the prior and of the posteriors takes.

    Args:
        machines: of a run.
        num_temperatures: numbers of temperatures, ascending.
        reference_temperatures: of what is taken as log Z, more than any of them.
        num_chains: of an estimate; the reference has `num_repeats` times as many.
        num_repeats: estimates of each machine.
        level: of the standard deviation, nats. It falls with the number of chains as with that of temperatures: one
            that too few chains do not reach says nothing about machines.
        seed: of the chains.

    Returns:
        `level` as given; `reference`, for prior and posteriors, [B]; `curves`, see `temperature_curve`; `ratio`,
        temperatures that the prior takes to the level for each that posteriors take, both from their biases, with
        `level` and whether it is exact; its value None where one does not get there; `ratio_at_common_level`, the same
        for the lowest standard deviation that both reach; `seconds`.

    Raises:
        ValueError: numbers that are too small or not ascending.
    """
    num_temperatures = require_ascending("temperatures", num_temperatures, 1)
    require_at_least(num_temperatures[-1] + 1, reference_temperatures=reference_temperatures)
    require_at_least(1, chains=num_chains)
    require_at_least(2, repeats=num_repeats)
    if not level > 0.0:
        raise ValueError(f"level must be positive, found {level}")
    start = time.monotonic()
    # One batch, the prior last: what is compiled, once for each number of temperatures, serves both.
    num_posteriors, rbm = machines.posteriors.batch_shape[0], machines.posteriors
    places = {"posterior": slice(num_posteriors)}
    if machines.prior is not None:
        joined = zip(parts_of(machines.posteriors), parts_of(machines.prior), strict=True)
        rbm = machine_of([tf.concat(pair, axis=0) for pair in joined])
        places["prior"] = slice(num_posteriors, None)
    found = reference_log_partition(
        rbm, num_temperatures=reference_temperatures, num_chains=num_chains * num_repeats, seed=seed
    )
    estimates = log_partition_estimates(
        rbm, num_temperatures, num_chains=num_chains, num_repeats=num_repeats, seed=seed
    )
    references, curves = {}, {}
    for name, place in places.items():
        references[name] = {key: value[place].tolist() for key, value in found.items()}
        references[name]["mean_gap"] = float((found["reverse"] - found["forward"])[place].mean())
        curves[f"{name}, biases"] = temperature_curve(
            estimates[..., place], found["forward"][place], num_temperatures, level
        )
    if machines.prior is not None:
        uniform = log_partition_estimates(
            machines.prior, num_temperatures, num_chains=num_chains, num_repeats=num_repeats, seed=seed, base="uniform"
        )
        curves["prior, uniform"] = temperature_curve(
            uniform, found["forward"][places["prior"]], num_temperatures, level
        )
    ratio = common = None
    if machines.prior is not None:
        pair = [curves[f"{name}, biases"]["std"] for name in ("prior", "posterior")]
        ratio = _ratio(num_temperatures, pair, level)
        common = _ratio(num_temperatures, pair, max(min(std) for std in pair))
    return {
        "level": level,
        "reference": references,
        "curves": curves,
        "ratio": ratio,
        "ratio_at_common_level": common,
        "seconds": time.monotonic() - start,
    }


def _ratio(num_temperatures: Sequence[int], pair: Sequence[Sequence[float]], level: float) -> dict[str, Any]:
    first, second = (temperatures_for(num_temperatures, std, level) for std in pair)
    numbers = first["num_temperatures"], second["num_temperatures"]
    return {
        "level": level,
        "value": None if None in numbers else numbers[0] / numbers[1],
        "is_exact": None not in numbers and not (first["is_upper_bound"] or second["is_upper_bound"]),
    }


# Modes -------------------------------------------------------------------------------------------------------


def _descend(parts: Parts, mean_1: tf.Tensor, num_iterations: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    rbm = RestrictedBoltzmannMachine(*parts)
    before = mean_field(rbm, mean_1, num_iterations=num_iterations - 1)
    after = mean_field(rbm, before.mean_1, num_iterations=1)
    moved = tf.reduce_max(tf.abs(after.mean_1 - mean_1), axis=-1)
    return after.mean_1, after.mean_2, after.log_partition_bound, moved


class FixedPoints(NamedTuple):
    """Where mean-field descents from C starts end, for machines with batch [B].

    Attributes:
        means: of both sides, [C, B, V + H].
        bound: lower bound on log Z, nats, [C, B].
        has_converged: whether the last iterations moved no mean by the tolerance, [C, B].
    """

    means: np.ndarray
    bound: np.ndarray
    has_converged: np.ndarray


def fixed_points(
    rbm: RestrictedBoltzmannMachine, initial_1: tf.Tensor, *, tolerance: float = 1e-5, max_iterations: int = 10_000
) -> FixedPoints:
    """Descends from states of side 1 [C, B, V] until 100 iterations move no mean of side 1 by the tolerance.

    Args:
        rbm: machines with batch [B].
        initial_1: where to start.
        tolerance: largest change of a mean in 100 iterations.
        max_iterations: after which descents that still move are left where they are.
    """
    mean_1 = tf.convert_to_tensor(initial_1, rbm.dtype)
    descend = compiled(_descend, num_iterations=_BLOCK)
    for _ in progress.track(range(max(1, max_iterations // _BLOCK)), "block", "descending, at most"):
        mean_1, mean_2, bound, moved = descend(parts_of(rbm), mean_1)
        if float(tf.reduce_max(moved)) < tolerance:
            break
    means = np.concatenate([mean_1.numpy(), mean_2.numpy()], axis=-1)
    return FixedPoints(means, bound.numpy(), moved.numpy() < tolerance)


def mode_labels(means: np.ndarray, bound: np.ndarray, *, distance: float = 1e-2) -> np.ndarray:
    """Groups fixed points that are the same but for rounding.

    The best point that has no group yet takes all others whose means are all within `distance` of its own.

    Args:
        means: [C, M].
        bound: of each, [C].
        distance: largest difference of a mean within a group.

    Returns:
        Number of the group of each point, integers [C]; groups are numbered from the best bound on.
    """
    labels = np.full(len(means), -1)
    for index in np.argsort(-bound, kind="stable"):
        if labels[index] < 0:
            near = np.abs(means - means[index]).max(axis=-1) <= distance
            labels[near & (labels < 0)] = labels.max() + 1
    return labels


def modes_by_num_starts(labels: np.ndarray, seed: int = 0) -> dict[str, list]:
    """Counts how many modes subsets of the starts find: `num_starts`, powers of 2 up to C, and `num_modes`, means."""
    generator = np.random.default_rng(seed)
    counts = [2**power for power in range(len(labels).bit_length()) if 2**power < len(labels)] + [len(labels)]
    orders = [generator.permutation(len(labels)) for _ in range(_SUBSETS)]
    found = [float(np.mean([len(np.unique(labels[order[:count]])) for order in orders])) for count in counts]
    return {"num_starts": counts, "num_modes": found}


def analyse_modes(
    machines: Machines,
    *,
    num_chains: int = 200,
    prior_chains: int = 2_000,
    reference_temperatures: int = 1_000,
    tolerance: float = 1e-5,
    distance: float = 1e-2,
    seed: int = 0,
) -> dict[str, Any]:
    """Counts the modes of prior and posteriors, as fixed points of mean-field descents from annealed samples.

    Args:
        machines: of a run.
        num_chains: starts for each posterior, and chains of its log Z.
        prior_chains: starts for the prior.
        reference_temperatures: of annealing.
        tolerance: see `fixed_points`.
        distance: see `mode_labels`.
        seed: of the chains.

    Returns:
        `posterior`: `num_modes`, the share of the samples that lead to the best mode, `log_partition` with
        its standard error, `kl`, the divergence of the best mean field from the posterior in nats, [B] each, the
        `share_with_one_mode` and quantiles of the divergence; `prior`: the same of the prior, its modes' shares, and
        `by_num_starts`, see `modes_by_num_starts`; `seconds`.

    Raises:
        ValueError: numbers that are too small.
    """
    require_at_least(2, chains=num_chains, prior_chains=prior_chains)
    require_at_least(1, reference_temperatures=reference_temperatures)
    start = time.monotonic()

    def of(rbm: RestrictedBoltzmannMachine, count: int, purpose: int) -> tuple[dict[str, Any], np.ndarray]:
        samples = annealed(rbm, stream_key(seed, purpose), num_temperatures=reference_temperatures, num_chains=count)
        log_partition, std_err, _ = annealing.mean_weight(samples.log_weights)
        found = fixed_points(rbm, samples.z_1, tolerance=tolerance)
        every = range(found.bound.shape[1])
        labels = np.stack(
            [mode_labels(found.means[:, index], found.bound[:, index], distance=distance) for index in every]
        )
        divergence = log_partition.numpy() - found.bound.max(axis=0)
        return {
            "num_modes": [int(row.max()) + 1 for row in labels],
            "share_of_best_mode": (labels == 0).mean(axis=1).tolist(),
            "share_converged": float(found.has_converged.mean()),
            "log_partition": log_partition.numpy().tolist(),
            "log_partition_std_err": std_err.numpy().tolist(),
            "kl": divergence.tolist(),
        }, labels

    posterior, _ = of(machines.posteriors, num_chains, 4)
    posterior["share_with_one_mode"] = float(np.mean(np.array(posterior["num_modes"]) == 1))
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    posterior["kl_quantiles"] = {str(share): float(np.quantile(posterior["kl"], share)) for share in quantiles}
    prior = None
    if machines.prior is not None:
        prior, labels = of(machines.prior, prior_chains, 5)
        prior["share_of_modes"] = (np.bincount(labels[0]) / prior_chains).tolist()
        prior["by_num_starts"] = modes_by_num_starts(labels[0], seed)
    return {"posterior": posterior, "prior": prior, "seconds": time.monotonic() - start}

"""How far chains of Boltzmann machine posteriors are from their machines after few hard sweeps, and relaxed ones.

In the paper s counts the hard sweeps and t the relaxed ones. Weights are those of a trained run: what s and t do to
training is another question, that of runs with other `model.posterior_sweeps` and `model.relaxed_sweeps`.

References:
    Vahdat, Andriyash & Macready, Undirected Graphical Models as Approximate Posteriors, ICML 2020 (DVAE##), section 3.2
    and appendix D.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfstruct import progress, random
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from tfstruct.inference import gibbs
from tfstruct.models.boltzmann_vae.machines import (
    Machines,
    Parts,
    annealed,
    compiled,
    equilibrated,
    parts_of,
    require_ascending,
    require_at_least,
    stream_key,
)

_THINNING = 5  # sweeps between two states of a chain that are counted
_PURPOSE = 20  # the first of the keys used here


class Moments(NamedTuple):
    """Moments of the units of machines with batch [B].

    Attributes:
        marginals: means, [..., B, V + H].
        pairs: means of products of the two units of each of P pairs, [..., B, P].
    """

    marginals: np.ndarray
    pairs: np.ndarray

    def sizes(self) -> dict[str, list[float]]:
        """Mean absolute values of differences of moments, along the first axis."""
        return {name: np.abs(part).mean(axis=(1, 2)).tolist() for name, part in self._asdict().items()}


def unit_pairs(num_units: tuple[int, int], num_pairs: int, seed: int = 0) -> np.ndarray:
    """Draws pairs of different units, of any sides, as int32 [P, 2]; all pairs where there are no more."""
    total = sum(num_units)
    every = np.stack(np.triu_indices(total, 1), axis=-1).astype(np.int32)
    if num_pairs >= len(every):
        return every
    return every[np.sort(np.random.default_rng(seed).choice(len(every), num_pairs, replace=False))]


def _moments(z_1: tf.Tensor, z_2: tf.Tensor, pairs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    z = tf.concat([z_1, z_2], axis=-1)
    products = tf.gather(z, pairs[:, 0], axis=-1) * tf.gather(z, pairs[:, 1], axis=-1)
    return tf.reduce_mean(z, axis=0), tf.reduce_mean(products, axis=0)


def _start(parts: Parts, key: tf.Tensor, pairs: tf.Tensor, num_chains: int) -> tuple:
    rbm = RestrictedBoltzmannMachine(*parts)
    key_1, key_2 = random.split(key)
    chains = tf.zeros([num_chains, 1, 1])
    z_1 = gibbs.bernoulli(rbm.bias_1 + chains, key_1)
    return z_1, *_moments(z_1, gibbs.bernoulli(rbm.bias_2 + chains, key_2), pairs)


def _sweep(parts: Parts, z_1: tf.Tensor, key: tf.Tensor, pairs: tf.Tensor, num_sweeps: int) -> tuple:
    z_1, z_2 = gibbs.sweeps(RestrictedBoltzmannMachine(*parts), z_1, num_sweeps=num_sweeps, seed=key)
    return z_1, *_moments(z_1, z_2, pairs)


def hard_sweep_moments(
    rbm: RestrictedBoltzmannMachine, num_sweeps: Sequence[int], *, num_chains: int, pairs: np.ndarray, seed: int = 0
) -> Moments:
    """Moments after each of the numbers of Gibbs sweeps, of chains that start from the machine's biases alone.

    Args:
        rbm: machines with batch [B].
        num_sweeps: ascending; 0 is the start.
        num_chains: C.
        pairs: of units, [P, 2].
        seed: of the chains.

    Returns:
        With a leading axis of len(num_sweeps).
    """
    parts, pairs = parts_of(rbm), tf.constant(pairs)
    z_1, *moments = compiled(_start, num_chains=num_chains)(parts, stream_key(seed, _PURPOSE), pairs)
    sweep, found, done = compiled(_sweep, num_sweeps=1), [], 0
    for count in progress.track(num_sweeps, "length", "sweeping"):
        while done < count:
            z_1, *moments = sweep(parts, z_1, stream_key(seed, _PURPOSE + 1, done), pairs)
            done += 1
        found.append([part.numpy() for part in moments])
    return Moments(*(np.stack(part) for part in zip(*found, strict=True)))


def equilibrium(
    rbm: RestrictedBoltzmannMachine,
    *,
    num_temperatures: int,
    num_chains: int,
    num_sweeps: int,
    pairs: np.ndarray,
    seed: int = 0,
) -> tuple[Moments, tf.Tensor, dict[str, float]]:
    """Moments of machines with batch [B] from long runs of chains that start from annealed, resampled states.

    Args:
        rbm: the machines.
        num_temperatures: of annealing.
        num_chains: C.
        num_sweeps: of the runs, after a tenth as many that are not counted.
        pairs: of units, [P, 2].
        seed: of the chains.

    Returns:
        The moments; the last states of side 1, [C, B, V]; and the noise floor, the mean error of the moments of C
        states at one time.
    """
    samples = annealed(rbm, stream_key(seed, _PURPOSE + 2), num_temperatures=num_temperatures, num_chains=num_chains)
    z_1 = equilibrated(samples, stream_key(seed, _PURPOSE + 3))
    parts, pairs = parts_of(rbm), tf.constant(pairs)
    sweep, found = compiled(_sweep, num_sweeps=_THINNING), []
    num_blocks = max(2, num_sweeps // _THINNING)
    num_dropped = num_blocks // 10
    for index in progress.track(range(num_dropped + num_blocks), "block", "running chains to equilibrium"):
        z_1, *moments = sweep(parts, z_1, stream_key(seed, _PURPOSE + 4, index), pairs)
        if index >= num_dropped:
            found.append([part.numpy() for part in moments])
    blocks = Moments(*(np.stack(part) for part in zip(*found, strict=True)))
    result = Moments(*(part.mean(axis=0) for part in blocks))
    noise = Moments(*(part - mean for part, mean in zip(blocks, result, strict=True)))
    return result, z_1, {name: float(np.mean(values)) for name, values in noise.sizes().items()}


def _relax_beside(
    parts: Parts, zeta_1: tf.Tensor, z_1: tf.Tensor, key: tf.Tensor, pairs: tf.Tensor, relax: gibbs.Relax
) -> tuple:
    """One relaxed sweep of zeta_1 and one hard sweep of z_1 by the same noise; differences of halves of the chains."""
    rbm = RestrictedBoltzmannMachine(*parts)

    def harden(logits: tf.Tensor, unit: tf.Tensor) -> tf.Tensor:
        return tf.cast(unit > tf.sigmoid(-logits), unit.dtype)  # where relaxed states pass 1/2

    zeta_1, zeta_2, _ = gibbs.relaxed_sweeps(rbm, zeta_1, relax, num_sweeps=1, seed=key)
    z_1, z_2, _ = gibbs.relaxed_sweeps(rbm, z_1, harden, num_sweeps=1, seed=key)
    half = z_1.shape[0] // 2
    differences = []
    for place in (slice(half), slice(half, None)):
        relaxed, hard = _moments(zeta_1[place], zeta_2[place], pairs), _moments(z_1[place], z_2[place], pairs)
        differences.append([one - other for one, other in zip(relaxed, hard, strict=True)])
    return zeta_1, z_1, *(tf.stack(part) for part in zip(*differences, strict=True))


def relaxed_sweep_shifts(
    rbm: RestrictedBoltzmannMachine,
    z_1: tf.Tensor,
    relax: gibbs.Relax,
    num_sweeps: Sequence[int],
    *,
    pairs: np.ndarray,
    seed: int = 0,
) -> tuple[Moments, Moments]:
    """Differences of the moments of relaxed states from binary ones after each of the numbers of relaxed sweeps.

    A hard chain that stays equilibrated runs beside the relaxed one with the same noise, which takes most of the noise
    out of the difference.

    Args:
        rbm: machines with batch [B].
        z_1: equilibrated binary states that both chains start from, [C, B, V].
        relax: the relaxation; its states are above 1/2 where the noise is above the probability of a zero.
        num_sweeps: ascending, at least 1.
        pairs: of units, [P, 2].
        seed: of the noise.

    Returns:
        The differences, and half the difference between those of two halves of the chains, which is as large as the
        noise of the former; each with a leading axis of len(num_sweeps).
    """
    parts, pairs = parts_of(rbm), tf.constant(pairs)
    step = compiled(_relax_beside, relax=relax)
    zeta_1, shifts, noise = z_1, [], []
    for index in progress.track(range(num_sweeps[-1]), "sweep", "relaxing beside hard chains"):
        zeta_1, z_1, *halves = step(parts, zeta_1, z_1, stream_key(seed, _PURPOSE + 5, index), pairs)
        if index + 1 in num_sweeps:
            shifts.append([part.numpy().mean(axis=0) for part in halves])
            noise.append([0.5 * (part[0] - part[1]).numpy() for part in halves])
    shift, spread = (Moments(*(np.stack(part) for part in zip(*found, strict=True))) for found in (shifts, noise))
    return shift, spread


def rms_bias(shifts: Moments, noise: Moments) -> dict[str, list[float]]:
    """Root mean square of differences [T, B, ...], less that of their noise, as of `relaxed_sweep_shifts`; at least 0.

    Shift and noise are half the sum and half the difference of two independent halves. The difference of their squares
    is the product of the halves, in which noise has mean zero.
    """
    squares = {name: getattr(shifts, name) ** 2 - getattr(noise, name) ** 2 for name in Moments._fields}
    return {name: np.sqrt(np.maximum(part.mean(axis=(1, 2)), 0.0)).tolist() for name, part in squares.items()}


def analyse_sweeps(
    machines: Machines,
    *,
    hard_sweeps: Sequence[int] = (0, 1, 2, 5, 10, 20, 50),
    relaxed_sweeps: Sequence[int] = (1, 2, 4, 8),
    num_chains: int = 1_000,
    reference_temperatures: int = 1_000,
    reference_sweeps: int = 1_000,
    num_pairs: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures the bias of posterior chains by their numbers of hard and of relaxed sweeps.

    Args:
        machines: of a run.
        hard_sweeps: s of each point, from chains that start from the biases.
        relaxed_sweeps: t of each point, from equilibrated states.
        num_chains: for each posterior.
        reference_temperatures: of annealing to equilibrated states.
        reference_sweeps: over which the moments taken as exact are averaged.
        num_pairs: of units whose second moments are compared.
        seed: of chains and pairs.

    Returns:
        `num_pairs` that there were; `hard` and `relaxed`, each with `num_sweeps`, the mean absolute errors of
        `marginals` and of `pairs` over units, pairs and posteriors, and the `noise_floor` of both, which chains without
        bias would show; `relaxed` also with the root mean square `bias` of both, the noise taken off; `seconds`.

    Raises:
        ValueError: numbers that are too small or not ascending.
    """
    hard_sweeps = require_ascending("hard_sweeps", hard_sweeps, 0)
    relaxed_sweeps = require_ascending("relaxed_sweeps", relaxed_sweeps, 1)
    require_at_least(1, reference_temperatures=reference_temperatures, reference_sweeps=reference_sweeps)
    require_at_least(2, chains=num_chains)
    require_at_least(1, pairs=num_pairs)
    start, rbm = time.monotonic(), machines.posteriors
    pairs = unit_pairs(rbm.num_units, num_pairs, seed)
    reference, z_1, noise_floor = equilibrium(
        rbm,
        num_temperatures=reference_temperatures,
        num_chains=num_chains,
        num_sweeps=reference_sweeps,
        pairs=pairs,
        seed=seed,
    )
    hard = hard_sweep_moments(rbm, hard_sweeps, num_chains=num_chains, pairs=pairs, seed=seed)
    shifts, noise = relaxed_sweep_shifts(rbm, z_1, machines.relax, relaxed_sweeps, pairs=pairs, seed=seed)
    differences = Moments(*(found - exact for found, exact in zip(hard, reference, strict=True)))
    result = {
        "hard": {"num_sweeps": hard_sweeps}
        | differences.sizes()
        | {"noise_floor": {name: [value] * len(hard_sweeps) for name, value in noise_floor.items()}},
        "relaxed": {"num_sweeps": relaxed_sweeps}
        | shifts.sizes()
        | {"noise_floor": noise.sizes(), "bias": rms_bias(shifts, noise)},
    }
    return {"num_pairs": len(pairs), **result, "seconds": time.monotonic() - start}

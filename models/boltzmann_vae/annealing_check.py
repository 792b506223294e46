"""Whether annealing finds all of a Boltzmann VAE's prior and posteriors: two bases compared.

Every forward estimate of log Z is below it on average, and rarely much above. So an estimate from another base that is
higher, beyond its error, tells that the one in use has missed modes; one that is lower tells nothing of the one in use.
"""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from tfstruct.inference import annealing
from tfstruct.models.boltzmann_vae.config import Evaluation

if TYPE_CHECKING:
    from tfstruct.models.boltzmann_vae.model import BoltzmannVAE

_IMAGES, _CHAINS = 20, 100
#: Nats by which an estimate may be too low, or lower and upper ends of a bracket be apart, without a flag.
TOLERANCE = 0.5
#: Effective number of chains below which an estimate of log Z is flagged.
LEAST_SIZE = 10.0
_SIGMAS = 5.0


def check(
    model: "BoltzmannVAE", rows: np.ndarray, settings: Evaluation, prepared: Mapping[str, Any], *, seed: int = 0
) -> tuple[dict[str, Any], list[str]]:
    """Compares bases of annealing the prior and, if they are machines, the posteriors of the first 20 rows.

    Args:
        model: with the weights to check.
        rows: observations [n, *event_shape].
        settings: the evaluation's, with the numbers of temperatures.
        prepared: what `prepare_evaluation` has reported of the prior.
        seed: of the chains.

    Returns:
        `prior_base_excess` and `posterior_base_excess`, the largest excess over the estimate in use, nats, and the
        number of `posterior_base_misses`; and flags.
    """
    key = random.fold_in(random.fold_in(random.key(seed), random.DIAGNOSTICS), 1)
    report, flags = {}, []
    if model.prior is not None:
        flags += bracket_flags(prepared)
        other = annealed_log_partition(
            model.prior.machine(),
            random.fold_in(key, 0),
            num_temperatures=settings.prior_temperatures,
            num_chains=max(settings.prior_chains // 4, 2),
            base="fields",
        )
        used = np.array([prepared["prior_log_partition"], prepared["prior_log_partition_std_err"]])
        excess, missed = excess_of(used, other)
        report["prior_base_excess"] = float(excess)
        if missed:
            flags.append(
                f"annealing: log Z of the prior is {excess:.2f} nats higher when annealed from its fields: the "
                "estimate in use misses modes, and log-likelihoods are that much too high"
            )
    if model.config.model.posterior == "rbm":
        temperatures = settings.posterior_temperatures
        posteriors = model.machine(tf.constant(rows[:_IMAGES], tf.float32))
        pairs = [
            annealed_log_partition(
                posteriors, random.fold_in(key, 1 + index), num_temperatures=temperatures, num_chains=_CHAINS, base=base
            )
            for index, base in enumerate(("fields", "uniform"))
        ]
        excess, missed = excess_of(*pairs)
        report |= {"posterior_base_excess": float(excess.max()), "posterior_base_misses": int(missed.sum())}
        if missed.any():
            flags.append(
                f"annealing: {missed.sum()} of {len(excess)} posteriors have up to {excess.max():.2f} nats more when "
                f"annealed from fair coins in {temperatures} temperatures: their draws miss modes, and estimates of "
                "log p(x) are noisier than their errors say; raise evaluation.posterior_temperatures"
            )
    return report, flags


def annealed_log_partition(rbm: RestrictedBoltzmannMachine, key: tf.Tensor, **settings: Any) -> np.ndarray:
    """Log Z and its standard error, [2, ...]."""
    return np.stack(_compiled(rbm.bias_1, rbm.bias_2, rbm.coupling, key, **settings)).astype(np.float64)


@functools.partial(tf.function, jit_compile=True, autograph=False)
def _compiled(
    bias_1: tf.Tensor, bias_2: tf.Tensor, coupling: tf.Tensor, key: tf.Tensor, **settings: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    estimate = annealing.log_partition(RestrictedBoltzmannMachine(bias_1, bias_2, coupling), seed=key, **settings)
    return estimate.log_partition, estimate.std_err


def excess_of(used: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns by how much other estimates of log Z are higher than those used, nats, and where that is no chance.

    Args:
        used: estimates and their standard errors, nats, [2, ...].
        other: the same from another base.
    """
    excess = other[0] - used[0]
    # So written that what is not a number is no chance either.
    return excess, ~(excess <= np.maximum(TOLERANCE, _SIGMAS * np.hypot(used[1], other[1])))


def bracket_flags(prepared: Mapping[str, Any]) -> list[str]:
    """Returns the flags of a prior whose log Z is not known to half a nat, or rests on few chains."""
    size, flags = prepared["prior_effective_sample_size"], []
    if not size >= min(LEAST_SIZE, 0.5 * prepared["prior_chains"]):
        flags.append(
            f"few chains: log Z of the prior rests on {size:.1f} of {prepared['prior_chains']} annealed chains, and "
            "its standard error is unknown; raise evaluation.prior_temperatures"
        )
    lower, upper = prepared["prior_log_partition"], prepared["prior_log_partition_upper"]
    std_err = np.hypot(prepared["prior_log_partition_std_err"], prepared["prior_log_partition_upper_std_err"])
    if np.isfinite(std_err) and upper - lower <= max(TOLERANCE, _SIGMAS * std_err):
        return flags
    return [
        *flags,
        f"bracket: log Z of the prior is between {lower:.2f} (annealing) and {upper:.2f} (annealing back): "
        f"log-likelihoods may be up to {upper - lower:.2f} nats too high; raise evaluation.prior_temperatures",
    ]

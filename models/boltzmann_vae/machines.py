"""The machines of a trained Boltzmann VAE, and annealed samples of them, for the analyses of its posterior."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from tfstruct.inference import annealing, gibbs
from tfstruct.models.boltzmann_vae.model import BoltzmannVAE

#: what a machine is made of, as compiled functions take it
Parts = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


class Machines(NamedTuple):
    """The machines of a Boltzmann VAE.

    Attributes:
        prior: p(z), batch [1]; None for a conditional model.
        posteriors: q(z | x), batch [B].
        relax: as in training, (logits, uniform noise) to relaxed states.
    """

    prior: RestrictedBoltzmannMachine | None
    posteriors: RestrictedBoltzmannMachine
    relax: gibbs.Relax


def machines_of(model: BoltzmannVAE, rows: np.ndarray) -> Machines:
    """Returns the prior and the posteriors of observations [B, *event_shape], with the model's current weights.

    Raises:
        ValueError: a model whose posterior is no machine.
    """
    posteriors = machine_of(parts_of(model.machine(tf.constant(rows, tf.float32))))
    prior = None
    if model.prior is not None:
        machine = model.prior.machine()
        prior = machine_of([part[tf.newaxis] for part in (machine.bias_1, machine.bias_2, machine.coupling)])
    relaxation = model.posterior.relaxation
    return Machines(prior, posteriors, lambda logits, unit: relaxation(logits).sample_from_uniform(unit))


def parts_of(rbm: RestrictedBoltzmannMachine) -> Parts:
    """Biases of both sides and couplings."""
    return rbm.bias_1, rbm.bias_2, rbm.coupling


def machine_of(parts: Sequence[tf.Tensor]) -> RestrictedBoltzmannMachine:
    """The inverse of `parts_of`, without gradient."""
    return RestrictedBoltzmannMachine(*(tf.stop_gradient(tf.convert_to_tensor(part)) for part in parts))


def stream_key(seed: int, *purposes: int) -> tf.Tensor:
    """Returns the key of a purpose, which no other purpose of the same seed shares."""
    key = random.fold_in(random.key(seed), random.EVALUATION)
    for purpose in purposes:
        key = random.fold_in(key, purpose)
    return key


def require_at_least(least: int, **numbers: int) -> None:
    """Raises ValueError for a number below the least one."""
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} must be at least {least}, found {number}")


def require_ascending(name: str, numbers: Sequence[int], least: int) -> list[int]:
    """Returns the numbers as a list; raises ValueError unless they ascend from at least the least one on."""
    numbers = list(numbers)
    if not numbers or numbers[0] < least or numbers != sorted(set(numbers)):
        raise ValueError(f"{name} must be ascending integers from {least} on, found {numbers}")
    return numbers


@functools.lru_cache(maxsize=64)
def compiled(function: Callable, **settings: Any) -> Callable:
    """Returns a function of tensors, with hashable settings that are compiled into it, as XLA code."""
    return tf.function(functools.partial(function, **settings), jit_compile=True, autograph=False)


def _anneal(
    parts: Parts, key: tf.Tensor, num_temperatures: int, num_chains: int, base: str
) -> annealing.AnnealedSamples:
    return annealing.annealed_samples(
        RestrictedBoltzmannMachine(*parts),
        num_temperatures=num_temperatures,
        num_chains=num_chains,
        base=base,
        seed=key,
    )


def annealed(
    rbm: RestrictedBoltzmannMachine, key: tf.Tensor, *, num_temperatures: int, num_chains: int, base: str = "fields"
) -> annealing.AnnealedSamples:
    """Annealed samples as of `tfstruct.inference.annealing.annealed_samples`, compiled: [C, B] of a batch [B]."""
    anneal = compiled(_anneal, num_temperatures=num_temperatures, num_chains=num_chains, base=base)
    return anneal(parts_of(rbm), key)


def equilibrated(samples: annealing.AnnealedSamples, key: tf.Tensor) -> tf.Tensor:
    """Resamples annealed states of side 1 [C, B, V] by their weights."""
    chosen = annealing.systematic_resampling(tf.transpose(samples.log_weights), key)
    states = tf.gather(tf.transpose(samples.z_1, [1, 0, 2]), chosen, batch_dims=1)
    return tf.transpose(states, [1, 0, 2])

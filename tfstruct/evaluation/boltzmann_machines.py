"""The machines of a trained Boltzmann VAE, and annealed samples of them, for the analyses of its posterior."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfstruct import random
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from tfstruct.evaluation.report import TrainedRun, evaluation_rows
from tfstruct.inference import annealing, gibbs

#: what a machine is made of, as compiled functions take it
Parts = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


class Machines(NamedTuple):
    """The machines of a trained run.

    Attributes:
        prior: p(z), batch [1]; None for a conditional model.
        posteriors: q(z | x), batch [B].
        relax: of the run's training, (logits, uniform noise) to relaxed states.
        source: of which run and images they are.
    """

    prior: RestrictedBoltzmannMachine | None
    posteriors: RestrictedBoltzmannMachine
    relax: gibbs.Relax
    source: dict[str, Any]


def machines_of(run: TrainedRun, *, num_images: int = 20, replica: int = 0) -> Machines:
    """Returns the prior and the posteriors of the first test images with a run's best weights.

    Args:
        run: of a Boltzmann VAE whose posterior is a machine.
        num_images: B.
        replica: of the run.

    Raises:
        ValueError: another kind of run, or a number of images or a replica that there is not.
    """
    system = run.config.system
    if system != "boltzmann_vae" or run.config.model.posterior != "rbm":
        posterior = f" with model.posterior={run.config.model.posterior}" if system == "boltzmann_vae" else ""
        raise ValueError(
            f"{run.folder.path}: expected a run of system boltzmann_vae with model.posterior=rbm, found {system}"
            f"{posterior}"
        )
    rows = evaluation_rows(run.data, "test")
    if not 1 <= num_images <= len(rows):
        raise ValueError(f"images must be 1 to {len(rows)}, the size of the test split, found {num_images}")
    model = run.use(replica)
    prior = None
    if model.prior is not None:
        machine = model.prior.machine()
        prior = machine_of([part[tf.newaxis] for part in (machine.bias_1, machine.bias_2, machine.coupling)])
    source = {
        "workdir": str(run.folder.path),
        "preset": run.config.preset,
        "replica": replica,
        "best_step": int(run.weights.steps[replica]),
        "data": f"{run.data.name}/{run.data.variant}",
        "split": "test",
        "num_images": num_images,
        "num_units": list(model.num_units),
    }
    relaxation = model.posterior.relaxation
    return Machines(
        prior,
        machine_of(parts_of(model.machine(tf.constant(rows[:num_images])))),
        lambda logits, unit: relaxation(logits).sample_from_uniform(unit),
        source,
    )


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

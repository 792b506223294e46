"""The prior of a Boltzmann VAE: the gradient of its log Z while training, and log Z itself for evaluation.

The two are never mixed: samples of chains that persist know the gradient, annealing knows the value.
"""

import tensorflow as tf

from tfstruct import random
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from tfstruct.inference import annealing, gibbs
from tfstruct.models.boltzmann_vae.networks import BoltzmannPrior

SAMPLERS = ("population", "persistent")
_PARTING_SWEEPS = 50


def advance(prior: BoltzmannPrior, seed: tf.Tensor, *, num_sweeps: int, sampler: str) -> tf.Tensor:
    """Moves the prior's chains to its current weights; returns log Z as followed, with its gradient.

    The chains are samples of the machine of the step before. With `population` they are first resampled by the
    weights that lead from there to here. Log Z is followed by the trapezium rule: the mean of the log density's
    change over the samples of both machines. It needs no overlap of the two, and errs by the third order of a
    step. Chains apart are the samples: those that the gradient is taken from lie where the last step has lowered
    the density, and would find log Z to fall.

    Args:
        prior: the weights; its chains and what follows log Z are moved on.
        seed: a key [2].
        num_sweeps: of Gibbs sampling.
        sampler: `population` or `persistent`.
    """
    machine, before = prior.machine(), prior.followed_machine()

    def change(z_1: tf.Tensor) -> tf.Tensor:
        return tf.stop_gradient(before.free_energy_1(z_1) - machine.free_energy_1(z_1))

    sizes = [prior.num_chains, prior.num_followers]
    z_1, followers = tf.convert_to_tensor(prior.chains), tf.convert_to_tensor(prior.followers)
    change_1, change_of_followers = tf.split(change(tf.concat([z_1, followers], axis=0)), sizes)
    keys = random.split(seed, 3)
    if sampler == "population":
        z_1 = tf.gather(z_1, annealing.systematic_resampling(change_1, keys[0]))
        followers = tf.gather(followers, annealing.systematic_resampling(change_of_followers, keys[1]))
    states = tf.concat([z_1, followers], axis=0)
    states, _ = gibbs.sweeps(machine, states, num_sweeps=num_sweeps, seed=keys[2])
    z_1, followers = tf.split(states, sizes)
    moved = 0.5 * (tf.reduce_mean(change_of_followers) + tf.reduce_mean(change(followers)))
    value = tf.convert_to_tensor(prior.followed_log_partition) + moved
    prior.chains.assign(z_1)
    prior.followers.assign(followers)
    prior.followed_log_partition.assign(value)
    for held, weight in zip(prior.followed, (machine.bias_1, machine.bias_2, machine.coupling), strict=True):
        held.assign(tf.stop_gradient(weight))
    # Side 2 summed out, as for the weights: the same expectation with less noise.
    negative_phase = tf.reduce_mean(-machine.free_energy_1(z_1))
    return tf.stop_gradient(value) + negative_phase - tf.stop_gradient(negative_phase)


def estimate_partition(
    bias_1: tf.Tensor,
    bias_2: tf.Tensor,
    coupling: tf.Tensor,
    key: tf.Tensor,
    *,
    num_temperatures: int,
    num_chains: int,
    num_kept: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Log Z from below and from above, each followed by its standard error, what they rest on, and states of side 1.

    What they rest on is the smaller effective sample size of the two: with all weight on few chains neither estimate
    nor error says much. There are `num_kept` states. From above it is as far as the states that are annealed back, the
    forward ones resampled, are equilibrated.
    """
    machine = RestrictedBoltzmannMachine(bias_1, bias_2, coupling)
    forward_key, resample_key, sweep_key, reverse_key = random.split(key, 4)
    options = {"num_temperatures": num_temperatures, "base": "uniform"}
    forward = annealing.log_partition(machine, num_chains=num_chains, seed=forward_key, **options)
    resampled = [
        tf.gather(forward.z_1, annealing.systematic_resampling(forward.log_weights, key, count))
        for key, count in zip(random.split(resample_key), (num_chains, num_kept), strict=True)
    ]
    # Copies of one state part again before they are annealed back.
    states, _ = gibbs.sweeps(machine, resampled[0], num_sweeps=_PARTING_SWEEPS, seed=sweep_key)
    reverse = annealing.log_partition(machine, method="reverse", initial=states, seed=reverse_key, **options)
    size = tf.minimum(forward.effective_sample_size, reverse.effective_sample_size)
    return forward.log_partition, forward.std_err, reverse.log_partition, reverse.std_err, size, resampled[1]

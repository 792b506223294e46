"""Posteriors of the Boltzmann VAEs: how they are drawn while training, relaxed, and when evaluating, binary."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

from tfstruct import random
from tfstruct.distributions.relaxed_bernoulli import RELAXATIONS, Power, RelaxedBernoulli
from tfstruct.inference import annealing, gibbs
from tfstruct.inference.mean_field import entropy_of_logits, mean_field
from tfstruct.models.boltzmann_vae.config import Model, Sharpness
from tfstruct.models.boltzmann_vae.networks import BoltzmannHead, DirectedHead

#: name of the chains of a posterior in a training state
CHAINS = "posterior"
_BOUND_ITERATIONS = 3
_MARGINAL_ITERATIONS = 50


class Draw(NamedTuple):
    """K draws for each of B observations, M = V + H units.

    Attributes:
        z: what the decoder reads, [K, B, M].
        sides: side 1 and side 2 at which the prior is taken: z itself, or means of it, [K, B, V] and [K, B, H].
        log_posterior: see ImportanceTerms, [K, B].
        log_posterior_path: see ImportanceTerms, [K, B].
        relaxation: of z, for the power function; None where the prior does not ask for it.
        chains: see ImportanceTerms.
        log_weights: logarithms of weights, up to a constant for each observation, under which binary draws follow q,
            [K, B]; None of relaxed ones.
    """

    z: tf.Tensor
    sides: tuple[tf.Tensor, tf.Tensor]
    log_posterior: tf.Tensor
    log_posterior_path: tf.Tensor
    relaxation: RelaxedBernoulli | None = None
    chains: Mapping[str, tf.Tensor] | None = None
    log_weights: tf.Tensor | None = None


def make_relaxation(name: str, sharpness: Sharpness) -> Callable[[tf.Tensor], RelaxedBernoulli]:
    """Returns what makes the relaxation of a name for logits; `gumbolt` is the Concrete one with another objective."""
    kind = RELAXATIONS["concrete" if name == "gumbolt" else name]
    return lambda logits: kind(logits, getattr(sharpness, name))


def bernoulli_log_prob(logits: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """Sum z log q + (1 - z) log (1 - q) over the last axis, for binary or relaxed z."""
    return tf.reduce_sum(z * logits - tf.nn.softplus(logits), axis=-1)


class MachinePosterior:
    """q(z | x) is a restricted Boltzmann machine.

    While training its Gibbs chains persist from visit to visit of a row: `sweeps` hard sweeps move them, and
    `relaxed_sweeps` relaxed ones, through which the gradient flows, follow. The normaliser of log q then is the
    mean-field bound, which is on average too small: the training bound that is shown is too low and its gradient,
    which takes the parameters of log q as fixed, does not see it.

    Evaluation draws z by annealed importance sampling, from the machine's fields, and uses the weights: `log_posterior`
    is such that log weights are unbiased for p(x) whatever the number of temperatures.

    References:
        DVAE##, sections 3.2 and 4.1, algorithm 1.
    """

    def __init__(self, head: BoltzmannHead, options: Model, num_samples: int) -> None:
        self.head, self.num_samples = head, num_samples
        self.sweeps, self.relaxed_sweeps = options.posterior_sweeps, options.relaxed_sweeps
        self.relaxation = make_relaxation(options.relaxation, options.sharpness)

    def relaxed(self, features: tf.Tensor, keys: tf.Tensor, chains: Mapping[str, tf.Tensor]) -> Draw:
        """Relaxed draws for keys [K, B, 2]; without chains they start from the machine's biases."""
        rbm = self.head.machine(features, training=True)
        num_samples = keys.shape[0]
        held = rbm.stopped()
        start_key, sweep_key, relaxed_key = random.split(keys, 3)
        if not chains:
            z_1 = gibbs.bernoulli(held.bias_1 + tf.zeros([num_samples, 1, 1]), start_key)
        else:
            z_1 = tf.cast(chains[CHAINS], rbm.dtype)
        z_1, _ = gibbs.sweeps(held, z_1, num_sweeps=self.sweeps, seed=sweep_key)
        zeta_1, zeta_2, logits_1 = gibbs.relaxed_sweeps(
            rbm,
            z_1,
            lambda logits, unit: self.relaxation(logits).sample_from_uniform(unit),
            num_sweeps=self.relaxed_sweeps,
            seed=relaxed_key,
        )
        # The energies are linear in side 1: for one sample its mean takes the place of the draw.
        side_1 = tf.sigmoid(logits_1) if num_samples == 1 else zeta_1
        bound = mean_field(held, tf.sigmoid(logits_1), num_iterations=_BOUND_ITERATIONS).log_partition_bound
        # One normaliser for all samples, the tightest: what differs between them would enter their relative weights.
        bound = tf.reduce_max(bound, axis=0, keepdims=True)
        log_posterior_path = -held.energy_of_sides(side_1, zeta_2) - bound
        return Draw(
            z=tf.concat([zeta_1, zeta_2], axis=-1),
            sides=(side_1, zeta_2),
            log_posterior=tf.stop_gradient(log_posterior_path),
            log_posterior_path=log_posterior_path,
            chains={CHAINS: z_1} if chains else None,
        )

    def binary(self, features: tf.Tensor, keys: tf.Tensor, num_temperatures: int) -> Draw:
        """Weighted binary draws for keys [K, B, 2]."""
        rbm = self.head.machine(features)
        samples = annealing.annealed_samples(rbm, num_temperatures=num_temperatures, seed=keys)
        log_posterior = -rbm.energy_of_sides(samples.z_1, samples.z_2) - samples.log_weights
        z = tf.concat([samples.z_1, samples.z_2], axis=-1)
        sides = (samples.z_1, samples.z_2)
        return Draw(z, sides, log_posterior, log_posterior, log_weights=samples.log_weights)

    def marginals(self, features: tf.Tensor) -> tf.Tensor:
        """Mean-field probabilities of ones, [B, M]."""
        rbm = self.head.machine(features)
        found = mean_field(rbm, tf.sigmoid(rbm.bias_1), num_iterations=_MARGINAL_ITERATIONS)
        return tf.concat([found.mean_1, found.mean_2], axis=-1)


class DirectedPosterior:
    """q(z | x) is a product of groups, each factorial given the features and the groups before.

    Training terms by relaxation: `piecewise_linear` and `concrete` take the entropies, and the prior's energy as far
    as it can be, in closed form for one sample under the plain gradient, and everything at the relaxed point otherwise;
    `gumbolt` takes everything at the relaxed point; `power` takes densities of the relaxed variables.

    References:
        DVAE##, sections 4.1 and 4.2 and appendix B; Khoshaman & Amin, GumBolt, 2018; Vahdat, Andriyash & Macready,
        DVAE#, 2018.
    """

    def __init__(self, head: DirectedHead, options: Model, num_samples: int, *, is_plain: bool, num_1: int) -> None:
        self.head, self.name, self.num_1 = head, options.relaxation, num_1
        self.relaxation = make_relaxation(options.relaxation, options.sharpness)
        self.in_closed_form = is_plain and num_samples == 1 and self.name in ("piecewise_linear", "concrete")
        if self.in_closed_form and head.num_groups > 1 and 2 * num_1 != head.num_units:
            raise ValueError(f"groups={head.num_groups} needs sides of equal size, found {num_1} of {head.num_units}")
        if self.in_closed_form and head.num_groups > 1 and head.num_groups % 2:
            raise ValueError(f"model.groups must be 1 or even, found {head.num_groups}")

    def relaxed(self, features: tf.Tensor, keys: tf.Tensor, chains: Mapping[str, tf.Tensor]) -> Draw:
        """Relaxed draws for keys [K, B, 2]."""
        del chains  # there are none
        logits, zeta = self._drawn(
            features, keys, lambda logits, unit: self.relaxation(logits).sample_from_uniform(unit)
        )
        if self.in_closed_form:
            probs = tf.sigmoid(logits)
            first = probs if self.head.num_groups == 1 else zeta
            log_posterior = -entropy_of_logits(logits)
            return Draw(zeta, (first[..., : self.num_1], probs[..., self.num_1 :]), log_posterior, log_posterior)
        held = self.head.logits_of(tf.stop_gradient(features), zeta, stopped=True)
        sides = zeta[..., : self.num_1], zeta[..., self.num_1 :]
        if self.name == "power":
            log_prob = lambda logits: tf.reduce_sum(self.relaxation(logits).log_density(zeta), axis=-1)  # noqa: E731
        else:
            log_prob = lambda logits: bernoulli_log_prob(logits, zeta)  # noqa: E731
        relaxation = self.relaxation(logits)
        return Draw(
            zeta, sides, log_prob(logits), log_prob(held), relaxation if isinstance(relaxation, Power) else None
        )

    def binary(self, features: tf.Tensor, keys: tf.Tensor, num_temperatures: int) -> Draw:
        """Binary draws for keys [K, B, 2]; they are exact and take no temperatures."""
        del num_temperatures
        logits, z = self._drawn(features, keys, lambda logits, unit: tf.cast(unit < tf.sigmoid(logits), logits.dtype))
        log_posterior = bernoulli_log_prob(logits, z)
        sides = (z[..., : self.num_1], z[..., self.num_1 :])
        return Draw(z, sides, log_posterior, log_posterior, log_weights=tf.zeros_like(log_posterior))

    def _drawn(self, features: tf.Tensor, keys: tf.Tensor, rule: gibbs.Relax) -> tuple[tf.Tensor, tf.Tensor]:
        """Logits and draws [K, B, M] by a rule that takes logits and uniform noise to states."""
        unit = gibbs.uniform_like(keys, tf.zeros([*_shape(keys), self.head.num_units]))
        groups = tf.split(unit, self.head.num_groups, axis=-1)
        return self.head(features, draw=lambda logits, group: rule(logits, groups[group]))

    def marginals(self, features: tf.Tensor) -> tf.Tensor:
        """Probabilities of ones, [B, M], each group's at the means of the groups before."""
        return self.head(features)[1]


def _shape(keys: tf.Tensor) -> list:
    """The leading axes of keys, known ones as integers."""
    return [size if size is not None else tf.shape(keys)[axis] for axis, size in enumerate(keys.shape[:-1])]

"""Boltzmann VAEs of a few latents, and their slow NumPy twin in float64 that knows every state of them."""

import numpy as np
import tensorflow as tf
from scipy import special

from tests.reference import networks
from tests.reference.boltzmann import Machine, states
from tests.reference.draws import draws
from tests.trainers import tiny
from tfstruct import random
from tfstruct.models import registry

KEY = random.key(17)
SHARED_KEY = random.key(5)
#: settings of a directed posterior with two groups on sides of equal size
TWO_GROUPS = {"posterior": "directed", "groups": 2, "num_units_1": 3, "num_units_2": 3}
CONDITIONAL = ("model.conditional=True", "objective.name=conditional")


def config(*overrides, event_shape=(2, 3), **model):
    """A config of 4 + 3 latents."""
    options = {"num_units_1": 4, "num_units_2": 3, "encoder_units": (5,), "decoder_units": (6,), **model}
    return tiny.changed("boltzmann_vae/tiny", overrides, event_shape=event_shape, **options)


def build(rng, *overrides, scale=0.5, **options):
    """The model of such a config with random weights, whose prior's log Z is known."""
    system = registry.build(config(*overrides, **options))
    for part in (system.encoder, system.head, system.decoder):
        networks.randomize(part, rng, scale)
    system.pixel_mean.assign(rng.uniform(0.2, 0.8, size=system.dims))
    if system.prior is not None:
        set_prior(system.prior, *(2.0 * scale * rng.normal(size=shape) for shape in shapes(system.num_units)))
    return system


def shapes(num_units):
    """Shapes of a machine's biases and couplings."""
    num_1, num_2 = num_units
    return (num_1,), (num_2,), (num_1, num_2)


def set_prior(prior, *parameters):
    """Gives a prior parameters, those that it follows included, and both forms of its log Z their exact value."""
    for weight, held, value in zip(
        (prior.bias_1, prior.bias_2, prior.coupling), prior.followed, parameters, strict=True
    ):
        weight.assign(value)
        held.assign(value)
    exact = machine(prior).log_partition
    prior.log_partition.assign(exact)
    prior.followed_log_partition.assign(exact)


def machine(prior):
    """The machine of a prior's current weights."""
    return Machine(*(np.asarray(weight) for weight in (prior.bias_1, prior.bias_2, prior.coupling)))


def images(rng, num, event_shape=(2, 3)):
    """Rows of zeros and ones."""
    return rng.integers(0, 2, size=[num, *event_shape]).astype(np.float32)


def terms(system, x, num_samples, **options):
    """The importance terms of rows at KEY."""
    return system.terms(tf.constant(x), draws(KEY, num_samples, **options))


def relaxed_terms(system, x, num_samples, **options):
    """The same while training."""
    return terms(system, x, num_samples, training=True, path=True, shared_seed=SHARED_KEY, **options)


def log_weights(found):
    """Log importance weights [K, B] in float64."""
    log_likelihood, log_prior, log_posterior = (np.asarray(part, np.float64) for part in found[:3])
    return log_likelihood + log_prior - log_posterior


def bernoulli_log_prob(logits, values):
    """Log probability of binary or relaxed values, summed over the last axis."""
    return np.sum(values * logits - np.logaddexp(0.0, logits), axis=-1)


def piecewise_linear(logits, unit, sharpness):
    """The relaxation of DVAE##, one formula."""
    probs = special.expit(logits)
    slope = sharpness / (4.0 * (probs * (1.0 - probs) + 0.01))
    return np.clip(0.5 + slope * (unit - 1.0 + probs), 0.0, 1.0)


def mean_field_bound(parameters, mean_1, num_iterations):
    """The mean-field bound on log Z of a machine after some iterations from means of side 1."""
    bias_1, bias_2, coupling = parameters
    for _ in range(num_iterations):
        mean_2 = special.expit(bias_2 + mean_1 @ coupling)
        mean_1 = special.expit(bias_1 + coupling @ mean_2)
    entropy = sum(special.entr(mean).sum() + special.entr(1.0 - mean).sum() for mean in (mean_1, mean_2))
    return entropy + bias_1 @ mean_1 + bias_2 @ mean_2 + mean_1 @ coupling @ mean_2


class Twin:
    """What a system's weights say in evaluation form; rows [*event_shape], latents [..., M]."""

    def __init__(self, system):
        self.options, self.dims = system.config.model, system.dims
        self.given_dims = self.dims // 2 if self.options.conditional else 0
        self.num_units = system.num_units
        self.states = states(sum(self.num_units))
        self.prior = None if system.prior is None else machine(system.prior)
        self.mean = np.asarray(system.pixel_mean, np.float64)
        weights = networks.named_weights(system)
        self.encoder, self.head, self.decoder = (
            networks.below(weights, name) for name in ("encoder", "posterior", "decoder")
        )

    def _hidden(self, inputs, weights):
        normalization = networks.below(weights, "normalization_0/normalization")
        return networks.hidden_layer(
            inputs,
            weights["dense_0/kernel"],
            weights.get("dense_0/bias"),
            normalization,
            self.options.activation,
            epsilon=self.options.batch_norm_epsilon,
            training=False,
        )

    def features(self, x):
        flat = np.asarray(x, np.float64).ravel().copy()
        if self.given_dims:
            flat[self.given_dims :] = 0.0
        return self._hidden(flat - self.mean, self.encoder)

    def logits(self, z):
        """Logits of the pixels that are modelled."""
        mean = np.clip(self.mean, 1e-3, 1.0 - 1e-3)[self.given_dims :]
        output = self._hidden(z, self.decoder) @ self.decoder["output/kernel"] + self.decoder["output/bias"]
        return output + np.log(mean / (1.0 - mean))

    def log_likelihood(self, x, z):
        return bernoulli_log_prob(self.logits(z), np.asarray(x, np.float64).ravel()[self.given_dims :])

    def log_prior(self, z):
        bias_1, bias_2, coupling = self.prior.parameters
        z_1, z_2 = z[..., : self.num_units[0]], z[..., self.num_units[0] :]
        return z_1 @ bias_1 + z_2 @ bias_2 + np.sum((z_1 @ coupling) * z_2, axis=-1) - self.prior.log_partition

    def posterior_parameters(self, x):
        """Biases and couplings of q(z | x) in zeros and ones, from fields and couplings of spins."""
        features, (num_1, num_2) = self.features(x), self.num_units
        fields = features @ self.head["fields/kernel"] + self.head["fields/bias"]
        raw = features @ self.head["couplings/kernel"] + self.head.get("couplings/bias", 0.0)
        normalization = networks.below(self.head, "normalization/normalization")
        if normalization:
            epsilon = self.options.batch_norm_epsilon
            raw = networks.batch_norm(raw, normalization, epsilon=epsilon, training=False)
        spins = 1.5 / np.sqrt(num_1) * raw.reshape(num_1, num_2)
        return (
            2.0 * (fields[:num_1] - spins.sum(axis=1)),
            2.0 * (fields[num_1:] - spins.sum(axis=0)),
            4.0 * spins,
        )

    def group_logits(self, x, z):
        """Logits of a directed posterior's groups given the draws [M] before each, [M]."""
        features, groups = self.features(x), self.options.groups
        found, before = [], np.zeros([0])
        for index in range(groups):
            inputs = np.concatenate([features, before])
            found.append(inputs @ self.head[f"group_{index}/kernel"] + self.head[f"group_{index}/bias"])
            before = z[: (index + 1) * len(z) // groups]
        return np.concatenate(found)

    def log_posterior(self, x):
        """Log q of every state."""
        if self.options.posterior == "directed":
            return np.array([bernoulli_log_prob(self.group_logits(x, z), z) for z in self.states])
        posterior, num_1 = Machine(*self.posterior_parameters(x)), self.num_units[0]
        energies = np.array([posterior.energy(z[:num_1], z[num_1:]) for z in self.states])
        return -energies - posterior.log_partition

    def log_prob(self, x):
        """Log p(x); of a conditional model log p(x_2 | x_1)."""
        latents = self.log_posterior(x) if self.given_dims else self.log_prior(self.states)
        return special.logsumexp(latents + self.log_likelihood(x, self.states))

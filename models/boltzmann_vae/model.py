"""Boltzmann VAEs: binary latents with an RBM prior, and a posterior that is an RBM as well (DVAE##) or directed.

With `model.conditional` the same posterior predicts the lower half of an image from the upper one (structured
prediction): there is no prior, z is drawn from q(z | x_1), and what is bounded is log p(x_2 | x_1).

References:
    Vahdat, Andriyash & Macready, Undirected Graphical Models as Approximate Posteriors, ICML 2020 (DVAE##).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.data import variants
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from tfstruct.inference import gibbs
from tfstruct.inference.mean_field import mean_field
from tfstruct.inference.objectives import Draws, ImportanceTerms
from tfstruct.layers.likelihood import Likelihood, make_likelihood
from tfstruct.layers.mlp import MLP, BlockOptions
from tfstruct.models.boltzmann_vae import annealing_check
from tfstruct.models.boltzmann_vae import prior as boltzmann_prior
from tfstruct.models.boltzmann_vae.config import Annealing, Config, Evaluation, Export
from tfstruct.models.boltzmann_vae.networks import BoltzmannHead, BoltzmannPrior, DirectedHead
from tfstruct.models.boltzmann_vae.posterior import CHAINS, DirectedPosterior, Draw, MachinePosterior
from tfstruct.models.parts import Needs, conditional
from tfstruct.models.query import Query
from tfstruct.models.system import System

_AUGMENTED_ITERATIONS = 5
_LEAST_MEAN = 1e-3
_KERNELS = "he_normal"


class BoltzmannVAE(System):
    """p(x, z) = p(x | z) exp(-E(z)) / Z over M = V + H binary latents z = [z_1, z_2].

    While training, latents are relaxed (model.relaxation) and the gradient of log Z comes from persistent Gibbs chains
    of the prior; its value is followed from step to step and good for curves only. Evaluation uses binary latents,
    and log Z as `prepare_evaluation` estimates it by annealed importance sampling.

    The encoder reads x less the training set's mean, and the logits of that mean are added to the decoder's: call
    `adapt` with training rows before training otherwise than by the trainer, which does it.

    Args:
        config: a preset's config (see models.presets); read are `model`, `objective`, `evaluation`, `data.event_shape`.

    Raises:
        ValueError: settings that do not go together; the message names them.
    """

    references = ("Vahdat, Andriyash & Macready, Undirected Graphical Models as Approximate Posteriors, ICML 2020",)
    evaluated_as = "binary latents, moving averages of batch normalisation"

    config: Config
    likelihood: Likelihood

    def __init__(self, config: Config, **kwargs) -> None:
        super().__init__(config, **kwargs)
        options = self.config.model
        self.dims = int(np.prod(self.event_shape))
        self.num_units = (options.num_units_1, options.num_units_2)
        self.num_latents = sum(self.num_units)
        if options.conditional:
            half = (self.event_shape[0] // 2, *self.event_shape[1:])
            self.target = conditional(half, half)
        self.given_dims = self.dims // 2 if self.target.is_conditional else 0
        block_options = BlockOptions.from_config(options, options.activation)
        self.encoder = MLP(options.encoder_units, None, block_options, kernel_initializer=_KERNELS, name="encoder")
        self.likelihood = make_likelihood(
            options.likelihood,
            self.target.part_shapes[1] if self.target.is_conditional else self.event_shape,
            log_variance_floor=options.log_variance_floor,
            num_components=options.num_components,
        )
        self.decoder = MLP(
            options.decoder_units,
            self.likelihood.num_outputs,
            block_options,
            kernel_initializer=_KERNELS,
            name="decoder",
        )
        num_samples = self.config.objective.num_samples
        if options.posterior == "rbm":
            self.head = BoltzmannHead(self.num_units, block_options, kernel_initializer=_KERNELS, name="posterior")
            self.posterior = MachinePosterior(self.head, options, num_samples)
        else:
            self.head = DirectedHead(self.num_latents, options.groups, kernel_initializer=_KERNELS, name="posterior")
            self.posterior = DirectedPosterior(
                self.head,
                options,
                num_samples,
                is_plain=not self.config.uses_path_gradient,
                num_1=self.num_units[0],
            )
        self.prior = None
        if not self.target.is_conditional:
            self.prior = BoltzmannPrior(self.num_units, options.prior_chains, name="prior")
        self._estimate_partition = tf.function(boltzmann_prior.estimate_partition, jit_compile=True, autograph=False)

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """Makes all weights; the event's shape is known from the config."""
        self.pixel_mean = self.add_weight(
            name="pixel_mean", shape=(self.dims,), initializer=keras.initializers.Constant(0.5), trainable=False
        )
        self.encoder.build((None, self.dims))
        self.head.build((None, self.config.model.encoder_units[-1]))
        self.decoder.build((None, self.num_latents))
        self.likelihood.build((None, self.dims - self.given_dims))
        if self.prior is not None:
            self.prior.build()
        self.built = True

    def adapt(self, rows: np.ndarray) -> None:
        """See System: takes the mean of every pixel."""
        means = variants.pixel_means(rows, self.train_transform, self.likelihood.scale)
        self.pixel_mean.assign(means)

    # Parts ---------------------------------------------------------------------------------------------------

    def _flatten(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.cast(x, self.compute_dtype), [-1, self.dims])

    def _features(self, flat: tf.Tensor, training: bool = False) -> tf.Tensor:
        if self.target.is_conditional:
            flat = flat * tf.constant(np.arange(self.dims) < self.given_dims, flat.dtype)
        if self.likelihood.scale != 1.0:
            flat /= self.likelihood.scale
        return self.encoder(flat - tf.convert_to_tensor(self.pixel_mean), training=training)

    def _outputs(self, z: tf.Tensor, training: bool = False) -> tf.Tensor:
        """What the likelihood takes, [..., O] for latents [..., M]: logits of the pixels that are modelled, mostly."""
        if not self.likelihood.has_mean_logits:
            return self.decoder(z, training=training)
        mean = tf.clip_by_value(tf.convert_to_tensor(self.pixel_mean), _LEAST_MEAN, 1.0 - _LEAST_MEAN)
        offset = tf.math.log(mean) - tf.math.log1p(-mean)
        return self.decoder(z, training=training) + offset[self.given_dims :]

    def machine(self, x: tf.Tensor) -> RestrictedBoltzmannMachine:
        """q(z | x) of observations [B, *event_shape], for a posterior that is a machine.

        Raises:
            ValueError: another posterior.
        """
        if not isinstance(self.head, BoltzmannHead):
            raise ValueError(f"model.posterior={self.config.model.posterior} is no Boltzmann machine")
        return self.head.machine(self._features(self._flatten(x)))

    # The contract --------------------------------------------------------------------------------------------

    def terms(self, x: tf.Tensor, draws: Draws) -> ImportanceTerms:
        """See System; the option `num_temperatures` is of annealing posteriors that are machines.

        Its default is that of the evaluation.
        """
        flat, training = self._flatten(x), draws.training
        features = self._features(flat, training)
        keys = random.keys_of_samples(draws.seed, draws.num_samples, tf.shape(flat)[0])
        if training:
            draw = self.posterior.relaxed(features, keys, draws.chains)
            log_prior = self._relaxed_log_prior(draw, draws.shared_seed)
        else:
            default = self.config.evaluation.posterior_temperatures
            draw = self.posterior.binary(features, keys, draws.options.get("num_temperatures", default))
            if self.prior is None:
                # The prior is q itself: what remains are the weights under which the draws follow it.
                log_weights = tf.convert_to_tensor(draw.log_weights)
                draw, log_prior = draw._replace(log_posterior=-log_weights), tf.zeros_like(log_weights)
            else:
                log_prior = self.prior.machine().log_prob(draw.z)
        outputs = self._outputs(draw.z, training)
        return ImportanceTerms(
            log_likelihood=self.likelihood.log_prob(outputs, flat[:, self.given_dims :]),
            log_prior=log_prior,
            log_posterior=draw.log_posterior,
            log_posterior_path=draw.log_posterior_path if draws.path else None,
            chains=draw.chains,
        )

    def _relaxed_log_prior(self, draw: Draw, shared_seed: tf.Tensor) -> tf.Tensor:
        """Log p at relaxed latents, [K, B], with the gradient of log Z from the prior's chains."""
        if self.prior is None:
            return tf.zeros_like(draw.log_posterior)
        options = self.config.model
        log_partition = boltzmann_prior.advance(
            self.prior, shared_seed, num_sweeps=options.prior_sweeps, sampler=options.prior_sampler
        )
        machine = self.prior.machine()
        if draw.relaxation is None:
            return -machine.energy_of_sides(*draw.sides) - log_partition
        # The relaxed variables' marginal: for fixed zeta another machine, whose biases hold log r_1 - log r_0.
        log_0, log_1 = draw.relaxation.log_components(draw.z)
        ratio_1, ratio_2 = machine.split(log_1 - log_0)
        augmented = RestrictedBoltzmannMachine(machine.bias_1 + ratio_1, machine.bias_2 + ratio_2, machine.coupling)
        start = tf.fill(tf.shape(ratio_1), 0.5)
        found = mean_field(augmented, start, num_iterations=_AUGMENTED_ITERATIONS, differentiable=True)
        return tf.reduce_sum(log_0, axis=-1) + found.log_partition_bound - log_partition

    def _fair_coins(self, num_rows: int, key: np.ndarray) -> dict[str, np.ndarray]:
        """First states of the chains of a machine posterior's rows."""
        shape = (num_rows, self.config.objective.num_samples, self.num_units[0])
        return {CHAINS: gibbs.fair_coins(key, shape)}

    def prepare_evaluation(self, settings: Annealing | Evaluation, *, seed: int = 0) -> dict[str, Any]:
        """See System: estimates log Z of the prior, and equilibrates the chains that samples start from.

        Args:
            settings: with `prior_temperatures` and `prior_chains` of annealing.
            seed: of the chains.

        Returns:
            Log Z from below with its standard error, from above by annealing back, the effective sample size of the
            chains, and the settings; nothing for a conditional model.
        """
        if self.prior is None:
            return {}
        num_temperatures, num_chains = settings.prior_temperatures, settings.prior_chains
        machine = self.prior.machine()
        # Not the purpose EVALUATION: row r of the held-out set has that key folded with r.
        key = random.fold_in(random.key(seed), random.PRIOR_ANNEALING)
        log_partition, std_err, upper, upper_std_err, size, chains = self._estimate_partition(
            machine.bias_1,
            machine.bias_2,
            machine.coupling,
            key,
            num_temperatures=num_temperatures,
            num_chains=num_chains,
            num_kept=self.prior.num_chains,
        )
        self.prior.log_partition.assign(log_partition)
        self.prior.chains.assign(chains)
        return {
            "prior_log_partition": float(log_partition),
            "prior_log_partition_std_err": float(std_err),
            "prior_log_partition_upper": float(upper),
            "prior_log_partition_upper_std_err": float(upper_std_err),
            "prior_effective_sample_size": float(size),
            "prior_temperatures": num_temperatures,
            "prior_chains": num_chains,
        }

    def report(
        self, rows: np.ndarray, settings: Evaluation, known: Mapping[str, Any], *, seed: int = 0
    ) -> tuple[dict[str, Any], list[str]]:
        """See System: whether annealing from another base finds more of the prior and of posteriors."""
        return annealing_check.check(self, rows, settings, known, seed=seed)

    def terms_options(self, settings: Annealing | Evaluation | Export) -> dict[str, Any]:
        """See System: temperatures of annealing a posterior that is a machine."""
        return {"num_temperatures": settings.posterior_temperatures}

    @property
    def queries(self) -> dict[str, Query]:
        """See System; a prior's log Z is estimated, and its samples are of Gibbs chains that are not quite its own."""
        own = super().queries
        if self.target.is_conditional:
            return own
        return own | {name: own[name]._replace(exactness="estimate") for name in ("elbo", "sample")}

    def sample(self, num: int | tf.Tensor, *, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System: Gibbs sampling of the prior from its stored chains.

        Raises:
            ValueError: a conditional model, which has no p(x_1).
        """
        if self.prior is None:
            raise ValueError("a model of the lower half given the upper one does not sample whole images")
        latent_key, pixel_key = random.split(seed)
        keys = random.keys_of_samples(latent_key, 1, num)[0]
        start_key, sweep_key = random.split(keys)
        stored = tf.convert_to_tensor(self.prior.chains)
        place = tf.cast(random.uniform(start_key, []) * float(self.prior.num_chains), tf.int32)
        z_1, z_2 = gibbs.sweeps(
            self.prior.machine(),
            tf.gather(stored, place),
            num_sweeps=self.config.model.sample_sweeps,
            seed=sweep_key,
        )
        outputs = self._outputs(tf.concat([z_1, z_2], axis=-1))
        x = self.likelihood.sample(outputs, pixel_key)
        return {"x_mean": self._shaped(self.likelihood.mean(outputs)), "x": self._shaped(x)}

    def encode(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System: probabilities of ones (of a machine those of its mean field) and standard deviations."""
        mean = self.posterior.marginals(self._features(self._flatten(x)))
        return {"z_mean": mean, "z_std": tf.sqrt(mean * (1.0 - mean))}

    def decode(self, z: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System; a conditional model gives zeros for the half that is given."""
        mean = self.likelihood.mean(self._outputs(tf.cast(z, self.compute_dtype)))
        return {"x_mean": self._shaped(mean)}

    def reconstruct(self, x: tf.Tensor, *, seed: tf.Tensor, num_temperatures: int | None = None) -> tf.Tensor:
        """See System; a conditional model completes the given half."""
        if num_temperatures is None:
            num_temperatures = self.config.evaluation.posterior_temperatures
        flat = self._flatten(x)
        keys = random.keys_of_samples(seed, 1, tf.shape(flat)[0])
        draw = self.posterior.binary(self._features(flat), keys, num_temperatures)
        mean = self.decode(draw.z[0])["x_mean"]
        if not self.target.is_conditional:
            return mean
        is_given = tf.reshape(tf.constant(np.arange(self.dims) < self.given_dims), self.event_shape)
        return tf.where(is_given, tf.reshape(flat, tf.shape(mean)), mean)

    def _shaped(self, values: tf.Tensor) -> tf.Tensor:
        """Pixels that are modelled [..., X] as observations, with zeros for those that are given."""
        padding = [[0, 0]] * (values.shape.rank - 1) + [[self.given_dims, 0]]
        shape = tf.concat([tf.shape(values)[:-1], self.event_shape], axis=0)
        return tf.reshape(tf.pad(values, padding), shape)

    @property
    def needs(self) -> Needs:
        """See System: q has encoder and head; kernels, scales and the prior's couplings decay, as in published code."""
        decayed = [
            variable
            for layer in (self.encoder, *self.head.linear_layers, self.decoder)
            for variable in layer.trainable_weights
            if variable.path.rpartition("/")[2] in ("kernel", "gamma")
        ]
        return Needs(
            posterior=[variable for layer in (self.encoder, self.head) for variable in layer.trainable_variables],
            decayed=decayed if self.prior is None else [*decayed, self.prior.coupling],
            chains=self._fair_coins if self.config.model.posterior == "rbm" else None,
        )

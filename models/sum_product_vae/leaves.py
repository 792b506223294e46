"""The VAEs at the leaves of a sum-product network: their networks, and the importance weights of leaves."""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.distributions.gaussian import LOG_TWO_PI
from tfstruct.distributions.pixels import Pixels
from tfstruct.models.sum_product_vae.networks import LeafConvDecoder, LeafConvEncoder, LeafMLP
from tfstruct.models.sum_product_vae.scopes import LeafScopes


class LeafDraw(NamedTuple):
    """K latents of every VAE and the importance weights of the leaves.

    Attributes:
        z: [V, K, B, Z].
        log_likelihood: log p(x_l | z) of the observed pixels, [L, K, B].
        log_prior: log p(z), [L, K, B].
        log_posterior: log q(z | x_l), [L, K, B].
        log_posterior_path: the same numbers with a gradient through z alone, [L, K, B].
        has_observed: whether any pixel of a VAE is observed, [V, B, 1]; None if all are.
    """

    z: tf.Tensor
    log_likelihood: tf.Tensor
    log_prior: tf.Tensor
    log_posterior: tf.Tensor
    log_posterior_path: tf.Tensor
    has_observed: tf.Tensor | None = None

    @property
    def log_weights(self) -> tf.Tensor:
        """Log importance weights, whose exponentials have the mean p_l(x_l); [L, K, B]."""
        return self.log_likelihood + self.log_prior - self.log_posterior


class LeafVAEs:
    """One VAE for every leaf, all of them as one batched network; the layers are the model's, which tracks them.

    p(z) = N(0, I); q(z | x_l) is a diagonal Gaussian of precision 1 + (output)**2.

    Args:
        options: the `model` node of a config.
        scopes: which pixels each VAE models.
        pixels: p(x | z).
        event_shape: of a whole observation.

    Raises:
        ValueError: convolutions over leaf regions that are not rectangles of one size.

    References:
        SPVAE, section 4, and its published code.
    """

    #: leaves that share the samples of one VAE
    leaves_per_vae = 1

    def __init__(self, options: Any, scopes: LeafScopes, pixels: Pixels, event_shape: tuple[int, ...]) -> None:
        self.scopes, self.pixels = scopes, pixels
        self.num_vaes, self.latent_dim = scopes.num_leaves_in_all, options.num_latents
        self.reads_mask = options.mask_input
        self.channels = 1  # of a leaf's inputs, between which the mask's stand
        if options.leaf_network == "mlp":
            hidden = options.hidden_units
            self.encoder: keras.layers.Layer = LeafMLP(
                self.num_vaes, hidden, self.latent_dim, num_networks=2, name="encoder"
            )
            self.decoder: keras.layers.Layer = LeafMLP(
                self.num_vaes,
                hidden,
                scopes.size * pixels.num_outputs,
                num_networks=pixels.num_networks,
                name="decoder",
            )
            return
        height, width, self.channels = scopes.image_shape(event_shape)
        filters, stride = options.conv_filters, options.conv_stride
        self.encoder = LeafConvEncoder(
            self.num_vaes,
            (height, width, self.channels * (1 + self.reads_mask)),
            filters,
            stride,
            options.conv_units,
            self.latent_dim,
            name="encoder",
        )
        self.decoder = LeafConvDecoder(
            self.num_vaes,
            (height, width, self.channels * pixels.num_outputs),
            filters,
            stride,
            num_heads=pixels.num_networks,
            name="decoder",
        )

    def build(self) -> None:
        """Makes all weights."""
        self.encoder.build((self.num_vaes, None, self.scopes.size * (1 + self.reads_mask)))
        self.decoder.build((self.num_vaes, None, self.latent_dim))

    def _inputs(self, values: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """What encoders read of values [regions, B, S]: those, and beside each its mask if they read it."""
        scopes = self.scopes
        parts = [values]
        if self.reads_mask:
            parts.append(tf.ones_like(values) if mask is None else mask)
        if scopes.is_padded:
            present = tf.cast(scopes.is_variable[:, np.newaxis], values.dtype)
            parts = [present * part for part in parts]
        shape = [len(scopes.variables), tf.shape(values)[1], scopes.size // self.channels, self.channels]
        beside = tf.concat([tf.reshape(part, shape) for part in parts], axis=-1)
        inputs = tf.reshape(beside, [shape[0], shape[1], scopes.size * len(parts)])
        return scopes.of_leaves(inputs)

    def posterior(self, flat: tf.Tensor, observed: tf.Tensor | None, fill: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and precision of q(z | x_l), each [V, B, Z]; 0 and 1 for VAEs without observed pixels.

        Args:
            flat: [B, D].
            observed: Boolean [B, D], or None for all.
            fill: what the encoders read in place of missing pixels, in [0, 1], [D].
        """
        values = flat / self.pixels.scale
        mask = None
        if observed is not None:
            values = tf.where(observed, values, fill)
            mask = self.scopes.of_regions(tf.cast(observed, values.dtype))
        mean, root = self.encoder(self._inputs(self.scopes.of_regions(values), mask))
        precision = 1.0 + tf.square(root)
        if mask is None:
            return mean, precision
        has_any = self.has_observed(observed)
        return tf.where(has_any, mean, tf.zeros_like(mean)), tf.where(has_any, precision, tf.ones_like(precision))

    def has_observed(self, observed: tf.Tensor) -> tf.Tensor:
        """Whether any pixel of each VAE is observed: Boolean [B, D] to [V, B, 1]."""
        any_of_region = tf.reduce_any(self.scopes.of_regions(observed), axis=-1, keepdims=True)
        return self.scopes.of_leaves(any_of_region)

    def decode(self, z: tf.Tensor) -> list[tf.Tensor]:
        """Outputs of the decoder's networks at latents [V, ..., Z], each [V, ..., S * P]."""
        outputs = self.decoder(tf.reshape(z, [self.num_vaes, -1, self.latent_dim]))
        shape = tf.concat([tf.shape(z)[:-1], [self.scopes.size * self.pixels.num_outputs]], axis=0)
        return [
            tf.ensure_shape(tf.reshape(output, shape), z.shape[:-1].concatenate(output.shape[-1:]))
            for output in outputs
        ]

    def draw(
        self, flat: tf.Tensor, seed: tf.Tensor, num_samples: int, fill: tf.Tensor, observed: tf.Tensor | None = None
    ) -> LeafDraw:
        """Draws K latents of every VAE; arguments as in `posterior`, seed as in System."""
        scopes = self.scopes
        if observed is not None:
            flat = tf.where(observed, flat, tf.zeros_like(flat))  # in every support, which a missing pixel need not be
        mean, precision = (part[:, tf.newaxis] for part in self.posterior(flat, observed, fill))
        noise = random.sample_normal(seed, num_samples, tf.shape(flat)[0], [self.num_vaes, self.latent_dim])
        noise = tf.transpose(tf.cast(noise, mean.dtype), [2, 0, 1, 3])
        z = mean + noise * tf.math.rsqrt(precision)
        x = scopes.of_leaves(scopes.of_regions(flat))[:, tf.newaxis]
        log_prob = self.pixels.log_prob(self.decode(z), x)
        counts = None
        if observed is not None:
            counts = scopes.of_leaves(scopes.of_regions(observed))[:, tf.newaxis]
        if scopes.is_padded:
            is_variable = scopes.of_leaves(tf.constant(scopes.is_variable))[:, tf.newaxis, tf.newaxis]
            counts = is_variable if counts is None else counts & is_variable
        if counts is not None:
            log_prob = tf.where(counts, log_prob, tf.zeros_like(log_prob))
        fixed_mean, fixed_precision = tf.stop_gradient(mean), tf.stop_gradient(precision)
        return LeafDraw(
            z=z,
            log_likelihood=tf.reduce_sum(log_prob, axis=-1),
            log_prior=self.log_prior(z),
            log_posterior=_log_normal(tf.square(noise), precision),
            log_posterior_path=_log_normal(fixed_precision * tf.square(z - fixed_mean), fixed_precision),
            has_observed=None if observed is None else self.has_observed(observed),
        )

    # What depends on the prior ---------------------------------------------------------------------------------

    def log_prior(self, z: tf.Tensor) -> tf.Tensor:
        """Log p_l(z) of latents [V, ..., Z] under the prior of every leaf, [L, ...]."""
        return _log_normal(tf.square(z), tf.ones([], z.dtype))

    def sample_prior(self, keys: tf.Tensor, leaves: tf.Tensor | None) -> tf.Tensor:
        """Draws latents [V, N, Z] from the priors of the leaves that are used.

        Args:
            keys: one for each row, [N, 2].
            leaves: Boolean [N, L]; None for a single leaf.
        """
        del leaves
        return tf.transpose(random.normal(keys, [self.num_vaes, self.latent_dim]), [1, 0, 2])

    def choose(self, draw: LeafDraw, keys: tf.Tensor, leaves: tf.Tensor | None) -> tf.Tensor:
        """Draws one of the K latents of every VAE by its weights for the leaf that is used; [V, B, Z].

        Args:
            draw: what is chosen from.
            keys: one for each row, [B, 2].
            leaves: as in `sample_prior`.
        """
        del leaves
        return self._choose(draw.z, draw.log_weights, keys)

    def _choose(self, z: tf.Tensor, log_weights: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        """One of latents [V, K, B, Z] by log weights [V, K, B]."""
        chosen = random.choose(tf.transpose(random.uniform(keys, [self.num_vaes])), log_weights, axis=1)
        return tf.reduce_sum(tf.one_hot(chosen, tf.shape(z)[1], axis=1)[..., tf.newaxis] * z, axis=1)

    def weights_of_vaes(self, leaf_weights: tf.Tensor | None) -> tf.Tensor | None:
        """Weights of leaves [N, L] as weights of the VAEs that draw their pixels, [N, V]."""
        return leaf_weights


def _log_normal(squares: tf.Tensor, precision: tf.Tensor) -> tf.Tensor:
    """Log density of a diagonal Gaussian from precision * (z - mean)**2, summed over the last axis."""
    return 0.5 * tf.reduce_sum(tf.math.log(precision) - squares - LOG_TWO_PI, axis=-1)

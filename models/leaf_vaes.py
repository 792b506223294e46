"""The VAEs at the leaves of a sum-product network: their networks, and what they say of the parts of an image."""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.distributions.pixels import Pixels
from tfstruct.layers.leaf_networks import LeafConvDecoder, LeafConvEncoder, LeafMLP
from tfstruct.models.leaf_scopes import LeafScopes

_LOG_2_PI = float(np.log(2.0 * np.pi))


class LeafDraw(NamedTuple):
    """K latents of every leaf and what they weigh.

    Attributes:
        z: [L, K, B, Z].
        log_likelihood: log p(x_l | z) of the observed pixels, [L, K, B].
        log_prior: log p(z), [L, K, B].
        log_posterior: log q(z | x_l), [L, K, B].
        log_posterior_path: the same numbers with a gradient through z alone, [L, K, B].
    """

    z: tf.Tensor
    log_likelihood: tf.Tensor
    log_prior: tf.Tensor
    log_posterior: tf.Tensor
    log_posterior_path: tf.Tensor

    @property
    def log_weights(self) -> tf.Tensor:
        """Log importance weights, whose exponentials have the mean p_l(x_l); [L, K, B]."""
        return self.log_likelihood + self.log_prior - self.log_posterior


class LeafVAEs:
    """All leaves as one batched network; the layers are the model's, which tracks them.

    p(z) = N(0, I); q(z | x_l) is a diagonal Gaussian of precision 1 + (output)**2.

    Args:
        options: the `model` node of a config.
        scopes: which pixels each leaf models.
        pixels: p(x | z).
        event_shape: of a whole observation.

    Raises:
        ValueError: convolutions over leaf regions that are not rectangles of one size.

    References:
        SPVAE, section 4, and its published code.
    """

    def __init__(self, options: Any, scopes: LeafScopes, pixels: Pixels, event_shape: tuple[int, ...]) -> None:
        self.scopes, self.pixels = scopes, pixels
        self.num_leaves, self.latent_dim = scopes.num_leaves_in_all, options.num_latents
        self.reads_mask = options.mask_input
        self.channels = 1  # of a leaf's inputs, between which the mask's stand
        if options.leaf_network == "mlp":
            hidden = options.hidden_units
            self.encoder: keras.layers.Layer = LeafMLP(
                self.num_leaves, hidden, self.latent_dim, num_networks=2, name="encoder"
            )
            self.decoder: keras.layers.Layer = LeafMLP(
                self.num_leaves,
                hidden,
                scopes.size * pixels.num_outputs,
                num_networks=pixels.num_networks,
                name="decoder",
            )
            return
        height, width, self.channels = scopes.image_shape(event_shape)
        filters, stride = options.conv_filters, options.conv_stride
        self.encoder = LeafConvEncoder(
            self.num_leaves,
            (height, width, self.channels * (1 + self.reads_mask)),
            filters,
            stride,
            options.conv_units,
            self.latent_dim,
            name="encoder",
        )
        self.decoder = LeafConvDecoder(
            self.num_leaves,
            (height, width, self.channels * pixels.num_outputs),
            filters,
            stride,
            num_heads=pixels.num_networks,
            name="decoder",
        )

    def build(self) -> None:
        """Makes all weights."""
        self.encoder.build((self.num_leaves, None, self.scopes.size * (1 + self.reads_mask)))
        self.decoder.build((self.num_leaves, None, self.latent_dim))

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
        """Mean and precision of q(z | x_l), each [L, B, Z]; those of the prior for leaves without observed pixels.

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
        has_any = self.scopes.of_leaves(tf.reduce_max(mask, axis=-1, keepdims=True)) > 0.5
        return tf.where(has_any, mean, tf.zeros_like(mean)), tf.where(has_any, precision, tf.ones_like(precision))

    def decode(self, z: tf.Tensor) -> list[tf.Tensor]:
        """Outputs of the decoder's networks at latents [L, ..., Z], each [L, ..., S * P]."""
        outputs = self.decoder(tf.reshape(z, [self.num_leaves, -1, self.latent_dim]))
        shape = tf.concat([tf.shape(z)[:-1], [self.scopes.size * self.pixels.num_outputs]], axis=0)
        return [
            tf.ensure_shape(tf.reshape(output, shape), z.shape[:-1].concatenate(output.shape[-1:]))
            for output in outputs
        ]

    def draw(
        self, flat: tf.Tensor, seed: tf.Tensor, num_samples: int, fill: tf.Tensor, observed: tf.Tensor | None = None
    ) -> LeafDraw:
        """Draws K latents of every leaf; arguments as in `posterior`, seed as in System."""
        scopes = self.scopes
        if observed is not None:
            flat = tf.where(observed, flat, tf.zeros_like(flat))  # in every support, which a missing pixel need not be
        mean, precision = (part[:, tf.newaxis] for part in self.posterior(flat, observed, fill))
        noise = random.sample_normal(seed, num_samples, tf.shape(flat)[0], [self.num_leaves, self.latent_dim])
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
            log_prior=_log_normal(tf.square(z), tf.ones([], z.dtype)),
            log_posterior=_log_normal(tf.square(noise), precision),
            log_posterior_path=_log_normal(fixed_precision * tf.square(z - fixed_mean), fixed_precision),
        )


def _log_normal(squares: tf.Tensor, precision: tf.Tensor) -> tf.Tensor:
    """Log density of a diagonal Gaussian from precision * (z - mean)**2, summed over the last axis."""
    return 0.5 * tf.reduce_sum(tf.math.log(precision) - squares - _LOG_2_PI, axis=-1)

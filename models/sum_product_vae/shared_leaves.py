"""Leaves of a region that share one VAE, whose prior has a component for each of them."""

from typing import Any

import tensorflow as tf

from tfstruct import random
from tfstruct.distributions.pixels import Pixels
from tfstruct.models.sum_product_vae.components import GaussianComponents
from tfstruct.models.sum_product_vae.leaves import LeafDraw, LeafVAEs
from tfstruct.models.sum_product_vae.scopes import LeafScopes


class SharedLeafVAEs(LeafVAEs):
    """One VAE for every leaf region; its leaves differ in p_l(z) = N(mean_l, diag scale_l**2) and in nothing else.

    The leaves of a region share the encoder, the decoder and every importance sample, with weights
    p(x | z) p_l(z) / q(z | x): a leaf more costs a density of z. No induced tree holds two leaves of a region, so the
    estimate of p(x) stays without bias. A region without observed pixels has weights of exactly 1.

    Args:
        options: the `model` node of a config; `num_leaves` is the number of components.
        scopes: one VAE for each leaf region.
        pixels: p(x | z).
        event_shape: of a whole observation.
    """

    def __init__(self, options: Any, scopes: LeafScopes, pixels: Pixels, event_shape: tuple[int, ...]) -> None:
        super().__init__(options, scopes, pixels, event_shape)
        self.leaves_per_vae = options.num_leaves
        self.components = GaussianComponents(self.num_vaes, self.leaves_per_vae, self.latent_dim, name="components")

    def build(self) -> None:
        """Makes all weights."""
        super().build()
        self.components.build()

    def draw(
        self, flat: tf.Tensor, seed: tf.Tensor, num_samples: int, fill: tf.Tensor, observed: tf.Tensor | None = None
    ) -> LeafDraw:
        """See LeafVAEs."""
        draw = super().draw(flat, seed, num_samples, fill, observed)
        shared = (draw.log_likelihood, draw.log_posterior, draw.log_posterior_path)
        terms = [tf.repeat(term, self.leaves_per_vae, axis=0) for term in shared]
        terms.insert(1, draw.log_prior)
        if draw.has_observed is not None:
            # The integral of every component is known to be 1, and no sample says it better.
            counts = tf.repeat(tf.transpose(draw.has_observed, [0, 2, 1]), self.leaves_per_vae, axis=0)
            terms = [tf.where(counts, term, tf.zeros_like(term)) for term in terms]
        return LeafDraw(draw.z, *terms, has_observed=draw.has_observed)

    def log_prior(self, z: tf.Tensor) -> tf.Tensor:
        """See LeafVAEs."""
        shape = tf.shape(z)[1:-1]
        densities = self.components(tf.reshape(z, [self.num_vaes, -1, self.latent_dim]))
        return tf.reshape(densities, tf.concat([[self.num_vaes * self.leaves_per_vae], shape], axis=0))

    def _of_components(self, leaves: tf.Tensor | None, num: tf.Tensor) -> tf.Tensor:
        """Which component is used, as zeros and ones [V, N, I]; all zeros for a VAE that is not."""
        if leaves is None:
            return tf.ones(tf.stack([self.num_vaes, num, self.leaves_per_vae]))
        split = tf.reshape(tf.cast(leaves, tf.float32), [-1, self.num_vaes, self.leaves_per_vae])
        return tf.transpose(split, [1, 0, 2])

    def sample_prior(self, keys: tf.Tensor, leaves: tf.Tensor | None) -> tf.Tensor:
        """See LeafVAEs."""
        noise = tf.transpose(random.normal(keys, [self.num_vaes, self.latent_dim]), [1, 0, 2])
        return self.components.sample(noise, self._of_components(leaves, tf.shape(keys)[0]))

    def choose(self, draw: LeafDraw, keys: tf.Tensor, leaves: tf.Tensor | None) -> tf.Tensor:
        """See LeafVAEs; a VAE without observed pixels draws from the component itself."""
        choice_key, prior_key = random.split(keys)
        num_samples = draw.z.shape[1]
        split = tf.reshape(draw.log_weights, [self.num_vaes, self.leaves_per_vae, num_samples, -1])
        used = tf.transpose(self._of_components(leaves, tf.shape(keys)[0]), [0, 2, 1])[:, :, tf.newaxis] > 0.5
        log_weights = tf.reduce_sum(tf.where(used, split, tf.zeros_like(split)), axis=1)
        chosen = self._choose(draw.z, log_weights, choice_key)
        if draw.has_observed is None:
            return chosen
        return tf.where(draw.has_observed, chosen, self.sample_prior(prior_key, leaves))

    def weights_of_vaes(self, leaf_weights: tf.Tensor | None) -> tf.Tensor | None:
        """See LeafVAEs."""
        if leaf_weights is None:
            return None
        weights = tf.cast(leaf_weights, tf.float32)
        return tf.reduce_sum(tf.reshape(weights, [-1, self.num_vaes, self.leaves_per_vae]), axis=-1)

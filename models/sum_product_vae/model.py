"""Sum-product VAEs: a sum-product network whose leaves are small VAEs over parts of an image; and plain VAEs.

References:
    Tan & Peharz, Hierarchical Decompositional Mixtures of Variational Autoencoders, ICML 2019 (SPVAE).
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.data import variants
from tfstruct.distributions.pixels import make_pixels
from tfstruct.distributions.sum_product_circuit import SumProductCircuit
from tfstruct.inference.objectives import Composition, Draws, ImportanceTerms
from tfstruct.layers.sum_product import SumProduct
from tfstruct.math import logsumexp
from tfstruct.models import query
from tfstruct.models.parts import Needs
from tfstruct.models.query import Query
from tfstruct.models.sum_product_vae.config import Config
from tfstruct.models.sum_product_vae.leaves import LeafVAEs
from tfstruct.models.sum_product_vae.masks import random_masks
from tfstruct.models.sum_product_vae.scopes import LeafScopes, make_graph
from tfstruct.models.sum_product_vae.shared_leaves import SharedLeafVAEs
from tfstruct.models.system import System

_MASK = 1  # what a row's key is folded with for the pixels hidden from it while training


class SumProductVAE(System):
    """A sum-product network p(x) over leaf densities p_l(x_l) = E_{z ~ N(0, I)} p(x_l | z), each with a q(z | x_l).

    Importance weights are those of leaves, [K, B, L], and go through the circuit. With `model.leaf_vaes=shared` the
    leaves of a region are components p_l(z) of the prior of one VAE. A single region with a single leaf is a plain VAE.
    Pixels may be missing (`observed`): a leaf then integrates over its own, and one without any observed pixel has
    density 1.

    Args:
        config: a preset's config (see models.presets); read are `model`, `objective` and `data.event_shape`.

    Raises:
        ValueError: settings that do not go together; the message names them.
    """

    references = ("Tan & Peharz, Hierarchical Decompositional Mixtures of Variational Autoencoders, ICML 2019",)
    evaluated_as = "leaf densities estimated by importance sampling, exact sums over the circuit"

    config: Config

    def __init__(self, config: Config, **kwargs) -> None:
        super().__init__(config, **kwargs)
        options = self.config.model
        self.dims = int(np.prod(self.event_shape))
        self.graph = make_graph(options, self.event_shape)
        is_shared = options.leaf_vaes == "shared"
        self.scopes = LeafScopes(self.graph, 1 if is_shared else options.num_leaves)
        self.sum_product = SumProduct(
            self.graph,
            num_leaves=options.num_leaves,
            num_sums=options.num_sums,
            products=options.products,
            name="sum_product",
        )
        self.num_leaves = self.sum_product.layout.num_leaf_nodes
        self.pixels = make_pixels(
            options.likelihood, precision_floor=options.precision_floor, num_components=options.num_components
        )
        self.likelihood = self.pixels
        make_leaves = SharedLeafVAEs if is_shared else LeafVAEs
        self.leaves = make_leaves(options, self.scopes, self.pixels, self.event_shape)
        self.encoder, self.decoder = self.leaves.encoder, self.leaves.decoder
        if isinstance(self.leaves, SharedLeafVAEs):
            self.components = self.leaves.components
        self.num_latents = self.leaves.num_vaes * options.num_latents

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """Makes all weights; the event's shape is known from the config."""
        self.pixel_mean = self.add_weight(
            name="pixel_mean", shape=(self.dims,), initializer=keras.initializers.Constant(0.5), trainable=False
        )
        self.sum_product.build()
        self.leaves.build()
        self.built = True

    def adapt(self, rows: np.ndarray) -> None:
        """See System: takes the mean of every pixel, which the encoders read in place of a missing one."""
        means = variants.pixel_means(rows, self.train_transform, self.likelihood.scale)
        self.pixel_mean.assign(means)

    @property
    def circuit(self) -> SumProductCircuit | None:
        """What leaf log densities go through, with its current weights; a single leaf needs none."""
        return None if self.num_leaves == 1 else self.sum_product.circuit()

    @property
    def composition(self) -> Composition | None:
        """See System."""
        circuit = self.circuit
        return None if circuit is None else Composition(circuit, self.leaves.leaves_per_vae)

    @property
    def queries(self) -> dict[str, Query]:
        """See System; a single leaf has no regions."""
        return super().queries | query.MISSING | (query.REGIONS if self.num_leaves > 1 else {})

    def _flatten(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.cast(x, self.compute_dtype), [-1, self.dims])

    def _shaped(self, flat: tf.Tensor) -> tf.Tensor:
        return tf.reshape(flat, tf.concat([tf.shape(flat)[:-1], self.event_shape], axis=0))

    @property
    def _fill(self) -> tf.Tensor:
        return tf.convert_to_tensor(self.pixel_mean)

    # The contract --------------------------------------------------------------------------------------------

    def terms(self, x: tf.Tensor, draws: Draws) -> ImportanceTerms:
        """See System; pixels that are not observed may hold anything, and the terms are those of log p(x_observed).

        While training pixels are hidden at random (model.missing_fraction).

        Returns:
            Terms [K, B, L], or [K, B] of a single leaf.
        """
        flat = self._flatten(x)
        observed = None if draws.observed is None else tf.reshape(draws.observed, [-1, self.dims])
        if draws.training and self.config.model.missing_fraction and observed is None:
            keys = random.fold_in(random.keys_of_samples(draws.seed, 1, tf.shape(flat)[0])[0], _MASK)
            observed = random_masks(keys, self.event_shape, self.config.model.missing_fraction)
        draw = self.leaves.draw(flat, draws.seed, draws.num_samples, self._fill, observed)
        terms = (draw.log_likelihood, draw.log_prior, draw.log_posterior, draw.log_posterior_path)
        if self.num_leaves == 1:
            terms = tuple(term[0] for term in terms)
        else:
            terms = tuple(tf.transpose(term, [1, 2, 0]) for term in terms)
        return ImportanceTerms(
            *terms[:3],
            log_posterior_path=terms[3] if draws.path else None,
            composition=self.composition,
        )

    def sample(self, num: int | tf.Tensor, *, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System: exact, leaves from the circuit's sums and pixels from the leaves that they choose."""
        latent_key, tree_key, pixel_key = random.split(random.keys_of_samples(seed, 1, num)[0], 3)
        circuit, leaves = self.circuit, None
        if circuit is not None:
            leaves = circuit.sample_tree(tree_key, tf.zeros([num, self.num_leaves]))
        return self._pixels_of(self.leaves.sample_prior(latent_key, leaves), leaves, pixel_key)

    def _pixels_of(self, z: tf.Tensor, leaves: tf.Tensor | None, key: tf.Tensor) -> dict[str, tf.Tensor]:
        """Means and draws of the pixels of chosen leaves [N, L] with latents [V, N, Z]."""
        outputs = self.leaves.decode(z)
        uniforms = random.uniform(key, [self.pixels.num_uniforms, self.leaves.num_vaes, self.scopes.size])
        uniforms = tf.unstack(tf.transpose(uniforms, [1, 2, 0, 3]), self.pixels.num_uniforms)
        drawn = {"x_mean": self.pixels.mean(outputs), "x": self.pixels.sample(outputs, uniforms)}
        return {name: self._combined(values, leaves) for name, values in drawn.items()}

    def _combined(self, values: tf.Tensor, leaf_weights: tf.Tensor | None) -> tf.Tensor:
        """Images [N, *event_shape] of the pixels of VAEs [V, N, S], by weights of leaves [N, L]."""
        return self._shaped(self.scopes.combine(values, self.leaves.weights_of_vaes(leaf_weights)))

    def encode(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System: [B, V * Z], the latents of one VAE beside one another."""
        mean, precision = self.leaves.posterior(self._flatten(x), None, self._fill)
        encoded = {"z_mean": mean, "z_std": tf.math.rsqrt(precision)}
        return {
            name: tf.reshape(tf.transpose(part, [1, 0, 2]), [-1, self.num_latents]) for name, part in encoded.items()
        }

    def decode(self, z: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System; each pixel is the mean over its leaves by their probabilities in the model, E[x | z]."""
        z = tf.cast(z, self.compute_dtype)
        flat = tf.reshape(z, [-1, self.leaves.num_vaes, self.leaves.latent_dim])
        means = self.pixels.mean(self.leaves.decode(tf.transpose(flat, [1, 0, 2])))
        circuit, weights = self.circuit, None
        if circuit is not None:
            weights = circuit.leaf_posterior(tf.zeros([1, self.num_leaves], z.dtype))
            weights = tf.repeat(weights, tf.shape(flat)[0], axis=0)
        images = self.scopes.combine(means, self.leaves.weights_of_vaes(weights))
        return {"x_mean": tf.reshape(images, tf.concat([tf.shape(z)[:-1], self.event_shape], axis=0))}

    def reconstruct(self, x: tf.Tensor, *, seed: tf.Tensor) -> tf.Tensor:
        """See System; each pixel is the mean over its leaves by their probabilities given x."""
        draw = self.leaves.draw(self._flatten(x), seed, 1, self._fill)
        means, weights, circuit = self.pixels.mean(self.leaves.decode(draw.z[:, 0])), None, self.circuit
        if circuit is not None:
            weights = circuit.leaf_posterior(tf.transpose(draw.log_weights[:, 0]))
        return self._combined(means, weights)

    @property
    def needs(self) -> Needs:
        """See System: q has the encoders."""
        return Needs(posterior=self.encoder.trainable_variables)

    @property
    def leaf_regions(self) -> list[list[int]]:
        """The variables of every leaf region, as places in a flattened observation."""
        return [list(self.graph.regions[region]) for region in self.graph.leaf_regions]

    def structure_report(self) -> dict[str, Any]:
        """See System: sizes of the circuit."""
        layout = self.sum_product.layout
        counts = self.graph.counts(num_leaves=layout.num_leaves, num_sums=layout.num_sums, products=layout.products)
        return {"circuit": counts._asdict()}

    # What a circuit can answer -------------------------------------------------------------------------------

    def inpaint(self, x: tf.Tensor, observed: tf.Tensor, *, seed: tf.Tensor, num_samples: int) -> dict[str, tf.Tensor]:
        """Draws the missing pixels given the observed ones.

        Leaves are chosen by their posterior probabilities, each leaf's latents among K draws of q(z | x_observed) by
        their weights: exact in the limit of large K, and for leaves without observed pixels for every K.

        Args:
            x: [B, *event_shape]; missing pixels may hold anything.
            observed: Boolean of that shape.
            seed: a key, or one for each row.
            num_samples: K.

        Returns:
            `x` and `x_mean` (the mean of p(x | z) in place of a draw), [B, *event_shape]; observed pixels as given.
        """
        flat, mask = self._flatten(x), tf.reshape(observed, [-1, self.dims])
        keys = random.keys_of_samples(seed, 1, tf.shape(flat)[0])[0]
        latent_key, tree_key, choice_key, pixel_key = random.split(keys, 4)
        draw = self.leaves.draw(flat, latent_key, num_samples, self._fill, mask)
        circuit, leaves = self.circuit, None
        if circuit is not None:
            bounds = logsumexp(draw.log_weights, axis=1) - float(np.log(num_samples))
            leaves = circuit.sample_tree(tree_key, tf.transpose(bounds))
        drawn = self._pixels_of(self.leaves.choose(draw, choice_key, leaves), leaves, pixel_key)
        given = tf.cast(tf.reshape(x, tf.shape(drawn["x"])), drawn["x"].dtype)
        return {name: tf.where(self._shaped(mask), given, values) for name, values in drawn.items()}

    def region_log_prob(self, leaf_log_prob: tf.Tensor) -> dict[str, tf.Tensor]:
        """What leaf regions contribute to log p(x), from leaf log densities [B, L].

        Returns:
            `contribution` [B, R]: of each leaf region, the mean of its leaves' log densities by their posterior
            probabilities; `structure` [B]: minus the divergence of the choice of leaves from that of the model. They
            sum to log p(x). Where no pixel is in two leaf regions also `marginal` [B, R]: log p(x_r), and `conditional`
            [B, R]: log p(x_r | all other pixels), not a number where those are impossible. Conditional less marginal is
            how well a region fits the rest; over images of the model it is on average at most the entropy of the choice
            of the region's leaf.

        Raises:
            ValueError: a model of one leaf, which has no parts.
        """
        circuit = self.circuit
        if circuit is None:
            raise ValueError("a model of a single leaf has no regions that contribute to log p(x)")
        used = circuit.leaf_posterior(leaf_log_prob)
        leaves_per_region = self.sum_product.layout.num_leaves
        split = [-1, len(self.scopes.variables), leaves_per_region]
        weighted = tf.where(used > 0.0, used * leaf_log_prob, tf.zeros_like(used))
        contribution = tf.reduce_sum(tf.reshape(weighted, split), axis=-1)
        result = {
            "contribution": contribution,
            "structure": circuit.log_prob(leaf_log_prob) - tf.reduce_sum(contribution, axis=-1),
        }
        if self.graph.is_tiling:
            # Differences of whole values: the share of a leaf may be too small for a number and yet decide a ratio.
            is_own = np.repeat(np.eye(len(self.scopes.variables), dtype=bool), leaves_per_region, axis=1)
            zeros = tf.zeros_like(leaf_log_prob)
            alone, rest = (
                tf.transpose(circuit.log_prob(tf.where(chosen[:, np.newaxis], leaf_log_prob, zeros)))
                for chosen in (is_own, ~is_own)
            )
            result["marginal"] = alone
            result["conditional"] = circuit.log_prob(leaf_log_prob)[:, tf.newaxis] - rest
        return result

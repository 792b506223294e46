"""Graph VAE: a variational autoencoder whose latent dependency graph is learned through gates.

The same model with a fixed graph is the plain VAE (`independent`), the ladder VAE (`chain`) and the VAE with
fully connected latent structure (`full`). With `model.flow.steps` an inverse autoregressive flow of its own follows
each node's posterior; with one node and no structure that is the VAE with an IAF posterior.

References:
    Variational Autoencoders with Jointly Optimized Latent Dependency Structure, ICLR 2019.
    Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, NIPS 2016.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.distributions import adjacency as adjacency_lib
from tfstruct.distributions.gated_gaussian_network import GatedGaussianNetwork
from tfstruct.distributions.gaussian import GaussianParameters
from tfstruct.inference.objectives import Draws, ImportanceTerms, free_bits_penalty
from tfstruct.layers.flow import InverseAutoregressiveFlow
from tfstruct.layers.grouped import flatten_last_two
from tfstruct.layers.likelihood import Likelihood, make_likelihood
from tfstruct.layers.mlp import MLP, BlockOptions, BottomUp, TopDown
from tfstruct.models.config import Evaluation
from tfstruct.models.graph_vae import structure
from tfstruct.models.graph_vae.config import Config
from tfstruct.models.graph_vae.gates import EdgeGates
from tfstruct.models.graph_vae.posterior import GraphPosterior
from tfstruct.models.parts import Needs
from tfstruct.models.system import System


class GraphVAE(System):
    """p(x, z | c) = p(x | z) prod_i p(z_i | gated parents), with N nodes of D dimensions and M = N D.

    The posterior of a node fuses what x says (bottom up) with what its gated parents say (top down) by adding
    precisions; a node without possible parents has the prior N(0, I) and the bottom-up posterior alone. Training
    draws one relaxed set of gates a step, shared by q and p and by the whole batch; evaluation uses the most
    probable gates.

    With a flow the fused Gaussian is the base of an inverse autoregressive flow with weights of its own for every node
    and a context from the bottom-up network: z_i is what leaves the flow, children see it, and log q(z_i | x, parents)
    is the base's log density minus the flow's log-determinant.

    Args:
        config: a preset's config (see models.presets); read are `model`, `objective`, `data.event_shape`.

    Raises:
        ValueError: num_latents not divisible by num_nodes, an unknown structure, or a bad adjacency.
    """

    references = (
        "Variational Autoencoders with Jointly Optimized Latent Dependency Structure, ICLR 2019",
        "Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, NIPS 2016",
    )
    evaluated_as = "most probable gates, moving averages of batch normalisation"

    config: Config
    likelihood: Likelihood

    def __init__(self, config: Config, **kwargs) -> None:
        super().__init__(config, **kwargs)
        options = self.config.model
        self.num_latents, self.num_nodes = options.num_latents, options.num_nodes
        self.node_dim = options.num_latents // options.num_nodes
        if len(options.adjacency):
            self.adjacency = adjacency_lib.validate(options.adjacency, self.num_nodes)
            adjacency_lib.from_structure(options.structure, self.num_nodes)  # the name must be known all the same
        else:
            self.adjacency = adjacency_lib.from_structure(options.structure, self.num_nodes)
        encoder_options = BlockOptions.from_config(options, options.encoder_activation)
        block_options = BlockOptions.from_config(options, options.activation)
        self.encoder = MLP(
            options.encoder_units,
            options.feature_units,
            encoder_options,
            # Without effect where the next product is normalised: its gradient would be rounding noise, which Adam
            # turns into steps of full size.
            use_output_bias=not options.batch_norm,
            name="encoder",
        )
        flow = options.flow
        self.bottom_up = BottomUp(
            self.num_nodes,
            self.node_dim,
            options.bottom_up_units,
            block_options,
            context_dim=flow.context_dim if flow.steps else 0,
            log_variance_bound=options.log_variance_bound,
            name="bottom_up",
        )
        self.flows = [
            InverseAutoregressiveFlow(self.node_dim, **dict(flow), name=f"flow_{node}")
            for node in range(self.num_nodes if flow.steps else 0)
        ]
        self.likelihood = make_likelihood(
            options.likelihood,
            self.event_shape,
            log_variance_floor=options.log_variance_floor,
            num_components=options.num_components,
        )
        self.decoder = MLP(options.decoder_units, self.likelihood.num_outputs, block_options, name="decoder")
        self.gates = EdgeGates(
            self.adjacency,
            trainable=options.structure == "learned",
            straight_through=options.straight_through,
            name="gates",
        )
        self.children = tuple(int(node) for node in np.flatnonzero(self.adjacency.any(axis=1)))
        bound, units = options.log_variance_bound, options.top_down_units
        make_top_down = lambda nodes, name: TopDown(  # noqa: E731
            self.adjacency, nodes, self.node_dim, units, block_options, log_variance_bound=bound, name=name
        )
        # The posterior visits nodes one after another; given z, the prior's networks run all at once.
        self.posterior_top_down = [make_top_down([node], f"posterior_top_down_{node}") for node in self.children]
        self.posterior = GraphPosterior(self.adjacency, self.children, self.posterior_top_down, self.flows)
        self.prior_top_down = None
        if self.children and not options.share_top_down:
            self.prior_top_down = make_top_down(self.children, "prior_top_down")

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """Makes all weights; the event's shape is known from the config."""
        options = self.config.model
        dims = int(np.prod(self.event_shape))
        self.encoder.build((None, dims))
        self.bottom_up.build((None, options.feature_units))
        self.decoder.build((None, options.num_latents))
        self.likelihood.build((None, dims))
        self.gates.build()
        for layer in (*self.posterior_top_down, *self.flows):
            layer.build()
        if self.prior_top_down is not None:
            self.prior_top_down.build()
        self.built = True

    # Distributions -------------------------------------------------------------------------------------------

    def prior(self, gates: tf.Tensor, *, training: bool = False) -> GatedGaussianNetwork:
        """Returns p(z | c) for gates [N, N], with event [N, D]."""
        return self._network(gates, lambda parents: self._prior_parameters(parents, training))

    def _network(self, gates: tf.Tensor, conditional: Any) -> GatedGaussianNetwork:
        return GatedGaussianNetwork(conditional, gates, self.node_dim, self.adjacency)

    def _prior_parameters(self, parents: tf.Tensor, training: bool) -> GaussianParameters:
        """Gated parents [..., N, N, D] to loc and log variance [..., N, D]; zeros for the roots."""
        inputs = [self._parents_of(node, parents[..., node, :, :]) for node in self.children]
        if not inputs:
            return tf.zeros_like(parents[..., 0, :]), tf.zeros_like(parents[..., 0, :])
        if self.prior_top_down is not None:
            loc, log_variance = self.prior_top_down(inputs, training=training)
            return self._with_roots(loc), self._with_roots(log_variance)
        pairs = [net([values], training=training) for net, values in zip(self.posterior_top_down, inputs, strict=True)]
        return tuple(self._with_roots(tf.concat(parts, axis=-2)) for parts in zip(*pairs, strict=True))

    def _parents_of(self, node: int, values: tf.Tensor) -> tf.Tensor:
        """Picks the possible parents of a node from values [..., N, D] of all nodes: [..., P * D]."""
        picked = [values[..., int(parent), :] for parent in np.flatnonzero(self.adjacency[node])]
        return tf.concat(picked, axis=-1)

    def _with_roots(self, values: tf.Tensor) -> tf.Tensor:
        """Spreads values [..., len(children), D] to all nodes [..., N, D], zeros for the roots."""
        rows = [tf.zeros_like(values[..., 0, :])] * self.num_nodes
        for place, node in enumerate(self.children):
            rows[node] = values[..., place, :]
        return tf.stack(rows, axis=-2)

    def _bottom_up(self, x: tf.Tensor, training: bool) -> tuple[tf.Tensor, ...]:
        """Loc and log variance [B, N, D] of what x says, and with flows their context [B, N, C]."""
        values = self._flatten(x)
        if self.likelihood.scale != 1.0:
            values /= self.likelihood.scale
        return self.bottom_up(self.encoder(values, training=training), training=training)

    def _flatten(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.cast(x, self.compute_dtype), [-1, int(np.prod(self.event_shape))])

    # The contract --------------------------------------------------------------------------------------------

    def terms(self, x: tf.Tensor, draws: Draws) -> ImportanceTerms:
        """See System; the option `gates` [N, N] replaces the relaxed (training) or most probable (evaluation) gates."""
        training, gates = draws.training, draws.options.get("gates")
        if gates is None and training:
            gates = self.gates.sample(draws.shared_seed, draws.scheduled.get("gate_temperature", 1.0))
        elif gates is None:
            gates = self.gates.hard()
        flat = self._flatten(x)
        bottom_up = self._bottom_up(x, training)
        noise = random.sample_normal(draws.seed, draws.num_samples, tf.shape(flat)[0], [self.num_nodes, self.node_dim])
        noise = tf.cast(noise, flat.dtype)
        draw = self.posterior.draw(bottom_up, gates, noise, training)
        z = draw.z
        log_prior = self._shared_or_own_prior(gates, draw.top_down, training).node_log_prob(z)
        features = self.decoder(flatten_last_two(z), training=training)
        log_posterior, path, penalty = draw.log_posterior, None, None
        if draws.path:
            path = self.posterior.log_prob_path(z, draw.base, bottom_up, gates, training)
        free_bits = self.config.objective.free_bits
        if training and free_bits:
            rates = (log_posterior if path is None else path) - log_prior
            penalty = free_bits_penalty(rates, free_bits * self.node_dim)
        return ImportanceTerms(
            log_likelihood=self.likelihood.log_prob(features, flat),
            log_prior=tf.reduce_sum(log_prior, axis=-1),
            log_posterior=tf.reduce_sum(log_posterior, axis=-1),
            log_posterior_path=None if path is None else tf.reduce_sum(path, axis=-1),
            penalty=penalty,
        )

    def _shared_or_own_prior(
        self, gates: tf.Tensor, top_down: list[GaussianParameters | None], training: bool
    ) -> GatedGaussianNetwork:
        """p(z | c) after a posterior pass: with shared networks their outputs are at hand and not computed twice."""
        if self.prior_top_down is not None or not self.children:
            return self.prior(gates, training=training)
        parts = zip(*[top_down[node] for node in self.children], strict=True)
        loc, log_variance = (self._with_roots(tf.stack(part, axis=-2)) for part in parts)
        return self._network(gates, lambda parents: (loc, log_variance))

    def sample(self, num: int | tf.Tensor, *, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System: ancestral sampling from the gated prior, then p(x | z)."""
        latent_seed, pixel_seed = random.split(seed)
        noise = random.sample_normal(latent_seed, 1, num, [self.num_nodes, self.node_dim])[0]
        z = self.prior(self.gates.hard()).sample_from_noise(tf.cast(noise, self.compute_dtype))
        features = self.decoder(flatten_last_two(z), training=False)
        return {
            "x_mean": self._unflatten(self.likelihood.mean(features)),
            "x": self._unflatten(self.likelihood.sample(features, pixel_seed)),
        }

    def encode(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System: the means go down the graph, so a node's parameters are those at its parents' means.

        A flowed posterior has no mean in closed form: `z_mean` is then the point that the flow takes the Gaussian's
        mean to, and `z_std` the Gaussian's standard deviation times the flow's slopes there, whose product over the
        latents is the posterior's volume.
        """
        bottom_up = self._bottom_up(x, training=False)
        draw = self.posterior.draw(bottom_up, self.gates.hard(), tf.zeros_like(bottom_up[0]), training=False)
        return {"z_mean": flatten_last_two(draw.z), "z_std": flatten_last_two(draw.scale)}

    def reconstruct(self, x: tf.Tensor, *, seed: tf.Tensor) -> tf.Tensor:
        """See System."""
        bottom_up = self._bottom_up(x, training=False)
        noise = random.sample_normal(seed, 1, tf.shape(bottom_up[0])[0], [self.num_nodes, self.node_dim])[0]
        noise = tf.cast(noise, self.compute_dtype)
        draw = self.posterior.draw(bottom_up, self.gates.hard(), noise, training=False)
        return self.decode(flatten_last_two(draw.z))["x_mean"]

    def decode(self, z: tf.Tensor) -> dict[str, tf.Tensor]:
        """See System."""
        return {"x_mean": self._unflatten(self.likelihood.mean(self.decoder(z, training=False)))}

    def _unflatten(self, flat: tf.Tensor) -> tf.Tensor:
        return tf.reshape(flat, tf.concat([tf.shape(flat)[:-1], list(self.event_shape)], axis=0))

    def node_rates(self, x: tf.Tensor, *, seed: tf.Tensor, num_samples: int) -> tf.Tensor:
        """Returns the Monte-Carlo KL of q(z_i | x, parents) from p(z_i | parents), nats, [B, N]; hard gates."""
        bottom_up = self._bottom_up(x, training=False)
        shape = [self.num_nodes, self.node_dim]
        noise = tf.cast(random.sample_normal(seed, num_samples, tf.shape(x)[0], shape), self.compute_dtype)
        draw = self.posterior.draw(bottom_up, self.gates.hard(), noise, training=False)
        log_prior = self.prior(self.gates.hard()).node_log_prob(draw.z)
        return tf.reduce_mean(draw.log_posterior - log_prior, axis=0)

    @property
    def needs(self) -> Needs:
        """See System: q has encoder, bottom-up networks, flows and, unless p shares them, top-down networks."""
        layers = [self.encoder, self.bottom_up, *self.flows]
        if self.prior_top_down is not None:
            layers += self.posterior_top_down
        return Needs(
            posterior=[variable for layer in layers for variable in layer.trainable_variables],
            structure=[(variable, self.gates.harden) for variable in self.gates.trainable_variables],
            schedules=("gate_temperature",),
            whole_batch=self.config.objective.free_bits > 0.0,
        )

    def edge_probabilities(self) -> tf.Tensor:
        """Returns the gate means as a matrix [N, N], [i, j] for the edge from parent j to child i."""
        return self.gates.matrix(self.gates.probabilities())

    def structure_report(self) -> dict[str, Any]:
        """See System: gate means, open edges, and how far the gates are from having decided."""
        probabilities = self.gates.probabilities().numpy()
        undecided = np.minimum(probabilities, 1.0 - probabilities)
        return {
            "edge_probabilities": self.edge_probabilities().numpy().tolist(),
            "open_edges": int((probabilities >= 0.5).sum()),
            "possible_edges": len(self.gates.edges),
            "largest_gate_uncertainty": float(undecided.max()) if len(undecided) else 0.0,
        }

    def report(
        self, rows: np.ndarray, settings: Evaluation, known: Mapping[str, Any], *, seed: int = 0
    ) -> tuple[dict[str, Any], list[str]]:
        """See System: active units and rate of every node, and whether gates have not decided."""
        return self._latent_use(rows, batch_size=settings.batch_size, seed=seed), structure.undecided_flags(known)

    @functools.cached_property
    def _latent_use(self) -> structure.LatentUse:
        """Traced once for all weights."""
        return structure.LatentUse(self)

    @property
    def edge_effects(self) -> Callable[..., dict[str, Any]] | None:
        """See System."""
        return structure.edge_effects if self.gates.edges else None

    def diagnostics(self) -> dict[str, tf.Tensor]:
        """Gate means [E] of the possible edges, when they are learned."""
        return {"gate_probabilities": self.gates.probabilities()} if self.gates.is_learned else {}

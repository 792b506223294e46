"""The posterior of a Graph VAE: q(z | x, c), node by node from the root down the gated graph."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfstruct.distributions.gaussian import LOG_TWO_PI, GaussianParameters, fuse, gaussian_log_prob
from tfstruct.layers.flow import InverseAutoregressiveFlow
from tfstruct.layers.mlp import TopDown


class GraphDraw(NamedTuple):
    """What a pass through the posterior gives.

    Attributes:
        z: latents, [..., B, N, D].
        base: draws of the Gaussians; z without flows, [..., B, N, D].
        log_posterior: log q(z_i | x, parents) of every node, nats, [..., B, N].
        scale: standard deviation of the Gaussian times the slopes of the flow, [..., B, N, D].
        top_down: what each node's top-down network said, None for a root.
    """

    z: tf.Tensor
    base: tf.Tensor
    log_posterior: tf.Tensor
    scale: tf.Tensor
    top_down: list[GaussianParameters | None]


class GraphPosterior:
    """q(z | x, c) = prod_i q(z_i | x, gated parents) over N nodes of D dimensions.

    Args:
        adjacency: Boolean [N, N] of possible edges.
        children: the nodes that have possible parents.
        top_down: a network for each of those, which the model owns.
        flows: one for each node, or none.
    """

    def __init__(
        self,
        adjacency: np.ndarray,
        children: Sequence[int],
        top_down: Sequence[TopDown],
        flows: Sequence[InverseAutoregressiveFlow],
    ) -> None:
        self.adjacency, self.children, self.top_down, self.flows = adjacency, children, top_down, flows

    def _node(
        self,
        node: int,
        bottom_up: tuple[tf.Tensor, ...],
        gates: tf.Tensor,
        values: Sequence[tf.Tensor],
        training: bool,
    ) -> tuple[GaussianParameters, GaussianParameters | None]:
        """Parameters of the Gaussian of q(z_i | x, parents), [..., B, D], and of its top-down part (None for a root).

        Args:
            node: i.
            bottom_up: as the bottom-up network gives it.
            gates: [N, N].
            values: the latents drawn so far, [..., B, D] each; at least those of the parents.
            training: whether batch statistics are used.
        """
        own = bottom_up[0][:, node], bottom_up[1][:, node]
        if node not in self.children:
            return own, None
        parents = [gates[node, int(parent)] * values[int(parent)] for parent in np.flatnonzero(self.adjacency[node])]
        net = self.top_down[self.children.index(node)]
        loc, log_variance = (part[..., 0, :] for part in net([tf.concat(parents, axis=-1)], training=training))
        return fuse(own, (loc, log_variance)), (loc, log_variance)

    def _flow_context(self, node: int, bottom_up: tuple[tf.Tensor, ...]) -> tf.Tensor | None:
        return bottom_up[2][:, node] if len(bottom_up) > 2 else None

    def draw(self, bottom_up: tuple[tf.Tensor, ...], gates: tf.Tensor, noise: tf.Tensor, training: bool) -> GraphDraw:
        """Draws z from q by noise [..., B, N, D], roots first."""
        values, bases, log_posteriors, scales, top_down = [], [], [], [], []
        for node in range(len(self.adjacency)):
            own_noise = noise[..., node, :]
            (loc, log_variance), said = self._node(node, bottom_up, gates, values, training)
            value, scale = loc + tf.exp(0.5 * log_variance) * own_noise, tf.exp(0.5 * log_variance)
            # log N(loc + s e; loc, s^2) needs only e and s: no cancellation, and the same total derivative.
            log_posterior = -0.5 * tf.reduce_sum(tf.square(own_noise) + log_variance + LOG_TWO_PI, axis=-1)
            bases.append(value)
            if self.flows:
                value, log_slopes = self.flows[node](value, self._flow_context(node, bottom_up))
                log_posterior -= tf.reduce_sum(log_slopes, axis=-1)
                scale *= tf.exp(log_slopes)
            values.append(value)
            log_posteriors.append(log_posterior)
            scales.append(scale + tf.zeros_like(value))
            top_down.append(said)
        z, base, scale = (tf.stack(parts, axis=-2) for parts in (values, bases, scales))
        return GraphDraw(z, base, tf.stack(log_posteriors, axis=-1), scale, top_down)

    def log_prob_path(
        self, z: tf.Tensor, base: tf.Tensor, bottom_up: tuple[tf.Tensor, ...], gates: tf.Tensor, training: bool
    ) -> tf.Tensor:
        """Log q(z_i | x, parents), [..., N], with every parameter of q stopped: its gradient goes through z alone.

        A flow's part is made linear in z: its gradient is the score of the Gaussian pushed through the flow, which
        takes no inverse, for the draw before the flow is at hand.
        """
        bottom_up = tuple(tf.stop_gradient(part) for part in bottom_up)
        gates = tf.stop_gradient(gates)
        variables = [variable for net in (*self.top_down, *self.flows) for variable in net.variables]
        mapping = [(variable, tf.stop_gradient(tf.convert_to_tensor(variable))) for variable in variables]
        values, bases = tf.unstack(z, axis=-2), tf.unstack(tf.stop_gradient(base), axis=-2)
        log_probs = []
        # The scope also keeps this second pass from updating the moving averages once more.
        with keras.StatelessScope(state_mapping=mapping):
            for node, (value, base) in enumerate(zip(values, bases, strict=True)):
                (loc, log_variance), _ = self._node(node, bottom_up, gates, values, training)
                if not self.flows:
                    log_probs.append(tf.reduce_sum(gaussian_log_prob(value, loc, log_variance), axis=-1))
                    continue
                score, context = (loc - base) * tf.exp(-log_variance), self._flow_context(node, bottom_up)
                _, log_slopes, score = self.flows[node].push_score(base, score, context)
                linear = tf.stop_gradient(score) * (value - tf.stop_gradient(value)) - tf.stop_gradient(log_slopes)
                log_probs.append(tf.reduce_sum(gaussian_log_prob(base, loc, log_variance) + linear, axis=-1))
        return tf.stack(log_probs, axis=-1)

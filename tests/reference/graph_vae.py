"""A slow NumPy float64 twin of the Graph VAE: one image, one sample, one node at a time.

It is written from the paper (sections 3 and 4.1, appendix A.2.1), takes weights by path, and draws nothing: noise
is an argument. Batch normalisation is in evaluation form. With flows, what the Gaussian of a node gives is the base of
its flow.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from tests.reference import flow, networks


class Terms(NamedTuple):
    """log p(x | z), and of every node log p(z_i | parents) and log q(z_i | x, parents), with the latents.

    `scale` is the standard deviation of a node's Gaussian times the slopes of its flow.
    """

    log_likelihood: float
    node_log_prior: np.ndarray
    node_log_posterior: np.ndarray
    z: np.ndarray
    scale: np.ndarray


def log_normal(value, loc, log_variance):
    """log of a diagonal normal density, summed over the last axis."""
    return np.sum(-0.5 * (np.log(2 * np.pi) + log_variance + (value - loc) ** 2 / np.exp(log_variance)), axis=-1)


def fuse(first, second):
    """Mean and log variance of the normalised product of two normal densities."""
    precisions = np.exp(-first[1]), np.exp(-second[1])
    total = precisions[0] + precisions[1]
    return (precisions[0] * first[0] + precisions[1] * second[0]) / total, -np.log(total)


class GraphVAE:
    """The twin of one model.

    Args:
        weights: arrays by path without the model's name.
        adjacency: Boolean [N, N] of possible edges.
        gates: [N, N].
        options: the `model` part of the config.
    """

    def __init__(self, weights, adjacency, gates, options):
        self.weights, self.adjacency, self.gates, self.options = weights, adjacency, gates, options
        self.num_nodes = len(adjacency)
        self.parents = [np.flatnonzero(row) for row in adjacency]
        self.children = [node for node in range(self.num_nodes) if len(self.parents[node])]

    def _read(self, x, network):
        """What a network of `networks` makes of the features of x [X]."""
        options = self.options
        features = networks.mlp(
            x.reshape(1, -1),
            networks.below(self.weights, "encoder"),
            options.encoder_activation,
            epsilon=options.batch_norm_epsilon,
        )
        weights = networks.below(self.weights, "bottom_up")
        return network(features, weights, self.num_nodes, options.activation, epsilon=options.batch_norm_epsilon)

    def bottom_up(self, x):
        """What x [X] says of every node: lists of loc and log variance."""
        locs, log_variances = self._read(x, networks.bottom_up)
        return [loc[0] for loc in locs], [log_variance[0] for log_variance in log_variances]

    def contexts(self, x):
        """What x [X] says to the flow of every node; None without flows or where the context has no features."""
        if not self.options.flow.steps or not self.options.flow.context_dim:
            return [None] * self.num_nodes
        return [context[0] for context in self._read(x, networks.contexts)]

    def through_flow(self, node, value, context, direction=flow.forward):
        """A vector of a node through its flow, forward or inverse, and the log slopes."""
        options = self.options.flow
        if not options.steps:
            return value, np.zeros_like(value)
        weights = networks.below(self.weights, f"flow_{node}")
        return direction(value, weights, options.activation, options.gate_bias, context)

    def top_down(self, node, z, which):
        """What the gated parents say of a node, by the networks of `posterior` or `prior`."""
        gated = np.concatenate([self.gates[node, parent] * z[parent] for parent in self.parents[node]])
        if which == "prior" and not self.options.share_top_down:
            weights = networks.below(self.weights, "prior_top_down")
            place, num_places = self.children.index(node), len(self.children)
        else:
            weights = networks.below(self.weights, f"posterior_top_down_{node}")
            place, num_places = 0, 1
        loc, log_variance = networks.top_down(
            gated.reshape(1, -1),
            weights,
            node,
            place,
            num_places,
            self.options.activation,
            epsilon=self.options.batch_norm_epsilon,
        )
        return loc[0], log_variance[0]

    def posterior(self, node, z, own):
        """loc and log variance of q(z_i | x, parents)."""
        if node not in self.children:
            return own
        return fuse(own, self.top_down(node, z, "posterior"))

    def prior(self, node, z):
        """loc and log variance of p(z_i | parents)."""
        if node not in self.children:
            return np.zeros_like(z[node]), np.zeros_like(z[node])
        return self.top_down(node, z, "prior")

    def log_likelihood(self, z, x):
        """log p(x | z) of Bernoulli or normal pixels."""
        options = self.options
        features = networks.mlp(
            z.reshape(1, -1),
            networks.below(self.weights, "decoder"),
            options.activation,
            epsilon=options.batch_norm_epsilon,
        )[0]
        if options.likelihood == "bernoulli":
            return float(np.sum(x * special.log_expit(features) + (1 - x) * special.log_expit(-features)))
        linear = features @ self.weights["likelihood/log_variance/kernel"]
        linear = linear + self.weights["likelihood/log_variance/bias"]
        floor = options.log_variance_floor
        return float(log_normal(x, special.expit(features), floor + np.logaddexp(0.0, linear - floor)))

    def terms(self, x, noise):
        """The terms of one image x [X] and the noise [N, D] of one sample."""
        x = x.reshape(-1)
        own, contexts = list(zip(*self.bottom_up(x), strict=True)), self.contexts(x)
        z, scale = np.zeros_like(noise), np.zeros_like(noise)
        log_posterior, log_prior = np.zeros(self.num_nodes), np.zeros(self.num_nodes)
        for node in range(self.num_nodes):
            loc, log_variance = self.posterior(node, z, own[node])
            base = loc + np.exp(0.5 * log_variance) * noise[node]
            z[node], log_slopes = self.through_flow(node, base, contexts[node])
            scale[node] = np.exp(0.5 * log_variance + log_slopes)
            log_posterior[node] = log_normal(base, loc, log_variance) - log_slopes.sum()
            log_prior[node] = log_normal(z[node], *self.prior(node, z))
        return Terms(self.log_likelihood(z, x), log_prior, log_posterior, z, scale)

    def node_log_posterior(self, x, z):
        """log q(z_i | x, parents) of every node [N] at latents z [N, D] from anywhere."""
        x = x.reshape(-1)
        own, contexts = list(zip(*self.bottom_up(x), strict=True)), self.contexts(x)
        result = np.zeros(self.num_nodes)
        for node in range(self.num_nodes):
            base, log_slopes = self.through_flow(node, z[node], contexts[node], flow.inverse)
            result[node] = log_normal(base, *self.posterior(node, z, own[node])) - log_slopes.sum()
        return result

    def node_divergences(self, x, noise):
        """The analytic KL of q(z_i | x, parents) from p(z_i | parents) at the parents drawn, of every node [N].

        There is none for a flowed posterior.
        """
        assert not self.options.flow.steps
        x = x.reshape(-1)
        own = list(zip(*self.bottom_up(x), strict=True))
        z, divergences = np.zeros_like(noise), np.zeros(self.num_nodes)
        for node in range(self.num_nodes):
            loc, log_variance = self.posterior(node, z, own[node])
            prior_loc, prior_log_variance = self.prior(node, z)
            ratio = np.exp(log_variance - prior_log_variance)
            shift = (loc - prior_loc) ** 2 / np.exp(prior_log_variance)
            divergences[node] = 0.5 * np.sum(ratio + shift - 1.0 - np.log(ratio))
            z[node] = loc + np.exp(0.5 * log_variance) * noise[node]
        return divergences

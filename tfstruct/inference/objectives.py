"""Lower bounds on log p(x) and their gradients, as functions of importance terms and of nothing else.

Every objective reads the terms of K importance samples for B observations and returns the bound (nats per
observation, higher is better) and two losses to be minimised: one for the generative parameters and one for
the posterior's. They are the same tensor except for the doubly reparameterised gradient.

A model whose leaves are latent-variable models has terms for each leaf, [K, B, L], and a circuit. Bounds are taken leaf
by leaf and go through the circuit (SPVAE, theorems 1 and 2), which is log-linear in every leaf: where a formula has the
normalised weight of a sample, there stands the probability that leaf and sample are used, the derivative of the bound.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import tensorflow as tf

from tfstruct.distributions.sum_product_circuit import SumProductCircuit
from tfstruct.math import log_mean_exp, logsumexp


class Draws(NamedTuple):
    """What a system is asked for: K draws of q(z | x) for every row, and how.

    Attributes:
        seed: key [2], or one for each row [B, 2], of the draws that belong to rows.
        num_samples: K.
        training: batch statistics and relaxed discrete quantities instead of their evaluation forms.
        path: whether log q is wanted with a gradient through z alone, too.
        shared_seed: key [2] of the draws that all rows share; needed while training.
        scheduled: current values of the quantities that the system names in `scheduled`; needed while training.
        chains: states of the samplers that persist for every row, by name, each [K, B, ...]; empty starts new ones.
        observed: Boolean [B, *event_shape], of a system that allows missing values; None: all are observed.
        options: what else a system takes in evaluation (see `System.terms_options`).
    """

    seed: tf.Tensor
    num_samples: int
    training: bool = False
    path: bool = False
    shared_seed: tf.Tensor | None = None
    scheduled: Mapping[str, tf.Tensor | float] = MappingProxyType({})
    chains: Mapping[str, tf.Tensor] = MappingProxyType({})
    observed: tf.Tensor | None = None
    options: Mapping[str, Any] = MappingProxyType({})


class Composition(NamedTuple):
    """How the terms of leaves become one log density.

    Attributes:
        circuit: what leaf log densities [B, L] go through to log p(x).
        leaves_per_sample: how many leaves, one after the other, share every sample z and its q(z | x), as the
            components of one VAE's prior do; no two of them are in one induced tree. 1: each leaf has its own samples.
    """

    circuit: SumProductCircuit
    leaves_per_sample: int = 1


class ImportanceTerms(NamedTuple):
    """What one system says of K importance samples z of each of B observations x; each [K, B] or [K, B, L], in nats.

    Attributes:
        log_likelihood: log p(x | z).
        log_prior: log p(z).
        log_posterior: log q(z | x).
        log_posterior_path: the same numbers, with a gradient through z alone (the posterior's own parameters
            stopped); None unless a path derivative was asked for.
        chains: sampler states of the rows of the batch after this draw, by name, each [K, B, ...]; None for a system
            without persistent chains.
        composition: of the terms of leaves; None without leaves.
        penalty: scalar, nats, added to the losses times the KL weight and no part of the bound (`free_bits_penalty`).
    """

    log_likelihood: tf.Tensor
    log_prior: tf.Tensor
    log_posterior: tf.Tensor
    log_posterior_path: tf.Tensor | None = None
    chains: Mapping[str, tf.Tensor] | None = None
    composition: Composition | None = None
    penalty: tf.Tensor | None = None


class Objective(NamedTuple):
    """A bound and the losses whose gradients train the two groups of parameters.

    Attributes:
        bound: lower bound on log p(x), nats, [B]; at kl_weight 1 whatever the training's weight is.
        generative_loss: scalar; its gradient is for the parameters of p.
        posterior_loss: scalar; its gradient is for the parameters of q. `is` the other one where they agree.
        rate: mean over the samples of log q(z | x) - log p(z), [B].
        distortion: mean over the samples of -log p(x | z), [B]. See `rate_and_distortion` for circuits.
        chains: see ImportanceTerms.
    """

    bound: tf.Tensor
    generative_loss: tf.Tensor
    posterior_loss: tf.Tensor
    rate: tf.Tensor
    distortion: tf.Tensor
    chains: Mapping[str, tf.Tensor] | None = None


def log_weights(terms: ImportanceTerms, kl_weight: tf.Tensor | float = 1.0, *, path: bool = False) -> tf.Tensor:
    """Returns log importance weights [K, B]; at kl_weight 1 the mean of their exponentials estimates p(x).

    Args:
        terms: the importance terms.
        kl_weight: factor on log p(z) - log q(z | x), annealed from 0 to 1 in some trainings.
        path: whether the gradient of log q goes through z alone.

    Raises:
        ValueError: a path derivative of terms that were computed without it.
    """
    return terms.log_likelihood + kl_weight * (terms.log_prior - _log_posterior(terms, path))


def _log_posterior(terms: ImportanceTerms, path: bool) -> tf.Tensor:
    if path and terms.log_posterior_path is None:
        raise ValueError("these importance terms were drawn with path=False")
    return terms.log_posterior_path if path else terms.log_posterior


def elbo(terms: ImportanceTerms, kl_weight: tf.Tensor | float = 1.0, *, path: bool = False) -> Objective:
    """Evidence lower bound, averaged over the K samples; of a circuit the value at the leaves' bounds.

    With `path` the gradient is the path derivative alone ("sticking the landing"): unbiased, and zero for every
    single sample once q is the exact posterior. In a circuit a leaf's factor depends on the leaf's own sample, and the
    path derivative takes that into account: with v = r / K, r the probability of the leaf, it has
    v - kl_weight v (1 - r) / K. Where leaves share their samples the second r is that of any of them.

    References:
        Kingma & Welling, ICLR 2014; Roeder, Wu & Duvenaud, Sticking the Landing, NeurIPS 2017; SPVAE, theorem 1.
    """
    if terms.composition is None:
        loss = _penalised(-tf.reduce_mean(log_weights(terms, kl_weight, path=path)), terms, kl_weight)
        return _objective(terms, tf.reduce_mean(log_weights(terms), axis=0), loss, loss)
    circuit, leaves_per_sample = terms.composition
    leaves = tf.reduce_mean(log_weights(terms, kl_weight), axis=0)
    loss = -tf.reduce_mean(circuit.log_prob(leaves))
    posterior_loss = loss
    if path:
        num_samples = tf.cast(tf.shape(terms.log_prior)[0], leaves.dtype)
        used = circuit.leaf_posterior(leaves)
        shared = sum_of_sharing(used, leaves_per_sample)
        factor = used / num_samples * (1.0 - kl_weight * (1.0 - shared) / num_samples)
        posterior_loss = -_weighted_mean(factor, log_weights(terms, kl_weight, path=True))
    bound = circuit.log_prob(tf.reduce_mean(log_weights(terms), axis=0))
    return _objective(terms, bound, loss, posterior_loss)


def iwae(terms: ImportanceTerms, kl_weight: tf.Tensor | float = 1.0, *, path: bool = False) -> Objective:
    """Importance-weighted bound log (1/K) sum_k w_k.

    With `path` the posterior's gradient is the doubly reparameterised one. At kl_weight lambda < 1 the normalised
    weights v enter it as lambda v^2 + (1 - lambda) v, which keeps it unbiased for the annealed bound; lambda = 1
    gives the squared weights of DReG. In a circuit v is the probability of leaf and sample: the bound is the logarithm
    of a function that is affine in each leaf's each weight, which is all that the derivation needs. Where leaves share
    their samples it is affine in the weights of a sample together. With V the sum of v over the leaves that share it,
    the score -lambda V d log q / d phi reparameterises to -lambda (1 - V) sum v d log w / d z, and v enters as
    lambda v V + (1 - lambda) v.

    References:
        Burda, Grosse & Salakhutdinov, ICLR 2016; Tucker et al., Doubly Reparameterized Gradient Estimators,
        ICLR 2019, eq. 8; SPVAE, theorem 2.
    """
    annealed = log_weights(terms, kl_weight)
    bound, leaves = log_mean_exp(log_weights(terms), axis=0), log_mean_exp(annealed, axis=0)
    value, composition = leaves, terms.composition
    if composition is not None:
        bound, value = composition.circuit.log_prob(bound), composition.circuit.log_prob(leaves)
    generative_loss = -tf.reduce_mean(value)
    if not path:
        return _objective(terms, bound, generative_loss, generative_loss)
    normalised = tf.stop_gradient(tf.exp(annealed - logsumexp(annealed, axis=0, keepdims=True)))
    shared = normalised
    if composition is not None:
        normalised *= composition.circuit.leaf_posterior(leaves)
        shared = sum_of_sharing(normalised, composition.leaves_per_sample)
    factor = kl_weight * normalised * shared + (1.0 - kl_weight) * normalised
    posterior_loss = -_weighted_mean(factor, log_weights(terms, kl_weight, path=True))
    return _objective(terms, bound, generative_loss, posterior_loss)


def free_bits_penalty(rates: tf.Tensor, free: float) -> tf.Tensor:
    """Sum over groups of max(0, free - rate), by which free bits differ from the whole rate; scalar, nats.

    Together with the rate itself a group costs max(free, rate): below `free` its posterior pays nothing for telling
    more about x.

    Args:
        rates: log q - log p of every group of latents, [K, B, G]; its mean over samples and batch is the group's rate,
            where devices share a batch over all of it.
        free: nats of every group.

    References:
        Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, NIPS 2016, section C.8.
    """
    return tf.reduce_sum(tf.nn.relu(free - mean_over_devices(tf.reduce_mean(rates, axis=[0, 1]))))


def mean_over_devices(value: tf.Tensor) -> tf.Tensor:
    """Returns the mean of the values of the devices that share a batch; the value itself where one has all of it.

    Differentiable, and not for XLA (`Needs.whole_batch`).
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, value)


def _penalised(loss: tf.Tensor, terms: ImportanceTerms, kl_weight: tf.Tensor | float) -> tf.Tensor:
    return loss if terms.penalty is None else loss + kl_weight * terms.penalty


def sum_of_sharing(values: tf.Tensor, leaves_per_sample: int) -> tf.Tensor:
    """In place of each leaf's value the sum over all leaves that share its samples: [..., L] to [..., L]."""
    if leaves_per_sample == 1:
        return values
    shape = tf.shape(values)
    groups = tf.reshape(values, tf.concat([shape[:-1], [-1, leaves_per_sample]], axis=0))
    total = tf.reduce_sum(groups, axis=-1, keepdims=True)
    return tf.reshape(total + tf.zeros_like(groups), shape)


def _weighted_mean(factor: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """The mean over observations of the sum over samples (and leaves) of factor * values; [K, B] or [K, B, L]."""
    total = tf.reduce_sum(factor * values, axis=0)
    return tf.reduce_mean(total if total.shape.rank == 1 else tf.reduce_sum(total, axis=-1))


def conditional(terms: ImportanceTerms, kl_weight: tf.Tensor | float = 1.0, *, path: bool = False) -> Objective:
    """Bound log (1/K) sum_k p(x_2 | z_k), z_k ~ q(z | x_1), on log p(x_2 | x_1); the posterior is the prior as well.

    The loss adds kl_weight times the entropy of q, which keeps it from overfitting; `rate` is minus that entropy and no
    part of the bound.

    References:
        Raiko et al., Techniques for Learning Binary Stochastic Feedforward Neural Networks, ICLR 2015; DVAE##,
        section 4.3.
    """
    bound = log_mean_exp(terms.log_likelihood, axis=0)
    entropy = -tf.reduce_mean(_log_posterior(terms, path), axis=0)
    loss = -tf.reduce_mean(bound + kl_weight * entropy)
    return _objective(terms, bound, loss, loss)


def _objective(
    terms: ImportanceTerms, bound: tf.Tensor, generative_loss: tf.Tensor, posterior_loss: tf.Tensor
) -> Objective:
    rate, distortion = rate_and_distortion(
        tf.reduce_mean(terms.log_posterior - terms.log_prior, axis=0),
        -tf.reduce_mean(terms.log_likelihood, axis=0),
        None if terms.composition is None else terms.composition.circuit,
    )
    return Objective(bound, generative_loss, posterior_loss, rate, distortion, terms.chains)


def rate_and_distortion(
    rate: tf.Tensor, distortion: tf.Tensor, circuit: SumProductCircuit | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Rate and distortion [B] of a bound, from those of its leaves [B, L] if there is a circuit.

    With r the probability of each leaf given the leaves' bounds, the distortion is sum_l r_l distortion_l, and the rate
    is sum_l r_l rate_l plus the divergence of the leaves' choice from that of the model. Minus their sum is the bound.
    """
    if circuit is None:
        return rate, distortion
    bounds = -(rate + distortion)
    used = circuit.leaf_posterior(bounds)
    # Leaves that impossible evidence rules out have an infinite distortion, and are not used.
    distortion = tf.reduce_sum(tf.where(used > 0.0, used * distortion, tf.zeros_like(used)), axis=-1)
    return -circuit.log_prob(bounds) - distortion, distortion


OBJECTIVES: dict[str, Callable[..., Objective]] = {"elbo": elbo, "iwae": iwae, "conditional": conditional}


def get(name: str) -> Callable[..., Objective]:
    """Returns an objective by name; raises ValueError that lists the names for any other."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, found {name!r}")
    return OBJECTIVES[name]


def group_gradients(
    tape: tf.GradientTape,
    result: Objective,
    tensors: Sequence[Any],
    posterior_tensors: Sequence[Any],
) -> list[tf.Tensor]:
    """Gradients of the losses with respect to `tensors`: of the posterior's loss for those of the posterior."""
    if result.posterior_loss is result.generative_loss:
        return tape.gradient(result.generative_loss, tensors, unconnected_gradients="zero")
    in_posterior = {id(tensor) for tensor in posterior_tensors}
    posterior = [tensor for tensor in tensors if id(tensor) in in_posterior]
    generative = [tensor for tensor in tensors if id(tensor) not in in_posterior]
    gradients = dict(
        zip(
            [id(tensor) for tensor in [*posterior, *generative]],
            tape.gradient(result.posterior_loss, posterior, unconnected_gradients="zero")
            + tape.gradient(result.generative_loss, generative, unconnected_gradients="zero"),
            strict=True,
        )
    )
    return [gradients[id(tensor)] for tensor in tensors]

"""Mean-field approximations of restricted Boltzmann machines."""

from typing import NamedTuple

import tensorflow as tf

from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine


class MeanField(NamedTuple):
    """A factorial distribution near a machine with batch [...], found from each of C starts.

    Attributes:
        mean_1: of side 1, [C, ..., V].
        mean_2: of side 2, [C, ..., H].
        log_partition_bound: lower bound on log Z, nats, [C, ...]; log Z less it is KL(mean field || machine).
    """

    mean_1: tf.Tensor
    mean_2: tf.Tensor
    log_partition_bound: tf.Tensor


def mean_field(
    rbm: RestrictedBoltzmannMachine, initial_1: tf.Tensor, *, num_iterations: int, differentiable: bool = False
) -> MeanField:
    """Minimises KL(mean field || machine) by coordinate descent, one whole side after the other.

    Args:
        rbm: the machine(s), with batch [...].
        initial_1: means of side 1 to start from, [C, ..., V] or [..., V].
        num_iterations: updates of both sides, at least 1; each lowers the divergence, or leaves it.
        differentiable: whether the bound has a gradient, at fixed means, with respect to the machine's parameters; at
            a fixed point that is the whole gradient of the bound.

    Raises:
        ValueError: no iteration.
    """
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, found {num_iterations}")
    # A loop over tensors that a persistent tape watches does not pass through vectorized_map.
    held, mean_1 = rbm.stopped(), tf.stop_gradient(tf.convert_to_tensor(initial_1, rbm.dtype))

    def body(index: tf.Tensor, mean_1: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        mean_2 = tf.sigmoid(held.logits_2(mean_1))
        return index + 1, tf.sigmoid(held.logits_1(mean_2)), mean_2

    _, mean_1, mean_2 = tf.while_loop(
        lambda index, *_: index < num_iterations,
        body,
        (tf.constant(0), mean_1, tf.zeros_like(held.logits_2(mean_1))),
        maximum_iterations=num_iterations,
    )
    mean_1, mean_2 = tf.stop_gradient(mean_1), tf.stop_gradient(mean_2)
    bound = entropy(mean_1) + entropy(mean_2) - rbm.energy_of_sides(mean_1, mean_2)
    return MeanField(mean_1, mean_2, bound if differentiable else tf.stop_gradient(bound))


def entropy(means: tf.Tensor) -> tf.Tensor:
    """Entropy of independent Bernoulli variables [..., n] in nats, [...]; 0 log 0 is 0."""
    return -tf.reduce_sum(tf.math.xlogy(means, means) + tf.math.xlog1py(1.0 - means, -means), axis=-1)


def entropy_of_logits(logits: tf.Tensor) -> tf.Tensor:
    """The same of logits [..., n], with a gradient that stays finite where the means round to 0 or 1."""
    means = tf.sigmoid(logits)
    return tf.reduce_sum(tf.nn.softplus(logits) - means * logits, axis=-1)

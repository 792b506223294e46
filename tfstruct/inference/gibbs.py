"""Block Gibbs sampling of restricted Boltzmann machines, and chains that persist between training steps.

A sweep draws side 2 given side 1, then side 1 given side 2. States of side 1 determine a chain: side 2 is redrawn
first. States are [..., V] and [..., H] with the machine's batch axes last among the leading ones: [C, B, V] for C
chains of each of B machines. A `seed` is one key [2], or one key for each of the leading axes it has: [C, B, 2] here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine

#: (logits, uniform noise of their shape) to relaxed states; see distributions.relaxed_bernoulli
Relax = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def uniform_like(seed: Any, values: tf.Tensor) -> tf.Tensor:
    """Returns uniform noise of the shape of `values`, drawn from one key or from one for each leading index."""
    seed = tf.convert_to_tensor(seed, tf.uint32)
    leading = seed.shape.rank - 1
    shape = values.shape if values.shape.is_fully_defined() else tf.shape(values)
    return random.uniform(seed, shape[leading:], values.dtype)


def bernoulli(logits: tf.Tensor, seed: Any) -> tf.Tensor:
    """Draws zeros and ones of probability sigmoid(logits) of a one, in the dtype of the logits."""
    return tf.cast(uniform_like(seed, logits) < tf.sigmoid(logits), logits.dtype)


def sweeps(
    rbm: RestrictedBoltzmannMachine, z_1: tf.Tensor, *, num_sweeps: int, seed: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs whole sweeps in one loop of fixed length, which XLA does not unroll.

    Args:
        rbm: the machine(s), with batch [...].
        z_1: states of side 1, [C..., ..., V].
        num_sweeps: at least 1.
        seed: key(s), see above.

    Returns:
        z_1 and z_2 after the last sweep; no gradient flows through them.

    Raises:
        ValueError: no sweep.
    """
    if num_sweeps < 1:
        raise ValueError(f"num_sweeps must be at least 1, found {num_sweeps}")
    seed = tf.convert_to_tensor(seed, tf.uint32)
    # A loop over tensors that a persistent tape watches does not pass through vectorized_map.
    rbm, z_1 = rbm.stopped(), tf.stop_gradient(tf.convert_to_tensor(z_1, rbm.dtype))
    z_2 = tf.zeros_like(rbm.input_2(z_1))
    # Every chain has its copy of the biases: with a broadcast beside the random numbers, XLA's code for them on a CPU
    # takes five times as long.
    bias_1, bias_2 = rbm.bias_1 + tf.zeros_like(z_1), rbm.bias_2 + z_2

    def body(index: tf.Tensor, z_1: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        key_2, key_1 = random.split(random.fold_in(seed, tf.fill(tf.shape(seed)[:-1], index)))
        z_2 = bernoulli(bias_2 + rbm.input_2(z_1), key_2)
        return index + 1, bernoulli(bias_1 + rbm.input_1(z_2), key_1), z_2

    _, z_1, z_2 = tf.while_loop(
        lambda index, *_: index < num_sweeps, body, (tf.constant(0), z_1, z_2), maximum_iterations=num_sweeps
    )
    return tf.stop_gradient(z_1), tf.stop_gradient(z_2)


def relaxed_sweeps(
    rbm: RestrictedBoltzmannMachine, z_1: tf.Tensor, relax: Relax, *, num_sweeps: int, seed: Any
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Sweeps with relaxed states, differentiable in the machine's parameters but not in the state they start from.

    Args:
        rbm: the machine(s).
        z_1: binary states of side 1 that are equilibrated, [C..., ..., V].
        relax: the relaxation.
        num_sweeps: t, at least 1; unrolled, for the gradient goes through each.
        seed: key(s).

    Returns:
        zeta_1, zeta_2, and the logits of side 1 given zeta_2 that zeta_1 was drawn with.

    Raises:
        ValueError: no sweep.

    References:
        DVAE##, eq. 16 and algorithm 1.
    """
    if num_sweeps < 1:
        raise ValueError(f"num_sweeps must be at least 1, found {num_sweeps}")
    seed = tf.convert_to_tensor(seed, tf.uint32)
    zeta_1 = tf.stop_gradient(tf.convert_to_tensor(z_1, rbm.dtype))
    for index in range(num_sweeps):
        key_2, key_1 = random.split(random.fold_in(seed, tf.fill(tf.shape(seed)[:-1], index)))
        logits_2 = rbm.logits_2(zeta_1)
        zeta_2 = relax(logits_2, uniform_like(key_2, logits_2))
        logits_1 = rbm.logits_1(zeta_2)
        zeta_1 = relax(logits_1, uniform_like(key_1, logits_1))
    return zeta_1, zeta_2, logits_1


# Persistent chains -------------------------------------------------------------------------------------------


def fair_coins(seed: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Returns states of fair coin flips, uint8, on the host."""
    return (random.numpy_uniform(np.asarray(seed, np.uint32), shape) < 0.5).astype(np.uint8)


def gather(chains: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Returns the chains of the rows of a batch.

    Args:
        chains: [num_rows, K, V], K chains of side 1 for each training row.
        rows: which rows, int32 [B] (larger integers do not pass through vectorized_map).

    Returns:
        [K, B, V] of the dtype of the chains.

    Raises:
        ValueError: a row outside the chains, where the rows are known (not inside a compiled function).
    """
    rows = tf.convert_to_tensor(rows, tf.int32)
    known = tf.get_static_value(rows)
    if known is not None and known.size and not (0 <= known.min() and known.max() < chains.shape[0]):
        raise ValueError(f"there are chains for rows 0..{chains.shape[0] - 1}, found {known.min()}..{known.max()}")
    return tf.transpose(tf.gather(chains, rows), [1, 0, 2])


def scatter(chains: tf.Tensor, rows: tf.Tensor, states: tf.Tensor) -> tf.Tensor:
    """Returns the chains with those of `rows` [B] replaced by states [K, B, V]."""
    states = tf.cast(tf.transpose(states, [1, 0, 2]), chains.dtype)
    return tf.tensor_scatter_nd_update(chains, rows[:, tf.newaxis], states)

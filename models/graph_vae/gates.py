"""Binary gates on the edges of a latent graph, learned through a binary Concrete relaxation."""

import keras
import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.distributions import adjacency as adjacency_lib

_HARD_LOGIT = 1e4


class EdgeGates(keras.layers.Layer):
    """Independent Bernoulli gates c[i, j] on the possible edges of a graph.

    The parameter is the logit of each mean, starting at 0 (mean 1/2): a mean parameter clamped to [0, 1] has
    gradient zero once it reaches 0, and its edge could never reopen. A relaxed sample is

        c = sigmoid((logit + logistic noise) / temperature),

    the binary Concrete distribution. (Eq. 9 of the paper uses three independent Gumbel variables where two are
    meant; read literally its c is not confined to [0, 1].)

    Args:
        adjacency: Boolean [N, N] of possible edges.
        trainable: False makes every possible edge a gate fixed at 1.
        straight_through: samples are rounded forward and relaxed backward.

    References:
        Graph VAE, section 3.2, eq. 9; Maddison et al., The Concrete Distribution, ICLR 2017.
    """

    def __init__(self, adjacency: np.ndarray, *, trainable: bool, straight_through: bool = False, **kwargs) -> None:
        super().__init__(trainable=trainable, **kwargs)
        self.num_nodes = len(adjacency)
        self.edges = adjacency_lib.edges(adjacency)
        self.straight_through = straight_through
        self.is_learned = trainable and bool(self.edges)
        # Row e of the incidence has a 1 at the flattened place of edge e: logits [E] to a matrix in one sum.
        incidence = np.zeros([len(self.edges), self.num_nodes**2], np.float32)
        for index, (child, parent) in enumerate(self.edges):
            incidence[index, child * self.num_nodes + parent] = 1.0
        self._incidence = incidence

    def build(self, input_shape: object = None) -> None:
        if self.is_learned:
            self.logits = self.add_weight(name="logits", shape=(len(self.edges),), initializer="zeros")
        self.built = True

    @staticmethod
    def harden(logits: np.ndarray) -> np.ndarray:
        """Returns logits whose means are exactly 0 or 1, whichever is nearer; 1/2 counts as open.

        Relaxed samples at them are exact zeros and ones too, at any temperature up to 10, and their gradient is
        exactly 0. They are finite, also in float16.
        """
        return np.where(logits >= 0, _HARD_LOGIT, -_HARD_LOGIT).astype(logits.dtype)

    def probabilities(self) -> tf.Tensor:
        """Returns the gate means of the possible edges, [E]."""
        if self.is_learned:
            return tf.sigmoid(tf.convert_to_tensor(self.logits))
        return tf.ones([len(self.edges)], self.compute_dtype)

    def matrix(self, gates: tf.Tensor) -> tf.Tensor:
        """Places gates [E] of the possible edges in a matrix [N, N] with zeros elsewhere."""
        # A sum of products, not a matrix product: with TF32 that would round the gates to 10 bits on a GPU.
        flat = tf.reduce_sum(gates[:, tf.newaxis] * tf.constant(self._incidence, gates.dtype), axis=0)
        return tf.reshape(flat, [self.num_nodes, self.num_nodes])

    def hard(self) -> tf.Tensor:
        """Returns the most probable gates, zeros and ones [N, N]; a mean of exactly 1/2 counts as open."""
        return self.matrix(tf.cast(self.probabilities() >= 0.5, self.compute_dtype))

    def sample(self, seed: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
        """Returns relaxed gates [N, N]; all ones on the possible edges when the gates are not learned."""
        if not self.is_learned:
            return self.hard()
        logits = tf.convert_to_tensor(self.logits)
        noise = random.logistic(seed, [len(self.edges)], logits.dtype)
        relaxed = tf.sigmoid((logits + noise) / tf.cast(temperature, logits.dtype))
        if self.straight_through:
            # The exact zero or one must survive the sum, so the pair that cancels is added to the relaxed value.
            hard = tf.cast(logits + noise > 0, logits.dtype)
            relaxed = hard + (relaxed - tf.stop_gradient(relaxed))
        return self.matrix(relaxed)

    def call(self, seed: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
        return self.sample(seed, temperature)

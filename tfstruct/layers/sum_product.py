"""The layer that owns the weights of a sum-product network."""

import keras
import tensorflow as tf

from tfstruct.distributions.region_graph import RegionGraph
from tfstruct.distributions.sum_product_circuit import CircuitLayout, SumProductCircuit


class SumProduct(keras.layers.Layer):
    """Leaf log densities [..., L] to the network's log density [...], in nats.

    Every sum is one softmax over all products of all partitions of its region; the logits start as N(0, 1).

    Args:
        graph: the region graph.
        num_leaves: leaves of each leaf region.
        num_sums: sums of each other region but the root.
        products: `cross` or `hadamard`, see CircuitLayout.

    Examples:
        >>> from tfstruct.distributions.region_graph import poon_domingos
        >>> layer = SumProduct(poon_domingos((28, 28), 7), num_leaves=2, num_sums=2)
        >>> layer(tf.zeros([5, 32])).shape    # log densities of 32 leaves
        TensorShape([5])

    References:
        SPVAE, section 4 and its published code.
    """

    def __init__(
        self, graph: RegionGraph, *, num_leaves: int, num_sums: int, products: str = "cross", **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.layout = CircuitLayout(graph, num_leaves=num_leaves, num_sums=num_sums, products=products)
        self.logits = None

    def build(self, input_shape: object = None) -> None:
        if self.layout.num_weights:
            self.logits = self.add_weight(
                name="logits",
                shape=(self.layout.num_weights,),
                initializer=keras.initializers.RandomNormal(stddev=1.0),
            )
        self.built = True

    def circuit(self) -> SumProductCircuit:
        """The network with its current weights."""
        logits = tf.zeros([0]) if self.logits is None else tf.convert_to_tensor(self.logits)
        return SumProductCircuit(self.layout, self.layout.normalize(logits))

    def call(self, leaf_log_prob: tf.Tensor) -> tf.Tensor:
        return self.circuit().log_prob(leaf_log_prob)

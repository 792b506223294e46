"""Sum-product networks with given leaf distributions: exact marginals, conditionals and samples."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd

from tfstruct.distributions.region_graph import RegionGraph
from tfstruct.distributions.sum_product_circuit import CircuitLayout, SumProductCircuit

#: what each query of SumProductNetwork gives
EXACTNESS = {
    "log_prob": "exact",
    "marginal_log_prob": "exact",
    "conditional_log_prob": "exact",
    "sample": "exact",
    "conditional_sample": "exact",
    "most_probable_explanation": "bound",
}


class Explanation(NamedTuple):
    """A state that is as probable as could be found; each field has the shape of a batch of evidence.

    Attributes:
        x: the observed variables as given, the others at the mode of the most probable induced tree, [..., D].
        log_prob: log p(x), exact; no more than the maximum over all completions.
        upper_bound: no less than that maximum: the circuit's value at the leaves' greatest densities. Equal to
            `log_prob` where x is the maximum for certain.
        tree_log_prob: log of the greatest joint density of a completion and an induced tree, exact.
    """

    x: tf.Tensor
    log_prob: tf.Tensor
    upper_bound: tf.Tensor
    tree_log_prob: tf.Tensor


class SumProductNetwork(tfd.Distribution):
    """p(x) of D variables: mixtures and products over a region graph, on leaves that factorise over their variables.

    Args:
        graph: the region graph.
        leaf_distribution: scalar distributions of batch shape [R, I, S]: leaf region, leaf of that region, variable of
            that region in ascending order. S is the size of the largest leaf region; what stands beyond the size of a
            smaller one is ignored.
        logits: of the sums' weights, [W], in the order of CircuitLayout; -inf stands for a weight of 0.
        num_sums: sums of each region that is neither leaf region nor root.
        products: `cross` or `hadamard`, see CircuitLayout.

    All methods raise ValueError for values of another number of variables. Samples are drawn by TensorFlow
    Probability's generators, which give other numbers under XLA.

    Raises:
        ValueError: leaf distributions of another shape, or another number of logits.

    Examples:
        >>> graph = RegionGraph(2, [(0,), (1,), (0, 1)], [(2, (0, 1))])
        >>> leaves = tfd.Normal(tf.constant([[[0.], [5.]], [[0.], [5.]]]), 1.)    # two regions of two leaves
        >>> network = SumProductNetwork(graph, leaves, logits=tf.zeros([4]), num_sums=1)
        >>> round(float(network.marginal_log_prob([0., np.nan], observed=[True, False])), 4)  # x[1] is integrated out
        -1.6121

    References:
        Poon & Domingos, UAI 2011; Darwiche, A Differential Approach to Inference in Bayesian Networks, JACM 2003.
    """

    def __init__(
        self,
        graph: RegionGraph,
        leaf_distribution: tfd.Distribution,
        logits: Any,
        *,
        num_sums: int = 1,
        products: str = "cross",
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "SumProductNetwork",
    ) -> None:
        parameters = dict(locals())
        with tf.name_scope(name) as name:
            scopes = [graph.regions[region] for region in graph.leaf_regions]
            size = max(len(scope) for scope in scopes)
            shape = leaf_distribution.batch_shape.as_list()
            if len(shape) != 3 or shape[0] != len(scopes) or shape[2] != size or leaf_distribution.event_shape.rank:
                raise ValueError(
                    f"leaf distributions must be scalar with batch shape [{len(scopes)}, leaves, {size}], found batch "
                    f"shape {shape} and event shape {leaf_distribution.event_shape.as_list()}"
                )
            layout = CircuitLayout(graph, num_leaves=shape[1], num_sums=num_sums, products=products)
            logits = tf.convert_to_tensor(logits)
            if logits.shape != (layout.num_weights,):
                raise ValueError(f"logits must have shape [{layout.num_weights}], found {logits.shape}")
            self._variables = np.array([[*scope, *[scope[0]] * (size - len(scope))] for scope in scopes])
            self._is_variable = np.arange(size) < np.array([len(scope) for scope in scopes])[:, np.newaxis]
            self._graph, self._leaves = graph, leaf_distribution
            self._circuit = SumProductCircuit(layout, layout.normalize(logits))
            super().__init__(
                dtype=leaf_distribution.dtype,
                reparameterization_type=tfd.NOT_REPARAMETERIZED,
                validate_args=validate_args,
                allow_nan_stats=allow_nan_stats,
                parameters=parameters,
                name=name,
            )

    @property
    def circuit(self) -> SumProductCircuit:
        """The sums and products over the leaves' log densities."""
        return self._circuit

    # Densities -----------------------------------------------------------------------------------------------

    def leaf_log_prob(self, x: tf.Tensor, observed: Any = None) -> tf.Tensor:
        """Log densities of the leaves' observed variables: x [..., D] to [..., L]."""
        x = tf.convert_to_tensor(x, self.dtype)
        values, counts = self._of_regions(x), tf.constant(self._is_variable)[:, tf.newaxis]
        if observed is not None:
            given = tf.gather(_mask(observed, x), self._variables, axis=-1)
            anything = self._leaves.sample(seed=[0, 0])[:, 0]  # in the support, which a missing x need not be
            values = tf.where(given, values, anything)
            counts &= given[..., tf.newaxis, :]
        log_prob = self._leaves.log_prob(values[..., tf.newaxis, :])
        total = tf.reduce_sum(tf.where(counts, log_prob, tf.zeros_like(log_prob)), axis=-1)
        return tf.reshape(total, tf.concat([tf.shape(x)[:-1], [self._circuit.layout.num_leaf_nodes]], axis=0))

    def _of_regions(self, x: tf.Tensor) -> tf.Tensor:
        if x.shape[-1] != self._graph.num_variables:
            raise ValueError(f"x must hold {self._graph.num_variables} variables, found shape {x.shape.as_list()}")
        return tf.gather(x, self._variables, axis=-1)

    def _log_prob(self, value: tf.Tensor) -> tf.Tensor:
        return self._circuit.log_prob(self.leaf_log_prob(value))

    def marginal_log_prob(self, x: Any, observed: Any) -> tf.Tensor:
        """Log density of the observed variables, in nats. Exact.

        Args:
            x: [..., D]; missing variables may hold anything, NaN too.
            observed: Boolean, broadcast to the shape of x.

        Returns:
            [...]; 0 where nothing is observed.
        """
        return self._circuit.log_prob(self.leaf_log_prob(x, observed))

    def conditional_log_prob(self, x: Any, query: Any, given: Any) -> tf.Tensor:
        """Log p(x_query | x_given), in nats, all other variables integrated out. Exact.

        Args:
            x: [..., D].
            query: Boolean, broadcast to the shape of x.
            given: likewise; a variable that is in both counts as given.

        Returns:
            [...]; NaN where what is given is impossible.
        """
        x = tf.convert_to_tensor(x, self.dtype)
        query, given = _mask(query, x), _mask(given, x)
        both = query | given
        return self.marginal_log_prob(x, both) - self.marginal_log_prob(x, given)

    # States --------------------------------------------------------------------------------------------------

    def _sample_n(self, n: tf.Tensor, seed: Any = None) -> tf.Tensor:
        return self._fill(tf.zeros([n, self._circuit.layout.num_leaf_nodes], self._circuit.log_weights.dtype), seed)

    def _fill(self, leaf_log_prob: tf.Tensor, seed: Any) -> tf.Tensor:
        """Draws all variables from the leaves of a tree drawn given evidence [N, L]; returns [N, D]."""
        tree_seed, leaf_seed = tfp.random.split_seed(tfp.random.sanitize_seed(seed), 2)
        leaves = self._circuit.sample_tree(tf.bitcast(tree_seed, tf.uint32), leaf_log_prob)
        return self._assemble(self._leaves.sample(tf.shape(leaf_log_prob)[0], seed=leaf_seed), leaves)

    def _assemble(self, leaf_values: tf.Tensor, leaves: tf.Tensor) -> tf.Tensor:
        """Values [N, R, I, S] of the leaves that are used, [N, L], as [N, D]."""
        used = tf.reshape(leaves, [-1, *self._leaves.batch_shape[:2], 1]) & self._is_variable[:, np.newaxis]
        chosen = tf.where(used, leaf_values, tf.zeros_like(leaf_values))
        flat = tf.reshape(tf.transpose(tf.reduce_sum(chosen, axis=2), [1, 2, 0]), [self._variables.size, -1])
        return tf.transpose(tf.math.unsorted_segment_sum(flat, self._variables.reshape(-1), self._graph.num_variables))

    def conditional_sample(self, x: Any, observed: Any, seed: Any = None) -> tf.Tensor:
        """Draws the missing variables given the observed ones. Exact.

        Args:
            x: [..., D].
            observed: Boolean, broadcast to the shape of x.
            seed: as of `sample`.

        Returns:
            [..., D], the observed variables as given.
        """
        x = tf.convert_to_tensor(x, self.dtype)
        observed = _mask(observed, x)
        evidence = self.leaf_log_prob(x, observed)
        drawn = self._fill(tf.reshape(evidence, [-1, evidence.shape[-1]]), seed)
        return tf.where(observed, x, tf.reshape(drawn, tf.shape(x)))

    def most_probable_explanation(self, x: Any, observed: Any) -> Explanation:
        """Completes the observed variables to a state that is as probable as can be found at once. A bound.

        The most probable state of a network with mixtures is hard to find. What is found is the most probable pair of a
        state and an induced tree (max-product), exactly; its state has at most the maximum's density, and
        `upper_bound` says at most how much it is below.

        Args:
            x: [..., D].
            observed: Boolean, broadcast to the shape of x.
        """
        x = tf.convert_to_tensor(x, self.dtype)
        observed = _mask(observed, x)
        modes, values = self._leaves.mode(), self._of_regions(x)[..., tf.newaxis, :]
        given = tf.gather(observed, self._variables, axis=-1)[..., tf.newaxis, :]
        values = tf.where(given, values, modes)
        log_prob = self._leaves.log_prob(values)
        greatest = tf.reduce_sum(tf.where(self._is_variable[:, np.newaxis], log_prob, tf.zeros_like(log_prob)), axis=-1)
        greatest = tf.reshape(greatest, tf.concat([tf.shape(x)[:-1], [self._circuit.layout.num_leaf_nodes]], axis=0))
        tree_log_prob, leaves = self._circuit.most_probable_tree(greatest)
        flat = tf.reshape(leaves, [-1, self._circuit.layout.num_leaf_nodes])
        filled = self._assemble(tf.repeat(modes[tf.newaxis], tf.shape(flat)[0], axis=0), flat)
        found = tf.where(observed, x, tf.reshape(filled, tf.shape(x)))
        return Explanation(found, self.log_prob(found), self._circuit.log_prob(greatest), tree_log_prob)

    # What tfd.Distribution asks for --------------------------------------------------------------------------

    def _batch_shape(self) -> tf.TensorShape:
        return tf.TensorShape([])

    def _batch_shape_tensor(self) -> tf.Tensor:
        return tf.constant([], tf.int32)

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape([self._graph.num_variables])

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant([self._graph.num_variables], tf.int32)

    def _default_event_space_bijector(self) -> None:
        return None

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict:
        from tensorflow_probability.python.internal import parameter_properties

        return {
            "leaf_distribution": parameter_properties.BatchedComponentProperties(event_ndims=3),
            "logits": parameter_properties.ParameterProperties(event_ndims=1),
        }


def _mask(observed: Any, x: tf.Tensor) -> tf.Tensor:
    """A mask broadcast to the shape of x; raises ValueError unless it is Boolean and can be."""
    observed = tf.convert_to_tensor(observed)
    try:
        shape = tf.broadcast_static_shape(observed.shape, x.shape)
    except ValueError:
        shape = None
    if observed.dtype != tf.bool or shape is None or shape.rank != x.shape.rank:
        raise ValueError(
            f"a mask must be Boolean and broadcast to {x.shape.as_list()}, found {observed.dtype.name} "
            f"{observed.shape.as_list()}"
        )
    return tf.broadcast_to(observed, tf.shape(x))

"""Ways of computing log densities under one circuit with independent Bernoulli leaves, and their gradients."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfstruct.benchmarks.floor import Cost, count_operations
from tfstruct.benchmarks.timing import Run, Way
from tfstruct.registry import Registry

if TYPE_CHECKING:
    from tfstruct.distributions.region_graph import RegionGraph
    from tfstruct.distributions.sum_product_circuit import CircuitLayout
    from tfstruct.models.sum_product_vae.config import Config

UNIT = "rows"


class Circuit(NamedTuple):
    """A circuit with the values of its weights.

    Attributes:
        layout: where its nodes and weights lie.
        variables: of each leaf region, [G, V]; all have as many.
        leaf_logits: of the variables being one, [G, leaves of a region, V].
        log_weights: normalised, [W].
    """

    layout: "CircuitLayout"
    variables: np.ndarray
    leaf_logits: np.ndarray
    log_weights: np.ndarray


#: Makes the rounds of a rival, (circuit, rows), or returns None where it has no such circuit.
Rival = Callable[[Circuit, np.ndarray], Callable[[], Run] | None]

RIVALS: Registry[Rival] = Registry("rival of circuits")


def register_rival(name: str, rival: Rival) -> None:
    """Adds a way of computing a circuit that is timed beside the others, for modules named by `--import`."""
    RIVALS.register(name, rival)


def make_circuit(graph: "RegionGraph", *, num_leaves: int, num_sums: int, seed: int = 0) -> Circuit:
    """Returns a circuit with random weights.

    Raises:
        ValueError: leaf regions of different sizes.
    """
    from tfstruct.distributions.sum_product_circuit import CircuitLayout

    leaf_regions = [graph.regions[region] for region in graph.leaf_regions]
    sizes = {len(region) for region in leaf_regions}
    if len(sizes) > 1:
        raise ValueError(f"leaf regions must have one size for this measure, found {sorted(sizes)}")
    layout = CircuitLayout(graph, num_leaves=num_leaves, num_sums=num_sums)
    generator = np.random.default_rng(seed)
    variables = np.array(leaf_regions)
    logits = generator.normal(size=[len(variables), num_leaves, variables.shape[1]]).astype(np.float32)
    weights = layout.normalize(generator.normal(size=[layout.num_weights]).astype(np.float32))
    return Circuit(layout, variables, logits, np.asarray(weights))


def log_prob(circuit: Circuit, leaf_logits: Any, log_weights: Any, x: Any) -> Any:
    """Log densities [B] of rows [B, D] of zeros and ones, nats, as this project computes them."""
    import tensorflow as tf

    from tfstruct.distributions.sum_product_circuit import SumProductCircuit

    parts = tf.gather(x, circuit.variables, axis=1)
    of_leaves = tf.einsum("bgv,glv->bgl", parts, leaf_logits) - tf.reduce_sum(tf.math.softplus(leaf_logits), axis=-1)
    layout = circuit.layout
    return SumProductCircuit(layout, layout.normalize(log_weights)).log_prob(
        tf.reshape(of_leaves, [-1, layout.num_leaf_nodes])
    )


def ways_of(config: "Config", passes: int) -> dict[str, Way]:
    """The ways of the circuit that a sum-product preset has, on a batch of random rows, some gradients a round."""
    from tfstruct.models.sum_product_vae.scopes import make_graph

    options = config.model
    graph = make_graph(options, config.data.event_shape)
    circuit = make_circuit(graph, num_leaves=options.num_leaves, num_sums=options.num_sums)
    rows = np.random.default_rng(0).integers(0, 2, [config.training.batch_size, graph.num_variables])
    return circuit_ways(circuit, rows, passes)


def circuit_ways(circuit: Circuit, rows: np.ndarray, passes: int) -> dict[str, Way]:
    """Ways of one gradient of the mean log density of rows [B, D] for leaves and weights, some passes a round."""
    import tensorflow as tf

    x = tf.constant(rows, tf.float32)
    logits, weights = tf.Variable(circuit.leaf_logits), tf.Variable(circuit.log_weights)

    def gradient(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(log_prob(circuit, logits, weights, x))
        return [value, *tape.gradient(value, [logits, weights])]

    def make(jit_compile: bool) -> Run:
        function = tf.function(gradient, jit_compile=jit_compile, autograph=False)
        return lambda: [tensor.numpy() for tensor in function(x)]

    size = logits.shape.num_elements() + weights.shape.num_elements()
    operations = count_operations(gradient, x)
    cost = Cost(operations / len(rows), 4.0 * 2 * size / len(rows))
    work = passes * len(rows)

    def repeated(make: Callable[[], Run]) -> Way:
        def make_round() -> Run:
            once = make()

            def run() -> None:
                for _ in range(passes):
                    once()

            return run

        return Way(make_round, work, cost)

    ways = {"tfstruct, XLA": repeated(lambda: make(True)), "tfstruct, graph": repeated(lambda: make(False))}
    for name, rival in RIVALS.items():
        if rival_make := rival(circuit, rows):
            ways[name] = repeated(rival_make)
    return ways

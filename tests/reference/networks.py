"""Slow NumPy float64 twins of the layers: one row, one node, one loop at a time.

Weights come as a dictionary from the end of their path (`normalization_0/normalization/gamma`) to an array.
"""

import numpy as np

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0.0),
    "elu": lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0.0)) - 1.0),
    "tanh": np.tanh,
    "linear": lambda x: x,
}


def named_weights(layer):
    """The weights of a built layer by path, without the layer's own name."""
    return {variable.path.partition("/")[2]: np.asarray(variable, np.float64) for variable in layer.variables}


def below(weights, prefix):
    """The weights whose path starts with `prefix/`, by the rest of it."""
    return {path[len(prefix) + 1 :]: value for path, value in weights.items() if path.startswith(prefix + "/")}


def randomize(layer, rng, scale=0.5):
    """Gives every weight of a layer a random value, so that no term of a formula is invisible."""
    for variable in layer.variables:
        value = scale * rng.normal(size=variable.shape)
        if variable.path.endswith(("moving_variance", "gamma")):
            value = np.exp(value)
        variable.assign(value)


def difference(variables, directions, function, step=1e-6):
    """Central difference of a function of variables along a direction; they get their values back."""
    start, sides = [variable.numpy() for variable in variables], []
    for side in (step, -step, 0.0):
        for variable, value, direction in zip(variables, start, directions, strict=True):
            variable.assign(value + side * direction)
        sides.append(float(function()) if side else None)
    return (sides[0] - sides[1]) / (2 * step)


def along(gradients, directions):
    """The derivative along a direction, from gradients."""
    return sum(np.sum(gradient * direction) for gradient, direction in zip(gradients, directions, strict=True))


def batch_norm(x, weights, *, epsilon, training):
    """x [..., F] normalised over all leading axes."""
    rows = x.reshape(-1, x.shape[-1])
    result = np.empty_like(rows)
    for feature in range(rows.shape[1]):
        column = rows[:, feature]
        if training:
            mean = sum(column) / len(column)
            variance = sum((column - mean) ** 2) / len(column)
        else:
            mean, variance = weights["moving_mean"][feature], weights["moving_variance"][feature]
        scaled = (column - mean) / np.sqrt(variance + epsilon)
        result[:, feature] = weights["gamma"][feature] * scaled + weights["beta"][feature]
    return result.reshape(x.shape)


def hidden_layer(x, kernel, bias, normalization, activation, *, epsilon, training):
    """activation(batch_norm(x @ kernel + bias)); `bias` or the weights of the normalisation may be missing."""
    out = x @ kernel
    if bias is not None:
        out = out + bias
    if normalization:
        out = batch_norm(out, normalization, epsilon=epsilon, training=training)
    return ACTIVATIONS[activation](out)


def mlp(x, weights, activation, *, epsilon=1e-5, training=False):
    """Hidden layers dense_0, dense_1, ... and a linear layer `output`: [..., I] -> [..., O]."""
    index = 0
    while f"dense_{index}/kernel" in weights:
        dense = below(weights, f"dense_{index}")
        normalization = below(weights, f"normalization_{index}/normalization")
        x = hidden_layer(
            x, dense["kernel"], dense.get("bias"), normalization, activation, epsilon=epsilon, training=training
        )
        index += 1
    return x @ weights["output/kernel"] + weights.get("output/bias", 0.0)  # none before a normalisation


def node_heads(hidden, weights, group, limit=15.0):
    """Hidden features [..., H] of one group to loc and log variance, each [..., D]."""
    projected = hidden @ weights["projection/kernel"][group] + weights["projection/bias"][group]
    both = projected @ weights["parameters/kernel"][group] + weights["parameters/bias"][group]
    node_dim = both.shape[-1] // 2
    return both[..., :node_dim], np.clip(both[..., node_dim:], -limit, limit)


def _node_features(features, weights, num_nodes, activation, epsilon, training):
    """What the heads of the bottom-up network read: a list of [..., H], one for each node."""
    kernel = weights["dense/kernel"]
    width = kernel.shape[1] // num_nodes
    hidden = []
    for node in range(num_nodes):
        columns = slice(node * width, (node + 1) * width)
        bias = weights["dense/bias"][columns] if "dense/bias" in weights else None
        normalization = {name: value[columns] for name, value in below(weights, "normalization/normalization").items()}
        hidden.append(
            hidden_layer(
                features, kernel[:, columns], bias, normalization, activation, epsilon=epsilon, training=training
            )
        )
    return hidden


def bottom_up(features, weights, num_nodes, activation, *, epsilon=1e-5, training=False):
    """Features [..., F] to the loc and log variance of every node: two lists of [..., D]."""
    hidden = _node_features(features, weights, num_nodes, activation, epsilon, training)
    heads = [node_heads(values, below(weights, "heads"), node) for node, values in enumerate(hidden)]
    return [loc for loc, _ in heads], [log_variance for _, log_variance in heads]


def contexts(features, weights, num_nodes, activation, *, epsilon=1e-5, training=False):
    """Features [..., F] to the context of every node's flow: a list of [..., C]."""
    hidden = _node_features(features, weights, num_nodes, activation, epsilon, training)
    kernel, bias = weights["context/kernel"], weights["context/bias"]
    return [values @ kernel[node] + bias[node] for node, values in enumerate(hidden)]


def top_down(parents, weights, node, place, num_places, activation, *, epsilon=1e-5, training=False):
    """Concatenated gated parents [..., P * D] of one node to its loc and log variance, each [..., D].

    The node stands at `place` among the `num_places` nodes that the layer computes together.
    """
    kernel = weights[f"kernel_{node}"]
    bias = weights["bias"][place] if "bias" in weights else None
    normalization = {
        name: value.reshape(num_places, -1)[place]
        for name, value in below(weights, "normalization/normalization").items()
    }
    hidden = hidden_layer(parents, kernel, bias, normalization, activation, epsilon=epsilon, training=training)
    return node_heads(hidden, below(weights, "heads"), place)

"""Slow NumPy float64 twins of the masked network and of the inverse autoregressive flow: one vector at a time.

Vectors are [D], contexts [C]; weights come by the end of their path, as in `networks`.
"""

from fractions import Fraction

import numpy as np
import tensorflow as tf
from scipy import special

from tests.reference import networks


def places_of(order, dim):
    """The place of every dimension, by a name or as given."""
    return {"forward": list(range(dim)), "reversed": list(range(dim))[::-1]}.get(order, order)


def degrees(units, dim, has_context):
    """How many of the first inputs each unit of a hidden layer may know: spread evenly from the lowest to dim - 1."""
    lowest = 0 if has_context or dim == 1 else 1
    if units == 1:
        return [lowest]
    return [round(lowest + Fraction(unit * (dim - 1 - lowest), units - 1)) for unit in range(units)]


def made(x, weights, order, activation, context=None, outputs_per_dim=2):
    """The outputs [outputs_per_dim, D] of the masked network: every unit a sum over the units that it may see."""
    places = list(places_of(order, len(x)))
    num_layers = sum(path.startswith("kernel_") for path in weights)
    values, known = list(x), [place + 1 for place in places]
    for layer in range(num_layers - 1):
        kernel, bias = weights[f"kernel_{layer}"], weights[f"bias_{layer}"]
        may_know = degrees(len(bias), len(x), context is not None)
        sums = []
        for unit, limit in enumerate(may_know):
            total = bias[unit] + sum(v * kernel[j, unit] for j, v in enumerate(values) if known[j] <= limit)
            if layer == 0 and context is not None:
                total += context @ weights["context_kernel"][:, unit]
            sums.append(total)
        values, known = list(networks.ACTIVATIONS[activation](np.array(sums))), may_know
    kernel, bias = weights[f"kernel_{num_layers - 1}"], weights[f"bias_{num_layers - 1}"]
    outputs = np.zeros([outputs_per_dim, len(x)])
    for part, dim in np.ndindex(*outputs.shape):
        column = part * len(x) + dim
        seen = sum(v * kernel[j, column] for j, v in enumerate(values) if known[j] <= places[dim])
        outputs[part, dim] = bias[column] + seen
    return outputs


def step_forward(x, weights, order, activation, gate_bias, context=None):
    """y = sigma x + (1 - sigma) m and log sigma, each [D]."""
    shift, logit = made(x, weights, order, activation, context)
    gate = special.expit(logit + gate_bias)
    return gate * x + (1.0 - gate) * shift, np.log(gate)


def step_inverse(y, weights, order, activation, gate_bias, context=None):
    """The x of a y, solved from the first place in the order to the last."""
    x = np.full_like(y, 7.0)  # what stands at the places not solved yet must not matter
    for dim in np.argsort(places_of(order, len(y))):
        shift, logit = made(x, weights, order, activation, context)
        gate = special.expit(logit[dim] + gate_bias)
        x[dim] = (y[dim] - (1.0 - gate) * shift[dim]) / gate
    return x


def _steps(weights):
    """The weights of every step with its order: odd steps run backwards."""
    num_steps = len({path.partition("/")[0] for path in weights})
    return [(networks.below(weights, f"step_{i}"), "reversed" if i % 2 else "forward") for i in range(num_steps)]


def forward(x, weights, activation, gate_bias, context=None):
    """The flowed vector and the logarithms of its slopes, each [D]."""
    total = np.zeros_like(x)
    for step, order in _steps(weights):
        x, log_slopes = step_forward(x, step, order, activation, gate_bias, context)
        total = total + log_slopes
    return x, total


def inverse(y, weights, activation, gate_bias, context=None):
    """The base vector of a flowed one, and the log slopes there."""
    x = y
    for step, order in reversed(_steps(weights)):
        x = step_inverse(x, step, order, activation, gate_bias, context)
    return x, forward(x, weights, activation, gate_bias, context)[1]


def jacobian(function, x):
    """[B, I, J]: derivatives of output i of each row by input j of the same row, by reverse mode."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = function(x)
    rows = [
        tape.gradient(y, x, output_gradients=tf.one_hot(tf.fill([len(y)], i), y.shape[1], dtype=y.dtype))
        for i in range(y.shape[1])
    ]
    return np.stack([np.zeros(x.shape) if row is None else row.numpy() for row in rows], axis=1)

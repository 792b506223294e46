"""Inverse autoregressive flows: fast from noise to latent, exact and sequential the other way."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfstruct.bijectors.order import resolve_order

Network = Callable[..., Sequence[tf.Tensor]]


class InverseAutoregressive(tfb.Bijector):
    """One step of an inverse autoregressive flow on vectors [..., D].

    forward:  y = sigma * x + (1 - sigma) * m,  sigma = sigmoid(s + gate_bias),  (m, s) = network(x, context)

    Since m[i] and s[i] depend on the x before i in the order, the Jacobian dy/dx is triangular and its log-determinant
    is sum_i log sigma[i] (nats). Forward takes one pass of the network. Inverse takes D passes, one dimension each: it
    is exact up to rounding, and slow. The positive gate bias lets x through at first, which keeps long chains stable.

    Values and log-determinants come from the arguments alone: `forward_and_log_det` and the methods beneath it never
    look at what an object computed before. Whoever owns the network owns its weights: this object tracks none. A gate
    that underflows (in float32 a logit below -87) cannot be inverted.

    Args:
        network: (x [..., D], context) -> m and s, each [..., D]; called as network(x) without a context.
        context: what the network is given beside x, [..., C], or None; its leading axes are the batch of the bijector.
        order: `forward`, `reversed`, or the place of each dimension; default the network's attribute `order`.
        gate_bias: added to s.

    Raises:
        ValueError: no order where the network has none, or another one than the network's.

    Examples:
        >>> from tfstruct.layers.made import MADE
        >>> network = MADE(3, (8,), order="reversed")
        >>> network.build()
        >>> step = InverseAutoregressive(network)
        >>> y, log_det = step.forward_and_log_det(tf.zeros([5, 3]))
        >>> y.shape, log_det.shape
        (TensorShape([5, 3]), TensorShape([5]))

    References:
        Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, NIPS 2016, eqs. 10-14.
    """

    def __init__(
        self,
        network: Network,
        context: tf.Tensor | None = None,
        *,
        order: str | Sequence[int] | None = None,
        gate_bias: float = 2.0,
        validate_args: bool = False,
        name: str = "inverse_autoregressive",
    ) -> None:
        parameters = dict(locals())
        with tf.name_scope(name) as name:
            self._network, self._context, self._gate_bias = network, context, gate_bias
            self._order = self._checked_order(order)
            super().__init__(
                forward_min_event_ndims=1,
                inverse_min_event_ndims=1,
                validate_args=validate_args,
                parameters=parameters,
                name=name,
            )

    def _checked_order(self, order: str | Sequence[int] | None) -> str | Sequence[int]:
        own = getattr(self._network, "order", None)
        if own is None:
            if order is None:
                raise ValueError("the network has no attribute `order`: give the order")
            return order
        if order is not None and not np.array_equal(resolve_order(order, len(own)), own):
            raise ValueError(f"the network's order is {np.asarray(own).tolist()}, found order={order!r}")
        return own

    def _shift_and_gate(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns m and the gate's logit s + gate_bias."""
        shift, logit = self._network(x) if self._context is None else self._network(x, self._context)
        return shift, logit + self._gate_bias

    def forward_and_log_slopes(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns y and log sigma, the logarithm of the Jacobian's diagonal, each [..., D]; one pass of the network."""
        shift, logit = self._shift_and_gate(x)
        return tf.sigmoid(logit) * x + tf.sigmoid(-logit) * shift, tf.math.log_sigmoid(logit)

    def forward_and_log_det(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns y [..., D] and log |det dy/dx| [...], nats; one pass of the network."""
        y, log_slopes = self.forward_and_log_slopes(x)
        return y, tf.reduce_sum(log_slopes, axis=-1)

    def push_score(self, x: tf.Tensor, score: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Takes a vector and the score of its density through the step.

        With p the density of x and q that of y: grad log q(y) = J^-T (grad log p(x) - grad log |det J|(x)), J = dy/dx.
        The network must have a method `with_jacobian` as MADE has, which makes this one batched pass and a triangular
        system rather than the D passes of the inverse.

        Args:
            x: [..., D].
            score: grad log p(x), [..., D].

        Returns:
            y, the log slopes and grad log q(y), each [..., D].

        References:
            Vaitl, Nicoli, Nakajima & Kessel, Gradients should stay on path, Machine Learning: Science and Technology
            2022 (the recursion of the score through a flow).
        """
        arguments = (x,) if self._context is None else (x, self._context)
        (shift, logit), (shift_slopes, logit_slopes) = self._network.with_jacobian(*arguments)
        logit += self._gate_bias
        gate, rest = tf.sigmoid(logit), tf.sigmoid(-logit)
        score -= tf.linalg.matvec(logit_slopes, rest)  # d log sigmoid(s) = sigmoid(-s) ds
        # Entry [j, i] is dy[i] / dx[j].
        jacobian = (gate * rest * (x - shift))[..., tf.newaxis, :] * logit_slopes
        jacobian += rest[..., tf.newaxis, :] * shift_slopes + tf.linalg.diag(gate)
        score = _solve(jacobian, score, resolve_order(self._order, x.shape[-1]))
        return gate * x + rest * shift, tf.math.log_sigmoid(logit), score

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return self.forward_and_log_det(x)[0]

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return self.forward_and_log_det(x)[1]

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        y = tf.convert_to_tensor(y)
        if self._context is not None:
            y += tf.zeros_like(self._context[..., :1])  # the loop needs the shape that the network will give
        dim = y.shape[-1]
        places = tf.constant(resolve_order(self._order, dim), tf.int32)

        def solve(place: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            shift, logit = self._shift_and_gate(x)
            # y / sigma - (1 - sigma) / sigma * m, without dividing by a gate that may be tiny
            return place + 1, tf.where(places == place, y + tf.exp(-logit) * (y - shift), x)

        # A bound known beforehand lets XLA differentiate through the loop.
        return tf.while_loop(
            lambda place, x: place < dim, solve, (tf.constant(0), tf.zeros_like(y)), maximum_iterations=dim
        )[1]

    def _inverse_log_det_jacobian(self, y: tf.Tensor) -> tf.Tensor:
        return -self.forward_and_log_det(self._inverse(y))[1]

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict:
        from tensorflow_probability.python.internal import parameter_properties

        return {"context": parameter_properties.ParameterProperties(event_ndims=1)}


def _solve(matrix: tf.Tensor, right: tf.Tensor, places: np.ndarray) -> tf.Tensor:
    """Solves matrix [..., D, D] @ result = right [..., D], where entry [j, i] is 0 unless place j <= place i.

    Back substitution, written out: batched triangular solvers are made for few large systems, here are many small ones.
    """
    solved: dict[int, tf.Tensor] = {}
    for index in np.argsort(-places):
        solved[index] = right[..., index] / matrix[..., index, index]
        right -= matrix[..., index] * solved[index][..., tf.newaxis]
    return tf.stack([solved[index] for index in range(len(places))], axis=-1)


def chain(steps: Sequence[InverseAutoregressive]) -> tfb.Chain:
    """Returns the flow that applies steps[0] first (tfb.Chain lists them last first)."""
    return tfb.Chain(list(reversed(steps)), name="inverse_autoregressive_flow")


def forward_and_log_slopes(flow: tfb.Chain, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns y and the steps' log slopes added up, each [..., D]; one network pass a step.

    The sum of the log slopes over the last axis is log |det dy/dx|, nats.
    """
    total: tf.Tensor | float = 0.0
    for step in reversed(flow.bijectors):
        x, log_slopes = step.forward_and_log_slopes(x)
        total += log_slopes
    return x, total


def push_score(flow: tfb.Chain, x: tf.Tensor, score: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Takes x and the score of its density through a chain: y, log slopes and score, each [..., D]; see the step's."""
    total: tf.Tensor | float = 0.0
    for step in reversed(flow.bijectors):
        x, log_slopes, score = step.push_score(x, score)
        total += log_slopes
    return x, total, score


def inverse_and_log_slopes(flow: tfb.Chain, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the x that `forward_and_log_slopes` takes to y, and its log slopes there; D passes a step."""
    total: tf.Tensor | float = 0.0
    for step in flow.bijectors:
        y = step._inverse(y)  # not `inverse`, which would answer from the cache
        total += step.forward_and_log_slopes(y)[1]
    return y, total

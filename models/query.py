"""What can be asked of a served model: one row for each signature."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import tensorflow as tf


class Query(NamedTuple):
    """A question to a model, from which its signature, its golden example and its warm-up records are made.

    Attributes:
        inputs: among `x`, `x_given` and `x_query` (of a conditional system), `observed` and `seed`, in this order.
        exactness: of the answer, None where that says nothing.
        function: for a question that is a system's own: (model, inputs by name) to answers by name, tensors that have
            the batch first. `x` [N, *event_shape] then holds zeros for rows outside the support, whose answers, which
            must be float32, come out NaN, and `seed` is a key for each row [N, 2]. None: the method of this name of
            `serving.ServedSystem`.
    """

    inputs: tuple[str, ...]
    exactness: Literal["exact", "bound", "estimate"] | None = None
    function: "Callable[[object, dict[str, tf.Tensor]], dict[str, tf.Tensor]] | None" = None


#: of every system
SCORES = {
    "log_prob": Query(("x", "seed"), "estimate"),  # of p(x), without bias unless a log Z is estimated too
    "elbo": Query(("x", "seed"), "bound"),
    "encode": Query(("x",)),
    "reconstruct": Query(("x", "seed")),
}
SAMPLE = {"sample": Query(("seed",), "exact")}
CONDITIONAL = {"conditional_log_prob": Query(("x_given", "x_query", "seed"), "estimate")}
#: of a system that takes missing values; inpainting is exact in the limit of many importance samples
MISSING = {
    "marginal_log_prob": Query(("x", "observed", "seed"), "estimate"),
    "inpaint": Query(("x", "observed", "seed"), "estimate"),
}
REGIONS = {"region_log_prob": Query(("x", "seed"), "estimate")}

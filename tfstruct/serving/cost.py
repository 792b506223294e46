"""What a score costs."""

import logging
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tensorflow.python.profiler import model_analyzer, option_builder

from tfstruct import random
from tfstruct.inference.objectives import Draws, log_weights
from tfstruct.models.system import System


def flop_of_score(model: System, num_samples: int, options: Mapping[str, Any]) -> int | None:
    """Counts the floating-point operations of the importance terms of one observation, by TensorFlow's profiler.

    What every further sample adds is that of the second one. What joins the terms, random numbers among it, is not
    counted.

    Args:
        model: the system.
        num_samples: K.
        options: of the draws.

    Returns:
        The number; None for a model whose terms have loops, of which the profiler counts one turn.
    """
    counts = [_count(model, samples, options) for samples in (1, 2)]
    first, second = counts
    return None if first is None or second is None else first + (num_samples - 1) * (second - first)


def _count(model: System, num_samples: int, options: Mapping[str, Any]) -> int | None:
    keys = random.keys_of_samples(random.key(0), num_samples, 1)

    def weights(x: tf.Tensor) -> tf.Tensor:
        return log_weights(model.terms(x, Draws(keys, num_samples, options=dict(options))))

    spec = tf.TensorSpec([1, *model.event_shape], tf.float32)
    graph = tf.function(weights, autograph=False).get_concrete_function(spec).graph
    if any("While" in operation.type for operation in graph.get_operations()):
        return None
    builder = option_builder.ProfileOptionBuilder
    asked = builder(builder.float_operation()).with_empty_output().build()
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it calls itself deprecated
    try:
        counted: Any = model_analyzer.profile(graph, options=asked)  # pyright: ignore[reportArgumentType]
        return int(counted.total_float_ops)
    finally:
        logger.setLevel(level)

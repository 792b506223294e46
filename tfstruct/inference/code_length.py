"""How complex an observation is: its length in a lossless code that knows nothing of the data it belongs to.

A model's log density of an observation plus this length compares the model's code with a generic one. It does not
reward observations for having little in them, as the density alone does.

References:
    Serra et al., Input Complexity and Out-of-Distribution Detection with Likelihood-Based Generative Models, ICLR 2020
        (the score); Krichevsky & Trofimov, The Performance of Universal Encoding, IEEE Transactions on Information
        Theory, 1981 (the estimator, here with Dirichlet(alpha) counts); Langdon & Rissanen, Compression of
        Black-White Images with Arithmetic Coding, 1981, and Weinberger, Seroussi & Sapiro, LOCO-I, 2000 (the
        contexts).
"""

from collections.abc import Sequence

import tensorflow as tf

from tfstruct.data.support import BINARY, INTEGERS

SUPPORTS = (BINARY, INTEGERS)
# Neighbours that are coded before a pixel, as (rows up, columns to the right): those of the JBIG kind nearest to it.
_NEIGHBOURS = ((0, -1), (1, -1), (1, 0), (1, 1), (0, -2), (2, 0), (1, 2))
_GRADIENTS = (1, 32, 128)  # of the neighbourhood of a grey pixel, from which on it has another context
_BINARY_ALPHA, _LEVEL_ALPHA = 0.5, 0.05


def code_length(x: tf.Tensor, support: str) -> tf.Tensor:
    """Returns the length of the code of each observation, nats [N].

    Pixels are coded row by row, each by the counts of what followed in the same context before, of this observation
    alone: for zeros and ones the context is seven neighbours; of grey levels the difference to a prediction from three
    neighbours is coded, in one of four contexts by how much those differ. The code is adaptive, and its length depends
    on the last counts alone. Channels are coded one after the other, vectors as images of one row.

    Args:
        x: observations [N, *event_shape].
        support: where they lie, one of `SUPPORTS`.

    Raises:
        ValueError: values of another support, which have no lossless code.
    """
    if support not in SUPPORTS:
        raise ValueError(f"there is a lossless code for values that are {' or '.join(SUPPORTS)}, found {support}")
    planes = _planes(tf.cast(x, tf.int32), x.shape[1:])
    if support == BINARY:
        lengths = _adaptive(planes, _binary_contexts(planes), 2, 2 ** len(_NEIGHBOURS), _BINARY_ALPHA)
    else:
        prediction, context = _predict(planes)
        lengths = _adaptive((planes - prediction) % 256, context, 256, len(_GRADIENTS) + 1, _LEVEL_ALPHA)
    return tf.reduce_sum(tf.reshape(lengths, [tf.shape(x)[0], -1]), axis=1)


def _planes(x: tf.Tensor, event_shape: Sequence[int]) -> tf.Tensor:
    """Observations as planes [N * channels, height, width]."""
    if len(event_shape) == 2:
        return x
    if len(event_shape) == 3:
        return tf.reshape(tf.transpose(x, [0, 3, 1, 2]), [-1, *event_shape[:2]])
    return tf.reshape(x, [-1, 1, tf.TensorShape(event_shape).num_elements()])


def _shifted(planes: tf.Tensor, up: int, right: int) -> tf.Tensor:
    """The pixel so many rows up and columns to the right of each; 0 outside."""
    height, width = planes.shape[1:]
    padded = tf.pad(planes, [[0, 0], [2, 0], [2, 2]])
    return padded[:, 2 - up : 2 - up + height, 2 + right : 2 + right + width]


def _binary_contexts(planes: tf.Tensor) -> tf.Tensor:
    return tf.add_n([_shifted(planes, *place) * 2**bit for bit, place in enumerate(_NEIGHBOURS)])


def _predict(planes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The median edge detector of LOCO-I, and the context of each pixel by the gradients around it."""
    left, above, corner = _shifted(planes, 0, -1), _shifted(planes, 1, 0), _shifted(planes, 1, -1)
    low, high = tf.minimum(left, above), tf.maximum(left, above)
    prediction = tf.where(corner >= high, low, tf.where(corner <= low, high, left + above - corner))
    gradient = tf.abs(left - corner) + tf.abs(corner - above)
    return prediction, tf.add_n([tf.cast(gradient >= least, tf.int32) for least in _GRADIENTS])


def _adaptive(symbols: tf.Tensor, contexts: tf.Tensor, num_symbols: int, num_contexts: int, alpha: float) -> tf.Tensor:
    """Length [P], nats, of planes [P, height, width] coded by Dirichlet(alpha) counts of each context.

    A symbol that came n_s times among n has probability (n_s + alpha) / (n + num_symbols * alpha): the product over
    all is a ratio of gamma functions of the last counts, whatever the order.
    """
    num_planes, cells = tf.shape(symbols)[0], num_contexts * num_symbols
    place = contexts * num_symbols + symbols + tf.reshape(tf.range(num_planes) * cells, [-1, 1, 1])
    ones = tf.ones(tf.shape(place), tf.float32)
    counts = tf.math.unsorted_segment_sum(tf.reshape(ones, [-1]), tf.reshape(place, [-1]), num_planes * cells)
    counts = tf.reshape(counts, [-1, num_contexts, num_symbols])

    def log_rising(count: tf.Tensor, start: float) -> tf.Tensor:
        rising = tf.math.lgamma(count + start) - tf.math.lgamma(start)
        return tf.where(count > 0.0, rising, tf.zeros_like(rising))  # most counts are 0, and rounding would add up

    seen = tf.reduce_sum(log_rising(counts, alpha), axis=2)
    return tf.reduce_sum(log_rising(tf.reduce_sum(counts, axis=2), num_symbols * alpha) - seen, axis=1)

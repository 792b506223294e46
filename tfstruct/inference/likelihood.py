"""Held-out log-likelihood by importance sampling, in chunks that bound memory whatever the sample count is."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfstruct import random
from tfstruct.inference.objectives import ImportanceTerms, log_weights

TermsFunction = Callable[[tf.Tensor], ImportanceTerms]


class LikelihoodEstimate(NamedTuple):
    """What K importance samples say of each of B observations; every field [B].

    Attributes:
        log_prob: log (1/K) sum_k w_k, nats; on average below log p(x), and nearer to it the larger K is.
        std_err: standard error of log_prob by the delta method, nats; NaN where it is unknown (one sample, or no
            sample with any weight).
        effective_sample_size: (sum w)^2 / sum w^2, in [1, K].
        elbo: mean of log w_k, nats.
        rate: mean of log q(z | x) - log p(z), nats.
        distortion: mean of -log p(x | z), nats.
    """

    log_prob: tf.Tensor
    std_err: tf.Tensor
    effective_sample_size: tf.Tensor
    elbo: tf.Tensor
    rate: tf.Tensor
    distortion: tf.Tensor


def estimate(terms_of: TermsFunction, row_keys: tf.Tensor, *, num_samples: int, chunk: int) -> LikelihoodEstimate:
    """Estimates log p(x) of a batch with exactly `num_samples` importance samples.

    Sample k of a row draws from a key of its own, derived from the row's key and k. The estimate of a row therefore
    depends neither on the rest of its batch nor on `chunk`.

    Args:
        terms_of: maps keys [C, B, 2] of C samples to their importance terms, each [C, B].
        row_keys: one key for each observation, [B, 2].
        num_samples: K.
        chunk: samples computed at once; memory grows with it and not with K.

    Raises:
        ValueError: num_samples or chunk below 1.

    References:
        Burda, Grosse & Salakhutdinov, ICLR 2016, eq. 8 (the estimator); Owen, Monte Carlo, 2013, chapter 9
        (effective sample size).
    """
    if num_samples < 1 or chunk < 1:
        raise ValueError(f"num_samples and chunk must be at least 1, found {num_samples} and {chunk}")
    chunk = min(chunk, num_samples)
    batch = tf.shape(row_keys)[0]
    zeros = tf.zeros([batch])

    def body(first: tf.Tensor, largest: tf.Tensor, is_broken: tf.Tensor, sums: tuple[tf.Tensor, ...]) -> tuple:
        terms = terms_of(random.sample_keys(row_keys, chunk, first))
        weights = tf.cast(log_weights(terms), tf.float32)
        # The last chunk may reach beyond K: its surplus samples count for nothing.
        counts = (first + tf.range(chunk) < num_samples)[:, tf.newaxis]
        masked = tf.where(counts, weights, tf.constant(float("-inf")))
        new_largest = tf.maximum(largest, tf.reduce_max(masked, axis=0))
        # A row whose weights are all zero so far has no finite maximum to scale by.
        scale = tf.where(tf.math.is_finite(new_largest), new_largest, zeros)
        old = tf.where(tf.math.is_finite(largest), tf.exp(largest - scale), zeros)
        relative = tf.exp(masked - scale)
        keep = tf.cast(counts, tf.float32)

        def mean_term(values: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(tf.where(counts, tf.cast(values, tf.float32), 0.0 * keep), axis=0) / num_samples

        return (
            first + chunk,
            new_largest,
            is_broken | tf.reduce_any(tf.math.is_nan(masked), axis=0),
            (
                sums[0] * old + tf.reduce_sum(relative, axis=0),
                sums[1] * tf.square(old) + tf.reduce_sum(tf.square(relative), axis=0),
                sums[2] + mean_term(terms.log_posterior - terms.log_prior),
                sums[3] + mean_term(-terms.log_likelihood),
            ),
        )

    rounds = -(-num_samples // chunk)
    _, largest, is_broken, (total, squares, rate, distortion) = tf.while_loop(
        lambda first, *_: first < num_samples,
        body,
        (tf.constant(0), zeros + float("-inf"), tf.zeros([batch], tf.bool), (zeros, zeros, zeros, zeros)),
        maximum_iterations=rounds,
    )
    has_weight = total > 0.0
    safe = tf.where(has_weight, total, tf.ones_like(total))
    size = tf.where(has_weight, tf.square(safe) / tf.where(has_weight, squares, tf.ones_like(squares)), zeros)
    log_prob = tf.math.log(safe) + largest - tf.math.log(float(num_samples))
    # A maximum may pass over NaN (it does under XLA): a model that has diverged must not get a finite number.
    log_prob = tf.where(is_broken, tf.constant(float("nan")), log_prob)
    # Var(mean w) / mean(w)^2 = (1/ESS - 1/K) K / (K - 1)
    variance = (1.0 / tf.maximum(size, 1.0) - 1.0 / num_samples) * (num_samples / max(num_samples - 1, 1))
    return LikelihoodEstimate(
        log_prob=log_prob,
        std_err=tf.where(has_weight & (num_samples > 1), tf.sqrt(tf.maximum(variance, 0.0)), tf.constant(float("nan"))),
        effective_sample_size=size,
        elbo=-(rate + distortion),
        rate=rate,
        distortion=distortion,
    )

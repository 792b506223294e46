"""Held-out log-likelihood by importance sampling, in chunks that bound memory whatever the sample count is."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfstruct import random
from tfstruct.distributions.sum_product_circuit import SumProductCircuit
from tfstruct.inference.objectives import ImportanceTerms, log_weights, rate_and_distortion

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


def estimate(
    terms_of: TermsFunction,
    row_keys: tf.Tensor,
    *,
    num_samples: int,
    chunk: int,
    self_normalised: bool = False,
    circuit: SumProductCircuit | None = None,
    leaves_per_sample: int = 1,
    by_leaf: bool = False,
) -> LikelihoodEstimate:
    """Estimates log p(x) of a batch with exactly `num_samples` importance samples.

    Sample k of a row draws from a key of its own, derived from the row's key and k. The estimate of a row therefore
    depends neither on the rest of its batch nor on `chunk`.

    Args:
        terms_of: maps keys [C, B, 2] of C samples to their importance terms, each [C, B].
        row_keys: one key for each observation, [B, 2].
        num_samples: K.
        chunk: samples computed at once; memory grows with it and not with K.
        self_normalised: for weighted draws of q(z | x_1), log weights log_prior - log_posterior up to a constant, the
            weighted mean of p(x_2 | z); its logarithm is below log p(x_2 | x_1) on average. `elbo` is the weighted mean
            of log p(x_2 | z), `rate` is 0.
        circuit: of terms with leaves, [C, B, L]: the leaves' estimates go through it. The weights of leaves that may be
            in one induced tree must be independent given x. The effective sample size is then that of one weight whose
            relative variance is the estimate's, and may be below 1.
        leaves_per_sample: how many leaves, one after the other, share their samples (see ImportanceTerms). Their
            weights are dependent, and memory grows with the square of their number.
        by_leaf: return the estimates of the leaves, [B, L], as they are before the circuit.

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
    shape = [batch] if circuit is None else [batch, circuit.layout.num_leaf_nodes]
    zeros = tf.zeros(shape)
    by_group = tf.concat([[batch], [-1, leaves_per_sample]], axis=0)
    # Sums of products of the weights of leaves that share samples, relative to the largest of either.
    cross = tf.zeros([batch, 0, 1, 1])
    if leaves_per_sample > 1:
        cross = tf.zeros([batch, shape[1] // leaves_per_sample, leaves_per_sample, leaves_per_sample])

    def body(
        first: tf.Tensor,
        is_broken: tf.Tensor,
        weights: _Sums,
        draws: _Sums,
        cross: tf.Tensor,
        sums: tuple[tf.Tensor, ...],
    ) -> tuple:
        terms = terms_of(random.sample_keys(row_keys, chunk, first))
        # The last chunk may reach beyond K: its surplus samples count for nothing.
        counts = tf.reshape(first + tf.range(chunk) < num_samples, [-1] + [1] * len(shape))

        def masked(values: tf.Tensor) -> tf.Tensor:
            return tf.where(counts, tf.cast(values, tf.float32), tf.constant(float("-inf")))

        def mean_term(values: tf.Tensor) -> tf.Tensor:
            values = tf.where(counts, tf.cast(values, tf.float32), tf.zeros_like(values, tf.float32))
            return tf.reduce_sum(values, axis=0) / num_samples

        log_weight = masked(log_weights(terms))
        weights, relative = _add(weights, log_weight)
        if leaves_per_sample > 1:
            kept = tf.reshape(weights.kept, by_group)
            groups = tf.reshape(relative, tf.concat([[chunk], by_group], axis=0))
            cross = cross * kept[..., tf.newaxis] * kept[:, :, tf.newaxis] + tf.einsum(
                "cbgi,cbgj->bgij", groups, groups
            )
        is_broken |= tf.reduce_any(tf.math.is_nan(log_weight), axis=0)
        if self_normalised:
            draws, relative_draws = _add(draws, masked(terms.log_prior - terms.log_posterior))
            likelihoods = tf.where(counts, tf.cast(terms.log_likelihood, tf.float32), tf.zeros([]))
            sums = (
                sums[0] * weights.kept * draws.kept + tf.reduce_sum(relative * relative_draws, axis=0),
                sums[1] * draws.kept + tf.reduce_sum(relative_draws * likelihoods, axis=0),
            )
        else:
            sums = (
                sums[0] + mean_term(terms.log_posterior - terms.log_prior),
                sums[1] + mean_term(-terms.log_likelihood),
            )
        return first + chunk, is_broken, weights, draws, cross, sums

    empty = _Sums(zeros + float("-inf"), zeros, zeros, zeros)
    _, is_broken, weights, draws, cross, sums = tf.while_loop(
        lambda first, *_: first < num_samples,
        body,
        (tf.constant(0), tf.zeros(shape, tf.bool), empty, empty, cross, (zeros, zeros)),
        maximum_iterations=-(-num_samples // chunk),
    )
    has_weight = weights.total > 0.0
    log_total, size = _log_total(weights), _effective_size(weights)
    # Var(mean w) / mean(w)^2 = (1/ESS - 1/K) K / (K - 1), and of a ratio of means by the delta method
    variance = 1.0 / tf.maximum(size, 1.0) - 1.0 / num_samples
    if self_normalised:
        log_prob = log_total - _log_total(draws)
        safe = tf.where(has_weight, weights.total * draws.total, tf.ones_like(zeros))
        variance += 1.0 / tf.maximum(_effective_size(draws), 1.0) + 1.0 / num_samples - 2.0 * sums[0] / safe
        rate, distortion = zeros, -sums[1] / draws.total
    else:
        log_prob = log_total - tf.math.log(float(num_samples))
        rate, distortion = sums
    if circuit is not None and not by_leaf:
        used = circuit.leaf_posterior(log_prob)
        if leaves_per_sample == 1:
            variance = tf.reduce_sum(tf.square(used) * variance, axis=-1)
        else:  # of the sum over leaves of used * weight / mean weight, which is one number for every sample
            share = used / tf.where(has_weight, weights.total, tf.ones_like(used))
            share, groups = tf.reshape(share, by_group), tf.reshape(used, by_group)
            second = tf.einsum("bgi,bgij,bgj->bg", share, cross, share)
            variance = tf.reduce_sum(second - tf.square(tf.reduce_sum(groups, axis=-1)) / num_samples, axis=-1)
        log_prob = circuit.log_prob(log_prob)
        has_weight, is_broken = log_prob > float("-inf"), tf.reduce_any(is_broken, axis=-1)
        size = tf.where(has_weight, 1.0 / (variance + 1.0 / num_samples), tf.zeros_like(variance))
        rate, distortion = rate_and_distortion(rate, distortion, circuit)
    variance *= num_samples / max(num_samples - 1, 1)
    # A maximum may pass over NaN (it does under XLA): a model that has diverged must not get a finite number.
    log_prob = tf.where(is_broken, tf.constant(float("nan")), log_prob)
    return LikelihoodEstimate(
        log_prob=log_prob,
        std_err=tf.where(has_weight & (num_samples > 1), tf.sqrt(tf.maximum(variance, 0.0)), tf.constant(float("nan"))),
        effective_sample_size=size,
        elbo=-(rate + distortion),
        rate=rate,
        distortion=distortion,
    )


class _Sums(NamedTuple):
    """Running sums of exponentials relative to the largest exponent, each [B].

    Attributes:
        largest: exponent so far.
        total: sum of exp(value - largest).
        squares: sum of its squares.
        kept: what sums from before the last chunk were multiplied by.
    """

    largest: tf.Tensor
    total: tf.Tensor
    squares: tf.Tensor
    kept: tf.Tensor


def _add(sums: _Sums, values: tf.Tensor) -> tuple[_Sums, tf.Tensor]:
    """Adds exponents [C, B]; also returns their exponentials relative to the new largest."""
    zeros = tf.zeros_like(sums.total)
    largest = tf.maximum(sums.largest, tf.reduce_max(values, axis=0))
    # A row whose weights are all zero so far has no finite maximum to scale by.
    scale = tf.where(tf.math.is_finite(largest), largest, zeros)
    kept = tf.where(tf.math.is_finite(sums.largest), tf.exp(sums.largest - scale), zeros)
    relative = tf.exp(values - scale)
    total = sums.total * kept + tf.reduce_sum(relative, axis=0)
    squares = sums.squares * tf.square(kept) + tf.reduce_sum(tf.square(relative), axis=0)
    return _Sums(largest, total, squares, kept), relative


def _log_total(sums: _Sums) -> tf.Tensor:
    """Log of the sum of exponentials; -inf without any."""
    return tf.math.log(tf.where(sums.total > 0.0, sums.total, tf.ones_like(sums.total))) + sums.largest


def _effective_size(sums: _Sums) -> tf.Tensor:
    """(sum w)^2 / sum w^2; 0 without any weight."""
    has_weight = sums.total > 0.0
    ones = tf.ones_like(sums.total)
    size = tf.square(sums.total) / tf.where(has_weight, sums.squares, ones)
    return tf.where(has_weight, size, tf.zeros_like(size))

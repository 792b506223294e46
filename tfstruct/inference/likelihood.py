"""Held-out log-likelihood by importance sampling, in chunks that bound memory whatever the sample count is."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfstruct import random
from tfstruct.inference.objectives import Composition, ImportanceTerms, log_weights, rate_and_distortion

_LEAST_SHARE = 1e-7  # of the weight, for all samples but one: what float32 tells from none

TermsFunction = Callable[[tf.Tensor], ImportanceTerms]


class LikelihoodEstimate(NamedTuple):
    """What K importance samples say of each of B observations; every field [B].

    Attributes:
        log_prob: log (1/K) sum_k w_k, nats; on average below log p(x), and nearer to it the larger K is. (Of
            self-normalised estimates see `estimate`.)
        std_err: standard error of log_prob over its draws, nats, by the jackknife; its mean square over observations
            is the mean squared deviation also where few samples carry the weight, but that of a single observation is
            then most often too small. At most 16 for one sample with all the weight; NaN where it is unknown (one
            sample, or no sample with any weight).
        effective_sample_size: (sum w)^2 / sum w^2, in [1, K]; below 2 or so log_prob and std_err say little. Of a
            circuit that of one weight as variable as the estimate, which adds up over leaves and may be below 1.
        elbo: mean of log w_k, nats.
        rate: mean of log q(z | x) - log p(z), nats.
        distortion: mean of -log p(x | z), nats.
        effective_draws: of self-normalised estimates the effective sample size of the draws of q(z | x_1) by their own
            weights, in [1, K]; K of the others, whose draws have equal weights.
    """

    log_prob: tf.Tensor
    std_err: tf.Tensor
    effective_sample_size: tf.Tensor
    elbo: tf.Tensor
    rate: tf.Tensor
    distortion: tf.Tensor
    effective_draws: tf.Tensor


def estimate(
    terms_of: TermsFunction,
    row_keys: tf.Tensor,
    *,
    num_samples: int,
    chunk: int,
    self_normalised: bool = False,
    composition: Composition | None = None,
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
            weighted mean of p(x_2 | z). With equal weights its logarithm is below log p(x_2 | x_1) on average; with
            unequal ones it is that of a ratio of two means, consistent as K grows but above or below log p(x_2 | x_1)
            where `effective_draws` is small. `std_err` is then by the delta method, and collapses to 0 where one draw
            has all the weight. `elbo` is the weighted mean of log p(x_2 | z), `rate` is 0.
        composition: of terms with leaves, [C, B, L]: the leaves' estimates go through its circuit. The weights of
            leaves that may be in one induced tree must be independent given x. The effective sample size is then that
            of one weight whose relative variance is the estimate's, and may be below 1. The weights of leaves that
            share their samples are dependent: `std_err` is then by the delta method, and memory grows with the square
            of their number.
        by_leaf: return the estimates of the leaves, [B, L], as they are before the circuit.

    Raises:
        ValueError: num_samples or chunk below 1.

    References:
        Burda, Grosse & Salakhutdinov, ICLR 2016, eq. 8 (the estimator); Owen, Monte Carlo, 2013, chapter 9
        (effective sample size); Efron & Stein, The Jackknife Estimate of Variance, Annals of Statistics, 1981 (it is
        not too small on average, where the delta method is for weights with heavy tails).
    """
    if num_samples < 1 or chunk < 1:
        raise ValueError(f"num_samples and chunk must be at least 1, found {num_samples} and {chunk}")
    chunk = min(chunk, num_samples)
    batch = tf.shape(row_keys)[0]
    circuit, leaves_per_sample = (None, 1) if composition is None else composition
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

    empty = _Sums(zeros + float("-inf"), *[zeros] * 5)
    _, is_broken, weights, draws, cross, sums = tf.while_loop(
        lambda first, *_: first < num_samples,
        body,
        (tf.constant(0), tf.zeros(shape, tf.bool), empty, empty, cross, (zeros, zeros)),
        maximum_iterations=-(-num_samples // chunk),
    )
    has_weight = weights.total > 0.0
    log_total, size = _log_total(weights), _effective_size(weights)
    relative_variance = 1.0 / tf.maximum(size, 1.0) - 1.0 / num_samples  # of the mean weight, but for K / (K - 1)
    if self_normalised:
        log_prob = log_total - _log_total(draws)
        safe = tf.where(has_weight, weights.total * draws.total, tf.ones_like(zeros))
        effective_draws = _effective_size(draws)
        # Of a ratio of means by the delta method.
        variance = 1.0 / tf.maximum(size, 1.0) + 1.0 / tf.maximum(effective_draws, 1.0) - 2.0 * sums[0] / safe
        variance *= num_samples / max(num_samples - 1, 1)
        rate, distortion = zeros, -sums[1] / draws.total
    else:
        log_prob = log_total - tf.math.log(float(num_samples))
        variance = _jackknife_variance(weights, num_samples)
        rate, distortion = sums
        effective_draws = tf.fill(tf.shape(log_prob), float(num_samples))
    if circuit is not None and not by_leaf:
        used = circuit.leaf_posterior(log_prob)
        if leaves_per_sample == 1:
            variance, relative_variance = (
                tf.reduce_sum(tf.square(used) * part, axis=-1) for part in (variance, relative_variance)
            )
        else:  # of the sum over leaves of used * weight / mean weight, which is one number for every sample
            share = used / tf.where(has_weight, weights.total, tf.ones_like(used))
            share, groups = tf.reshape(share, by_group), tf.reshape(used, by_group)
            second = tf.einsum("bgi,bgij,bgj->bg", share, cross, share)
            relative_variance = tf.reduce_sum(second - tf.square(tf.reduce_sum(groups, axis=-1)) / num_samples, axis=-1)
            variance = relative_variance * (num_samples / max(num_samples - 1, 1))
        log_prob = circuit.log_prob(log_prob)
        has_weight, is_broken = log_prob > float("-inf"), tf.reduce_any(is_broken, axis=-1)
        size = tf.where(has_weight, 1.0 / (relative_variance + 1.0 / num_samples), tf.zeros_like(variance))
        rate, distortion = rate_and_distortion(rate, distortion, circuit)
        effective_draws = effective_draws[:, 0]
    # A maximum may pass over NaN (it does under XLA): a model that has diverged must not get a finite number.
    log_prob = tf.where(is_broken, tf.constant(float("nan")), log_prob)
    return LikelihoodEstimate(
        log_prob=log_prob,
        std_err=tf.where(has_weight & (num_samples > 1), tf.sqrt(tf.maximum(variance, 0.0)), tf.constant(float("nan"))),
        effective_sample_size=size,
        elbo=-(rate + distortion),
        rate=rate,
        distortion=distortion,
        effective_draws=effective_draws,
    )


class _Sums(NamedTuple):
    """Running sums of exponentials relative to the largest exponent, each [B].

    Attributes:
        largest: exponent so far.
        total: sum of exp(value - largest).
        squares: sum of its squares.
        cubes: sum of its third powers.
        fourths: sum of its fourth powers.
        kept: what sums from before the last chunk were multiplied by.
    """

    largest: tf.Tensor
    total: tf.Tensor
    squares: tf.Tensor
    cubes: tf.Tensor
    fourths: tf.Tensor
    kept: tf.Tensor


def _add(sums: _Sums, values: tf.Tensor) -> tuple[_Sums, tf.Tensor]:
    """Adds exponents [C, B]; also returns their exponentials relative to the new largest."""
    zeros = tf.zeros_like(sums.total)
    largest = tf.maximum(sums.largest, tf.reduce_max(values, axis=0))
    # A row whose weights are all zero so far has no finite maximum to scale by.
    scale = tf.where(tf.math.is_finite(largest), largest, zeros)
    kept = tf.where(tf.math.is_finite(sums.largest), tf.exp(sums.largest - scale), zeros)
    relative = tf.exp(values - scale)
    total, squares, cubes, fourths = (
        before * kept**power + tf.reduce_sum(relative**power, axis=0)
        for power, before in enumerate((sums.total, sums.squares, sums.cubes, sums.fourths), start=1)
    )
    return _Sums(largest, total, squares, cubes, fourths, kept), relative


def _log_total(sums: _Sums) -> tf.Tensor:
    """Log of the sum of exponentials; -inf without any."""
    return tf.math.log(tf.where(sums.total > 0.0, sums.total, tf.ones_like(sums.total))) + sums.largest


def _jackknife_variance(sums: _Sums, num_samples: int) -> tf.Tensor:
    """(K - 1) sum_k (l_k - mean l)^2 / K for the logarithms l_k of the means without sample k.

    But for a constant l_k = log(1 - r_k) with the share r_k of a weight. That of the largest weight is exact, the
    others, of which none is above 1/2, by the series of the logarithm to r^4.
    """
    total = tf.where(sums.total > 0.0, sums.total, tf.ones_like(sums.total))
    others = tf.maximum(total - 1.0, _LEAST_SHARE * total)  # the largest is 1
    largest = tf.math.log(total / others)
    first, second, third, fourth = (
        tf.maximum(power - 1.0, 0.0) / total**exponent
        for exponent, power in enumerate((sums.total, sums.squares, sums.cubes, sums.fourths), start=1)
    )
    mean = (largest + first + second / 2.0 + third / 3.0 + fourth / 4.0) / num_samples
    squares = tf.square(largest) + second + third + 11.0 / 12.0 * fourth
    variance = (squares - num_samples * tf.square(mean)) * (num_samples - 1) / num_samples
    # Equal weights have none, whatever is rounded above.
    return tf.where(num_samples * sums.squares > tf.square(sums.total), variance, tf.zeros_like(variance))


def _effective_size(sums: _Sums) -> tf.Tensor:
    """(sum w)^2 / sum w^2; 0 without any weight."""
    has_weight = sums.total > 0.0
    ones = tf.ones_like(sums.total)
    size = tf.square(sums.total) / tf.where(has_weight, sums.squares, ones)
    return tf.where(has_weight, size, tf.zeros_like(size))

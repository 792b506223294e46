"""Partition functions of restricted Boltzmann machines by annealing, with error bars and samples.

The path runs over inverse temperatures t / T, t = 0 .. T, from a factorial base whose partition function is known:

* `uniform`: fair coins; the whole energy is scaled.
* `fields`: the machine without the couplings of its spins s = 2 z - 1, which are scaled; its fields stay.
* `biases`: the machine without the couplings of its units z in {0, 1}, which are scaled; its biases stay.

A path can miss modes, and then neither the estimate nor its error shows it. From `biases` that happens where couplings
dominate: with fields h and couplings J of spins the biases are 2 (h - row sums of J), and a machine without fields,
whose modes come in pairs z and 1 - z of equal weight, starts at all zeros or at all ones. `uniform` and `fields` start
in the middle. `tfstruct.models.boltzmann_vae.annealing_check` compares two bases.

Side 2 is summed out of every density on the path, which costs nothing more than the matrix product that Gibbs sampling
needs anyway and lowers the variance of the weights. All chains move together, as matrix products, in one loop that XLA
does not unroll.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfstruct import random
from tfstruct.distributions import bilinear
from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
from tfstruct.inference.gibbs import bernoulli
from tfstruct.math import compensated_add, log_mean_exp, log_mean_ratio

BASES = ("uniform", "fields", "biases")
METHODS = ("forward", "reverse", "population")


class AnnealedSamples(NamedTuple):
    """Weighted samples of machines with batch [...], C chains each.

    Attributes:
        z_1: side 1, [C, ..., V].
        z_2: side 2, [C, ..., H].
        log_weights: logarithms of weights whose expectation is Z; for any f the expectation of weight times f(z) is Z
            times that of f under the machine, whatever the number of temperatures is. [C, ...].
    """

    z_1: tf.Tensor
    z_2: tf.Tensor
    log_weights: tf.Tensor


class PartitionEstimate(NamedTuple):
    """An estimate of log Z for machines with batch [...].

    Attributes:
        log_partition: nats, [...]. On average below log Z for `forward` and `population`, above it for `reverse`.
        std_err: its standard error by the delta method, nats, [...].
        effective_sample_size: of the weights, in 1 .. number of chains (populations for `population`), [...].
        z_1: final states of side 1, [C, ..., V].
        z_2: final states of side 2, [C, ..., H].
        log_weights: of the final states, [C, ...]; equal weights for `population`, which resamples.
    """

    log_partition: tf.Tensor
    std_err: tf.Tensor
    effective_sample_size: tf.Tensor
    z_1: tf.Tensor
    z_2: tf.Tensor
    log_weights: tf.Tensor


class _Path:
    """The densities between base and machine.

    States here are [..., C, V], chains beside the units, for the products; `leading` is [..., C].
    """

    def __init__(self, rbm: RestrictedBoltzmannMachine, base: str, leading: tf.Tensor) -> None:
        if base not in BASES:
            raise ValueError(f"base must be one of {', '.join(BASES)}, found {base!r}")
        self.dtype, self.num_units, self.coupling = rbm.dtype, rbm.num_units, rbm.coupling

        # Every chain has its copy of the biases: with a broadcast beside the random numbers, XLA's code for them on a
        # CPU takes five times as long.
        def for_chains(biases: Sequence[tf.Tensor]) -> tuple[tf.Tensor, ...]:
            return tuple(
                bias[..., tf.newaxis, :] + tf.zeros(tf.concat([leading, [size]], axis=0), rbm.dtype)
                for bias, size in zip(biases, rbm.num_units, strict=True)
            )

        biases = rbm.bias_1, rbm.bias_2
        base_biases = _base_biases(rbm, base)
        self.base_biases = for_chains(base_biases)
        # What is added to the biases along the path, in proportion to the inverse temperature.
        self.changes = None
        if base != "biases":
            self.changes = for_chains([bias - start for bias, start in zip(biases, base_biases, strict=True)])

    def _bias(self, side: int, inverse_temperature: tf.Tensor) -> tf.Tensor:
        if self.changes is None:
            return self.base_biases[side]
        return self.base_biases[side] + inverse_temperature * self.changes[side]

    def start(self, seed: tf.Tensor) -> tf.Tensor:
        """Exact draws of the base's side 1, [..., C, V]."""
        return bernoulli(self.base_biases[0], seed)

    def log_base(self) -> tf.Tensor:
        """Log partition function of the base, for every chain: [..., C]."""
        return sum(tf.reduce_sum(tf.nn.softplus(bias), axis=-1) for bias in self.base_biases)

    def input_2(self, z_1: tf.Tensor) -> tf.Tensor:
        return tf.matmul(z_1, self.coupling)

    def log_ratio(self, z_1: tf.Tensor, said: tf.Tensor, later: tf.Tensor, earlier: tf.Tensor) -> tf.Tensor:
        """Log of the ratio of the densities at two inverse temperatures, side 2 summed out; `said` is input_2(z_1)."""
        softplus = [tf.nn.softplus(self._bias(1, at) + at * said) for at in (later, earlier)]
        # Unit by unit, so that small differences of large sums are not rounded away.
        result = tf.reduce_sum(softplus[0] - softplus[1], axis=-1)
        if self.changes is not None:
            result += (later - earlier) * tf.reduce_sum(self.changes[0] * z_1, axis=-1)
        return result

    def draw_2(self, said: tf.Tensor, at: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return bernoulli(self._bias(1, at) + at * said, seed)

    def draw_1(self, z_2: tf.Tensor, at: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        product = tf.matmul(z_2, self.coupling, transpose_b=True)
        return bernoulli(self._bias(0, at) + at * product, seed)

    def sweep(self, said: tf.Tensor, at: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """A Gibbs sweep of side 1 at an inverse temperature; reversible, once side 2 is summed out."""
        key_2, key_1 = random.split(seed)
        return self.draw_1(self.draw_2(said, at, key_2), at, key_1)


def _base_biases(rbm: RestrictedBoltzmannMachine, base: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Biases of the units z of a base, [..., V] and [..., H]."""
    if base == "uniform":
        return tf.zeros_like(rbm.bias_1), tf.zeros_like(rbm.bias_2)
    if base == "biases":
        return rbm.bias_1, rbm.bias_2
    # The couplings z_1' W z_2 are those of spins and half the row and column sums as biases.
    rows, columns = bilinear.row_and_column_sums(rbm.coupling)
    return rbm.bias_1 + 0.5 * rows, rbm.bias_2 + 0.5 * columns


def _check(num_temperatures: int, num_chains: int | None = None) -> None:
    if num_temperatures < 1:
        raise ValueError(f"num_temperatures must be at least 1, found {num_temperatures}")
    if num_chains is not None and num_chains < 1:
        raise ValueError(f"num_chains must be at least 1, found {num_chains}")


def _at(index: tf.Tensor, num_temperatures: int, dtype: tf.DType) -> tf.Tensor:
    # The same expression for both ends of an interval: the last is exactly 1.
    return tf.cast(index, dtype) / tf.cast(num_temperatures, dtype)


def _chains_last(values: tf.Tensor) -> tf.Tensor:
    """[C, ..., n] to [..., C, n]."""
    return _move(values, 0, -2)


def _chains_first(values: tf.Tensor) -> tf.Tensor:
    """[..., C, n] to [C, ..., n]."""
    return _move(values, -2, 0)


def _move(values: tf.Tensor, source: int, target: int) -> tf.Tensor:
    axes = list(range(values.shape.rank))
    axes.insert(target % len(axes), axes.pop(source % len(axes)))
    return tf.transpose(values, axes) if axes != sorted(axes) else values


def annealed_samples(
    rbm: RestrictedBoltzmannMachine,
    *,
    num_temperatures: int,
    seed: Any,
    num_chains: int | None = None,
    base: str = "fields",
) -> AnnealedSamples:
    """Annealed importance sampling from the base to the machine.

    Args:
        rbm: the machine(s), with batch [...].
        num_temperatures: T, steps from the base to the machine.
        seed: a key [2]; or a key for each chain, [C, ..., 2]: then a chain depends on its own key alone.
        num_chains: C, with one key; not given with a key for each chain.
        base: `uniform`, `fields` or `biases`, see above.

    Raises:
        ValueError: numbers below 1, an unknown base, or keys of another shape.

    References:
        Neal, Annealed Importance Sampling, 2001; Salakhutdinov & Murray, ICML 2008, for RBMs.
    """
    _check(num_temperatures, num_chains)
    seed = tf.convert_to_tensor(seed, tf.uint32)
    batch_rank = rbm.batch_shape.rank
    if (num_chains is None) == (seed.shape.rank == 1):
        raise ValueError("give num_chains with one key [2], or a key for each chain and no num_chains")
    if seed.shape.rank not in (1, batch_rank + 2):
        raise ValueError(f"a key for each chain has shape [C, {'..., ' if batch_rank else ''}2], found {seed.shape}")
    if num_chains is None:
        seed = _chains_last(seed)
        leading = tf.shape(seed)[:-1]
    else:
        leading = tf.concat([rbm.batch_shape_tensor(), [num_chains]], axis=0)
    path = _Path(rbm, base, leading)
    start_key, path_key, end_key = random.split(seed, 3)
    z_1, log_weights = path.start(start_key), path.log_base()

    def body(index: tf.Tensor, z_1: tf.Tensor, said: tf.Tensor, log_weights: tf.Tensor, lost: tf.Tensor) -> tuple:
        earlier, later = _at(index, num_temperatures, rbm.dtype), _at(index + 1, num_temperatures, rbm.dtype)
        log_weights, lost = compensated_add(log_weights, lost, path.log_ratio(z_1, said, later, earlier))
        key = random.fold_in(path_key, tf.fill(tf.shape(path_key)[:-1], index))
        z_1 = path.sweep(said, later, key)
        return index + 1, z_1, path.input_2(z_1), log_weights, lost

    _, z_1, said, log_weights, _ = tf.while_loop(
        lambda index, *_: index < num_temperatures,
        body,
        (tf.constant(0), z_1, path.input_2(z_1), log_weights, tf.zeros_like(log_weights)),
        maximum_iterations=num_temperatures,
    )
    z_2 = path.draw_2(said, tf.constant(1.0, rbm.dtype), end_key)
    log_weights = _chains_first(log_weights[..., tf.newaxis])[..., 0]
    return AnnealedSamples(*(tf.stop_gradient(part) for part in (_chains_first(z_1), _chains_first(z_2), log_weights)))


def log_partition(
    rbm: RestrictedBoltzmannMachine,
    *,
    num_temperatures: int = 1_000,
    num_chains: int = 1_000,
    base: str = "fields",
    method: str = "forward",
    initial: tf.Tensor | None = None,
    num_populations: int = 8,
    seed: Any = (0, 0),
) -> PartitionEstimate:
    """Estimates log Z of one machine or of a batch of machines.

    `forward` anneals from the base to the machine and underestimates log Z on average; `reverse` anneals from samples
    of the machine to the base and overestimates it, provided that the samples are equilibrated. Together they bracket
    log Z. `population` resamples the chains of each of several independent populations by their weights at every
    temperature.

    Args:
        rbm: the machine(s), with batch [...].
        num_temperatures: T.
        num_chains: C; for `reverse` that of `initial`.
        base: `uniform`, `fields` or `biases`, see above.
        method: `forward`, `reverse` or `population`.
        initial: states of side 1 that `reverse` starts from, [C, ..., V].
        num_populations: of `population`; the standard error is that over them.
        seed: a key [2].

    Raises:
        ValueError: numbers below 1, an unknown name, a reverse path without initial states or another one with them,
            chains that the populations do not divide.

    Examples:
        >>> rbm = RestrictedBoltzmannMachine([1.0], [-1.0], [[0.5]])
        >>> estimate = log_partition(rbm, num_temperatures=100, num_chains=100)
        >>> abs(float(estimate.log_partition) - 1.7466) < 0.05
        True

    References:
        Neal 2001; Grosse, Ghahramani & Adams, Sandwiching the Marginal Likelihood, 2015 (the reverse bound); Hukushima
        & Iba, Population Annealing, 2003.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, found {method!r}")
    if (initial is not None) != (method == "reverse"):
        raise ValueError("initial states belong to method='reverse', and it needs them")
    if method == "reverse":
        return _reverse(rbm, num_temperatures, base, tf.convert_to_tensor(initial, rbm.dtype), seed)
    if method == "population":
        return _population(rbm, num_temperatures, num_chains, base, num_populations, seed)
    samples = annealed_samples(rbm, num_temperatures=num_temperatures, num_chains=num_chains, base=base, seed=seed)
    return PartitionEstimate(*mean_weight(samples.log_weights), *samples)


def mean_weight(log_weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Log of the mean of C weights [C, ...], its standard error by the delta method, and the effective sample size.

    The error of a single weight is unknown, NaN.
    """
    count = tf.cast(tf.shape(log_weights)[0], log_weights.dtype)
    mean = log_mean_exp(log_weights, axis=0)
    relative = tf.exp(log_weights - mean)
    size = count / tf.reduce_mean(tf.square(relative), axis=0)
    variance = tf.reduce_sum(tf.square(relative - 1.0), axis=0) / (count * (count - 1.0))  # 0/0 for one weight
    return mean, tf.sqrt(variance), size


def _reverse(
    rbm: RestrictedBoltzmannMachine, num_temperatures: int, base: str, initial: tf.Tensor, seed: Any
) -> PartitionEstimate:
    _check(num_temperatures, initial.shape[0])
    z_1 = _chains_last(initial)
    path = _Path(rbm, base, tf.shape(z_1)[:-1])
    path_key, end_key = random.split(tf.convert_to_tensor(seed, tf.uint32))

    def body(index: tf.Tensor, z_1: tf.Tensor, log_weights: tf.Tensor, lost: tf.Tensor) -> tuple:
        later = _at(num_temperatures - index, num_temperatures, rbm.dtype)
        earlier = _at(num_temperatures - index - 1, num_temperatures, rbm.dtype)
        z_1 = path.sweep(path.input_2(z_1), later, random.fold_in(path_key, index))
        log_weights, lost = compensated_add(log_weights, lost, path.log_ratio(z_1, path.input_2(z_1), later, earlier))
        return index + 1, z_1, log_weights, lost

    zeros = tf.zeros_like(z_1[..., 0])
    _, z_1, log_weights, _ = tf.while_loop(
        lambda index, *_: index < num_temperatures,
        body,
        (tf.constant(0), z_1, zeros, zeros),
        maximum_iterations=num_temperatures,
    )
    log_weights = _chains_first(log_weights[..., tf.newaxis])[..., 0]
    # `log_weights` are of the inverse: the mean of exp(-log_weights) is Z_base / Z.
    mean, std_err, size = mean_weight(-log_weights)
    z_2 = path.draw_2(path.input_2(z_1), tf.constant(0.0, rbm.dtype), end_key)
    log_base = path.log_base()[..., 0]
    z_1, z_2 = _chains_first(z_1), _chains_first(z_2)
    return PartitionEstimate(log_base - mean, std_err, size, z_1, z_2, log_base + log_weights)


def _population(
    rbm: RestrictedBoltzmannMachine, num_temperatures: int, num_chains: int, base: str, num_populations: int, seed: Any
) -> PartitionEstimate:
    _check(num_temperatures, num_chains)
    if num_populations < 1 or num_chains % num_populations:
        raise ValueError(f"num_chains must be a multiple of num_populations, found {num_chains} and {num_populations}")
    per_population = num_chains // num_populations
    start_key, path_key, end_key = random.split(tf.convert_to_tensor(seed, tf.uint32), 3)
    leading = tf.concat([rbm.batch_shape_tensor(), [num_chains]], axis=0)
    path = _Path(rbm, base, leading)
    z_1 = path.start(start_key)
    grouped = tf.concat([leading[:-1], [num_populations, per_population]], axis=0)

    def body(index: tf.Tensor, z_1: tf.Tensor, log_totals: tf.Tensor, lost: tf.Tensor) -> tuple:
        earlier, later = _at(index, num_temperatures, rbm.dtype), _at(index + 1, num_temperatures, rbm.dtype)
        ratio = tf.reshape(path.log_ratio(z_1, path.input_2(z_1), later, earlier), grouped)
        log_totals, lost = compensated_add(log_totals, lost, log_mean_ratio(ratio))
        resample_key, sweep_key = random.split(random.fold_in(path_key, index))
        populations = tf.reshape(z_1, tf.concat([grouped, [path.num_units[0]]], axis=0))
        chosen = systematic_resampling(ratio, resample_key)
        z_1 = tf.reshape(tf.gather(populations, chosen, batch_dims=grouped.shape[0] - 1), tf.shape(z_1))
        return index + 1, path.sweep(path.input_2(z_1), later, sweep_key), log_totals, lost

    log_totals = tf.reshape(path.log_base(), grouped)[..., 0]
    z_1.set_shape([*rbm.batch_shape, num_chains, path.num_units[0]])
    _, z_1, log_totals, _ = tf.while_loop(
        lambda index, *_: index < num_temperatures,
        body,
        (tf.constant(0), z_1, log_totals, tf.zeros_like(log_totals)),
        maximum_iterations=num_temperatures,
    )
    mean, std_err, size = mean_weight(_chains_first(log_totals[..., tf.newaxis])[..., 0])
    z_2 = path.draw_2(path.input_2(z_1), tf.constant(1.0, rbm.dtype), end_key)
    z_1, z_2 = _chains_first(z_1), _chains_first(z_2)
    return PartitionEstimate(mean, std_err, size, z_1, z_2, mean + tf.zeros_like(z_1[..., 0]))


def systematic_resampling(log_weights: tf.Tensor, seed: Any, count: int | None = None) -> tf.Tensor:
    """Returns which of C states to keep, int32 [..., count].

    A state is kept as often as its share of all weight says, rounded up or down.

    Args:
        log_weights: [..., C], up to a constant.
        seed: a key [2]; every leading index gets an offset of its own.
        count: how many to keep; default C.
    """
    num_states = log_weights.shape[-1]
    count = num_states if count is None else count
    offset = random.uniform(seed, tf.shape(log_weights)[:-1], log_weights.dtype)
    points = (offset[..., tf.newaxis] + tf.range(count, dtype=log_weights.dtype)) / count
    cumulated = tf.cumsum(tf.nn.softmax(log_weights, axis=-1), axis=-1)
    flat = (tf.reshape(values, [-1, values.shape[-1]]) for values in (cumulated, points))
    chosen = tf.minimum(tf.searchsorted(*flat), num_states - 1)
    return tf.reshape(chosen, tf.shape(points))

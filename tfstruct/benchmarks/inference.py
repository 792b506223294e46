"""Ways of scoring held-out rows and of estimating log Z: this project's, and plain loops that estimate the same."""

from typing import TYPE_CHECKING

import numpy as np

from tfstruct.benchmarks.floor import Cost, count_operations
from tfstruct.benchmarks.timing import Run, Way

if TYPE_CHECKING:
    from tfstruct.data.datasets import Dataset
    from tfstruct.models.config import Config

#: what is counted of each
EVALUATION_UNIT, PARTITION_UNIT = "samples of a row", "updates of a unit"


def evaluation_ways(config: "Config", data: "Dataset", rows: int) -> dict[str, Way]:
    """Importance sampling of test rows with `evaluation.num_samples`; a unit is one sample of one row.

    The plain loops draw one sample of a batch a call, keep all log weights on the host and average them there.
    """
    import tensorflow as tf
    from scipy.special import logsumexp

    from tfstruct import random
    from tfstruct.inference.held_out import HeldOutScorer
    from tfstruct.inference.objectives import Draws, log_weights
    from tfstruct.models import registry
    from tfstruct.training.loop import resolve_compiler

    model, settings = registry.build(config), config.evaluation
    model.adapt(data.train)
    model.prepare_evaluation(settings)
    options = model.terms_options(settings)
    num_samples, batch = settings.num_samples, min(settings.batch_size, rows)
    x = data.test[: rows - rows % batch].astype(np.float32)
    scorer = HeldOutScorer(
        model,
        num_samples=num_samples,
        batch_size=batch,
        chunk=settings.chunk,
        compiler=resolve_compiler(config),
        terms_options=options,
    )
    weights = scorer.functional.parameters.values(), scorer.functional.statistics.values()

    def make_plain(jit_compile: bool) -> Run:
        one = tf.function(
            lambda rows, key: log_weights(model.terms(rows, Draws(key, 1, options=options))),
            jit_compile=jit_compile,
            autograph=False,
        )

        def run() -> np.ndarray:
            key, estimates = random.key(0), []
            for start in range(0, len(x), batch):
                part = tf.constant(x[start : start + batch])
                drawn = [one(part, random.fold_in(key, tf.constant(place))).numpy() for place in range(num_samples)]
                estimates.append(logsumexp(np.concatenate(drawn), axis=0) - np.log(num_samples))
            return np.concatenate(estimates)

        return run

    keys = random.fold_in(random.key(0), tf.range(batch))
    chunk = min(settings.chunk, num_samples)
    operations = count_operations(
        lambda rows, keys: model.estimate(rows, keys, num_samples=num_samples, chunk=chunk, **options),
        tf.constant(x[:batch]),
        keys,
    )
    cost, work = Cost(operations / (batch * num_samples), 0.0), float(len(x) * num_samples)
    ways = {"tfstruct, all samples in one program": Way(lambda: lambda: scorer(*weights, x), work, cost)}
    if model.composition is None and not model.target.is_conditional:  # those are not the mean of the weights
        ways["one XLA call per sample"] = Way(lambda: make_plain(True), work, cost)
        ways["one graph call per sample"] = Way(lambda: make_plain(False), work, cost)
    return ways


def partition_ways(units: tuple[int, int], temperatures: int, chains: int) -> dict[str, Way]:
    """Log Z of a machine of random weights by annealing; a unit is one unit of one chain at one temperature.

    Args:
        units: of either side.
        temperatures: of the course.
        chains: annealed side by side.
    """
    import tensorflow as tf

    from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
    from tfstruct.inference import log_partition

    generator = np.random.default_rng(0)
    bias_1, bias_2 = (generator.normal(size=size).astype(np.float32) for size in units)
    coupling = generator.normal(scale=0.2, size=units).astype(np.float32)

    def make(jit_compile: bool) -> Run:
        estimate = tf.function(
            lambda *weights: (
                (
                    log_partition(
                        RestrictedBoltzmannMachine(*weights), num_temperatures=temperatures, num_chains=chains
                    )
                ).log_partition
            ),
            jit_compile=jit_compile,
            autograph=False,
        )
        weights = [tf.constant(values) for values in (bias_1, bias_2, coupling)]
        return lambda: float(estimate(*weights))

    def run_numpy() -> float:
        """The same annealing as one would write it in NumPy: from independent fair coins, one sweep a temperature."""
        draws = np.random.default_rng(1)
        states = (draws.random((chains, units[0]), np.float32) < 0.5).astype(np.float32)
        total, steps = np.zeros(chains), np.linspace(0.0, 1.0, temperatures + 1, dtype=np.float32)
        for before, beta in zip(steps[:-1], steps[1:], strict=True):
            inputs, visible = states @ coupling + bias_2, states @ bias_1
            total += (beta - before) * visible
            total += (np.logaddexp(0.0, beta * inputs) - np.logaddexp(0.0, before * inputs)).sum(axis=1)
            hidden = draws.random(inputs.shape, np.float32) < 1.0 / (1.0 + np.exp(-beta * inputs))
            inputs = hidden.astype(np.float32) @ coupling.T + bias_1
            states = (draws.random(inputs.shape, np.float32) < 1.0 / (1.0 + np.exp(-beta * inputs))).astype(np.float32)
        largest = total.max()
        return float(largest + np.log(np.mean(np.exp(total - largest))) + sum(units) * np.log(2.0))

    work = float(temperatures) * chains * sum(units)
    cost = Cost(2.0 * 2.0 * units[0] * units[1] / sum(units), 0.0)
    return {
        "tfstruct, one XLA program": Way(lambda: make(True), work, cost),
        "tfstruct, one graph": Way(lambda: make(False), work, cost),
        "a plain loop in NumPy": Way(lambda: run_numpy, work, cost),
    }

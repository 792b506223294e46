"""Times training steps: tfstruct-benchmark --preset=graph_vae/mnist [--output=benchmark.json].

Every way of training runs the same model on the same data in one process. After a round of each that compiles they take
turns for `--rounds` rounds; medians and ranges are told, and ratios are of the same round, so that they mean something
on a noisy machine. With `--against` it is the same way of training for other settings of the preset,
--against="model.posterior=directed model.groups=4", or for another preset on the same data,
--against=dense_vae/mnist_continuous. With `--log_partition` it is the annealing of a Boltzmann VAE's prior and of one
posterior, as the evaluation does it.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from tfstruct.trainers import entry

if TYPE_CHECKING:
    from tfstruct.data.datasets import Dataset
    from tfstruct.models.config import Config

_PRESET = flags.DEFINE_string("preset", "graph_vae/mnist", "Name of a preset.")
_SET = flags.DEFINE_multi_string("set", [], "Changes a setting: key=value.")
_AGAINST = flags.DEFINE_multi_string(
    "against", [], "Times the preset with these settings, separated by spaces, or another preset."
)
_PARTITION = flags.DEFINE_bool("log_partition", False, "Times the estimation of log Z.")
_STEPS = flags.DEFINE_integer("steps", 200, "Steps of one round.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds.", lower_bound=1)
_REPLICAS = flags.DEFINE_integer("replicas", 3, "Seeds trained at once in the row of replicas.", lower_bound=2)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets prepared by TensorFlow Datasets.")
_OUTPUT = flags.DEFINE_string("output", None, "A .json file to write.")


def main() -> None:
    """Measures and prints a table of steps per second."""
    from tfstruct.files import write_json
    from tfstruct.models import presets
    from tfstruct.training.data import load_data
    from tfstruct.training.workdir import environment

    config = presets.get(_PRESET.value, _SET.value)
    if _PARTITION.value:
        _time_log_partition(config)
        return
    data = load_data(config, _DATA_DIR.value)
    ways = _against(config, data) if _AGAINST.value else _ways(config, data)
    runs, compile_seconds = {}, {}
    for name, make in ways.items():
        start = time.perf_counter()
        runs[name] = make()
        runs[name]()
        compile_seconds[name] = time.perf_counter() - start
        print(f"{name:46} compiled, {compile_seconds[name]:.1f} s", flush=True)
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS.value):
        for name, run in runs.items():  # in turn: what disturbs the machine meanwhile disturbs all
            start = time.perf_counter()
            run()
            rounds[name].append(_STEPS.value / (time.perf_counter() - start))
    rows = _rows(rounds)
    print(f"\n{config.preset}, batch {config.training.batch_size}; ratios to the first row, of the same round:")
    for name, row in rows.items():
        print(
            f"{name:46} {row['steps_per_second']:9.1f} steps/s ({row['slowest']:.1f} to {row['fastest']:.1f})   "
            f"ratio {row['ratio']:.2f} ({row['least_ratio']:.2f} to {row['greatest_ratio']:.2f})",
            flush=True,
        )
    if _OUTPUT.value:
        rows = {name: row | {"compile_seconds": compile_seconds[name]} for name, row in rows.items()}
        about = {"preset": config.preset, "batch_size": config.training.batch_size, "steps_of_a_round": _STEPS.value}
        write_json(_OUTPUT.value, {**about, "rows": rows, "rounds": rounds, "environment": environment()})


def _rows(rounds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Medians and ranges of steps per second, and of their ratios to those of the first way in the same round."""
    first = np.array(next(iter(rounds.values())))
    rows = {}
    for name, speeds in rounds.items():
        ratios = np.array(speeds) / first
        rows[name] = {
            "steps_per_second": float(np.median(speeds)),
            "slowest": float(np.min(speeds)),
            "fastest": float(np.max(speeds)),
            "ratio": float(np.median(ratios)),
            "least_ratio": float(np.min(ratios)),
            "greatest_ratio": float(np.max(ratios)),
        }
    return rows


def _make_loop(config: "Config", data: "Dataset", compiler: str, replicas: int) -> Callable[[], object]:
    """What runs one round of steps of the training loop."""
    import tensorflow as tf

    from tfstruct import random
    from tfstruct.data.pipeline import batch_indices
    from tfstruct.models import registry
    from tfstruct.training import loop as loop_lib
    from tfstruct.training.state import initial_state, stack_states
    from tfstruct.training.step import TrainStep, over_replicas

    steps, batch, num_rows = _STEPS.value, config.training.batch_size, len(data.train)
    model = registry.build(config)
    model.adapt(data.train)
    step = TrainStep(model, data.train_transform)
    states = [initial_state(step.functional, random.key(seed), num_rows) for seed in range(replicas)]
    state = loop_lib.device_state(stack_states(states))
    resident = tf.constant(data.train)
    loop = loop_lib.TrainLoop(over_replicas(step, replicas), compiler)
    # The order of visits is part of the work, as it is for Keras' fit.
    return lambda: loop(state, 0, resident, batch_indices(list(range(replicas)), 0, steps, batch, num_rows))


def _against(config: "Config", data: "Dataset") -> dict[str, Callable[[], Callable[[], object]]]:
    """The training loop of the preset, and of the preset with each of the other settings."""
    from tfstruct.models import presets
    from tfstruct.training.loop import resolve_compiler

    configs = {config.preset: config}
    for text in _AGAINST.value:
        first, *rest = text.split()
        if "=" in first:
            configs[text] = presets.get(_PRESET.value, [*_SET.value, first, *rest])
            continue
        configs[text] = presets.get(first, [*_SET.value, *rest])
        for name in ("name", "variant", "event_shape"):
            own, other = getattr(config.data, name), getattr(configs[text].data, name)
            if own != other:
                raise ValueError(
                    f"--against={text} has data.{name}={other}, {config.preset} has {own}: their steps do not compare"
                )
    return {name: lambda one=one: _make_loop(one, data, resolve_compiler(one), 1) for name, one in configs.items()}


def _time_log_partition(config: "Config") -> None:
    """Prints the seconds that log Z takes of a machine of the prior's size with random weights."""
    import tensorflow as tf

    from tfstruct.distributions.restricted_boltzmann_machine import RestrictedBoltzmannMachine
    from tfstruct.inference import log_partition
    from tfstruct.models.boltzmann_vae.config import Config as BoltzmannConfig

    if not isinstance(config, BoltzmannConfig):
        raise ValueError(f"--log_partition is for Boltzmann VAEs, found --preset={config.preset}")
    sizes = config.model.num_units_1, config.model.num_units_2
    generator, settings = np.random.default_rng(0), config.evaluation
    bias_1, bias_2 = (generator.normal(size=size).astype(np.float32) for size in sizes)
    coupling = generator.normal(scale=0.2, size=sizes).astype(np.float32)
    for name, temperatures, chains, base in (
        ("prior", settings.prior_temperatures, settings.prior_chains, "uniform"),
        ("one posterior", settings.posterior_temperatures, settings.num_samples, "biases"),
    ):
        estimate = tf.function(
            lambda *weights, temperatures=temperatures, chains=chains, base=base: log_partition(
                RestrictedBoltzmannMachine(*weights), num_temperatures=temperatures, num_chains=chains, base=base
            ),
            jit_compile=True,
            autograph=False,
        )
        weights = [tf.constant(values) for values in (bias_1, bias_2, coupling)]
        float(estimate(*weights).log_partition)  # compiles
        start = time.perf_counter()
        found = estimate(*weights)
        value, error = float(found.log_partition), float(found.std_err)
        print(
            f"log Z of {name}, {sizes[0]} + {sizes[1]} units, {temperatures} temperatures x {chains} chains: "
            f"{time.perf_counter() - start:.1f} s ({value:.3f} +- {error:.3f})",
            flush=True,
        )


def _ways(config: "Config", data: "Dataset") -> dict[str, Callable[[], Callable[[], object]]]:
    """The ways of training by name: each makes what runs one round of steps."""
    import keras
    import tensorflow as tf

    from tfstruct import random
    from tfstruct.data.pipeline import batch_indices
    from tfstruct.models import registry
    from tfstruct.training import loop as loop_lib
    from tfstruct.training.state import initial_state, replica, stack_states
    from tfstruct.training.step import TrainStep

    steps, batch = _STEPS.value, config.training.batch_size

    def make_calls(jit_compile: bool) -> Callable[[], object]:
        model = registry.build(config)
        model.adapt(data.train)
        step = TrainStep(model, data.train_transform)
        first = loop_lib.device_state(
            replica(stack_states([initial_state(step.functional, random.key(0), len(data.train))]), 0)
        )
        indices = batch_indices([0], 0, steps, batch, len(data.train))[:, 0]
        resident = tf.constant(data.train)
        one = tf.function(
            lambda state, place, chosen: step(state, place, tf.gather(resident, chosen), chosen),
            jit_compile=jit_compile,
            autograph=False,
        )

        def run() -> None:
            state = first
            for place in range(steps):
                state, metrics = one(state, tf.constant(place), tf.constant(indices[place]))
            metrics["loss"].numpy()

        return run

    def make_fit(jit_compile: bool) -> Callable[[], object]:
        # Keras fit knows one phase; a step costs the same.
        model = registry.build(config.replace({"training.structure_fraction": 0.0}))
        model.adapt(data.train)
        model.compile(keras.optimizers.Adam(config.optimizer.learning_rate), jit_compile=jit_compile)
        x = data.train[: steps * batch]
        return lambda: model.fit(x, batch_size=batch, epochs=1, verbose=0)

    return {
        "tfstruct loop, one XLA program": lambda: _make_loop(config, data, "xla", 1),
        "one XLA call per step": lambda: make_calls(True),
        "one graph call per step": lambda: make_calls(False),
        "Keras fit, jit_compile=True": lambda: make_fit(True),
        "Keras fit": lambda: make_fit(False),
        f"tfstruct loop, {_REPLICAS.value} replicas (steps of all at once)": lambda: _make_loop(
            config, data, "xla", _REPLICAS.value
        ),
    }


def run() -> None:
    """The console script `tfstruct-benchmark`."""
    entry.run(main)


if __name__ == "__main__":
    run()

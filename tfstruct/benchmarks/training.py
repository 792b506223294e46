"""Ways of training one model on the same rows: this project's loop, what a user would write instead, and rivals."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tfstruct.benchmarks.floor import Cost, count_operations
from tfstruct.benchmarks.timing import Run, Way
from tfstruct.registry import Registry

if TYPE_CHECKING:
    import numpy as np

    from tfstruct.data.datasets import Dataset
    from tfstruct.models.config import Config
    from tfstruct.training.state import TrainState
    from tfstruct.training.step import TrainStep

#: Makes the rounds of a rival, (config, data, steps of a round), or returns None where it has no such model.
Rival = Callable[["Config", "Dataset", int], Callable[[], Run] | None]

RIVALS: Registry[Rival] = Registry("rival")


def register_rival(name: str, rival: Rival) -> None:
    """Adds a way of training that is timed beside the others, for modules named by `--import`."""
    RIVALS.register(name, rival)


def loop_way(config: "Config", data: "Dataset", steps: int, *, replicas: int = 1) -> Way:
    """The training loop; a unit is one step of all replicas."""
    from tfstruct.data.pipeline import Pipeline
    from tfstruct.models import registry
    from tfstruct.training import loop as loop_lib
    from tfstruct.training.initial import make_initial_state
    from tfstruct.training.step import TrainStep, over_replicas

    model = registry.build(config)
    start = make_initial_state(config, [model] * replicas, list(range(replicas)), data)
    step = TrainStep(model, data.train_transform)

    def make() -> Run:
        options = config.training
        state = loop_lib.device_state(start)
        pipeline = Pipeline(
            data.train,
            seeds=list(range(replicas)),
            batch_size=options.batch_size,
            resident_megabytes=options.resident_megabytes,
        )
        size = min(length for length in (steps, options.steps_per_call, pipeline.max_steps_per_call) if length)
        spans = [(first, min(size, steps - first)) for first in range(0, steps, size)]
        loop = loop_lib.TrainLoop(over_replicas(step, replicas), loop_lib.resolve_compiler(config), size)

        def run() -> "TrainState":
            current = state
            for call in pipeline.calls(spans):  # as the trainer does: the order of visits, or streamed rows
                current, _, _ = loop.run(current, call)
            return current

        return run

    return Way(make, steps, step_cost(step, start, data.train[: config.training.batch_size], replicas))


def step_cost(step: "TrainStep", start: "TrainState", rows: "np.ndarray", replicas: int = 1) -> Cost:
    """The products of a step, and its reading and writing of gradient, weights, moments and averages once.

    Args:
        step: of training.
        start: state of a run, [R, ...].
        rows: a batch.
        replicas: that make the step together.
    """
    import tensorflow as tf

    from tfstruct.training.state import replica

    state = replica(start, 0)
    operations = count_operations(
        lambda state, rows, places: step.gradient(state, tf.constant(0), rows, row_ids=places).gradient,
        tf.nest.map_structure(tf.convert_to_tensor, state),
        tf.constant(rows),
        tf.range(len(rows)),
    )
    arrays = 2 * (3 + bool(state.averages)) + 2
    return Cost(replicas * operations, replicas * 4.0 * arrays * step.functional.parameters.size)


def training_ways(config: "Config", data: "Dataset", steps: int, replicas: int) -> dict[str, Way]:
    """This project's loop first, then what one would write without it, and the rivals that have such a model."""
    import tensorflow as tf

    from tfstruct.data.pipeline import batch_indices
    from tfstruct.models import registry
    from tfstruct.training import loop as loop_lib
    from tfstruct.training.initial import make_initial_state
    from tfstruct.training.state import replica
    from tfstruct.training.step import TrainStep

    batch = config.training.batch_size

    def make_calls(jit_compile: bool) -> Run:
        model = registry.build(config)
        first = loop_lib.device_state(replica(make_initial_state(config, [model], [0], data), 0))
        step = TrainStep(model, data.train_transform)
        resident = tf.constant(data.train)
        one = tf.function(
            lambda state, place, chosen: step(state, place, tf.gather(resident, chosen), chosen),
            jit_compile=jit_compile,
            autograph=False,
        )

        def run() -> "TrainState":
            state, indices = first, batch_indices([0], 0, steps, batch, len(data.train))[:, 0]
            for place in range(steps):
                state, metrics = one(state, tf.constant(place), tf.constant(indices[place]))
            metrics["loss"].numpy()
            return state

        return run

    def make_fit(jit_compile: bool) -> Run:
        import keras

        # Keras fit knows one phase; a step costs the same.
        model = registry.build(config.replace({"training.structure_fraction": 0.0}))
        model.adapt(data.train)
        model.compile(keras.optimizers.Adam(config.optimizer.learning_rate), jit_compile=jit_compile)
        # The thread that tunes a tf.data pipeline is asleep when `fit` ends, which waits for it: a second and more,
        # whatever a step takes.
        options = tf.data.Options()
        options.autotune.enabled = False
        batches = tf.data.Dataset.from_tensor_slices(data.train[: steps * batch]).batch(batch).with_options(options)
        return lambda: model.fit(batches, epochs=1, shuffle=False, verbose=0)

    loop = loop_way(config, data, steps)
    ways = {
        "tfstruct loop": loop,
        "one XLA call per step": Way(lambda: make_calls(True), steps, loop.cost),
        "one graph call per step": Way(lambda: make_calls(False), steps, loop.cost),
    }
    if config.training.precision == "float32":  # of what Keras multiplies in
        ways["Keras fit, jit_compile=True"] = Way(lambda: make_fit(True), steps, loop.cost)
        ways["Keras fit"] = Way(lambda: make_fit(False), steps, loop.cost)
    if replicas > 1:
        name = f"tfstruct loop, {replicas} replicas (steps of all at once)"
        ways[name] = loop_way(config, data, steps, replicas=replicas)
    for name, rival in RIVALS.items():
        if make := rival(config, data, steps):
            ways[name] = Way(make, steps, loop.cost)
    return ways


def ways_against(config: "Config", data: "Dataset", steps: int, texts: list[str], changes: list[str]) -> dict[str, Way]:
    """The training loop of a preset, and of the preset with each of the other settings, or of another preset.

    Args:
        config: the preset's.
        data: its data.
        steps: of a round.
        texts: settings separated by spaces, or the name of a preset and settings.
        changes: settings that hold for all.

    Raises:
        ValueError: another preset on other data, or settings of data.
    """
    from tfstruct.models import presets

    configs = {config.preset: config}
    for text in texts:
        first, *rest = text.split()
        if changed := [setting for setting in (first, *rest) if setting.startswith("data.")]:
            raise ValueError(f"--against={text}: all are timed on the same data; give {changed[0]} with --set")
        if "=" in first:
            configs[text] = presets.get(config.preset, [*changes, first, *rest])
            continue
        configs[text] = presets.get(first, [*changes, *rest])
        for name in ("name", "variant", "event_shape"):
            own, other = getattr(config.data, name), getattr(configs[text].data, name)
            if own != other:
                raise ValueError(
                    f"--against={text} has data.{name}={other}, {config.preset} has {own}: their steps do not compare"
                )
    return {name: loop_way(one, data, steps) for name, one in configs.items()}


def scaling_ways(config: "Config", data_dir: str | None, steps: int, key: str, values: list[str]) -> dict[str, Way]:
    """The training loop for each value of a setting, or of `replicas`."""
    from tfstruct.settings import apply_overrides
    from tfstruct.training.data import load_data

    ways = {}
    for value in values:
        changed = config if key == "replicas" else apply_overrides(config, [f"{key}={value}"])
        replicas = int(value) if key == "replicas" else 1
        ways[f"{key}={value}"] = loop_way(changed, load_data(changed, data_dir), steps, replicas=replicas)
    return ways

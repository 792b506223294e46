"""What a training would take, measured on its first steps; nothing is kept of them."""

import resource
import sys
import tempfile
import time
from typing import NamedTuple

import tensorflow as tf

from tfstruct.models import registry
from tfstruct.models.config import Config
from tfstruct.training.data import load_data
from tfstruct.training.loop import device_state, resolve_compiler
from tfstruct.training.trainer import Trainer
from tfstruct.training.workdir import Workdir

LEAST_SECONDS = 2.0  # of steps that are timed


class Estimate(NamedTuple):
    """What a training takes on one device of this machine.

    Attributes:
        num_parameters: trainable weights of one replica.
        megabytes: largest memory so far, of the process or, where there is one, of the first GPU; MiB.
        compile_seconds: of the first call, which compiles.
        steps_per_second: of all replicas together, after compilation.
        seconds: of the whole training, compilation included, validations and checkpoints not.
    """

    num_parameters: int
    megabytes: float
    compile_seconds: float
    steps_per_second: float
    seconds: float


def dry_run(config: Config, data_dir: str | None = None) -> Estimate:
    """Trains a few steps on one device, and returns what the whole training would take.

    Args:
        config: a preset's config.
        data_dir: folder of prepared data sets.

    Raises:
        ValueError: bad settings or data, as `run.train` does.
    """
    data = load_data(config, data_dir)
    config = config.replace({"data.event_shape": data.event_shape})
    seeds = [config.training.seed + index for index in range(config.training.replicas)]
    models = [registry.build(config, seed=seed) for seed in seeds]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Workdir(folder), data, models, seeds, resolve_compiler(config), None)
        state, steps, seconds, done = device_state(trainer.initial), 0, 0.0, 0
        compile_seconds = None
        while done < config.training.steps and seconds < LEAST_SECONDS:
            start = time.monotonic()
            (call,) = trainer.pipeline.calls([(done, min(trainer.call_steps, config.training.steps - done))])
            # Asked every few seconds: a call of many steps ends with the first pause.
            state, _, num_steps = trainer.loop.run(state, call, should_stop=lambda: True)
            done, took = done + num_steps, time.monotonic() - start
            if compile_seconds is None:
                compile_seconds = took
            else:
                steps, seconds = steps + num_steps, seconds + took
    speed = steps / seconds if steps else float("nan")
    left = (config.training.steps - done) / speed if steps else 0.0
    return Estimate(
        num_parameters=int(sum(weight.shape.num_elements() for weight in models[0].trainable_variables)),
        megabytes=_megabytes(),
        compile_seconds=compile_seconds or 0.0,
        steps_per_second=speed,
        seconds=(compile_seconds or 0.0) + seconds + left,
    )


def _megabytes() -> float:
    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20

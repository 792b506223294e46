"""Checks of a config's numbers and names before anything is loaded, built or written."""

from typing import Any

import ml_collections
import tensorflow as tf

from tfstruct.inference import objectives
from tfstruct.models.settings import check_annealing, check_gradient
from tfstruct.training.loop import COMPILERS
from tfstruct.training.phases import Phases

_AT_LEAST_ONE = (
    "training.steps",
    "training.batch_size",
    "training.steps_per_call",
    "training.validate_every",
    "training.validation_images",
    "training.validation_samples",
    "training.replicas",
    "objective.num_samples",
    "evaluation.num_samples",
    "evaluation.batch_size",
    "evaluation.chunk",
    "export.num_samples",
    "export.chunk",
)
_AT_LEAST_ZERO = (
    "training.seed",
    "training.patience",
    "training.checkpoint_minutes",
    "training.resident_megabytes",
    "training.max_skipped_fraction",
    "training.structure_fraction",
    "evaluation.images",
    "optimizer.learning_rate",
    "optimizer.clip_norm",
    "optimizer.weight_decay",
    "optimizer.ema_momentum",
)
_CHOICES = {
    "optimizer.name": ("adam",),
    "objective.name": tuple(objectives.OBJECTIVES),
    "objective.gradient": ("plain", "path", "auto"),
    "training.compiler": ("auto", *COMPILERS),
}


def _value(config: ml_collections.ConfigDict, name: str) -> Any:
    node: Any = config
    for part in name.split("."):
        node = node[part]
    return node


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError that names the first setting whose value cannot be, and what it may be."""
    for names, least in ((_AT_LEAST_ONE, 1), (_AT_LEAST_ZERO, 0)):
        for name in names:
            if not _value(config, name) >= least:  # also catches NaN
                raise ValueError(f"{name} must be at least {least}, found {_value(config, name)}")
    for name, choices in _CHOICES.items():
        if _value(config, name) not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, found {_value(config, name)!r}")
    if config.optimizer.ema_momentum >= 1.0:
        raise ValueError(f"optimizer.ema_momentum must be below 1, found {config.optimizer.ema_momentum}")
    if config.training.initial_weights and config.training.structure_fraction:
        raise ValueError(
            "training.initial_weights does not go with training.structure_fraction, whose second phase starts all "
            "weights anew; set training.structure_fraction=0.0"
        )
    if config.data.use_validation and config.training.patience:
        raise ValueError(
            f"training.patience={config.training.patience} stops by validation rows, which data.use_validation=True "
            "trains on; set training.patience=0"
        )
    for name in ("training.validation_annealing", "evaluation", "export"):
        node, _, last = name.rpartition(".")
        check_annealing((config[node] if node else config).get(last, {}), name)
    check_gradient(config)
    Phases.from_config(config)


def resolve_compiler(config: ml_collections.ConfigDict) -> str:
    """Returns `xla` or `graph`.

    `auto` is `xla`, the faster one for these systems on CPU and GPU alike, but for convolutions over whole images: XLA
    on a CPU takes 14 times as long for a step with them (conv_vae/mnist_continuous).
    """
    if config.training.compiler != "auto":
        return config.training.compiler
    model = config.model
    is_convolution = model.get("leaf_network") == "conv" and model.structure == "single" and model.num_leaves == 1
    return "graph" if is_convolution and not tf.config.list_physical_devices("GPU") else "xla"

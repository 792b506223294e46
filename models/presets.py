"""Presets: everything that decides a result, as data, by name."""

import copy
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_collections

from tfstruct.config import apply_overrides, keys
from tfstruct.models.registry import SYSTEMS
from tfstruct.registry import Registry, require_known

Settings = Mapping[str, Any]

#: makes training, evaluation and export those of a `tiny` preset: seconds, for tests
SHORT: Settings = {
    "training.steps": 200,
    "training.batch_size": 32,
    "training.steps_per_call": 50,
    "training.validate_every": 100,
    "training.validation_images": 200,
    "training.validation_samples": 5,
    "evaluation.num_samples": 20,
    "evaluation.images": 200,
    "evaluation.batch_size": 50,
    "evaluation.chunk": 10,
    "export.num_samples": 10,
    "export.chunk": 5,
}


class Preset(NamedTuple):
    """A named config.

    Attributes:
        name: `<system>/<preset>`.
        description: what it trains on what.
        base: returns the config that it changes.
        settings: its changes by dotted name.
    """

    name: str
    description: str
    base: Callable[[], ml_collections.ConfigDict]
    settings: Settings

    def make(self) -> ml_collections.ConfigDict:
        """Returns a fresh config; raises ValueError for a change of a setting that the base does not have."""
        config = self.base()
        config.preset, known = self.name, list(keys(config))
        for name, value in self.settings.items():
            *path, last = require_known(name, known, f"setting of {self.name}").split(".")
            node = config
            for part in path:
                node = node[part]
            node[last] = value
        return config


PRESETS: Registry[Preset] = Registry("preset")


def register_preset(
    name: str, description: str, base: Callable[[], ml_collections.ConfigDict], *settings: Settings
) -> Preset:
    """Adds a preset of settings by dotted name, later ones before earlier ones; raises ValueError for a name taken."""
    return PRESETS.register(name, Preset(name, description, base, dict(ChainMap(*reversed(settings)))))


def get(name: str, overrides: Iterable[str] = ()) -> ml_collections.ConfigDict:
    """Returns a preset's config with `key=value` overrides applied.

    Raises:
        ValueError: an unknown preset or key (the near names are listed), or a value of another type.
    """
    config = PRESETS[name].make()
    if isinstance(overrides, (str, Mapping)):
        raise ValueError(f"overrides are a list of 'key=value' strings, found {overrides!r}")
    overrides = list(overrides)
    _refuse_settings_of_other_systems(config, overrides)
    apply_overrides(config, overrides)
    if config.data.name == "file" and not any(override.startswith("data.event_shape=") for override in overrides):
        config.data.event_shape = ()  # the file's own
    return config


def _refuse_settings_of_other_systems(config: ml_collections.ConfigDict, overrides: Iterable[str]) -> None:
    """Raises ValueError that says whose setting it is, where a near name would only mislead."""
    known = set(keys(config))
    for override in overrides:
        name = override.partition("=")[0]
        if name not in known:
            systems = [system for system, entry in SYSTEMS.items() if name in keys(entry.base())]
            if systems:
                raise ValueError(f"{name} is a setting of {', '.join(systems)}, and {config.preset} is {config.system}")


# Settings that configs of older versions lack, at values that mean what was done then; more are their system's.
_LATER = {
    "data.train_images": 0,
    "data.use_validation": False,
    "optimizer.weight_decay": 0.0,
    "optimizer.ema_momentum": 0.0,
    "training.initial_weights": "",
    "training.structure_fraction": 0.0,
}


def with_defaults(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Adds in place what a config written by an older version lacks, at values that mean what was done then."""
    for name, value in (_LATER | dict(SYSTEMS[config.system].later)).items():
        group, last = name.split(".")
        if last not in config[group]:
            config[group][last] = copy.deepcopy(value)
    return config

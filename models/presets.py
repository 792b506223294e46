"""Presets: everything that decides a result, as data, by name."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import ml_collections

from tfstruct.config import apply_overrides, keys
from tfstruct.models.registry import SYSTEMS
from tfstruct.registry import Registry


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named config.

    Attributes:
        name: `<system>/<preset>`.
        description: what it trains on what, the command's time on a named device and the number that comes out.
        make: returns a fresh config.
    """

    name: str
    description: str
    make: Callable[[], ml_collections.ConfigDict]


PRESETS: Registry[Preset] = Registry("preset")


def get(name: str, overrides: Iterable[str] = ()) -> ml_collections.ConfigDict:
    """Returns a preset's config with `key=value` overrides applied.

    Raises:
        ValueError: an unknown preset or key (the near names are listed), or a value of another type.
    """
    config = PRESETS[name].make()
    config.preset = name
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
            config[group][last] = value
    return config

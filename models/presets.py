"""Presets: everything that decides a result, as data, by name."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tfstruct.models.config import Config
from tfstruct.models.registry import SYSTEMS
from tfstruct.registry import Registry
from tfstruct.settings import read_overrides

#: settings by dotted name; a group may be given as a whole
Changes = Mapping[str, Any]

#: makes training, evaluation and export those of a `tiny` preset: seconds, for tests
SHORT: Changes = {
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
        config: the class whose defaults it changes.
        settings: its changes.
    """

    name: str
    description: str
    config: type[Config]
    settings: Changes

    def make(self) -> Config:
        """Returns the config; raises ValueError for a setting that there is not, or a value that cannot be."""
        try:
            return self.config.parse({"preset": self.name, **self.settings})
        except ValueError as error:
            raise ValueError(f"preset {self.name}: {error}") from None


PRESETS: Registry[Preset] = Registry("preset")


def register_preset(name: str, description: str, base: type[Config] | Preset, *settings: Changes) -> Preset:
    """Adds a preset that changes the defaults of a class, or another preset.

    Args:
        name: `<system>/<preset>`.
        description: what it trains on what.
        base: what is changed.
        *settings: the changes, the later ones before the earlier.

    Raises:
        ValueError: a name that is taken.
    """
    if isinstance(base, Preset):
        base, settings = base.config, (base.settings, *settings)
    joined = {setting: value for changes in settings for setting, value in changes.items()}
    return PRESETS.register(name, Preset(name, description, base, joined))


def get(name: str, overrides: Iterable[str] = ()) -> Config:
    """Returns a preset's config with `key=value` overrides applied.

    Raises:
        ValueError: an unknown preset or key (the near names are listed), or a value that cannot be.
    """
    config = PRESETS[name].make()
    overrides = overrides if isinstance(overrides, (str, Mapping)) else list(overrides)
    _refuse_settings_of_other_systems(config, overrides)
    changes = read_overrides(config, overrides)
    if changes.get("data.name", config.data.name) == "file":
        changes.setdefault("data.event_shape", ())  # the file's own
    return config.replace(changes)


def _refuse_settings_of_other_systems(config: Config, overrides: Iterable[str]) -> None:
    """Raises ValueError that says whose setting it is, where a near name would only mislead."""
    known = set(config.names())
    for override in overrides:
        name = override.partition("=")[0]
        if name not in known:
            systems = [system for system, entry in SYSTEMS.items() if name in entry.config.parse({}).names()]
            if systems:
                raise ValueError(f"{name} is a setting of {', '.join(systems)}, and {config.preset} is {config.system}")

"""Systems by name: what a config names, and how it is built."""

import contextlib
import json
import random as python_random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tfstruct.models.config import SCHEMA_VERSION, Config
from tfstruct.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from tfstruct.models.system import System


class Analysis(NamedTuple):
    """Something that `tfstruct-analyse` finds out about a system.

    Attributes:
        about: what, in a sentence.
        function: (*subject, **settings) to results; what is no array goes into a file. Settings are its keyword-only
            arguments with their defaults.
        draw: results to a figure.
        subject: (model, rows) to the first arguments of the function.
        split: of the rows.
        num_rows: how many rows are taken from the front, by default; 0 for all.
        takes_run: whether there are a model and rows at all.
    """

    about: str
    function: Callable[..., dict[str, Any]]
    draw: "Callable[[dict[str, Any]], Figure]"
    subject: "Callable[[System, np.ndarray], tuple]" = lambda model, rows: (model, rows)
    split: str = "test"
    num_rows: int = 0
    takes_run: bool = True


class SystemEntry(NamedTuple):
    """A system as it is registered.

    Attributes:
        config: the class of its configs.
        load: returns the class, importing what it needs; called when the first model is built.
        analyses: returns what `tfstruct-analyse` offers for it, by name, importing what it needs.
    """

    config: type[Config]
    load: "Callable[[], type[System]]"
    analyses: Callable[[], Mapping[str, Analysis]] = dict


SYSTEMS: Registry[SystemEntry] = Registry("system")


def parse_config(text: str) -> Config:
    """Reads the JSON text of a config, also of an older version; what it lacks has its defaults.

    Raises:
        ValueError: no JSON, a newer schema, an unknown system, or settings that cannot be.
    """
    try:
        values = json.loads(text)
        system, version = values["system"], values.pop("schema_version", 0)
    except (json.JSONDecodeError, RecursionError, TypeError, KeyError) as error:
        raise ValueError(f"a config is a JSON object with a system: {error!r}") from None
    if not isinstance(system, str) or type(version) is not int:
        found = f"{type(system).__name__} and {type(version).__name__}"
        raise ValueError(f"system must be a text and schema_version an integer, found {found}")
    if version > SCHEMA_VERSION:
        raise ValueError(f"schema_version must be at most {SCHEMA_VERSION} for this version, found {version}")
    return SYSTEMS[system].config.parse(values)


def build(config: Config, *, seed: int = 0) -> "System":
    """Builds the system that a config names, with all its weights, initialised by `seed` alone.

    Raises:
        ValueError: an unknown system, or settings that it refuses.
    """
    system = SYSTEMS[config.system].load()
    with seeded_initializers(seed):
        model = system(config, name=config.system)
        if config.data.standardise:
            from tfstruct.models.standardised import Standardised  # which is a system itself

            model = Standardised(model)
        model.build()
    return model


@contextlib.contextmanager
def seeded_initializers(seed: int) -> Iterator[None]:
    """Makes the weights created inside depend on `seed` alone, and leaves no trace outside.

    Keras draws the seeds of initialisers from Python's global generator.
    """
    state = python_random.getstate()
    python_random.seed(seed)
    try:
        yield
    finally:
        python_random.setstate(state)

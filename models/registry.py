"""Systems by name."""

from collections.abc import Callable

import ml_collections

from tfstruct.models import boltzmann_vae, graph_vae, sum_product_vae
from tfstruct.models.system import System

SYSTEMS: dict[str, Callable[..., System]] = {
    "graph_vae": graph_vae.build,
    "boltzmann_vae": boltzmann_vae.build,
    "sum_product_vae": sum_product_vae.build,
}


def build(config: ml_collections.ConfigDict, *, seed: int = 0) -> System:
    """Builds the system that a config names, with weights initialised by `seed`.

    Raises:
        ValueError: an unknown system, or settings that its builder refuses.
    """
    if config.system not in SYSTEMS:
        raise ValueError(f"system must be one of {', '.join(SYSTEMS)}, found {config.system!r}")
    return SYSTEMS[config.system](config, seed=seed)

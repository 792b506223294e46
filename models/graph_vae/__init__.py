"""Graph VAEs: latent nodes whose dependency graph is learned, fixed, or none; flows after each node."""

from tfstruct.models.graph_vae import presets, tables
from tfstruct.models.graph_vae.config import Config
from tfstruct.models.registry import SYSTEMS, SystemEntry
from tfstruct.models.tables import register_tables


def _load() -> type:
    from tfstruct.models.graph_vae.model import GraphVAE

    return GraphVAE


SYSTEMS.register("graph_vae", SystemEntry(Config, _load))
presets.register()
register_tables(tables.all_tables())

"""Graph VAEs: latent nodes whose dependency graph is learned, fixed, or none; flows after each node."""

from tfstruct.models.graph_vae import presets, tables
from tfstruct.models.registry import SYSTEMS, SystemEntry
from tfstruct.models.tables import TABLES


def _load() -> type:
    from tfstruct.models.graph_vae.model import GraphVAE

    return GraphVAE


SYSTEMS.register("graph_vae", SystemEntry(presets.base, _load, later=presets.LATER))
presets.register()
for _table in tables.all_tables():
    TABLES.register(_table.name, _table)

"""The tables of the papers by name."""

from tfstruct.models import boltzmann_tables, graph_vae_tables, sum_product_tables
from tfstruct.models.table_parts import Table
from tfstruct.registry import Registry

#: a table of seconds that only tests fill; it stands in no document
TESTS = "graph_vae/tests"
TABLES: Registry[Table] = Registry("table")

for _module in (graph_vae_tables, boltzmann_tables, sum_product_tables):
    for _table in _module.all_tables():
        TABLES.register(_table.name, _table)

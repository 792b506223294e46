"""The tables of the papers by name."""

from tfstruct.models import boltzmann_tables, graph_vae_tables, sum_product_tables
from tfstruct.models.table_parts import Table, known_name

#: a table of seconds that only tests fill; it stands in no document
TESTS = "graph_vae/tests"
_TABLES: dict[str, Table] = {}


def register(table: Table) -> None:
    """Adds a table; raises ValueError when the name is taken."""
    if table.name in _TABLES:
        raise ValueError(f"table {table.name!r} exists already")
    _TABLES[table.name] = table


def names() -> list[str]:
    """Returns the names of all tables, sorted."""
    return sorted(_TABLES)


def get(name: str) -> Table:
    """Returns a table; raises ValueError with the near names for an unknown one."""
    return _TABLES[known_name(name, names(), "table")]


for _module in (graph_vae_tables, boltzmann_tables, sum_product_tables):
    for _table in _module.all_tables():
        register(_table)

"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a table; a bar in a cell, which would end it, is escaped."""
    lines = [[cell.replace("|", "\\|") for cell in cells] for cells in (heading, ["---"] * len(heading), *rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]

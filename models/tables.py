"""What a table of a paper is, as data: what to train, how to evaluate it, what the paper reports; and all by name."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tfstruct.models import presets
from tfstruct.models.config import Config
from tfstruct.registry import Registry, require_known

#: metrics of an evaluation that a table may show: heading, decimal places
METRICS = {
    "log_likelihood": ("log-likelihood, nats", 2),
    "elbo": ("ELBO, nats", 2),
    "rate": ("rate, nats", 1),
    "bits_per_dim": ("bits/dim", 3),
}
LOWER_IS_BETTER = ("rate", "bits_per_dim")


class Published(NamedTuple):
    """A number of a paper.

    Attributes:
        value: in the units of the metric; log-likelihoods are not negated.
        std: standard deviation over the paper's runs; None where it gives none.
    """

    value: float
    std: float | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How the runs of a row are scored.

    Attributes:
        num_samples: importance samples K.
        images: number of test images, from the front; 0 for all.
        data: `name/variant` of other data than those of training; empty for the same.
        split: `validation` or `test`.
        overrides: `evaluation.key=value`.
        edges: whether to measure also what each edge of a learned graph is worth, by flipping it.
    """

    num_samples: int
    images: int = 0
    data: str = ""
    split: str = "test"
    overrides: tuple[str, ...] = ()
    edges: bool = False

    @property
    def tag(self) -> str:
        """Tells evaluations of one run apart in the names of their files."""
        parts = [f"k{self.num_samples}", f"n{self.images}" if self.images else "", self.data.replace("/", "_")]
        values = [
            override.replace("evaluation.", "").replace("=", "-").replace(".", "_") for override in self.overrides
        ]
        return "_".join(part for part in [*parts, *values, "edges" if self.edges else ""] if part)


@dataclasses.dataclass(frozen=True)
class Row:
    """One model of a table: a preset, trained for every seed.

    Attributes:
        name: unique in the table; letters, digits, `_`, `-` and `.`.
        title: the cell that names it.
        preset: what is trained.
        evaluation: how it is scored.
        group: heading under which the row stands, such as the data set.
        overrides: `key=value` changes of the preset.
        seeds: of the runs.
        published: what the paper reports, by metric.
        paper_steps: training steps of the paper's run; None where the paper does not say.
        start_from: name of the row whose run of the same seed this one starts from.
        curve: of the table's figure, the curve's name and the row's place along it; None for no point.
        missing: why the row cannot be run with the data that TFDS and this package provide; empty where it can.
    """

    name: str
    title: str
    preset: str
    evaluation: Evaluation
    group: str = ""
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    published: Mapping[str, Published] = dataclasses.field(default_factory=dict)
    paper_steps: int | None = None
    start_from: str = ""
    curve: tuple[str, float] | None = None
    missing: str = ""

    def config(self) -> Config:
        """The config of a run, without its seed."""
        return presets.get(self.preset, self.overrides)


class Difference(NamedTuple):
    """A comparison of two rows over seeds and images, and the claim that it decides.

    Attributes:
        first: name of a row.
        other: name of a row that is scored on the same images.
        claim: the paper's claim that the first is better, in a sentence; empty for a mere difference.
    """

    first: str
    other: str
    claim: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table or figure of a paper, or an ablation.

    Attributes:
        name: `<system>/<table>`.
        title: what it shows.
        source: the paper and its table, and what its protocol leaves open.
        rows: the models.
        metrics: keys of METRICS, in the order of the columns.
        differences: comparisons of rows.
        axis: what the places along the curves of its figure are; empty for a table without a figure.

    Raises:
        ValueError: two rows of one name, a claim that stands twice, or a difference or a start of rows that are not
            there.
    """

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    metrics: tuple[str, ...] = ("log_likelihood", "elbo")
    differences: tuple[Difference, ...] = ()
    axis: str = ""

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name} has two rows of one name, found {names}")
        named = [name for difference in self.differences for name in difference[:2]]
        claims = [difference.claim for difference in self.differences if difference.claim]
        if len(set(claims)) < len(claims):
            raise ValueError(f"{self.name} makes a claim twice, found {claims}")
        for name in (*named, *(row.start_from for row in self.rows if row.start_from)):
            if name not in names:
                raise ValueError(f"{self.name} has no row {name!r}")

    def row(self, name: str) -> Row:
        """Returns a row; raises ValueError with the near names for an unknown one."""
        return next(row for row in self.rows if row.name == require_known(name, [row.name for row in self.rows], "row"))


#: a table of seconds that only tests fill; it stands in no document
TESTS = "graph_vae/tests"
TABLES: Registry[Table] = Registry("table")


def register_tables(tables: Iterable[Table]) -> None:
    """Adds tables; raises ValueError for a name that is taken."""
    for table in tables:
        TABLES.register(table.name, table)

"""The runs of a table: their folders, their command lines, and how far they are."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tfstruct import registry
from tfstruct.evaluation import results as results_lib
from tfstruct.evaluation.report import evaluation_stem
from tfstruct.files import PathLike
from tfstruct.models.tables import Row, Table
from tfstruct.training.checkpoint import Checkpoints


class Unit(NamedTuple):
    """Seeds of a row that are trained by one process.

    Attributes:
        row: what is trained.
        seeds: consecutive.
        workdir: folder of the run.
    """

    row: Row
    seeds: tuple[int, ...]
    workdir: Path

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.row.name} seed {self.seeds[0]}" + (f"..{self.seeds[-1]}" if len(self.seeds) > 1 else "")

    @property
    def evaluation(self) -> Path:
        """The file that the row's evaluation writes."""
        stem = evaluation_stem(self.row.evaluation.split, self.row.evaluation.tag)
        return self.workdir / f"{stem}.json"

    @property
    def is_trained(self) -> bool:
        """Whether training has come to its end, at which the best weights are written."""
        return (self.workdir / "best" / "replica_0.weights.h5").exists()

    @property
    def step(self) -> int:
        """Of the newest checkpoint."""
        return max(Checkpoints(self.workdir / "checkpoints").steps(), default=0)

    def is_recorded(self, results: results_lib.Results) -> bool:
        """Whether results have every seed, from this machine or another."""
        recorded = results.seeds(self.row.name)
        return all(str(seed) in recorded for seed in self.seeds)

    def state(self) -> str:
        """`done`, `trained`, `started` or `missing`, by what lies in the folder."""
        if self.is_trained:
            return "done" if self.evaluation.exists() else "trained"
        return "started" if self.workdir.exists() else "missing"


def run_folder(table: Table, row: Row) -> str:
    """Name of the folder of a row's runs, which rows of other tables that train the same share.

    The preset, and where it is changed a digest of the changes; what they are is in the folder's config.json.
    """
    changes = list(row.overrides)
    if row.start_from:
        changes.append(f"start from {run_folder(table, table.row(row.start_from))}")
    digest = hashlib.sha256("\n".join(changes).encode()).hexdigest()[:10]
    return row.preset.replace("/", "-") + (f"-{digest}" if changes else "")


def units(
    table: Table,
    workdir: PathLike,
    *,
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (),
    per_run: int = 1,
    is_whole: bool = False,
) -> list[Unit]:
    """Returns the runs of a table in its order: for every row first all of the first seed, then of the next.

    Args:
        table: the table.
        workdir: folder of all runs.
        rows: names; empty for all but those whose data are not at hand.
        seeds: in place of the rows' own.
        per_run: seeds that one process trains together as replicas.
        is_whole: without `rows`, take also those whose data are not at hand.

    Raises:
        ValueError: an unknown row, a negative seed, or seeds trained together that are not consecutive.
    """
    if any(seed < 0 for seed in seeds):
        raise ValueError(f"seeds must be at least 0, found {list(seeds)}")
    chosen = [table.row(name) for name in rows] or [row for row in table.rows if is_whole or not row.missing]
    found = []
    for row in chosen:
        own = tuple(seeds) or row.seeds
        for place in range(0, len(own), per_run):
            group = own[place : place + per_run]
            if list(group) != list(range(group[0], group[0] + len(group))):
                raise ValueError(f"seeds that are trained together must follow one another, found {group}")
            last = f"seed_{group[0]}" + (f"-{group[-1]}" if len(group) > 1 else "")
            found.append((place, Unit(row, tuple(group), Path(workdir) / run_folder(table, row) / last)))
    return [unit for _, unit in sorted(found, key=lambda item: item[0])]


def start_folder(table: Table, unit: Unit) -> Path | None:
    """The run that a unit starts from, of the same seeds; None for fresh weights."""
    if not unit.row.start_from:
        return None
    source = table.row(unit.row.start_from)
    return unit.workdir.parent.parent / run_folder(table, source) / unit.workdir.name


def command(program: str, table: Table, unit: Unit, data_dir: str | None) -> list[str]:
    """The command line of a unit's training (`train`) or evaluation (`evaluate`)."""
    arguments = _train_arguments(table, unit) if program == "train" else _evaluate_arguments(unit)
    arguments += ([f"--data_dir={data_dir}"] if data_dir else []) + [f"--import={name}" for name in registry.imported]
    return [sys.executable, "-m", f"tfstruct.trainers.{program}", *arguments]


def _train_arguments(table: Table, unit: Unit) -> list[str]:
    command = [f"--preset={unit.row.preset}", f"--workdir={unit.workdir}", f"--seed={unit.seeds[0]}"]
    command += [f"--replicas={len(unit.seeds)}"] if len(unit.seeds) > 1 else []
    command += [f"--set={override}" for override in unit.row.overrides]
    source = start_folder(table, unit)
    return command + ([f"--set=training.initial_weights={source}"] if source else [])


def _evaluate_arguments(unit: Unit) -> list[str]:
    evaluation = unit.row.evaluation
    command = [f"--workdir={unit.workdir}", f"--split={evaluation.split}", f"--tag={evaluation.tag}", "--nopictures"]
    command += [f"--num_samples={evaluation.num_samples}", f"--images={evaluation.images}"]
    command += [f"--data={evaluation.data}"] if evaluation.data else []
    if evaluation.edges:
        command += ["--edges", f"--edge_samples={evaluation.num_samples}"]
        command += [f"--edge_images={evaluation.images}"] if evaluation.images else []
    return command + [f"--set={override}" for override in evaluation.overrides]


def status(todo: Sequence[Unit], results: results_lib.Results) -> Iterator[str]:
    """Yields a line for every row: how many seeds are done, trained, started and missing."""
    by_row: dict[str, list[Unit]] = {}
    for unit in todo:
        by_row.setdefault(unit.row.name, []).append(unit)
    width = max((len(name) for name in by_row), default=0)
    for name, own in by_row.items():
        words = [f"no data: {own[0].row.missing}"] if own[0].row.missing else []
        for unit in own:
            state = "done" if unit.is_recorded(results) else unit.state()
            if state == "started":
                state = f"step {unit.step} of {unit.row.config().training.steps}"
            words.append(f"{'-'.join(map(str, unit.seeds))} {state}")
        yield f"{name:{width}}  {'; '.join(words)}"

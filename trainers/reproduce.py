"""Fills a table of a paper: trains what is missing, evaluates it, and writes results/<system>/<table>.json.

tfstruct-reproduce --table=graph_vae/table1 --hours=2.5 --jobs=2

The same command goes on where it was interrupted. --list shows what is done; --write_docs writes docs/results.md,
results/FINDINGS.md and the generated sections of README.md and docs/; --figures=FOLDER draws the tables that are
figures in their paper.
"""

import signal
import time
from collections.abc import Sequence

from absl import flags

from tfstruct.trainers import entry

_TABLE = flags.DEFINE_multi_string("table", [], "Name of a table, such as graph_vae/table1; with --list default all.")
_ROWS = flags.DEFINE_list("rows", [], "Rows of the table; default all whose data are at hand.")
_SEEDS = flags.DEFINE_list("seeds", [], "Seeds; default those of each row.")
_HOURS = flags.DEFINE_float("hours", None, "Stop cleanly after so many hours.", lower_bound=0.0)
_JOBS = flags.DEFINE_integer("jobs", 1, "Processes at once; each gets an equal share of the processors.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", "runs", "Folder of the runs.")
_RESULTS = flags.DEFINE_string("results", "results", "Folder of the results.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets prepared by TensorFlow Datasets.")
_PROGRESS = flags.DEFINE_float("progress_seconds", 60.0, "Seconds between lines of progress.", lower_bound=0.1)
_LIST = flags.DEFINE_bool("list", False, "Print what is done, running and missing, and end.")
_WRITE_DOCS = flags.DEFINE_bool("write_docs", False, "Write the documents from the results, and end.")
_FIGURES = flags.DEFINE_string("figures", None, "Folder to draw figures of the tables into, from the results; and end.")
_DOCUMENTS = flags.DEFINE_string("documents", ".", "Folder of README.md and docs/, for --write_docs.")


def main() -> None:
    """Fills tables, lists them, or writes the documents."""
    from tfstruct.evaluation import documents, reproduce, results, sections
    from tfstruct.evaluation import units as runs
    from tfstruct.models import tables

    if _WRITE_DOCS.value:
        for path in sections.write_all(_RESULTS.value, _DOCUMENTS.value):
            print(path)
        return
    if _FIGURES.value is not None:
        for path in documents.write_figures(_RESULTS.value, _FIGURES.value, _TABLE.value):
            print(path)
        return
    names = _TABLE.value or (tables.TABLES if _LIST.value else [])
    if not names:
        raise ValueError(f"--table is needed: {', '.join(tables.TABLES)}")
    if len(names) > 1 and _ROWS.value:
        raise ValueError(f"--rows goes with one table, found {', '.join(names)}")
    deadline = None if _HOURS.value is None else time.monotonic() + 3600.0 * _HOURS.value
    is_complete, interrupted = True, False
    for table in [tables.TABLES[name] for name in names]:
        units = runs.units(
            table,
            _WORKDIR.value,
            rows=_ROWS.value,
            seeds=_numbers(_SEEDS.value),
            per_run=_seeds_per_run(),
            is_whole=_LIST.value,
        )
        if _LIST.value:
            print(f"{table.name}: {table.title}")
            for line in runs.status(units, results.read(_RESULTS.value, table)):
                print(f"  {line}")
            continue
        runner = reproduce.Runner(
            table,
            _RESULTS.value,
            jobs=_JOBS.value,
            data_dir=_DATA_DIR.value,
            deadline=deadline,
            progress_seconds=_PROGRESS.value,
            say=lambda text: print(text, flush=True),
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, runner.stop)
        is_complete &= runner.run(units)
        interrupted |= runner.stopped_by == signal.SIGINT
        print(documents.table_to_markdown(table, results.read(_RESULTS.value, table), is_brief=True))
        for label, reason in runner.failed.items():
            print(f"FAILED {label}: {reason}")
    if not _LIST.value and not is_complete:
        print("not all is done; the same command goes on")
        raise SystemExit(128 + signal.SIGINT if interrupted else 3)


def _seeds_per_run() -> int:
    """All seeds of a row at once on a GPU, one on a CPU, where replicas bring nothing."""
    import tensorflow as tf

    return 1_000 if tf.config.list_physical_devices("GPU") else 1


def _numbers(values: Sequence[str]) -> list[int]:
    try:
        return [int(value) for value in values]
    except ValueError:
        raise ValueError(f"--seeds is a list of integers, found {','.join(values)!r}") from None


def run() -> None:
    """The console script `tfstruct-reproduce`."""
    entry.run(main)


if __name__ == "__main__":
    run()

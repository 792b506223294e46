"""What `tfstruct-benchmark` and `tfstruct-compare` have measured, as tables for the documents."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfstruct import markdown
from tfstruct.evaluation import comparison
from tfstruct.files import PathLike, read_json


def names(folder: PathLike) -> list[str]:
    """The benchmarks in a folder of results, as names of sections: benchmarks/<file without suffix>."""
    return [f"benchmarks/{path.stem}" for path in sorted((Path(folder) / "benchmarks").glob("*.json"))]


def section(folder: PathLike, name: str) -> str:
    """Returns a benchmark as Markdown: the table, and what was measured how."""
    found = read_json(Path(folder) / f"{name}.json")
    if "differences" in found:
        lines = comparison.to_markdown(found).splitlines()
    elif "scaling" in found:
        lines = _scaling(found["scaling"])
    elif found["measure"] == "scoring":
        lines = _requests(found["rows"])
    else:
        lines = _ways(found["rows"], found["unit"])
    return "\n".join([*lines, "", _about(found, name)])


def _ways(rows: Mapping[str, Mapping[str, Any]], unit: str) -> list[str]:
    cells = [
        [
            name,
            _range(row["per_second"], row["slowest"], row["fastest"], _number),
            _range(row["ratio"], row["least_ratio"], row["greatest_ratio"], lambda value: f"{value:.2f}"),
            "-" if row["share_of_most"] is None else f"{row['share_of_most']:.0%}",
            f"{row['compile_seconds']:.0f}",
        ]
        for name, row in rows.items()
    ]
    header = [
        "way", f"{unit}/s (range)", "ratio to the first row, of the same round (range)", "of the most",
        "s until the first round was done",
    ]  # fmt: skip
    return markdown.table(header, cells)


def _scaling(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    cells = [
        [
            f"`{key}`",
            ", ".join(f"{row['value']:,.0f}" for row in curve["rows"]),
            ", ".join(f"{1e3 / row['per_second']:.1f}" for row in curve["rows"]),
            f"{curve['exponent']:.2f} ({curve['exponent_std_err']:.2f})",
        ]
        for key, curve in found.items()
    ]
    return markdown.table(["setting", "values", "ms a step", "exponent (standard error of the fit)"], cells)


def _requests(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    cells = [
        [name, _number(row["per_second"]), *(f"{row[f'p{level}_ms']:,.0f}" for level in (50, 90, 99))]
        for name, row in rows.items()
    ]
    return markdown.table(["", "rows/s", "p50, ms", "p90, ms", "p99, ms"], cells)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _range(value: float, least: float, greatest: float, show: Any) -> str:
    return f"{show(value)} ({show(least)} to {show(greatest)})"


def _about(found: Mapping[str, Any], name: str) -> str:
    """The sentence below a table."""
    environment = found["environment"]
    what = f"`{found.get('preset', found.get('model'))}`"
    if "differences" in found:
        what = ", ".join(f"`{model['name']}`" for model in found["models"])
    if "batch_size" in found and found["measure"] == "training":
        what += f", batch {found['batch_size']}"
    if "num_samples" in found:
        what += f", K={found['num_samples']}"
    device = ""
    if "device" in found:
        operations, moved = found["device"]["operations_per_second"], found["device"]["bytes_per_second"]
        device = f" The device: {operations / 1e9:,.0f} GFLOP/s in matrix products, {moved / 1e9:,.0f} GB/s."
    cores = environment["cpu_count"]
    where = ", ".join(environment["gpus"]) or f"{cores} CPU core{'s' * (cores > 1)}"
    commit, _, dirty = environment["commit"].partition("-")
    return (
        f"{what}; {where}; commit {commit[:7]}{', with changes' * bool(dirty)}; `results/{name}.json`, by "
        f"`{_shortened(environment['command'])}`.{device}"
    )


def _shortened(command: Sequence[str]) -> str:
    """A command without where it writes to."""
    return shlex.join(text for text in command if not text.startswith(("--output", "--figure")))

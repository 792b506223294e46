"""The presets as a table for a terminal: what each needs, how long it trains, and what is known of it."""

import warnings
from collections.abc import Mapping
from pathlib import Path

from tfstruct.data.datasets import SOURCES
from tfstruct.evaluation import results
from tfstruct.files import PathLike
from tfstruct.models.presets import PRESETS
from tfstruct.models.tables import METRICS, TABLES

#: the committed results; an installed package has none
RESULTS = Path(__file__).resolve().parents[2] / "results"
_HEADING = ("preset", "data", "steps", "best result", "pretrained")


def lines(text: str, bundles: Mapping[str, str], results_folder: PathLike = RESULTS) -> list[str]:
    """Returns the lines of the table, at most 120 characters each; of a single preset its description as well.

    Args:
        text: part of the name or of the description of the presets to show, upper or lower case; empty for all.
        bundles: names of pretrained bundles by the preset that each was trained with.
        results_folder: folder of the results of the tables, which `tfstruct-reproduce` writes; may be missing.

    Raises:
        ValueError: there is no such preset.
    """
    names = [name for name in PRESETS if text.lower() in f"{name} {PRESETS[name].description}".lower()]
    if not names:
        PRESETS[text]  # raises with the near names
    best = best_results(results_folder)
    cells: list[tuple[str, ...]] = [_HEADING]
    for name in names:
        config = PRESETS[name].make()
        source = SOURCES.get(config.data.name)  # none of a file
        data = config.data.name + (" *" if source and not source.is_embedded else "")
        cells.append((name, data, f"{config.training.steps:,}", best.get(name, "-"), bundles.get(name, "-")))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    table = [
        f"{name:{widths[0]}}  {data:{widths[1]}}  {steps:>{widths[2]}}  {found:>{widths[3]}}  {bundle}"
        for name, data, steps, found, bundle in cells
    ]
    if any(row[1].endswith("*") for row in cells):
        table.append("* does not come with this package; training says where it looks and how to prepare it")
    return [*table, *([PRESETS[names[0]].description] if len(names) == 1 else [])]


def best_results(folder: PathLike) -> dict[str, str]:
    """Returns the best result of each preset that was run without changes, in its table's first metric, as text.

    Results on a whole split come before those on its first rows.
    """
    found: dict[str, tuple[tuple[bool, float], str]] = {}
    for table in TABLES.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rows that are defined otherwise now are left out, as they should be
            rows = results.read(folder, table).document["rows"]
        for entry in rows.values():
            if entry["overrides"] or entry["start_from"]:
                continue
            order = (entry["evaluation"]["images"] == 0, float(entry["summary"]["log_likelihood"]["mean"]))
            metric = table.metrics[0] if table.metrics[0] in entry["summary"] else "log_likelihood"
            unit = "bits/dim" if metric == "bits_per_dim" else "nats"
            text = f"{float(entry['summary'][metric]['mean']):.{METRICS[metric][1]}f} {unit}"
            found[entry["preset"]] = max(found.get(entry["preset"], ((False, float("-inf")), "")), (order, text))
    return {preset: text for preset, (_, text) in found.items()}

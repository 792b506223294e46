"""Results as Markdown: tables for documents, and which of the papers' claims hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfstruct import markdown, plotting
from tfstruct.evaluation.results import Results, read
from tfstruct.files import PathLike
from tfstruct.models import tables as tables_lib
from tfstruct.models.tables import LOWER_IS_BETTER, METRICS, Row, Table


def table_to_markdown(table: Table, results: Results, *, is_brief: bool = False) -> str:
    """Returns a table with every row beside the paper's numbers, and how its numbers came about.

    Args:
        table: the table.
        results: its results.
        is_brief: leave out rows that were not run, and notes.
    """
    blocks = []
    for group in dict.fromkeys(row.group for row in table.rows):
        rows = [row for row in table.rows if row.group == group and results.seeds(row.name)]
        if not rows:
            continue
        metrics = [metric for metric in table.metrics if metric != "bits_per_dim" or _shows_bits(table, rows)]
        heading = ["model", *(METRICS[metric][0] for metric in metrics), "seeds", "steps", "published"]
        lines = [_cells(row, results.document["rows"][row.name], metrics) for row in rows]
        blocks.append(_block(group, heading, lines))
    if not blocks:
        blocks = ["Not run yet."]
    if not is_brief:
        blocks += _notes(table, results) + _not_run(table, results)
    return "\n\n".join(blocks) + "\n"


def _block(group: str, heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join([*([f"**{group}**", ""] if group else []), *markdown.table(heading, lines)])


def _not_run(table: Table, results: Results) -> list[str]:
    """The rows without results, folded away."""
    left = [row for row in table.rows if not results.seeds(row.name)]
    if not left:
        return []
    blocks = [f'<details markdown="1"><summary>{len(left)} of {len(table.rows)} rows are not run yet</summary>']
    for group in dict.fromkeys(row.group for row in left):
        own = [row for row in left if row.group == group]
        blocks.append(_block(group, ["model", "steps", "published"], [[row.title, *_expected(row)] for row in own]))
    return [*blocks, "</details>"]


def _shows_bits(table: Table, rows: Sequence[Row]) -> bool:
    """Bits per dimension are for the tables that are about them, and beside published ones."""
    return table.metrics[0] == "bits_per_dim" or any("bits_per_dim" in row.published for row in rows)


def _expected(row: Row) -> list[str]:
    """The steps of a row, of the paper's where it names them, and the paper's numbers."""
    published = ", ".join(
        f"{METRICS[metric][0].partition(',')[0]} {_number(number.value, metric)}"
        + (f" +- {_number(number.std, metric)}" if number.std is not None else "")
        for metric, number in row.published.items()
    )
    steps = row.config().training.steps
    length = f"{steps:,}" + (f" of {row.paper_steps:,}" if row.paper_steps else "")
    return [length, published or "-"]


def _cells(row: Row, entry: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    cells = [row.title + _open_edges(entry) + (" (flagged)" if entry["flags"] else "")]
    for metric in metrics:
        summary = entry["summary"].get(metric)
        cells.append("-" if summary is None else _measured(summary, metric))
    return [*cells, str(len(entry["seeds"])), *_expected(row)]


def _open_edges(entry: Mapping[str, Any]) -> str:
    """How many edges of a learned graph are open, of every seed."""
    seeds = [seed for seed in entry["seeds"].values() if seed.get("possible_edges")]
    if not seeds or entry["config"]["model"].get("structure") != "learned":
        return ""
    return f", {', '.join(str(seed['open_edges']) for seed in seeds)} of {seeds[0]['possible_edges']} edges open"


def _measured(summary: Mapping[str, Any], metric: str) -> str:
    text = _number(summary["mean"], metric)
    if summary["std_over_seeds"] is not None:
        text += f" +- {_number(summary['std_over_seeds'], metric)}"
    error, quantile = summary.get("std_err_over_images"), summary.get("quantile_99")
    text += f" ({_number(error, metric)})" if error is not None else ""
    return text + (f", 99 % below {_number(quantile, metric)}" if quantile is not None else "")


def _number(value: float | str, metric: str) -> str:
    return f"{float(value):.{METRICS[metric][1]}f}"


def _notes(table: Table, results: Results) -> list[str]:
    rows = results.document["rows"]
    notes = [f"Source: {table.source}."]
    scored = sorted({_scored(entry) for row in rows.values() for entry in row["seeds"].values()})
    if rows:
        hours = sum(_hours(entry) for row in rows.values() for entry in row["seeds"].values())
        devices = sorted({_device(entry["training"]) for row in rows.values() for entry in row["seeds"].values()})
        notes.append(f"Scored: {'; '.join(scored)}. Trained in {hours:.1f} hours on {', '.join(devices)}.")
        trainings = [entry["training"] for row in rows.values() for entry in row["seeds"].values()]
        unknown = sum(training["commit"] is None for training in trainings)
        notes += [f"The commit of {unknown} of these runs was not recorded when they were trained."] if unknown else []
        resumed = sum("earlier_commits" in training for training in trainings)
        notes += [f"{resumed} of these runs went on by another commit than they began with."] if resumed else []
    plain = [_difference(table, entry) for entry in results.document["differences"] if not entry["claim"]]
    notes += ["\n".join(["Differences in nats, of paired images:", "", *plain])] if plain else []
    edges = _edges(table, results)
    notes += ["\n".join(["Edges flipped one at a time:", "", *edges])] if edges else []
    notes += _uncommitted(results)
    notes.append(f"    tfstruct-reproduce --table={table.name}")
    flagged = [f"* {row['title']}: {flag}" for row in rows.values() for flag in row["flags"]]
    if flagged:
        notes.append("\n".join(["Flagged:", "", *dict.fromkeys(flagged)]))
    missing = dict.fromkeys(row.missing for row in table.rows if row.missing and row.name not in rows)
    notes += [f"Not run for want of data: {reason}." for reason in missing]
    return notes


def _uncommitted(results: Results) -> list[str]:
    """Says how many evaluations were made by code with changes that were not committed."""
    entries = [entry for row in results.document["rows"].values() for entry in row["seeds"].values()]
    changed = sum((entry["evaluation"]["commit"] or "").endswith("-dirty") for entry in entries)
    return (
        [f"{changed} of {len(entries)} evaluations: by code with changes that were not committed."] if changed else []
    )


def _difference(table: Table, entry: Mapping[str, Any]) -> str:
    names = [table.row(entry[name]).title for name in ("first", "other")]
    error = "" if entry["std_err_over_images"] is None else f" +- {float(entry['std_err_over_images']):.2f}"
    return f"* {names[0]} less {names[1]}: {float(entry['log_likelihood']):+.2f}{error}"


def _edges(table: Table, results: Results) -> list[str]:
    """What the edges of every learned graph of a table are worth, a line for each run where it was measured."""
    return [
        f"* {row.title}, seed {seed}: {_edge_summary(entry['edge_effects'])}"
        for row in table.rows
        for seed, entry in results.seeds(row.name).items()
        if entry.get("edge_effects")
    ]


def _edge_summary(effects: Mapping[str, Any]) -> str:
    """How many edges matter, and the range of what flipping one does; changes count beyond two standard errors."""
    edges = effects["edges"]
    changes = [(float(edge["change"]), float(edge["std_err"])) for edge in edges]
    worse, better = (sum(sign * change > 2.0 * error for change, error in changes) for sign in (-1.0, 1.0))
    named = {"all open": effects["all_open"], "all closed": effects["all_closed"]}
    num_open = sum(edge["is_open"] for edge in edges)
    pruned = ", which is the fully connected graph: nothing was pruned" if num_open == len(edges) else ""
    if effects["undecided"] is not None:
        named[f"averaged over {len(effects['undecided']['edges'])} undecided edges"] = effects["undecided"]
    whole = [f"{name} {_signed(float(part['change']), float(part['std_err']))}" for name, part in named.items()]
    return (
        f"{num_open} of {len(edges)} open{pruned}; flipping one alone is worse for {worse}, "
        f"better for {better} (by more than two standard errors over images), by {_signed(*min(changes))} to "
        f"{_signed(*max(changes))} nats; {', '.join(whole)} nats (K={effects['num_samples']}, "
        f"{effects['images']:,} images)"
    )


def _signed(change: float, error: float) -> str:
    return f"{change:+.3f} +- {error:.3f}"


def _scored(entry: Mapping[str, Any]) -> str:
    evaluation = entry["evaluation"]
    data = evaluation["data"]
    return (
        f"{data['name']}/{data['variant']} {data['split']}, {data['images']:,} images, K={evaluation['num_samples']:,}"
    )


def _hours(entry: Mapping[str, Any]) -> float:
    training = entry["training"]
    return training["seconds"] / training["replicas"] / 3600.0


def _device(training: Mapping[str, Any]) -> str:
    return " and ".join(training["gpus"]) if training["gpus"] else "CPU cores"


def findings(tables: Sequence[Table], results: Mapping[str, Results]) -> str:
    """Returns, as Markdown, whether each claim of the papers holds over seeds."""
    lines = [
        "# Findings",
        "",
        "Written by `tfstruct-reproduce --write_docs` from the files beside it. A claim holds, or its opposite does,",
        "where the 95 % confidence interval of the difference over seeds (Welch) excludes 0. Differences are in nats,",
        "the first model less the other; the standard error over images is that of paired images.",
        "",
    ]
    for table in tables:
        own = [entry for entry in results[table.name].document["differences"] if entry["claim"]]
        if not own:
            continue
        rows = []
        for entry in own:
            low_high = entry["interval"]
            interval = "-" if low_high is None else f"{float(low_high[0]):.2f} to {float(low_high[1]):.2f}"
            error = entry["std_err_over_images"]
            cells = [
                entry["claim"],
                f"{float(entry['log_likelihood']):+.2f}",
                interval,
                "-" if error is None else f"{float(error):.2f}",
                " and ".join(map(str, entry["num_seeds"])),
                answer(entry),
            ]
            rows.append(cells)
        heading = ["claim", "difference", "interval over seeds", "s.e. over images", "seeds", "answer"]
        lines += [f"## {table.title} (`{table.name}`)", "", *markdown.table(heading, rows), ""]
    if len(lines) == 6:
        lines += ["No claim has been tested yet.", ""]
    waiting = [
        claim
        for table in tables
        for first, other, claim in table.differences
        if claim and not (results[table.name].seeds(first) and results[table.name].seeds(other))
    ]
    if waiting:
        lines += [
            f'<details markdown="1"><summary>{len(waiting)} claims whose models are not all trained and evaluated yet'
            "</summary>",
            "",
        ]
        lines += [*(f"* {claim}" for claim in waiting), "", "</details>", ""]
    for table in tables:
        edges = _edges(table, results[table.name])
        if edges:
            lines += [f"## {table.title} (`{table.name}`)", "", *edges, "", *_uncommitted(results[table.name]), ""]
    return "\n".join(lines)


def answer(difference: Mapping[str, Any]) -> str:
    """Whether the claim that the first row is better holds: `yes`, `no, the opposite`, `not shown` or `one seed`."""
    if difference["interval"] is None:
        return "one seed: not decided"
    low, high = map(float, difference["interval"])
    if low > 0.0:
        return "yes"
    return "no, the opposite" if high < 0.0 else "not shown"


def all_results(tables: Sequence[Table], results: Mapping[str, Results]) -> str:
    """Returns the page with every table."""
    parts = [
        "# Results",
        "",
        "Written by `tfstruct-reproduce --write_docs`; numbers come from the files in `results/`. In every table +- is",
        "the standard deviation over seeds and the number in brackets the standard error over images; 99 % of the",
        "images have rates below the number named; steps are those run, of the paper's where it names them.",
        "",
    ]
    parts += _against_papers(tables, results)
    for table in sorted(tables, key=lambda table: not results[table.name].document["rows"]):
        parts += [f"## {table.title}", "", table_to_markdown(table, results[table.name])]
    return "\n".join(parts)


def _against_papers(tables: Sequence[Table], results: Mapping[str, Results]) -> list[str]:
    """Which of the papers' numbers are reached: every row that was run and has one, and how many there are."""
    lines, num_published, num_reached = [], 0, 0
    for table in tables:
        for row in table.rows:
            metric = next((metric for metric in table.metrics if metric in row.published), None)
            num_published += metric is not None
            if metric is None or not results[table.name].seeds(row.name):
                continue
            entry, number = results[table.name].document["rows"][row.name], row.published[metric]
            found = entry["summary"][metric]
            sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
            better = sign * (float(found["mean"]) - number.value)
            num_reached += better >= 0.0
            spread = f" +- {_number(number.std, metric)}" if number.std is not None else ""
            error = found.get("std_err_over_images")
            is_close = error is not None and better >= -2.0 * float(error)
            reached = "yes" if better >= 0.0 else "no, by less than two s.e. over images" if is_close else "no"
            published = _number(number.value, metric) + spread
            cells = [f"`{table.name}`", row.group, row.title, METRICS[metric][0], published, _measured(found, metric)]
            lines.append([*cells, str(len(entry["seeds"])), reached])
    return [
        "## The papers' numbers",
        "",
        f"Of {num_published} rows with a number in a paper {len(lines)} were run; {num_reached} reach it. The others",
        "wait for computing time, or for data that no package registry has; they stand below with their tables.",
        "",
        _block("", ["table", "data", "model", "metric", "published", "measured", "seeds", "reached"], lines),
        "",
    ]


def summary(results: Mapping[str, Results], names: Sequence[str]) -> str:
    """Returns a table with one row for each of several tables: its best model, scored how, beside the published number.

    Args:
        results: by table.
        names: of the tables; of each the first group of rows with results counts, whose numbers compare.
    """
    lines = []
    for name in names:
        table, found = tables_lib.TABLES[name], results[name]
        rows = [row for row in table.rows if found.seeds(row.name)]
        entries = [(found.document["rows"][row.name], row) for row in rows if row.group == rows[0].group]
        if not entries:
            lines.append([f"`{name}`", "not run yet", "-", "-", "-", "-"])
            continue
        entry, row = max(entries, key=lambda pair: float(pair[0]["summary"]["log_likelihood"]["mean"]))
        scored = "; ".join(sorted({_scored(seed) for seed in entry["seeds"].values()}))
        flagged = " (flagged)" if entry["flags"] else ""
        cells = [
            f"`{name}`",
            row.title + flagged,
            scored,
            _measured(entry["summary"]["log_likelihood"], "log_likelihood"),
        ]
        number = row.published.get("log_likelihood")
        published = "-" if number is None else _number(number.value, "log_likelihood")
        lines.append([*cells, str(len(entry["seeds"])), published])
    return _block("", ["table", "best model", "scored", METRICS["log_likelihood"][0], "seeds", "published"], lines)


def write_figures(results_folder: PathLike, folder: PathLike, names: Sequence[str] = ()) -> list[Path]:
    """Draws the results of tables that are figures: `<system>-<table>.png`; those without results are left out.

    Args:
        results_folder: of the results.
        folder: where to write.
        names: of tables; default all that have a figure.

    Raises:
        ValueError: an unknown table, or one that was named and has no figure or no results.
    """
    paths = []
    for name in names or [name for name, table in tables_lib.TABLES.items() if table.axis]:
        table, points = tables_lib.TABLES[name], []
        if not table.axis:
            raise ValueError(f"{name} is no figure; it stands in docs/results.md")
        results = read(results_folder, table)
        for row in table.rows:
            seeds = results.seeds(row.name).values()
            if row.curve is not None and seeds:
                values = [float(entry["log_likelihood"]) for entry in seeds]
                points.append(plotting.Point(row.group, *row.curve, values))
        if points:
            figure = plotting.draw_table(points, axis=table.axis, metric=METRICS["log_likelihood"][0])
            paths.append(plotting.save(figure, Path(folder) / f"{name.replace('/', '-')}.png"))
        elif names:
            raise ValueError(f"{name} has no results yet in {results_folder}")
    return paths

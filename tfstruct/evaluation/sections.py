"""Sections of the documents that are written from the code and from files: results, bundles, settings, presets, data.

A document marks a section by `<!-- generated: NAME -->` and `<!-- end of generated -->`; `write_all` fills all of them.
"""

import ast
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tfstruct import markdown
from tfstruct.data.datasets import SOURCES
from tfstruct.evaluation import analysis, benchmark_tables, bundle_tables, documents
from tfstruct.evaluation.results import Results, read
from tfstruct.files import PathLike, write_text
from tfstruct.models import tables as tables_lib
from tfstruct.models.config import Config
from tfstruct.models.presets import PRESETS
from tfstruct.models.registry import SYSTEMS
from tfstruct.registry import require_known
from tfstruct.settings import Settings

_MARKER = re.compile(r"(<!-- generated: (?P<name>\S+) -->\n).*?(<!-- end of generated -->\n)", re.DOTALL)
#: the tables of which the README shows the best model
MAIN_TABLES = ("graph_vae/table1", "graph_iaf_vae/table1", "boltzmann_vae/table1", "spvae/table1")


def filled(text: str, render: Callable[[str], str]) -> str:
    """Returns a document with the text between its markers new.

    Args:
        text: the document.
        render: gives the text for the name of a section.
    """
    return _MARKER.sub(lambda match: f"{match[1]}\n{render(match['name']).rstrip()}\n\n{match[3]}", text)


def pages(folder: PathLike) -> list[Path]:
    """Returns the documents under a folder that have sections: README.md and the pages of docs/."""
    found = [Path(folder) / "README.md", *sorted((Path(folder) / "docs").rglob("*.md"))]
    return [path for path in found if path.exists() and _MARKER.search(path.read_text(encoding="utf-8"))]


def section(name: str, results: Mapping[str, Results], folder: PathLike) -> str:
    """Returns a section as Markdown.

    Args:
        name: that of a table, a key of `sections`, one of those of `bundle_tables.TABLES`, or of a benchmark.
        results: by table.
        folder: with `saved_models` and `results`.

    Raises:
        ValueError: an unknown name; the near ones are listed.
    """
    if name in bundle_tables.TABLES:
        return bundle_tables.TABLES[name](Path(folder) / "saved_models")
    if name == "summary":
        return documents.summary(results, MAIN_TABLES)
    if name == "flags":
        return flags(Path(folder) / "trainers")
    if name in results:
        return documents.table_to_markdown(tables_lib.TABLES[name], results[name], is_brief=True)
    own, measured = dict(_sections()), benchmark_tables.names(Path(folder) / "results")
    require_known(name, [*own, *results, *bundle_tables.TABLES, *measured, "summary", "flags"], "section")
    if name in measured:
        return benchmark_tables.section(Path(folder) / "results", name)
    return own[name]()


def _sections() -> Iterator[tuple[str, Callable[[], str]]]:
    """Yields what is written from the code alone."""
    yield "data_sets", data_sets
    yield "settings/common", lambda: settings_table(Config(), None)
    for name in SYSTEMS:
        yield f"settings/{name}", lambda name=name: settings_table(SYSTEMS[name].config.parse({}), Config())
        yield f"presets/{name}", lambda name=name: presets_table(name)
        yield f"analyses/{name}", lambda name=name: analyses_table(name)


def settings_table(settings: Settings, base: Settings | None) -> str:
    """Returns a table of settings: name, default, and what each is.

    Args:
        settings: at their defaults.
        base: settings that have a table of their own; those with the same default and description are left out.
    """
    known = {} if base is None else {name: (value, about) for name, value, about in base.help()}
    rows = [
        [f"`{name}`", f"`{value!r}`", _escaped(about)]
        for name, value, about in settings.help()
        if known.get(name) != (value, about) and name not in ("preset", "system")
    ]
    return "\n".join(markdown.table(["setting", "default", "what it is"], rows))


def _escaped(text: str) -> str:
    """Text without what Markdown would take for links, emphasis, tags or equations."""
    return re.sub(r"[\[*<$]", lambda match: f"&#{ord(match[0])};", text)


def presets_table(system: str) -> str:
    """Returns a table of the presets of a system: data, steps, objective."""
    rows = []
    for name in PRESETS:
        config = PRESETS[name].make()
        if config.system != system:
            continue
        objective = f"{config.objective.name}, K={config.objective.num_samples}"
        rows.append([f"`{name}`", f"{config.data.name}/{config.data.variant}", f"{config.training.steps:,}", objective])
    return "\n".join(markdown.table(["preset", "data", "steps", "trained by"], rows))


def analyses_table(system: str) -> str:
    """Returns a table of what `tfstruct-analyse` offers for a system, with the settings of each."""
    rows = []
    for name, part in SYSTEMS[system].analyses().items():
        settings = " ".join(f"`{key}={value}`" for key, value in analysis.settings_of(part).items())
        rows.append([f"`{name}`", _escaped(part.about), settings or "-"])
    return "\n".join(markdown.table(["analysis", "what it finds out", "settings"], rows))


def data_sets() -> str:
    """Returns a table of the data sets that are known by name."""
    rows = [
        [f"`{name}`", ", ".join(f"`{v}`" for v in SOURCES[name].variants), SOURCES[name].description]
        for name in SOURCES
    ]
    return "\n".join(markdown.table(["data set", "variants", "what it is"], rows))


def flags(folder: Path) -> str:
    """Returns a section for each program in a folder, with its flags as its source declares them.

    Programs are read, not imported: flags of two programs may have one name.
    """
    parts = []
    for path in sorted(folder.glob("*.py"), key=lambda path: (path.stem == "entry", path.stem)):
        rows = []
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("flags.DEFINE_"):
                # A flag of its own kind is made by a call, of name and help.
                arguments = node.args[0].args if isinstance(node.args[0], ast.Call) else node.args
                name, *others = (ast.unparse(part) for part in arguments)
                default = "None" if arguments is not node.args else others.pop(0)
                # The help is the first text; an enum has its choices before it, a number may have bounds after it.
                values = [ast.literal_eval(part) for part in others]
                choices = [value for value in values if isinstance(value, list)]
                about = next(value for value in values if isinstance(value, str))
                is_needed = any(keyword.arg == "required" for keyword in node.keywords)
                shown = "needed" if is_needed else "-" if default == "None" else f"`{_evaluated(default, tree)}`"
                text = "; ".join([*map(" or ".join, choices), about])
                rows.append([f"`--{ast.literal_eval(name)}`", shown, _escaped(text)])
        if rows:
            title = "Every program" if path.stem == "entry" else f"tfstruct-{path.stem.replace('_', '-')}"
            parts.append("\n".join([f"## {title}", "", *markdown.table(["flag", "default", "what it is"], rows)]))
    return "\n\n".join(parts)


def _evaluated(default: str, program: ast.Module) -> str:
    """A default as it is: that of `_DEFAULT`, settings that the program imports, and not the number of this machine."""
    if not default.startswith("_DEFAULT."):
        return "number of CPUs" if "cpu_count" in default else default
    for node in ast.walk(program):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.endswith(".settings"):
            settings = getattr(importlib.import_module(node.module), node.names[0].name)
            return repr(getattr(settings(()), default.removeprefix("_DEFAULT.")))
    raise ValueError(f"{default}: the program imports no settings")


def write_all(results_folder: PathLike, folder: PathLike) -> list[Path]:
    """Writes FINDINGS.md beside the results, and docs/results.md and all marked sections of documents under a folder.

    Raises:
        FileNotFoundError: one of the folders does not exist; nothing is then written.
        ValueError: a document that marks a section which does not exist.
    """
    for path, what in ((results_folder, "results"), (folder, "documents")):
        if not Path(path).is_dir():
            raise FileNotFoundError(f"there is no folder {str(path)!r} of {what}")
    named = [tables_lib.TABLES[name] for name in tables_lib.TABLES if name != tables_lib.TESTS]
    results = {table.name: read(results_folder, table) for table in named}
    marked = {path: path.read_text(encoding="utf-8") for path in pages(folder)}
    new = {path: filled(text, lambda name: section(name, results, folder)) for path, text in marked.items()}
    return [
        write_text(Path(results_folder) / "FINDINGS.md", documents.findings(named, results)),
        write_text(Path(folder) / "docs" / "results.md", documents.all_results(named, results)),
        *(write_text(path, text) for path, text in new.items()),
    ]

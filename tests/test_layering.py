"""A module imports only from what stands before it: data, models, inference, training, evaluation, serving."""

import ast
import pathlib

import pytest

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]

# Which groups each group may import, beside itself. The order of the rows is the direction.
BASE = ("schedules", "math", "random", "settings", "functional", "files", "registry", "markdown", "progress", "quiet")
LAYERS = {
    "data": (*BASE,),
    "distributions": (*BASE, "data"),
    "layers": (*BASE, "data", "distributions", "bijectors"),
    "bijectors": (*BASE, "data", "distributions"),
    "inference": (*BASE, "data", "distributions", "layers", "bijectors"),
    "plotting": ("files",),
    "models": (*BASE, "data", "distributions", "layers", "bijectors", "inference", "plotting"),
    "training": (*BASE, "data", "distributions", "layers", "bijectors", "inference", "models"),
    "evaluation": (
        *BASE, "data", "distributions", "layers", "bijectors", "inference", "models", "training", "plotting"
    ),
    "reporting": (
        *BASE, "data", "inference", "models", "training", "evaluation", "plotting", "",
    ),
    "serving": (
        *BASE, "data", "distributions", "layers", "bijectors", "inference", "models", "training", "evaluation"
    ),
    "benchmarks": (*BASE, "data", "distributions", "inference", "models", "training"),
    "trainers": (
        *BASE, "data", "distributions", "layers", "bijectors", "inference", "models", "training", "evaluation",
        "serving", "plotting", "benchmarks", "reporting", "",
    ),
    **{name: BASE for name in BASE},
    # The package itself: `tfstruct.load`.
    "": (
        "quiet", "data", "models", "serving.client", "serving.remote", "serving.restoring", "serving.bundle",
        "evaluation.report", "evaluation.detector",
    ),
}  # fmt: skip
# Single modules that may import less than their group.
MODULES = {
    "serving.contents": ("files",),
    "serving.card": ("files", "serving.contents"),
    "serving.trust": ("serving.contents",),
    "serving.inputs": ("files",),
    "serving.released": ("files", "serving.contents"),
    "serving.scoring": ("progress", "registry", "serving.inputs"),
    "serving.extras": (),
    "serving.errors": (),
    "serving.tensors": (),
    "serving.transports": ("serving.errors", "serving.extras", "serving.tensors", "serving.trust"),
    "serving.remote": (
        "files",
        "serving.client",
        "serving.contents",
        "serving.errors",
        "serving.scoring",
        "serving.transports",
    ),
    "data.storage": ("files",),
    "data.source": ("data.storage", "files", "registry"),
    "data.column_files": ("data.source", "data.storage"),
    "data.sources": ("data.column_files", "data.source", "data.storage", "files"),
    "serving.batch.job": (
        "files",
        "registry",
        "data.sources",
        "data.storage",
        "serving.client",
        "serving.contents",
        "serving.inputs",
    ),
    "serving.batch.results": ("serving.batch.job", "data.storage"),
    "serving.server.settings": (),
    "serving.server.web_page": (),
    "serving.server.metrics": (),
    "serving.client": (
        "files",
        "registry",
        "serving.card",
        "serving.contents",
        "serving.inputs",
        "serving.released",
        "serving.scoring",
        "serving.trust",
    ),
    "serving.warmup": ("files", "serving.contents"),
    "serving.verification": (
        "progress",
        "files",
        "serving.card",
        "serving.client",
        "serving.contents",
        "serving.trust",
        "serving.warmup",
    ),
    "training.checkpoint": ("files",),
}


def modules():
    """All modules of the package by their name without `tfstruct.`, with their files."""
    found = {}
    for folder, prefix in (
        (CHECKOUT / "tfstruct", ""),
        (CHECKOUT / "models", "models"),
        (CHECKOUT / "trainers", "trainers"),
    ):
        for path in folder.rglob("*.py"):
            parts = [part for part in (prefix, *path.relative_to(folder).with_suffix("").parts) if part]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name, source, known):
    """Names of the tfstruct modules that a module's source imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"{name} has a relative import in line {node.lineno}")
            for alias in node.names:
                # `from tfstruct.data import files` imports a module, `from tfstruct.data.files import read` a name.
                full = f"{node.module}.{alias.name}"
                names.add(full if full.removeprefix("tfstruct.") in known else node.module)
    return {
        full.removeprefix("tfstruct").removeprefix(".")
        for full in names
        if full == "tfstruct" or full.startswith("tfstruct.")
    }


def imports_another_system(name, imported):
    """Whether an import among the models leads into a system's folder from elsewhere; the package itself names all."""
    systems = {path.name for path in (CHECKOUT / "models").iterdir() if (path / "__init__.py").exists()}
    if not name.startswith("models.") or not imported.startswith("models."):
        return False
    own, other = name.split(".")[1], imported.split(".")[1]
    return other in systems and other != own


def violations(sources):
    """Returns `module -> imported` for every arrow that points back, of sources by module name."""
    found = []
    for name, source in sources.items():
        group = name.split(".")[0]
        allowed = MODULES.get(name, (*LAYERS[group], group))
        for imported in imports_of(name, source, sources):
            is_allowed = imported in allowed or imported.split(".")[0] in allowed
            if not is_allowed or imports_another_system(name, imported):
                found.append(f"{name or 'tfstruct'} -> {imported or 'tfstruct'}")
    return sorted(found)


def sources():
    return {name: path.read_text(encoding="utf-8") for name, path in modules().items()}


def test_no_import_points_back():
    assert violations(sources()) == []


def test_every_group_of_modules_has_its_place_in_the_table():
    assert {name.split(".")[0] for name in modules()} <= set(LAYERS)


def test_every_row_of_the_table_points_to_rows_above_it():
    order = [*BASE, "data", ("distributions", "layers", "bijectors"), "inference", "plotting", "models", "training"]
    order += ["evaluation", "serving", "trainers"]
    place = {}
    for number, names in enumerate(order):
        for name in names if isinstance(names, tuple) else (names,):
            place[name] = 0 if name in BASE else number
    for group, allowed in LAYERS.items():
        for other in allowed:
            if group in place and other in place:
                assert place[other] <= place[group], f"{group} -> {other}"


@pytest.mark.parametrize(
    ("name", "line", "violation"),
    [
        ("data.files", "from tfstruct.training import run", "data.files -> training.run"),
        ("data.files", "import tfstruct.models.presets", "data.files -> models.presets"),
        ("random", "from tfstruct.data.support import BINARY", "random -> data.support"),
        ("inference.likelihood", "from tfstruct.models.system import System", "inference.likelihood -> models.system"),
        ("layers.mlp", "def late():\n    from tfstruct import models", "layers.mlp -> models"),
        ("training.step", "from tfstruct import plotting", "training.step -> plotting"),
        ("training.run", "from tfstruct.evaluation import report", "training.run -> evaluation.report"),
        ("plotting.curves", "from tfstruct.training.logging import read_rows", "plotting.curves -> training.logging"),
        ("plotting.curves", "from tfstruct import random", "plotting.curves -> random"),
        ("serving.client", "from tfstruct import math", "serving.client -> math"),
        ("serving.client", "from tfstruct.serving import signatures", "serving.client -> serving.signatures"),
        ("serving.bundle", "from tfstruct import plotting", "serving.bundle -> plotting"),
        ("models.system", "import tfstruct", "models.system -> tfstruct"),
        ("models.system", "from tfstruct.models import graph_vae", "models.system -> models.graph_vae"),
        ("models.graph_vae.model", "import tfstruct.models.boltzmann_vae.prior",
         "models.graph_vae.model -> models.boltzmann_vae.prior"),
        ("", "from tfstruct.training import run", "tfstruct -> training.run"),
    ],
)  # fmt: skip
def test_a_planted_arrow_that_points_back_is_found(name, line, violation):
    planted = sources()
    planted[name] += f"\n{line}\n"
    assert violations(planted) == [violation]


def test_an_allowed_arrow_is_not_reported():
    planted = sources()
    planted["plotting.curves"] += "\nfrom tfstruct.files import replacing\n"
    planted["evaluation.pictures"] += "\nfrom tfstruct.plotting import images\n"
    assert violations(planted) == []


def test_relative_imports_are_refused():
    with pytest.raises(AssertionError, match="relative import in line 1"):
        imports_of("data.files", "from . import support", {})

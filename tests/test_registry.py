import ast
import pathlib

import pytest

import tfstruct
from tests.trainers import tiny
from tfstruct import registry
from tfstruct.models import build
from tfstruct.registry import Registry, did_you_mean, require_known


def test_values_stand_by_name_in_order():
    found = Registry("data set")
    assert found.register("b", 2) == 2
    found.register("a", 1)
    assert list(found.items()) == [("a", 1), ("b", 2)]
    assert "a" in found
    assert "c" not in found
    assert len(found) == 2


def test_a_name_is_taken_once():
    found = Registry("preset")
    found.register("a", 1)
    with pytest.raises(ValueError, match="preset 'a' exists already"):
        found.register("a", 2)
    assert found["a"] == 1


def test_an_unknown_name_is_refused_with_the_near_ones_and_all():
    found = Registry("table")
    for name in ("graph_vae/table1", "spvae/table1", "spvae/figure2"):
        found.register(name, name)
    message = r"unknown table 'spvae/table2'; did you mean spvae/table1.*\? There are graph_vae/table1, .*table1"
    with pytest.raises(ValueError, match=message):
        found["spvae/table2"]
    with pytest.raises(ValueError, match=r"unknown row 'x'\. There are none\."):
        require_known("x", [], "row")
    assert did_you_mean("quite else", ["a"]) == ". There are a."


PLUGIN = """
import numpy as np
from tfstruct.data import SOURCES, Source
from tfstruct.models.presets import PRESETS, register_preset

def read(data_dir):
    rows = np.random.default_rng(0).integers(0, 256, size=[60, 3, 4]).astype(np.uint8)
    return {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}

SOURCES.register("dice", Source(read, ("static", "grey"), "Thrown dice"))
settings = {
    "data.name": "dice", "data.variant": "static", "data.event_shape": (3, 4), "training.compiler": "graph",
    "training.steps": 2, "training.steps_per_call": 2, "training.validate_every": 2, "training.batch_size": 8,
}
register_preset("graph_vae/dice", "Thrown dice.", PRESETS["graph_vae/tiny"], settings)
"""


def test_a_module_of_the_current_folder_adds_a_data_set_and_a_preset(tmp_path):
    (tmp_path / "dice.py").write_text(PLUGIN)
    arguments = ["--import=dice", "--preset=graph_vae/dice", f"--workdir={tmp_path / 'run'}"]
    done = tiny.run_program("train", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = tiny.run_program("evaluate", f"--workdir={tmp_path / 'run'}", "--nopictures", "--import=dice", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "dice (static), test split, 10 images" in done.stdout
    done = tiny.run_program("train", *arguments[1:], cwd=tmp_path)
    assert done.returncode == 1
    assert "unknown preset 'graph_vae/dice'" in done.stderr
    done = tiny.run_program("train", "--import=dize", *arguments[1:], cwd=tmp_path)
    assert done.returncode == 1
    assert "there is no module 'dize' to import" in done.stderr


class _EntryPoint:
    def __init__(self, name, load):
        self.name, self.value, self.load, self.dist = name, f"{name}_module", load, None


def test_plugins_are_imported_once_when_a_name_is_looked_for(monkeypatch):
    found, loads = Registry("thing"), []

    def load():
        loads.append(1)
        found.register("theirs", 2)

    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [_EntryPoint("theirs", load)])
    monkeypatch.setattr(registry, "loaded_plugins", set())
    found.register("ours", 1)
    assert found["ours"] == 1
    assert loads == []  # what is there needs no plugin
    assert found["theirs"] == 2
    assert list(found) == ["ours", "theirs"]
    assert loads == [1]


def test_a_plugin_that_cannot_be_imported_is_named(monkeypatch):
    def load():
        raise SyntaxError("half a line")

    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [_EntryPoint("broken", load)])
    monkeypatch.setattr(registry, "loaded_plugins", set())
    with pytest.raises(ImportError, match="broken_module, the tfstruct plugin 'broken' of .*half a line"):
        list(Registry("thing"))


def test_the_package_names_what_it_offers():
    assert {"data", "list_models", "load", "models"} <= set(dir(tfstruct))
    assert tfstruct.models.build is build


def test_names_that_begin_alike_are_suggested_first():
    known = ["graph_vae/mnist", "graph_iaf_vae/mnist", "spvae/mnist_discrete", "spvae/mnist_missing"]
    hint = registry.did_you_mean("spvae/mnist", known)
    assert hint.startswith("; did you mean spvae/mnist_discrete or spvae/mnist_missing or graph_vae/mnist")


def test_at_most_five_near_names_are_suggested_and_long_lists_are_not_printed():
    known = [f"graph_vae/mnist_{number}" for number in range(100)]
    assert registry.did_you_mean("graph_vae/mnist", known).count("graph_vae/") == 5
    assert registry.did_you_mean("xyz", known) == f". There are 100, such as {', '.join(known[:5])}."


def test_the_package_gives_type_checkers_the_names_that_it_imports_late():
    tree = ast.parse(pathlib.Path(tfstruct.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    named = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert named == set(tfstruct.__all__) - {"__version__"}

"""Notebooks: the files with outputs are those of the sources, and every one runs."""

import importlib.util

import jupytext
import nbformat
import pytest

from tests.trainers import tiny

FOLDER = tiny.CHECKOUT / "docs/notebooks"
_spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
execute = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(execute)
EVERY_NOTEBOOK = pytest.mark.parametrize("name", execute.names())


def test_every_notebook_stands_in_the_list():
    page = (tiny.CHECKOUT / "docs/notebooks.md").read_text("utf-8")
    assert len(execute.names()) >= 7
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(execute.names())
    assert [name for name in execute.names() if f"(notebooks/{name}.ipynb)" not in page] == []


@EVERY_NOTEBOOK
def test_a_notebook_with_its_outputs_is_that_of_its_source(name):
    written = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(written)
    source = jupytext.read(FOLDER / f"{name}.py")
    assert [(cell.cell_type, cell.source) for cell in written.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ], f"run python docs/notebooks/execute.py {name}"
    outputs = [output for cell in written.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = (FOLDER / f"{name}.ipynb").read_text("utf-8")
    assert len(text) < 300_000
    assert not [place for place in ("/root/", "/home/", "/work/", "Warning") if place in text]


@pytest.mark.slow
@EVERY_NOTEBOOK
def test_a_notebook_runs(name):
    found = execute.execute(name)
    assert any(cell.outputs for cell in found.cells if cell.cell_type == "code")

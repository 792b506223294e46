"""Examples run: those of docstrings as they stand, the Python of the documents on tiny models."""

import contextlib
import doctest
import importlib
import io
import re

import numpy as np
import pytest

from tests import documented, test_layering
from tfstruct.evaluation import report
from tfstruct.models import presets
from tfstruct.serving import bundle
from tfstruct.training import run as training

WITH_EXAMPLES = sorted(
    f"tfstruct.{name}" for name, path in test_layering.modules().items() if ">>> " in path.read_text(encoding="utf-8")
)
# `tfstruct.connect` needs a server: tests/serving/test_serve_program.py.
BLOCKS = [
    block
    for page in documented.pages()
    for block in documented.blocks(page, "python")
    if "tfstruct.connect(" not in block.text
]
# What stands for long runs.
SHORTER = {
    '"graph_vae/mnist_quick"': '"graph_vae/tiny"',
    "epochs=2": "epochs=1, steps_per_epoch=2",
    "num_temperatures=1_000, num_chains=1_000": "num_temperatures=20, num_chains=20",
}


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of_docstrings_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A current folder with the exported model of which the documents speak."""
    folder = tmp_path_factory.mktemp("documents")
    short = ["training.steps=2", "training.steps_per_call=2", "training.validate_every=2", "training.compiler=graph",
             "export.num_samples=2", "export.chunk=2", "evaluation.num_samples=2"]  # fmt: skip
    training.train(presets.get("graph_vae/tiny", short), folder / "runs/quickstart", strategy="none")
    bundle.export(report.TrainedRun(str(folder / "runs/quickstart")), folder / "runs/quickstart/export/1")
    return folder


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.page)
def test_the_python_of_the_documents_runs(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    text = block.text
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, block.page, "exec"), {})
    if block.output is not None:
        np.testing.assert_allclose(numbers(printed.getvalue()), numbers(block.output), rtol=1e-4)


def test_the_documents_have_their_examples_and_all_of_what_is_replaced():
    assert len(BLOCKS) >= 15
    assert sum(block.output is not None for block in BLOCKS) == 1
    for part in SHORTER:
        assert sum(part in block.text for block in BLOCKS) == 1

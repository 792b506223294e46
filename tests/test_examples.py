"""Examples run: those of docstrings as they stand, and the Python of the README on tiny models."""

import doctest
import importlib
import re

import pytest

from tests import test_layering
from tests.trainers import tiny
from tfstruct.evaluation import report
from tfstruct.models import presets
from tfstruct.serving import bundle
from tfstruct.training import run as training

WITH_EXAMPLES = sorted(
    f"tfstruct.{name}" for name, path in test_layering.modules().items() if ">>> " in path.read_text(encoding="utf-8")
)
BLOCKS = re.findall(r"^```python\n(.*?)^```", (tiny.CHECKOUT / "README.md").read_text(encoding="utf-8"), re.S | re.M)
# What stands for the long runs of the README.
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
    """A current folder with the exported models of which the README speaks."""
    folder = tmp_path_factory.mktemp("readme")
    short = ["training.steps=2", "training.steps_per_call=2", "training.validate_every=2", "training.compiler=graph",
             "export.num_samples=2", "export.chunk=2", "evaluation.num_samples=2"]  # fmt: skip
    for name, preset in (("runs/quickstart", "graph_vae/tiny"), ("runs/a", "spvae/tiny")):
        training.train(presets.get(preset, short), folder / name, strategy="none")
        bundle.export(report.TrainedRun(str(folder / name)), folder / name / "export/1")
    return folder


def block_id(block):
    return re.search(r"^(?:model|rbm|graph|prior|flow|detector) = (\S+)", block, re.M)[1].split("(")[0]


@pytest.mark.parametrize("block", BLOCKS, ids=block_id)
def test_the_python_of_the_readme_runs(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for long, short in SHORTER.items():
        block = block.replace(long, short)
    exec(compile(block, "README.md", "exec"), {})


def test_the_readme_has_its_examples_and_all_of_what_is_replaced():
    assert len(BLOCKS) == 10
    for part in SHORTER:
        assert sum(part in block for block in BLOCKS) == 1

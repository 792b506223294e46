"""The product code is free of type errors: settings, attributes, arguments and None.

Tensors are `Any`: the stubs of TensorFlow that type checkers bring refuse `x[..., 0]`, and TensorFlow Probability has
none.
"""

import json
import pathlib
import shutil
import subprocess
import sys

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
UNTYPED = (
    "tensorflow",
    "tensorflow_probability",
    "tensorflow_probability/bijectors",
    "tensorflow_probability/distributions",
)
# What a check that finds nothing must find all the same.
PLANTED = """
from tfstruct.models.graph_vae.config import Config


def number_of_nodes(config: Config) -> int:
    return config.model.num_nods
"""


def test_the_type_checker_finds_what_is_planted_and_nothing_else(tmp_path):
    package = tmp_path / "tfstruct"
    ignore = shutil.ignore_patterns("__pycache__", "embedded")
    for folder, inside in (("tfstruct", "."), ("models", "models"), ("trainers", "trainers")):
        shutil.copytree(CHECKOUT / folder, package / inside, ignore=ignore, dirs_exist_ok=True)
    (package / "planted.py").write_text(PLANTED)
    for name in UNTYPED:
        stub = tmp_path / "typings" / name / "__init__.pyi"
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text("from typing import Any\n\ndef __getattr__(name: str) -> Any: ...\n")
    settings = {"include": ["tfstruct"], "stubPath": "typings", "typeCheckingMode": "basic"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    report = json.loads(done.stdout)
    errors = [
        f"{pathlib.Path(entry['file']).relative_to(package)}:{entry['range']['start']['line'] + 1} {entry['message']}"
        for entry in report["generalDiagnostics"]
        if entry["severity"] == "error"
    ]
    assert report["summary"]["filesAnalyzed"] > 100
    (found,) = [error for error in errors if error.startswith("planted.py")]
    assert 'attribute "num_nods"' in found
    assert [error for error in errors if error != found] == []

"""The wheel adds one top-level name and holds what the checkout has."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml

import tfstruct
from tests.trainers import tiny

CHECKOUT = tiny.CHECKOUT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built offline from a copy without left-overs of earlier builds."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, copy)
    for name in ("tfstruct", "models", "trainers", "saved_models", "tests"):
        shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    # Not pip: without a network it cannot make the isolated environment, and needs no less without one.
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(folder)],
        cwd=copy, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def info(wheel, name):
    (path,) = [entry for entry in wheel.namelist() if re.fullmatch(rf"tfstruct-[^/]*\.dist-info/{name}", entry)]
    return wheel.read(path).decode()


def test_the_only_top_level_name_is_tfstruct(wheel):
    assert info(wheel, "top_level.txt").split() == ["tfstruct"]
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tfstruct"}


def test_every_module_and_data_file_of_the_checkout_is_inside(wheel):
    expected = set()
    for folder, inside in (("tfstruct", "tfstruct"), ("models", "tfstruct/models"), ("trainers", "tfstruct/trainers")):
        root = CHECKOUT / folder
        for path in root.rglob("*"):
            if path.is_file() and path.suffix in (".py", ".xz", ".typed", ".html", ".css", ".js", ".json", ".jinja"):
                expected.add(f"{inside}/{path.relative_to(root).as_posix()}")
    models = CHECKOUT / "saved_models"
    expected |= {f"tfstruct/saved_models/{path.relative_to(models)}" for path in models.rglob("*") if path.is_file()}
    names = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert names == expected
    for name in ("py.typed", "models/graph_vae/model.py", "trainers/train.py", "serving/client.py"):
        assert f"tfstruct/{name}" in names
    assert [name for name in names if name.startswith("tfstruct/data/embedded/") and name.endswith(".xz")]


def test_an_installed_package_finds_its_pretrained_models(wheel, tmp_path):
    wheel.extractall(tmp_path)
    script = """
import sys; sys.path.insert(0, sys.argv[1])
import tfstruct
assert tfstruct.__file__.startswith(sys.argv[1]), tfstruct.__file__
print(*tfstruct.list_models())
print(tfstruct.load("graph_vae/mnist").path)
"""
    printed = tiny.run_python(script, tmp_path).stdout.splitlines()
    assert printed[0].split() == tfstruct.list_models()
    assert printed[1].startswith(str(tmp_path / "tfstruct/saved_models/graph_vae/mnist"))


def test_tests_are_not_installed(wheel):
    assert not [name for name in wheel.namelist() if "test" in name.split("/")[-1] or name.startswith("tests/")]


def test_every_program_is_a_console_script_with_a_run_function(wheel):
    scripts = dict(line.split(" = ") for line in info(wheel, "entry_points.txt").splitlines() if " = " in line)
    programs = {path.stem for path in (CHECKOUT / "trainers").glob("*.py")} - {"__init__", "entry"}
    assert scripts == {f"tfstruct-{name.replace('_', '-')}": f"tfstruct.trainers.{name}:run" for name in programs}
    for name in programs:
        tree = ast.parse((CHECKOUT / f"trainers/{name}.py").read_text())
        assert "run" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_version_is_the_same_everywhere(wheel):
    (found,) = re.findall(r"^Version: (.+)$", info(wheel, "METADATA"), flags=re.MULTILINE)
    (stated,) = re.findall(r'version="([^"]+)"', (CHECKOUT / "setup.py").read_text())
    cited = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    assert found == stated == tfstruct.__version__ == cited["version"]
    assert cited["license"] == "Apache-2.0"


def test_the_continuous_integration_runs_on_every_python_that_the_package_names(wheel):
    metadata = info(wheel, "METADATA")
    named = re.findall(r"^Classifier: Programming Language :: Python :: (3\.\d+)$", metadata, flags=re.MULTILINE)
    workflow = yaml.safe_load((CHECKOUT / ".github/workflows/tests.yml").read_text())
    job = workflow["jobs"]["tests"]
    assert named == job["strategy"]["matrix"]["python-version"]
    assert {"run": ".ci/run"} in job["steps"]
    assert f"Requires-Python: >={named[0]}" in metadata


def test_importing_the_package_does_not_import_tensorflow():
    tiny.run_python("import sys, tfstruct; assert 'tensorflow' not in sys.modules, 'imported'")

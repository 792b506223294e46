"""Rules that the whole checkout keeps."""

import re
import subprocess
import sys

from tests.trainers import tiny

CHECKOUT = tiny.CHECKOUT
LARGEST_FILE, LARGEST_CHECKOUT = 400, 40 * 2**20
PACKAGE = ("tfstruct", "models", "trainers")


def tracked_files():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=True).stdout
    return [CHECKOUT / name for name in listing.decode().split("\0") if name]


def package_files():
    return [path for folder in PACKAGE for path in (CHECKOUT / folder).rglob("*.py")]


def test_no_file_of_the_package_is_longer_than_400_lines():
    files = package_files()
    assert len(files) > 30
    too_long = {path.name: lines for path in files if (lines := len(path.read_text().splitlines())) > LARGEST_FILE}
    assert not too_long


def test_no_module_is_called_by_a_name_that_says_nothing():
    empty = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [str(path) for path in package_files() if path.stem in empty or path.parent.name in empty]


def test_no_test_replaces_what_is_private():
    tests = list((CHECKOUT / "tests").rglob("*.py"))
    assert len(tests) > 100
    pattern = re.compile(r"""(setattr|delattr|patch\.object)\([^,]+, ["']_[a-zA-Z]""")
    assert not [path.name for path in tests if pattern.search(path.read_text())]


def test_every_module_begins_with_a_docstring():
    assert not [str(path) for path in package_files() if not path.read_text().startswith('"""')]


def test_no_module_pickles_or_evaluates():
    for path in package_files():
        text = path.read_text()
        for word in ("import pickle", "allow_pickle=True", "eval(", "exec(", "yaml.load"):
            # `literal_eval(` reads literals and calls nothing.
            assert word not in text.replace("literal_eval(", ""), f"{word} in {path}"


def test_ruff_finds_nothing():
    program = tiny.PROGRAMS / "ruff"
    command = [str(program)] if program.exists() else [sys.executable, "-m", "ruff"]
    done = subprocess.run(
        [*command, "check", "--no-cache", "."], cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_tracked_files_are_smaller_than_40_megabytes_together():
    files = tracked_files()
    assert len(files) > 50
    total = sum(path.stat().st_size for path in files if path.is_file())
    assert total < LARGEST_CHECKOUT, f"{total / 2**20:.1f} MiB"


def test_no_build_product_is_tracked():
    tracked = [path.relative_to(CHECKOUT).as_posix() for path in tracked_files()]
    assert not [name for name in tracked if name.endswith((".pyc", ".egg-info")) or "__pycache__" in name]

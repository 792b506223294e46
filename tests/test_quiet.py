"""TensorFlow is imported without its messages, unless the user asked for them."""

import os
import subprocess
import sys

import pytest

_FAKE = """
import os, sys, types
os.write(2, b"chatter of the import\\n")
if os.environ.get("FAIL"): raise ImportError("no such library")
config = types.SimpleNamespace(list_physical_devices=lambda: [])
"""
_SCRIPT = "from tfstruct import quiet; quiet.import_tensorflow(); import os; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"


@pytest.mark.parametrize(
    ("changes", "level", "is_heard"),
    [({}, "3", False), ({"TF_CPP_MIN_LOG_LEVEL": "2"}, "2", False), ({"TF_CPP_MIN_LOG_LEVEL": "0"}, "0", True),
     ({"FAIL": "1"}, None, True)],
)  # fmt: skip
def test_messages_are_held_back_unless_wanted_or_the_import_fails(changes, level, is_heard, tmp_path):
    (tmp_path / "tensorflow.py").write_text(_FAKE)
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), **changes}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ("chatter of the import" in done.stderr) == is_heard, done.stderr
    assert (done.stdout.strip() or None) == level

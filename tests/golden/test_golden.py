"""The first steps of every system's training give the numbers that were recorded."""

import importlib.util
import json
import pathlib

import pytest

_SPEC = importlib.util.spec_from_file_location("regenerate", pathlib.Path(__file__).with_name("regenerate.py"))
regenerate = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(regenerate)


@pytest.mark.parametrize("preset", regenerate.PRESETS)
def test_first_twenty_steps_have_the_recorded_loss(preset):
    recorded = json.loads(regenerate.PATH.read_text(encoding="utf-8"))["losses"][preset]
    assert regenerate.mean_loss(preset) == pytest.approx(recorded, rel=1e-4)

"""Runs of an earlier version, stopped at step 4 of 8, are evaluated and go on as that version did.

`tests/golden/runs` was written by commit aff45be: workdirs of twelve binary variables without their environment, and in
`expected.json` what that version measured of them, stopped and at their end.
"""

import json
import pathlib
import shutil

import pytest

from tfstruct.evaluation import report
from tfstruct.models.config import SCHEMA_VERSION
from tfstruct.training import run as training
from tfstruct.training.workdir import Workdir

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden/runs"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
# Of log-likelihoods around -10: other processors round otherwise.
RESOLUTION = 1e-3


@pytest.mark.parametrize("name", EXPECTED)
def test_a_run_of_an_earlier_version_is_evaluated_and_goes_on(tmp_path, name):
    workdir = shutil.copytree(GOLDEN / name, tmp_path / name)
    config = workdir / "config.json"
    assert "schema_version" not in json.loads(config.read_text())
    config.write_text(config.read_text().replace("ROWS", str(GOLDEN / "rows.npz")))
    for state, steps in (("stopped", 4), ("final", 8)):
        run = report.TrainedRun(workdir)
        found = report.evaluate(run)["mean"]
        assert run.trained_steps == steps
        for metric, expected in EXPECTED[name][state].items():
            assert found[metric] == pytest.approx(expected, abs=RESOLUTION), (state, metric)
        if state == "stopped":
            training.train(Workdir(workdir).config(), workdir, strategy="none", resume="must")
            for path in workdir.glob("evaluation*"):
                path.unlink()
    assert json.loads(config.read_text())["schema_version"] == SCHEMA_VERSION
    differences = [abs(EXPECTED[name]["final"][metric] - value) for metric, value in EXPECTED[name]["stopped"].items()]
    assert max(differences) > 10 * RESOLUTION  # the four steps would be missed

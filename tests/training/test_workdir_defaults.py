import json

import numpy as np
import pytest

from tests.trainers import tiny
from tfstruct.evaluation import report
from tfstruct.models import presets, registry
from tfstruct.training import run as training
from tfstruct.training import trainer
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.workdir import Workdir

LACKING = {"model.flow", "training.structure_fraction", "optimizer.ema_momentum", "data.train_images"}


def older(text):
    """A config's JSON as a version wrote it before it had the settings of LACKING, and no schema."""
    values = json.loads(text)
    del values["schema_version"]
    for name in LACKING:
        group, last = name.split(".")
        del values[group][last]
    return json.dumps(values)


@pytest.mark.parametrize("preset", ["vae/tiny", "graph_vae/mnist_tuned"])
def test_a_config_of_an_older_version_means_what_was_done_then(preset):
    config = presets.get(preset, ["optimizer.ema_momentum=0.0"])
    assert registry.parse_config(older(config.to_json())) == config
    assert config.model.flow.steps == config.training.structure_fraction == config.data.train_images == 0


def test_a_circuit_of_an_older_config_multiplies_every_choice_of_nodes_and_shares_no_vae():
    config = presets.get("spvae/tiny")
    values = json.loads(config.to_json())
    for name in ("products", "leaf_vaes"):
        del values["model"][name]
    assert registry.parse_config(json.dumps(values)) == config


def test_a_setting_that_there_is_not_is_refused_with_the_file(tmp_path):
    values = json.loads(tiny.config().to_json())
    values["model"]["num_nods"] = 3
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="config.json: unknown setting 'model.num_nods'; near it: model.num_nodes"):
        Workdir(tmp_path).config()


# A folder of an older version ---------------------------------------------------------------------------------------


def make(file):
    course = ("training.steps=4", "training.steps_per_call=2", "training.validate_every=2")
    options = ("training.checkpoint_minutes=0.0", "model.batch_norm=False")
    return tiny.file_config(file, *course, *options, preset="vae/tiny")


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory):
    """A run that stopped at step 2 of 4, whose config.json was written by an older version."""
    workdir = tmp_path_factory.mktemp("older") / "run"
    save = trainer.Trainer.save

    def save_and_stop(run):
        save(run)
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "save", save_and_stop)
        with pytest.raises(StoppedError):
            training.train(make(file), workdir)
    (workdir / "config.json").write_text(older((workdir / "config.json").read_text()))
    return workdir


def test_a_run_of_an_older_version_is_evaluated_and_goes_on_to_its_end(file, folder, capsys):
    assert Workdir(folder).config() == make(file).replace({"data.event_shape": (12,)})
    run = report.TrainedRun(str(folder))
    assert run.model.flows == []
    evaluation = report.evaluate(run)
    assert evaluation["trained_steps"] == 2
    assert np.isfinite(evaluation["mean"]["log_likelihood"])

    assert training.train(make(file), folder, resume="must").step == 4
    assert "at step 2 of 4" in capsys.readouterr().out
    assert Checkpoints(folder / "checkpoints").steps() == [2, 4]
    assert "flow" in json.loads((folder / "config.json").read_text())["model"]

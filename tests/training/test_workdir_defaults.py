import json

import numpy as np
import pytest

from tests.trainers import tiny
from tfstruct import config as config_lib
from tfstruct.evaluation import report
from tfstruct.models import presets
from tfstruct.training import run as training
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.workdir import Workdir

FLOW_KEYS = {f"model.flow.{name}" for name in ("steps", "hidden_units", "context_dim", "activation", "gate_bias")}
ADDED = {*FLOW_KEYS, "training.structure_fraction"}


def older(config):
    """A config as the version before flows and phases would have written it."""
    config = config_lib.copy(config)
    del config.model["flow"]
    del config.training["structure_fraction"]
    return config


def test_a_config_without_flow_and_phases_gets_those_that_mean_what_was_done_then():
    config = tiny.config()
    found = presets.with_defaults(older(config))
    assert found.model.flow.steps == 0
    assert found.training.structure_fraction == 0.0
    assert config_lib.to_json(found) == config_lib.to_json(config)


def test_a_config_that_says_what_it_does_stays_as_it_is():
    config = presets.get("graph_iaf_vae/tiny", ["model.flow.steps=3", "training.structure_fraction=0.25"])
    before = config_lib.to_json(config)
    assert config_lib.to_json(presets.with_defaults(config)) == before


@pytest.mark.parametrize(
    "lacking", ["model.share_top_down", "training.patience", "optimizer.clip_norm", "export.chunk"]
)
def test_nothing_else_is_added(lacking):
    config = older(tiny.config())
    group, name = lacking.split(".")
    del config[group][name]
    before = set(config_lib.keys(config))
    after = set(config_lib.keys(presets.with_defaults(config)))
    assert after - before == ADDED
    assert not before - after
    assert lacking not in after


def test_another_system_gets_no_flow():
    config = older(tiny.config())
    config.system = "boltzmann_vae"
    before = set(config_lib.keys(config))
    assert set(config_lib.keys(presets.with_defaults(config))) - before == {"training.structure_fraction"}


def test_a_circuit_of_an_older_config_multiplies_every_choice_of_nodes_and_shares_no_vae():
    config = presets.get("spvae/tiny")
    before = config_lib.to_json(config)
    for name in ("products", "leaf_vaes"):
        del config.model[name]
    assert config_lib.to_json(presets.with_defaults(config)) == before


def test_two_configs_do_not_share_the_defaults():
    first, second = (presets.with_defaults(older(tiny.config())) for _ in range(2))
    first.model.flow.steps = 7
    assert second.model.flow.steps == 0


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
    save = training._Run.save

    def save_and_stop(run):
        save(run)
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Run, "save", save_and_stop)
        with pytest.raises(StoppedError):
            training.train(make(file), workdir)
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"].pop("flow")["steps"] == 0
    assert config["training"].pop("structure_fraction") == 0.0
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


def test_a_run_of_an_older_version_is_evaluated_and_goes_on_to_its_end(file, folder, capsys):
    config = make(file)
    config.data.event_shape = (12,)
    assert config_lib.differences(Workdir(folder).config(), config) == []
    run = report.TrainedRun(str(folder))
    assert run.model.flows == []
    evaluation = report.evaluate(run)
    assert evaluation["trained_steps"] == 2
    assert np.isfinite(evaluation["mean"]["log_likelihood"])

    assert training.train(make(file), folder, resume="must").step == 4
    assert "at step 2 of 4" in capsys.readouterr().out
    assert Checkpoints(folder / "checkpoints").steps() == [2, 4]
    assert ADDED <= set(config_lib.keys(config_lib.from_json((folder / "config.json").read_text())))

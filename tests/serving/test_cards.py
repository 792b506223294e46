"""What stands on the card of a bundle."""

import json
import shutil
import types
from typing import get_args

import pytest

import tfstruct
from tests.trainers import tiny
from tfstruct import files
from tfstruct.data.support import SUPPORTS
from tfstruct.models import presets
from tfstruct.serving import card as card_lib
from tfstruct.serving import cards, page
from tfstruct.serving.contents import DamagedBundleError


def test_the_recipe_evaluates_as_was_done():
    given = ["--workdir", "runs/a", "--num_samples=7", "--set", "evaluation.chunk=3", "--data_dir=/x", "--nopictures"]
    expected = ["--num_samples=7", "--set=evaluation.chunk=3", "--nopictures"]
    assert cards._evaluation_options(["tfstruct-evaluate", *given]) == expected
    assert cards._evaluation_options(["my_script.py", *given]) == []


def made_by(monkeypatch, *, trained, evaluated, exported):
    """The recipe of a run whose commands were given at these commits; None: not recorded."""
    monkeypatch.setattr(cards, "environment", lambda: {"commit": exported})
    folder = types.SimpleNamespace(environment=lambda: {"commit": trained})
    evaluation = {"command": ["tfstruct-evaluate", "--workdir=a"], "environment": {"commit": evaluated}}
    return cards._recipe(types.SimpleNamespace(config=presets.get("vae/tiny"), folder=folder), evaluation, "int8")


def test_the_recipe_names_the_commits_by_which_a_training_began(monkeypatch):
    monkeypatch.setattr(cards, "environment", lambda: {"commit": "c3"})
    processes = [{"commit": "a1"}, {"commit": "b2"}, {"commit": "b2"}, {"commit": "c3"}]
    folder = types.SimpleNamespace(environment=lambda: {"commit": "c3", "earlier": processes})
    lines = cards._recipe(types.SimpleNamespace(config=presets.get("vae/tiny"), folder=folder), None, "int8")
    assert lines[:2] == ["# trained until it was stopped by a1, then b2, and resumed by the next", "git checkout c3"]


def test_the_recipe_goes_to_the_commit_of_each_command(monkeypatch):
    train = "tfstruct-train --preset=vae/tiny --workdir=RUN"
    evaluate = "tfstruct-evaluate --workdir=RUN"
    export = "tfstruct-export --workdir=RUN --output=BUNDLE --weights_dtype=int8"
    one = made_by(monkeypatch, trained="a1", evaluated="a1", exported="a1")
    assert one == ["git checkout a1", train, evaluate, export]
    several = made_by(monkeypatch, trained="a1", evaluated="a1", exported="b2-dirty")
    changed = "git checkout b2  # with changes that were not committed"
    assert several == ["git checkout a1", train, evaluate, changed, export]
    unknown = made_by(monkeypatch, trained=None, evaluated="b2", exported="b2")
    assert unknown == ["# the commit was not recorded", train, "git checkout b2", evaluate, export]


# The schema ----------------------------------------------------------------------------------------------------------


def test_cards_of_all_bundles_of_the_checkout_and_of_a_model_that_was_not_evaluated_are_right(folder):
    paths = [folder / "card.json", *(tiny.CHECKOUT / "saved_models").glob("*/*/*/card.json")]
    assert len(paths) >= 7
    for path in paths:
        card_lib.check(json.loads(path.read_text()), path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema_version: .*less than or equal to 1, found '2'"),
        ({"support": "grey"}, "support: .*'binary'.*found 'grey'"),
        ({"num_samples": "100"}, "num_samples: .*integer, found '100'"),
        ({"num_samples": 0}, "num_samples: "),
        ({"event_shape": [28, None]}, "event_shape.1: "),
        ({"signatures": {"log_prob": {"inputs": {}}}}, "signatures.log_prob.outputs: "),
        ({"metrics": {"log_likelihood": None}}, "metrics.log_likelihood: "),
        ({"preset": None}, "preset: "),
    ],
)
def test_a_card_that_is_not_what_its_schema_says_is_refused_by_the_name_of_the_part(folder, tmp_path, changes, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    card = json.loads((copy / "card.json").read_text())
    (copy / "card.json").write_text(json.dumps(card | changes))
    files.write_checksums(copy)
    with pytest.raises(DamagedBundleError, match=rf"card\.json: {message}"):
        tfstruct.load(copy)


def test_the_schema_has_the_supports_that_there_are():
    assert set(get_args(card_lib.Card.model_fields["support"].annotation)) == set(SUPPORTS)


def test_what_a_later_version_adds_to_a_card_does_not_hurt(folder):
    card = json.loads((folder / "card.json").read_text())
    card_lib.check(card | {"later": {"rows": 100}}, "card.json")


# The page ------------------------------------------------------------------------------------------------------------


def test_the_page_for_people_says_what_the_card_has(folder):
    card = json.loads((folder / "card.json").read_text())
    text = (folder / "MODEL_CARD.md").read_text()
    assert text == page.to_markdown(card)
    lines = text.splitlines()
    assert lines[:3] == ["# graph_vae/tiny", "", presets.PRESETS["graph_vae/tiny"].description]
    assert "| an observation | [4], 0 or 1 |" in lines
    assert "These weights were not evaluated." in lines
    assert "| `elbo` | `seed` [N], `x` [N, 4] | `distortion` [N], `elbo` [N], `rate` [N] | bound |" in lines
    million = f"{card['flop_of_score'] / 1e6:.3g} million floating-point operations"
    assert f"A score takes the encoder once and the decoder 200 times for each row, some {million}." in lines
    assert all(f"    {command}" in lines for command in card["recipe"])
    assert any(line.startswith("* Variational Autoencoders with Jointly Optimized") for line in lines)


def test_the_page_tells_what_was_measured_and_what_is_flagged(folder):
    card = json.loads((folder / "card.json").read_text())
    data = {"images": 1_000, "split": "test", "name": "mnist", "variant": "static"}
    metrics = {"log_likelihood": -80.125, "std_err": 0.25, "num_samples": 5_000, "flags": ["loose: why"], "data": data}
    metrics |= {"elbo": -84.0, "bits_per_dim": 0.1475, "settings": {"posterior_temperatures": 25}}
    rounding = {"log_prob_change": -0.01, "std_err": 0.005, "rows": 200}
    text = page.to_markdown(card | {"metrics": metrics, "rounding": rounding, "target": "log p(a | b)"})
    expected = {
        "| model of | log p(a \\| b) |",
        "log p(a | b) of 1,000 test images of mnist/static: -80.12 +- 0.25 nats, by importance sampling with K=5,000, "
        "posterior_temperatures 25. The error is the standard error over images, of one training.",
        "ELBO -84.00 nats, 0.1475 bits/dim.",
        "* flagged: loose: why",
        "Storing the weights so changes it by -0.0100 +- 0.0050 nats, mean of 200 images.",
    }
    assert expected <= set(text.splitlines())

"""The bundles in the checkout are whole, give their golden values, and are as good as their cards say."""

import json
import pathlib

import numpy as np
import pytest

import tfstruct
from tfstruct.data import load
from tfstruct.serving import verification
from tfstruct.serving.page import to_markdown

ROOT = pathlib.Path(__file__).resolve().parents[2] / "saved_models"
BUNDLES = sorted(card.parent for card in ROOT.rglob("card.json"))
# The data of the others are not in the checkout.
OF_MNIST = [folder for folder in BUNDLES if json.loads((folder / "card.json").read_text())["data"]["name"] == "mnist"]


def test_there_are_bundles():
    assert BUNDLES


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_committed_bundle_has_its_files_and_golden_values(folder):
    verification.verify(folder)
    assert (folder / "MODEL_CARD.md").read_text() == to_markdown(json.loads((folder / "card.json").read_text()))


@pytest.mark.parametrize("folder", OF_MNIST, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_committed_bundle_scores_test_images_as_its_card_says(folder):
    model = tfstruct.load(folder)
    card = model.card
    data = load("mnist", card["data"]["variant"])
    assert data.checksum == card["data"]["checksum"]
    scores = model.log_prob(data.test[:200])["log_prob"]
    error = scores.std(ddof=1) / np.sqrt(len(scores))
    # The card's number has more samples a row, its ELBO fewer; grey or wrong weights cost a third and more.
    metrics = card["metrics"]
    assert error < 0.04 * abs(metrics["log_likelihood"])
    assert metrics["elbo"] - 5 * error < scores.mean() < metrics["log_likelihood"] + 5 * error


def test_models_are_listed_by_name_wherever_they_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {f"{folder.parents[1].name}/{folder.parent.name}" for folder in BUNDLES}
    assert tfstruct.list_models() == sorted(names)
    for folder in ("own/model/1", "own/model/2", "own/other/latest"):
        (tmp_path / "saved_models" / folder).mkdir(parents=True)
        (tmp_path / "saved_models" / folder / "card.json").touch()
    assert set(tfstruct.list_models()) == {*names, "own/model"}
    with pytest.raises(FileNotFoundError, match=r"no exported model 'graph_vea/mnist'; did you mean graph_vae/mnist"):
        tfstruct.load("graph_vea/mnist")
    with pytest.raises(
        FileNotFoundError, match="no exported model 'zzz'. There are .*own/model.*Looked for a card.json"
    ):
        tfstruct.load("zzz")


def test_a_named_model_of_the_checkout_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tfstruct.load("graph_vae/mnist").card["preset"] == "graph_vae/mnist_tuned"

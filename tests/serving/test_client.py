import json
import pathlib
import shutil

import numpy as np
import pytest

import tfstruct
from tfstruct import files
from tfstruct.serving import client, contents

BAD_ROWS = {
    "one row without its axis": (np.zeros([4]), r"shape \[N, 4\] with N >= 1, found \[4\]"),
    "another width": (np.zeros([2, 5]), r"found \[2, 5\]"),
    "another rank": (np.zeros([2, 2, 2]), r"found \[2, 2, 2\]"),
    "no rows": (np.zeros([0, 4]), r"found \[0, 4\]"),
    "nan": (np.full([2, 4], np.nan), "finite, found 8 NaN or infinite values"),
    "infinity": (np.array([[0, 1, np.inf, 0]]), "finite, found 1 "),
    "grey levels": (np.array([[0, 1, 0.5, 0]]), "must be 0 or 1, found .*0.5.* and 1 such"),
    "intensities": (np.array([[0, 255, 255, 0]], np.uint8), "must be 0 or 1, found .*255.* and 2 such"),
    "text": (np.array([["a", "b", "c", "d"]]), "must be numbers, found dtype <U1"),
    "objects": (np.array([[None] * 4]), "must be numbers, found dtype object"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_the_model_cannot_score_are_refused_with_what_was_found(model, case):
    rows, message = BAD_ROWS[case]
    for method in (model.log_prob, model.elbo, model.encode, model.reconstruct):
        with pytest.raises(ValueError, match=message):
            method(rows)


@pytest.mark.parametrize("seed", [0.5, [1, 2], np.zeros([3, 1], int), "a", [1.0, 2.0, 3.0], 2**63, 2**70])
def test_seeds_that_are_not_one_integer_or_one_a_row_are_refused(model, seed):
    with pytest.raises(ValueError, match=r"integer or integers \[3\]"):
        model.log_prob(np.zeros([3, 4]), seed=seed)


@pytest.mark.parametrize("num", [0, -1, 1.5, "3"])
def test_no_samples_are_refused(model, num):
    with pytest.raises(ValueError, match=f"num must be an integer of at least 1, found {num!r}"):
        model.sample(num)


@pytest.mark.parametrize("size", [0, 1.5, None])
def test_a_batch_size_below_one_is_refused(model, size):
    with pytest.raises(ValueError, match=f"batch_size must be an integer of at least 1, found {size}"):
        model.log_prob(np.zeros([3, 4]), batch_size=size)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_zeros_and_ones_of_any_type_are_scored(model, dtype):
    x = np.eye(4)
    np.testing.assert_array_equal(model.log_prob(x.astype(dtype))["log_prob"], model.log_prob(x)["log_prob"])


def test_the_batch_size_changes_no_answer(model):
    x, seeds = np.tile(np.eye(4), [3, 1]), np.arange(12)
    for size in (1, 5, 12):
        found = model.log_prob(x, seed=seeds, batch_size=size)["log_prob"]
        np.testing.assert_allclose(found, model.log_prob(x, seed=seeds)["log_prob"], rtol=1e-5)
    drawn, whole = model.sample(7, seed=3, batch_size=2), model.sample(7, seed=3)
    np.testing.assert_array_equal(drawn["x"], whole["x"])


def test_a_single_seed_scores_equal_rows_equally(model):
    scores = model.log_prob(np.ones([5, 4]), seed=3)["log_prob"]
    # The last of five rows may be summed in another order than four that fill a vector: a unit in the last place.
    # Other noise moves a score by 1e-2 and more.
    np.testing.assert_allclose(scores, scores[:1].repeat(5), rtol=2e-7)


def test_draws_of_neighbouring_seeds_are_not_shifted_copies(model):
    draws = [model.sample(20, seed=seed)["x_mean"] for seed in (3, 4)]
    assert len(np.unique(np.concatenate(draws), axis=0)) == 40
    np.testing.assert_array_equal(model.sample(20, seed=3)["x_mean"], draws[0])
    np.testing.assert_allclose(model.sample(8, seed=3)["x_mean"], draws[0][:8], rtol=1e-5)


def test_given_seeds_are_the_draws(model):
    seeds = client.row_seeds(3, 4)
    np.testing.assert_array_equal(model.sample(4, seed=seeds)["x"], model.sample(4, seed=3)["x"])
    with pytest.raises(ValueError, match=r"integers \[5\]"):
        model.sample(5, seed=seeds)


def test_row_seeds_are_distinct_within_and_between_seeds():
    seeds = np.concatenate([client.row_seeds(seed, 1000) for seed in (0, 1, 2, 2**63, -1)])
    assert seeds.dtype == np.int64
    assert len(np.unique(seeds)) == len(seeds)
    np.testing.assert_array_equal(client.row_seeds(7, 10)[:4], client.row_seeds(7, 4))


# Finding a model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(folder, tmp_path, monkeypatch):
    """A folder of models with versions 2 and 10 of tiny/small, as $TFSTRUCT_MODELS."""
    for version in ("2", "10"):
        target = tmp_path / "tiny/small" / version
        target.mkdir(parents=True)
        shutil.copy(folder / "card.json", target)
    (tmp_path / "tiny/small/draft").mkdir()
    (tmp_path / "tiny/small/11").mkdir()  # without a card: not finished
    monkeypatch.setenv(client.ROOT_VARIABLE, str(tmp_path))
    monkeypatch.chdir("/")
    return tmp_path


def test_a_name_is_the_largest_finished_version_of_it(shelf):
    assert client.find("tiny/small") == shelf / "tiny/small/10"
    assert client.find("tiny/small", version=2) == shelf / "tiny/small/2"
    assert client.find(shelf / "tiny/small") == shelf / "tiny/small/10"
    assert client.find(pathlib.Path(shelf / "tiny/small/2")) == shelf / "tiny/small/2"


def test_a_folder_of_the_same_name_in_the_current_one_does_not_take_a_models_place(
    shelf, folder, tmp_path, monkeypatch
):
    work = tmp_path / "work"
    for planted in (
        "tiny/small/99",
        "saved_models/tiny/small/99",
        "saved_models/graph_vae/mnist/99",
        "graph_vae/mnist/99",
    ):
        (work / planted).mkdir(parents=True)
        shutil.copy(folder / "card.json", work / planted)
    monkeypatch.chdir(work)
    assert client.find("tiny/small") == shelf / "tiny/small/10"
    assert client.find("./tiny/small").resolve() == work / "tiny/small/99"
    assert client.find(pathlib.Path("tiny/small")).resolve() == work / "tiny/small/99"
    assert "99" not in str(client.find("graph_vae/mnist"))
    monkeypatch.delenv(client.ROOT_VARIABLE)
    assert (
        client.find("tiny/small").resolve() == work / "saved_models/tiny/small/99"
    )  # a model that is known nowhere else


def test_a_version_that_is_not_there_is_refused_with_those_that_are(shelf):
    with pytest.raises(FileNotFoundError, match=r"versions \[2, 10\], not 3"):
        client.find("tiny/small", version=3)


def test_a_model_that_is_not_there_is_refused_with_the_places_looked_at(shelf):
    with pytest.raises(FileNotFoundError, match="no exported model 'tiny/smal'") as error:
        tfstruct.load("tiny/smal")
    assert str(shelf / "tiny/smal") in str(error.value)


def test_a_training_run_is_refused_with_what_makes_a_model_of_it(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="is a training run, .*tfstruct-export"):
        tfstruct.load(tmp_path)


def test_a_card_that_is_no_json_is_refused(shelf):
    (shelf / "tiny/small/10/card.json").write_text("{")
    files.write_checksums(shelf / "tiny/small/10")
    with pytest.raises(ValueError, match="is not JSON"):
        tfstruct.load("tiny/small")


def test_a_loaded_model_shows_its_card_and_shape(model, folder):
    assert model.event_shape == (4,)
    assert model.card == json.loads((folder / "card.json").read_text())
    assert "graph_vae/tiny" in repr(model)


def test_a_damaged_model_is_refused_by_the_name_of_the_file_before_it_is_loaded(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    path = next((tmp_path / "copy/variables").glob("*.data-*"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(contents.DamagedBundleError, match=r"variables\.data-.* does not have the checksum"):
        tfstruct.load(tmp_path / "copy")

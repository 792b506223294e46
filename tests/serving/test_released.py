"""Released models that are not installed: fetched once, from anywhere, and only as they were released."""

import functools
import http.server
import json
import shutil
import threading

import pytest

import tfstruct
from tests.trainers import tiny
from tfstruct.serving import client, released
from tfstruct.serving.contents import DamagedBundleError

BUNDLES = tiny.CHECKOUT / "saved_models"
NAME = "boltzmann_vae/mnist_structured"  # the smallest


class _Handler(http.server.SimpleHTTPRequestHandler):
    asked = []

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A release of one model on a server of this machine, for an installation without models; its archives."""
    (version,) = (BUNDLES / NAME).iterdir()
    shutil.copytree(version, tmp_path / "bundles" / NAME / version.name)
    archives = tmp_path / "archives"
    _Handler.asked = []
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Handler, directory=str(archives))
    )  # fmt: skip
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/"
    archives.mkdir()
    listing = released.write_archives(tmp_path / "bundles", archives, tmp_path / "list.json", url)
    monkeypatch.setattr(released, "LIST", listing)
    monkeypatch.setattr(client, "roots", lambda: [tmp_path / "nothing"])
    monkeypatch.setenv(released.CACHE_VARIABLE, str(tmp_path / "cache"))
    yield archives
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_list_in_the_package_is_that_of_the_committed_bundles(tmp_path):
    written = released.write_archives(BUNDLES, tmp_path, tmp_path / "list.json")
    found, expected = json.loads(released.LIST.read_text()), json.loads(written.read_text())
    assert found["models"] == expected["models"], "run python -m tfstruct.serving.released --output=FOLDER"


def test_a_released_model_is_fetched_once_and_is_whole(release):
    assert client.list_models() == [NAME]
    model = tfstruct.load(NAME)  # checks every file against SHA256SUMS
    assert model.card["preset"] == f"{NAME}_tuned"
    assert len(_Handler.asked) == 1
    assert client.find(NAME) == model.path
    assert client.find(NAME, version=int(next((BUNDLES / NAME).iterdir()).name)) == model.path
    assert len(_Handler.asked) == 1


def test_what_is_not_what_was_released_is_refused_and_not_kept(release, tmp_path):
    (archive,) = release.iterdir()
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedBundleError, match="is not what was released"):
        client.find(NAME)
    assert not list((tmp_path / "cache").glob("*.zip"))


def test_an_address_that_does_not_answer_says_what_to_do(release, monkeypatch):
    monkeypatch.setenv(released.URL_VARIABLE, "http://127.0.0.1:9/")
    with pytest.raises(OSError, match=f"could not be fetched from http://127.0.0.1:9/.*{NAME}/.*TFSTRUCT_MODELS="):
        client.find(NAME)
    with pytest.raises(FileNotFoundError, match="no exported model 'graph_vae/none'"):
        client.find("graph_vae/none")


def test_without_an_address_the_message_names_the_folder_and_the_variables(release, monkeypatch, tmp_path):
    monkeypatch.setenv(released.URL_VARIABLE, "")
    assert client.list_models() == []
    with pytest.raises(FileNotFoundError, match="not installed: .*TFSTRUCT_MODELS to .*TFSTRUCT_MODELS_URL to"):
        client.find(NAME)
    monkeypatch.undo()
    monkeypatch.setenv("TFSTRUCT_MODELS", str(tmp_path / "bundles"))
    assert client.find(NAME).is_relative_to(tmp_path / "bundles")
    assert not _Handler.asked

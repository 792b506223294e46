"""The models that a server has, in which versions, and how new ones take the place of old ones."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf import message, text_format
from tensorflow.core.protobuf import saved_model_pb2

from tfstruct.files import listed_files
from tfstruct.serving import warmup
from tfstruct.serving.client import LoadedModel, find
from tfstruct.serving.contents import CARD_NAME, GRAPH_NAME, WARMUP_NAME
from tfstruct.serving.errors import RequestError
from tfstruct.serving.extras import require

_LOG = logging.getLogger("tfstruct.serve")
# Type checkers do not see what is in these.
prediction_log_pb2 = require("tensorflow_serving.apis.prediction_log_pb2")
model_server_config_pb2 = require("tensorflow_serving.config.model_server_config_pb2")


class Wanted(NamedTuple):
    """A model that is to be served.

    Attributes:
        folder: of its numbered versions.
        latest: how many of the largest versions, 0 for all.
        only: the versions to serve, where they are named.
        labels: versions by label.
    """

    folder: Path
    latest: int = 1
    only: tuple[int, ...] = ()
    labels: tuple[tuple[str, int], ...] = ()


class Version:
    """A loaded version of a model.

    It is freed when the last request that found it is done, which is all there is to draining it.

    Attributes:
        name: of the model.
        number: of the version.
        model: the loaded bundle.
        definitions: its signatures, as TensorFlow Serving tells of them.
    """

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name, self.number = name, number
        self.model = LoadedModel(folder)
        graph = saved_model_pb2.SavedModel.FromString((folder / GRAPH_NAME).read_bytes())
        self.definitions = graph.meta_graphs[0].signature_def
        self.warm_up(folder)

    @property
    def card(self) -> dict[str, Any]:
        """The bundle's card."""
        return self.model.card

    def signature(self, name: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns inputs and outputs of a signature; raises RequestError for an unknown one."""
        if name not in self.card["signatures"]:
            known = ", ".join(self.card["signatures"])
            raise RequestError("FAILED_PRECONDITION", f"Serving signature key {name!r} not found. There are {known}")
        return self.card["signatures"][name]

    def run(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs for checked inputs."""
        return self.model._run(signature, inputs)

    def warm_up(self, folder: Path) -> None:
        """Answers the requests that the bundle keeps for this, so that the first ones of users wait for nothing."""
        path = folder / WARMUP_NAME
        warmup.check(folder, self.card)
        for record in tf.data.TFRecordDataset([str(path)]).as_numpy_iterator() if path.exists() else ():
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
            self.run(request.model_spec.signature_name, inputs)


class Models:
    """All models of a server. `scan` is called by one thread at a time, the other methods by any.

    Args:
        names: see `Settings.models`.
        config_file: see `Settings.model_config_file`.

    Raises:
        ValueError: a name or a file that is none.
        FileNotFoundError: no such bundle.
    """

    def __init__(self, names: tuple[str, ...], config_file: str) -> None:
        self._named = dict(_wanted(name) for name in names)
        if len(self._named) != len(names):
            raise ValueError(f"a model is named twice: {', '.join(names)}")
        self._config_file, self._config = config_file, b""
        self._wanted = self._named
        self._versions: dict[str, dict[int, Version]] = {}
        self._failed: dict[tuple[str, int], tuple[object, str]] = {}  # what it looked like, and what was wrong
        self._scanning = threading.Lock()
        if config_file:
            self._read_config()
        if not self._wanted:
            raise ValueError("no model to serve: name one by --models or --model_config_file")

    def names(self) -> list[str]:
        """Returns the names of all models."""
        return sorted(self._wanted)

    def folder(self, name: str) -> Path:
        """Returns where the versions of a model are looked for."""
        return self._wanted[name].folder

    def find(self, name: str, number: int | None = None, label: str | None = None) -> Version:
        """Returns a version of a model, by default the largest; raises RequestError for one that is not there."""
        versions = self._versions.get(name, {})
        if not versions:
            raise RequestError("NOT_FOUND", f"Servable not found for request: Latest({name})")
        if label is not None:
            labels = dict(self._wanted[name].labels) if name in self._wanted else {}
            if label not in labels:
                known = ", ".join(labels) or "none"
                raise RequestError("NOT_FOUND", f"Unrecognized version label {label!r} of {name}. There are {known}")
            number = labels[label]
        if number is None:
            return versions[max(versions)]
        if number not in versions:
            raise RequestError("NOT_FOUND", f"Servable not found for request: Specific({name}, {number})")
        return versions[number]

    def status(self, name: str, number: int | None = None, label: str | None = None) -> list[tuple[int, str, str]]:
        """Returns versions, the state of each and what is wrong with it, largest first; raises RequestError."""
        if name not in self._wanted:
            raise RequestError("NOT_FOUND", f"Could not find any versions of model {name}")
        if number is not None or label is not None:
            failed = self._failed.get((name, number or 0))
            if failed is not None:
                return [(number or 0, "END", failed[1])]
            return [(self.find(name, number, label).number, "AVAILABLE", "")]
        found = [(other, "END", text) for (model, other), (_, text) in self._failed.items() if model == name]
        found += [(other, "AVAILABLE", "") for other in self._versions.get(name, {})]
        return sorted(found, reverse=True)

    def scan(self) -> None:
        """Loads new versions and lets go of old ones; what cannot be loaded is reported, and what was there stays."""
        with self._scanning:
            if self._config_file:
                try:
                    self._read_config()
                except (OSError, ValueError) as error:
                    _LOG.error("%s; the models stay as they were", error)
            for name, wanted in self._wanted.items():
                self._scan_model(name, wanted)
            for name in self._versions.keys() - self._wanted.keys():
                del self._versions[name]

    def _scan_model(self, name: str, wanted: Wanted) -> None:
        before = self._versions.get(name, {})
        numbers = sorted(_numbers(wanted.folder), reverse=True)
        found: dict[int, Version] = {}
        for number in [number for number in numbers if number in wanted.only] if wanted.only else numbers:
            if not wanted.only and wanted.latest and len(found) == wanted.latest:
                break
            version = before.get(number) or self._load(name, number, wanted.folder / str(number))
            if version is not None:
                found[number] = version
        for gone in [key for key in self._failed if key[0] == name and key[1] not in numbers]:
            del self._failed[gone]
        if not found:
            if before:
                _LOG.error("%s: no version is left in %s; those that are loaded stay", name, wanted.folder)
            return
        if found.keys() != before.keys():
            _LOG.warning("%s: serving %s", name, ", ".join(f"version {number}" for number in sorted(found)))
        self._versions[name] = found  # at once: a request finds the old versions or the new ones
        for label, number in wanted.labels:
            if number not in found:
                _LOG.error("%s: label %s is of version %d, which is not loaded", name, label, number)

    def _load(self, name: str, number: int, folder: Path) -> Version | None:
        """Returns a version, or None for one that is damaged, which is looked at again when its files change."""
        try:
            looks = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in listed_files(folder)]
        except OSError:
            return None  # removed in between
        if self._failed.get((name, number), ("", ""))[0] == looks:
            return None
        try:
            version = Version(name, number, folder)
        except Exception as error:  # whatever a bundle may do must not end the server
            self._failed[name, number] = looks, str(error)
            _LOG.error("%s: version %d cannot be served: %s", name, number, error)
            return None
        self._failed.pop((name, number), None)
        return version

    def _read_config(self) -> None:
        content = Path(self._config_file).read_bytes()
        if content != self._config:
            wanted = dict(_configured(content, self._config_file))
            both = self._named.keys() & wanted.keys()
            if both:
                raise ValueError(f"{self._config_file} has {', '.join(both)}, which --models has too")
            self._wanted, self._config = self._named | wanted, content


def _numbers(folder: Path) -> list[int]:
    """Returns the versions of a folder; one without a card is not finished, or no bundle."""
    children = folder.iterdir() if folder.is_dir() else ()
    return [int(child.name) for child in children if child.name.isdecimal() and (child / CARD_NAME).exists()]


def _wanted(text: str) -> tuple[str, Wanted]:
    """Reads `name=folder` or a bundle's name."""
    name, _, folder = text.rpartition("=")
    name = name or "_".join(Path(folder).parts[-2:])
    if not name or set(name) & set("/:?# "):
        raise ValueError(f"a model's name is a part of a URL, found {name!r}; write name=folder")
    bundle = find(folder)
    if not bundle.name.isdecimal():
        raise ValueError(
            f"{bundle} is a bundle; a server wants the folder above, with bundles by the number of a version"
        )
    if Path(folder).name == bundle.name:  # the folder of one version
        return name, Wanted(bundle.parent, only=(int(bundle.name),))
    return name, Wanted(bundle.parent)


def _configured(content: bytes, path: str) -> Iterator[tuple[str, Wanted]]:
    """Reads a ModelServerConfig."""
    config = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(content.decode(), config)
    except (text_format.ParseError, UnicodeDecodeError, message.Error) as error:
        raise ValueError(f"{path} is no ModelServerConfig: {error}") from None
    for model in config.model_config_list.config:
        policy = model.model_version_policy
        choice = policy.WhichOneof("policy_choice")
        yield (
            model.name,
            Wanted(
                Path(model.base_path),
                latest={"all": 0, "latest": policy.latest.num_versions or 1}.get(choice or "", 1),
                only=tuple(policy.specific.versions) if choice == "specific" else (),
                labels=tuple(sorted(model.version_labels.items())),
            ),
        )

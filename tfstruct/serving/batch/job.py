"""A scoring job: which rows, which question, and the files of scores, one for each shard until all are joined.

A shard is some thousand rows of one file. Its scores depend on nothing but the model, the rows and the question, so it
does not matter who computes them, or how often: a job that was ended goes on with the shards that have no file yet.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import filelock
import numpy as np
import tensorflow as tf

from tfstruct.data import storage
from tfstruct.data.sources import Rows, Source
from tfstruct.data.storage import gfile
from tfstruct.files import CHECKSUMS_NAME, DAMAGE, sha256, to_json
from tfstruct.registry import did_you_mean
from tfstruct.serving.client import LoadedModel
from tfstruct.serving.inputs import row_seeds

Scores = dict[str, np.ndarray]


class InvalidRowError(ValueError):
    """A row that the model refuses."""


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of each row.

    Attributes:
        signature: of the model; one that takes rows, a seed and, at most, a false-alarm rate.
        seed: of which each row gets one of its own, by its number in the job.
        alpha: the false-alarm rate of `anomaly`.
        batch_size: rows computed at once.
        keep_invalid: whether rows that the model refuses get `valid` False instead of being an error.
    """

    signature: str = "log_prob"
    seed: int = 0
    alpha: float = 0.05
    batch_size: int = 100
    keep_invalid: bool = False

    def check(self, model: LoadedModel, source: Source) -> None:
        """Raises ValueError unless a model answers this of such rows."""
        self._asked(model, source.read(0, 1))

    def _asked(self, model: LoadedModel, rows: Rows) -> tuple[str, str]:
        """Returns the signature for the kind of rows, and the input that they are."""
        rows_input = "x" if isinstance(rows, np.ndarray) else "image_bytes"
        name = self.signature if rows_input == "x" else f"image_{self.signature}"
        takes = {
            name: set(signature["inputs"]) - {"seed", "alpha"} for name, signature in model.card["signatures"].items()
        }
        if takes.get(name) != {rows_input}:
            possible = [name.removeprefix("image_") for name, inputs in takes.items() if inputs == {rows_input}]
            kind = "rows of numbers" if rows_input == "x" else "encoded images"
            near = did_you_mean(self.signature, possible)
            raise ValueError(f"{model.card['preset']} answers no {self.signature!r} of {kind}{near}")
        return name, rows_input

    def answers(self, model: LoadedModel, rows: Rows, first: int, place: Callable[[int], str]) -> Scores:
        """Asks of at most `batch_size` rows.

        Args:
            model: an exported model.
            rows: its observations, or encoded images.
            first: number of the first row in the job.
            place: where the row of an index stands, for errors.

        Returns:
            The outputs of the signature and `valid`, each [n, ...]. Of rows outside the support that is what the graph
            gives; an image that cannot be decoded has scores that are NaN, and is an anomaly.

        Raises:
            InvalidRowError: a row that the model refuses.
        """
        name, rows_input = self._asked(model, rows)
        signature = model.card["signatures"][name]
        inputs: dict[str, Any] = {rows_input: rows}
        if "alpha" in signature["inputs"]:
            inputs["alpha"] = np.full([len(rows)], self.alpha, np.float32)
        if "seed" in signature["inputs"]:
            inputs["seed"] = row_seeds(self.seed, len(rows), first)
        try:
            answers = model.query(name, batch_size=self.batch_size, **inputs)
            return {"valid": np.ones([len(rows)], bool)} | answers
        except (ValueError, tf.errors.InvalidArgumentError):
            refused = [row for row in range(len(rows)) if self._refusal(model, rows[row : row + 1])]
            if not refused:
                raise
        if not self.keep_invalid:
            reason = self._refusal(model, rows[refused[0] : refused[0] + 1])
            raise InvalidRowError(f"{place(refused[0])}: {reason}; --invalid=mark scores the others") from None
        valid = np.ones([len(rows)], bool)
        valid[refused] = False
        if isinstance(rows, np.ndarray):  # the graph knows what to say of them, and they disturb no other
            with np.errstate(over="ignore"):
                inputs["x"] = rows.astype(np.float32)
            return model._run(name, inputs) | {"valid": valid}
        outputs = {output: about for output, about in signature["outputs"].items() if output != "valid"}
        scores = {"valid": valid} | {
            output: _of_no_image(output, len(rows), about) for output, about in outputs.items()
        }
        if valid.any():
            kept: dict[str, Any] = {key: values[valid] for key, values in inputs.items() if key != "image_bytes"}
            kept["image_bytes"] = [image for image, is_valid in zip(rows, valid, strict=True) if is_valid]
            for output, values in model.query(name, batch_size=self.batch_size, **kept).items():
                if output != "valid":
                    scores[output][valid] = values
        return scores

    @staticmethod
    def _refusal(model: LoadedModel, row: Rows) -> str:
        """Returns why a model does not take a row, or nothing."""
        try:
            if isinstance(row, np.ndarray):
                model.check(row)
            else:
                tf.io.decode_image(row[0], expand_animations=False)
        except ValueError as error:
            return str(error)
        except tf.errors.InvalidArgumentError:
            return "no readable PNG or JPEG image"
        return ""


def _of_no_image(name: str, num: int, about: dict[str, Any]) -> np.ndarray:
    """Returns an output of rows that cannot be decoded: such are anomalies, as those outside the support."""
    dtype = np.dtype(about["dtype"])
    value = name == "is_anomaly" if dtype.kind == "b" else 0.0 if name.endswith("p_value") else np.nan
    return np.full([num, *about["shape"][1:]], value, dtype)


def _is_whole(path: str) -> bool:
    """Whether a file of scores is what was written."""
    try:
        with storage.reading(path) as file, zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except DAMAGE:
        return False


class Shard(NamedTuple):
    """A few thousand rows of a source.

    Attributes:
        index: its number.
        source: whose rows.
        start: the first of them, by its number in the source.
        stop: the one behind the last.
        first: number of the first row in the whole job.
    """

    index: int
    source: Source
    start: int
    stop: int
    first: int

    @property
    def num_rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.start

    def read(self) -> Rows:
        """Returns the rows."""
        return self.source.read(self.start, self.stop)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is scored, how, and where the scores go.

    Attributes:
        model: folder of the exported model.
        question: what is asked of each row.
        sources: the rows.
        shard_rows: the most rows of a shard, which are in memory at once.
        folder: of the scores of each shard.
    """

    model: str
    question: Question
    sources: Sequence[Source]
    shard_rows: int
    folder: str

    def shards(self) -> list[Shard]:
        """Returns all shards, in the order of the rows."""
        shards, first = [], 0
        for source in self.sources:
            for start in range(0, source.num_rows, self.shard_rows):
                stop = min(start + self.shard_rows, source.num_rows)
                shards.append(Shard(len(shards), source, start, stop, first))
                first += stop - start
        return shards

    def path(self, shard: Shard) -> str:
        """Returns the file of a shard's scores."""
        return f"{self.folder}/{shard.index:06d}.npz"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes of this machine from the same output; a folder without scores goes when it fails.

        Raises:
            RuntimeError: another process is at it.
        """
        lock = contextlib.nullcontext()
        if not storage.is_remote(self.folder):
            name = hashlib.sha256(os.path.realpath(self.folder).encode()).hexdigest()[:16]
            lock = filelock.FileLock(f"{tempfile.gettempdir()}/tfstruct-{name}.lock", 0)
        try:
            with lock:
                try:
                    yield
                finally:
                    if gfile.exists(self.folder) and not gfile.glob(f"{self.folder}/*.npz"):
                        gfile.rmtree(self.folder)
        except filelock.Timeout:
            raise RuntimeError(f"another process scores to {self.folder.removesuffix('.shards')}") from None

    def begin(self) -> list[Shard]:
        """Makes the folder, or takes it up again, and returns the shards that are still to be scored.

        Raises:
            ValueError: the folder is of another job.
        """
        identity = {
            "model": sha256(f"{self.model}/{CHECKSUMS_NAME}"),
            "shard_rows": self.shard_rows,
            **{name: value for name, value in vars(self.question).items() if name != "keep_invalid"},
            "rows": [source.version() for source in self.sources],
        }
        identity, path = json.loads(to_json(identity)), f"{self.folder}/job.json"
        gfile.makedirs(self.folder)
        done = {os.path.basename(path) for path in gfile.glob(f"{self.folder}/*.npz") if _is_whole(path)}
        if done:
            begun = {}
            if gfile.exists(path):
                with storage.reading(path) as file:
                    begun = json.loads(file.read())
            differing = ", ".join(sorted(name for name in identity if identity[name] != begun.get(name)))
            if differing:
                found = f"{self.folder} has the scores of another job ({differing} differ)"
                raise ValueError(f"{found}; remove it, or give another --output")
        else:
            with storage.replacing(path) as file:
                file.write(to_json(identity, indent=2).encode())
        return [shard for shard in self.shards() if os.path.basename(self.path(shard)) not in done]

    def score(
        self, model: LoadedModel, shard: Shard, rows: Rows, scored: Callable[[int], Any] = lambda num: None
    ) -> Scores:
        """Returns the scores of a shard's rows.

        Args:
            model: the loaded model.
            shard: the shard.
            rows: what it read.
            scored: called with the number of rows of each batch that is done.

        Raises:
            InvalidRowError: a row that the model refuses.
        """
        results = []
        for start in range(0, len(rows), self.question.batch_size):
            batch = rows[start : start + self.question.batch_size]
            place = lambda row, before=shard.start + start: shard.source.place(before + row)  # noqa: E731
            results.append(self.question.answers(model, batch, shard.first + start, place))
            scored(len(batch))
        return {name: np.concatenate([result[name] for result in results]) for name in results[0]}

    def write(self, shard: Shard, scores: Scores) -> None:
        """Writes the scores of a shard, whole or not at all."""
        with storage.replacing(self.path(shard)) as file:
            np.savez(file, allow_pickle=False, **{"row": np.arange(shard.start, shard.stop), **scores})

    def run(self, model: LoadedModel, scored: Callable[[int], Any]) -> None:
        """Scores what is still to be scored in this process; arguments as in `score`."""
        for shard in self.begin():
            self.write(shard, self.score(model, shard, shard.read(), scored))

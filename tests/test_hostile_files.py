"""Files with other bytes than were written: what can be known to be damaged is refused, and nothing else fails."""

import random
import resource
import shutil
import time
import warnings

import numpy as np
import pytest

from tests.data.test_sources import FORMATS, NUM, SHAPE, WITH_KEY
from tests.trainers import tiny
from tfstruct import files as own_files
from tfstruct.data import files as data_files
from tfstruct.data import sources
from tfstruct.evaluation import results
from tfstruct.models import tables
from tfstruct.serving import card, contents
from tfstruct.training.checkpoint import Checkpoints

ROWS = np.random.default_rng(5).integers(0, 2, [NUM, *SHAPE]).astype(np.uint8)
SPLITS = {"train": ROWS, "validation": ROWS, "test": ROWS}


def read_source(path):
    key = "x" if path.name in WITH_KEY else None
    for source in sources.find([str(path)], key, SHAPE):
        for start in range(0, source.num_rows, 10):
            source.read(start, min(start + 10, source.num_rows))


def write_checkpoint(path):
    Checkpoints(path.parent).save(7, {"a": np.arange(50.0), "b": np.ones(3, np.uint8)}, {"seeds": [1]})


def write_results(path):
    (source,) = (tiny.CHECKOUT / "results/graph_vae").glob("edges.json")
    shutil.copy(source, path)
    shutil.copy(source.with_suffix(".npz"), path.with_suffix(".npz"))


def read_results(path):
    results.read(path.parent.parent, tables.TABLES["graph_vae/edges"])


def write_card(path):
    shutil.copy(sorted(tiny.CHECKOUT.glob("saved_models/spvae/mnist_missing/*/card.json"))[-1], path)


# By name of the file: how it is written and read. What reads a checkpoint knows every damage.
KINDS = {name: (lambda path, write=write: write(path, ROWS), read_source) for name, write in FORMATS.items()} | {
    "train.npz": (lambda path: np.savez(path, train=ROWS, validation=ROWS, test=ROWS), data_files.read),
    "packed_train.npz": (
        lambda path: np.savez_compressed(path, train=ROWS, validation=ROWS, test=ROWS),
        data_files.read,
    ),
    "train.npy": (lambda path: np.save(path, ROWS), data_files.read),
    "step_000000007.npz": (write_checkpoint, lambda path: Checkpoints(path.parent).load(7)),
    "graph_vae/edges.json": (write_results, read_results),
    "card.json": (write_card, lambda path: card.check(own_files.read_json(path), path)),
}


def damaged(content, draw):
    """Bytes that were changed, cut, doubled or put elsewhere."""
    content = bytearray(content)
    kind = draw.random()
    if kind < 0.7:
        for _ in range(draw.choice((1, 1, 1, 2, 5, 20))):
            content[draw.randrange(len(content))] = draw.choice((0, 255, draw.randrange(256)))
    elif kind < 0.85:
        del content[draw.randrange(len(content)) :]
    else:
        start, stop = sorted(draw.randrange(len(content)) for _ in range(2))
        place = draw.randrange(len(content))
        content[place:place] = content[start : min(stop, start + 200)]
    return bytes(content)


def try_all(folder, cases):
    """Reads so many damaged files of every kind in turn; returns how many were refused, by kind."""
    draw, refused = random.Random(cases), dict.fromkeys(KINDS, 0)
    whole = {}
    for place, (name, (write, read)) in enumerate(KINDS.items()):
        path = folder / str(place) / name
        path.parent.mkdir(parents=True)
        write(path)
        read(path)
        whole[name] = path, path.read_bytes()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(cases):
        name = list(KINDS)[case % len(KINDS)]
        path, content = whole[name]
        changed = damaged(content, draw)
        path.write_bytes(changed)
        started = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            message = None
            try:
                KINDS[name][1](path)
            except (ValueError, OSError) as error:
                message = str(error)
            except Exception as error:
                raise AssertionError(f"case {case}, {name}: {type(error).__name__}: {error}") from error
        assert message or name != "step_000000007.npz" or changed == content
        assert message is None or 0 < len(message) < 3_000, (name, message)
        refused[name] += message is not None
        assert time.monotonic() - started < 10.0, (case, name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # kB
    return refused


def test_damaged_files_are_refused_or_read_and_nothing_else(tmp_path):
    refused = try_all(tmp_path, 510)
    assert all(refused.values()), refused


@pytest.mark.slow
def test_thousands_of_damaged_files_are_refused_or_read_and_nothing_else(tmp_path):
    print(try_all(tmp_path, 4_000))


def test_every_one_of_a_hundred_damaged_bundles_is_refused(tmp_path):
    source = sorted((tiny.CHECKOUT / "saved_models/boltzmann_vae/mnist_structured").iterdir())[-1]
    bundle = shutil.copytree(source, tmp_path / "1")
    contents.verify_files(bundle)
    draw = random.Random(3)
    paths = sorted(path for path in bundle.rglob("*") if path.is_file())
    for case in range(100):
        path = paths[case % len(paths)]
        content = path.read_bytes()
        changed = damaged(content, draw)
        path.write_bytes(changed)
        if changed != content:
            with pytest.raises(contents.DamagedBundleError):
                contents.verify_files(bundle)
        path.write_bytes(content)
    contents.verify_files(bundle)

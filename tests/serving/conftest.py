import shutil

import pytest

from tests.trainers import tiny
from tfstruct.evaluation import report
from tfstruct.serving import bundle, client
from tfstruct.training import run as training

NUM_SAMPLES = 200  # not a multiple of the chunk: the last chunk is partly masked


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of two replicas on four binary pixels, whose 16 values can be enumerated."""
    folder = tmp_path_factory.mktemp("serving")
    file = tiny.write_rows(folder / "rows.npz", event_shape=(4,))
    # The whole KL term from the first step on: its importance weights have light tails after so few steps.
    options = ("training.replicas=2", "optimizer.learning_rate=0.02", "schedules.kl_weight.values=(1.0, 1.0)")
    training.train(tiny.file_config(file, *options), folder / "run")
    return report.TrainedRun(str(folder / "run"))


@pytest.fixture(scope="session")
def folder(trained, tmp_path_factory):
    """A bundle of the better replica; not to be changed."""
    return bundle.export(trained, tmp_path_factory.mktemp("models") / "tiny/1", num_samples=NUM_SAMPLES, chunk=30)


@pytest.fixture(scope="session")
def model(folder):
    return client.load(folder)


@pytest.fixture
def copy(folder, tmp_path):
    """The same bundle in a folder of its own, to be changed."""
    return shutil.copytree(folder, tmp_path / "copy")

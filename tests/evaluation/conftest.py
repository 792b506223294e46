import pytest

from tests.trainers import tiny
from tfstruct.evaluation import report
from tfstruct.training import run as training


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """A run of two replicas on 6x6 binary images."""
    folder = tmp_path_factory.mktemp("evaluation")
    file = tiny.write_rows(folder / "rows.npz", event_shape=(6, 6))
    training.train(tiny.file_config(file, "training.replicas=2", "optimizer.learning_rate=0.02"), folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def run(workdir):
    return report.TrainedRun(str(workdir))


@pytest.fixture(scope="session")
def result(run):
    return report.evaluate(run)

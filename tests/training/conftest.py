import pytest

from tests.trainers import tiny


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A data file of binary rows; some modules have one of their own."""
    return tiny.write_rows(tmp_path_factory.mktemp("data") / "rows.npz")

import fcntl
import hashlib
import json
import os

import numpy as np
import pytest

from tfstruct.files import read_json, replacing, sha256, to_json, write_json, write_text


def test_temporary_of_a_living_writer_is_left_alone(tmp_path):
    with replacing(tmp_path / "slow.json") as file:
        write_json(tmp_path / "quick.json", [1])
        file.write(b"{}")
    assert (tmp_path / "slow.json").read_text() == "{}"
    assert sorted(os.listdir(tmp_path)) == ["quick.json", "slow.json"]


def test_write_json_replaces_or_leaves_as_it_was(tmp_path):
    path = tmp_path / "card.json"
    write_json(path, {"a": [1.5, "ü"]})
    assert json.loads(path.read_text()) == {"a": [1.5, "ü"]}
    with pytest.raises(TypeError, match="JSON"):
        write_json(path, {"a": np.zeros(1)})
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half" + bytes(1 // 0))
    assert json.loads(path.read_text()) == {"a": [1.5, "ü"]}
    assert os.listdir(tmp_path) == ["card.json"]


def test_written_files_have_ordinary_permissions(tmp_path):
    write_json(tmp_path / "card.json", {})
    (tmp_path / "plain").touch()
    assert (tmp_path / "card.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_text_that_stands_there_already_is_not_written_again(tmp_path):
    path = write_text(tmp_path / "new" / "page.md", "ü\n")
    assert path.read_bytes() == "ü\n".encode()
    before = path.stat().st_mtime_ns, path.stat().st_ino
    write_text(path, "ü\n")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    write_text(path, "u\n")
    assert path.read_text() == "u\n"


def test_numbers_that_are_not_finite_stand_as_texts_that_float_reads(tmp_path):
    numbers = [float("nan"), float("inf"), float("-inf"), 1.5]
    text = to_json({"a": {"b": (numbers, "x", None, True)}})
    assert text == '{"a": {"b": [["NaN", "Infinity", "-Infinity", 1.5], "x", null, true]}}'
    found = read_json(write_json(tmp_path / "a.json", numbers))
    np.testing.assert_array_equal([float(number) for number in found], numbers)
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == found


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_what_is_no_json_is_named(tmp_path, content):
    (tmp_path / "torn.json").write_bytes(content)
    with pytest.raises(ValueError, match="torn.json is not JSON"):
        read_json(tmp_path / "torn.json")


def test_a_checksum_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(256)) * 10_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(bytes(range(256)) * 10_000).hexdigest()


def test_a_temporary_file_that_another_writer_took_for_abandoned_is_made_again(tmp_path, monkeypatch):
    """Between its creation and its locking."""
    flock, taken = fcntl.flock, []

    def late(file, how):
        if not taken:
            taken.extend(tmp_path.glob(".*.tmp"))
            taken[0].unlink()
        return flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with replacing(tmp_path / "a") as file:
        file.write(b"kept")
    assert len(taken) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"kept"

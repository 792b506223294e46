"""Progress: silent unless asked for, a line now and then where there is no terminal, a bar where there is one."""

import sys

import numpy as np
import pytest

from tfstruct import progress


@pytest.fixture
def shown():
    progress.show()
    yield
    progress.show(False)


def test_a_library_call_is_silent(capsys):
    with progress.Progress("evaluating", 10, "row", clock=iter([0.0, 99.0, 99.0]).__next__) as counted:
        counted.update(4)
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_there_is_a_line_each_ten_seconds_and_none_before(shown, capsys):
    now = [0.0]
    with progress.Progress("evaluating", 50, "row", clock=lambda: now[0]) as counted:
        for seconds in (4.0, 9.9, 10.1, 15.0, 20.5):
            now[0] = seconds
            counted.update(10)
    assert capsys.readouterr() == ("", "evaluating: 30 of 50 rows\nevaluating: 50 of 50 rows\n")


def test_a_bar_says_that_it_compiles_and_estimates_nothing_before_the_second_part(shown, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.Progress("evaluating", 50, "row") as counted:
        counted._bar.mininterval = 0.0
        assert "evaluating, compiling, once" in str(counted._bar)
        counted.update(10)
        assert "compiling" not in str(counted._bar)
        assert "10/50" in str(counted._bar)
        assert "<?" in str(counted._bar)  # the time left
        counted._bar.start_t -= 1.0
        counted.update(20)
        assert "30/50" in str(counted._bar)
        assert "<?" not in str(counted._bar)
    assert "compiling, once" in capsys.readouterr().err


def test_watched_rows_count_what_was_read_and_done_with():
    rows = np.arange(25).reshape(25, 1)
    with progress.watched(rows, "scoring") as watched:
        assert len(watched) == 25
        parts = [watched[start : start + 10] for start in (0, 10, 20)]
        assert watched._progress._done == 20
    np.testing.assert_array_equal(np.concatenate(parts), rows)


def on_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


def test_work_within_work_has_no_bar_and_no_line(shown, capsys, monkeypatch):
    now = [0.0]
    with progress.Progress("outer", 10, "part", clock=lambda: now[0]) as outer:
        with progress.Progress("inner", 10, "row", clock=lambda: now[0]) as inner:
            now[0] = 11.0
            inner.update(5)
        outer.update(5)
    assert capsys.readouterr().err == "outer: 5 of 10 parts\n"
    on_terminal(monkeypatch)
    for _ in progress.track(["a", "b"], "file", "outer"):
        assert list(progress.track([1, 2], "row", "inner")) == [1, 2]
    printed = capsys.readouterr().err
    assert "outer" in printed
    assert "inner" not in printed


def test_what_was_done_before_counts_and_does_not_hide_that_it_compiles(shown, capsys, monkeypatch):
    on_terminal(monkeypatch)
    with progress.Progress("scoring", 50, "row", initial=20) as counted:
        assert "20/50" in str(counted._bar)
        assert "compiling, once" in str(counted._bar)
        counted.update(10)
        assert "30/50" in str(counted._bar)
        assert "compiling" not in str(counted._bar)


def test_a_loop_that_ends_early_closes_its_bar_and_one_value_has_none(shown, capsys, monkeypatch):
    on_terminal(monkeypatch)
    for value in progress.track([1, 2, 3], "row", "searching"):
        if value == 2:
            break
    assert progress._num_open == 0
    capsys.readouterr()
    assert list(progress.track(["one"], "row", "asking")) == ["one"]
    assert capsys.readouterr().err == ""


def test_a_message_is_for_terminals_alone(shown, capsys, monkeypatch):
    progress.message("writing the bundle")
    assert capsys.readouterr() == ("", "")
    on_terminal(monkeypatch)
    progress.message("writing the bundle")
    assert capsys.readouterr().err == "writing the bundle\n"

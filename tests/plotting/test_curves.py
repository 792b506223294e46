"""What curves over training show."""

import numpy as np
import pytest

from tfstruct import plotting


def test_curves_show_replicas_thin_and_their_mean_thick():
    rows = [{"step": step, "train/bound": [-10.0 - step, -20.0 - step]} for step in range(4)]
    rows[3]["validation/bound"] = [-1.0, -3.0]
    rows[1]["train/bound"][0] = "NaN"  # as metrics.jsonl has it
    lines = plotting.draw_curves(rows).axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[0, 1, 2, 3]] * 3 + [[3]] * 3
    np.testing.assert_array_equal(lines[0].get_ydata(), [-10, np.nan, -12, -13])
    np.testing.assert_array_equal(lines[1].get_ydata(), [-20, -21, -22, -23])
    np.testing.assert_array_equal(lines[2].get_ydata(), [-15, np.nan, -17, -18])
    np.testing.assert_array_equal(lines[5].get_ydata(), [-2.0])
    widths = [line.get_linewidth() for line in lines]
    assert max(widths[:2]) < widths[2]
    assert [line.get_label() for line in (lines[2], lines[5])] == [
        "train, mean of 2",
        "validation, mean of 2",
    ]


def test_one_replica_is_one_line_and_the_climb_at_the_start_leaves_the_frame():
    rows = [{"step": step, "train/bound": -500.0 if step < 10 else -90.0 - step / 100} for step in range(101)]
    axes = plotting.draw_curves(rows).axes[0]
    (line,) = axes.lines
    assert line.get_label() == "train"
    assert axes.get_ylim() == pytest.approx((-91.045, -90.055))
    assert axes.get_ylabel() == "bound that is trained (nats)"


def test_validation_is_shown_by_what_there_is():
    rows = [{"step": step, "train/bound": -90.0, "validation/log_likelihood": -88.0} for step in (100, 200)]
    axes = plotting.draw_curves(rows).axes[0]
    assert [line.get_label() for line in axes.lines] == ["train", "validation, log-likelihood"]
    both = [row | {"validation/bound": -89.0} for row in rows]
    lines = plotting.draw_curves(both).axes[0].lines
    assert [line.get_label() for line in lines] == ["train", "validation"]
    np.testing.assert_array_equal(lines[1].get_ydata(), [-89.0, -89.0])


def test_two_validations_are_both_inside_the_frame():
    rows = [{"step": 100, "validation/bound": -95.0}, {"step": 200, "validation/bound": -90.0}]
    low, high = plotting.draw_runs({"a": rows}, metric="validation/bound").axes[0].get_ylim()
    assert low < -95.0
    assert high > -90.0


def test_a_second_phase_is_marked_and_its_climb_leaves_the_frame_too():
    bounds = [-500.0] * 10 + [-90.0 - step / 100 for step in range(10, 101)] + [-500.0] * 10 + [-80.0] * 91
    rows = [{"step": step, "train/bound": value} for step, value in enumerate(bounds)]
    curve, mark = plotting.draw_curves(rows, phase_start=100).axes[0].lines
    assert list(mark.get_xdata()) == [100, 100]
    values = curve.get_ydata()
    assert np.flatnonzero(np.isnan(values)).tolist() == [101]  # a gap, not a line from one phase to the other
    assert list(curve.get_xdata()[100:103]) == [100, 100, 101]
    assert "restart" in mark.get_label()
    assert curve.axes.get_ylim() == pytest.approx((-91.55, -79.45))
    assert len(plotting.draw_curves(rows).axes[0].lines) == 1


def test_missing_metric_and_mixed_replicas_are_named():
    with pytest.raises(ValueError, match="'bound'; there are loss, rate"):
        plotting.draw_curves([{"step": 1, "train/rate": 1.0, "validation/loss": 1.0}])
    with pytest.raises(ValueError, match="no metrics"):
        plotting.draw_curves([])
    with pytest.raises(ValueError, match=r"replicas, \[1, 2\]"):
        plotting.draw_curves([{"step": 1, "train/bound": 1.0}, {"step": 2, "train/bound": [1.0, 2.0]}])

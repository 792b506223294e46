"""What figures of many rows show."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from tfstruct import plotting
from tfstruct.plotting import style


def test_histograms_of_scores_are_shares_of_their_own_rows():
    scores = {"test": np.array([-3.0, -2.0, -1.0, np.inf]), "noise": np.linspace(-9.0, -8.0, 50)}
    axes = plotting.draw_scores(scores).axes[0]
    outlines = [patch for patch in axes.patches if patch.get_label() in scores]
    assert [patch.get_label() for patch in outlines] == ["test", "noise"]
    for patch, (least, greatest) in zip(outlines, ((-3.0, -1.0), (-9.0, -8.0)), strict=True):
        x, heights = patch.get_xy().T
        assert least - 0.3 < x[heights > 0.0].min() <= least
        assert greatest - 0.3 < x[heights > 0.0].max() < greatest + 0.3
        _, starts = np.unique(x, return_index=True)  # at each edge the line ends a bin before it begins the next
        assert sum(heights[start + 1] for start in starts[:-1]) == pytest.approx(1.0)


def test_active_latents_are_those_above_the_threshold():
    bars = plotting.draw_active_units([0.001, 0.5, 0.0, 0.2], 0.01).axes[0].patches
    assert [bar.get_height() for bar in bars] == [0.5, 0.2, 0.001, 1e-5]
    assert [bar.get_facecolor() == to_rgba(style.FIRST) for bar in bars] == [True, True, False, False]


def test_a_latent_map_has_the_two_directions_of_most_variance():
    rows = np.zeros([40, 3])
    rows[:20, 1], rows[20:, 1] = 3.0, -3.0
    rows[::2, 2], rows[1::2, 2] = 1.0, -1.0
    axes = plotting.draw_latent_map(rows + 7.0, np.arange(40) % 2, title="class").axes[0]
    assert axes.get_xlabel() == "first principal component (90% of the variance)"
    assert axes.get_ylabel() == "second principal component (10%)"
    even, odd = (np.asarray(points.get_offsets()) for points in axes.collections)
    np.testing.assert_allclose(np.abs(np.concatenate([even, odd])), np.tile([3.0, 1.0], [40, 1]), atol=1e-9)
    assert np.ptp(even[:, 1]) < 1e-9
    assert even[0, 1] == pytest.approx(-odd[0, 1])


def test_bars_of_means_are_one_standard_error():
    values, errors = {"a": [-90.0, -88.0], "b": [-80.0]}, {"a": 0.5, "b": None}
    axes = plotting.draw_means(values, errors, axis="nats").axes[0]
    (bar,) = [found for found in axes.collections if len(found.get_segments())]
    np.testing.assert_allclose(bar.get_segments()[0][:, 0], [-89.5, -88.5])
    (dots,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert list(dots.get_xdata()) == [-90.0, -88.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]

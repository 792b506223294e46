"""That figures share one style, and leave matplotlib's settings alone."""

import pathlib
import re

import matplotlib
import numpy as np
import pytest

import tfstruct
from tfstruct import plotting
from tfstruct.plotting import style

SOURCES = pathlib.Path(tfstruct.__file__).resolve().parents[1]


def test_settings_stay_as_they_were():
    before = dict(matplotlib.rcParams)
    plotting.draw_scores({"test": np.arange(10.0)})
    with pytest.raises(ValueError, match="no row has the metric"):
        plotting.draw_curves([])
    assert dict(matplotlib.rcParams) == before


def test_every_figure_has_the_style():
    rows = [{"step": step, "train/bound": float(step)} for step in range(5)]
    for figure in (plotting.draw_curves(rows), plotting.draw_scores({"test": np.arange(10.0)})):
        axes = figure.axes[0]
        assert not axes.spines["top"].get_visible()
        assert not axes.get_legend().get_frame_on()
        assert axes.xaxis.get_gridlines()[0].get_color() == "0.92"
        assert figure.dpi == 150


def test_no_figure_has_colours_of_its_own():
    """matplotlib's default colours include pairs that look alike to colour-blind readers."""
    pattern = re.compile(r"""tab10|tab20|["']tab:|turbo|["']jet["']|rainbow""")
    folders = [SOURCES / name for name in ("tfstruct", "models", "trainers", "docs")]
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(paths) > 100
    assert [str(path) for path in paths if pattern.search(path.read_text())] == []


@pytest.mark.parametrize("num", [1, 10, 11, 40])
def test_ordered_colors_differ_and_get_lighter(num):
    colors = [matplotlib.colors.to_rgb(color) for color in style.ordered_colors(num)]
    assert len(set(colors)) == num
    if num > 10:
        lightness = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in colors]
        assert lightness == sorted(lightness)
        assert lightness[-1] < 0.8  # seen on white

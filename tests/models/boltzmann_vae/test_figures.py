import matplotlib.image
import numpy as np
import pytest

from tfstruct.models.boltzmann_vae import figures as boltzmann
from tfstruct.plotting import save


def gradients():
    names = ["gibbs t=1", "gibbs t=3", "gibbs t=1 with I", "reinforce", "reparameterised"]
    return {
        "steps": [0, 10, 20],
        "curves": {name: {"kl": [1.0, 0.1, -1e-17]} for name in names},
        "gradient": {
            "norm": 1.5,
            "errors": {
                name: {"bias": 0.1 * place, "bias_std_err": 0.01, "std": 1.0 + place}
                for place, name in enumerate(names)
            },
        },
    }


def curve(scale, reached):
    return {
        "num_temperatures": [1, 10, 100],
        "error": [scale, 0.1 * scale, 0.0],
        "std": [scale, 0.1 * scale, 0.01 * scale],
        "reaches": {"num_temperatures": reached, "is_upper_bound": False},
    }


def temperatures():
    curves = {"posterior, biases": curve(0.1, 9.0), "prior, biases": curve(1.0, None)}
    return {"level": 0.01, "curves": curves}


def modes(prior=True):
    by_num_starts = {"num_starts": [1, 2], "num_modes": [1.0, 2.0]}
    return {
        "posterior": {"num_modes": [1, 1, 1, 2], "share_with_one_mode": 0.75, "kl": [0.1, 0.2, 0.3, 1.5]},
        "prior": {"by_num_starts": by_num_starts} if prior else None,
    }


def sweeps():
    def part(counts):
        values = [0.1 / (1 + count) for count in counts]
        floor = {"marginals": [0.01] * len(counts), "pairs": [0.02] * len(counts)}
        return {"num_sweeps": counts, "marginals": values, "pairs": values[::-1], "noise_floor": floor}

    bias = {"marginals": [0.001, 0.002], "pairs": [0.003, 0.004]}
    return {"hard": part([0, 1, 10]), "relaxed": part([1, 2]) | {"bias": bias}}


DRAWN = [
    (boltzmann.draw_gradients, gradients),
    (boltzmann.draw_temperatures, temperatures),
    (boltzmann.draw_modes, modes),
    (boltzmann.draw_sweeps, sweeps),
]


@pytest.mark.parametrize(("draw", "make"), DRAWN, ids=lambda value: value.__name__)
def test_figures_have_two_named_panels_and_are_written(draw, make, tmp_path):
    figure = draw(make())
    assert len(figure.axes) == 2
    assert all(axes.get_xlabel() for axes in figure.axes)
    assert matplotlib.image.imread(save(figure, tmp_path / "figure.png"))[..., :3].std() > 0.02


def test_term_1_is_dashed_in_the_color_of_its_sweeps():
    lines = {line.get_label(): line for line in boltzmann.draw_gradients(gradients()).axes[0].lines}
    assert list(lines) == list(gradients()["curves"])
    assert lines["gibbs t=1"].get_color() == lines["gibbs t=1 with I"].get_color()
    assert [lines[name].get_linestyle() for name in ("gibbs t=1", "gibbs t=1 with I")] == ["-", "--"]
    np.testing.assert_array_equal(lines["reinforce"].get_ydata(), [1.0, 0.1, 1e-16])


def test_numbers_of_temperatures_that_are_reached_are_marked():
    left, right = boltzmann.draw_temperatures(temperatures()).axes
    upright = [line.get_xdata()[0] for line in right.lines if len(set(line.get_xdata())) == 1]
    assert upright == [9.0]
    np.testing.assert_array_equal(left.lines[0].get_ydata(), [0.1, 0.1 * 0.1, np.nan])


def test_modes_are_counted_and_the_prior_is_named_where_there_is_one():
    left = boltzmann.draw_modes(modes()).axes[0]
    assert [bar.get_height() for bar in left.patches] == [3, 1]
    assert left.get_title() == "75% of 4 posteriors have one mode\nmodes of the prior: 2, from 2 starts"
    assert boltzmann.draw_modes(modes(prior=False)).axes[0].get_title() == "75% of 4 posteriors have one mode"


def test_sweeps_are_drawn_with_the_noise_they_have():
    left, right = boltzmann.draw_sweeps(sweeps()).axes
    for axes, part in ((left, sweeps()["hard"]), (right, sweeps()["relaxed"])):
        drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
        for name in ("marginals", "pairs"):
            assert (part["num_sweeps"], part[name]) in drawn
            assert (part["num_sweeps"], part["noise_floor"][name]) in drawn
            assert "bias" not in part or (part["num_sweeps"], part["bias"][name]) in drawn

import numpy as np
import pytest
import tensorflow as tf

from tfstruct.models import presets
from tfstruct.schedules import Schedule, course

FRACTIONS = (0.0, 0.3, 0.7, 1.0)
VALUES = (1.0, 4.0, 0.25, 0.5)


def _values(schedule, steps, run):
    return np.array([run(schedule, tf.constant(step)) for step in steps])


@pytest.mark.parametrize("interpolation", ["linear", "geometric", "cosine", "constant"])
@pytest.mark.parametrize("total_steps", [10, 1000, 780_000])
def test_knots_are_met(interpolation, total_steps, run):
    schedule = Schedule(FRACTIONS, VALUES, interpolation, total_steps)
    steps = [round(fraction * total_steps) for fraction in FRACTIONS]
    np.testing.assert_allclose(_values(schedule, steps, run), VALUES, rtol=2e-6)


def test_linear_goes_halfway_at_the_middle_of_a_segment(run):
    schedule = Schedule(FRACTIONS, VALUES, "linear", 1000)
    np.testing.assert_allclose(_values(schedule, [150, 500, 850], run), [2.5, 2.125, 0.375], rtol=2e-6)


def test_geometric_takes_the_geometric_mean_at_the_middle_of_a_segment(run):
    schedule = Schedule(FRACTIONS, VALUES, "geometric", 1000)
    expected = [2.0, 1.0, np.sqrt(0.125)]
    np.testing.assert_allclose(_values(schedule, [150, 500, 850], run), expected, rtol=2e-6)


def test_cosine_is_flat_at_the_knots_and_follows_half_a_period_between(run):
    schedule = Schedule((0.0, 0.5), (1.0, 0.2), "cosine", 1000)
    steps = np.array([0, 5, 125, 250, 375, 500, 700])
    expected = 0.6 + 0.4 * np.cos(np.pi * np.minimum(steps / 500, 1.0))
    np.testing.assert_allclose(_values(schedule, steps, run), expected, rtol=1e-5)


def test_constant_keeps_the_value_of_the_knot_before(run):
    schedule = Schedule(FRACTIONS, VALUES, "constant", 1000)
    steps = [0, 299, 300, 301, 699, 700, 999, 1000]
    expected = [1.0, 1.0, 4.0, 4.0, 4.0, 0.25, 0.25, 0.5]
    np.testing.assert_allclose(_values(schedule, steps, run), expected, rtol=2e-6)


# The fraction of a step is rounded: a compiled division by a constant must not move the knot by a step.
@pytest.mark.parametrize("total_steps", [10, 30, 700, 6000, 780_000])
def test_constant_changes_exactly_at_the_step_of_the_knot(total_steps, run):
    for tenth in range(1, 10):
        schedule = Schedule((0.0, tenth / 10), (1.0, 2.0), "constant", total_steps)
        knot = tenth * total_steps // 10
        np.testing.assert_array_equal(_values(schedule, [knot - 1, knot], run), [1.0, 2.0], err_msg=str(knot))


@pytest.mark.parametrize("interpolation", ["linear", "geometric", "cosine", "constant"])
def test_the_last_value_stays(interpolation, run):
    schedule = Schedule((0.0, 0.5), (1.0, 3.0), interpolation, 100)
    np.testing.assert_allclose(_values(schedule, [51, 100, 250], run), 3.0, rtol=1e-6)


def test_one_knot_is_a_constant(run):
    np.testing.assert_array_equal(_values(Schedule((0.0,), (0.7,), "linear", 5), [0, 3, 9], run), np.float32(0.7))


def test_a_kl_weight_may_start_at_zero():
    assert float(Schedule((0.0, 1.0), (0.0, 1.0), "linear", 4)(tf.constant(1))) == 0.25


def test_a_course_is_a_schedule_over_so_many_steps_and_is_checked():
    assert course(1.0, (1.0, 0.0)).over(8) == Schedule((0.0, 1.0), (1.0, 0.0), "linear", 8)
    with pytest.raises(ValueError, match="schedules.kl_weight: fractions must rise"):
        presets.get("vae/tiny", ["schedules.kl_weight.fractions=(0.0,0.0)", "schedules.kl_weight.values=(1.0,1.0)"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0.0, 1.0), (1.0,), "linear", 10), "one value for each fraction"),
        (((), (), "linear", 10), "one value for each fraction"),
        (((0.1, 1.0), (1.0, 2.0), "linear", 10), "rise from 0"),
        (((0.0, 0.5, 0.5), (1.0, 2.0, 3.0), "linear", 10), "rise from 0"),
        (((0.0, 1.5), (1.0, 2.0), "linear", 10), "at most 1"),
        (((0.0, 1.0), (1.0, 2.0), "sine", 10), "linear, geometric, cosine, constant, found 'sine'"),
        (((0.0, 1.0), (1.0, 0.0), "geometric", 10), "positive values"),
        (((0.0,), (1.0,), "linear", 0), "total_steps must be at least 1, found 0"),
    ],
)
def test_a_bad_schedule_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(*arguments)

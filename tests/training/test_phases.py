import types

import numpy as np
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tfstruct import random
from tfstruct.functional import Functional
from tfstruct.models import registry
from tfstruct.schedules import course
from tfstruct.training import run as training
from tfstruct.training import trainer
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.phases import Phases, fixed_structure
from tfstruct.training.state import TrainState, initial_state, stack_states
from tfstruct.training.step import TrainStep
from tfstruct.training.workdir import Workdir

EDGES = 3  # of three nodes
SCHEDULES = {
    "linear": course(0.0, (0.5, 1.0), (1.0, 0.25)),
    "geometric": course(1.0, (1.0, 0.1), interpolation="geometric"),
    "constant": course(2.0, (0.4, 5.0), interpolation="constant"),
}

# Boundary and lengths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "fraction", "boundary"),
    [
        (20, 0.5, 10),
        (20, 0.35, 7),
        (780_000, 0.2, 156_000),
        (200, 0.2, 40),
        (7, 0.2, 1),
        (7, 0.3, 2),
        (7, 0.9, 6),
        (2, 0.5, 1),
        (1000, 0.0006, 1),
        (1000, 0.9994, 999),
    ],
)
def test_the_first_phase_takes_its_fraction_rounded_to_whole_steps(steps, fraction, boundary):
    course = (f"training.steps={steps}", f"training.structure_fraction={fraction}")
    phases = Phases.from_config(tiny.config(*course))
    assert phases.boundary == boundary
    assert phases.lengths == [boundary, steps - boundary]


def test_without_a_fraction_there_is_one_phase_of_all_steps():
    phases = Phases(20)
    assert phases.boundary == 0
    assert phases.lengths == [20]


@pytest.mark.parametrize("fraction", [0.02, 1e-9, 0.98, 1.0, 1.5, -0.5, -0.01, np.nan, np.inf, -np.inf])
def test_a_fraction_that_leaves_a_phase_without_a_step_is_refused_with_what_was_found(fraction):
    with pytest.raises(ValueError, match=f"training.structure_fraction must be .*, found {fraction}$"):
        tiny.config().replace({"training.steps": 20, "training.structure_fraction": fraction})


# Steps within a phase -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "local"), [(0, 0), (1, 1), (6, 6), (7, 0), (8, 1), (19, 12)])
def test_steps_are_counted_from_the_beginning_of_their_phase(run, step, local):
    phases = Phases(20, 7)
    assert int(phases.local_step(step)) == local
    for dtype in (tf.int32, tf.int64):
        found = run(phases.local_step, tf.constant(step, dtype))
        assert found.dtype == dtype
        assert int(found) == local


@pytest.mark.parametrize("step", [0, 1, 19])
def test_in_one_phase_steps_are_counted_from_the_beginning_of_the_run(run, step):
    assert int(run(Phases(20).local_step, tf.constant(step))) == step


@pytest.mark.parametrize(("per_call", "every", "most"), [(4, 10, None), (3, 7, None), (500, 5000, None), (10, 7, 2)])
def test_no_call_crosses_the_boundary_a_validation_or_the_end(per_call, every, most):
    for first_phase in (1, 7, 12, 18, 22):
        run = object.__new__(trainer.Trainer)
        run.options = types.SimpleNamespace(steps_per_call=per_call, validate_every=every, steps=23)
        run.pipeline, run.phases = types.SimpleNamespace(max_steps_per_call=most), Phases(23, first_phase)
        run.state = types.SimpleNamespace(step=0)
        spans, boundary, largest = run.spans(), run.phases.boundary, min(per_call, most or per_call)
        ends = [first + size for first, size in spans]
        assert [first for first, _ in spans] == [0, *ends[:-1]]
        must = {boundary, 23, *range(every, 23, every)}
        assert must <= set(ends)
        assert max(ends) == 23
        for (_, size), end in zip(spans, ends, strict=True):
            assert size == largest or (size < largest and end in must)  # none is cut short without a reason
        run.state.step = boundary
        assert run.spans() == [span for span in spans if span[0] >= boundary]


# Schedules ----------------------------------------------------------------------------------------------------------


def values_of(schedule, steps, run):
    return np.array([float(run(schedule, tf.constant(step, tf.int32))) for step in steps])


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_phase_runs_the_schedule_from_its_beginning_over_its_own_length(name):
    found = Phases(20, 7).schedule(SCHEDULES[name])
    first, second = (SCHEDULES[name].over(length) for length in (7, 13))
    expected = [float(first(step)) for step in range(7)] + [float(second(step)) for step in range(13)]
    np.testing.assert_array_equal([float(found(step)) for step in range(20)], expected)
    assert len(set(expected)) > 1


def test_one_phase_runs_the_schedule_over_all_steps():
    for config in SCHEDULES.values():
        found, expected = Phases(20).schedule(config), config.over(20)
        np.testing.assert_array_equal(
            [float(found(step)) for step in range(21)], [float(expected(step)) for step in range(21)]
        )


@pytest.mark.parametrize("name", SCHEDULES)
def test_compiled_schedules_restart_at_the_boundary(compiled, name):
    schedule, boundary = Phases(20, 7).schedule(SCHEDULES[name]), 7
    near = [0, boundary - 1, boundary, boundary + 1, 19]
    expected = [float(schedule(step)) for step in near]
    np.testing.assert_allclose(values_of(schedule, near, compiled), expected, rtol=1e-6)
    assert expected[2] == expected[0] == SCHEDULES[name].values[0]
    assert expected[1] != expected[2]


def test_a_training_step_schedules_everything_by_phase():
    config = tiny.config("training.steps=20", "training.structure_fraction=0.35")
    names = ("schedules.learning_rate_factor", "schedules.kl_weight", "schedules.gate_temperature")
    config = config.replace(dict(zip(names, SCHEDULES.values(), strict=True)))
    step = TrainStep(registry.build(config), "cast")
    assert set(step.schedules) == {"learning_rate_factor", "kl_weight", "gate_temperature"}
    for name, schedule in step.schedules.items():
        second = getattr(config.schedules, name).over(13)
        np.testing.assert_array_equal(
            [float(schedule(step)) for step in range(7, 20)], [float(second(step)) for step in range(13)]
        )


# The state in which the second phase starts -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def functional():
    return Functional(registry.build(tiny.config("training.structure_fraction=0.5")))


def logits_of(functional, parameters):
    return np.stack([functional.parameters.named(vector)[gates_path(functional)] for vector in parameters])


def gates_path(functional):
    (path,) = [path for path in functional.parameters.paths if path.endswith("gates/logits")]
    return path


@pytest.fixture
def transition(functional, rng):
    """States of three replicas at the beginning and at the boundary, every number of them another, and the result."""
    fresh = initial_state(functional, random.key(0))

    def scrambled(seed):
        numbers = {
            name: rng.normal(size=getattr(fresh, name).shape).astype(np.float32)
            for name in ("parameters", "first_moment", "second_moment", "statistics")
        }
        return TrainState(**numbers, key=random.key(seed), chains={})

    empty = np.zeros_like(fresh.parameters)
    initial = stack_states([scrambled(seed)._replace(first_moment=empty, second_moment=empty) for seed in range(3)])
    state = stack_states([scrambled(seed) for seed in range(3)])
    parameters = state.parameters.copy()
    start = sum(functional.parameters.sizes[: functional.parameters.paths.index(gates_path(functional))])
    parameters[:, start : start + EDGES] = [[-0.1, 0.2, 0.0], [3.0, -20.0, -1e-30], [-1.0, -2.0, 4.0]]
    state = state._replace(parameters=parameters)
    before = tf.nest.map_structure(np.copy, (state, initial))
    result = fixed_structure(state, initial, functional)
    for found, expected in zip(tf.nest.flatten((state, initial)), tf.nest.flatten(before), strict=True):
        np.testing.assert_array_equal(found, expected)
    return state, initial, result


def test_each_replica_keeps_its_own_structure_hardened(functional, transition):
    _, _, result = transition
    found = logits_of(functional, result.parameters)
    np.testing.assert_array_equal(np.sign(found), [[-1, 1, 1], [1, -1, -1], [-1, -1, 1]])
    np.testing.assert_array_equal(np.abs(found), np.full([3, EDGES], 1e4))


def test_all_other_weights_moments_and_statistics_are_the_initial_ones(functional, transition):
    state, initial, result = transition
    path = gates_path(functional)
    for found, expected, learned in zip(result.parameters, initial.parameters, state.parameters, strict=True):
        found, expected, learned = (functional.parameters.named(vector) for vector in (found, expected, learned))
        for name in found.keys() - {path}:
            np.testing.assert_array_equal(found[name], expected[name])
            assert np.all(found[name] != learned[name])
    assert not result.first_moment.any()
    assert not result.second_moment.any()
    assert result.first_moment.shape == result.second_moment.shape == state.parameters.shape
    np.testing.assert_array_equal(result.statistics, initial.statistics)
    np.testing.assert_array_equal(result.key, state.key)
    assert tf.nest.map_structure(lambda leaf: (leaf.shape, leaf.dtype), result) == tf.nest.map_structure(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )


def test_only_a_learned_structure_has_variables(functional):
    assert [variable.path for variable, _ in functional.model.needs.structure] == [gates_path(functional)]
    for preset in ("vae/tiny", "fc_vae/tiny", "ladder_vae/tiny"):
        assert registry.build(tiny.config(preset=preset)).needs.structure == []
    # One node has no edge to learn.
    assert registry.build(tiny.config("model.num_nodes=1")).needs.structure == []


# Devices and compilers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "compiler"), [("mirrored", "graph"), pytest.param("none", "xla", marks=pytest.mark.slow)]
)
def test_both_phases_come_out_the_same_on_two_devices_and_compiled(tmp_path, strategy, compiler):
    file = tiny.write_rows(tmp_path / "rows.npz")
    course = ("training.steps=4", "training.structure_fraction=0.5", "optimizer.epsilon=1e-3")
    config = tiny.file_config(file, *course, "model.batch_norm=False", "model.num_nodes=2", "model.num_latents=4")
    for name, chosen, how in (("other", strategy, compiler), ("plain", "none", "graph")):
        config = config.replace({"training.compiler": how})
        assert training.train(config, tmp_path / name, strategy=chosen).step == 4
    found, expected = (Checkpoints(tmp_path / name / "checkpoints").latest().arrays for name in ("other", "plain"))
    functional = Functional(registry.build(Workdir(tmp_path / "plain").config()))
    logits = [logits_of(functional, arrays["state/parameters"]) for arrays in (found, expected)]
    np.testing.assert_array_equal(*logits)
    np.testing.assert_array_equal(np.abs(logits[0]), [[1e4]])
    for name in ("parameters", "first_moment", "second_moment"):
        # Without the gates, whose logits are so large that nothing else would count.
        one, two = (
            np.concatenate([piece.ravel() for path, piece in named.items() if path != gates_path(functional)])
            for named in (functional.parameters.named(arrays[f"state/{name}"][0]) for arrays in (found, expected))
        )
        assert np.linalg.norm(one - two) <= 2e-5 * np.linalg.norm(two), name
    np.testing.assert_allclose(found["best/bounds"], expected["best/bounds"], rtol=1e-5)

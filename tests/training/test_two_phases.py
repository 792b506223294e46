import contextlib
import io
import os
import pathlib
import shutil
import signal
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tests.reference.draws import training_draws
from tests.trainers import tiny
from tests.training.fake_scorer import FakeScorer
from tfstruct import random
from tfstruct.data.pipeline import batch_indices
from tfstruct.data.variants import prepare_batch
from tfstruct.evaluation import report
from tfstruct.functional import Functional
from tfstruct.models import registry
from tfstruct.training import run as training
from tfstruct.training import trainer, validation
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.logging import read_rows
from tfstruct.training.loop import TrainLoop, device_state, host_state
from tfstruct.training.optimizer import Adam
from tfstruct.training.state import TrainState, initial_state, replica, stack_states
from tfstruct.training.step import over_replicas
from tfstruct.training.workdir import Workdir

# Phases of 4 and 8 steps: their fractions are exact however they are computed. This seed and the next one learn
# different structures, both with open and with closed edges.
STEPS, BOUNDARY, EDGES, SEED = 12, 4, 3, 9
# All schedules move, and 96 visits go through the 40 rows more than twice.
COURSE = (
    f"training.seed={SEED}",
    f"training.steps={STEPS}",
    "training.structure_fraction=0.35",
    "training.steps_per_call=2",
    "training.validate_every=3",
    "optimizer.learning_rate=0.05",
    "optimizer.epsilon=1e-3",
    "schedules.learning_rate_factor.fractions=(0.0,1.0)",
    "schedules.learning_rate_factor.values=(1.0,0.2)",
    "schedules.kl_weight.fractions=(0.0,0.5)",
    "schedules.kl_weight.values=(0.1,1.0)",
)
ENDS = [2, 3, 4, 6, 8, 9, 11, 12]  # of the calls
SAVE_EVERY_CALL = "training.checkpoint_minutes=0.0"
# What the compiled loop does not depend on.
FREE = [f"training.{name}" for name in ("seed", "patience", "steps_per_call", "validate_every", "checkpoint_minutes")]
ARRAYS = ("parameters", "first_moment", "second_moment", "statistics", "key")


class Trained(NamedTuple):
    workdir: pathlib.Path
    result: training.RunResult
    text: str
    learned: TrainState | None  # as it was before the structure was fixed
    saved: dict  # copies of the folder by step, one for each checkpoint

    @property
    def arrays(self):
        return Checkpoints(self.workdir / "checkpoints").load(max(self.saved)).arrays


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny.write_rows(tmp_path_factory.mktemp("data") / "rows.npz", num=40)


@pytest.fixture(scope="module")
def train(file):
    """Trains; runs that differ in nothing that matters share the compiled loop, as tracing takes most of the time."""
    shared = {}

    def call(workdir, *overrides, scorer=None, at_boundary=lambda: None, **options):
        config = tiny.file_config(file, *COURSE, *overrides)
        key = tuple(override for override in overrides if override.partition("=")[0] not in FREE)
        states, saved, text, result = [], {}, io.StringIO(), None
        save, fix = trainer.Trainer.save, trainer.fixed_structure

        def sharing(make):
            def once(*arguments, **options):
                if (make, key) not in shared:
                    shared[make, key] = make(*arguments, **options)
                return shared[make, key]

            return once

        def saving(run):
            save(run)
            step = run.state.step
            saved[step] = workdir.with_name(f"{workdir.name}_at_{step}")
            shutil.copytree(workdir, saved[step], dirs_exist_ok=True)

        def fixing(state, initial, functional):
            states.append(state)
            at_boundary()
            return fix(state, initial, functional)

        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
            patch.setattr(trainer, "TrainLoop", sharing(trainer.TrainLoop))
            make_scorer = (lambda *_, **__: scorer) if scorer else sharing(validation.HeldOutScorer)
            patch.setattr(validation, "HeldOutScorer", make_scorer)
            patch.setattr(trainer.Trainer, "save", saving)
            patch.setattr(trainer, "fixed_structure", fixing)
            with contextlib.suppress(SystemExit):
                result = training.train(config, workdir, **options)
        assert len(states) <= 1  # one transition at most
        return Trained(workdir, result, text.getvalue(), states[0] if states else None, saved)

    return call


# The same training by hand ------------------------------------------------------------------------------------------


def logits_place(functional):
    """Where the gates lie in a vector of parameters."""
    layout = functional.parameters
    start = sum(layout.sizes[: layout.paths.index(functional.model.gates.logits.path)])
    return slice(start, start + EDGES)


class ByHand:
    """Trains a seed step by step to the states `learned`, `fixed` (in which the second phase starts) and `final`."""

    def __init__(self, file, seed):
        self.config, self.seed = tiny.file_config(file, *COURSE, "data.event_shape=(12,)"), seed
        self.rows = np.load(file)["train"]
        self.model = registry.build(self.config, seed=seed)
        self.functional = Functional(self.model)
        self.initial = initial_state(self.functional, random.key(seed))
        self.loop = TrainLoop(over_replicas(self.step, 1), "graph")
        self.place = logits_place(self.functional)
        self.learned = self.phase(self.initial, 0, BOUNDARY)
        self.is_open = self.learned.parameters[self.place] >= 0
        assert set(self.is_open) == {False, True}
        self.logits = np.where(self.is_open, 1e4, -1e4)
        self.uncertainty = 1.0 / (1.0 + np.exp(np.abs(self.learned.parameters[self.place]).min()))
        parameters = self.initial.parameters.copy()
        parameters[self.place] = self.logits
        self.fixed = self.initial._replace(parameters=parameters)
        self.final = self.phase(self.fixed, BOUNDARY, STEPS - BOUNDARY)

    def step(self, state, number, rows, row_ids):
        """One step; its count in its phase and the scheduled values come with the state."""
        key = random.fold_in(random.fold_in(random.key(self.seed), random.TRAINING_STEP), number)
        x, row_seeds, shared_seed = prepare_batch(rows, key, self.model.train_transform)
        pieces = self.functional.parameters.split(state.parameters)
        with tf.GradientTape() as tape:
            tape.watch(pieces)
            with self.functional.bind(pieces, state.statistics) as scope:
                draws = training_draws(self.model, row_seeds, shared_seed, state.chains["gate_temperature"])
                result = self.model.objective(x, draws, kl_weight=state.chains["kl_weight"])
            statistics = self.functional.new_statistics(scope)
        gradient = self.functional.parameters.join(tape.gradient(result.generative_loss, pieces))
        options = self.config.optimizer
        rate = options.learning_rate * state.chains["learning_rate_factor"]
        parameters, first, second, _ = Adam(options.beta_1, options.beta_2, options.epsilon).update(
            state.chains["count"], rate, gradient, state.parameters, state.first_moment, state.second_moment
        )
        state = state._replace(parameters=parameters, first_moment=first, second_moment=second, statistics=statistics)
        return state, {"skipped": tf.constant(0.0)}

    def phase(self, state, first_step, length):
        """Makes the steps first_step, first_step + 1, ... as a run of that length makes its own."""
        names = ("learning_rate_factor", "kl_weight", "gate_temperature")
        schedules = {name: getattr(self.config.schedules, name).over(length) for name in names}
        for count in range(length):
            scheduled = {name: schedule(tf.constant(count)) for name, schedule in schedules.items()}
            visits = batch_indices([self.seed], first_step + count, 1, 8, len(self.rows))
            chained = stack_states([state._replace(chains={"count": np.int32(count), **scheduled})])
            chained, _ = self.loop(device_state(chained), first_step + count, tf.constant(self.rows), visits)
            state = replica(host_state(chained), 0)._replace(chains={})
        return state


# The runs. All are made before the first test: the seeds set before each test make TensorFlow optimise anew.


@pytest.fixture(scope="module")
def by_hand(file):
    return ByHand(file, SEED)


@pytest.fixture(scope="module")
def straight(train, tmp_path_factory):
    """A run that nobody disturbed, with a checkpoint after every call."""
    return train(tmp_path_factory.mktemp("straight") / "run", SAVE_EVERY_CALL)


@pytest.fixture(scope="module")
def next_seed(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("next") / "run", f"training.seed={SEED + 1}")


@pytest.fixture(scope="module")
def resumed(train, straight, tmp_path_factory):
    """Runs that went on from each checkpoint of the straight one, by step."""
    folder = tmp_path_factory.mktemp("resumed")
    for step, saved in straight.saved.items():
        shutil.copytree(saved, folder / f"from_{step}")
    return {step: train(folder / f"from_{step}", SAVE_EVERY_CALL, resume="must") for step in straight.saved}


@pytest.fixture(scope="module")
def terminated(train, tmp_path_factory):
    """A run that got SIGTERM at the boundary, a copy of what it left, and the run that went on from it."""
    folder = tmp_path_factory.mktemp("terminated")
    stopped = train(folder / "run", at_boundary=lambda: os.kill(os.getpid(), signal.SIGTERM))
    shutil.copytree(folder / "run", folder / "again")
    return stopped, train(folder / "again", resume="must")


@pytest.fixture(scope="module")
def scored(train, tmp_path_factory):
    """A run whose validation bounds are made up, and what was scored; the first phase has the better ones."""
    scorer = FakeScorer([-1, -2, -1, -3, -9, -9, -8, -7, -8, -7, -9, -9])
    return train(tmp_path_factory.mktemp("scored") / "run", "training.validate_every=1", scorer=scorer), scorer


@pytest.fixture(scope="module")
def impatient(train, tmp_path_factory):
    """A run whose made-up bounds fall in the first phase, and later in the second."""
    scorer, workdir = FakeScorer([-1, -2, -3, -4, -9, -8, -8.5, -8.2]), tmp_path_factory.mktemp("impatient") / "run"
    return train(workdir, "training.validate_every=1", "training.patience=2", scorer=scorer), scorer


@pytest.fixture(scope="module", autouse=True)
def _all_runs(straight, next_seed, resumed, terminated, scored, impatient, by_hand):
    pass


def assert_state(arrays, expected):
    for name in ARRAYS:
        np.testing.assert_array_equal(arrays[f"state/{name}"], getattr(expected, name)[np.newaxis], err_msg=name)


def assert_same_run(found, expected):
    assert found.result.step == STEPS
    assert found.arrays.keys() == expected.arrays.keys()
    for name, value in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], value, err_msg=name)
    rows, wanted = (read_rows(run.workdir / "metrics.jsonl") for run in (found, expected))
    assert [row | {"seconds": 0} for row in rows] == [row | {"seconds": 0} for row in wanted]


# The course of a run ------------------------------------------------------------------------------------------------


def test_the_first_phase_is_a_training_of_its_length(straight, by_hand):
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(straight.learned, name)[0], getattr(by_hand.learned, name), err_msg=name)
    assert np.mean(by_hand.learned.parameters != by_hand.initial.parameters) > 0.5


def test_the_second_phase_starts_from_the_initial_weights_and_the_structure_learned(straight, by_hand):
    assert np.abs(by_hand.learned.parameters[by_hand.place]).max() < 1.0  # far from decided by themselves
    arrays = Checkpoints(straight.saved[BOUNDARY] / "checkpoints").load(BOUNDARY).arrays
    assert_state(arrays, by_hand.fixed)
    np.testing.assert_array_equal(arrays["best/parameters"], arrays["state/parameters"])
    assert [arrays[f"best/{name}"][0] for name in ("bounds", "steps", "waits", "stopped")] == [-np.inf, 0, 0, False]


def test_the_second_phase_is_weight_for_weight_a_training_of_its_own(straight, by_hand):
    assert_state(straight.arrays, by_hand.final)
    assert np.mean(by_hand.final.parameters != by_hand.fixed.parameters) > 0.5


def test_the_gates_do_not_move_once_they_are_fixed(straight, by_hand):
    assert list(straight.saved) == ENDS
    for step, folder in straight.saved.items():
        arrays = Checkpoints(folder / "checkpoints").load(step).arrays
        logits = arrays["state/parameters"][0, by_hand.place]
        if step < BOUNDARY:
            assert np.all((logits != 0) & (np.abs(logits) < 1.0))
            continue
        np.testing.assert_array_equal(logits, by_hand.logits)
        assert not any(arrays[f"state/{name}"][0, by_hand.place].any() for name in ("first_moment", "second_moment"))


def test_calls_end_at_the_boundary_with_a_validation(straight):
    rows = read_rows(straight.workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == ENDS
    assert [row["step"] for row in rows if "validation/bound" in row] == [3, 4, 6, 9, 12]


def test_the_run_says_how_many_edges_it_keeps_and_how_decided_they_were(straight, by_hand):
    text = f"(the least decided gate was {by_hand.uncertainty:.2f} from 0 or 1)"
    expected = f"step 4: structure of seed {SEED} fixed, 1 of 3 edges open {text}; all other weights start anew"
    assert [line for line in straight.text.splitlines() if "structure" in line] == [expected]


def test_gates_are_recorded_as_exactly_open_or_closed_after_the_boundary(straight, by_hand):
    for row in read_rows(straight.workdir / "metrics.jsonl"):
        gates = np.array(row["train/gate_probabilities"])
        if row["step"] > BOUNDARY:
            np.testing.assert_array_equal(gates, by_hand.is_open)
        else:
            assert np.all((gates > 0.25) & (gates < 0.75))


def test_the_evaluation_finds_a_decided_structure_and_the_second_phase(straight, by_hand):
    result = report.evaluate(report.TrainedRun(str(straight.workdir)))
    (found,) = result["replicas"]
    assert found["largest_gate_uncertainty"] == 0.0
    assert found["largest_gate_uncertainty_when_fixed"] == pytest.approx(by_hand.uncertainty, rel=1e-5)
    assert result["flags"][0].startswith(f"undecided: a gate had probability {by_hand.uncertainty:.2f} of being")
    expected = by_hand.model.gates.matrix(tf.constant(by_hand.is_open, tf.float32))
    np.testing.assert_array_equal(found["edge_probabilities"], expected)
    assert found["open_edges"] == 1
    assert found["best_step"] > BOUNDARY


# Best weights and patience ------------------------------------------------------------------------------------------


def test_the_best_weights_are_of_the_second_phase_however_good_the_first_was(scored, by_hand):
    run, scorer = scored
    assert run.result.step == STEPS
    np.testing.assert_array_equal(run.result.best.steps, [8])
    np.testing.assert_array_equal(run.result.best.bounds, [-7])
    for found in (run.result.best, Workdir(run.workdir).run_state().weights):
        for array, expected in zip((found.parameters, found.statistics), scorer.seen[8 - 1], strict=True):
            np.testing.assert_array_equal(array[0], expected)
    np.testing.assert_array_equal(run.result.best.parameters[0, by_hand.place], by_hand.logits)


def test_the_end_of_the_first_phase_is_validated_before_its_structure_is_fixed(scored, by_hand):
    learned = by_hand.learned.parameters, by_hand.learned.statistics
    for found, expected in zip(scored[1].seen[BOUNDARY - 1], learned, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_patience_ends_the_second_phase_and_not_the_first(impatient):
    run, scorer = impatient
    assert run.result.step == max(run.saved) == 8
    assert "stopped early at step 8: no new best validation bound" in run.text
    np.testing.assert_array_equal(run.result.best.stopped, [True])
    np.testing.assert_array_equal(run.result.best.steps, [6])
    np.testing.assert_array_equal(run.result.best.parameters[0], scorer.seen[6 - 1][0])


# Interrupted and given again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ENDS[:-1])
def test_a_run_goes_on_from_either_phase_and_from_the_boundary_bit_for_bit(straight, resumed, step):
    run = resumed[step]
    assert f"at step {step} of {STEPS}" in run.text
    assert ("edges open" in run.text) == (step < BOUNDARY)
    assert min(run.saved) == ENDS[ENDS.index(step) + 1]
    assert_same_run(run, straight)


def test_a_signal_at_the_boundary_saves_the_beginning_of_the_second_phase(straight, by_hand, terminated):
    stopped, again = terminated
    assert stopped.result is None
    assert f"stopped by a signal at step {BOUNDARY}" in stopped.text
    assert list(stopped.saved) == [BOUNDARY]
    assert_state(stopped.arrays, by_hand.fixed)
    weights = Workdir(stopped.workdir).run_state().weights
    np.testing.assert_array_equal(weights.parameters[0], by_hand.fixed.parameters)
    np.testing.assert_array_equal(weights.bounds, [-np.inf])
    assert_same_run(again, straight)


def test_each_replica_is_the_run_of_its_seed_alone(train, straight, next_seed, tmp_path, by_hand):
    together = train(tmp_path / "run", "training.replicas=2", "training.steps_per_call=1")
    for index, (run, num_open) in enumerate(((straight, 1), (next_seed, 2))):
        for name in ("state/parameters", "state/second_moment", "state/statistics", "best/parameters", "best/bounds"):
            found, expected = together.arrays[name][index], run.arrays[name][0]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)
        logits = run.arrays["state/parameters"][0, by_hand.place]
        np.testing.assert_array_equal(together.arrays["state/parameters"][index, by_hand.place], logits)
        for text in (run.text, together.text):
            assert f"seed {SEED + index} fixed, {num_open} of 3 edges open" in text
    assert np.abs(np.subtract(*np.delete(together.arrays["state/parameters"], by_hand.place, axis=1))).max() > 0.1

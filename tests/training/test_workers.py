"""Training by several processes: the numbers of one, one that writes, and what becomes of the others if one ends."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

from tests.trainers import tiny
from tfstruct.models import presets
from tfstruct.training import run as training
from tfstruct.training import workers
from tfstruct.training.distribute import make_strategy
from tfstruct.training.workdir import Workdir
from tfstruct.training.workers import Task

COURSE = (
    "optimizer.epsilon=1e-3", "training.steps=100", "training.steps_per_call=5", "training.validate_every=20",
    "training.checkpoint_minutes=1e-6",
)  # fmt: skip

STREAMED = "training.resident_megabytes=0"  # each process reads the rows of its own part of every batch


def free_ports(num):
    """Ports that are free now; all are held until the last is found."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


class Job:
    """Two processes of the same training; the second is told another folder, which must stay empty."""

    def __init__(self, file, folder, *options, others=(), preset="graph_vae/tiny", settings=(*tiny.SMALL, *COURSE)):
        addresses = [f"localhost:{port}" for port in free_ports(2)]
        self.folder, self.processes = folder, []
        for index in range(2):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            self.processes.append(
                tiny.start_program(
                    "train",
                    f"--preset={preset}",
                    f"--workdir={folder}{'_other' * index}",
                    f"--data_file={file}",
                    "--strategy=multi_worker",
                    *[f"--set={setting}" for setting in (*settings, STREAMED, *(others if index else ()))],
                    *options,
                    TF_CONFIG=json.dumps(config),
                )
            )

    def wait_for_step(self, step):
        """Waits until the step has been saved."""
        deadline = time.monotonic() + 120
        while not any(found >= step for found in Workdir(self.folder).checkpoints.steps()):
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in self.processes), self.results()
            time.sleep(0.02)

    def results(self, timeout=120):
        """Exit status, output and errors of each process."""
        ends = []
        for process in self.processes:
            try:
                output, errors = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                for each in self.processes:
                    each.kill()
                raise
            ends.append((process.returncode, output, errors))
        return ends


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny.write_rows(tmp_path_factory.mktemp("rows") / "rows.npz")


@pytest.fixture(scope="module")
def together(file, tmp_path_factory):
    """The folder of a run of two processes from beginning to end."""
    folder = tmp_path_factory.mktemp("workers") / "together"
    (status, output, errors), other = Job(file, folder).results()
    assert (status, other[0]) == (0, 0), (errors, other[2])
    assert "step 100, best validation" in output
    assert "best validation" not in other[1]
    assert [path.name for path in folder.parent.iterdir()] == ["together"]  # the chief alone writes
    return folder


def test_two_processes_train_as_one(file, together, tmp_path):
    config = tiny.file_config(file, *tiny.SMALL, *COURSE, "training.compiler=graph")
    assert config.model.batch_norm
    training.train(config, tmp_path, strategy="none")
    found, expected = (Workdir(folder).run_state() for folder in (together, tmp_path))
    for name in ("parameters", "first_moment", "statistics"):
        one, two = (np.asarray(getattr(state.train, name)) for state in (found, expected))
        assert np.linalg.norm(one - two) <= 1e-5 * np.linalg.norm(two), name
    np.testing.assert_allclose(found.best.bounds, expected.best.bounds, rtol=1e-5)
    environment = Workdir(together).environment()
    assert (environment["strategy"], environment["devices"]) == ("multi_worker", 2)


def test_two_processes_hold_the_samplers_of_all_rows(file, tmp_path):
    settings = (
        "model.num_units_1=4", "model.num_units_2=3", "model.encoder_units=(5,)", "model.decoder_units=(6,)",
        "optimizer.epsilon=1e-3", "training.steps=12", "training.batch_size=8", "training.validate_every=12",
        "training.compiler=graph",
    )  # fmt: skip
    job = Job(file, tmp_path / "together", preset="boltzmann_vae/tiny", settings=settings)
    (status, _, errors), (other_status, _, _) = job.results()
    assert (status, other_status) == (0, 0), errors
    chosen = ["data.name=file", f"data.file={str(file)!r}", "data.variant=none"]
    training.train(presets.get("boltzmann_vae/tiny", [*chosen, *settings]), tmp_path / "alone", strategy="none")
    found, expected = (Workdir(tmp_path / name).run_state().train for name in ("together", "alone"))
    one, two = (np.asarray(state.chains["posterior"]) for state in (found, expected))
    assert 0.1 < np.mean(two) < 0.9
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(found.parameters, expected.parameters, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        # Mean rates of each process's own rows would leave other groups free.
        (("objective.free_bits=0.002", "schedules.kl_weight.values=(1.0,1.0)"), 1e-5),
        (("training.precision=bfloat16", "training.compiler=xla"), 2**-8),
        # With the second phase the chief goes on from another state than that of the step before.
        (("model.structure=learned", "training.structure_fraction=0.5", "training.steps=4"), 1e-5),
    ],
    ids=["free bits", "bfloat16 under XLA", "two phases"],
)
def test_two_processes_train_as_one_without_batch_norm(settings, tolerance, file, tmp_path):
    common = ("model.batch_norm=False", "model.structure=full", "optimizer.epsilon=1e-3", "training.steps=2")
    settings = (*tiny.SMALL, *common, "training.steps_per_call=1", "training.validate_every=2", *settings)
    (status, _, errors), (other_status, _, _) = Job(file, tmp_path / "together", settings=settings).results()
    assert (status, other_status) == (0, 0), errors
    training.train(tiny.file_config(file, *settings), tmp_path / "alone", strategy="none")
    found, expected = (Workdir(tmp_path / name).run_state().train for name in ("together", "alone"))
    one, two = (np.asarray(state.first_moment) for state in (found, expected))
    assert np.linalg.norm(one - two) <= tolerance * np.linalg.norm(two)


def test_a_job_that_is_killed_and_stopped_goes_on_and_ends_as_one_that_was_not(file, together, tmp_path):
    job = Job(file, tmp_path / "run")
    job.wait_for_step(10)
    job.processes[1].kill()
    started = time.monotonic()
    (status, _, errors), _ = job.results()
    assert status == 1
    assert time.monotonic() - started < 60
    assert errors.strip().splitlines()[-1].startswith("tfstruct-train: worker 0 of 2 lost another worker; start all")

    before = max(Workdir(tmp_path / "run").checkpoints.steps())
    job = Job(file, tmp_path / "run", "--resume=must")
    job.wait_for_step(before + 5)
    job.processes[1].send_signal(signal.SIGTERM)
    for status, _, errors in job.results():
        assert status == 128 + signal.SIGTERM, errors
    assert before < Workdir(tmp_path / "run").run_state().step < 100

    for status, _, errors in Job(file, tmp_path / "run", "--resume=must").results():
        assert status == 0, errors
    found, expected = (Workdir(folder).run_state().arrays() for folder in (tmp_path / "run", together))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_processes_of_other_settings_do_not_train_together(file, tmp_path):
    others = ["optimizer.learning_rate=0.5"]
    (status, _, chief), (other_status, _, other) = Job(file, tmp_path / "run", others=others).results()
    assert (status, other_status) == (1, 1)
    assert "another worker has other settings or data, and says which" in chief
    assert re.search(r"worker 1 has another config than the chief. There / here.*learning_rate: .* 0\.5$", other, re.S)
    assert not (tmp_path / "run/checkpoints").exists()


def test_processes_of_other_data_do_not_train_together(file, tmp_path):
    other = tiny.write_rows(tmp_path / "other.npz")
    with np.load(other) as rows:
        arrays = dict(rows)
    name = next(iter(arrays))
    arrays[name] = arrays[name][::-1]
    np.savez(other, **arrays)
    job = Job(file, tmp_path / "run", others=[f"data.file={str(other)!r}"])
    (status, _, chief), (other_status, _, errors) = job.results()
    assert (status, other_status) == (1, 1)
    assert "another worker has other settings or data, and says which" in chief
    assert re.search(r"worker 1 has data of checksum \w+, the chief \w+", errors)


def test_a_process_that_waits_for_the_others_is_ended_by_ctrl_c(tmp_path):
    config = {"cluster": {"worker": [f"localhost:{port}" for port in free_ports(2)]}}
    config["task"] = {"type": "worker", "index": 1}
    process = tiny.start_program(
        "train", "--preset=graph_vae/tiny", f"--workdir={tmp_path / 'run'}", TF_CONFIG=json.dumps(config)
    )
    assert "worker 1 of 2 at localhost" in process.stdout.readline()
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(timeout=30) == -signal.SIGINT
    finally:
        process.kill()
        process.communicate()


def test_the_others_are_told_how_the_chief_ended(file, tmp_path):
    (_, _, chief), (status, _, other) = Job(file, tmp_path / "run", "--resume=must").results()
    assert "resume" in chief
    assert status == 1
    assert "lost another worker" in other or "the chief ended: " in other


# TF_CONFIG -----------------------------------------------------------------------------------------------------------


def test_tf_config_says_which_process_this_is(monkeypatch):
    cluster = {"chief": ["a:1"], "worker": ["b:2", "c:3"]}
    for place, (kind, index) in enumerate((("chief", 0), ("worker", 0), ("worker", 1))):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
        task = Task.from_environment()
        assert task == Task(("a:1", "b:2", "c:3"), place)
        assert task.is_chief == (place == 0)
    monkeypatch.delenv("TF_CONFIG")
    assert Task.from_environment() is None


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "3", '{"cluster": {}}', '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
        '{"cluster": {"chief": ["a:1", "b:2"]}, "task": {"type": "chief", "index": 0}}', "[" * 100_000,
        '{"cluster": {"worker": "localhost:2222"}, "task": {"type": "worker", "index": 0}}',
    ],
)  # fmt: skip
def test_a_tf_config_that_says_something_else_is_refused(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=r'TF_CONFIG must be {"cluster": {"worker": \["host:port"'):
        make_strategy("auto")


def test_an_address_that_stands_twice_is_refused(monkeypatch):
    cluster = {"worker": ["a:1", "b:2", "a:1"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}}))
    with pytest.raises(ValueError, match="TF_CONFIG must name each address once, found a:1 several times"):
        Task.from_environment()


def test_one_worker_is_no_job_of_several(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}')
    assert make_strategy("auto") is None
    with pytest.raises(ValueError, match="at least two workers, found one of 1"):
        make_strategy("multi_worker")
    monkeypatch.delenv("TF_CONFIG")
    with pytest.raises(ValueError, match="at least two workers, found none"):
        make_strategy("multi_worker")


def test_messages_hold_arrays_of_any_type(rng):
    arrays = {"a": rng.normal(size=[3, 2]), "b": np.array([1, 2], np.uint32), "c": np.zeros([0], np.float32)}
    found, about = workers.unpack(workers.pack(arrays, step=3, text="x"))
    assert about == {"step": 3, "text": "x"}
    assert found.keys() == arrays.keys()
    for name, values in arrays.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)

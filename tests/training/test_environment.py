import subprocess

import pytest

from tests.trainers import tiny
from tfstruct.training import run as training
from tfstruct.training import workdir


def commit_of(root, monkeypatch):
    """The commit that a package installed at `root` names."""
    monkeypatch.setattr(workdir, "__file__", str(root / "tfstruct/training/workdir.py"))
    return workdir.environment()["commit"]


def git(folder, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkout_names_its_commit_and_whether_it_was_changed(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    (tmp_path / "setup.py").write_text("a")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/table.json").write_text("{}")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(tmp_path, monkeypatch) == head
    (tmp_path / "results/table.json").write_text("[]")  # as the benchmark before wrote it
    assert commit_of(tmp_path, monkeypatch) == head
    (tmp_path / "setup.py").write_text("b")
    assert commit_of(tmp_path, monkeypatch) == f"{head}-dirty"


def test_an_installed_package_does_not_name_the_commit_of_a_repository_around_it(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "the user's own")
    inside = tmp_path / ".venv/lib/site-packages"
    inside.mkdir(parents=True)
    assert commit_of(inside, monkeypatch) is None
    assert commit_of(tmp_path, monkeypatch) is None  # no setup.py of ours


def test_this_checkout_names_its_own_commit():
    if (tiny.CHECKOUT / ".git").exists():
        assert workdir.environment()["commit"].removesuffix("-dirty") == git(tiny.CHECKOUT, "rev-parse", "HEAD")


def test_the_environments_of_all_processes_of_a_run_stay(tmp_path, monkeypatch):
    folder = workdir.Workdir(tmp_path)
    for step, commit in ((0, "a1"), (0, "b2"), (10, "b2"), (20, "c3")):  # begun anew: what was before is another run
        monkeypatch.setattr(workdir, "current_commit", lambda commit=commit: commit)
        noted = folder.write_environment(step, compiler="xla")
    found = folder.environment()
    assert found == noted
    assert (found["commit"], found["first_step"], found["compiler"]) == ("c3", 20, "xla")
    assert [(process["commit"], process["first_step"]) for process in found["earlier"]] == [("b2", 0), ("b2", 10)]
    assert all("earlier" not in process for process in found["earlier"])
    assert workdir.earlier_commits(found) == ["b2"]
    assert workdir.earlier_commits({"commit": "c3"}) == []


def test_a_damaged_environment_is_passed_over(tmp_path):
    folder = workdir.Workdir(tmp_path)
    for content in ("{", "[1]"):
        (tmp_path / "environment.json").write_text(content)
        with pytest.warns(RuntimeWarning, match="passed over a damaged environment: .*environment.json"):
            assert folder.environment() == {}


def test_a_process_that_makes_no_step_is_not_said_to_have_trained(tmp_path, monkeypatch):
    file = tiny.write_rows(tmp_path / "rows.npz")
    folder = workdir.Workdir(tmp_path / "run")
    for commit in ("a1", "b2"):
        monkeypatch.setattr(workdir, "current_commit", lambda commit=commit: commit)
        training.train(tiny.vae_config(file), folder.path)
    assert (folder.environment()["commit"], folder.environment()["earlier"]) == ("a1", [])
    assert folder.run_state().made_by["commit"] == "a1"

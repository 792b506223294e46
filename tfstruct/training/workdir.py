"""The folder of a training run: its config, its environment, and the weights that came out."""

import datetime
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfstruct.files import PathLike, read_json, write_json, write_text
from tfstruct.models.config import Config
from tfstruct.models.registry import parse_config
from tfstruct.settings import differences
from tfstruct.training.checkpoint import Checkpoints
from tfstruct.training.state import RunState

CONFIG_NAME = "config.json"
RESUME_MODES = ("auto", "never", "must")


class Workdir:
    """Paths and small files of a run.

    Args:
        path: the folder.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path / "checkpoints")

    def check_resume(self, resume: str) -> None:
        """Checks a resume mode against what the folder holds, and writes nothing.

        Args:
            resume: `auto` resumes from a checkpoint if there is one, `must` insists on one, `never` refuses a
                folder that has one.

        Raises:
            ValueError: an unknown mode.
            FileExistsError: `never` in a folder with checkpoints.
            FileNotFoundError: `must` in a folder without.
        """
        if resume not in RESUME_MODES:
            raise ValueError(f"resume must be one of {', '.join(RESUME_MODES)}, found {resume!r}")
        has_checkpoint = bool(self.checkpoints.steps())
        if resume == "must" and not has_checkpoint:
            raise FileNotFoundError(f"--resume=must, but {self.checkpoints.folder} holds no checkpoint")
        if resume == "never" and has_checkpoint:
            raise FileExistsError(
                f"--resume=never, but {self.checkpoints.folder} holds a run; choose another --workdir"
            )

    def claim(self, config: Config, resume: str) -> None:
        """Makes the folder this config's: writes config.json, or checks the one that is there.

        Args:
            config: of the run that is about to start.
            resume: see `check_resume`.

        Raises:
            ValueError: a folder that holds a run of another config (differences are listed).
            OSError: the folder cannot be written, or what `check_resume` raises.
        """
        self.check_resume(resume)
        path = self.path / CONFIG_NAME
        if self.checkpoints.steps():
            # A checkpoint knows its config too, for where the file is gone.
            checkpoint = None if path.exists() else self.checkpoints.latest()
            kept = "" if checkpoint is None else RunState.from_checkpoint(checkpoint).config
            if kept or path.exists():
                message = f"{self.path} holds a run of another config; choose another --workdir, or the same settings. "
                try:
                    require_same(parse_config(kept) if kept else self.config(), config, f"{message}There / asked for")
                except ValueError:
                    self.run_state()  # which says so if it is config.json that was changed
                    raise
        write_text(path, config.to_json() + "\n")

    def config(self) -> Config:
        """Reads config.json; raises FileNotFoundError that says what a workdir is if there is none."""
        path = self.path / CONFIG_NAME
        if not path.exists():
            raise FileNotFoundError(f"{self.path} is no folder of a training run: it has no {CONFIG_NAME}")
        try:
            return parse_config(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def write_environment(self, first_step: int, **extra: Any) -> dict[str, Any]:
        """Writes environment.json: versions, machine, devices, command line; returns it.

        Those of earlier processes of the same run stay, under `earlier`, the first one first.

        Args:
            first_step: steps that were done before this process.
            **extra: what else is to be noted.
        """
        before = self.environment() if first_step else {}
        earlier = [*before.pop("earlier", []), before] if before else []
        now = environment() | extra | {"first_step": first_step, "earlier": earlier}
        write_json(self.path / "environment.json", now)
        return now

    def environment(self) -> dict[str, Any]:
        """Reads environment.json, of the newest process; empty where there is none, or a damaged one."""
        path = self.path / "environment.json"
        try:
            found = read_json(path) if path.exists() else {}
        except ValueError as error:
            found = error
        if isinstance(found, dict):
            return found
        warnings.warn(f"passed over a damaged environment: {path}", RuntimeWarning, stacklevel=2)
        return {}

    def run_state(self) -> RunState:
        """Reads where the run is from its latest checkpoint.

        Raises:
            FileNotFoundError: there is none yet.
            ValueError: all are damaged, or config.json is not what it was when that was written.
        """
        checkpoint = self.checkpoints.latest()
        if checkpoint is None:
            if self.checkpoints.steps():
                raise ValueError(f"every checkpoint in {self.checkpoints.folder} is damaged")
            raise FileNotFoundError(f"{self.checkpoints.folder} holds no checkpoint; train first")
        state = RunState.from_checkpoint(checkpoint)
        if state.config and (self.path / CONFIG_NAME).exists():
            require_same(
                parse_config(state.config),
                self.config(),
                f"{self.path / CONFIG_NAME} was changed since {checkpoint.path.name} was written. Then / now",
            )
        return state


def require_same(config: Config, other: Config, message: str) -> None:
    """Raises ValueError, with a line for each setting that differs."""
    # Going on does not need the weights that the run began with, which may have moved.
    lines = [line for line in differences(config, other) if not line.startswith("training.initial_weights:")]
    if lines:
        raise ValueError("\n  ".join([f"{message}:", *lines]))


def current_commit() -> str | None:
    """The commit of the checkout that runs, `-dirty` with changes but to results; None of an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not ((root / ".git").exists() and (root / "setup.py").exists()):
        return None  # a repository above would be the user's own
    try:
        run = lambda *command: subprocess.run(  # noqa: E731
            ["git", "-C", str(root), *command], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
        return run("rev-parse", "HEAD") + (
            "-dirty" if run("status", "--porcelain", "-uno", "--", ".", ":!results") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def earlier_commits(recorded: Mapping[str, Any]) -> list[str | None]:
    """Returns the commits by which a run was trained before the one that its environment names, in order, once each."""
    commits = dict.fromkeys(earlier.get("commit") for earlier in recorded.get("earlier", []))
    return [commit for commit in commits if commit != recorded.get("commit")]


def program_command() -> list[str]:
    """Returns the command line of this process, a program of this package by the name that it is installed under."""
    path = Path(sys.argv[0])
    is_ours = path.suffix == ".py" and path.parent.name == "trainers"
    return [f"tfstruct-{path.stem.replace('_', '-')}" if is_ours else path.name, *sys.argv[1:]]


def environment() -> dict[str, Any]:
    """Returns what is needed to say where a number came from."""
    packages = ("tfstruct", "tensorflow", "keras", "tensorflow-probability", "numpy")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    gpus = [
        tf.config.experimental.get_device_details(device).get("device_name", device.name)
        for device in tf.config.list_physical_devices("GPU")
    ]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": program_command(),
        "commit": current_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": gpus,
        "versions": versions,
    }

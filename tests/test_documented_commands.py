"""The commands of the documents: flags, names and settings are there, and those that take seconds run."""

import json
import re
import shlex
from collections import defaultdict

import numpy as np
import pytest

import tfstruct
from tests import documented
from tests.trainers import tiny
from tfstruct.data import datasets
from tfstruct.evaluation import analysis
from tfstruct.models import presets
from tfstruct.models.registry import SYSTEMS
from tfstruct.models.tables import TABLES
from tfstruct.settings import apply_overrides
from tfstruct.training import run as training

PROGRAMS = documented.programs()
# Flags of two programs may have one name, so each is parsed by a process of its own.
_PARSER = """
import importlib, json, sys
from absl import flags

module, calls = f"tfstruct.trainers.{sys.argv[1]}", json.loads(sys.argv[2])
program = importlib.import_module(module)
parsed = []
for arguments in calls:
    flags.FLAGS.unparse_flags()
    for part in (module, "tfstruct.trainers.entry"):
        for flag in flags.FLAGS.get_flags_for_module(part):
            flag.unparse()
    rest = flags.FLAGS([module, *arguments])[1:]
    assert not rest, rest
    parsed.append(flags.FLAGS.flag_values_dict())
print(json.dumps(parsed))
"""


def parsed(name):
    """The flags of every documented call of a program, by its own parser: (page, values)."""
    calls = PROGRAMS[name]
    done = tiny.run_python(_PARSER, name.replace("-", "_"), json.dumps([arguments for _, arguments in calls]))
    values = json.loads(done.stdout.splitlines()[-1])
    return [(page, found) for (page, _), found in zip(calls, values, strict=True)]


def require_model(name):
    # BUNDLE stands for the bundle in the recipes of its card.
    assert name.startswith(("runs/", "models/", "./")) or name in (*tfstruct.list_models(), "BUNDLE"), name


def test_every_program_stands_in_the_documents():
    assert set(PROGRAMS) == {path.stem for path in (tiny.CHECKOUT / "trainers").glob("*.py")} - {"__init__", "entry"}
    assert sum(map(len, PROGRAMS.values())) > 60


@pytest.mark.parametrize("name", PROGRAMS)
def test_documented_calls_have_the_flags_and_names_that_there_are(name):
    for page, found in parsed(name):
        own = found.get("import")  # a module of the reader's, which registers what is named
        if name in ("train", "quickstart", "benchmark") and found["preset"] and not own:
            changes = list(found.get("set") or [])
            if found.get("data_file"):
                changes = ["data.name=file", "data.file='X.npz'", "data.variant=none", *changes]
            presets.get(found["preset"], changes)
        if name == "evaluate":
            known = {setting for entry in SYSTEMS.values() for setting in entry.config.parse({}).names()}
            assert {change.partition("=")[0] for change in found["set"]} <= known, page
        if name in ("evaluate", "calibrate") and found["data"]:
            source, _, variant = found["data"].partition("/")
            assert variant in datasets.variants_of(source), page
        if name == "reproduce":
            for table in found["table"] or ():
                assert set(found["rows"] or ()) <= {row.name for row in TABLES[table].rows}, page
        if name == "analyse" and found["analysis"]:
            apply_overrides(analysis.settings_of(analysis.offered()[found["analysis"]]), found["set"])
        if name in ("score", "sample", "verify", "calibrate") and found["model"]:
            require_model(found["model"])
        if name == "serve":
            for model in found["models"]:
                require_model(model.rpartition("=")[2])
        for against in found["against"] if name == "benchmark" else ():
            presets.get(against) if "=" not in against else presets.get(found["preset"], against.split())


def test_a_flag_that_is_not_there_is_found(monkeypatch):
    monkeypatch.setitem(PROGRAMS, "verify", [("planted.md", ["--model=graph_vae/mnist", "--sha265=0"])])
    with pytest.raises(AssertionError, match="sha265"):
        parsed("verify")


def test_a_setting_that_is_not_there_is_found(monkeypatch):
    call = ["--preset=vae/tiny", "--workdir=runs/a", "--set=model.num_nods=3"]
    monkeypatch.setitem(PROGRAMS, "train", [("planted.md", call)])
    with pytest.raises(ValueError, match="unknown setting 'model.num_nods'"):
        test_documented_calls_have_the_flags_and_names_that_there_are("train")


def run_all(calls, folder):
    for word, *arguments in calls:
        done = tiny.run_program(word.removeprefix("tfstruct-"), *arguments, cwd=folder)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/guides/data.md", "docs/guides/own_system.md"])
def test_a_data_file_and_a_system_of_ones_own_go_the_whole_way(page, tmp_path, monkeypatch):
    (block,) = documented.blocks(page, "python")
    if "own_system" in page:
        (tmp_path / "small_vae.py").write_text(block.text.partition("\nmodel = build(")[0])
        monkeypatch.setitem(tiny.ENVIRONMENT, "PYTHONPATH", str(tmp_path))
    else:
        monkeypatch.chdir(tmp_path)
        exec(compile(block.text, page, "exec"), {})
    calls = documented.commands(page)
    assert [word for word, *_ in calls] == ["tfstruct-train", "tfstruct-evaluate", "tfstruct-export"]
    run_all(calls, tmp_path)
    (output,) = re.findall(r"--output=(\S+)", " ".join(calls[-1]))
    assert tfstruct.load(tmp_path / output).card["system"] in ("graph_vae", "small_vae")


def test_the_readme_has_the_commands_of_the_guides():
    readme = documented.commands("README.md")
    for page in ("docs/guides/data.md", "docs/guides/own_system.md"):
        assert documented.commands(page)[0] in readme


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder in which the commands of the troubleshooting guide fail."""
    folder, rng = tmp_path_factory.mktemp("troubles"), np.random.default_rng(0)
    np.savez(folder / "real.npz", x=rng.normal(size=[100, 8]))
    np.savez(folder / "same.npz", x=np.ones([100, 12], np.uint8))
    missing = rng.random([100, 12])
    missing[3, 2] = np.nan
    np.savez(folder / "missing.npz", x=missing)
    np.save(folder / "grey.npy", rng.random([5, 28, 28]))
    np.save(folder / "flat.npy", np.zeros([5, 784]))
    np.save(folder / "binary.npy", np.zeros([5, 28, 28]))
    (folder / "runs/empty").mkdir(parents=True)
    (folder / "models/taken/1").mkdir(parents=True)
    short = [f"training.{name}=2" for name in ("steps", "steps_per_call", "validate_every")]
    config = presets.get("vae/tiny", [*short, "training.compiler=graph"])
    training.train(config, folder / "runs/ok", strategy="none")
    return folder


def placed(argument, folder):
    """An argument with its path in a folder; pretrained models keep their names."""
    flag, separator, value = argument.rpartition("=")
    is_path = value.startswith(("runs/", "models/taken", "prepared")) or value.endswith((".npz", ".npy", ".png"))
    return f"{flag}{separator}{folder / value}" if separator and is_path else argument


@pytest.mark.slow
def test_the_messages_of_the_troubleshooting_guide_are_those_of_the_programs(files):
    calls = defaultdict(dict)
    for block in documented.blocks("docs/guides/troubleshooting.md", "console"):
        command, _, message = block.text.partition("\n")
        name, *arguments = shlex.split(command.removeprefix("$ tfstruct-"))
        if "runs/ok" in command and name == "train":  # the same run but for what the guide changes
            arguments += [f"--set=training.{key}=2" for key in ("steps", "steps_per_call", "validate_every")]
            arguments.append("--set=training.compiler=graph")
        calls[name][message.strip()] = [placed(argument, files) for argument in arguments]
    assert sum(map(len, calls.values())) >= 18
    for name, expected in calls.items():
        for message, (code, _, error) in tiny.call_program(name, expected).items():
            found = error.replace(f"{files}/", "").partition(f"tfstruct-{name}: ")[2]
            pattern = ".*?".join(map(re.escape, (part.strip() for part in message.split("..."))))
            assert code == 1, message
            assert re.match(pattern, found, re.S), f"{message}\n{found}"

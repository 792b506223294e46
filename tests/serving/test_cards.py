"""What stands on the card of a bundle."""

import json
import types

from tfstruct.models import presets
from tfstruct.serving import cards


def test_the_recipe_evaluates_as_was_done(trained):
    path = trained.folder.path / "evaluation.json"
    before = path.read_text() if path.exists() else None
    try:
        given = [
            "--workdir",
            "runs/a",
            "--num_samples=7",
            "--set",
            "evaluation.chunk=3",
            "--data_dir=/x",
            "--nopictures",
        ]
        path.write_text(json.dumps({"command": ["tfstruct-evaluate", *given]}))
        assert cards._evaluation_options(trained) == ["--num_samples=7", "--set=evaluation.chunk=3", "--nopictures"]
        path.write_text(json.dumps({"command": ["my_script.py", *given]}))
        assert cards._evaluation_options(trained) == []
    finally:
        path.unlink()
        if before is not None:
            path.write_text(before)


def made_by(folder, monkeypatch, *, trained, evaluated, exported):
    """The recipe of a run whose commands were given at these commits; None: not recorded."""
    (folder / "evaluation.json").write_text(
        json.dumps({"command": ["tfstruct-evaluate", "--workdir=a"], "environment": {"commit": evaluated}})
    )
    monkeypatch.setattr(cards, "environment", lambda: {"commit": exported})
    workdir = types.SimpleNamespace(path=folder, environment=lambda: {"commit": trained})
    run = types.SimpleNamespace(config=presets.get("vae/tiny"), folder=workdir)
    return cards._recipe(run, "int8")


def test_the_recipe_goes_to_the_commit_of_each_command(tmp_path, monkeypatch):
    train = "tfstruct-train --preset=vae/tiny --workdir=RUN"
    evaluate = "tfstruct-evaluate --workdir=RUN"
    export = "tfstruct-export --workdir=RUN --output=BUNDLE --weights_dtype=int8"
    one = made_by(tmp_path, monkeypatch, trained="a1", evaluated="a1", exported="a1")
    assert one == ["git checkout a1", train, evaluate, export]
    several = made_by(tmp_path, monkeypatch, trained="a1", evaluated="a1", exported="b2-dirty")
    changed = "git checkout b2  # with changes that were not committed"
    assert several == ["git checkout a1", train, evaluate, changed, export]
    unknown = made_by(tmp_path, monkeypatch, trained=None, evaluated="b2", exported="b2")
    assert unknown == ["# the commit was not recorded", train, "git checkout b2", evaluate, export]

"""tfstruct-analyse from end to end: numbers and figures of a tiny run, and one clear line for a mistake."""

import json

import pytest
from matplotlib import image

from tests.trainers import tiny
from tfstruct.models import presets
from tfstruct.training import run as training

SETTINGS = {
    "gradients": ["--steps=20", "--runs=2", "--draws=100"],
    "temperatures": ["--temperatures=1,2", "--reference_temperatures=3", "--chains=5", "--repeats=2", "--images=3"],
    "modes": ["--chains=5", "--prior_chains=4", "--reference_temperatures=2", "--images=3"],
    "sweeps": ["--hard_sweeps=0,2", "--relaxed_sweeps=1,2", "--chains=6", "--reference_temperatures=2",
               "--reference_sweeps=10", "--pairs=9", "--images=3"],
}  # fmt: skip
# After --output: what is asked for, and what the message says.
MISTAKES = [
    (["--analysis=modes"], "--analysis=modes needs --workdir"),
    (["--analysis=gradients", "--workdir=RUN"], "--workdir is no setting of --analysis=gradients"),
    (["--analysis=modes", "--workdir=RUN", "--repeats=3"], "--repeats is no setting of --analysis=modes"),
    (["--analysis=sweeps", "--workdir=RUN", "--hard_sweeps=1,b"], "--hard_sweeps is a list of integers, as 1,2,5"),
    (["--analysis=modes", "--workdir=RUN", "--images=41"], "images must be 1 to 40, the size of the test split, found"),
    (["--analysis=modes", "--workdir=RUN/none"], "none"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of the run, and status, output and errors of each call."""
    folder = tmp_path_factory.mktemp("analyse")
    file = tiny.write_rows(folder / "rows.npz")
    config = presets.get(
        "boltzmann_vae/tiny",
        ["data.name=file", f"data.file={str(file)!r}", "data.variant=none", "training.compiler=graph",
         "training.steps=2", "training.steps_per_call=2", "training.validate_every=2", "training.batch_size=8",
         "training.validation_images=4", "training.validation_samples=1", "model.encoder_units=(8,)",
         "model.decoder_units=(8,)", "training.validation_annealing.prior_temperatures=2"],
    )  # fmt: skip
    training.train(config, folder / "run")
    output = f"--output={folder / 'out'}"
    calls = {}
    for name, settings in SETTINGS.items():
        run = [] if name == "gradients" else [f"--workdir={folder / 'run'}"]
        calls[name] = [f"--analysis={name}", output, "--seed=3", *run, *settings]
    for arguments, message in MISTAKES:
        calls[message] = [output, *(argument.replace("RUN", str(folder / "run")) for argument in arguments)]
    return folder, tiny.call_program("analyse", calls, eagerly=True)


@pytest.mark.parametrize("name", SETTINGS)
def test_numbers_and_figure_are_written(results, name):
    folder, found = results
    status, printed, errors = found[name]
    assert status == 0, errors
    assert printed.splitlines() == [str(folder / f"out/{name}.{suffix}") for suffix in ("json", "png")]
    written = json.loads((folder / f"out/{name}.json").read_text())
    assert written["analysis"] == name
    assert written["settings"]["seed"] == 3
    assert written["seconds"] > 0
    assert f"--analysis={name}" in written["environment"]["command"]
    assert image.imread(folder / f"out/{name}.png")[..., :3].std() > 0.02
    if name != "gradients":
        assert written["run"]["num_images"] == 3
        assert written["run"]["num_units"] == [6, 5]


def test_results_hold_what_was_asked_for(results):
    gradients, temperatures, modes, sweeps = (
        json.loads((results[0] / f"out/{name}.json").read_text()) for name in SETTINGS
    )
    assert gradients["settings"]["num_draws"] == 100
    assert temperatures["curves"]["prior, uniform"]["num_temperatures"] == [1, 2]
    assert len(temperatures["reference"]["posterior"]["forward"]) == 3
    assert len(modes["posterior"]["num_modes"]) == len(modes["posterior"]["kl"]) == 3
    assert modes["prior"]["by_num_starts"]["num_starts"] == [1, 2, 4]
    assert sweeps["hard"]["num_sweeps"] == [0, 2]
    assert sweeps["settings"]["num_pairs"] == 9


@pytest.mark.parametrize("message", [message for _, message in MISTAKES])
def test_a_mistake_is_one_line(results, message):
    status, _, errors = results[1][message]
    assert status == 1
    assert errors.startswith("tfstruct-analyse: ")
    assert message in errors
    assert len(errors.strip().splitlines()) == 1

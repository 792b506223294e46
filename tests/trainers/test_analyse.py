"""tfstruct-analyse from end to end: numbers and figures of tiny runs, and one clear line for a mistake."""

import json

import pytest
import tensorflow as tf
from matplotlib import image

from tests.trainers import tiny, tiny_circuit
from tfstruct.models import presets
from tfstruct.training import run as training

SHORT = ("training.steps=1", "training.steps_per_call=1", "training.validate_every=1", "objective.num_samples=1")
# The run that is analysed, the settings, and the rows.
CALLS = {
    "gradients": (None, ["num_steps=20", "num_seeds=2", "num_draws=100", "seed=3"], None),
    "temperatures": (
        "boltzmann",
        ["num_temperatures=(1,2)", "reference_temperatures=3", "num_chains=5", "num_repeats=2", "seed=3"],
        3,
    ),
    "modes": ("boltzmann", ["num_chains=5", "prior_chains=4", "reference_temperatures=2", "seed=3"], 3),
    "sweeps": (
        "boltzmann",
        ["hard_sweeps=(0,2)", "relaxed_sweeps=(1,2)", "num_chains=6", "reference_temperatures=2",
         "reference_sweeps=10", "num_pairs=9", "seed=3"],
        3,
    ),
    "structure": ("circuit", [], None),
    "latent_maps": ("circuit", ["points=3"], None),
    "inpainting": ("circuit", ["images=2", "scored=5", "draws=2", "num_samples=20", "seed=3"], None),
    "misplaced": ("circuit", ["images=6", "num_samples=20"], 6),
}  # fmt: skip
# After --output: what is asked for, and what the message says.
MISTAKES = [
    ([], "--analysis and --output are needed; --list shows the analyses"),
    (["--analysis=mods"], "unknown analysis 'mods'; did you mean modes"),
    (["--analysis=modes"], "--analysis=modes needs --workdir"),
    (["--analysis=gradients", "--workdir=RUN/boltzmann"], "the analysis gradients takes no run"),
    (
        ["--analysis=modes", "--workdir=RUN/boltzmann", "--set=num_chain=3"],
        "unknown setting 'num_chain'; near it: num_chains",
    ),
    (
        ["--analysis=sweeps", "--workdir=RUN/boltzmann", "--set=hard_sweeps=1,b"],
        "hard_sweeps takes a tuple such as (0, 1",
    ),
    (["--analysis=modes", "--workdir=RUN/boltzmann", "--rows=41"], "rows must be 0 (all) to 40, the size of the test"),
    (["--analysis=misplaced", "--workdir=RUN/circuit", "--replica=1"], "the run has replicas 0..0, found 1"),
    (["--analysis=inpainting", "--workdir=RUN/other"], "unknown analysis 'inpainting'. There are none."),
    (["--analysis=modes", "--workdir=RUN/circuit"], "There are inpainting, latent_maps, misplaced, structure."),
    (["--analysis=misplaced", "--workdir=RUN/single"], "several leaf regions that do not overlap"),
    (["--analysis=structure", "--workdir=RUN/none"], "none is no folder of a training run"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of the runs, and status, output and errors of each call."""
    folder = tmp_path_factory.mktemp("analyse")
    file = tiny.write_rows(folder / "rows.npz")
    config = presets.get(
        "boltzmann_vae/tiny",
        ["data.name=file", f"data.file={str(file)!r}", "data.variant=none", "training.compiler=graph",
         "training.steps=2", "training.steps_per_call=2", "training.validate_every=2", "training.batch_size=8",
         "training.validation_images=4", "training.validation_samples=1", "model.encoder_units=(8,)",
         "model.decoder_units=(8,)", "training.validation_annealing.prior_temperatures=2"],
    )  # fmt: skip
    training.train(config, folder / "boltzmann")
    file = tiny.write_rows(folder / "image_rows.npz", event_shape=tiny_circuit.SHAPE)
    tf.config.run_functions_eagerly(True)
    try:
        tiny_circuit.train(file, folder / "circuit", *SHORT)
        tiny_circuit.train(file, folder / "single", *SHORT, preset="dense_vae/tiny")
        training.train(tiny.vae_config(file, *SHORT), folder / "other", strategy="none")
    finally:
        tf.config.run_functions_eagerly(False)
    output, calls = f"--output={folder / 'out'}", {"list": ["--list", f"--workdir={folder / 'boltzmann'}"]}
    for name, (run, settings, rows) in CALLS.items():
        workdir = [f"--workdir={folder / run}"] if run else []
        count = [f"--rows={rows}"] if rows else []
        calls[name] = [f"--analysis={name}", output, *workdir, *count, *(f"--set={part}" for part in settings)]
    calls["single"] = [
        "--analysis=latent_maps", f"--workdir={folder / 'single'}", "--set=points=2", f"{output}/single"
    ]  # fmt: skip
    for arguments, message in MISTAKES:
        calls[message] = [output, *(argument.replace("RUN", str(folder)) for argument in arguments)]
    return folder, tiny.call_program("analyse", calls, eagerly=True)


@pytest.mark.parametrize("name", CALLS)
def test_numbers_and_figure_are_written(results, name):
    folder, found = results
    status, printed, errors = found[name]
    assert status == 0, errors
    assert printed.splitlines() == [str(folder / f"out/{name}.{suffix}") for suffix in ("json", "png")]
    written = json.loads((folder / f"out/{name}.json").read_text())
    assert written["analysis"] == name
    assert f"--analysis={name}" in written["environment"]["command"]
    assert image.imread(folder / f"out/{name}.png")[..., :3].std() > 0.02
    run, settings, rows = CALLS[name]
    assert written["settings"].get("seed", 0) == (3 if "seed=3" in settings else 0)
    if run is None:
        assert "run" not in written
    else:
        assert written["run"]["workdir"] == str(folder / run)
        assert written["run"]["rows"] == (rows or 40)


def test_results_hold_what_was_asked_for(results):
    files = {name: json.loads((results[0] / f"out/{name}.json").read_text()) for name in CALLS}
    written = {name: file["results"] for name, file in files.items()}
    assert files["gradients"]["settings"]["num_draws"] == 100
    assert written["temperatures"]["curves"]["prior, uniform"]["num_temperatures"] == [1, 2]
    assert len(written["temperatures"]["reference"]["posterior"]["forward"]) == 3
    modes = written["modes"]
    assert len(modes["posterior"]["num_modes"]) == len(modes["posterior"]["kl"]) == 3
    assert modes["prior"]["by_num_starts"]["num_starts"] == [1, 2, 4]
    assert written["sweeps"]["hard"]["num_sweeps"] == [0, 2]
    assert written["sweeps"]["num_pairs"] == 9
    assert len(written["structure"]["regions"]) == 6
    assert files["latent_maps"]["run"]["split"] == "validation"
    inpainting = written["inpainting"]
    assert list(inpainting) == ["right half", "lower half", "centre", "80 % of pixels"]
    for part in inpainting.values():
        assert set(part) == {"log_prob", "std_err", "root_mean_square", "of_mean_image"}
        assert part["log_prob"] < 0.0
    assert written["misplaced"]["chance"] == pytest.approx(1 / 3)
    assert {"first", "first_std_err", "information", "information_std_err"} < set(written["misplaced"])


def test_a_plain_vae_has_a_latent_map(results):
    status, _, errors = results[1]["single"]
    assert status == 0, errors
    assert (results[0] / "out/single/latent_maps.png").exists()


def test_the_list_has_what_a_system_offers_with_settings_and_defaults(results):
    status, printed, errors = results[1]["list"]
    assert status == 0, errors
    assert [line.split()[0] for line in printed.splitlines()[::2]] == ["gradients", "modes", "sweeps", "temperatures"]
    assert "num_chains=200 prior_chains=2000" in printed


@pytest.mark.parametrize("message", [message for _, message in MISTAKES])
def test_a_mistake_is_one_line(results, message):
    status, _, errors = results[1][message]
    assert status == 1
    assert errors.startswith("tfstruct-analyse: ")
    assert message in errors
    assert len(errors.strip().splitlines()) == 1

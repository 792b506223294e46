"""tfstruct-explore and tfstruct-low_data from end to end: files of tiny runs, and one clear line for a mistake."""

import json

import numpy as np
import pytest
import tensorflow as tf
from matplotlib import image

from tests.trainers import tiny, tiny_circuit

SHORT = ("training.steps=1", "training.steps_per_call=1", "training.validate_every=1", "objective.num_samples=1")
SETTINGS = {
    "structure": [],
    "latent_maps": ["--points=3"],
    "inpainting": ["--images=2", "--scored=5", "--draws=2", "--num_samples=20", "--seed=3"],
    "misplaced": ["--images=6", "--num_samples=20"],
}
# After --output: what is asked for, and what the message says.
MISTAKES = [
    (["--figure=structure", "--workdir=RUN/circuit", "--points=3"], "--points is no setting of --figure=structure"),
    (["--figure=latent_maps", "--workdir=RUN/circuit", "--seed=3"], "--seed is no setting of --figure=latent_maps"),
    (["--figure=inpainting", "--workdir=RUN/circuit", "--points=3"], "--points is no setting of --figure=inpainting"),
    (["--figure=misplaced", "--workdir=RUN/circuit", "--draws=3"], "--draws is no setting of --figure=misplaced"),
    (["--figure=misplaced", "--workdir=RUN/circuit", "--replica=1"], "the run has replicas 0..0, found 1"),
    (["--figure=structure", "--workdir=RUN/other"], "other is a run of graph_vae; this needs one of sum_product_vae"),
    (["--figure=misplaced", "--workdir=RUN/single"], "several leaf regions that do not overlap"),
    (["--figure=structure", "--workdir=RUN/none"], "none is no folder of a training run"),
]
LOW_DATA_MISTAKES = [
    (["--fractions=1.0,half"], "--fractions is a list of numbers, found '1.0,half'"),
    (["--seeds=0.5"], "--seeds is a list of numbers, found '0.5'"),
    (["--fractions=2"], "fractions must be in (0, 1] and leave an image, found 2.0"),
    (["--preset=spvae/mnist_discrete"], "the presets must have the same data"),
    (["--set=model.delt=3"], "model.delt"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of the runs, and status, output and errors of each call."""
    folder = tmp_path_factory.mktemp("explore")
    file = tiny.write_rows(folder / "rows.npz", event_shape=tiny_circuit.SHAPE)
    tf.config.run_functions_eagerly(True)
    try:
        tiny_circuit.train(file, folder / "circuit", *SHORT)
        tiny_circuit.train(file, folder / "single", *SHORT, preset="dense_vae/tiny")
        tiny_circuit.training.train(tiny.vae_config(file, *SHORT), folder / "other", strategy="none")
    finally:
        tf.config.run_functions_eagerly(False)
    output = f"--output={folder / 'out'}"
    calls = {
        name: [f"--figure={name}", f"--workdir={folder / 'circuit'}", output, *settings]
        for name, settings in SETTINGS.items()
    }
    calls["single"] = ["--figure=latent_maps", f"--workdir={folder / 'single'}", "--points=2", f"{output}/single"]
    for arguments, message in MISTAKES:
        calls[message] = [output, *(argument.replace("RUN", str(folder)) for argument in arguments)]
    return folder, tiny.call_program("explore", calls, eagerly=True)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_figure_and_its_numbers_are_written(results, name):
    folder, found = results
    status, printed, errors = found[name]
    assert status == 0, errors
    suffixes = ("json", "png") if name in ("inpainting", "misplaced") else ("png",)
    assert printed.splitlines() == [str(folder / f"out/{name}.{suffix}") for suffix in suffixes]
    assert image.imread(folder / f"out/{name}.png")[..., :3].std() > 0.02
    assert {path.suffix for path in (folder / "out").glob(f"{name}.*")} == {f".{suffix}" for suffix in suffixes}


def test_numbers_say_what_was_asked_of_which_run(results):
    folder, _ = results
    inpainting, misplaced = (json.loads((folder / f"out/{name}.json").read_text()) for name in list(SETTINGS)[2:])
    assert inpainting["settings"] == {"images": 2, "scored": 5, "draws": 2, "num_samples": 20, "seed": 3}
    assert misplaced["settings"] == {"images": 6, "num_samples": 20}
    for written in (inpainting, misplaced):
        assert written["run"] == {"workdir": str(folder / "circuit"), "replica": 0, "preset": "spvae/tiny"}
        assert "versions" in written["environment"]
    assert list(inpainting["inpainting"]) == ["right half", "lower half", "centre", "80 % of pixels"]
    for part in inpainting["inpainting"].values():
        assert set(part) == {"log_prob", "std_err", "root_mean_square", "of_mean_image"}
        assert part["log_prob"] < 0.0
    assert 1 <= misplaced["misplaced"]["images"] <= 6
    assert misplaced["misplaced"]["chance"] == pytest.approx(1 / 3)
    assert {"first", "first_std_err", "information", "information_std_err"} < set(misplaced["misplaced"])


def test_a_plain_vae_has_a_latent_map(results):
    status, _, errors = results[1]["single"]
    assert status == 0, errors
    assert (results[0] / "out/single/latent_maps.png").exists()


@pytest.mark.parametrize("message", [message for _, message in MISTAKES])
def test_a_mistake_is_one_line(results, message):
    status, _, errors = results[1][message]
    assert status == 1
    assert errors.startswith("tfstruct-explore: ")
    assert message in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def low_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("low_data")
    file = tiny.write_rows(folder / "rows.npz", event_shape=tiny_circuit.SHAPE, num=40)
    settings = [f"--set={setting}" for setting in (*tiny_circuit.SETTINGS, *SHORT, f"data.file={str(file)!r}")]
    preset, workdir = "--preset=dense_vae/tiny", f"--workdir={folder / 'runs'}"
    calls = {"all": [preset, workdir, "--fractions=1.0,0.5", "--seeds=3", "--num_samples=2", *settings]}
    for arguments, message in LOW_DATA_MISTAKES:
        # The data of presets differ only without the file.
        own = [] if message.startswith("the presets") else settings
        calls[message] = [preset, f"--workdir={folder / 'wrong'}", *own, *arguments]
    return folder, tiny.call_program("low_data", calls, eagerly=True)


def test_bounds_of_parts_of_the_data_are_written_drawn_and_printed(low_data):
    folder, found = low_data
    status, printed, errors = found["all"]
    assert status == 0, errors
    written = json.loads((folder / "runs/low_data.json").read_text())
    points = written["points"]
    assert [(point["fraction"], point["images"], point["seed"]) for point in points] == [(1.0, 40, 3), (0.5, 20, 3)]
    assert written["num_samples"] == 2
    assert written["schema_version"] == 1
    *_, header, whole, half, json_path, png_path = printed.splitlines()
    assert [json_path, png_path] == [str(folder / f"runs/low_data.{suffix}") for suffix in ("json", "png")]
    assert header.split() == ["fraction", "dense_vae/tiny"]
    for line, point in ((whole, points[0]), (half, points[1])):
        assert [float(part) for part in line.split()] == [point["fraction"], pytest.approx(point["bound"], abs=0.051)]
    assert image.imread(png_path)[..., :3].std() > 0.02
    assert np.isfinite([point["std_err"] for point in points]).all()


@pytest.mark.parametrize("message", [message for _, message in LOW_DATA_MISTAKES])
def test_a_mistake_in_parts_of_the_data_is_one_line_before_anything_is_trained(low_data, message):
    folder, found = low_data
    status, _, errors = found[message]
    assert status == 1
    assert errors.startswith("tfstruct-low_data: ")
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (folder / "wrong").exists()

"""The whole way in one command: train, evaluate, export, score with TensorFlow alone, look at the pictures."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from absl import flags

from tfstruct.trainers import entry

_PRESET = flags.DEFINE_string("preset", "graph_vae/mnist_quick", "Name of a preset.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Folder of the run; an earlier one is resumed.")
_SET = flags.DEFINE_multi_string("set", [], "Changes a setting: key=value.")

_SCORED_ROWS = 200


def main() -> None:
    """Runs the steps one after another and prints what came out and where it lies."""
    from tfstruct.evaluation import pictures, report
    from tfstruct.models import presets
    from tfstruct.serving import bundle
    from tfstruct.training import run as training

    start = time.monotonic()
    config = presets.get(_PRESET.value, _SET.value)
    workdir = Path(_WORKDIR.value)
    print(f"1/4 training {_PRESET.value} for {config.training.steps} steps in {workdir}", flush=True)
    trained = training.train(config, workdir)
    print("2/4 evaluating", flush=True)
    run = report.TrainedRun(str(workdir))
    result = report.evaluate(run)
    drawn = pictures.draw_all(run)
    print("3/4 exporting", flush=True)
    output = _next_version(workdir / "export")
    bundle.export(run, output)
    print("4/4 scoring test images with the exported model, through TensorFlow alone", flush=True)
    rows, scores = workdir / "scored_images.npy", workdir / "scores.npz"
    np.save(rows, run.data.test[:_SCORED_ROWS])
    # A process of its own: score.py imports neither Keras nor TensorFlow Probability nor the model's code.
    program = [sys.executable, "-m", "tfstruct.trainers.score"]
    subprocess.run([*program, f"--model={output}", f"--input={rows}", f"--output={scores}"], check=True)
    print()
    print(report.summary_line(result))
    for flag in result["flags"]:
        print(f"FLAGGED {flag}")
    first = result["replicas"][0]
    if first.get("possible_edges"):
        print(f"learned graph: {first['open_edges']} of {first['possible_edges']} edges open")
    if np.isfinite(trained.steps_per_second):
        print(f"training speed: {trained.steps_per_second:.0f} steps/s")
    for path in drawn:
        print(f"  {path}")
    print(f"exported model: {output}\nwhole time: {time.monotonic() - start:.0f} s")


def _next_version(folder: Path) -> Path:
    """The numbered folder after the largest there is."""
    numbers = [int(child.name) for child in folder.glob("*") if child.name.isdecimal()]
    return folder / str(max(numbers, default=0) + 1)


def run() -> None:
    """The console script `tfstruct-quickstart`."""
    entry.run(main)


if __name__ == "__main__":
    run()

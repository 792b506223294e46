"""Draws the pictures of the documentation: python docs/pictures/draw.py --run=runs/quickstart.

The run is that of `tfstruct-quickstart`; samples and completed images are of pretrained models.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

import tfstruct
from tfstruct import plotting
from tfstruct.data import load
from tfstruct.evaluation.report import TrainedRun
from tfstruct.training.logging import METRICS_NAME, read_rows

_SIDE = 28  # pixels of an image
_OBSERVED = 0.3  # part of the pixels that the completed images keep


def tiled(images: np.ndarray, columns: int) -> np.ndarray:
    """Images [N, 28, 28] as one picture, with lines between them."""
    framed = np.pad(images, [(0, 0), (0, 2), (0, 2)], constant_values=0.5)
    grid = framed.reshape(-1, columns, _SIDE + 2, _SIDE + 2).swapaxes(1, 2)
    return grid.reshape(-1, columns * (_SIDE + 2))[:-2, :-2]


def samples(num: int) -> np.ndarray:
    """Mean images of draws from the pretrained Graph VAE, [num, 28, 28]."""
    return tfstruct.load("graph_vae/mnist").sample(num, seed=1)["x_mean"]


def completions(num: int) -> np.ndarray:
    """What the pretrained model sees of test images, two completions of each, and the images: [4 * num, 28, 28]."""
    model = tfstruct.load("spvae/mnist_missing")
    x = load("mnist", "discrete").test[:num].astype(np.float32)
    observed = np.random.default_rng(0).random(x.shape) < _OBSERVED
    drawn = [model.inpaint(x, observed, seed=seed)["x"] for seed in (1, 2)]
    return np.concatenate([np.where(observed, x, 0.35 * 255.0), *drawn, x]) / 255.0


def show(axes: Axes, picture: np.ndarray, title: str) -> None:
    """Shows a picture without axes under a title."""
    axes.imshow(picture, cmap="gray_r", vmin=0.0, vmax=1.0, interpolation="antialiased")
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def raster(figure: Figure) -> np.ndarray:
    """A figure as pixels."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=300)
    buffer.seek(0)
    return imread(buffer)


def draw_completions(images: np.ndarray) -> Figure:
    """Completions with the name of each row beside it."""
    figure = Figure(figsize=(7.0, 1.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    show(axes, tiled(images, len(images) // 4), "")
    for row, name in enumerate((f"{_OBSERVED:.0%} of the pixels", "completed", "completed again", "the image")):
        axes.text(-6, (row + 0.5) * (_SIDE + 2), name, ha="right", va="center", fontsize=9)
    return figure


def main() -> None:
    """Draws structure.svg, gates.svg, inpainting.png and overview.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="folder of the run of tfstruct-quickstart")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    arguments = parser.parse_args()

    model = TrainedRun(arguments.run).use(0)
    rows = [row for row in read_rows(Path(arguments.run) / METRICS_NAME) if "train/gate_probabilities" in row]
    steps, gates = [row["step"] for row in rows], [row["train/gate_probabilities"] for row in rows]
    structure = plotting.draw_structure(np.array(model.structure_report()["edge_probabilities"]))
    trajectories = plotting.draw_gate_trajectories(steps, gates, model.gates.edges)
    completed = completions(16)
    plotting.save(structure, arguments.output / "structure.svg")
    plotting.save(trajectories, arguments.output / "gates.svg")
    plotting.save(draw_completions(completed), arguments.output / "inpainting.png")

    figure = Figure(figsize=(12.0, 3.3), dpi=130, layout="constrained")
    graph, course, drawn, inpainted = figure.subplots(1, 4, width_ratios=(0.55, 1.5, 1.0, 1.0))
    show(graph, raster(structure), "a learned graph")
    show(course, raster(trajectories), "its gates over training")
    show(drawn, tiled(samples(64), 8), "samples (means)")
    blocks = completed.reshape(4, 2, -1, _SIDE, _SIDE).swapaxes(0, 1).reshape(-1, _SIDE, _SIDE)
    show(inpainted, tiled(blocks, len(completed) // 8), "given 30 %, completed twice, true")
    print(plotting.save(figure, arguments.output / "overview.png"))


if __name__ == "__main__":
    main()

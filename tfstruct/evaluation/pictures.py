"""The pictures of a run: learned structure, gates over training, samples, reconstructions, curves."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from tfstruct import plotting, random
from tfstruct.data.datasets import Dataset
from tfstruct.data.support import REAL
from tfstruct.evaluation.report import TrainedRun
from tfstruct.files import write_text, writing
from tfstruct.models.graph_vae.structure import DECIDED
from tfstruct.models.system import System
from tfstruct.training.logging import METRICS_NAME, read_rows
from tfstruct.training.phases import Phases

_SAMPLES, _PAIRS = 100, 20
#: figures that are made of pixels; the others are made of lines
PIXELS = ("samples", "reconstructions")


def draw_all(run: TrainedRun, *, replica: int = 0, seed: int = 0) -> list[Path]:
    """Draws what there is to draw of one replica into `<workdir>/pictures` and TensorBoard; returns the files.

    Samples and reconstructions are drawn of image-shaped events only: [h, w] or [h, w, 3]. Curves are those of all
    replicas, in one file. What is made of lines is written as PNG and as SVG.
    """
    folder = run.folder.path / "pictures"
    suffix = "" if run.num_replicas == 1 else f"_replica_{replica}"
    files: list[Path] = []
    writer = tf.summary.create_file_writer(str(run.folder.path / "tensorboard"))
    for name, figure in figures(run, replica=replica, seed=seed):
        stem = name if name == "curves" else f"{name}{suffix}"
        files += [
            plotting.save(figure, folder / f"{stem}.{kind}")
            for kind in (("png",) if name in PIXELS else ("png", "svg"))
        ]
        with writing(folder.with_name("tensorboard"), tf.errors.OpError), writer.as_default(run.trained_steps):
            tf.summary.image(stem, tf.io.decode_png((folder / f"{stem}.png").read_bytes(), channels=3)[tf.newaxis])
    with writing(folder.with_name("tensorboard"), tf.errors.OpError):
        writer.close()
    graph = run.structure(replica).get("edge_probabilities")
    if graph is not None:
        files.append(write_text(folder / f"structure{suffix}.dot", plotting.to_dot(np.array(graph))))
    return files


def figures(run: TrainedRun, *, replica: int = 0, seed: int = 0) -> Iterator[tuple[str, Figure]]:
    """Yields what there is to draw of one replica, by name: curves, structure, gates, samples, reconstructions."""
    model = run.use(replica)
    rows = read_rows(run.folder.path / METRICS_NAME)
    boundary = Phases.from_config(run.config).boundary
    if rows:
        yield "curves", plotting.draw_curves(rows, metric="bound", phase_start=boundary)
    graph = model.structure_report().get("edge_probabilities")
    if graph is not None:
        probabilities = np.array(graph)
        colors = plotting.edge_colors(plotting.lower_triangle_edges(len(probabilities)))
        yield "structure", plotting.draw_structure(probabilities, colors=colors, decided=DECIDED)
        logged = [row for row in rows if "train/gate_probabilities" in row]
        if logged:
            values = np.array([row["train/gate_probabilities"] for row in logged])
            values = values if run.num_replicas == 1 else values[:, replica]
            steps = [row["step"] for row in logged]
            yield (
                "gates",
                plotting.draw_gate_trajectories(steps, values, model.gates.edges, colors=colors, phase_start=boundary),
            )
    shape = model.event_shape
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] == 3):
        shown = intensities(model, run.data)
        if not model.target.is_conditional:
            drawn = model.sample(_SAMPLES, seed=random.fold_in(random.key(seed), replica))["x_mean"].numpy()
            yield "samples", plotting.draw_grid(shown(drawn), columns=10)
        originals = np.asarray(run.data.test[:_PAIRS], np.float32)
        means = model.reconstruct(tf.constant(originals), seed=random.key(seed)).numpy()
        yield "reconstructions", plotting.draw_reconstructions(shown(originals), shown(means))


def intensities(model: System, data: Dataset) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what brings observations into [0, 1] to be shown; real values by the range of some test rows."""
    low, high = 0.0, float(model.likelihood.scale)
    if data.support == REAL:
        some = np.asarray(data.test[:_SAMPLES], np.float64)
        low, high = float(some.min()), float(some.max())
    return lambda values: np.clip((values - low) / ((high - low) or 1.0), 0.0, 1.0)

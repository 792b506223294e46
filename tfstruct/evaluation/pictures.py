"""The pictures of a run: learned structure, gates over training, samples, reconstructions, curves."""

from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from tfstruct import plotting, random
from tfstruct.evaluation.report import TrainedRun
from tfstruct.files import write_text
from tfstruct.training.logging import METRICS_NAME, read_rows
from tfstruct.training.phases import Phases

_SAMPLES, _PAIRS = 100, 20


def draw_all(run: TrainedRun, *, replica: int = 0, seed: int = 0) -> list[Path]:
    """Draws what there is to draw of one replica into `<workdir>/pictures`; returns the files.

    Samples and reconstructions are drawn of image-shaped events only: [h, w] or [h, w, 3].
    """
    folder = run.folder.path / "pictures"
    model = run.use(replica)
    suffix = "" if run.num_replicas == 1 else f"_replica_{replica}"
    files: list[Path] = []

    def keep(figure: Figure, name: str) -> None:
        path = folder / f"{name}{suffix}.png"
        plotting.save(figure, path)
        files.append(path)

    rows = read_rows(run.folder.path / METRICS_NAME)
    boundary = Phases.from_config(run.config).boundary
    if rows:
        keep(plotting.draw_curves(rows, metric="bound", phase_start=boundary), "curves")
    graph = model.structure_report().get("edge_probabilities")
    if graph is not None:
        probabilities = np.array(graph)
        files.append(write_text(folder / f"structure{suffix}.dot", plotting.to_dot(probabilities)))
        colors = plotting.edge_colors(plotting.lower_triangle_edges(len(probabilities)))
        keep(plotting.draw_structure(probabilities, colors=colors), "structure")
        logged = [row for row in rows if "train/gate_probabilities" in row]
        if logged:
            values = np.array([row["train/gate_probabilities"] for row in logged])
            values = values if run.num_replicas == 1 else values[:, replica]
            steps = [row["step"] for row in logged]
            figure = plotting.draw_gate_trajectories(
                steps, values, model.gates.edges, colors=colors, phase_start=boundary
            )
            keep(figure, "gates")
    shape = model.event_shape
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] == 3):
        scale = model.likelihood.scale
        if not model.target.is_conditional:
            drawn = model.sample(_SAMPLES, seed=random.fold_in(random.key(seed), replica))["x_mean"].numpy()
            keep(plotting.draw_grid(np.clip(drawn / scale, 0.0, 1.0), columns=10), "samples")
        originals = np.asarray(run.data.test[:_PAIRS], np.float32)
        means = model.reconstruct(tf.constant(originals), seed=random.key(seed)).numpy()
        figure = plotting.draw_reconstructions(originals / scale, np.clip(means / scale, 0.0, 1.0))
        keep(figure, "reconstructions")
    return files

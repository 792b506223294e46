"""Draws what a sum-product VAE has learned: tfstruct-explore --figure=inpainting --workdir=runs/a --output=figures.

Writes <figure>.png into the folder of --output, and <figure>.json where there are numbers.

  structure    the region graph.
  latent_maps  the pictures that every leaf's latents decode to, in the leaf's place.
  inpainting   test images of which parts are missing, completed; log p(missing | observed).
  misplaced    test images with one region swapped for another image's, and how well each region fits.
"""

import inspect
from pathlib import Path

from absl import flags

from tfstruct.trainers import entry

_FIGURE = flags.DEFINE_enum(
    "figure", None, ["structure", "latent_maps", "inpainting", "misplaced"], "Which.", required=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets prepared by TensorFlow Datasets.")
_REPLICA = flags.DEFINE_integer("replica", 0, "Of the run.", lower_bound=0)
# Settings of single figures, with the arguments of the same names.
_SETTINGS = {
    "points": "latent_maps: of the grid along each direction.",
    "images": "inpainting: images in the picture; misplaced: images that are scored.",
    "scored": "inpainting: images that are scored.",
    "draws": "inpainting: completions of each image.",
    "num_samples": "inpainting, misplaced: importance samples.",
    "seed": "inpainting, misplaced: of all noise.",
}
for _name, _help in _SETTINGS.items():
    flags.DEFINE_integer(_name, None, _help, lower_bound=0 if _name == "seed" else 1)


def main() -> None:
    """Computes, draws and prints the places of the files."""
    import numpy as np

    from tfstruct.evaluation import circuit_queries
    from tfstruct.evaluation.report import TrainedRun
    from tfstruct.files import write_json
    from tfstruct.plotting import circuits
    from tfstruct.plotting.figures import save
    from tfstruct.training.workdir import environment

    name = _FIGURE.value
    functions = {
        "latent_maps": circuit_queries.latent_maps,
        "inpainting": circuit_queries.inpainting,
        "misplaced": circuit_queries.misplaced_regions,
    }
    settings = {key: flags.FLAGS[key].value for key in _SETTINGS if flags.FLAGS[key].value is not None}
    known = inspect.signature(functions[name]).parameters if name in functions else {}
    for key in settings:
        if key not in known:
            raise ValueError(f"--{key} is no setting of --figure={name}")
    run = TrainedRun(_WORKDIR.value, data_dir=_DATA_DIR.value)
    model = circuit_queries.circuit_model(run, _REPLICA.value)
    numbers = None
    if name == "structure":
        graph = model.graph
        if len(model.event_shape) != 2:
            raise ValueError(f"the region graph is drawn over grey images, found events of shape {model.event_shape}")
        figure = circuits.draw_region_graph(graph.regions, graph.partitions, graph.levels, model.event_shape)
    else:
        found = functions[name](run, replica=_REPLICA.value, **settings)
        if name == "latent_maps":
            shape = model.scopes.image_shape(model.event_shape)
            grid = tuple(whole // part for whole, part in zip(model.event_shape[:2], shape[:2], strict=True))
            figure = circuits.draw_latent_maps(found, grid=grid)
        elif name == "inpainting":
            figure = circuits.draw_inpainting(found)
            numbers = {
                kind: {key: value for key, value in part.items() if not isinstance(value, np.ndarray)}
                for kind, part in found.items()
            }
        else:
            figure = circuits.draw_misplaced(found)
            numbers = {key: value for key, value in found.items() if not isinstance(value, np.ndarray)}
            numbers["images"] = len(found["region"])
    folder = Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    if numbers is not None:
        source = {"workdir": str(_WORKDIR.value), "replica": _REPLICA.value, "preset": run.config.preset}
        write_json(
            folder / f"{name}.json",
            {"schema_version": 1, "run": source, "settings": settings, name: numbers, "environment": environment()},
        )
        print(folder / f"{name}.json")
    print(save(figure, folder / f"{name}.png"))


def run() -> None:
    """The console script `tfstruct-explore`."""
    entry.run(main)


if __name__ == "__main__":
    run()

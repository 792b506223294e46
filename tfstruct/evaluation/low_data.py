"""How models do with less data: the same presets trained on growing parts of one training set."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from tfstruct import config as config_lib
from tfstruct.evaluation import report
from tfstruct.files import read_json
from tfstruct.models import presets
from tfstruct.training import run as training
from tfstruct.training.data import load_data

#: 1.0 to 0.1 in steps of 0.1, then to 0.005 in three steps of nearly equal ratio (SPVAE, section 4.1)
FRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.037, 0.0136, 0.005)
_TAG = "low_data"


def low_data(
    names: Sequence[str],
    workdir: str | Path,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = (0,),
    num_samples: int = 5,
    overrides: Sequence[str] = (),
    data_dir: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains presets on the first rows of their training set and bounds log p(x) of the test set.

    The best weights by the validation set are kept, as in every training. What is trained and evaluated already is
    not done again, so the call may be repeated after an interruption, and with more presets, fractions or seeds.

    Args:
        names: presets, all on the same data.
        workdir: folder of the runs, `<preset>/<fraction>/<seed>`.
        fractions: parts of the training set, in (0, 1].
        seeds: of each run.
        num_samples: K of the bound; the paper's figure has 5.
        overrides: `key=value` for every run.
        data_dir: folder of prepared data sets.
        say: is told each result.

    Returns:
        `points`: preset, fraction, images, seed, `bound` in nats with its standard error over images, best_step; and
        the data set and K.

    Raises:
        ValueError: no presets, presets of different data or with several replicas, or a fraction outside (0, 1] or that
            leaves no image; before anything is trained.
    """
    configs = {name: presets.get(name, overrides) for name in names}
    if not configs:
        raise ValueError("there is no preset to train")
    data = {name: config.data.to_dict() for name, config in configs.items()}
    if any(part != data[names[0]] for part in data.values()):
        raise ValueError(f"the presets must have the same data, found {data}")
    for name, config in configs.items():
        if config.training.replicas != 1:
            raise ValueError(f"{name} has training.replicas={config.training.replicas}; give several seeds instead")
    dataset = load_data(next(iter(configs.values())), data_dir)
    for config in configs.values():
        config.data.event_shape = dataset.event_shape  # of a user's file it is known only now
    counts = {}
    for fraction in fractions:
        counts[fraction] = round(fraction * len(dataset.train)) if 0.0 < fraction <= 1.0 else 0
        if counts[fraction] < 1:
            raise ValueError(f"fractions must be in (0, 1] and leave an image, found {fraction}")
    points = []
    for fraction, images in counts.items():
        for name, config in configs.items():
            for seed in seeds:
                folder = Path(workdir) / name.replace("/", "-") / f"{fraction:g}" / str(seed)
                chosen = config_lib.copy(config)
                if images < len(dataset.train):
                    chosen.data.train_images = images
                chosen.training.seed = seed
                found = _trained_and_evaluated(chosen, folder, num_samples, data_dir, dataset.checksum)
                (replica,) = found["replicas"]
                points.append(
                    {
                        "preset": name,
                        "fraction": fraction,
                        "images": images,
                        "seed": seed,
                        "bound": replica["log_likelihood"],  # text if it is not finite
                        "std_err": replica["std_err"],
                        "best_step": replica["best_step"],
                    }
                )
                say(f"{name}, {images} images, seed {seed}: {float(replica['log_likelihood']):.1f} nats")
    return {
        "data": {"name": dataset.name, "variant": dataset.variant, "checksum": dataset.checksum},
        "num_samples": num_samples,
        "points": points,
    }


def _trained_and_evaluated(
    config: ml_collections.ConfigDict, folder: Path, num_samples: int, data_dir: str | None, checksum: str
) -> dict[str, Any]:
    path = folder / f"{report.evaluation_stem(tag=_TAG)}.json"
    if path.exists():
        found = read_json(path)
        is_same = found["num_samples"] == num_samples and found["data"]["checksum"] == checksum
        if is_same and not config_lib.differences(
            config, config_lib.from_json((folder / "config.json").read_text(encoding="utf-8"))
        ):
            return found
    training.train(config, folder, strategy="none", data_dir=data_dir)
    run = report.TrainedRun(str(folder), data_dir=data_dir)
    return report.evaluate(run, num_samples=num_samples, images=0, tag=_TAG)


def summary(points: Sequence[dict[str, Any]]) -> str:
    """Returns a table of mean bounds: a line for each fraction, a column for each preset."""
    names = list(dict.fromkeys(point["preset"] for point in points))
    lines = ["fraction  " + "  ".join(f"{name:>28}" for name in names)]
    for fraction in sorted({point["fraction"] for point in points}, reverse=True):
        cells = []
        for name in names:
            bounds = [float(p["bound"]) for p in points if p["preset"] == name and p["fraction"] == fraction]
            cells.append(f"{np.mean(bounds):28.1f}" if bounds else " " * 28)
        lines.append(f"{fraction:8g}  " + "  ".join(cells))
    return "\n".join(lines)

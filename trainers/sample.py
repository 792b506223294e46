"""Draws from an exported model: tfstruct-sample --model=DIR --num=100 --output=samples.png (or .npz)."""

from pathlib import Path

import numpy as np
from absl import flags

from tfstruct.trainers import entry

_MODEL = flags.DEFINE_string("model", None, "Folder of an exported model, or <system>/<preset>.", required=True)
_NUM = flags.DEFINE_integer("num", 100, "How many.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the first draw; the others count up.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", None, "A .png (grid of means) or .npz file (x_mean and x).", required=True)


def main() -> None:
    """Samples and writes the file."""
    output = Path(_OUTPUT.value)
    if output.suffix not in (".png", ".npz"):
        raise ValueError(f"--output must end in .png or .npz, found {output.name!r}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"the folder of --output does not exist: {output.parent}")

    import tfstruct
    from tfstruct.files import replacing

    model = tfstruct.load(_MODEL.value)
    drawn = model.sample(_NUM.value, seed=_SEED.value)
    if output.suffix == ".npz":
        with replacing(output) as file:
            np.savez(file, allow_pickle=False, **drawn)
    else:
        from tfstruct import plotting

        means, low, high = drawn["x_mean"], 0.0, model.observation_scale
        if model.card["support"] == "real":  # of which no grey level is known: from the least of all to the greatest
            low, high = means.min(), means.max()
        plotting.save(plotting.draw_grid(np.clip((means - low) / ((high - low) or 1.0), 0.0, 1.0)), output)
    print(f"{_NUM.value} samples in {output}")


def run() -> None:
    """The console script `tfstruct-sample`."""
    entry.run(main)


if __name__ == "__main__":
    run()

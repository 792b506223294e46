"""Trains presets on parts of their training set and draws the test bound by the part.

tfstruct-low-data --preset=spvae/mnist_continuous --preset=dense_vae/mnist_continuous --workdir=runs/low_data

Every run lies in a folder of its own under --workdir; the same command goes on where it was interrupted. Writes
low_data.json and low_data.png there.
"""

from pathlib import Path

from absl import flags

from tfstruct.trainers import entry

_PRESET = flags.DEFINE_multi_string(
    "preset", ["spvae/mnist_continuous", "dense_vae/mnist_continuous"], "Presets on the same data."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_FRACTIONS = flags.DEFINE_list("fractions", None, "Parts of the training set; default 1.0, 0.9, ... 0.1, ... 0.005.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of each run.")
_SAMPLES = flags.DEFINE_integer("num_samples", 5, "Importance samples of the test bound.", lower_bound=1)
_SET = flags.DEFINE_multi_string("set", [], "Changes a setting of every preset: key=value.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets prepared by TensorFlow Datasets.")


def _numbers(flag: flags.FlagHolder, kind: type) -> list:
    try:
        return [kind(part) for part in flag.value]
    except ValueError:
        raise ValueError(f"--{flag.name} is a list of numbers, found {','.join(flag.value)!r}") from None


def main() -> None:
    """Trains, evaluates, draws; prints a table."""
    from tfstruct.evaluation import low_data
    from tfstruct.files import write_json
    from tfstruct.plotting import circuits
    from tfstruct.plotting.figures import save
    from tfstruct.training.workdir import environment

    fractions = low_data.FRACTIONS if _FRACTIONS.value is None else _numbers(_FRACTIONS, float)
    result = low_data.low_data(
        _PRESET.value,
        _WORKDIR.value,
        fractions=fractions,
        seeds=_numbers(_SEEDS, int),
        num_samples=_SAMPLES.value,
        overrides=_SET.value,
        data_dir=_DATA_DIR.value,
    )
    folder = Path(_WORKDIR.value)
    write_json(folder / "low_data.json", {"schema_version": 1, **result, "environment": environment()})
    print(low_data.summary(result["points"]))
    print(folder / "low_data.json")
    print(save(circuits.draw_low_data(result["points"]), folder / "low_data.png"))


def run() -> None:
    """The console script `tfstruct-low-data`."""
    entry.run(main)


if __name__ == "__main__":
    run()

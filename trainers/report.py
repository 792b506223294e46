"""Writes one HTML page about a run or several: tfstruct-report --workdir=runs/a --output=report.html.

The page holds curves, the learned graph, samples, reconstructions, latents, inpaintings, scores of test rows beside
those of foreign data, and what tfstruct-evaluate has written into the folder. With several --workdir it compares them.
It is one file, loads nothing from elsewhere and runs no scripts.
"""

from absl import flags

from tfstruct.trainers import entry

_WORKDIR = flags.DEFINE_multi_string("workdir", None, "Folder of a run; several are compared.", required=True)
_OUTPUT = flags.DEFINE_string("output", "report.html", "The .html file to write.")
_REPLICA = flags.DEFINE_integer("replica", 0, "Replica of each run whose pictures are drawn.", lower_bound=0)
_ROWS = flags.DEFINE_integer("rows", 500, "Test rows for latents and scores.", lower_bound=2)
_SAMPLES = flags.DEFINE_integer("num_samples", 50, "Importance samples K of these scores.", lower_bound=1)
_FOREIGN = flags.DEFINE_list("foreign", ["noise"], "Data sets scored beside test rows; also noise, constant.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of what is drawn.", lower_bound=0)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets prepared by TensorFlow Datasets.")


def main() -> None:
    """Computes, writes the page, prints its place."""
    from tfstruct.evaluation import foreign
    from tfstruct.evaluation.report import TrainedRun
    from tfstruct.registry import require_known
    from tfstruct.reporting import comparison, page, parts

    if not _OUTPUT.value.endswith(".html"):
        raise ValueError(f"--output must end with .html, found {_OUTPUT.value}")
    for name in _FOREIGN.value:
        require_known(name, foreign.names(), "foreign data")
    runs = [TrainedRun(folder, data_dir=_DATA_DIR.value) for folder in _WORKDIR.value]
    names = comparison.names_of(runs)
    options = parts.Options(
        _REPLICA.value, _ROWS.value, _SAMPLES.value, tuple(_FOREIGN.value), _DATA_DIR.value, _SEED.value
    )
    sections = {"": [comparison.of_runs(runs)]} if len(runs) > 1 else {}
    sections |= {name: list(parts.of_run(run, options)) for name, run in zip(names, runs, strict=True)}
    print(page.write(_OUTPUT.value, " and ".join(names), sections))


def run() -> None:
    """The console script `tfstruct-report`."""
    entry.run(main)


if __name__ == "__main__":
    run()

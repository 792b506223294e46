"""Finds out what a trained system is like: tfstruct-analyse --analysis=modes --workdir=runs/a --output=figures.

Writes <analysis>.json, its numbers, and <analysis>.png into the folder of --output. --list shows what a run's system
offers, or every system without --workdir, with the settings of each and their defaults: --set=num_chains=100.
"""

from pathlib import Path

from absl import flags

from tfstruct.trainers import entry

_ANALYSIS = flags.DEFINE_string("analysis", None, "Which; --list shows them.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, where the analysis takes one.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.")
_SET = flags.DEFINE_multi_string("set", [], "Changes a setting of the analysis: key=value.")
_REPLICA = flags.DEFINE_integer("replica", 0, "Of the run.", lower_bound=0)
_ROWS = flags.DEFINE_integer("rows", None, "Rows to read, from the front of the split; 0 for all.", lower_bound=0)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets prepared by TensorFlow Datasets.")
_LIST = flags.DEFINE_bool("list", False, "Print the analyses and their settings, and end.")


def main() -> None:
    """Analyses, writes numbers and figure, prints their places."""
    from tfstruct.evaluation import analysis
    from tfstruct.plotting import save

    run = None
    if _WORKDIR.value is not None:
        from tfstruct.evaluation.report import TrainedRun

        run = TrainedRun(_WORKDIR.value, data_dir=_DATA_DIR.value)
    offered = analysis.offered(None if run is None else run.config.system)
    if _LIST.value:
        for name, part in offered.items():
            print(f"{name:13} {part.about}")
            print(f"{'':13} {' '.join(f'{key}={value}' for key, value in analysis.settings_of(part).items()) or '-'}")
        return
    if _ANALYSIS.value is None or _OUTPUT.value is None:
        raise ValueError("--analysis and --output are needed; --list shows the analyses")
    chosen = offered[_ANALYSIS.value]
    if chosen.takes_run and run is None:
        raise ValueError(f"--analysis={_ANALYSIS.value} needs --workdir, the folder of a run")
    result = analysis.analyse(
        chosen, _ANALYSIS.value, run, replica=_REPLICA.value, rows=_ROWS.value, overrides=_SET.value
    )
    folder = Path(_OUTPUT.value)
    figure = save(chosen.draw(result["results"]), folder / f"{_ANALYSIS.value}.png")
    print(analysis.write(folder / f"{_ANALYSIS.value}.json", result))
    print(figure)


def run() -> None:
    """The console script `tfstruct-analyse`."""
    entry.run(main)


if __name__ == "__main__":
    run()

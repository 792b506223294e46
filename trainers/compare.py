"""Compares evaluated runs: tfstruct-compare --model=graph_iaf=runs/a --model=graph=runs/b0,runs/b1 [--tag=k5000].

The first model is compared with every other one. A model is a name and the folders of its runs, which differ in their
seeds; all must have been evaluated by tfstruct-evaluate on the same images with the same number of samples.
"""

from absl import flags

from tfstruct.trainers import entry

_MODEL = flags.DEFINE_multi_string("model", [], "name=workdir[,workdir...]; at least two.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which evaluation to read.")
_TAG = flags.DEFINE_string("tag", "", "The tag of the evaluation to read.")
_OUTPUT = flags.DEFINE_string("output", None, "A .json file to write.")


def main() -> None:
    """Prints the tables, and writes the numbers behind them."""
    from tfstruct.evaluation import comparison
    from tfstruct.files import write_json
    from tfstruct.training.workdir import environment

    groups = []
    for text in _MODEL.value:
        name, separator, folders = text.partition("=")
        if not (name and separator and folders):
            raise ValueError(f"--model has the form name=workdir[,workdir...], found {text!r}")
        groups.append(comparison.read_group(name, folders.split(","), split=_SPLIT.value, tag=_TAG.value))
    result = comparison.compare(groups)
    print(comparison.to_markdown(result))
    if _OUTPUT.value:
        write_json(_OUTPUT.value, result | {"environment": environment()})
        print(f"written: {_OUTPUT.value}")


def run() -> None:
    """The console script `tfstruct-compare`."""
    entry.run(main)


if __name__ == "__main__":
    run()

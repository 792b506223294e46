"""Calibrates anomaly scores: tfstruct-calibrate --model=graph_vae/mnist --output=models/mnist/2.

Writes a bundle with the signature `anomaly` beside those that the model has: p-values of several scores by held-out
normal rows, the model's own validation rows unless --data or --data_file gives others. What is known of the scores
goes on the card: false alarms on test rows, and how many rows of --foreign data they find.
"""

import tempfile
from pathlib import Path

from absl import flags

from tfstruct.trainers import entry

_MODEL = flags.DEFINE_string("model", None, "Folder of an exported model, or <system>/<preset>.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run, which is exported first, in place of --model.")
_DTYPE = flags.DEFINE_enum(
    "weights_dtype", "float32", ["float32", "float16", "int8", "int8_posterior"], "See tfstruct-export; of --workdir."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to make; its last part is the version number.", required=True)
_DATA = flags.DEFINE_string("data", None, "Normal data as <name>/<variant>; default the model's own.")
_FILE = flags.DEFINE_string(
    "data_file", None, "Normal rows instead of --data: a file or a folder of images, as for tfstruct-train."
)
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "test"], "Of --data: where the normal rows are from.")
_ROWS = flags.DEFINE_integer("rows", 0, "Normal rows to calibrate on; 0: all.", lower_bound=0)
_BACKGROUND = flags.DEFINE_string("background", None, "A bundle of a model of corrupted data, for likelihood ratios.")
_FOREIGN = flags.DEFINE_list("foreign", [], "Data sets that should be found, by name; also noise, constant.")
_TEST_ROWS = flags.DEFINE_integer("test_rows", 2_000, "Test rows, and rows of each foreign set.", lower_bound=2)
_BASELINES = flags.DEFINE_bool("baselines", False, "Compare with an isolation forest and a Gaussian of PCA.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the importance samples.", lower_bound=0)
_BASELINE_ROWS = 10_000
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets prepared by TensorFlow Datasets.")


def main() -> None:
    """Writes the bundle and prints how well it finds what."""
    import tfstruct
    from tfstruct.serving.publication import require_new

    if (_MODEL.value is None) == (_WORKDIR.value is None):
        raise ValueError("one of --model and --workdir says what to calibrate")
    if _DATA.value and _FILE.value:
        raise ValueError("--data and --data_file are two places for normal rows; give one")
    require_new(_OUTPUT.value)
    model, workdir = _MODEL.value, _WORKDIR.value
    if model is not None:
        _calibrate(tfstruct.load(model))
    elif workdir is not None:
        from tfstruct.evaluation.report import TrainedRun
        from tfstruct.serving import bundle

        with tempfile.TemporaryDirectory() as folder:
            run = TrainedRun(workdir, data_dir=_DATA_DIR.value)
            exported = bundle.export(run, Path(folder) / "1", weights_dtype=_DTYPE.value)
            _calibrate(tfstruct.load(exported))


def _calibrate(model) -> None:  # noqa: ANN001 - a LoadedModel, whose module imports TensorFlow
    import tfstruct
    from tfstruct import random
    from tfstruct.data import datasets, variants
    from tfstruct.evaluation import baselines, foreign
    from tfstruct.serving.calibration import JOINT, Rows, calibrate

    name, _, variant = (_DATA.value or f"{model.card['data']['name']}/{model.card['data']['variant']}").partition("/")
    if _FILE.value:
        name, variant = "file", "none"
    elif name == "file":
        raise ValueError("the model was trained on a file of its maker's; give normal rows by --data_file")
    data = datasets.load(
        name, variant or "dynamic", data_dir=_DATA_DIR.value, data_file=_FILE.value, event_shape=model.event_shape
    )

    def rows(split: str, count: int) -> Rows:
        return Rows(foreign.spread(data.split(split), count), data.name, data.variant, split, data.checksum)

    unknown = {
        other: foreign.rows(other, data.variant, model.event_shape, count=_TEST_ROWS.value, data_dir=_DATA_DIR.value)
        for other in _FOREIGN.value
    }
    others = None
    if _BASELINES.value:  # on what the model saw of the same rows
        seen = variants.training_rows(data.train_transform, data.train[:_BASELINE_ROWS], random.key(_SEED.value))
        others = baselines.fit(seen.numpy(), seed=_SEED.value)
    output = calibrate(
        model,
        _OUTPUT.value,
        rows(_SPLIT.value, _ROWS.value),
        background=None if _BACKGROUND.value is None else tfstruct.load(_BACKGROUND.value),
        test=None if _SPLIT.value == "test" else rows("test", _TEST_ROWS.value),
        foreign=unknown,
        baselines=others,
        seed=_SEED.value,
    )
    print(f"calibrated and verified: {output}")
    calibration = tfstruct.load(output).card["calibration"]
    if calibration["test"]:
        for alpha, (share, low, high) in calibration["test"]["false_alarms"][JOINT].items():
            print(f"false alarms at alpha {alpha}: {share:.4f} [{low:.4f}, {high:.4f}] of normal test rows")
    for other, found in calibration["foreign"].items():
        area, low, high = found["scores"][JOINT]["auroc"]
        print(f"{other}: area under the ROC curve {area:.3f} [{low:.3f}, {high:.3f}]")


def run() -> None:
    """The console script `tfstruct-calibrate`."""
    entry.run(main)


if __name__ == "__main__":
    run()

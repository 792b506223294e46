"""Exports a run: tfstruct-export --workdir=runs/a --output=saved_models/graph_vae/mnist/1."""

from absl import flags

from tfstruct.trainers import entry

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to make; its last part is the version number.", required=True)
_REPLICA = flags.DEFINE_integer("replica", None, "Which replica; default the best by validation.", lower_bound=0)
_SAMPLES = flags.DEFINE_integer("num_samples", None, "Importance samples K of log_prob and elbo.", lower_bound=1)
_DTYPE = flags.DEFINE_enum(
    "weights_dtype",
    "float32",
    ["float32", "float16", "int8", "int8_posterior"],
    "How weights are stored; the last: int8 for those of the posterior, float16 for those of p(x, z).",
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets prepared by TensorFlow Datasets.")


def main() -> None:
    """Writes the bundle and prints its folder."""
    from tfstruct.evaluation.report import TrainedRun
    from tfstruct.files import read_json
    from tfstruct.serving import bundle, warmup

    run = TrainedRun(_WORKDIR.value, data_dir=_DATA_DIR.value)
    output = bundle.export(
        run, _OUTPUT.value, replica=_REPLICA.value, num_samples=_SAMPLES.value, weights_dtype=_DTYPE.value
    )
    print(f"exported and verified: {output}")
    rounding = read_json(output / "card.json")["rounding"]
    if rounding is not None:
        print(
            f"weights as {_DTYPE.value} change log p(x) by {rounding['log_prob_change']:.4f} +- "
            f"{rounding['std_err']:.4f} nats, mean of {rounding['rows']} validation images"
        )
    if not output.name.isdecimal():
        print(f"TensorFlow Serving takes only folders whose name is a number for versions, such as {output}/1")
    if not warmup.is_available():
        print("without warm-up requests, which take the extra 'serving': pip install 'tfstruct[serving]'")


def run() -> None:
    """The console script `tfstruct-export`."""
    entry.run(main)


if __name__ == "__main__":
    run()

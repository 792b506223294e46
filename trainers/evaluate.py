"""Evaluates a run: tfstruct-evaluate --workdir=runs/a [--num_samples=5000] [--split=test]."""

from absl import flags

from tfstruct.trainers import entry

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which rows to score.")
_SAMPLES = flags.DEFINE_integer("num_samples", None, "Importance samples K; default the preset's.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", None, "Rows to score, from the front; 0 for all.", lower_bound=0)
_BATCH = flags.DEFINE_integer("batch_size", None, "Rows computed at once.", lower_bound=1)
_CHUNK = flags.DEFINE_integer("chunk", None, "Importance samples computed at once.", lower_bound=1)
_SET = flags.DEFINE_multi_string("set", [], "Changes a setting of the evaluation: evaluation.key=value.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the importance samples.", lower_bound=0)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets prepared by TensorFlow Datasets.")
_TAG = flags.DEFINE_string("tag", "", "Ends the names of the files written, to keep several evaluations of a split.")
_DATA = flags.DEFINE_string("data", None, "Score another data set, name/variant, such as binarized_mnist/static.")
_OTHER_VARIANT = flags.DEFINE_bool("allow_other_variant", False, "With --data: also rows made in another way.")
_EDGES = flags.DEFINE_bool("edges", False, "Measure what each edge of a Graph VAE is worth by flipping it.")
_EDGE_SAMPLES = flags.DEFINE_integer("edge_samples", 100, "Importance samples for --edges.", lower_bound=1)
_EDGE_IMAGES = flags.DEFINE_integer("edge_images", 1_000, "Rows for --edges, from the front.", lower_bound=2)
_PICTURES = flags.DEFINE_bool("pictures", True, "Draw structure, samples, reconstructions and curves.")


def main() -> None:
    """Scores, writes evaluation.json and the pictures, prints one line."""
    from tfstruct.evaluation import other_data, pictures, report

    run = report.TrainedRun(_WORKDIR.value, data_dir=_DATA_DIR.value)
    data = None
    if _DATA.value is not None:
        data = other_data.load(
            run.config, _DATA.value, data_dir=_DATA_DIR.value, allow_other_variant=_OTHER_VARIANT.value
        )
    result = report.evaluate(
        run,
        split=_SPLIT.value,
        num_samples=_SAMPLES.value,
        images=_IMAGES.value,
        batch_size=_BATCH.value,
        chunk=_CHUNK.value,
        seed=_SEED.value,
        tag=_TAG.value,
        overrides=_SET.value,
        data=data,
        edges=_EDGES.value,
        edge_samples=_EDGE_SAMPLES.value,
        edge_images=_EDGE_IMAGES.value,
    )
    print(report.summary_line(result))
    for line in report.edge_lines(result):
        print(line)
    for flag in result["flags"]:
        print(f"FLAGGED {flag}")
    if _PICTURES.value:
        for replica in range(run.num_replicas):
            for path in pictures.draw_all(run, replica=replica):
                print(path)


def run() -> None:
    """The console script `tfstruct-evaluate`."""
    entry.run(main)


if __name__ == "__main__":
    run()

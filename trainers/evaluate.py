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
_PICTURES = flags.DEFINE_bool("pictures", True, "Draw structure, samples, reconstructions and curves.")


def main() -> None:
    """Scores, writes evaluation.json and the pictures, prints one line."""
    from tfstruct.evaluation import pictures, report

    run = report.TrainedRun(_WORKDIR.value, data_dir=_DATA_DIR.value)
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
    )
    print(report.summary_line(result))
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

"""Scores the rows of files with an exported model: tfstruct-score --model=DIR --input=x.npz --output=scores.npz.

Files may be larger than memory. A run that was ended goes on when the same command is given again. Needs TensorFlow
alone: not Keras, not TensorFlow Probability, not the model's code; --runner needs Apache Beam: the extra `beam`.
"""

import os
from typing import TYPE_CHECKING

from absl import flags

from tfstruct import progress
from tfstruct.trainers import entry

if TYPE_CHECKING:  # what imports TensorFlow
    from tfstruct.serving.batch.job import Job
    from tfstruct.serving.batch.results import Summary
    from tfstruct.serving.client import LoadedModel

_MODEL = flags.DEFINE_string("model", None, "Folder of an exported model, or <system>/<preset>.", required=True)
_INPUT = flags.DEFINE_multi_string(
    "input",
    None,
    "A .npy, .npz, TFRecord (of tf.train.Example), parquet or CSV file of rows, a folder of PNG and JPEG images, or a "
    "pattern such as 'data/*.parquet'; given several times, their rows one after the other.",
    required=True,
)
_KEY = flags.DEFINE_string("key", None, "Array, feature or column of a file; needed when it holds several.")
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "A .npz or .parquet file to write: for each row its path, row, valid, and the scores.",
    required=True,
)
_SIGNATURE = flags.DEFINE_string("signature", "log_prob", "What is asked of each row: log_prob, elbo, anomaly, ...")
_ALPHA = flags.DEFINE_float("alpha", 0.05, "False-alarm rate of --signature=anomaly.", 0.0, 1.0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the importance samples.", lower_bound=0)
_BATCH = flags.DEFINE_integer("batch_size", 100, "Rows computed at once.", lower_bound=1)
_SHARD = flags.DEFINE_integer(
    "shard_rows", 5000, "Rows in memory at once, whose scores are kept when a run is ended.", lower_bound=1
)
_INVALID = flags.DEFINE_enum(
    "invalid", "raise", ["raise", "mark"], "What becomes of rows that the model refuses: an error, or `valid` False."
)
_RUNNER = flags.DEFINE_string("runner", None, "Runner of Apache Beam: DirectRunner, DataflowRunner, ...")
_RUNNER_OPTIONS = flags.DEFINE_multi_string(
    "runner_option", [], "Of the runner, without its dashes: direct_num_workers=2, say."
)


def main() -> None:
    """Scores, writes the scores, prints their means and standard errors."""
    from tfstruct.data import sources
    from tfstruct.serving import client
    from tfstruct.serving.batch import results
    from tfstruct.serving.batch.job import Job, Question

    output = _OUTPUT.value
    results.check_output(output)
    if _RUNNER_OPTIONS.value and not _RUNNER.value:
        raise ValueError(f"--runner_option={_RUNNER_OPTIONS.value[0]} is of a --runner, which is not given")
    model = client.load(_MODEL.value)
    found = sources.find(_INPUT.value, _KEY.value, model.event_shape)
    question = Question(
        _SIGNATURE.value, _SEED.value, _ALPHA.value, _BATCH.value, keep_invalid=_INVALID.value == "mark"
    )
    for source in found:
        if os.path.realpath(output) in map(os.path.realpath, source.paths()):
            raise ValueError(f"--output={output} would take the place of rows that are to be scored")
        question.check(model, source)
    job = Job(str(model.path), question, found, _SHARD.value, f"{output}.shards")
    with job.alone():
        _score(job, model)
        _report(results.join(job, output), model)


def _score(job: "Job", model: "LoadedModel") -> None:
    """Scores what is still to be scored, in this process or by a runner."""
    if _RUNNER.value:
        try:
            from tfstruct.serving.batch import pipeline
        except ImportError as error:
            raise RuntimeError(f"--runner needs the extra `beam`: pip install 'tfstruct[beam]' ({error})") from error
        pipeline.run(job, _RUNNER.value, [f"--{option}" for option in _RUNNER_OPTIONS.value])
    else:
        total = sum(shard.num_rows for shard in job.shards())
        done = total - sum(shard.num_rows for shard in job.begin())
        with progress.Progress("scoring", total, "row", initial=done) as bar:
            job.run(model, bar.update)


def _report(summary: "Summary", model: "LoadedModel") -> None:
    over = f"(standard error over {summary.valid} rows)"
    for name, (mean, error) in summary.means.items():
        if name == "log_prob":
            samples = model.card["num_samples"]
            print(f"{model.path}: log-likelihood {mean:.2f} +- {error:.2f} {over} nats, K={samples}")
        elif name == "is_anomaly":
            print(f"{model.path}: {mean:.2%} of {summary.valid} rows are anomalies at alpha={_ALPHA.value}")
        elif name == _SIGNATURE.value:
            print(f"{model.path}: {name} {mean:.2f} +- {error:.2f} {over}")
    if summary.valid < summary.rows:
        print(f"{summary.rows - summary.valid} of {summary.rows} rows are not valid: the model does not take them")
    print(f"scores in {_OUTPUT.value}")


def run() -> None:
    """The console script `tfstruct-score`."""
    entry.run(main)


if __name__ == "__main__":
    run()

"""A scoring job as an Apache Beam pipeline: shards are read, scored and written by as many workers as there are."""

from collections.abc import Iterable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from tfstruct.data.sources import Rows
from tfstruct.serving.batch.job import Job, Scores, Shard
from tfstruct.serving.client import LoadedModel, load

_Read = tuple[Shard, Rows]
_Scored = tuple[Shard, Scores]


class _Scorer(ModelHandler[_Read, _Scored, LoadedModel]):
    """Loads the model, checked as always, once in each process; a shard is an element."""

    def __init__(self, job: Job) -> None:
        super().__init__(min_batch_size=1, max_batch_size=1)
        self._job = job

    def load_model(self) -> LoadedModel:
        return load(self._job.model)

    def run_inference(
        self, batch: Sequence[_Read], model: LoadedModel, inference_args: dict[str, Any] | None = None
    ) -> Iterable[_Scored]:
        return [(shard, self._job.score(model, shard, rows)) for shard, rows in batch]


def run(job: Job, runner: str, options: Sequence[str] = ()) -> None:
    """Scores what is still to be scored, and waits for it.

    A shard goes through reading, scoring and writing as one element and in one piece, so that what is written is kept
    whatever becomes of the pipeline: the same job run again goes on from there.

    Args:
        job: the job. Its model, rows and folder must have the same paths on all workers.
        runner: name of a Beam runner.
        options: of the runner, as on a command line.

    Raises:
        RuntimeError: the pipeline failed; the message has the reason.
    """
    missing = job.begin()
    if not missing:
        return
    try:
        with beam.Pipeline(options=PipelineOptions(list(options), runner=runner)) as pipeline:
            _ = (
                pipeline
                | "Shards" >> beam.Create(missing)
                | "Distribute" >> beam.Reshuffle()
                | "Read" >> beam.Map(lambda shard: (shard, shard.read()))
                | "Score" >> RunInference(_Scorer(job))
                | "Write" >> beam.MapTuple(job.write)
            )
    except Exception as error:
        raise RuntimeError(f"{runner} did not finish: {error}; the same command goes on from what is done") from error

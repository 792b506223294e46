"""One training run from config to weights: resumable, validated, with early stopping."""

import contextlib

import tensorflow as tf

from tfstruct.files import PathLike
from tfstruct.models import registry
from tfstruct.models.config import Config
from tfstruct.training.checkpoint import WorkdirLock
from tfstruct.training.data import load_data
from tfstruct.training.distribute import WorkerLoop, make_strategy
from tfstruct.training.initial import origin
from tfstruct.training.loop import resolve_compiler
from tfstruct.training.trainer import RunResult, Trainer
from tfstruct.training.workdir import Workdir
from tfstruct.training.workers import Task


def train(
    config: Config,
    workdir: PathLike,
    *,
    strategy: str = "auto",
    resume: str = "auto",
    data_dir: str | None = None,
) -> RunResult:
    """Trains the config's system, or goes on where an earlier run of the same config stopped.

    Args:
        config: a preset's config.
        workdir: folder of the run.
        strategy: `none`, `mirrored` (several devices, which share the replicas, or the batches of one), `multi_worker`
            (several processes, by TF_CONFIG) or `auto`.
        resume: `auto`, `never` or `must`; see Workdir.claim.
        data_dir: folder of prepared data sets.

    Returns:
        The best weights and the speed.

    Raises:
        ValueError: bad settings or data, before anything is written.
        SystemExit: a signal asked to stop; with status 0 in a process of `multi_worker` that is not the chief, which
            alone writes and returns.
        LostWorkerError: another process of `multi_worker` ended.
        NonFiniteTrainingError: every replica diverged at every learning rate that was tried; see `Recovery.roll_back`.
    """
    folder = Workdir(workdir)
    chosen = make_strategy(strategy)
    task = Task.from_environment() if isinstance(chosen, tf.distribute.MultiWorkerMirroredStrategy) else None
    is_chief = task is None or task.is_chief
    if is_chief:
        folder.check_resume(resume)
    if task is not None:
        strategy = "multi_worker"
    replicas = config.training.replicas
    if task is not None and replicas > 1:
        raise ValueError(f"strategy multi_worker trains one replica, found training.replicas={replicas}")
    if strategy == "auto" and chosen is not None:
        # What several devices cannot share equally trains on one: replicas, or each batch of one replica.
        shared = replicas if replicas > 1 else config.training.batch_size
        chosen = None if shared % chosen.num_replicas_in_sync else chosen
    data = load_data(config, data_dir)
    config = config.replace({"data.event_shape": data.event_shape})
    compiler = resolve_compiler(config)
    seeds = [config.training.seed + place for place in range(replicas)]
    models = [registry.build(config, seed=seed) for seed in seeds]
    if chosen is not None and replicas == 1:
        # Means are over the global batch, so that the number of devices changes nothing; XLA cannot take them.
        if config.model.batch_norm:
            models = [registry.build(config.replace({"model.batch_norm_synchronized": True}), seed=seeds[0])]
        if config.model.batch_norm or models[0].needs.whole_batch:
            compiler = "graph"
    if config.training.structure_fraction and not models[0].needs.structure:
        raise ValueError(
            f"training.structure_fraction={config.training.structure_fraction} is for a structure that is learned; "
            f"{config.preset} has none (model.structure={getattr(config.model, 'structure', 'none')})"
        )
    trainer = Trainer(config, folder, data, models, seeds, compiler, chosen)
    together = contextlib.nullcontext()
    if isinstance(trainer.loop, WorkerLoop):
        trainer.loop.require_agreement(config, data.checksum)
        if not is_chief:
            trainer.follow(trainer.loop)
        together = trainer.loop.leading()
    with together, WorkdirLock(folder.path):
        starts_from = origin(config, folder)
        folder.claim(config, resume)
        return trainer.run(
            {
                "strategy": strategy,
                "devices": 1 if chosen is None else chosen.num_replicas_in_sync,
                "compiler": compiler,
                "data": {"checksum": data.checksum, "description": data.description},
                "starts_from": starts_from,
            }
        )

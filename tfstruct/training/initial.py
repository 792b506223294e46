"""The state in which a run starts: fresh weights, or those that another run has trained."""

from typing import Any

import numpy as np

from tfstruct import random
from tfstruct.data import datasets
from tfstruct.files import PathLike, sha256
from tfstruct.functional import Functional
from tfstruct.models.config import Config
from tfstruct.models.system import System
from tfstruct.training.state import TrainState, initial_state, stack_states
from tfstruct.training.workdir import CONFIG_NAME, Workdir


def make_initial_state(config: Config, models: list[System], seeds: list[int], data: datasets.Dataset) -> TrainState:
    """Returns the stacked state [R, ...] of new replicas, one for each model and seed."""
    is_averaged = config.optimizer.ema_momentum > 0.0
    states = []
    for model, seed in zip(models, seeds, strict=True):
        model.adapt(data.train)
        states.append(initial_state(Functional(model), random.key(seed), len(data.train), is_averaged=is_averaged))
    return stack_states(states)


def start_from(state: TrainState, functional: Functional, workdir: PathLike) -> TrainState:
    """Returns an initial state with the best weights of another run in place of fresh ones.

    Statistics that the other run lays out differently (more chains of a prior, say) stay as they are, and so do the
    optimizer's moments and the samplers of the training rows.

    Args:
        state: stacked, [R, ...].
        functional: of the model.
        workdir: folder of the other run, of R replicas or of one.

    Raises:
        FileNotFoundError: no run, or one without a checkpoint.
        ValueError: a run of other weights, or of another number of replicas.
    """
    source, num_replicas = Workdir(workdir).run_state(), len(state.parameters)
    weights = source.weights
    if len(weights.parameters) not in (1, num_replicas):
        raise ValueError(
            f"training.initial_weights={workdir} has {len(weights.parameters)} replicas, which start a run of as many, "
            f"found training.replicas={num_replicas}"
        )
    layout = functional.parameters.describe()
    require_layout(source.layout["parameters"], layout, f"training.initial_weights={workdir}")
    parameters = np.broadcast_to(weights.parameters, state.parameters.shape).copy()
    statistics = state.statistics.copy()
    stored = dict(zip(*_slices(source.layout["statistics"]), strict=True))
    for variable in functional.statistics.variables:
        key = (variable.path, tuple(variable.shape))
        if key in stored:
            statistics[:, functional.statistics.place(variable)] = weights.statistics[:, stored[key]]
    averages = {"parameters": parameters, "statistics": statistics} if state.averages else {}
    return state._replace(parameters=parameters, statistics=statistics, averages=averages)


def require_layout(stored: list, layout: list, where: str) -> None:
    """Raises ValueError that names the first different weights unless those stored somewhere are laid out as a model's.

    Args:
        stored: path and shape of each weight there.
        layout: path and shape of each weight of the model.
        where: the place, for the message.
    """
    if stored == layout:
        return
    theirs = {path: shape for path, shape in stored}
    ours = {path: shape for path, shape in layout}
    different = [
        f"{path} {ours.get(path)} / {theirs.get(path)}"
        for path in dict.fromkeys([*ours, *theirs])
        if ours.get(path) != theirs.get(path)
    ]
    raise ValueError(
        f"{where} has other weights than this model (here / there): {'; '.join(different[:5]) or 'in another order'}. "
        "If no setting was changed, another version of this library wrote them: use that one"
    )


def origin(config: Config, folder: Workdir) -> dict[str, Any] | None:
    """Returns what is known of the run that a run starts from; None for one that starts from fresh weights.

    A run that is resumed keeps what it noted when it began: the other folder may be gone.

    Returns:
        `workdir`, `preset` and `config_sha256` of the other run; `flags` of its training, and `use_validation`, whether
        validation rows were trained on, in it or in one that it started from itself.
    """
    if not config.training.initial_weights:
        return None
    noted = folder.environment().get("starts_from")
    if noted is not None:
        return noted
    source = Workdir(config.training.initial_weights)
    other, before = source.config(), source.environment().get("starts_from") or {}
    return {
        "workdir": str(source.path),
        "preset": other.preset,
        "config_sha256": sha256(source.path / CONFIG_NAME),
        "flags": sorted({*other.training_flags, *before.get("flags", [])}),
        "use_validation": bool(other.data.use_validation or before.get("use_validation")),
    }


def _slices(layout: list) -> tuple[list[tuple], list[slice]]:
    """Path and shape of each stored weight, and where it lies in the vector."""
    keys = [(path, tuple(shape)) for path, shape in layout]
    ends = np.cumsum([int(np.prod(shape)) for _, shape in keys], dtype=int)
    return keys, [slice(end - int(np.prod(shape)), end) for end, (_, shape) in zip(ends, keys, strict=True)]

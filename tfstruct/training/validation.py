"""Validation of a run: the same rows, keys and number of samples each time."""

from typing import NamedTuple

import numpy as np

from tfstruct.inference.held_out import HeldOutScorer, Summary
from tfstruct.models.config import Config
from tfstruct.models.system import System
from tfstruct.training.loop import resolve_compiler
from tfstruct.training.state import Best, TrainState

_SEED = 1


class Validation(NamedTuple):
    """What a validation found.

    Attributes:
        weights: that were scored, with what evaluation needs of them, and their bounds.
        metrics: by name, [R]; for the log.
    """

    weights: Best
    metrics: dict[str, np.ndarray]


class Validator:
    """Scores validation rows with the weights of every replica.

    Args:
        model: of the weights; its variables are written to.
        rows: observations [n, *event_shape].
        config: of the run.
    """

    def __init__(self, model: System, rows: np.ndarray, config: Config) -> None:
        options = config.training
        self._rows, self._settings = rows[: options.validation_images], options.validation
        # The bound that is trained, so that the curves of training and validation compare.
        self._shows_elbo = config.objective.name == "elbo"
        self._scorer = HeldOutScorer(
            model,
            num_samples=options.validation_samples,
            batch_size=min(100, len(self._rows)),
            chunk=10,
            compiler=resolve_compiler(config),
            terms_options=model.terms_options(self._settings),
        )

    def __call__(self, state: TrainState, step: int) -> Validation:
        """Scores a state [R, ...] of a step."""
        found = Best.before_validation(state, step)
        statistics = np.stack(
            [self._scorer.prepare(*weights, self._settings)[0] for weights in zip(*found[:2], strict=True)]
        )
        summaries = [self._score(*weights) for weights in zip(found.parameters, statistics, strict=True)]
        bounds = np.array([summary.log_likelihood for summary in summaries])
        metrics = {"log_likelihood": bounds}
        if self._shows_elbo:
            metrics["bound"] = np.array([summary.elbo for summary in summaries])
        return Validation(found._replace(statistics=statistics, bounds=bounds), metrics)

    def _score(self, parameters: np.ndarray, statistics: np.ndarray) -> Summary:
        return self._scorer.summarise(self._scorer(parameters, statistics, self._rows, seed=_SEED))

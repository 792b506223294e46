"""One training step as a pure function of state, step number and stored rows."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.data import variants
from tfstruct.functional import Functional
from tfstruct.inference import gibbs, objectives
from tfstruct.layers.precision import product_precision
from tfstruct.models.system import System
from tfstruct.training.optimizer import Adam, moving_average
from tfstruct.training.phases import Phases
from tfstruct.training.state import TrainState

Metrics = dict[str, tf.Tensor]


class Gradient(NamedTuple):
    """What a batch says of a state.

    Attributes:
        gradient: flat, [P].
        statistics: the new ones, [S].
        metrics: scalars and small tensors by name.
        chains: new states of the samplers of the batch's rows, by name, each [K, B, ...].
    """

    gradient: tf.Tensor
    statistics: tf.Tensor
    metrics: Metrics
    chains: dict[str, tf.Tensor]


class TrainStep:
    """Forward pass, gradient and update of one system, without side effects.

    Args:
        model: the system; its variables name the weights and are neither read nor written.
        transform: what turns stored rows into observations (see data.variants).
    """

    def __init__(self, model: System, transform: str) -> None:
        config, needs = model.config, model.needs
        self.model, self.transform = model, transform
        self.functional = Functional(model)
        options = config.optimizer
        self.adam = Adam(options.beta_1, options.beta_2, options.epsilon, options.clip_norm)
        self.learning_rate = float(options.learning_rate)
        self.phases = Phases.from_config(config)
        self.schedules: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = {
            name: self.phases.schedule(getattr(config.schedules, name))
            for name in ("learning_rate_factor", "kl_weight", *needs.schedules)
        }
        self._scheduled = needs.schedules
        self.weight_decay = float(options.weight_decay)
        if self.weight_decay and not needs.decayed:
            raise ValueError(
                f"optimizer.weight_decay={self.weight_decay} has no effect on {config.system}, which names no weights "
                "that it should act on; set optimizer.weight_decay=0.0"
            )
        decayed = {id(variable) for variable in needs.decayed}
        self._decay = self.functional.parameters.join(
            [
                tf.fill(variable.shape, self.weight_decay if id(variable) in decayed else 0.0)
                for variable in self.functional.parameters.variables
            ]
        ).numpy()
        self.ema_momentum = float(options.ema_momentum)
        # Statistics of batch normalisation belong to the weights and are averaged with them; others, such as the states
        # of samplers, have no meaningful average.
        statistics = self.functional.statistics
        is_averaged = [path.rpartition("/")[2] in ("moving_mean", "moving_variance") for path in statistics.paths]
        self._is_averaged_statistic = np.repeat(np.array(is_averaged, bool), statistics.sizes)
        posterior = {id(variable) for variable in needs.posterior}
        self.posterior_places = [
            place for place, variable in enumerate(self.functional.parameters.variables) if id(variable) in posterior
        ]

    def gradient(
        self,
        state: TrainState,
        step: tf.Tensor,
        rows: tf.Tensor,
        first_row: tf.Tensor | int = 0,
        row_ids: tf.Tensor | None = None,
    ) -> Gradient:
        """Returns the gradient of the loss of a batch of stored rows, without weight decay, and what came with it.

        Args:
            state: of one replica.
            step: number of updates made before this one, int32 scalar.
            rows: [B, *event_shape] as stored.
            first_row: place of the first row in the global batch, when that is divided among devices.
            row_ids: places of the rows in the training set, int32 [B], for samplers that persist.
        """
        key = random.fold_in(random.fold_in(state.key, random.TRAINING_STEP), step)
        x, row_seeds, shared_seed = variants.prepare_batch(rows, key, self.transform, first_row, self.model.corruption)
        pieces = self.functional.parameters.split(state.parameters)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(pieces)
            with self.functional.bind(pieces, state.statistics) as scope:
                draws = objectives.Draws(
                    row_seeds,
                    self.model.config.objective.num_samples,
                    training=True,
                    shared_seed=shared_seed,
                    scheduled={name: self.schedules[name](step) for name in self._scheduled},
                    chains={name: gibbs.gather(chains, row_ids) for name, chains in state.chains.items()},
                )
                with product_precision(self.model.config.training.precision):
                    result = self.model.objective(x, draws, kl_weight=self.schedules["kl_weight"](step))
                diagnostics = self.model.diagnostics()
            statistics = self.functional.new_statistics(scope)
        gradients = objectives.group_gradients(tape, result, pieces, [pieces[place] for place in self.posterior_places])
        metrics = {
            "loss": result.generative_loss,
            "bound": tf.reduce_mean(result.bound),
            "rate": tf.reduce_mean(result.rate),
            "distortion": tf.reduce_mean(result.distortion),
            **diagnostics,
        }
        return Gradient(self.functional.parameters.join(gradients), statistics, metrics, dict(result.chains or {}))

    def apply(
        self,
        state: TrainState,
        step: tf.Tensor,
        gradient: tf.Tensor,
        statistics: tf.Tensor,
        metrics: Metrics,
        chains: Mapping[str, tf.Tensor] | None = None,
        row_ids: tf.Tensor | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Returns the state after an update; where loss, gradient or statistics are not finite, nothing changes.

        Of a gradient of finite norm the moments are finite, and so are the parameters unless they were next to the
        largest numbers there are. That is looked at once a call (`Recovery`): in every step it costs a pass over them.

        The metric `skipped` counts those steps; their other metrics enter the means as zero.
        """
        if self.weight_decay:
            gradient += self._decay * state.parameters
        learning_rate = self.learning_rate * self.schedules["learning_rate_factor"](step) * state.learning_rate_scale
        is_finite = tf.math.is_finite(metrics["loss"]) & tf.reduce_all(tf.math.is_finite(statistics))
        parameters, first, second, norm = self.adam.update(
            self.phases.local_step(step),
            learning_rate,
            gradient,
            state.parameters,
            state.first_moment,
            state.second_moment,
            is_finite,
        )
        is_finite &= tf.math.is_finite(norm)
        choose = lambda new, old: tf.where(is_finite, new, old)  # noqa: E731
        kept_chains = dict(state.chains)
        for name, states in (chains or {}).items():
            # Chosen before they are put back: choosing between whole sets of chains would copy them at every step.
            old = gibbs.gather(state.chains[name], row_ids)
            kept_chains[name] = gibbs.scatter(state.chains[name], row_ids, choose(tf.cast(states, old.dtype), old))
        statistics = choose(statistics, state.statistics)
        share = tf.cast(is_finite, tf.float32)
        state = state._replace(
            parameters=parameters,
            first_moment=first,
            second_moment=second,
            statistics=statistics,
            chains=kept_chains,
            averages=self._average(state, self.phases.local_step(step), parameters, statistics, share),
        )
        metrics = {**metrics, "gradient_norm": norm}
        metrics = {name: tf.where(is_finite, value, tf.zeros_like(value)) for name, value in metrics.items()}
        metrics["skipped"] = 1.0 - tf.cast(is_finite, tf.float32)
        return state, metrics

    def _average(
        self,
        state: TrainState,
        local_step: tf.Tensor,
        parameters: tf.Tensor,
        statistics: tf.Tensor,
        share: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """The moving averages after an update; empty where none are kept."""
        if not state.averages:
            return {}
        averages = {
            name: moving_average(state.averages[name], values, self.ema_momentum, local_step, share)
            for name, values in (("parameters", parameters), ("statistics", statistics))
        }
        averages["statistics"] = tf.where(self._is_averaged_statistic, averages["statistics"], statistics)
        return averages

    def __call__(
        self, state: TrainState, step: tf.Tensor, rows: tf.Tensor, row_ids: tf.Tensor | None = None
    ) -> tuple[TrainState, Metrics]:
        """One whole step on one device."""
        return self.apply(state, step, *self.gradient(state, step, rows, row_ids=row_ids), row_ids)


def over_replicas(function: Callable[..., Any], num_replicas: int) -> Callable[..., Any]:
    """Maps function(state, step, rows, row_ids) over a leading replica axis of state, rows and row_ids.

    All replicas are computed by the same kernels. One replica runs without the mapping, which costs time where
    batched kernels are slower than plain ones.
    """

    def mapped(state: TrainState, step: tf.Tensor, rows: tf.Tensor, row_ids: tf.Tensor) -> Any:
        if num_replicas == 1:
            squeezed = tf.nest.map_structure(lambda leaf: tf.squeeze(leaf, 0), (state, rows, row_ids))
            return tf.nest.map_structure(lambda leaf: leaf[tf.newaxis], function(squeezed[0], step, *squeezed[1:]))
        return tf.vectorized_map(lambda parts: function(parts[0], step, *parts[1:]), (state, rows, row_ids))

    return mapped

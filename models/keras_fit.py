"""Systems as Keras models: `compile`, `fit`, `evaluate` on the config's objective, saving and loading."""

import dataclasses
import inspect
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.data import variants
from tfstruct.data.support import BINARY, INTEGERS, REAL, UNIT_INTERVAL, require_support
from tfstruct.files import CHECKSUMS_NAME, PathLike, read_checksums, sha256
from tfstruct.inference import objectives
from tfstruct.models import registry
from tfstruct.models.config import Config
from tfstruct.schedules import Schedule


@keras.saving.register_keras_serializable("tfstruct")
class _Course(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of factors as a learning rate."""

    def __init__(self, schedule: Schedule | dict[str, Any], learning_rate: float) -> None:
        self.schedule = schedule if isinstance(schedule, Schedule) else Schedule(**schedule)
        self.learning_rate = learning_rate

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        return self.learning_rate * self.schedule(tf.cast(step, tf.int32))

    def get_config(self) -> dict[str, Any]:
        return {"schedule": dataclasses.asdict(self.schedule), "learning_rate": self.learning_rate}


class KerasFit(keras.Model):
    """What a system is to Keras; the contract itself is `System`'s.

    Its classes are known to Keras once they are imported: `keras.models.load_model` of another process needs an
    `import tfstruct.models.<system>.model` before.

    Args:
        config: a preset's config.
        **kwargs: of keras.Model.
    """

    def __init__(self, config: Config, **kwargs) -> None:
        super().__init__(**kwargs)
        self.config = config
        names = ("loss", "bound", "rate", "distortion")
        self._means = {name: keras.metrics.Mean(name=name) for name in names}

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if not inspect.isabstract(cls):
            keras.saving.register_keras_serializable("tfstruct")(cls)

    def fit(self, x: Any = None, *args, **kwargs) -> keras.callbacks.History:
        """Keras `fit` on the objective of the config, without targets.

        Rows are what the config's data variant stores: with `dynamic`, intensities (uint8 or floats in [0, 1])
        that are binarised anew at every visit; zeros and ones stay what they are.

        Raises:
            ValueError: rows of another shape, values that the likelihood does not allow, or a config that trains in two
                phases.
        """
        if self.config.training.structure_fraction:
            raise ValueError(
                f"training.structure_fraction={self.config.training.structure_fraction} fixes the structure and starts "
                "all other weights anew in the middle of training, which Keras fit does not do; train with "
                "tfstruct-train, or set training.structure_fraction=0.0"
            )
        if self.needs.chains is not None:
            warnings.warn(
                f"Keras fit starts the samplers of {self.config.preset} anew at every batch; tfstruct-train keeps "
                "those of every training row",
                stacklevel=2,
            )
        self._check_rows(x, "the rows given to fit")
        validation = kwargs.get("validation_data")
        if validation is not None:
            rows = validation[0] if isinstance(validation, (tuple, list)) else validation
            self._check_rows(rows, "the validation rows given to fit")
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x: Any = None, *args, **kwargs) -> Any:
        """Keras `evaluate` of the bound in evaluation form; rows as in `fit`, but floats are taken as final values.

        Raises:
            ValueError: rows of another shape, or values that the likelihood does not allow.
        """
        self._check_rows(x, "the rows given to evaluate")
        return super().evaluate(x, *args, **kwargs)

    def _check_rows(self, rows: Any, what: str) -> None:
        """Raises ValueError for stored rows whose transform does not end in the likelihood's support.

        Data sets and generators pass unchecked: they cannot be looked through beforehand.
        """
        if not isinstance(rows, (np.ndarray, tf.Tensor)):
            return
        rows = np.asarray(rows)
        if rows.shape[1:] != self.event_shape:
            raise ValueError(f"{what} must have shape [n, *{self.event_shape}], found {list(rows.shape)}")
        support = self.likelihood.support
        if self.train_transform == "cast":
            require_support(rows, support if support in (BINARY, INTEGERS) else REAL, what)
        elif rows.dtype.kind == "f":
            require_support(rows, UNIT_INTERVAL, what)

    @property
    def train_transform(self) -> str:
        """What turns a stored row into an observation while training (see data.variants)."""
        return variants.train_transform(self.config.data.variant)

    @property
    def corruption(self) -> tuple[float, str] | None:
        """What training rows are corrupted by: the last argument of `data.variants.prepare_batch`."""
        fraction = self.config.data.corruption
        return (fraction, self.likelihood.support) if fraction else None

    def compile(self, optimizer: Any = None, **kwargs) -> None:
        """Keras `compile` for training without targets; XLA is off unless asked for by `jit_compile=True`.

        Args:
            optimizer: as Keras takes it; default the config's, whose learning rate follows the config's course over
                `training.steps` and whose weights are averaged if the config says so. One that is given is used as it
                is. Either way `optimizer.weight_decay` acts on the weights that the system names.
            **kwargs: of Keras' `compile`.
        """
        kwargs.setdefault("jit_compile", False)
        super().compile(optimizer=self._own_optimizer() if optimizer is None else optimizer, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Keras calls it when it loads a model that was compiled."""
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**{name: config[name] for name in ("optimizer", "run_eagerly", "jit_compile") if name in config})
        self.optimizer.build(self.trainable_variables)

    def _own_optimizer(self) -> keras.optimizers.Optimizer:
        options = self.config.optimizer
        averages = {"use_ema": True, "ema_momentum": options.ema_momentum} if options.ema_momentum else {}
        return keras.optimizers.Adam(
            _Course(self._schedule("learning_rate_factor"), options.learning_rate),  # pyright: ignore[reportArgumentType]
            beta_1=options.beta_1,
            beta_2=options.beta_2,
            epsilon=options.epsilon,
            global_clipnorm=options.clip_norm or None,
            **averages,
        )

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras resets these at the beginning of each epoch."""
        return list(self._means.values())

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update of Keras `fit`: `objective` on a batch, gradients as in the functional loop."""
        rows, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        step = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.int32)
        x, row_seeds, shared_seed = self._batch(rows, step, training=True)
        variables, needs = self.trainable_variables, self.needs
        draws = objectives.Draws(
            row_seeds,
            self.config.objective.num_samples,
            training=True,
            shared_seed=shared_seed,
            scheduled={name: self._scheduled(name, step) for name in needs.schedules},
        )
        with tf.GradientTape(persistent=True) as tape:
            result = self.objective(x, draws, kl_weight=self._scheduled("kl_weight", step))
        gradients = objectives.group_gradients(tape, result, variables, needs.posterior)
        decayed = {id(variable) for variable in needs.decayed}
        gradients = [
            gradient + self.config.optimizer.weight_decay * variable if id(variable) in decayed else gradient
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        self.optimizer.apply(gradients, variables)
        return self._epoch_means(
            loss=result.generative_loss,
            bound=tf.reduce_mean(result.bound),
            rate=tf.reduce_mean(result.rate),
            distortion=tf.reduce_mean(result.distortion),
        )

    def test_step(self, data: Any) -> dict[str, Any]:
        """The bound in evaluation form (moving averages, hard gates), for Keras `evaluate`; its noise is fixed."""
        rows, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        x, row_seeds, shared_seed = self._batch(rows, tf.constant(0), training=False)
        result = self.objective(
            x, objectives.Draws(row_seeds, self.config.objective.num_samples, shared_seed=shared_seed)
        )
        bound = tf.reduce_mean(result.bound)
        return self._epoch_means(loss=-bound, bound=bound)

    def _epoch_means(self, **values: tf.Tensor) -> dict[str, tf.Tensor]:
        """Takes the values of a batch up and returns their means since the beginning of the epoch."""
        for name, value in values.items():
            self._means[name].update_state(value)
        return {name: self._means[name].result() for name in values}

    def _batch(self, rows: tf.Tensor, step: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        key = random.key(self.config.training.seed)
        if training:
            key = random.fold_in(random.fold_in(key, random.TRAINING_STEP), step)
        else:
            key = random.fold_in(key, random.EVALUATION)
        transform = self.train_transform
        if not training and rows.dtype.is_floating and self.likelihood.support != BINARY:
            transform = "cast"  # floats given to `evaluate` are final values
        corruption = self.corruption if training else None
        x, row_seeds, shared_seed = variants.prepare_batch(rows, key, transform, corruption=corruption)
        if transform == "binarize" and rows.dtype.is_integer:
            # Integers of 0 and 1 are final values (the validation rows of a data set, say), not faint intensities.
            x = tf.where(tf.reduce_max(rows) <= 1, tf.cast(rows, x.dtype), x)
        return x, row_seeds, shared_seed

    def _schedule(self, name: str) -> Schedule:
        return getattr(self.config.schedules, name).over(self.config.training.steps)

    def _scheduled(self, name: str, step: tf.Tensor) -> tf.Tensor:
        return self._schedule(name)(step)

    # Saving ----------------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """What `from_config` takes: the config as JSON, and the name."""
        return {"config": self.config.to_json(), "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: object = None) -> "KerasFit":
        """Builds the model of `get_config`, with fresh weights."""
        del custom_objects
        return registry.build(registry.parse_config(config["config"]))

    def load_weights(self, filepath: PathLike, *args, **kwargs) -> None:
        """Keras' `load_weights`; raises ValueError if SHA256SUMS beside the file has another checksum of it."""
        path = Path(filepath)
        if (path.parent / CHECKSUMS_NAME).exists():
            expected = read_checksums(path.parent).get(path.name)
            if expected not in (None, sha256(path)):
                raise ValueError(f"{path} does not have the checksum in {CHECKSUMS_NAME} beside it")
        super().load_weights(filepath, *args, **kwargs)

    def export(self, filepath: str, *args, **kwargs) -> None:
        """Keras `export` of `call`, reconstructions at the posterior mean; `tfstruct-export` makes whole bundles."""
        kwargs.setdefault("input_signature", [keras.InputSpec(shape=(None, *self.event_shape), dtype="float32")])
        super().export(filepath, *args, **kwargs)

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Keras calls it when it loads a model, whose weights are made already."""
        del config

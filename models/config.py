"""What the config of every system holds: each setting with its type, default, range, choices and help.

A system declares a config of its own, with the groups that it changes. Configs that an older version wrote lack what
came later and get the defaults: that of a new setting means what was done before there was one.
"""

import json
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tfstruct.schedules import Course
from tfstruct.settings import Count, Fraction, Index, NonNegative, ProperFraction, Repeats, Settings

#: of the files that hold configs; raised when a setting changes its name or its meaning
SCHEMA_VERSION = 1


class Data(Settings):
    """The data set."""

    name: str = Field(default="mnist", description="of the data set; `file` for one of the user's")
    variant: str = Field(default="dynamic", description="how rows are made of what is stored")
    file: str = Field(default="", description="path of a file, or folder of images, for data.name=file")
    event_shape: Annotated[tuple[Count, ...], Field(max_length=8)] = Field(
        default=(28, 28), description="of one row; () takes that of a user file"
    )
    corruption: ProperFraction = Field(
        default=0.0, description="part of the values of training and validation rows that are replaced by uniform draws"
    )
    train_images: Index = Field(default=0, description="the first so many training rows; 0: all")
    standardise: bool = Field(
        default=False,
        description="bring every value to mean 1/2 and standard deviation 1/6 over the training rows; results stay "
        "those of the values as given",
    )
    use_validation: bool = Field(
        default=False,
        description="train on the validation rows as well, once all choices are made; joins both in memory",
    )


#: p(x | z): zeros and ones; real values; the integers 0..255
LikelihoodName = Literal["bernoulli", "gaussian", "binomial", "categorical", "logistic_mixture", "spline"]


class Model(Settings):
    """The model, as far as all systems have the same."""

    likelihood: LikelihoodName = Field(default="bernoulli", description="p(x | z)")
    batch_norm: bool = Field(default=False, description="batch normalisation in the networks")


class BatchNormModel(Model):
    """A model whose networks may have batch normalisation."""

    batch_norm: bool = Field(default=True, description="batch normalisation in the networks")
    batch_norm_momentum: Fraction = Field(default=0.99, description="of the moving averages that evaluation takes")
    batch_norm_epsilon: NonNegative = Field(default=1e-5, description="added to the variance")
    batch_norm_synchronized: bool = Field(
        default=False, description="statistics over all devices; the trainer sets it under a strategy of several"
    )


class Objective(Settings):
    """What is maximised."""

    name: Literal["elbo", "iwae", "conditional"] = Field(default="elbo", description="the bound")
    num_samples: Count = Field(default=1, description="importance samples K of a row")
    gradient: Literal["plain", "path"] = Field(
        default="plain",
        description="of the posterior; path: path derivatives, of iwae the doubly reparameterised gradient",
    )


class Optimizer(Settings):
    """The optimiser."""

    name: Literal["adam"] = "adam"
    learning_rate: NonNegative = 3e-4
    beta_1: ProperFraction = Field(default=0.9, description="decay of the gradient's average")
    beta_2: ProperFraction = Field(default=0.999, description="decay of the squared gradient's average")
    epsilon: NonNegative = Field(default=1e-8, description="added to the root of the squared gradient's average")
    clip_norm: NonNegative = Field(default=0.0, description="greatest norm of the gradient; 0: any")
    weight_decay: NonNegative = Field(default=0.0, description="of the system's own choice of weights")
    ema_momentum: ProperFraction = Field(
        default=0.0, description="of the average of the weights that is evaluated; 0: the latest weights"
    )


class Schedules(Settings):
    """Quantities that change over the course of training."""

    learning_rate_factor: Course = Field(default=Course(), description="of optimizer.learning_rate")
    kl_weight: Course = Field(default=Course(), description="of the rate in the objective")


class Training(Settings):
    """How training runs."""

    seed: Index = 0
    replicas: Repeats = Field(default=1, description="seeds seed, seed + 1, ... trained at once")
    steps: Count = Field(default=780_000, description="of the optimiser")
    initial_weights: str = Field(default="", description="folder of a run whose best weights to start from")
    structure_fraction: ProperFraction = Field(
        default=0.0,
        description="part of the steps after which a learned structure is fixed and all other weights start anew; "
        "0: one phase",
    )
    batch_size: Count = 128
    steps_per_call: Count = Field(default=500, description="steps that one compiled call does")
    validate_every: Count = Field(default=5_000, description="steps")
    validation_images: Count = Field(default=2_000, description="from the front of the validation split")
    validation_samples: Count = Field(default=10, description="importance samples K of a validation row")
    patience: Index = Field(
        default=0, description="validations without a new best before a replica stops; 0: train all steps"
    )
    checkpoint_minutes: NonNegative = 5.0
    compiler: Literal["auto", "xla", "graph"] = "auto"
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the matrix products and convolutions of networks, in training alone"
    )
    resident_megabytes: Index = Field(default=2_000, description="larger training sets are streamed")
    max_skipped_fraction: Fraction = Field(
        default=0.02, description="of a call's steps may have a loss or gradient that is not finite and be skipped"
    )
    max_rollbacks: Index = Field(
        default=3, description="times that a replica that diverges goes on from a checkpoint, at half the learning rate"
    )

    @model_validator(mode="after")
    def _check(self) -> "Training":
        if self.structure_fraction and not 0 < self.first_phase < self.steps:
            raise ValueError(
                "training.structure_fraction must be 0 (one phase) or leave each of two phases at least one of the "
                f"{self.steps} steps, found {self.structure_fraction}"
            )
        return self

    @property
    def first_phase(self) -> int:
        """Steps of the first of two phases; 0 for one phase."""
        return round(self.structure_fraction * self.steps)

    @property
    def validation(self) -> Settings:
        """What `System.prepare_evaluation` and `terms_options` take at a validation."""
        return self


class Evaluation(Settings):
    """How `tfstruct-evaluate` scores."""

    num_samples: Count = Field(default=5_000, description="importance samples K of a row")
    images: Index = Field(default=0, description="rows from the front of the split; 0: all")
    batch_size: Count = 100
    chunk: Count = Field(default=100, description="importance samples computed at once")


class Export(Settings):
    """What a bundle computes."""

    num_samples: Count = Field(default=100, description="importance samples K of a row")
    chunk: Count = Field(default=10, description="importance samples computed at once")


class Config(Settings):
    """Everything that decides a result.

    Attributes:
        preset: name of the preset that it was made of.
        system: name of the system.
        data: see Data.
        model: see the system's own.
        objective: see Objective.
        optimizer: see Optimizer.
        schedules: see Schedules.
        training: see Training.
        evaluation: see Evaluation.
        export: see Export.
    """

    preset: str = ""
    system: str = ""
    data: Data = Data()
    model: Model = Model()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    schedules: Schedules = Schedules()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    export: Export = Export()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.data.standardise:
            self._check_standardised()
        if self.training.initial_weights and self.training.structure_fraction:
            raise ValueError(
                "training.initial_weights does not go with training.structure_fraction, whose second phase starts all "
                "weights anew; set training.structure_fraction=0.0"
            )
        if self.data.use_validation and self.training.patience:
            raise ValueError(
                f"training.patience={self.training.patience} stops by validation rows, which data.use_validation=True "
                "trains on; set training.patience=0"
            )
        return self

    def _check_standardised(self) -> None:
        if self.model.likelihood != "gaussian":
            raise ValueError(
                "data.standardise=True is for real values; set model.likelihood=gaussian, found "
                f"{self.model.likelihood}"
            )
        if getattr(self.model, "missing_fraction", 0.0):
            raise ValueError(
                "data.standardise=True does not go with model.missing_fraction, whose bounds in training are of other "
                "values at every step; set model.missing_fraction=0.0"
            )
        if self.data.corruption:
            raise ValueError(
                "data.standardise=True does not go with data.corruption, which draws values between 0 and 1; set "
                "data.corruption=0.0"
            )

    def to_json(self) -> str:
        """See Settings; with the schema's version."""
        values = self.model_dump(mode="json") | {"schema_version": SCHEMA_VERSION}
        return json.dumps(values, indent=2, sort_keys=True)

    @property
    def uses_path_gradient(self) -> bool:
        """Whether the posterior is trained by path derivatives."""
        return self.objective.gradient == "path"

    @property
    def training_flags(self) -> list[str]:
        """What every evaluation must say of how this trains, also those of runs that start from its weights."""
        part = self.data.corruption
        return [f"trained on corrupted rows (data.corruption={part}), for likelihood ratios"] if part else []

    @property
    def is_slow_under_xla_on_cpu(self) -> bool:
        """Whether XLA makes programs for a CPU that are slower than the graph's."""
        return False

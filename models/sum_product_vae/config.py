"""The config of the sum-product VAEs; its defaults are an SPVAE with MLP leaves on continuous MNIST."""

from typing import Literal

from pydantic import Field

from tfstruct.models import config as base
from tfstruct.schedules import Course, course
from tfstruct.settings import Count, Fraction, Index, NonNegative, Positive


class Data(base.Data):
    """The data set."""

    variant: str = Field(default="continuous", description="how rows are made of what is stored")


class Model(base.Model):
    """The circuit and its leaves."""

    structure: Literal["poon_domingos", "bisected", "random", "single"] = Field(
        default="poon_domingos",
        description="all rectangles of an image; an image halved again and again; trees over vectors; one region",
    )
    delta: Count | tuple[Count, Count] = Field(
        default=7, description="distance of the grid lines of poon_domingos and bisected, pixels, or one for each axis"
    )
    tree_depth: Index = Field(default=2, description="of random")
    tree_repetitions: Count = Field(default=4, description="of random")
    tree_seed: Index = Field(default=0, description="of random")
    num_leaves: Count = Field(default=2, description="of each leaf region")
    num_sums: Count = Field(default=2, description="of each other region but the root")
    products: Literal["cross", "hadamard"] = Field(
        default="cross", description="of every choice of nodes, or of nodes with the same index"
    )
    leaf_vaes: Literal["separate", "shared"] = Field(
        default="separate",
        description="one for each leaf, or one for each region whose leaves are components of its prior",
    )
    num_latents: Count = Field(default=25, description="of each leaf's VAE")
    leaf_network: Literal["mlp", "conv"] = "mlp"
    hidden_units: tuple[Count, ...] = Field(default=(30, 30), description="of each MLP")
    conv_filters: tuple[Count, ...] = (4, 8)
    conv_stride: Count = 1
    conv_units: Count = 64
    likelihood: Literal["gaussian", "binomial", "categorical", "logistic_mixture", "spline", "bernoulli"] = Field(
        default="gaussian", description="p(x | z)"
    )
    precision_floor: Positive = Field(default=1.0, description="least precision of a pixel, of gaussian")
    num_components: Count = Field(default=5, description="of logistic_mixture and spline")
    mask_input: bool = Field(default=False, description="encoders read which pixels are observed")
    missing_fraction: Fraction = Field(default=0.0, description="part of the training rows of which pixels are hidden")
    batch_norm: Literal[False] = Field(default=False, description="there is none")


class Objective(base.Objective):
    """What is maximised."""

    name: Literal["elbo", "iwae"] = Field(default="iwae", description="the bound")
    num_samples: Count = Field(default=5, description="importance samples K of a row")


class Optimizer(base.Optimizer):
    """The optimiser."""

    learning_rate: NonNegative = 1e-2


class Schedules(base.Schedules):
    """Quantities that change over the course of training."""

    learning_rate_factor: Course = Field(
        default=course(1.0, (0.5, 1.0), (1.0, 0.05), interpolation="geometric"),
        description="of optimizer.learning_rate",
    )


class Training(base.Training):
    """How training runs."""

    steps: Count = Field(default=20_000, description="of the optimiser")
    validate_every: Count = Field(default=500, description="steps")
    validation_samples: Count = Field(default=5, description="importance samples K of a validation row")


class Evaluation(base.Evaluation):
    """How `tfstruct-evaluate` scores."""

    batch_size: Count = 50
    chunk: Count = Field(default=50, description="importance samples computed at once")


class Export(base.Export):
    """What a bundle computes."""

    chunk: Count = Field(default=20, description="importance samples computed at once")


class Config(base.Config):
    """See models.config."""

    system: Literal["sum_product_vae"] = "sum_product_vae"
    data: Data = Data()
    model: Model = Model()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    schedules: Schedules = Schedules()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    export: Export = Export()

    @property
    def is_slow_under_xla_on_cpu(self) -> bool:
        """See models.config: with convolutions over whole images a step takes 14 times as long."""
        is_whole_image = self.model.structure == "single" and self.model.num_leaves == 1
        return self.model.leaf_network == "conv" and is_whole_image

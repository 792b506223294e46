"""The config of the sum-product VAEs; its defaults are an SPVAE with MLP leaves on continuous MNIST."""

from typing import Literal

from pydantic import Field

from tfstruct.models import config as base
from tfstruct.schedules import course
from tfstruct.settings import Count, Fraction, Index, Positive, Repeats, Width, Widths


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
    tree_repetitions: Repeats = Field(default=4, description="of random")
    tree_seed: Index = Field(default=0, description="of random")
    num_leaves: Repeats = Field(default=2, description="of each leaf region")
    num_sums: Repeats = Field(default=2, description="of each other region but the root")
    products: Literal["cross", "hadamard"] = Field(
        default="cross", description="of every choice of nodes, or of nodes with the same index"
    )
    leaf_vaes: Literal["separate", "shared"] = Field(
        default="separate",
        description="one for each leaf, or one for each region whose leaves are components of its prior",
    )
    num_latents: Width = Field(default=25, description="of each leaf's VAE")
    leaf_network: Literal["mlp", "conv"] = "mlp"
    hidden_units: Widths = Field(default=(30, 30), description="of each MLP")
    conv_filters: Widths = (4, 8)
    conv_stride: Count = 1
    conv_units: Width = 64
    likelihood: Literal["gaussian", "binomial", "categorical", "logistic_mixture", "spline", "bernoulli"] = Field(
        default="gaussian", description="p(x | z)"
    )
    precision_floor: Positive = Field(default=1.0, description="least precision of a pixel, of gaussian")
    num_components: Repeats = Field(default=5, description="of logistic_mixture and spline")
    mask_input: bool = Field(default=False, description="encoders read which pixels are observed")
    missing_fraction: Fraction = Field(default=0.0, description="part of the training rows of which pixels are hidden")
    batch_norm: Literal[False] = Field(default=False, description="there is none")


class Objective(base.Objective):
    """What is maximised."""

    name: Literal["elbo", "iwae"] = Field(default="iwae", description="the bound")


class Config(base.Config):
    """See models.config."""

    system: Literal["sum_product_vae"] = "sum_product_vae"
    data: base.Data = base.Data(variant="continuous")
    model: Model = Model()
    objective: Objective = Objective(num_samples=5)
    optimizer: base.Optimizer = base.Optimizer(learning_rate=1e-2)
    schedules: base.Schedules = base.Schedules(
        learning_rate_factor=course(1.0, (0.5, 1.0), (1.0, 0.05), interpolation="geometric")
    )
    training: base.Training = base.Training(steps=20_000, validate_every=500, validation_samples=5)
    evaluation: base.Evaluation = base.Evaluation(batch_size=50, chunk=50)
    export: base.Export = base.Export(chunk=20)

    @property
    def is_slow_under_xla_on_cpu(self) -> bool:
        """See models.config: with convolutions over whole images a step takes 14 times as long."""
        is_whole_image = self.model.structure == "single" and self.model.num_leaves == 1
        return self.model.leaf_network == "conv" and is_whole_image

"""The config of the Graph VAE family; its defaults are the Graph VAE paper's, on dynamically binarised MNIST."""

from typing import Literal

from pydantic import Field, model_validator

from tfstruct.models import config as base
from tfstruct.schedules import Course, course
from tfstruct.settings import Index, NonNegative, Repeats, Settings, Width, Widths


class Flow(Settings):
    """An inverse autoregressive flow after each node's posterior."""

    steps: Index = Field(default=0, le=1000, description="0: no flow")
    hidden_units: Widths = (32, 32)
    context_dim: Index = Field(
        default=16, description="numbers that the bottom-up network gives to a node's flow; 0: none"
    )
    activation: str = "relu"
    gate_bias: float = Field(default=2.0, description="of the forget gates, at the beginning")


class Model(base.BatchNormModel):
    """Networks and latent graph."""

    num_latents: Width = Field(default=80, description="M, over all nodes")
    num_nodes: Repeats = Field(default=5, description="N")
    structure: Literal["independent", "chain", "full", "learned"] = Field(
        default="learned", description="of the latent graph"
    )
    adjacency: tuple[tuple[int, ...], ...] = Field(
        default=(), description="rows of zeros and ones, [child][parent]; () takes the structure's own"
    )
    encoder_units: Widths = (512, 512, 512)
    feature_units: Width = Field(default=256, description="that the encoder gives to the bottom-up networks")
    bottom_up_units: Width = Field(default=256, description="of each node")
    top_down_units: Width = Field(default=256, description="of each node")
    decoder_units: Widths = (512, 512, 512)
    encoder_activation: str = "elu"
    activation: str = "relu"
    layer_norm: bool = Field(default=False, description="in place of batch normalisation")
    share_top_down: bool = Field(default=False, description="one top-down network of a node for posterior and prior")
    straight_through: bool = Field(default=False, description="gates are decided in the forward pass while training")
    flow: Flow = Flow()
    num_components: Repeats = Field(default=5, description="of likelihood=logistic_mixture and spline")
    log_variance_floor: float = Field(default=-7.0, description="of pixels, for the Gaussian likelihood")
    log_variance_bound: NonNegative = Field(
        default=0.0, description="of latents: smooth bound on log variances; 0: they level off between 14 and 15"
    )

    @model_validator(mode="after")
    def _check(self) -> "Model":
        if self.num_latents % self.num_nodes:
            raise ValueError(
                "model.num_latents must be a positive multiple of model.num_nodes, found "
                f"num_latents={self.num_latents}, num_nodes={self.num_nodes}"
            )
        if self.layer_norm and self.batch_norm:
            raise ValueError("model.layer_norm=True takes the place of batch normalisation: set model.batch_norm=False")
        return self


class Objective(base.Objective):
    """What is maximised."""

    free_bits: NonNegative = Field(default=0.0, description="nats of each latent below which its rate costs nothing")
    allow_biased_gradient: bool = Field(
        default=False,
        description="doubly reparameterised gradients also under batch normalisation, where they are biased",
    )

    @model_validator(mode="after")
    def _check(self) -> "Objective":
        if self.free_bits and self.name != "elbo":
            raise ValueError(f"objective.free_bits={self.free_bits} goes with objective.name=elbo, found {self.name!r}")
        return self


class Schedules(base.Schedules):
    """Quantities that change over the course of training."""

    # Without it most latents collapse: 15 of 80 were active. From 0 posteriors may run away meanwhile.
    kl_weight: Course = Field(default=course(0.1, (0.3, 1.0)), description="of the rate in the objective")
    # The paper anneals 0.999 per epoch: 1 to 0.135 over its 2,000 epochs.
    gate_temperature: Course = Field(
        default=course(1.0, (1.0, 0.135), interpolation="geometric"), description="of relaxed gates while training"
    )


class Config(base.Config):
    """See models.config."""

    system: Literal["graph_vae"] = "graph_vae"
    model: Model = Model()
    objective: Objective = Objective()
    schedules: Schedules = Schedules()

    @model_validator(mode="after")
    def _check_gradient(self) -> "Config":
        if self.has_biased_gradient and not self.objective.allow_biased_gradient:
            raise ValueError(
                "objective.name=iwae with objective.gradient=path is biased under batch normalisation; "
                "set model.batch_norm=False (model.layer_norm=True normalises otherwise), or objective.gradient=plain, "
                "or objective.allow_biased_gradient=True to train by it all the same, which every evaluation then flags"
            )
        return self

    @property
    def has_biased_gradient(self) -> bool:
        """Whether the doubly reparameterised gradient is biased by batch normalisation.

        Batch statistics make the weight of one importance sample depend on the latents of the others; those paths would
        need the weight v where the estimator gives them v squared, and the gradient is biased whatever the batch size.
        """
        return self.objective.name == "iwae" and self.objective.gradient == "path" and self.model.batch_norm

    @property
    def training_flags(self) -> list[str]:
        """See models.config."""
        biased = (
            "biased gradient: trained by doubly reparameterised gradients under batch normalisation, which are biased "
            "there"
        )
        return [*super().training_flags, *([biased] if self.has_biased_gradient else [])]

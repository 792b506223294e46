"""The config of the Boltzmann VAEs; its defaults are DVAE## on static MNIST with 100 + 100 latents."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tfstruct.models import config as base
from tfstruct.schedules import course
from tfstruct.settings import Count, NonNegative, Positive, Repeats, Settings, Width, Widths


class Sharpness(Settings):
    """Of each relaxation: the greater, the nearer to binary."""

    piecewise_linear: Positive = 4.0
    concrete: Positive = 10.0
    gumbolt: Positive = 10.0
    power: Positive = 30.0


class Model(base.BatchNormModel):
    """Networks, prior and posterior."""

    conditional: bool = Field(default=False, description="predict the lower half of an image from the upper one")
    num_units_1: Width = Field(default=100, description="of the first side of the machine, V")
    num_units_2: Width = Field(default=100, description="of the second side, H")
    posterior: Literal["rbm", "directed"] = "rbm"
    groups: Count = Field(default=1, description="of a directed posterior: L")
    relaxation: Literal["piecewise_linear", "concrete", "gumbolt", "power"] = Field(
        default="piecewise_linear",
        description="of latents while training; gumbolt and power are for a directed posterior",
    )
    sharpness: Sharpness = Sharpness()
    posterior_sweeps: Count = Field(default=10, description="hard Gibbs sweeps s of a posterior's chains at each step")
    relaxed_sweeps: Repeats = Field(
        default=1, description="relaxed sweeps t that follow, through which the gradient flows"
    )
    prior_sampler: Literal["population", "persistent"] = Field(
        default="population", description="chains are resampled by weights at every step, or only persist"
    )
    prior_chains: Count = 1_000
    prior_sweeps: Count = Field(default=40, description="of the prior's chains at each step")
    sample_sweeps: Count = Field(default=100, description="from the stored chains to a sample")
    encoder_units: Widths = (200, 200)
    decoder_units: Widths = (200, 200)
    activation: str = "tanh"
    batch_norm_epsilon: NonNegative = Field(default=1e-2, description="added to the variance")
    log_variance_floor: float = Field(default=-7.0, description="of pixels, for the Gaussian likelihood")
    num_components: Repeats = Field(default=5, description="of likelihood=logistic_mixture and spline")

    @model_validator(mode="after")
    def _check(self) -> "Model":
        if self.posterior == "rbm" and self.groups != 1:
            raise ValueError(f"model.groups is for model.posterior=directed, found {self.groups} with rbm")
        if self.posterior == "rbm" and self.relaxation not in ("piecewise_linear", "concrete"):
            raise ValueError(
                "model.posterior=rbm is relaxed by model.relaxation=piecewise_linear or concrete, found "
                f"{self.relaxation!r}"
            )
        return self


class Objective(base.Objective):
    """What is maximised."""

    gradient: Literal["plain", "path", "auto"] = Field(
        default="auto",
        description="of the posterior; auto: path derivatives for an RBM posterior, the power function, several "
        "samples and conditional models, else the plain gradient",
    )


_Chains = Annotated[int, Field(ge=2)]  # one has no standard error


class Annealing(Settings):
    """Annealed importance sampling of log Z: of the prior, and of each posterior that is a machine."""

    prior_temperatures: Count = 2_000
    prior_chains: _Chains = 500
    posterior_temperatures: Count = 25


class Training(base.Training):
    """How training runs."""

    validation_annealing: Annealing = Annealing()

    @property
    def validation(self) -> Annealing:
        """See models.config."""
        return self.validation_annealing


class Evaluation(Annealing, base.Evaluation):
    """How `tfstruct-evaluate` scores."""


class Export(base.Export):
    """What a bundle computes."""

    posterior_temperatures: Count = 50


class Config(base.Config):
    """See models.config."""

    system: Literal["boltzmann_vae"] = "boltzmann_vae"
    data: base.Data = base.Data(name="binarized_mnist", variant="static")
    model: Model = Model()
    objective: Objective = Objective()
    optimizer: base.Optimizer = base.Optimizer(learning_rate=3e-3, epsilon=1e-3, weight_decay=1e-4)
    schedules: base.Schedules = base.Schedules(
        learning_rate_factor=course(
            0.1, (0.02, 1.0), (0.6, 1 / 3), (0.75, 0.1), (0.95, 1 / 33), interpolation="constant"
        ),
        kl_weight=course(0.0, (0.3, 1.0)),
    )
    training: Training = Training(
        steps=1_000_000, batch_size=100, validate_every=20_000, validation_images=1_000, validation_samples=100
    )
    evaluation: Evaluation = Evaluation(
        num_samples=4_000,
        batch_size=20,
        chunk=400,
        prior_temperatures=10_000,
        prior_chains=1_024,
        posterior_temperatures=500,
    )
    export: Export = Export(chunk=50)

    @model_validator(mode="after")
    def _check_objective(self) -> "Config":
        if self.model.posterior == "rbm" and self.objective.gradient == "plain":
            raise ValueError(
                "model.posterior=rbm needs objective.gradient=path: the gradient of its log Z is not computed"
            )
        if self.model.relaxation == "power" and self.objective.gradient == "plain":
            raise ValueError("model.relaxation=power needs objective.gradient=path")
        if self.model.conditional != (self.objective.name == "conditional"):
            raise ValueError(
                f"model.conditional={self.model.conditional} does not go with objective.name={self.objective.name}"
            )
        if self.model.conditional and self.data.event_shape and self.data.event_shape[0] % 2:
            raise ValueError(
                f"model.conditional needs an even number of rows, found data.event_shape={self.data.event_shape}"
            )
        return self

    @property
    def uses_path_gradient(self) -> bool:
        """See models.config; `auto` takes the gradient of the paper."""
        if self.objective.gradient != "auto":
            return self.objective.gradient == "path"
        if self.model.posterior == "rbm" or self.model.relaxation == "power" or self.model.conditional:
            return True
        return self.model.relaxation != "gumbolt" and self.objective.num_samples > 1

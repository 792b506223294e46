"""Presets of the Boltzmann VAEs, with the settings of the DVAE## paper and of its published code."""

from tfstruct.models.boltzmann_vae.config import Config
from tfstruct.models.presets import SHORT, Changes, register_preset
from tfstruct.schedules import course

_TINY: Changes = {
    "data.name": "mnist",
    "data.variant": "dynamic",
    "model.num_units_1": 6,
    "model.num_units_2": 5,
    "model.posterior_sweeps": 3,
    "model.prior_chains": 40,
    "model.prior_sweeps": 4,
    "model.sample_sweeps": 10,
    "model.encoder_units": (32,),
    "model.decoder_units": (32,),
    "model.batch_norm_momentum": 0.9,
    **SHORT,
    "training.validation_annealing.prior_temperatures": 50,
    "training.validation_annealing.prior_chains": 50,
    "training.validation_annealing.posterior_temperatures": 3,
    "evaluation.prior_temperatures": 200,
    "evaluation.prior_chains": 100,
    "evaluation.posterior_temperatures": 10,
    "export.posterior_temperatures": 5,
}
_OMNIGLOT: Changes = {
    "data.name": "omniglot_burda",
    "data.variant": "dynamic",
    "model.sharpness.piecewise_linear": 3.0,
}
_200_UNITS: Changes = {"model.num_units_1": 200, "model.num_units_2": 200}
_STRUCTURED: Changes = {
    "model.conditional": True,
    "model.encoder_units": (200,),
    "model.decoder_units": (200,),
    "objective.name": "conditional",
    "optimizer.learning_rate": 3e-4,
    "schedules.kl_weight": course(1.0, (0.5, 0.05)),
}
# Cheaper samplers than the paper's, shorter, with averaged weights.
_TUNED: Changes = {
    "model.posterior_sweeps": 4,
    "model.prior_chains": 250,
    "model.prior_sweeps": 10,
    "optimizer.ema_momentum": 0.999,
    "training.validate_every": 10_000,
}
_PRESETS: dict[str, tuple[str, Changes]] = {
    "mnist_100": ("static MNIST, 100 + 100 latents", {}),
    "mnist_200": ("static MNIST, 200 + 200 latents", _200_UNITS),
    "omniglot_100": ("Omniglot 28x28 of Burda et al., 100 + 100 latents", _OMNIGLOT),
    "omniglot_200": ("Omniglot 28x28 of Burda et al., 200 + 200 latents", {**_OMNIGLOT, **_200_UNITS}),
    "mnist_structured": ("the lower half of static MNIST given the upper one, 100 + 100 latents", _STRUCTURED),
    "omniglot_structured": (
        "the lower half of Omniglot given the upper one, 100 + 100 latents",
        {**_OMNIGLOT, **_STRUCTURED},
    ),
}


def register() -> None:
    """Adds all presets of the Boltzmann VAEs."""

    def add(name: str, about: str, *settings: Changes) -> None:
        title = "VAE with an RBM prior and an RBM posterior (DVAE##)"
        register_preset(f"boltzmann_vae/{name}", f"{title}: {about}.", Config, *settings)

    add("tiny", "6 + 5 latents and a small network on dynamically binarised MNIST, 200 steps, for tests", _TINY)
    for name, (about, settings) in _PRESETS.items():
        add(name, f"{about}; 1,000,000 steps, not yet run whole", settings)
        steps = 200_000 if "model.conditional" in settings else 300_000
        text = f"{about}; cheaper samplers and averaged weights, {steps:,} steps"
        add(f"{name}_tuned", text, settings, _TUNED, {"training.steps": steps})

"""Presets of the Boltzmann VAEs, with the settings of the DVAE## paper and of its published code."""

import ml_collections

from tfstruct.models.presets import SHORT, Settings, register_preset
from tfstruct.schedules import changes, course


def base() -> ml_collections.ConfigDict:
    """DVAE## on static MNIST with 100 + 100 latents, which the presets vary."""
    return ml_collections.ConfigDict(
        {
            "preset": "",
            "system": "boltzmann_vae",
            "data": {
                "name": "binarized_mnist",
                "variant": "static",
                "file": "",
                "event_shape": (28, 28),
                "train_images": 0,  # the first so many training rows; 0: all
                "use_validation": False,  # train on the validation rows as well, once all choices are made
            },
            "model": {
                "conditional": False,  # predict the lower half of an image from the upper one
                "num_units_1": 100,
                "num_units_2": 100,
                "posterior": "rbm",  # or directed
                "groups": 1,  # of a directed posterior: L
                "relaxation": "piecewise_linear",  # concrete; of a directed posterior also gumbolt, power
                "sharpness": {"piecewise_linear": 4.0, "concrete": 10.0, "gumbolt": 10.0, "power": 30.0},
                "posterior_sweeps": 10,  # s
                "relaxed_sweeps": 1,  # t
                "prior_sampler": "population",  # chains are resampled by weights at every step; not so: persistent
                "prior_chains": 1_000,
                "prior_sweeps": 40,
                "sample_sweeps": 100,  # from the stored chains to a sample
                "encoder_units": (200, 200),
                "decoder_units": (200, 200),
                "activation": "tanh",
                "batch_norm": True,
                "batch_norm_momentum": 0.99,
                "batch_norm_epsilon": 1e-2,
                "batch_norm_synchronized": False,  # set by the trainer under a strategy of several devices
                "likelihood": "bernoulli",
            },
            # auto: path derivatives for an RBM posterior, the power function, several samples and conditional models,
            # else the plain gradient
            "objective": {"name": "elbo", "num_samples": 1, "gradient": "auto"},
            "optimizer": {
                "name": "adam",
                "learning_rate": 3e-3,
                "beta_1": 0.9,
                "beta_2": 0.999,
                "epsilon": 1e-3,
                "clip_norm": 0.0,
                "weight_decay": 1e-4,
                "ema_momentum": 0.0,  # of the weights that are evaluated; 0: the latest ones
            },
            "schedules": {
                "learning_rate_factor": course(
                    0.1, (0.02, 1.0), (0.6, 1 / 3), (0.75, 0.1), (0.95, 1 / 33), interpolation="constant"
                ),
                "kl_weight": course(0.0, (0.3, 1.0)),
            },
            "training": {
                "seed": 0,
                "replicas": 1,  # seeds seed, seed + 1, ... trained at once
                "steps": 1_000_000,
                "initial_weights": "",  # folder of a run whose best weights to start from
                "structure_fraction": 0.0,  # there is no structure to learn
                "batch_size": 100,
                "steps_per_call": 500,
                "validate_every": 20_000,
                "validation_images": 1_000,
                "validation_samples": 100,
                "validation_annealing": {
                    "prior_temperatures": 2_000,
                    "prior_chains": 500,
                    "posterior_temperatures": 25,
                },
                "patience": 0,
                "checkpoint_minutes": 5.0,
                "compiler": "auto",
                "resident_megabytes": 2_000,
                "max_skipped_fraction": 0.02,
            },
            "evaluation": {
                "num_samples": 4_000,
                "images": 0,
                "batch_size": 20,
                "chunk": 400,
                "prior_temperatures": 10_000,
                "prior_chains": 1_024,
                "posterior_temperatures": 500,
            },
            "export": {"num_samples": 100, "chunk": 50, "posterior_temperatures": 50},
        }
    )


_TINY: Settings = {
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
_OMNIGLOT: Settings = {
    "data.name": "omniglot_burda",
    "data.variant": "dynamic",
    "model.sharpness.piecewise_linear": 3.0,
}
_200_UNITS: Settings = {"model.num_units_1": 200, "model.num_units_2": 200}
_STRUCTURED: Settings = {
    "model.conditional": True,
    "model.encoder_units": (200,),
    "model.decoder_units": (200,),
    "objective.name": "conditional",
    "optimizer.learning_rate": 3e-4,
    **changes("schedules.kl_weight", course(1.0, (0.5, 0.05))),
}
# Cheaper samplers than the paper's, shorter, with averaged weights.
_TUNED: Settings = {
    "model.posterior_sweeps": 4,
    "model.prior_chains": 250,
    "model.prior_sweeps": 10,
    "optimizer.ema_momentum": 0.999,
    "training.validate_every": 10_000,
}
_PRESETS: dict[str, tuple[str, Settings]] = {
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

    def add(name: str, about: str, *settings: Settings) -> None:
        title = "VAE with an RBM prior and an RBM posterior (DVAE##)"
        register_preset(f"boltzmann_vae/{name}", f"{title}: {about}.", base, *settings)

    add("tiny", "6 + 5 latents and a small network on dynamically binarised MNIST, 200 steps, for tests", _TINY)
    for name, (about, settings) in _PRESETS.items():
        add(name, f"{about}; 1,000,000 steps, not yet run whole", settings)
        steps = 200_000 if "model.conditional" in settings else 300_000
        text = f"{about}; cheaper samplers and averaged weights, {steps:,} steps"
        add(f"{name}_tuned", text, settings, _TUNED, {"training.steps": steps})

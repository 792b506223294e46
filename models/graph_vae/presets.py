"""Presets of the Graph VAE family, with the settings of the Graph VAE paper."""

from tfstruct.models.graph_vae.config import Config
from tfstruct.models.presets import SHORT, Changes, register_preset
from tfstruct.schedules import course

_TINY: Changes = {
    "model.num_latents": 12,
    "model.num_nodes": 3,
    "model.encoder_units": (32, 32),
    "model.feature_units": 16,
    "model.bottom_up_units": 16,
    "model.top_down_units": 16,
    "model.decoder_units": (32, 32),
    "model.batch_norm_momentum": 0.9,
    "optimizer.learning_rate": 3e-3,
    **SHORT,
}
_MNIST_QUICK: Changes = {
    "model.num_latents": 40,
    "model.encoder_units": (256, 256),
    "model.feature_units": 128,
    "model.bottom_up_units": 64,
    "model.top_down_units": 64,
    "model.decoder_units": (256, 256),
    "objective.gradient": "path",  # 0.7 nats better than the plain gradient at this length
    "optimizer.learning_rate": 2e-3,
    "schedules.learning_rate_factor": course(1.0, (0.5, 1.0), (1.0, 0.05)),
    "schedules.gate_temperature": course(1.0, (0.5, 0.2), interpolation="geometric"),
    "training.steps": 20_000,
    "training.validate_every": 2_500,
    "training.validation_images": 500,
    "evaluation.num_samples": 100,
    "evaluation.images": 1_000,
    "evaluation.chunk": 20,
}
_CIFAR10: Changes = {
    "data.name": "cifar10",
    "data.variant": "dequantized",
    "data.event_shape": (32, 32, 3),
    "model.likelihood": "gaussian",
    # 0.999 an epoch, 3,000 epochs
    "schedules.gate_temperature": course(1.0, (1.0, 0.0497), interpolation="geometric"),
    "training.steps": 1_050_000,
}
# Training on fixed binary images overfits from about epoch 100 on; the best of the validation split is kept.
_STATIC: Changes = {"data.name": "binarized_mnist", "data.variant": "static", "training.patience": 20}
_THRESHOLDED: Changes = {"data.variant": "thresholded", "training.patience": 20}
_OMNIGLOT: Changes = {"data.name": "omniglot", "training.steps": 380_000}
# What the presets of a name train on what, in every family.
_DATA: dict[str, tuple[str, Changes]] = {
    "tiny": ("a small network on dynamically binarised MNIST, 200 steps, for tests", _TINY),
    "mnist_quick": ("MNIST, dynamically binarised, half-width networks, 20,000 steps", _MNIST_QUICK),
    "mnist": (
        "MNIST, dynamically binarised while training, test set binarised once; 2,000 epochs, not yet run whole",
        {},
    ),
    "mnist_static": ("the static binarisation of Larochelle and Murray, early stopping; not yet run whole", _STATIC),
    "mnist_thresholded": (
        "MNIST thresholded at half intensity, which has no binarisation noise: its likelihoods are higher than those "
        "of other binarisations and compare with none of them; early stopping; not yet run whole",
        _THRESHOLDED,
    ),
    "omniglot": (
        "Omniglot 28x28, dynamically binarised; drawers 1-14 train, 15 validation, 16-20 test; not yet run whole",
        _OMNIGLOT,
    ),
    "cifar10": (
        "CIFAR-10, uniformly dequantised, Gaussian likelihood, bits per dimension; not yet run whole",
        _CIFAR10,
    ),
}
# The recipe that trains further, the same for every family.
_TUNED: Changes = {
    "model.num_nodes": 10,
    "model.log_variance_bound": 6.0,
    "objective.gradient": "path",
    "optimizer.learning_rate": 1e-3,
    "optimizer.ema_momentum": 0.999,
    "schedules.learning_rate_factor": course(1.0, (0.4, 1.0), (1.0, 0.01)),
    "schedules.kl_weight": course(0.0, (0.3, 1.0)),
    "schedules.gate_temperature": course(1.0, (0.3, 0.135), interpolation="geometric"),
}
# Its steps; fixed binary images overfit in longer runs.
_TUNED_STEPS = {
    "mnist": 120_000,
    "mnist_static": 40_000,
    "mnist_thresholded": 40_000,
    "omniglot": 80_000,
    "cifar10": 120_000,
}
for _name, _steps in _TUNED_STEPS.items():
    _about, _settings = _DATA[_name]
    _DATA[f"{_name}_tuned"] = (
        f"{_about.partition(';')[0]}; ten nodes, the tuned recipe, {_steps:,} steps",
        {**_settings, **_TUNED, "training.steps": _steps},
    )

# Widths at which a family has as many weights as the Graph VAE of the same preset: for the plain VAE and the VAE with a
# flow the least that gives no fewer, for the Graph VAE with flows the most that gives no more. (The ladder VAE with
# five nodes is 2 % below anyhow.)
_WIDTHS = {
    "vae": {"tiny": 34, "mnist_quick": 268, "mnist": 551, "cifar10": 535, "mnist_tuned": 585, "cifar10_tuned": 555},
    "iaf_vae": {"tiny": 30, "mnist_quick": 261, "mnist": 575, "cifar10": 550, "mnist_tuned": 698, "cifar10_tuned": 627},
    "ladder_vae": {"mnist_tuned": 559, "cifar10_tuned": 540},
    "graph_iaf_vae": {
        "tiny": 20, "mnist_quick": 239, "mnist": 494, "cifar10": 502, "mnist_tuned": 491, "cifar10_tuned": 500
    },
}  # fmt: skip
_STRUCTURE_FRACTION = 0.2  # as the report's 200 of 1,000 epochs
_TITLES = {
    "graph_vae": "Graph VAE with learned gates",
    "vae": "VAE with independent latents and a larger encoder",
    "ladder_vae": "ladder VAE (chain-structured latents)",
    "fc_vae": "VAE with fully connected latent structure",
    "iaf_vae": "VAE with an inverse autoregressive flow posterior and a larger encoder",
    "graph_iaf_vae": "Graph VAE with an inverse autoregressive flow after each node, gates learned first",
}


def _family(family: str, data: str) -> Changes:
    """What a family changes of the Graph VAE's preset of the same data."""
    given = {"model.num_latents": 80, "model.num_nodes": 5, "model.encoder_units": (0, 0, 0), **_DATA[data][1]}
    latents, nodes = given["model.num_latents"], given["model.num_nodes"]
    # Of MNIST's size, 28 x 28 binary pixels, are all but CIFAR-10's.
    size = data.replace("omniglot", "mnist").replace("mnist_static", "mnist").replace("mnist_thresholded", "mnist")
    width = _WIDTHS.get(family, {}).get(size)
    encoder = {"model.encoder_units": (width,) * len(given["model.encoder_units"])} if width else {}
    if family == "graph_vae":
        # On thresholded images as the model with a flow that it is compared with.
        as_flow = {"training.structure_fraction": _STRUCTURE_FRACTION, "objective.gradient": "path"}
        return as_flow if data == "mnist_thresholded" else {}
    if family == "iaf_vae":  # one node: the flow runs over all latents, as wide as those of single nodes
        return encoder | {
            "model.structure": "independent",
            "model.num_nodes": 1,
            "model.flow.steps": 2,
            "model.flow.hidden_units": (2 * latents, 2 * latents),
            "model.flow.context_dim": latents,
            "objective.gradient": "path",
        }
    if family == "graph_iaf_vae":
        # All families of the tuned recipe train in one phase. Phases are whole calls: another number of steps in one
        # call is another program to compile.
        fraction = 0.0 if data.endswith("_tuned") else 0.25 if data == "tiny" else _STRUCTURE_FRACTION
        return encoder | {
            "model.flow.steps": 2,
            "model.flow.context_dim": latents // nodes,
            "objective.gradient": "path",
            "training.structure_fraction": fraction,
        }
    # As in the paper, the baseline without top-down networks gets as many weights in a larger encoder.
    return encoder | {"model.structure": {"vae": "independent", "ladder_vae": "chain", "fc_vae": "full"}[family]}


def register() -> None:
    """Adds all presets of the Graph VAE families."""
    for family, title in _TITLES.items():
        for data, (about, settings) in _DATA.items():
            register_preset(f"{family}/{data}", f"{title}: {about}.", Config, settings, _family(family, data))

"""Presets of the Graph VAE family, with the settings of the Graph VAE paper."""

from collections.abc import Callable, Iterator

import ml_collections

from tfstruct.models.preset_parts import shorten
from tfstruct.schedules import course


def base() -> ml_collections.ConfigDict:
    """The Graph VAE paper's settings on dynamically binarised MNIST, which the presets vary."""
    return ml_collections.ConfigDict(
        {
            "preset": "",
            "system": "graph_vae",
            "data": {
                "name": "mnist",
                "variant": "dynamic",
                "file": "",
                "event_shape": (28, 28),  # () takes that of a user file
                "train_images": 0,  # the first so many training rows; 0: all
                "use_validation": False,  # train on the validation rows as well, once all choices are made
            },
            "model": {
                "num_latents": 80,
                "num_nodes": 5,
                "structure": "learned",
                "adjacency": (),  # rows of zeros and ones; () takes the structure's own
                "encoder_units": (512, 512, 512),
                "feature_units": 256,
                "bottom_up_units": 256,
                "top_down_units": 256,
                "decoder_units": (512, 512, 512),
                "encoder_activation": "elu",
                "activation": "relu",
                "batch_norm": True,
                "batch_norm_momentum": 0.99,
                "batch_norm_epsilon": 1e-5,
                "batch_norm_synchronized": False,  # set by the trainer under a strategy of several devices
                "layer_norm": False,  # in place of batch normalisation
                "share_top_down": False,
                "straight_through": False,
                # An inverse autoregressive flow after each node's posterior; no steps: none.
                "flow": {
                    "steps": 0,
                    "hidden_units": (32, 32),
                    "context_dim": 16,
                    "activation": "relu",
                    "gate_bias": 2.0,
                },
                "likelihood": "bernoulli",
                "log_variance_floor": -7.0,
                "log_variance_bound": 0.0,  # of latents: smooth bound on log variances; 0: they are cut at +-15
            },
            "objective": {
                "name": "elbo",
                "num_samples": 1,
                "gradient": "plain",
                "free_bits": 0.0,
                "allow_biased_gradient": False,
            },
            "optimizer": {
                "name": "adam",
                "learning_rate": 3e-4,
                "beta_1": 0.9,
                "beta_2": 0.999,
                "epsilon": 1e-8,
                "clip_norm": 0.0,
                "weight_decay": 0.0,  # on a system's own choice of weights
                "ema_momentum": 0.0,  # of the weights that are evaluated; 0: the latest ones
            },
            "schedules": {
                "learning_rate_factor": course(1.0),
                # Without it most latents collapse: 15 of 80 were active. From 0 posteriors may run away meanwhile.
                "kl_weight": course(0.1, (0.3, 1.0)),
                # The paper anneals 0.999 per epoch: 1 to 0.135 over its 2,000 epochs.
                "gate_temperature": course(1.0, (1.0, 0.135), interpolation="geometric"),
            },
            "training": {
                "seed": 0,
                "replicas": 1,  # seeds seed, seed + 1, ... trained at once
                "steps": 780_000,  # 2,000 epochs of 50,000 images
                "initial_weights": "",  # folder of a run whose best weights to start from
                # Part of the steps after which the gates are fixed and all other weights start anew; 0: one phase.
                "structure_fraction": 0.0,
                "batch_size": 128,
                "steps_per_call": 500,
                "validate_every": 5_000,
                "validation_images": 2_000,
                "validation_samples": 10,
                "patience": 0,  # validations without a new best before a replica stops; 0: train all steps
                "checkpoint_minutes": 5.0,
                "compiler": "auto",
                "resident_megabytes": 2_000,  # larger training sets are streamed
                "max_skipped_fraction": 0.02,
            },
            "evaluation": {"num_samples": 5_000, "images": 0, "batch_size": 100, "chunk": 100},
            "export": {"num_samples": 100, "chunk": 10},
        }
    )


#: see SystemEntry
LATER = {
    "model.layer_norm": False,
    "model.log_variance_bound": 0.0,
    "model.flow": base().model.flow,
    "objective.free_bits": 0.0,
    "objective.allow_biased_gradient": False,
}


def _tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    config.model.update(
        num_latents=12,
        num_nodes=3,
        encoder_units=(32, 32),
        feature_units=16,
        bottom_up_units=16,
        top_down_units=16,
        decoder_units=(32, 32),
        batch_norm_momentum=0.9,
    )
    config.optimizer.learning_rate = 3e-3
    shorten(config)
    return config


def _mnist_quick(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    config.model.update(
        num_latents=40,
        encoder_units=(256, 256),
        feature_units=128,
        bottom_up_units=64,
        top_down_units=64,
        decoder_units=(256, 256),
    )
    config.objective.gradient = "path"  # 0.7 nats better than the plain gradient at this length
    config.optimizer.learning_rate = 2e-3
    config.schedules.learning_rate_factor = course(1.0, (0.5, 1.0), (1.0, 0.05))
    config.schedules.gate_temperature = course(1.0, (0.5, 0.2), interpolation="geometric")
    config.training.update(steps=20_000, steps_per_call=500, validate_every=2_500, validation_images=500)
    config.evaluation.update(num_samples=100, images=1_000, chunk=20)
    return config


def _mnist(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    return config


def _mnist_static(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    config.data.update(name="binarized_mnist", variant="static")
    # Training on fixed binary images overfits from about epoch 100 on; the best of the validation split is kept.
    config.training.patience = 20
    return config


def _mnist_thresholded(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    config.data.update(name="mnist", variant="thresholded")
    config.training.patience = 20  # fixed binary images, as above
    return config


def _omniglot(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    config.data.update(name="omniglot", variant="dynamic")
    config.training.steps = 380_000
    return config


def _cifar10(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    config.data.update(name="cifar10", variant="dequantized", event_shape=(32, 32, 3))
    config.model.likelihood = "gaussian"
    config.schedules.gate_temperature = course(1.0, (1.0, 0.0497), interpolation="geometric")  # .999 an epoch, 3,000
    config.training.steps = 1_050_000
    return config


def _tuned(data: str, steps: int) -> Callable[[ml_collections.ConfigDict], ml_collections.ConfigDict]:
    """The recipe chosen on the validation split of MNIST, the same for every family, on the data of a preset."""

    def make(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        config = _DATA_PRESETS[data][0](config)
        config.model.update(num_nodes=10, log_variance_bound=6.0)
        config.objective.gradient = "path"
        config.optimizer.update(learning_rate=1e-3, ema_momentum=0.999)
        config.schedules.learning_rate_factor = course(1.0, (0.4, 1.0), (1.0, 0.01))
        config.schedules.kl_weight = course(0.0, (0.3, 1.0))
        config.schedules.gate_temperature = course(1.0, (0.3, 0.135), interpolation="geometric")
        config.training.steps = steps
        return config

    return make


_DATA_PRESETS: dict[str, tuple[Callable[[ml_collections.ConfigDict], ml_collections.ConfigDict], str]] = {
    "tiny": (_tiny, "a small network on dynamically binarised MNIST, 200 steps, for tests"),
    "mnist_quick": (
        _mnist_quick,
        "MNIST, dynamically binarised, half-width networks, 20,000 steps",
    ),
    "mnist": (
        _mnist,
        "MNIST, dynamically binarised while training, test set binarised once; 2,000 epochs, not yet run whole",
    ),
    "mnist_static": (
        _mnist_static,
        "the static binarisation of Larochelle and Murray, early stopping; not yet run whole",
    ),
    "mnist_thresholded": (
        _mnist_thresholded,
        "MNIST thresholded at half intensity, which has no binarisation noise: its likelihoods are higher "
        "than those of other binarisations and compare with none of them; early stopping; not yet run whole",
    ),
    "omniglot": (
        _omniglot,
        "Omniglot 28x28, dynamically binarised; drawers 1-14 train, 15 validation, 16-20 test; not yet run whole",
    ),
    "cifar10": (
        _cifar10,
        "CIFAR-10, uniformly dequantised, Gaussian likelihood, bits per dimension; not yet run whole",
    ),
}
# Steps of the tuned recipe; fixed binary images overfit in longer runs.
_TUNED_STEPS = {
    "mnist": 120_000,
    "mnist_static": 40_000,
    "mnist_thresholded": 40_000,
    "omniglot": 80_000,
    "cifar10": 120_000,
}
for _name, _steps in _TUNED_STEPS.items():
    _about = _DATA_PRESETS[_name][1].partition(";")[0]
    _DATA_PRESETS[f"{_name}_tuned"] = (
        _tuned(_name, _steps),
        f"{_about}; ten nodes, the tuned recipe, {_steps:,} steps",
    )


def _learned(config: ml_collections.ConfigDict, data: str) -> None:
    if data == "mnist_thresholded":
        # As the model with a flow that it is compared with.
        config.training.structure_fraction = _STRUCTURE_FRACTION
        config.objective.gradient = "path"


def _fixed(structure: str) -> Callable[[ml_collections.ConfigDict, str], None]:
    def vary(config: ml_collections.ConfigDict, data: str) -> None:
        config.model.structure = structure
        if structure == "independent":
            # As in the paper, the baseline without top-down networks gets as many weights in a larger encoder.
            _set_encoder(config, _VAE_ENCODERS[data])
        if structure == "chain" and data in _LADDER_ENCODERS:
            _set_encoder(config, _LADDER_ENCODERS[data])

    return vary


def _iaf(config: ml_collections.ConfigDict, data: str) -> None:
    """One node without structure: the flow runs over all latents at once."""
    latents = config.model.num_latents
    width = 2 * latents  # as the flows of single nodes have it
    config.model.update(structure="independent", num_nodes=1)
    config.model.flow.update(steps=2, hidden_units=(width, width), context_dim=latents)
    config.objective.gradient = "path"
    _set_encoder(config, _IAF_ENCODERS[data])


def _graph_iaf(config: ml_collections.ConfigDict, data: str) -> None:
    config.model.flow.steps = 2
    config.model.flow.context_dim = config.model.num_latents // config.model.num_nodes
    # Whole calls: another number of steps in one call is another program to compile.
    if not data.endswith("_tuned"):  # all families of the tuned recipe train in one phase
        config.training.structure_fraction = 0.25 if data == "tiny" else _STRUCTURE_FRACTION
    config.objective.gradient = "path"
    _set_encoder(config, _GRAPH_IAF_ENCODERS[data])


def _set_encoder(config: ml_collections.ConfigDict, width: int) -> None:
    config.model.encoder_units = (width,) * len(config.model.encoder_units)


_STRUCTURE_FRACTION = 0.2  # as the report's 200 of 1,000 epochs

# Widths at which a family has as many weights as the Graph VAE of the same preset: for the plain VAE and the VAE with a
# flow the least that gives no fewer, for the Graph VAE with flows the most that gives no more.
_VAE_ENCODERS = {"tiny": 34, "mnist_quick": 268, "mnist": 551, "cifar10": 535}
_VAE_ENCODERS |= {"mnist_tuned": 585, "cifar10_tuned": 555}
_IAF_ENCODERS = {"tiny": 30, "mnist_quick": 261, "mnist": 575, "cifar10": 550, "mnist_tuned": 698, "cifar10_tuned": 627}
_LADDER_ENCODERS = {"mnist_tuned": 559, "cifar10_tuned": 540}  # with five nodes it is 2 % below anyhow
_GRAPH_IAF_ENCODERS = {"tiny": 20, "mnist_quick": 239, "mnist": 494, "cifar10": 502}
_GRAPH_IAF_ENCODERS |= {"mnist_tuned": 491, "cifar10_tuned": 500}
for _widths in (_VAE_ENCODERS, _IAF_ENCODERS, _LADDER_ENCODERS, _GRAPH_IAF_ENCODERS):
    for _name, _width in list(_widths.items()):
        if _name.startswith("mnist") and _name != "mnist_quick":
            for _data in ("mnist_static", "mnist_thresholded", "omniglot"):
                _widths[_name.replace("mnist", _data)] = _width

_SYSTEMS: dict[str, tuple[Callable[[ml_collections.ConfigDict, str], None], str]] = {
    "graph_vae": (_learned, "Graph VAE with learned gates"),
    "vae": (_fixed("independent"), "VAE with independent latents and a larger encoder"),
    "ladder_vae": (_fixed("chain"), "ladder VAE (chain-structured latents)"),
    "fc_vae": (_fixed("full"), "VAE with fully connected latent structure"),
    "iaf_vae": (_iaf, "VAE with an inverse autoregressive flow posterior and a larger encoder"),
    "graph_iaf_vae": (_graph_iaf, "Graph VAE with an inverse autoregressive flow after each node, gates learned first"),
}


def _make(system: str, data: str) -> Callable[[], ml_collections.ConfigDict]:
    def make() -> ml_collections.ConfigDict:
        config = _DATA_PRESETS[data][0](base())
        _SYSTEMS[system][0](config, data)
        return config

    return make


def all_presets() -> Iterator[tuple[str, str, Callable[[], ml_collections.ConfigDict]]]:
    """Yields name, description and what makes the config."""
    for system, (_, title) in _SYSTEMS.items():
        for name, (_, about) in _DATA_PRESETS.items():
            yield f"{system}/{name}", f"{title}: {about}.", _make(system, name)

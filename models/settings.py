"""Checks of model settings that depend on one another."""

from collections.abc import Mapping
from typing import Any

from tfstruct.data import support

# Where the observations of a likelihood may lie. A density of values on a lattice is no probability of them, and the
# Gaussian's mean lies in (0, 1).
LIKELIHOOD_SUPPORTS = {
    "bernoulli": (support.BINARY,),
    "gaussian": (support.UNIT_INTERVAL, support.REAL),
    "binomial": (support.INTEGERS,),
    "categorical": (support.INTEGERS,),
    "logistic_mixture": (support.INTEGERS,),
    "spline": (support.INTEGERS,),
}


def check_gradient(config: Any) -> None:
    """Raises ValueError for the doubly reparameterised gradient of a model with batch normalisation.

    Batch statistics make the weight of one importance sample depend on the latents of the others; those paths would
    need the weight v where the estimator gives them v squared, and the gradient is biased whatever the batch size. The
    Boltzmann VAEs are let through: relaxed latents bias their gradient anyhow, and their paper trains that way.
    """
    objective = config.objective
    if config.system == "boltzmann_vae":
        return
    if objective.gradient == "auto":
        raise ValueError(f"objective.gradient must be plain or path for {config.system}, found 'auto'")
    if has_biased_gradient(config) and not objective.allow_biased_gradient:
        raise ValueError(
            "objective.name=iwae with objective.gradient=path is biased under batch normalisation; "
            "set model.batch_norm=False (model.layer_norm=True normalises otherwise), or objective.gradient=plain, or "
            "objective.allow_biased_gradient=True to train by it all the same, which every evaluation then flags"
        )


def has_biased_gradient(config: Any) -> bool:
    """Whether the doubly reparameterised gradient of a config is biased by batch normalisation."""
    objective = config.objective
    return objective.name == "iwae" and objective.gradient == "path" and bool(config.model.batch_norm)


def training_flags(config: Any) -> list[str]:
    """Returns what every evaluation must say of how a config trains, also those of runs that start from its weights."""
    flags = []
    if has_biased_gradient(config):
        flags.append(
            "biased gradient: trained by doubly reparameterised gradients under batch normalisation, which are biased "
            "there"
        )
    return flags


def check_annealing(settings: Mapping[str, Any], name: str) -> None:
    """Raises ValueError for annealing settings of a config node that cannot be; nodes without them pass."""
    for key, least in (("prior_temperatures", 1), ("prior_chains", 2), ("posterior_temperatures", 1)):
        if not settings.get(key, least) >= least:
            raise ValueError(f"{name}.{key} must be at least {least}, found {settings[key]}")


def check_graph_vae(config: Any) -> None:
    """Raises ValueError for sizes and training settings of a Graph VAE that cannot be."""
    options = config.model
    if options.num_latents < 1 or options.num_nodes < 1 or options.num_latents % options.num_nodes:
        raise ValueError(
            "model.num_latents must be a positive multiple of model.num_nodes, found "
            f"num_latents={options.num_latents}, num_nodes={options.num_nodes}"
        )
    if options.log_variance_bound < 0.0:
        raise ValueError(f"model.log_variance_bound must be at least 0 (none), found {options.log_variance_bound}")
    free = config.objective.free_bits
    if free < 0.0 or (free and config.objective.name != "elbo"):
        raise ValueError(f"objective.free_bits must be at least 0 and goes with objective.name=elbo, found {free} nats")


def check_single_phase(config: Any) -> None:
    """Raises ValueError for a training in two phases, which Keras `fit` does not know of."""
    if config.training.structure_fraction:
        raise ValueError(
            f"training.structure_fraction={config.training.structure_fraction} fixes the structure and starts all "
            "other weights anew in the middle of training, which Keras fit does not do; train with tfstruct-train, or "
            "set training.structure_fraction=0.0"
        )

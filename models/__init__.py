"""The systems, each in a folder of its own, the contract that they keep, and the presets."""

from tfstruct.models import boltzmann_vae, graph_vae, sum_product_vae  # noqa: F401  (they register themselves)
from tfstruct.models.registry import build

__all__ = ["build"]

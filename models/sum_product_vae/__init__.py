"""Sum-product VAEs: a sum-product network whose leaves are VAEs (SPVAE), and plain VAEs beside it."""

from tfstruct.models.registry import SYSTEMS, Analysis, SystemEntry
from tfstruct.models.sum_product_vae import presets, tables
from tfstruct.models.sum_product_vae.config import Config
from tfstruct.models.tables import register_tables


def _load() -> type:
    from tfstruct.models.sum_product_vae.model import SumProductVAE

    return SumProductVAE


def _analyses() -> dict[str, Analysis]:
    from tfstruct.models.sum_product_vae import analysis, figures

    return {
        "structure": Analysis(
            "the region graph",
            analysis.region_graph,
            lambda found: figures.draw_region_graph(
                found["regions"], found["partitions"], found["levels"], found["shape"]
            ),
        ),
        "latent_maps": Analysis(
            "the pictures that every leaf's latents decode to, in the leaf's place",
            analysis.latent_maps,
            lambda found: figures.draw_latent_maps(found["maps"], grid=found["grid"]),
            split="validation",
        ),
        "inpainting": Analysis(
            "images of which parts are missing, completed; log p(missing | observed)",
            analysis.inpainting,
            figures.draw_inpainting,
        ),
        "misplaced": Analysis(
            "images with one region swapped for another image's, and how well each region fits",
            analysis.misplaced_regions,
            figures.draw_misplaced,
        ),
    }


SYSTEMS.register("sum_product_vae", SystemEntry(Config, _load, _analyses))
presets.register()
register_tables(tables.all_tables())

"""Boltzmann VAEs: binary latents with an RBM prior and an RBM or a directed posterior (DVAE##)."""

from tfstruct.models.boltzmann_vae import presets, tables
from tfstruct.models.boltzmann_vae.config import Config
from tfstruct.models.registry import SYSTEMS, Analysis, SystemEntry
from tfstruct.models.tables import register_tables


def _load() -> type:
    from tfstruct.models.boltzmann_vae.model import BoltzmannVAE

    return BoltzmannVAE


def _analyses() -> dict[str, Analysis]:
    from tfstruct.models.boltzmann_vae import analysis, figures, gradients, machines, sweeps

    subject = lambda model, rows: (machines.machines_of(model, rows),)  # noqa: E731
    return {
        "gradients": Analysis(
            "estimators of the gradient of KL(q || p) for an undirected Gaussian q: learning curves, bias, noise",
            gradients.analyse_gradients,
            figures.draw_gradients,
            takes_run=False,
        ),
        "temperatures": Analysis(
            "the error and the spread of log Z by the number of temperatures, of the prior and of posteriors",
            analysis.analyse_temperatures,
            figures.draw_temperatures,
            subject,
            num_rows=20,
        ),
        "modes": Analysis(
            "the number of modes of posteriors and prior, and KL(mean field || posterior)",
            analysis.analyse_modes,
            figures.draw_modes,
            subject,
            num_rows=20,
        ),
        "sweeps": Analysis(
            "the bias of posterior chains after s hard sweeps, and of t relaxed ones",
            sweeps.analyse_sweeps,
            figures.draw_sweeps,
            subject,
            num_rows=20,
        ),
    }


SYSTEMS.register("boltzmann_vae", SystemEntry(Config, _load, _analyses))
presets.register()
register_tables(tables.all_tables())

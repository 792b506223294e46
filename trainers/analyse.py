"""Analyses Boltzmann machine posteriors: tfstruct-analyse --analysis=modes --workdir=runs/a --output=runs/a/analysis.

Writes <analysis>.json and <analysis>.png into the folder of --output.

  gradients     estimators of the gradient of KL(q || p) for an undirected Gaussian q: learning curves, bias, noise.
                Takes no run.
  temperatures  the error and the spread of log Z by the number of temperatures, of the prior and of posteriors.
  modes         the number of modes of posteriors and prior, and KL(mean field || posterior).
  sweeps        the bias of posterior chains after s hard sweeps, and of t relaxed ones, at the weights of a run. What s
                and t do to training is seen by training with them: tfstruct-train --set=model.posterior_sweeps=S
                --set=model.relaxed_sweeps=T.

All but gradients take --workdir, a run of a Boltzmann VAE with model.posterior=rbm, and the first test images.
"""

import inspect
from pathlib import Path

from absl import flags

from tfstruct.trainers import entry

_ANALYSIS = flags.DEFINE_enum(
    "analysis", None, ["gradients", "temperatures", "modes", "sweeps"], "Which.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets prepared by TensorFlow Datasets.")
_REPLICA = flags.DEFINE_integer("replica", None, "Of the run; default 0.", lower_bound=0)
_IMAGES = flags.DEFINE_integer("images", None, "Test images, one posterior each; default 20.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all noise.", lower_bound=0)
# Further settings: the flag, the argument it sets, its meaning.
_INTEGERS = {
    "steps": ("num_steps", "gradients: steps of learning."),
    "runs": ("num_seeds", "gradients: runs of each estimator."),
    "samples": ("num_samples", "gradients: samples for each update."),
    "draws": ("num_draws", "gradients: estimates from which bias and spread are computed."),
    "chains": ("num_chains", "temperatures: of an estimate; modes: starts for each posterior; sweeps: of each."),
    "repeats": ("num_repeats", "temperatures: estimates of each machine."),
    "reference_temperatures": ("reference_temperatures", "Temperatures of what is taken as exact."),
    "prior_chains": ("prior_chains", "modes: starts for the prior."),
    "reference_sweeps": ("reference_sweeps", "sweeps: over which exact moments are averaged."),
    "pairs": ("num_pairs", "sweeps: pairs of units whose second moments are compared."),
}
_LISTS = {
    "temperatures": ("num_temperatures", "temperatures: ascending numbers of them."),
    "hard_sweeps": ("hard_sweeps", "sweeps: ascending s."),
    "relaxed_sweeps": ("relaxed_sweeps", "sweeps: ascending t."),
}
_FLOATS = {
    "learning_rate": ("learning_rate", "gradients: of Adam."),
    "level": ("level", "temperatures: standard deviation of log Z at which machines are compared, default 0.01 nats."),
}
for _name, (_, _help) in _INTEGERS.items():
    flags.DEFINE_integer(_name, None, _help)
for _name, (_, _help) in _LISTS.items():
    flags.DEFINE_list(_name, None, _help)
for _name, (_, _help) in _FLOATS.items():
    flags.DEFINE_float(_name, None, _help)


def _settings(function: object) -> dict[str, object]:
    """Arguments of an analysis from the flags that were given; refuses those that it does not have."""
    known, result = inspect.signature(function).parameters, {"seed": _SEED.value}
    for name, (argument, _) in (_INTEGERS | _LISTS | _FLOATS).items():
        value = flags.FLAGS[name].value
        if value is None:
            continue
        if argument not in known:
            raise ValueError(f"--{name} is no setting of --analysis={_ANALYSIS.value}")
        if name in _LISTS:
            try:
                value = [int(part) for part in value]
            except ValueError:
                raise ValueError(f"--{name} is a list of integers, as 1,2,5, found {','.join(value)!r}") from None
        result[argument] = value
    return result


def main() -> None:
    """Analyses, writes numbers and figure, prints their places."""
    from tfstruct.evaluation import boltzmann_analysis, boltzmann_machines, boltzmann_sweeps, gradient_estimators
    from tfstruct.evaluation.report import TrainedRun
    from tfstruct.files import write_json
    from tfstruct.plotting import boltzmann as drawing
    from tfstruct.plotting.figures import save
    from tfstruct.training.workdir import environment

    name = _ANALYSIS.value
    analyse, draw = {
        "gradients": (gradient_estimators.analyse_gradients, drawing.draw_gradients),
        "temperatures": (boltzmann_analysis.analyse_temperatures, drawing.draw_temperatures),
        "modes": (boltzmann_analysis.analyse_modes, drawing.draw_modes),
        "sweeps": (boltzmann_sweeps.analyse_sweeps, drawing.draw_sweeps),
    }[name]
    settings = _settings(analyse)
    result = {"schema_version": 1, "analysis": name}
    if name == "gradients":
        for flag in (_WORKDIR, _DATA_DIR, _REPLICA, _IMAGES):
            if flag.value is not None:
                raise ValueError(f"--{flag.name} is no setting of --analysis=gradients, which takes no run")
        result |= analyse(**settings)
    else:
        if _WORKDIR.value is None:
            raise ValueError(f"--analysis={name} needs --workdir, the folder of a run with model.posterior=rbm")
        options = {"num_images": _IMAGES.value, "replica": _REPLICA.value}
        machines = boltzmann_machines.machines_of(
            TrainedRun(_WORKDIR.value, data_dir=_DATA_DIR.value),
            **{key: value for key, value in options.items() if value is not None},
        )
        result |= {"run": machines.source} | analyse(machines, **settings)
    folder = Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", result | {"environment": environment()})
    print(folder / f"{name}.json")
    print(save(draw(result), folder / f"{name}.png"))


def run() -> None:
    """The console script `tfstruct-analyse`."""
    entry.run(main)


if __name__ == "__main__":
    run()

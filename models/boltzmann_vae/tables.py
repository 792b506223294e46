"""Tables of the DVAE## paper (ICML 2020)."""

from collections.abc import Iterator

from tfstruct.models.tables import Difference, Evaluation, Published, Row, Table

_PAPER = "Vahdat, Andriyash & Macready, Undirected Graphical Models as Approximate Posteriors, ICML 2020"
_PAPER_STEPS = 1_000_000
# Unbiased whatever the number of temperatures; with the paper's 500 a run would take eleven hours on a core.
_K4000 = Evaluation(4_000, overrides=("evaluation.posterior_temperatures=25",))
_OMNIGLOT_MISSING = "Burda's chardata.mat is at no package registry; --data_dir with it runs the row"
_DATA = {"mnist": "MNIST, static", "omniglot": "Omniglot 28x28 of Burda et al., dynamic"}
_RELAXATIONS = {"dvae_sharp": ("power", "DVAE#"), "gumbolt": ("concrete", "GumBolt (Concrete)"), "pwl": (None, "PWL")}

# Negative log-likelihoods with standard deviations over five runs, by data, units and model.
_TABLE_1 = {
    ("mnist", 100): {
        "dvae_sharp": ((84.97, 0.03), (84.96, 0.05), (84.58, 0.02)),
        "gumbolt": ((84.66, 0.04), (84.71, 0.03), (84.39, 0.04)),
        "pwl": ((84.62, 0.05), (84.50, 0.07), (84.07, 0.04)),
        "rbm": ((84.09, 0.06),),
    },
    ("mnist", 200): {
        "dvae_sharp": ((83.21, 0.03), None, (82.93, 0.04)),
        "gumbolt": ((83.19, 0.05), None, (83.14, 0.04)),
        "pwl": ((83.22, 0.05), (82.99, 0.05), (82.90, 0.03)),
        "rbm": ((82.75, 0.05),),
    },
    ("omniglot", 100): {
        "dvae_sharp": ((101.64, 0.05), (101.75, 0.04), (101.74, 0.07)),
        "gumbolt": ((101.41, 0.06), (101.39, 0.06), (102.04, 0.10)),
        "pwl": ((101.24, 0.02), (101.14, 0.05), (101.14, 0.05)),
        "rbm": ((100.69, 0.04),),
    },
    ("omniglot", 200): {
        "dvae_sharp": ((99.51, 0.03), (99.40, 0.05), (99.47, 0.04)),
        "gumbolt": ((99.39, 0.04), (99.12, 0.07), (99.97, 0.02)),
        "pwl": ((99.32, 0.04), (99.10, 0.04), (99.30, 0.03)),
        "rbm": ((98.61, 0.08),),
    },
}
# By data and units (None: structured prediction), for K = 1, 5, 25: directed posteriors of 1, 2, 4 groups, and the RBM.
_BY_SAMPLES = {
    ("mnist", 100): {
        1: ((84.60, 0.04), (84.49, 0.03), (84.04, 0.03), (84.06, 0.03)),
        5: ((84.15, 0.06), (83.88, 0.02), (83.53, 0.06), (83.56, 0.02)),
        25: ((83.96, 0.05), (83.70, 0.03), (83.38, 0.02), (83.44, 0.04)),
    },
    ("mnist", 200): {
        1: ((83.27, 0.06), (82.99, 0.04), (82.89, 0.03), (82.76, 0.05)),
        5: ((83.24, 0.06), (82.90, 0.06), (82.65, 0.03), (82.76, 0.06)),
        25: ((83.38, 0.04), (83.05, 0.03), (82.84, 0.02), (82.97, 0.11)),
    },
    ("omniglot", 100): {
        1: ((101.21, 0.06), (101.14, 0.07), (101.12, 0.03), (100.68, 0.05)),
        5: ((100.72, 0.05), (100.58, 0.05), (100.51, 0.04), (100.16, 0.04)),
        25: ((100.58, 0.01), (100.48, 0.05), (100.37, 0.03), (100.02, 0.04)),
    },
    ("omniglot", 200): {
        1: ((99.32, 0.02), (99.11, 0.02), (99.28, 0.09), (98.61, 0.06)),
        5: ((99.19, 0.05), (98.69, 0.09), (98.78, 0.02), (98.34, 0.03)),
        25: ((99.10, 0.03), (98.70, 0.07), (98.86, 0.06), (98.34, 0.04)),
    },
    ("mnist", None): {
        1: ((60.82, 0.17), (59.54, 0.12), (60.22, 0.12), (57.13, 0.18)),
        5: ((52.38, 0.03), (52.27, 0.16), (52.67, 0.05), (49.25, 0.07)),
        25: ((48.30, 0.08), (48.41, 0.05), (48.61, 0.11), (45.75, 0.10)),
    },
    ("omniglot", None): {
        1: ((67.06, 0.04), (67.11, 0.11), (67.35, 0.08), (63.74, 0.08)),
        5: ((59.00, 0.03), (59.28, 0.08), (59.34, 0.10), (57.53, 0.08)),
        25: ((54.79, 0.04), (54.83, 0.04), (54.88, 0.06), (54.32, 0.04)),
    },
}


def _published(number: tuple[float, float] | None) -> dict[str, Published]:
    return {} if number is None else {"log_likelihood": Published(-number[0], number[1])}


def _row(
    data: str,
    units: int | None,
    model: str,
    number: tuple[float, float] | None,
    *,
    groups: int = 1,
    num_samples: int | None = None,
) -> Row:
    """A row of an RBM posterior (model `rbm`) or of a directed one with a relaxation; units None: conditional."""
    overrides = []
    if model == "rbm":
        title = "DVAE##"
        name = f"{data}-{units}-rbm" if units else f"{data}-rbm"
    else:
        relaxation, label = _RELAXATIONS[model]
        title = f"{label}, L={groups}"
        name = f"{data}-{units}-{model}-l{groups}" if units else f"{data}-{model}-l{groups}"
        overrides += ["model.posterior=directed"]
        overrides += [f"model.groups={groups}"] if groups > 1 else []
        overrides += [f"model.relaxation={relaxation}"] if relaxation else []
        if model == "dvae_sharp":
            overrides += ["objective.gradient=path"]
    group = _DATA[data] + (f", {units} + {units} latents" if units else ", lower half given the upper one")
    if num_samples is not None:
        title, name = f"{title}, K={num_samples}", f"{name}-k{num_samples}"
        if num_samples > 1:
            overrides += [f"objective.num_samples={num_samples}"]
            overrides += ["objective.name=iwae"] if units else []
    return Row(
        name,
        title,
        f"boltzmann_vae/{data}_{units or 'structured'}_tuned",
        _K4000,
        group=group,
        overrides=tuple(overrides),
        published=_published(number),
        paper_steps=_PAPER_STEPS,
        missing=_OMNIGLOT_MISSING if data == "omniglot" else "",
    )


def _table_1() -> Table:
    rows, differences = [], []
    for (data, units), numbers in _TABLE_1.items():
        for model, by_groups in numbers.items():
            rows += [
                _row(data, units, model, number, groups=groups)
                for groups, number in zip((1, 2, 4), by_groups, strict=False)
            ]
        prefix = f"{data}-{units}"
        claim = f"{_DATA[data].partition(',')[0]}, {units} + {units}: an RBM posterior is better than a factorial one."
        differences.append(Difference(f"{prefix}-rbm", f"{prefix}-pwl-l1", claim))
        differences.append(Difference(f"{prefix}-rbm", f"{prefix}-pwl-l4"))
    return Table(
        "boltzmann_vae/table1",
        "RBM and directed posteriors, variational bound",
        f"{_PAPER}, table 1 (K=4,000, five seeds, 1,000,000 steps)",
        tuple(rows),
        differences=tuple(differences),
    )


def _by_samples(name: str, title: str, source: str, *, is_conditional: bool) -> Table:
    rows, differences = [], []
    for (data, units), by_samples in _BY_SAMPLES.items():
        if (units is None) != is_conditional:
            continue
        for num_samples, numbers in by_samples.items():
            prefix = f"{data}-{units}" if units else data
            for groups, number in zip((1, 2, 4), numbers[:3], strict=True):
                rows.append(_row(data, units, "pwl", number, groups=groups, num_samples=num_samples))
            rows.append(_row(data, units, "rbm", numbers[3], num_samples=num_samples))
            claim = f"{rows[-1].group}, K={num_samples}: an RBM posterior is better than a factorial one."
            differences.append(Difference(rows[-1].name, f"{prefix}-pwl-l1-k{num_samples}", claim))
    return Table(name, title, f"{_PAPER}, {source}", tuple(rows), differences=tuple(differences))


def _pilots() -> Table:
    """Short runs by which the samplers of the tuned recipe were chosen, on the validation split."""
    rows = [
        Row(
            f"{chains}x{sweeps}-s{posterior}",
            f"{chains:,} chains x {sweeps} sweeps of the prior, {posterior} sweeps of posteriors",
            "boltzmann_vae/mnist_100",
            Evaluation(100, 1_000, split="validation", overrides=("evaluation.posterior_temperatures=50",)),
            overrides=(
                "training.steps=5000",
                "training.validate_every=2500",
                f"model.prior_chains={chains}",
                f"model.prior_sweeps={sweeps}",
                f"model.posterior_sweeps={posterior}",
            ),
            seeds=(0,),
        )
        for chains, sweeps, posterior in ((1_000, 40, 10), (250, 10, 10), (250, 10, 4))
    ]
    return Table(
        "boltzmann_vae/pilots",
        "Pilots of the samplers, on the validation split",
        "not in the paper, which has 1,000 x 40 and 10 sweeps; equal steps",
        tuple(rows),
        ("log_likelihood", "elbo", "rate"),
    )


def all_tables() -> Iterator[Table]:
    """Yields every table."""
    yield _table_1()
    yield _pilots()
    yield _by_samples(
        "boltzmann_vae/table2",
        "RBM and directed posteriors, importance-weighted bound of K samples",
        "table 2",
        is_conditional=False,
    )
    yield _by_samples(
        "boltzmann_vae/table3",
        "Structured prediction, log p(lower half | upper half)",
        "table 3 (100 + 100 latents)",
        is_conditional=True,
    )

"""The card of a bundle: its schema, which is checked when a bundle is opened, and the page for people."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pydantic

from tfstruct.serving.contents import DamagedBundleError

SCHEMA_VERSION = 1
_MEANING = {
    "binary": "zeros and ones",
    "unit_interval": "numbers in [0, 1]",
    "integers_0_255": "integers from 0 to 255",
    "real": "finite numbers",
}


class _Part(pydantic.BaseModel):
    """A part of a card; a later version may have more."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True)


class Tensor(_Part):
    """An input or output, -1 for the number of rows."""

    dtype: str
    shape: list[int]


class Signature(_Part):
    """A question that the bundle answers."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class Data(_Part):
    """What it was trained on."""

    name: str
    variant: str
    checksum: str | None
    description: str


class Metrics(_Part):
    """What an evaluation measured of the weights."""

    log_likelihood: float
    std_err: float | None
    num_samples: int
    flags: list[str]
    data: dict[str, Any]


class Card(_Part):
    """What is known of a bundle."""

    schema_version: int = pydantic.Field(ge=1, le=SCHEMA_VERSION)
    system: str
    preset: str
    config: dict[str, Any]
    data: Data
    event_shape: list[int]
    part_shapes: list[list[int]] = []
    target: str
    support: Literal["binary", "integers_0_255", "unit_interval", "real"]
    likelihood: str
    about: str = ""
    references: list[str] = []
    num_parameters: int
    num_samples: int = pydantic.Field(ge=1)
    exactness: dict[str, str] = {}
    weights_dtype: str = "float32"
    signatures: dict[str, Signature]
    warmup_records: int = pydantic.Field(default=0, ge=0)
    metrics: Metrics | None
    recipe: list[str] = []
    license: str


def check(card: Any, path: object) -> None:
    """Raises DamagedBundleError, which names what is wrong, unless a card is what its schema says."""
    try:
        Card.model_validate(card)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the card"
        raise DamagedBundleError(f"{path}: {place}: {first['msg']}, found {str(first['input'])[:80]!r}") from None


def to_markdown(card: dict[str, Any]) -> str:
    """Returns the page of a card for people, MODEL_CARD.md; it has nothing that the card has not."""
    return "\n".join(line for section in (_what, _how_well, _answers, _uses, _data, _made) for line in section(card))


def _what(card: dict[str, Any]) -> Iterator[str]:
    yield from (f"# {card['preset'] or card['system']}", "", *([card["about"], ""] if card.get("about") else []))
    yield from _table(
        ("", ""),
        [
            ("model of", card["target"]),
            ("an observation", f"{_shape(card['event_shape'])}, {_MEANING[card['support']]}"),
            ("likelihood", card["likelihood"]),
            ("trained weights", f"{card['num_parameters']:,}, stored as {card['weights_dtype']}"),
            ("importance samples of a score", f"{card['num_samples']}"),
            ("licence", card["license"]),
        ],
    )


def _how_well(card: dict[str, Any]) -> Iterator[str]:
    metrics, rounding = card["metrics"], card.get("rounding")
    yield from ("## How well it does", "")
    if metrics is None:
        yield from ("These weights were not evaluated.", "")
    else:
        data = metrics["data"]
        settings = "".join(f", {name} {value}" for name, value in metrics.get("settings", {}).items())
        yield (
            f"{card['target']} of {data['images']:,} {data['split']} images of {data['name']}/{data['variant']}: "
            f"{_nats(metrics['log_likelihood'], metrics['std_err'])}, by importance sampling with K="
            f"{metrics['num_samples']:,}{settings}. The error is the standard error over images, of one training."
        )
        yield ""
        more = {"ELBO": "elbo", "rate": "rate", "distortion": "distortion"}
        told = [f"{label} {metrics[name]:.2f} nats" for label, name in more.items() if metrics.get(name) is not None]
        if metrics.get("bits_per_dim") is not None:
            told.append(f"{metrics['bits_per_dim']:.4f} bits/dim")
        yield from ([f"{', '.join(told)}.", ""] if told else [])
        yield from ([*(f"* flagged: {flag}" for flag in metrics["flags"]), ""] if metrics["flags"] else [])
    if rounding:
        change = f"{rounding['log_prob_change']:+.4f} +- {rounding['std_err']:.4f} nats"
        yield from (f"Storing the weights so changes it by {change}, mean of {rounding['rows']} images.", "")


def _answers(card: dict[str, Any]) -> Iterator[str]:
    exactness = card.get("exactness", {})
    yield from ("## What it answers", "", "N rows at once; randomness is one integer seed for each row.", "")
    yield from _table(
        ("signature", "inputs", "outputs", "answer"),
        [
            (f"`{name}`", *(_tensors(signature[side]) for side in ("inputs", "outputs")), exactness.get(name, ""))
            for name, signature in sorted(card["signatures"].items())
        ],
    )
    yield from (f"A score takes the encoder once and the decoder {card['num_samples']} times for each row.", "")


_USES = """
For density estimates, samples and completions of data like those that it was trained on, for comparison with other
density models on the same data and protocol, and as a part of a detector of unusual data that is calibrated on held-out
normal data.

Not for decisions about people, and not for data of another kind: a likelihood alone is no measure of how usual an image
is. Images with little in them, such as blank ones, often score higher than those that it was trained on.
"""


def _uses(card: dict[str, Any]) -> Iterator[str]:
    del card
    yield from ("## Uses", *_USES.splitlines(), "")


def _data(card: dict[str, Any]) -> Iterator[str]:
    data = card["data"]
    yield from ("## Data", "", f"`{data['name']}/{data['variant']}`: {data['description'].rstrip('.')}.")
    yield from ([f"Checksum {data['checksum']}.", ""] if data["checksum"] else [""])


def _made(card: dict[str, Any]) -> Iterator[str]:
    yield from ("## How it was made", "")
    yield from (*(f"    {line}" for line in card["recipe"]), *([""] if card["recipe"] else []))
    exported = card.get("exported", {})
    versions = ", ".join(f"{name} {version}" for name, version in exported.get("versions", {}).items())
    yield from (f"Written {card.get('created', 'at an unknown time')} with {versions or 'unknown versions'}.", "")
    references = card.get("references", [])
    if references:
        yield from ("## References", "", *(f"* {reference}" for reference in references), "")


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (heading, ["---"] * len(heading), *rows)]
    yield from (*(f"| {' | '.join(cells)} |" for cells in escaped), "")


def _tensors(specs: dict[str, Any]) -> str:
    return ", ".join(f"`{name}` {_shape(spec['shape'])}" for name, spec in specs.items())


def _shape(sizes: Sequence[int]) -> str:
    return f"[{', '.join('N' if size < 0 else str(size) for size in sizes)}]"


def _nats(value: float, error: float | None) -> str:
    return f"{value:.2f}" + ("" if error is None else f" +- {error:.2f}") + " nats"

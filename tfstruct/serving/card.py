"""The schema of a bundle's card, which is checked when a bundle is opened."""

from typing import Any, Literal

import pydantic

from tfstruct.files import PathLike, read_json
from tfstruct.serving.contents import DamagedBundleError

SCHEMA_VERSION = 1


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


class Calibration(_Part):
    """What anomaly scores were calibrated on, and how well they do."""

    data: dict[str, Any]
    rows: int
    scores: list[str]
    background: dict[str, Any] | None
    test: dict[str, Any] | None
    foreign: dict[str, dict[str, Any]]


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
    calibration: Calibration | None = None
    recipe: list[str] = []
    license: str


def read(path: PathLike) -> Any:
    """Reads a card; raises DamagedBundleError for what is no JSON."""
    try:
        return read_json(path)
    except ValueError as error:
        raise DamagedBundleError(str(error)) from None


def check(card: Any, path: object) -> None:
    """Raises DamagedBundleError, which names what is wrong, unless a card is what its schema says."""
    try:
        Card.model_validate(card)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the card"
        raise DamagedBundleError(f"{path}: {place}: {first['msg']}, found {str(first['input'])[:80]!r}") from None

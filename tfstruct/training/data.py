"""The data of a config, checked against its model."""

import dataclasses
import warnings

import numpy as np

from tfstruct.data import datasets, support, variants
from tfstruct.models.config import Config


def load_data(config: Config, data_dir: str | None = None) -> datasets.Dataset:
    """Loads the config's data and checks them against its likelihood.

    Raises:
        ValueError: data that the likelihood is not a density of, or of another shape than the config says.
    """
    options = config.data
    is_file = options.name == "file"
    data = datasets.load(
        options.name,
        options.variant,
        data_dir=data_dir,
        data_file=options.file or None,
        event_shape=(options.event_shape or None) if is_file else None,
        use_validation=options.use_validation,
    )
    if not is_file and options.event_shape != data.event_shape:
        raise ValueError(
            f"data.event_shape is {options.event_shape}, but {options.name}/{options.variant} has rows of "
            f"shape {data.event_shape}"
        )
    likelihood, label = config.model.likelihood, f"{options.name}/{options.variant}"
    if options.standardise:  # whatever the values are, their density is one of real numbers
        data = dataclasses.replace(data, support=support.REAL, bits_per_dim_offset=None)
    if likelihood == "bernoulli" and data.support != support.BINARY:
        for split in variants.SPLITS:
            support.require_binary(
                data.split(split),
                f"the Bernoulli likelihood needs binary data; {label} {split} rows",
            )
    allowed = support.LIKELIHOOD_SUPPORTS.get(likelihood)
    if allowed is not None and data.support not in allowed:
        is_cured = data.support == support.REAL or likelihood == "gaussian"
        cure = f". Use {support.REAL_REMEDY}." if is_cured and data.train_transform == "cast" else ""
        raise ValueError(
            f"the likelihood {likelihood} is for data of support {' or '.join(allowed)}; {label} has "
            f"{data.support}{cure}"
        )
    if options.standardise and data.train_transform != "cast":
        raise ValueError(
            f"data.standardise=True takes values as they are stored, and {label} draws them anew at every visit; set "
            "data.variant=none or grey"
        )
    if likelihood == "gaussian" and not options.standardise:
        _warn_of_far_values(data.validation, label)
    if likelihood == "gaussian" and len(data.event_shape) == 1:
        _warn_of_constant_values(data.validation, label)
    if getattr(config.model, "batch_norm", False) and data.train_transform == "cast" and _are_equal(data.train):
        raise ValueError(
            f"all {len(data.train)} training rows of {label} are the same, which leaves batch normalisation no "
            "variance; set model.batch_norm=False"
        )
    if options.corruption:
        corrupted = variants.corrupt_once(data.validation, "validation", options.corruption, data.support)
        data = dataclasses.replace(data, validation=corrupted)
    first = options.train_images
    if first and options.use_validation:
        raise ValueError(f"data.train_images={first} does not go with data.use_validation=True, which adds rows")
    if first > len(data.train):
        raise ValueError(f"data.train_images must be 0 (all) to {len(data.train)}, found {first}")
    return dataclasses.replace(data, train=data.train[:first]) if first else data


def _warn_of_far_values(rows: np.ndarray, label: str) -> None:
    """Warns of values that are far from (0, 1), where the mean of the Gaussian likelihood lies."""
    found = support.summarize(rows)
    if found.minimum < -1.0 or found.maximum > 2.0:
        warnings.warn(
            f"the values of {label} reach from {found.minimum:.4g} to {found.maximum:.4g}, and the mean of the "
            "Gaussian likelihood lies between 0 and 1; use `--set data.standardise=True`",
            stacklevel=3,
        )


def _warn_of_constant_values(rows: np.ndarray, label: str) -> None:
    """Warns of columns of a table that never change, whose density under a Gaussian has no bound but its variance's."""
    constant = np.flatnonzero(np.ptp(rows, axis=0) == 0.0) if len(rows) > 1 else np.zeros(0, int)
    if len(constant):
        warnings.warn(
            f"{len(constant)} of {rows.shape[1]} values of {label} are the same in all validation rows, first the one "
            f"at index {constant[0]}; log p(x) then measures how small a variance may be: leave them out",
            stacklevel=3,
        )


def _are_equal(rows: np.ndarray) -> bool:
    """Whether all rows are the same; most often the first few say that they are not."""
    return all((rows[start : start + 1_000] == rows[:1]).all() for start in range(0, len(rows), 1_000))

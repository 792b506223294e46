"""Held-out data other than those that a run was trained on, checked against its model."""

from tfstruct.data import datasets
from tfstruct.data.support import LIKELIHOOD_SUPPORTS
from tfstruct.models.config import Config

# Variants whose rows are draws of one distribution: a model of one is a model of the other.
_SAME_ROWS = {"dynamic": "binarised at random", "static": "binarised at random"}


def load(
    config: Config,
    label: str,
    *,
    data_dir: str | None = None,
    allow_other_variant: bool = False,
) -> datasets.Dataset:
    """Loads `name/variant` for a model that was trained with a config.

    Args:
        config: of the run.
        label: a named data set and its variant, such as `binarized_mnist/static`.
        data_dir: folder of prepared data sets.
        allow_other_variant: whether rows may have been made in another way than the training set's, such as
            thresholded instead of binarised at random. Their likelihoods then compare with those of neither.

    Raises:
        ValueError: an unknown data set or variant, rows of another shape or ones that the likelihood is no density of,
            or another variant that is not allowed.
    """
    name, _, variant = label.partition("/")
    if not name or not variant or name == "file":
        raise ValueError(f"data must be name/variant of a named data set, such as mnist/dynamic, found {label!r}")
    data = datasets.load(name, variant, data_dir=data_dir)
    trained_on = f"{config.data.name}/{config.data.variant}"
    if data.event_shape != config.data.event_shape:
        raise ValueError(
            f"data must have rows of shape {config.data.event_shape}, as {trained_on} has, found {label} with "
            f"{data.event_shape}"
        )
    likelihood = config.model.likelihood
    allowed = LIKELIHOOD_SUPPORTS.get(likelihood, (data.support,))
    if data.support not in allowed:
        raise ValueError(
            f"data must have support {' or '.join(allowed)} for the likelihood {likelihood}, found {label} with "
            f"{data.support}"
        )
    own = config.data.variant
    if not allow_other_variant and _SAME_ROWS.get(own, own) != _SAME_ROWS.get(variant, variant):
        raise ValueError(
            f"data must be of the variant that the model was trained on, {own}, found {label}, whose likelihoods do "
            "not compare with it; --allow_other_variant scores it all the same"
        )
    return data

"""Flags for numbers that are better than anything honestly obtained so far, or that mean less than they seem to."""

import math
from typing import Any

import numpy as np

from tfstruct.inference.likelihood import LikelihoodEstimate

# Best published test log-likelihoods (nats) of deep hierarchical VAEs, with a nat to spare, by data set and variant:
# a small model above them has most likely been scored on other data than its name says, on grey levels, with a
# density that is not normalised, or on its training set.
_CEILINGS = {
    ("mnist", "static"): -77.0,
    ("mnist", "dynamic"): -76.0,
    ("binarized_mnist", "static"): -77.0,
    # Noise of 1/255 was added once: no density can be higher than that of grey levels that are known, in each pixel.
    ("mnist", "continuous"): 3675.0,
    ("omniglot", "dynamic"): -87.0,
    ("omniglot", "static"): -87.0,
    ("omniglot_burda", "dynamic"): -87.0,
    ("omniglot_burda", "static"): -87.0,
}
_LEAST_EFFECTIVE_SAMPLES = 2.0
#: Weighted draws below which a ratio of two means may be far off on either side, and the share of images that may have
#: fewer without a flag.
_LEAST_EFFECTIVE_DRAWS, _SHARE_WITH_FEWER = 10.0, 0.01
#: A row is runaway if its rate is above both of these: nats, and a multiple of the median rate.
_RUNAWAY_RATE, _RUNAWAY_MEDIANS = 500.0, 10.0
_QUANTILES = (0.5, 0.9, 0.99, 1.0)

CHECKLIST = (
    "check that the targets are 0 or 1, that log_prob is normalised, that the split is the test split, and that the "
    "posterior's density is that of its samples"
)


def flags(
    name: str,
    variant: str,
    *,
    log_likelihood: float,
    num_samples: int,
    effective_sample_size: float,
    bits_per_dim: float | None,
    is_conditional: bool = False,
) -> list[str]:
    """Returns what is suspicious about a result; an empty list if nothing is.

    Args:
        name: of the data set.
        variant: of the data set.
        log_likelihood: mean over images, nats.
        num_samples: K.
        effective_sample_size: median over images.
        bits_per_dim: mean, or None where it has no meaning.
        is_conditional: whether the likelihood is that of a part of x given the rest, of which nothing is published.
    """
    if not math.isfinite(log_likelihood):
        return [f"not finite: the mean log-likelihood is {log_likelihood}; the model has diverged or x is impossible"]
    found = []
    ceiling = None if is_conditional else _CEILINGS.get((name, variant))
    if ceiling is not None and log_likelihood > ceiling:
        found.append(
            f"implausible: {log_likelihood:.2f} nats is above {ceiling:.1f}, which no published model of {name} "
            f"({variant}) reaches; {CHECKLIST}"
        )
    if bits_per_dim is not None and bits_per_dim < 0:
        found.append(f"implausible: {bits_per_dim:.3f} bits per dimension is negative; {CHECKLIST}")
    if num_samples >= 100 and effective_sample_size < _LEAST_EFFECTIVE_SAMPLES:
        found.append(
            f"loose: the median effective sample size is {effective_sample_size:.1f} of {num_samples}; the bound may "
            "be far below log p(x)"
        )
    return found


def over_images(estimate: LikelihoodEstimate, num_samples: int) -> tuple[dict[str, Any], list[str]]:
    """Returns how rate and -ELBO are spread over images [B], and flags of what a mean over images hides.

    A runaway row has a rate that is above 500 nats and above 10 times the median rate, or is not a number. Importance
    weights cover up such rows: the best of many samples counts, and training by an importance-weighted bound never
    calls them back; the ELBO shows them.

    Args:
        estimate: of B images.
        num_samples: K.

    Returns:
        `rate_quantiles` and `negative_elbo_quantiles` (nats, by quantile as text, "1.0" the largest),
        `runaway_images`, and `images_with_few_samples`, the share of images with an effective sample size below 2;
        flags.
    """
    rate, elbo = (np.asarray(part, np.float64) for part in (estimate.rate, estimate.elbo))
    found = []
    with np.errstate(invalid="ignore"):  # infinities, which are flagged themselves
        runaway = ~(rate <= max(_RUNAWAY_RATE, _RUNAWAY_MEDIANS * float(np.median(rate))))
        cost = float(np.mean(elbo[~runaway]) - np.mean(elbo)) if not runaway.all() else math.nan
    if runaway.any():
        found.append(
            f"runaway: {runaway.sum()} of {len(rate)} images have rates up to {rate.max():.0f} nats, the median image "
            f"{np.median(rate):.1f}; they lower the mean ELBO by {cost:.2f} nats, which importance weights hide"
        )
    few = float(np.mean(np.asarray(estimate.effective_draws) < _LEAST_EFFECTIVE_DRAWS))
    is_weighted = np.any(np.asarray(estimate.effective_draws) < 0.999 * num_samples)
    if is_weighted and few > _SHARE_WITH_FEWER:
        found.append(
            f"unequilibrated: {100 * few:.0f} % of the images have fewer than {_LEAST_EFFECTIVE_DRAWS:.0f} effective "
            "draws of q(z | x_1): their estimates may also be above log p(x_2 | x_1), by more than their errors say; "
            "take more samples or more evaluation.posterior_temperatures"
        )
    report = {
        "rate_quantiles": _quantiles(rate),
        "negative_elbo_quantiles": _quantiles(-elbo),
        "runaway_images": int(runaway.sum()),
        "images_with_few_samples": float(np.mean(estimate.effective_sample_size < _LEAST_EFFECTIVE_SAMPLES)),
    }
    return report, found


def _quantiles(values: np.ndarray) -> dict[str, float]:
    with np.errstate(invalid="ignore"):
        return {str(level): float(np.quantile(values, level)) for level in _QUANTILES}

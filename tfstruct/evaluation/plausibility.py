"""Flags for numbers that are better than anything honestly obtained so far."""

import math

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
) -> list[str]:
    """Returns what is suspicious about a result; an empty list if nothing is.

    Args:
        name: of the data set.
        variant: of the data set.
        log_likelihood: mean over images, nats.
        num_samples: K.
        effective_sample_size: median over images.
        bits_per_dim: mean, or None where it has no meaning.
    """
    if not math.isfinite(log_likelihood):
        return [f"not finite: the mean log-likelihood is {log_likelihood}; the model has diverged or x is impossible"]
    found = []
    ceiling = _CEILINGS.get((name, variant))
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

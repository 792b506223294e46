"""What the circuit of a trained sum-product VAE answers: latent maps, completions, and which region is out of place."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from scipy import special

from tfstruct import progress, random
from tfstruct.math import mean_and_std_err
from tfstruct.models.sum_product_vae.model import SumProductVAE

_CHUNK = 20  # importance samples computed at once
_ENCODED = 2_000  # observations whose latents give the directions of a map


def region_graph(model: SumProductVAE, rows: np.ndarray) -> dict[str, Any]:
    """Returns the regions of a model's graph, its partitions and levels, and the shape of an observation.

    Raises:
        ValueError: observations that are no grey images.
    """
    del rows
    if len(model.event_shape) != 2:
        raise ValueError(f"the region graph is drawn over grey images, found events of shape {model.event_shape}")
    graph = model.graph
    return {
        "regions": graph.regions,
        "partitions": graph.partitions,
        "levels": graph.levels,
        "shape": model.event_shape,
    }


def latent_maps(model: SumProductVAE, rows: np.ndarray, *, points: int = 12) -> dict[str, Any]:
    """Decodes a grid of latents of every leaf's VAE: what it has learned of its part of the image.

    A VAE of two latents with the prior N(0, I) is shown over all of them, at quantiles of that. Of others it is the
    plane of the two principal directions of the posterior means of validation images, at quantiles of a Gaussian with
    their spread.

    Args:
        model: whose leaf regions are rectangles of one size that do not overlap.
        rows: observations [n, *event_shape] whose latents give the directions.
        points: of the grid along each direction.

    Returns:
        `maps` [VAEs of a region, height * points, width * points(, channels)] in [0, 1]: each leaf region's place holds
        points x points pictures of it; `grid`, the number of places along both axes.

    Raises:
        ValueError: another model, or regions without a picture.
    """
    height, width, channels = model.scopes.image_shape(model.event_shape)
    if not model.graph.is_tiling:
        raise ValueError("latent maps need leaf regions that do not overlap")
    quantiles = special.ndtri((np.arange(points) + 0.5) / points)
    latent_dim, num_vaes = model.config.model.num_latents, model.leaves.num_vaes
    if latent_dim == 2 and model.leaves.leaves_per_vae == 1:
        centre, axes = np.zeros([num_vaes, 1, 2]), np.repeat(np.eye(2)[np.newaxis], num_vaes, axis=0)
    else:
        means = model.encode(tf.constant(rows[:_ENCODED], tf.float32))["z_mean"].numpy()
        means = means.reshape(-1, num_vaes, latent_dim).swapaxes(0, 1)
        centre = means.mean(axis=1, keepdims=True)
        _, spread, directions = np.linalg.svd(means - centre, full_matrices=False)
        axes = (spread[:, :2, np.newaxis] / np.sqrt(means.shape[1])) * directions[:, :2]
    if latent_dim == 1:
        axes = np.concatenate([axes, np.zeros_like(axes)], axis=1)[:, :2]
    down, right = np.meshgrid(quantiles, quantiles, indexing="ij")
    grid = np.stack([down.ravel(), right.ravel()], axis=-1)
    z = centre + grid @ axes
    outputs = model.leaves.decode(tf.constant(z, tf.float32))
    tiles = model.pixels.mean(outputs).numpy() / model.likelihood.scale
    per_region = num_vaes // len(model.leaf_regions)
    tiles = tiles.reshape(-1, per_region, points, points, height, width, channels)
    full_height, full_width = model.event_shape[:2]
    maps = np.zeros([per_region, full_height * points, full_width * points, channels])
    for variables, of_region in zip(model.leaf_regions, tiles, strict=True):
        top, left = np.unravel_index(variables[0] // channels, (full_height, full_width))
        picture = of_region.transpose(0, 1, 3, 2, 4, 5).reshape(per_region, points * height, points * width, channels)
        maps[:, top * points : (top + height) * points, left * points : (left + width) * points] = picture
    maps = np.clip(maps if channels > 1 else maps[..., 0], 0.0, 1.0)
    return {"maps": maps, "grid": (full_height // height, full_width // width)}


def _masks(event_shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Observed pixels by the name of what is missing; each Boolean of the event's shape."""
    height, width = event_shape[:2]
    masks = {name: np.ones(event_shape, bool) for name in ("right half", "lower half", "centre", "80 % of pixels")}
    masks["right half"][:, width // 2 :] = False
    masks["lower half"][height // 2 :] = False
    masks["centre"][height // 4 : height - height // 4, width // 4 : width - width // 4] = False
    pixels = np.random.default_rng(seed).random((height, width)) < 0.2
    masks["80 % of pixels"] &= pixels.reshape(height, width, *[1] * (len(event_shape) - 2))
    return masks


def inpainting(
    model: SumProductVAE,
    rows: np.ndarray,
    *,
    images: int = 10,
    scored: int = 200,
    draws: int = 3,
    num_samples: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Completes images of which halves, the centre or most pixels are missing.

    Args:
        model: over images.
        rows: images [n, *event_shape], of which the first are taken.
        images: how many are completed for the picture.
        scored: how many are scored.
        draws: completions of each image.
        num_samples: importance samples of each completion and score.
        seed: of all noise.

    Returns:
        By name of what is missing: `original`, `observed` (with missing pixels NaN), `completed` [draws, images, ...]
        and `mean` (the average of the draws' means), in [0, 1]; `log_prob`, the mean over the scored images of
        log p(missing | observed) in nats, an estimate that is the difference of two, with its standard error over
        images; `root_mean_square`, of the completions' error on missing pixels, in units of [0, 1], and
        `of_mean_image`, the same for the training set's mean image.

    Raises:
        ValueError: another model, events that are no images, or less than two images to score.
    """
    if len(model.event_shape) not in (2, 3):
        raise ValueError(f"inpainting is for images, found events of shape {model.event_shape}")
    if min(scored, len(rows)) < 2:
        raise ValueError(f"at least two images must be scored, found {min(scored, len(rows))}")
    images = min(images, len(rows))
    rows = np.asarray(rows[: max(images, scored)], np.float32)
    fill = model.pixel_mean.numpy().reshape(model.event_shape)
    scale, key, result = model.likelihood.scale, random.key(seed), {}
    complete = tf.function(
        lambda x, observed, keys: model.inpaint(x, observed, seed=keys, num_samples=num_samples), autograph=False
    )
    score = scorer(model, num_samples)
    whole = score(rows[:scored], np.ones([*rows[:scored].shape], bool), random.fold_in(key, 1))
    for name, mask in progress.track(list(_masks(model.event_shape, seed).items()), "mask", "inpainting"):
        shown = rows[:images]
        observed = np.broadcast_to(mask, shown.shape)
        completed, means = [], []
        for draw in range(draws):
            keys = random.fold_in(random.fold_in(key, 2 + draw), tf.range(images))
            found = complete(tf.constant(shown), tf.constant(observed), keys)
            completed.append(found["x"].numpy() / scale)
            means.append(found["x_mean"].numpy() / scale)
        part = score(rows[:scored], np.broadcast_to(mask, rows[:scored].shape), random.fold_in(key, 1))
        log_prob, std_err = mean_and_std_err(whole - part)
        missing = shown[:, ~mask] / scale
        errors = [missing - np.mean(means, axis=0)[:, ~mask], missing - fill[~mask]]
        root_mean_square = [float(np.sqrt(np.mean(np.square(error)))) for error in errors]
        result[name] = {
            "original": shown / scale,
            "observed": np.where(observed, shown / scale, np.nan),
            "completed": np.clip(np.array(completed), 0.0, 1.0),
            "mean": np.clip(np.mean(means, axis=0), 0.0, 1.0),
            "log_prob": log_prob,
            "std_err": std_err,
            "root_mean_square": root_mean_square[0],
            "of_mean_image": root_mean_square[1],
        }
    return result


def scorer(model: SumProductVAE, num_samples: int) -> Callable[..., np.ndarray]:
    """Estimates of log p(x_observed), [n], image by image with keys of their own."""
    chunk = min(_CHUNK, num_samples)

    @tf.function(autograph=False)
    def estimate(x: tf.Tensor, observed: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        return model.estimate(x, keys, num_samples=num_samples, chunk=chunk, observed=observed).log_prob

    def score(rows: np.ndarray, observed: np.ndarray, key: tf.Tensor) -> np.ndarray:
        keys, size = random.fold_in(key, tf.range(len(rows))), 50
        parts = [slice(start, start + size) for start in range(0, len(rows), size)]
        return np.concatenate(
            [estimate(tf.constant(rows[part]), tf.constant(observed[part]), keys[part]).numpy() for part in parts]
        )

    return score


def _box(variables: Sequence[int], event_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of a region of an image; of a vector it is a row of pixels."""
    shape = event_shape if len(event_shape) > 1 else (1, *event_shape)
    rows, columns = np.unravel_index(variables, shape)[:2]
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def misplaced_regions(
    model: SumProductVAE, rows: np.ndarray, *, images: int = 500, num_samples: int = 100, seed: int = 0
) -> dict[str, Any]:
    """Swaps one region of every image for that of another image, and looks for it by the regions' densities.

    A region is out of place if the rest makes it less probable than it is by itself: if log p(region | rest) is less
    than log p(region).

    Args:
        model: with regions that do not overlap.
        rows: images [n, *event_shape], of which the first are taken.
        images: how many.
        num_samples: importance samples.
        seed: of which region comes from which image, and of the samples.

    Returns:
        `image` and `swapped` [n, ...] in [0, 1]; `map` [n, ...]: log p(region) - log p(region | rest) of the
        swapped image at each of its pixels, nats; `region` [n], the one that was swapped, and `box` [n, 4] its top,
        left, bottom and right; `first` and `first_std_err`:
        how often it is the one that fits the rest worst; `first_by_conditional`: how often log p(region | rest) alone
        is the least; `chance`; `information` and its standard error: mean of log p(region | rest) - log p(region) over
        the regions of the images as they were, nats.
        Only swaps that change the region count.

    Raises:
        ValueError: another model, one without separate regions, or less than two swaps that change anything.
    """
    if model.circuit is None or not model.graph.is_tiling:
        raise ValueError("this needs a model of several leaf regions that do not overlap")
    rows = np.asarray(rows[:images], np.float32)
    generator = np.random.default_rng(seed)
    flat = rows.reshape(len(rows), -1)
    swapped, regions = flat.copy(), generator.integers(len(model.leaf_regions), size=len(rows))
    for place, region in enumerate(regions):
        variables = model.leaf_regions[region]
        swapped[place, variables] = flat[generator.integers(len(rows)), variables]
    is_changed = np.any(swapped != flat, axis=1)
    if is_changed.sum() < 2:
        raise ValueError(f"less than two of the swaps in {len(rows)} images change anything; take more images")
    flat, swapped, regions = flat[is_changed], swapped[is_changed], regions[is_changed]
    chunk = min(_CHUNK, num_samples)

    @tf.function(autograph=False)
    def densities(x: tf.Tensor, keys: tf.Tensor) -> dict[str, tf.Tensor]:
        leaves = model.estimate(x, keys, num_samples=num_samples, chunk=chunk, by_leaf=True)
        return model.region_log_prob(leaves.log_prob)

    keys = random.fold_in(random.key(seed), tf.range(len(swapped)))

    def fits(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shaped = rows.reshape(-1, *model.event_shape)
        parts = [slice(start, start + 50) for start in range(0, len(rows), 50)]
        tracked = progress.track(parts, "batch", "scoring regions")
        found = [densities(tf.constant(shaped[part]), keys[part]) for part in tracked]
        conditional, marginal = (
            np.concatenate([part[name].numpy() for part in found]) for name in ("conditional", "marginal")
        )
        return conditional, conditional - marginal

    conditional, fit = fits(swapped)
    first, first_std_err = mean_and_std_err(fit.argmin(axis=1) == regions)
    information, information_std_err = mean_and_std_err(fits(flat)[1].mean(axis=1))
    misfit = np.zeros(swapped.shape)
    for region, variables in enumerate(model.leaf_regions):
        misfit[:, variables] = -fit[:, region : region + 1]
    scale, shape = model.likelihood.scale, (-1, *model.event_shape)
    boxes = [_box(variables, model.event_shape) for variables in model.leaf_regions]
    return {
        "image": flat.reshape(shape) / scale,
        "swapped": swapped.reshape(shape) / scale,
        "map": misfit.reshape(shape),
        "region": regions,
        "box": np.array(boxes)[regions],
        "first": first,
        "first_std_err": first_std_err,
        "first_by_conditional": float((conditional.argmin(axis=1) == regions).mean()),
        "chance": 1.0 / len(model.leaf_regions),
        "information": information,
        "information_std_err": information_std_err,
    }

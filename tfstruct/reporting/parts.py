"""What a report page tells of a run, part by part: texts, tables and figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from tfstruct import plotting, progress, random
from tfstruct.data import mnist
from tfstruct.data.support import BINARY, INTEGERS, UNIT_INTERVAL
from tfstruct.evaluation import detection, foreign, pictures, report
from tfstruct.evaluation.report import TrainedRun
from tfstruct.files import read_json
from tfstruct.inference.held_out import HeldOutScorer
from tfstruct.math import mean_and_std_err
from tfstruct.models.graph_vae.structure import ACTIVE_VARIANCE
from tfstruct.training.loop import resolve_compiler

_INPAINTED, _OBSERVED, _BATCH = 20, 0.3, 100
# How foreign images become rows like those of a user's file.
_VARIANTS = {BINARY: "dynamic", UNIT_INTERVAL: "grey", INTEGERS: "levels"}


class Drawn(NamedTuple):
    """A figure with what it shows.

    Attributes:
        figure: of matplotlib.
        caption: one or two sentences, which stand in for it where it cannot be seen.
        kind: `svg`, or `png` for pictures of many pixels.
    """

    figure: Figure
    caption: str
    kind: str = "svg"


class Part(NamedTuple):
    """A section of the page.

    Attributes:
        title: heading.
        text: paragraphs.
        heading: names of the columns of the table; empty without one.
        rows: of the table.
        figures: below.
    """

    title: str
    text: Sequence[str] = ()
    heading: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: Sequence[Drawn] = ()


class Options(NamedTuple):
    """How a page is computed.

    Attributes:
        replica: of each run.
        rows: test rows for latents and scores.
        num_samples: importance samples K of a score.
        foreign: sets whose scores stand beside those of the test rows (see evaluation.foreign).
        data_dir: folder of prepared data sets.
        seed: of what is drawn.
    """

    replica: int = 0
    rows: int = 500
    num_samples: int = 50
    foreign: Sequence[str] = (foreign.NOISE,)
    data_dir: str | None = None
    seed: int = 0


_CAPTIONS = {
    "curves": "What training makes larger, on training batches and on validation rows.",
    "structure": "The graph: open edges are arrows with their probabilities, undecided ones dashed, closed ones "
    "dotted.",
    "gates": "The probability of each edge over training.",
    "samples": "Means of p(x | z), each at a draw of z from the prior.",
    "reconstructions": "Test rows, and below each the mean of p(x | z) at a draw of z given it.",
}
_GROUPS = (("Training", ("curves",)), ("Graph", ("structure", "gates")), ("Samples", ("samples", "reconstructions")))


def of_run(run: TrainedRun, options: Options) -> Iterator[Part]:
    """Yields the parts of a run, as far as its system and its files have them."""
    yield _summary(run, options.replica)
    results = _evaluations(run)
    if results:
        yield _results(results)
    drawn = dict(pictures.figures(run, replica=options.replica, seed=options.seed))
    for title, names in _GROUPS:
        found = [
            Drawn(drawn[name], _CAPTIONS[name], "png" if name in pictures.PIXELS else "svg")
            for name in names
            if name in drawn
        ]
        if title == "Graph" and found:
            yield _graph(run, found, results, options.replica)
        elif found:
            yield Part(title, figures=found)
    model = run.use(options.replica)
    if "inpaint" in model.queries and _is_image(run):
        yield _inpainting(run, options)
    if not model.target.is_conditional:
        yield from _latents(run, options)
        yield _scores(run, options)


def _summary(run: TrainedRun, replica: int) -> Part:
    environment, config = run.folder.environment(), run.config
    versions = environment.get("versions", {})
    count = sum(int(np.prod(variable.shape)) for variable in run.model.trainable_variables)
    device = ", ".join(environment.get("gpus", [])) or f"CPU, {environment.get('cpu_count', '?')} cores at hand"
    rows = [
        ("preset", config.preset),
        ("folder", str(run.folder.path)),
        ("data", f"{config.data.file or config.data.name}/{config.data.variant}"),
        ("parameters", f"{count:,}"),
        (
            "steps",
            f"{run.trained_steps:,} of {config.training.steps:,}; best "
            + ", ".join(f"{step:,}" for step in run.weights.steps),
        ),
        ("seeds", ", ".join(str(config.training.seed + place) for place in range(run.num_replicas))),
        *([("shown below", f"seed {config.training.seed + replica}")] if run.num_replicas > 1 else []),
        ("device", device),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions.items()) or "not recorded"),
        ("commit", str(environment.get("commit") or "not recorded")),
        ("command", " ".join(environment.get("command", [])) or "not recorded"),
    ]
    return Part("Run", rows=rows)


def _evaluations(run: TrainedRun) -> list[dict[str, Any]]:
    """Those that lie in the folder: the test split first."""
    paths = sorted(run.folder.path.glob("evaluation*.json"), key=lambda path: (path.stem != "evaluation", path.stem))
    return [read_json(path) for path in paths]


def _results(results: Sequence[Mapping[str, Any]]) -> Part:
    rows, text = [], []
    for result in results:
        text += [report.summary_line(dict(result)), *(f"Flagged: {flag}." for flag in result["flags"])]
        text += [_log_partition(replica) for replica in result["replicas"] if "prior_log_partition_upper" in replica]
        data = result["data"]
        for replica in result["replicas"]:
            bits = replica["bits_per_dim"]
            rows.append(
                (
                    f"{data['name']}/{data['variant']}", data["split"], f"{data['images']:,}",
                    f"{result['num_samples']:,}", str(replica["seed"]),
                    f"{replica['log_likelihood']:.2f} ± {replica['std_err']:.2f}", f"{replica['elbo']:.2f}",
                    f"{replica['rate']:.2f}", f"{replica['distortion']:.2f}", "-" if bits is None else f"{bits:.4f}",
                    f"{replica['effective_sample_size']:.1f}",
                )
            )  # fmt: skip
    heading = (
        "data", "split", "rows", "K", "seed", "log-likelihood ± s.e., nats", "ELBO", "rate", "distortion", "bits/dim",
        "effective samples",
    )  # fmt: skip
    return Part("Results", text, heading, rows)


def _log_partition(replica: Mapping[str, Any]) -> str:
    bounds = []
    for side, key in (("below", "prior_log_partition"), ("above", "prior_log_partition_upper")):
        bounds.append(f"from {side} as {replica[key]:.3f} ± {replica[f'{key}_std_err']:.3f}")
    return f"Seed {replica['seed']}: log Z of the prior is estimated {' and '.join(bounds)} nats."


def _graph(run: TrainedRun, found: Sequence[Drawn], results: Sequence[Mapping[str, Any]], replica: int) -> Part:
    """The pictures, and what each edge is worth where `tfstruct-evaluate --edges` has measured it."""
    effects = next(
        (
            result["replicas"][replica]["edge_effects"]
            for result in results
            if "edge_effects" in result["replicas"][replica]
        ),
        None,
    )
    if effects is None:
        is_learned = getattr(run.config.model, "structure", None) == "learned"
        advice = "tfstruct-evaluate --edges measures what each edge is worth."
        return Part("Graph", [advice if is_learned else "The graph was given and not learned."], figures=found)
    rows = [
        (
            f"z{edge['parent'] + 1} -> z{edge['child'] + 1}",
            "open" if edge["is_open"] else "closed",
            f"{edge['change']:.3f} ± {edge['std_err']:.3f}",
        )
        for edge in effects["edges"]
    ]
    for name, key in (("all open", "all_open"), ("all closed", "all_closed")):
        rows.append((name, "", f"{effects[key]['change']:.3f} ± {effects[key]['std_err']:.3f}"))
    text = [
        "What changes in the log-likelihood when one edge is flipped and all else stays: below zero, the edge is "
        f"right. {effects['images']:,} rows, K={effects['num_samples']:,}."
    ]
    return Part("Graph", text, ("edge", "now", "change when flipped, nats ± s.e."), rows, found)


def _inpainting(run: TrainedRun, options: Options) -> Part:
    """Test rows of which most pixels are missing, and what is drawn there."""
    shown = pictures.intensities(run.model, run.data)
    rows = np.asarray(run.data.test[:_INPAINTED], np.float32)
    size = rows.shape[1:3]
    kept = random.numpy_uniform(random.key(options.seed), size) < _OBSERVED
    observed = np.broadcast_to(kept.reshape(*size, *[1] * (rows.ndim - 3)), rows.shape)
    found = run.model.inpaint(
        tf.constant(rows), tf.constant(observed), seed=random.key(options.seed), num_samples=options.num_samples
    )
    means = found["x_mean"].numpy()
    figure = plotting.draw_reconstructions(shown(rows), shown(means), names=("original", "inpainted"))
    caption = f"Test rows, and below each its completion from {_OBSERVED:.0%} of its pixels: the mean of p(x | z)."
    return Part("Inpainting", figures=[Drawn(figure, caption, "png")])


def _latents(run: TrainedRun, options: Options) -> Iterator[Part]:
    """Active units, and a map of the rows."""
    rows = _test_rows(run, options)
    encode = tf.function(lambda x: run.model.encode(x)["z_mean"], autograph=False)
    means = np.concatenate(
        [encode(tf.constant(rows[place : place + _BATCH], tf.float32)) for place in range(0, len(rows), _BATCH)]
    )
    if len(means) < 2 or not np.isfinite(means).all():
        return
    variances = means.var(axis=0)
    active = int(np.sum(variances > ACTIVE_VARIANCE))
    text = [
        f"{active} of {len(variances)} latents are active: their posterior means vary over {len(rows):,} test rows by "
        f"more than {ACTIVE_VARIANCE} (Burda et al., 2016)."
    ]
    figures = [
        Drawn(
            plotting.draw_active_units(variances, ACTIVE_VARIANCE),
            "Variance of the posterior mean of each latent over the rows, from the largest.",
        )
    ]
    if means.shape[1] >= 2:
        if run.data.name == "mnist" and len(rows) <= len(labels := mnist.read("test", "labels")):
            colors, title = foreign.spread(labels, options.rows).astype(np.int64), "digit"
        else:
            colors, title = rows.reshape(len(rows), -1).mean(axis=1), "mean of x"
        figures.append(
            Drawn(
                plotting.draw_latent_map(means, colors, title=title),
                f"Posterior means of {len(rows):,} test rows along their two main directions, coloured by {title}.",
            )
        )
    yield Part("Latents", text, figures=figures)


def _is_image(run: TrainedRun) -> bool:
    shape = run.model.event_shape
    return len(shape) == 2 or (len(shape) == 3 and shape[-1] == 3)


def _test_rows(run: TrainedRun, options: Options) -> np.ndarray:
    return foreign.spread(run.data.test, options.rows)


def _scores(run: TrainedRun, options: Options) -> Part:
    """Scores of test rows, and of rows of other data."""
    rows = {f"{run.data.name}, test": _test_rows(run, options)}
    variant = _VARIANTS.get(run.data.support) if run.data.variant == "none" else run.data.variant
    count = len(rows[next(iter(rows))])
    if variant is not None and _is_image(run):
        for name in options.foreign:
            rows[name] = foreign.rows(name, variant, run.model.event_shape, count=count, data_dir=options.data_dir)
    settings = run.config.training.validation  # its annealing is the cheaper one
    scorer = HeldOutScorer(
        run.model,
        num_samples=options.num_samples,
        batch_size=min(_BATCH, *(len(part) for part in rows.values())),
        chunk=min(run.config.evaluation.chunk, options.num_samples),
        compiler=resolve_compiler(run.config),
        terms_options=run.model.terms_options(settings),
    )
    parameters = run.weights.parameters[options.replica]
    statistics, _ = scorer.prepare(parameters, run.weights.statistics[options.replica], settings, seed=options.seed)
    scores = {}
    for name, part in rows.items():
        with progress.watched(part, f"scoring {name}") as watched:
            scores[name] = scorer(parameters, statistics, watched, seed=options.seed).log_prob
    normal, *others = scores.items()
    table = [(normal[0], _mean(normal[1]), *[""][: len(others)])]
    for name, values in others:
        found = detection.auroc(normal[1], values)
        table.append((name, _mean(values), f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"))
    text = [
        f"log p(x) of {len(rows[normal[0]]):,} rows of each set, spread over all of it, K={options.num_samples}. The "
        "results above may be of other rows and another K."
    ]
    if options.foreign and not others:
        text.append(f"No other data stand beside it: {', '.join(options.foreign)} are images of another kind.")
    caption = "How log p(x) is spread over test rows"
    caption += " and over rows of data that the model has not seen" if others else ""
    heading = ("rows", "mean ± s.e., nats", *["told from test rows: AUROC (95 % interval)"][: len(others)])
    return Part("Scores", text, heading, table, [Drawn(plotting.draw_scores(scores), f"{caption}.")])


def _mean(values: np.ndarray) -> str:
    mean, error = mean_and_std_err(values)
    return f"{mean:.2f} ± {error:.2f}"

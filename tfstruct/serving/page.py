"""The page of a bundle's card for people: MODEL_CARD.md."""

from collections.abc import Iterator, Sequence
from typing import Any

from tfstruct import markdown
from tfstruct.data import support
from tfstruct.serving.anomaly import MEANING


def to_markdown(card: dict[str, Any]) -> str:
    """Returns the page of a card for people, MODEL_CARD.md; it has nothing that the card has not."""
    return "\n".join(
        line for section in (_what, _how_well, _answers, _anomalies, _uses, _data, _made) for line in section(card)
    )


def _what(card: dict[str, Any]) -> Iterator[str]:
    yield from (f"# {card['preset'] or card['system']}", "", *([card["about"], ""] if card.get("about") else []))
    yield from markdown.table(
        ("", ""),
        [
            ("model of", card["target"]),
            ("an observation", f"{_shape(card['event_shape'])}, {support.MEANING[card['support']]}"),
            ("likelihood", card["likelihood"]),
            ("trained weights", f"{card['num_parameters']:,}, stored as {card['weights_dtype']}"),
            ("importance samples of a score", f"{card['num_samples']}"),
            ("licence", card["license"]),
        ],
    )
    yield ""


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
    yield from markdown.table(
        ("signature", "inputs", "outputs", "answer"),
        [
            (f"`{name}`", *(_tensors(signature[side]) for side in ("inputs", "outputs")), exactness.get(name, ""))
            for name, signature in sorted(card["signatures"].items())
        ],
    )
    flop = card.get("flop_of_score")
    counted = "" if flop is None else f", some {flop / 1e6:.3g} million floating-point operations"
    yield from (
        "",
        f"A score takes the encoder once and the decoder {card['num_samples']} times for each row{counted}.",
        "",
    )


def _anomalies(card: dict[str, Any]) -> Iterator[str]:
    calibration = card.get("calibration")
    if calibration is None:
        return
    data, test = calibration["data"], calibration["test"]
    yield from ("## Anomalies", "")
    yield (
        f"`anomaly` compares with {calibration['rows']:,} {data['split']} rows of {data['name']}/{data['variant']}, "
        "which were not trained on: `p_value` is the part of normal rows that are as unusual, by the least p-value of "
        f"{len(calibration['scores'])} scores. `is_anomaly` is `p_value` <= alpha."
    )
    yield ""
    background = calibration["background"]
    yield from markdown.table(
        ("score", "low where unusual; nats"),
        [
            (name, MEANING[name] + (f" ({background['preset']})" if name == "background" and background else ""))
            for name in calibration["scores"]
        ],
    )
    yield ""
    if test is None:
        return
    about = test["data"]
    yield from (f"Of {test['rows']:,} normal rows ({about['split']}, {about['name']}/{about['variant']}):", "")
    alphas = list(next(iter(test["false_alarms"].values())))
    yield from markdown.table(
        ("score", *(f"false alarms at alpha = {alpha}" for alpha in alphas)),
        [(name, *(_interval(rates[alpha]) for alpha in alphas)) for name, rates in test["false_alarms"].items()],
    )
    yield ""
    for title, pick in (
        ("Area under the ROC curve against", lambda values: values["auroc"]),
        ("Average precision against", lambda values: values["average_precision"]),
        (f"Part found at alpha = {alphas[-1]} of", lambda values: values["detected"][alphas[-1]]),
    ):
        names = list(calibration["foreign"])
        if names:
            scores = calibration["foreign"][names[0]]["scores"]
            rows = [
                (score, *(_interval(pick(calibration["foreign"][name]["scores"][score])) for name in names))
                for score in scores
            ]
            labels = [f"{name} ({calibration['foreign'][name]['rows']:,})" for name in names]
            yield from (*markdown.table((title, *labels), rows), "")
    yield from ("In brackets 95 % intervals; `p_value` is what decides.", "")


def _calibrated(card: dict[str, Any]) -> list[str]:
    """The command that calibrated the bundle, in the words of its recipe."""
    calibration = card.get("calibration")
    if calibration is None:
        return []
    program, *flags = calibration["environment"]["command"]
    kept = [flag for flag in flags if not flag.startswith(("--model=", "--output=", "--background=", "--data_dir="))]
    background = ["--background=BACKGROUND"] if calibration["background"] else []
    commit = calibration["environment"].get("commit")
    named = [f"{program} --model=BUNDLE --output=CALIBRATED", *background, *kept]
    lines = [*([f"git checkout {commit}"] if commit else []), " ".join(named)]
    return [*lines, *(f"# BACKGROUND: {line}" for line in (calibration["background"] or {}).get("recipe", []))]


def _interval(values: Sequence[float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*values)


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
    recipe = [*card["recipe"], *_calibrated(card)]
    yield from (*(f"    {line}" for line in recipe), *([""] if recipe else []))
    exported = card.get("exported", {})
    versions = ", ".join(f"{name} {version}" for name, version in exported.get("versions", {}).items())
    yield from (f"Written {card.get('created', 'at an unknown time')} with {versions or 'unknown versions'}.", "")
    references = card.get("references", [])
    if references:
        yield from ("## References", "", *(f"* {reference}" for reference in references), "")


def _tensors(specs: dict[str, Any]) -> str:
    return ", ".join(f"`{name}` {_shape(spec['shape'])}" for name, spec in specs.items())


def _shape(sizes: Sequence[int]) -> str:
    return f"[{', '.join('N' if size < 0 else str(size) for size in sizes)}]"


def _nats(value: float, error: float | None) -> str:
    return f"{value:.2f}" + ("" if error is None else f" +- {error:.2f}") + " nats"

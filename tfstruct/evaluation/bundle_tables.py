"""Tables of the bundles in a folder, by their cards."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tfstruct.files import read_json
from tfstruct.markdown import table


def _newest(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields the name and the card of the newest version of every bundle `<system>/<name>/<version>` under a folder."""
    found: dict[Path, Path] = {}
    cards = [card for card in folder.glob("*/*/*/card.json") if card.parent.name.isdecimal()]
    for card in sorted(cards, key=lambda path: int(path.parent.name)):
        found[card.parents[1]] = card
    for place, card in sorted(found.items()):
        yield str(place.relative_to(folder)), card


def scores(folder: Path) -> str:
    """Returns a table of the newest bundles under a folder with what they score, by their cards."""
    lines = []
    for name, path in _newest(folder):
        card = read_json(path)
        metrics, data = card["metrics"], card["data"]
        size = sum(part.stat().st_size for part in path.parent.rglob("*") if part.is_file())
        scored, num_samples = "not evaluated", "-"
        if metrics is not None:
            flagged = " (flagged)" if metrics["flags"] else ""
            scored = f"{card['target']} {metrics['log_likelihood']:.2f} ({metrics['std_err']:.2f}){flagged}"
            temperatures = metrics.get("settings", {}).get("posterior_temperatures")
            num_samples = str(metrics["num_samples"]) + (f", {temperatures} temperatures" if temperatures else "")
        lines.append(
            (
                f"`{name}`",
                f"`{card['preset']}`",
                f"{data['name']}/{data['variant']}",
                scored,
                num_samples,
                f"{size / 2**20:.1f}",
            )
        )
    return "\n".join(table(["name", "preset", "test images", "nats an image", "K", "MB"], lines))


def anomalies(folder: Path) -> str:
    """Returns a table of how well the newest bundles under a folder find foreign data: areas under ROC curves."""
    calibrated = {name: read_json(path).get("calibration") for name, path in _newest(folder)}
    known = {name: calibration for name, calibration in calibrated.items() if calibration and calibration["foreign"]}
    others = sorted({other for calibration in known.values() for other in calibration["foreign"]})
    lines = []
    for name, calibration in known.items():
        alarms = calibration["test"]["false_alarms"]["p_value"]["0.05"]
        areas = []
        for other in others:
            found = calibration["foreign"].get(other, {}).get("scores", {})
            shown = [found[score]["auroc"][0] for score in ("likelihood", "p_value") if score in found]
            areas.append(" / ".join(f"{area:.3f}" for area in shown) or "-")
        lines.append((f"`{name}`", "{:.3f} [{:.3f}, {:.3f}]".format(*alarms), *areas))
    return "\n".join(table(["name", "false alarms at 0.05", *others], lines))


#: by the name that README's markers have
TABLES: dict[str, Callable[[Path], str]] = {"saved_models": scores, "anomalies": anomalies}

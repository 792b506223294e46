"""Tables of bundles by their cards."""

import json

from tfstruct.evaluation import bundle_tables


def write(folder, name, calibration=None):
    path = folder / name
    path.mkdir(parents=True)
    card = {"preset": "p", "target": "log p(x)", "metrics": None, "data": {"name": "mnist", "variant": "grey"}}
    (path / "card.json").write_text(json.dumps(card | ({"calibration": calibration} if calibration else {})))


def calibration(**areas):
    return {
        "test": {"false_alarms": {"p_value": {"0.05": [0.0512, 0.04, 0.0625]}}},
        "foreign": {
            name: {"scores": {"likelihood": {"auroc": [low, 0, 1]}, "p_value": {"auroc": [high, 0, 1]}}}
            for name, (low, high) in areas.items()
        },
    }


def test_the_newest_version_of_each_calibrated_bundle_has_a_row(tmp_path):
    write(tmp_path, "a/one/9", calibration(noise=(0.1, 0.2)))
    write(tmp_path, "a/one/10", calibration(noise=(0.5, 0.98765)))
    write(tmp_path, "b/two/1", calibration(letters=(0.25, 1.0)))
    write(tmp_path, "b/never/1")
    write(tmp_path, "b/two/draft", calibration(other=(0.0, 0.0)))
    assert bundle_tables.anomalies(tmp_path).splitlines() == [
        "| name | false alarms at 0.05 | letters | noise |",
        "| --- | --- | --- | --- |",
        "| `a/one` | 0.051 [0.040, 0.062] | - | 0.500 / 0.988 |",
        "| `b/two` | 0.051 [0.040, 0.062] | 0.250 / 1.000 | - |",
    ]
    names = [line.split("|")[1].strip() for line in bundle_tables.scores(tmp_path).splitlines()[2:]]
    assert names == ["`a/one`", "`b/never`", "`b/two`"]

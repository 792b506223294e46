"""The table of presets: what it shows of each, and which it shows."""

import json

import numpy as np
import pytest

from tfstruct.evaluation import preset_table, results
from tfstruct.models.tables import TABLES


def test_a_filter_shows_presets_by_name_or_description_in_any_case():
    names = [line.split()[0] for line in preset_table.lines("GRAPH_vae/mnist", {})[1:] if not line.startswith("*")]
    assert "graph_vae/mnist" in names
    assert all("graph_vae/mnist" in name for name in names)


def test_a_preset_says_whether_its_data_come_with_the_package_and_which_bundle_it_made():
    heading, line, note, description = preset_table.lines(
        "boltzmann_vae/mnist_100_tuned", {"boltzmann_vae/mnist_100_tuned": "b/m"}
    )
    assert heading.split() == ["preset", "data", "steps", "best", "result", "pretrained"]
    assert line.split()[1:4] == ["binarized_mnist", "*", "300,000"]
    assert line.endswith("  b/m")
    assert note.startswith("* does not come with this package")
    assert description
    assert not any("*" in line for line in preset_table.lines("boltzmann_vae/tiny", {}))


def test_an_unknown_preset_is_refused_with_near_names():
    with pytest.raises(ValueError, match="unknown preset 'graph_vae/mnits'; did you mean graph_vae/mnist"):
        preset_table.lines("graph_vae/mnits", {})


def test_the_best_result_is_that_of_the_committed_files(tmp_path):
    best = preset_table.best_results(preset_table.RESULTS)
    table = TABLES["graph_vae/table1"]
    found = results.read(preset_table.RESULTS, table).document["rows"]["mnist-ladder_vae"]
    assert not found["overrides"]
    assert best[found["preset"]] == f"{found['summary']['log_likelihood']['mean']:.2f} nats"
    document = json.loads((preset_table.RESULTS / "graph_vae/table1.json").read_text())
    (tmp_path / "graph_vae").mkdir()
    scores = dict(np.load(preset_table.RESULTS / "graph_vae/table1.npz"))
    np.savez(tmp_path / "graph_vae/table1.npz", **scores)
    for change, expected in ((["training.steps=5"], None), ([], -1.25)):
        document["rows"]["mnist-ladder_vae"]["overrides"] = change
        document["rows"]["mnist-ladder_vae"]["summary"]["log_likelihood"]["mean"] = -1.25
        (tmp_path / "graph_vae/table1.json").write_text(json.dumps(document))
        changed = preset_table.best_results(tmp_path).get(found["preset"])
        assert changed == (None if expected is None else "-1.25 nats")
    assert preset_table.best_results(tmp_path / "none") == {}

"""The committed results are what their scores say, and the documents are what the results say."""

import pathlib
import re
import warnings

import numpy as np
import pytest

from tfstruct import files
from tfstruct.evaluation import documents, sections
from tfstruct.evaluation import results as results_lib
from tfstruct.models import tables

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / "results"
FILLED = [name for name in tables.TABLES if (RESULTS / f"{name}.json").exists()]


def read(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return results_lib.read(RESULTS, tables.TABLES[name])


@pytest.mark.parametrize("name", FILLED)
def test_results_follow_from_the_scores_of_images(name):
    found = read(name)
    assert files.to_json(results_lib.merge(tables.TABLES[name], found, []).document) == files.to_json(found.document)
    for row, entry in found.document["rows"].items():
        for seed, run in entry["seeds"].items():
            scores = found.scores[f"{row}/{seed}"]
            assert len(scores) == run["evaluation"]["data"]["images"]
            assert run["log_likelihood"] == pytest.approx(scores.mean(dtype=np.float64), rel=1e-6)
            elbos = found.scores.get(f"{row}/{seed}/elbo")
            assert elbos is None or run["elbo"] == pytest.approx(elbos.mean(dtype=np.float64), rel=1e-6)
            assert run["elbo"] == pytest.approx(-run["rate"] - run["distortion"], rel=1e-6)


def test_a_run_that_stands_in_two_tables_has_the_same_numbers_in_both():
    seen = {}
    for name in FILLED:
        for entry in read(name).document["rows"].values():
            for run in entry["seeds"].values():
                evaluation = run["evaluation"]
                about = (run["training"]["config_sha256"], run["seed"], evaluation["data"], evaluation["num_samples"])
                own = {
                    key: value for key, value in run.items() if key not in ("training", "evaluation", "edge_effects")
                }
                assert seen.setdefault(str(about), own) == own


def test_every_file_of_results_belongs_to_a_table_or_is_a_benchmark_of_the_documents():
    stems = {str(path.relative_to(RESULTS).with_suffix("")) for path in RESULTS.rglob("*") if path.is_file()}
    page = (CHECKOUT / "docs/benchmarks.md").read_text(encoding="utf-8")
    shown = {f"benchmarks/{name}" for name in re.findall(r"<!-- generated: benchmarks/(\w+) -->", page)}
    assert stems <= {*FILLED, *shown, "FINDINGS"}


def test_documents_are_written_from_the_results():
    named = [tables.TABLES[name] for name in tables.TABLES if name != tables.TESTS]
    results = {table.name: read(table.name) for table in named}
    assert documents.findings(named, results) == (RESULTS / "FINDINGS.md").read_text(encoding="utf-8")
    assert documents.all_results(named, results) == (CHECKOUT / "docs/results.md").read_text(encoding="utf-8")
    pages = sections.pages(CHECKOUT)
    assert len(pages) >= 9
    for page in pages:
        text = page.read_text(encoding="utf-8")
        new = sections.filled(text, lambda name: sections.section(name, results, CHECKOUT))
        assert new == text, f"{page} is old: run tfstruct-reproduce --write_docs"
        assert text.count("<!-- generated:") == text.count("<!-- end of generated -->")


def test_every_bundle_of_the_checkout_stands_among_the_pretrained_models_with_its_score():
    page = (CHECKOUT / "docs/pretrained.md").read_text(encoding="utf-8")
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    cards = {path: files.read_json(path) for path in (CHECKOUT / "saved_models").glob("*/*/*/card.json")}
    assert len(cards) >= 2
    for path, card in cards.items():
        assert f"`{card['preset']}` |" in page
        assert f" {card['metrics']['log_likelihood']:.2f} (" in page
        assert f"`{path.parents[2].name}/{path.parents[1].name}`" in readme

import dataclasses

import pytest

from tests.evaluation.made_up_runs import EDGES, TABLE
from tests.evaluation.test_results import fill
from tfstruct.evaluation import documents
from tfstruct.evaluation import results as results_lib
from tfstruct.models.tables import Published

ROW = next(row for row in TABLE.rows if row.title == "fine-tuned")


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filled")
    return fill(folder / "results", folder / "runs")


def test_a_table_shows_every_row_beside_the_papers_numbers(filled):
    text = documents.table_to_markdown(TABLE, filled)
    lines = text.splitlines()
    assert lines[0] == "**A**"
    assert lines[2] == "| model | log-likelihood, nats | ELBO, nats | seeds | steps | published |"
    mean = filled.document["rows"]["graph"]["summary"]["log_likelihood"]["mean"]
    (graph,) = [line for line in lines if line.startswith("| Graph VAE |")]
    assert graph.startswith(f"| Graph VAE | {mean:.2f} +- 0.2")
    assert graph.endswith("| 3 | 100 | - |")
    (tuned,) = [line for line in lines if line.startswith("| fine-tuned (flagged)")]
    assert tuned.endswith("| 3 | 50 of 2,000 | log-likelihood -80.50 +- 0.25 |")
    assert '<details markdown="1"><summary>2 of 4 rows are not run yet</summary>' in lines
    assert lines[lines.index("**B**") :][2:5] == [
        "| model | steps | published |",
        "| --- | --- | --- |",
        "| unrun | 200 | ELBO -99.00 |",
    ]
    assert "The commit of" not in text
    assert "mnist/dynamic test, 40 images, K=5. Trained in 6.0 hours on CPU cores." in text
    assert "tfstruct-reproduce --table=graph_vae/made_up" in text
    assert "* fine-tuned: loose" in lines
    assert "Not run for want of data: no network." in text


def test_the_papers_numbers_stand_beside_what_was_measured(filled):
    text = documents.all_results([TABLE], {TABLE.name: filled})
    assert "Of 2 rows with a number in a paper 1 were run; " in text
    (line,) = [line for line in text.splitlines() if "| fine-tuned |" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    found = filled.document["rows"][ROW.name]["summary"]["log_likelihood"]
    mean, error = found["mean"], found["std_err_over_images"]
    assert cells[:5] == ["`graph_vae/made_up`", "A", "fine-tuned", "log-likelihood, nats", "-80.50 +- 0.25"]
    assert cells[5].startswith(f"{mean:.2f} +- ")
    assert cells[6] == "3"
    close = "no, by less than two s.e. over images"
    for number, count, answer in (
        (mean - 0.001, 1, "yes"),
        (mean + 0.001, 0, close),
        (mean + 1.9 * error, 0, close),
        (mean + 2.1 * error, 0, "no"),
    ):
        row = dataclasses.replace(ROW, published={"log_likelihood": Published(number)})
        rows = tuple(row if other is ROW else other for other in TABLE.rows)
        text = documents.all_results([dataclasses.replace(TABLE, rows=rows)], {TABLE.name: filled})
        assert f"1 were run; {count} reach it" in text
        assert f"| 3 | {answer} |" in text, number


def test_rates_show_their_upper_quantile_and_bits_stand_where_they_are_asked_for(filled):
    with_rate = dataclasses.replace(TABLE, metrics=("log_likelihood", "rate", "bits_per_dim"))
    text = documents.table_to_markdown(with_rate, filled)
    assert "| 20.0 +- 0.0, 99 % below 41.0 |" in text
    assert "bits/dim" not in text
    assert "| 0.200 +- 0.000 |" in documents.table_to_markdown(
        dataclasses.replace(TABLE, metrics=("bits_per_dim", "elbo")), filled
    )


def test_replicas_share_the_hours_of_their_run(filled, tmp_path):
    together = fill(tmp_path / "results", tmp_path / "runs", per_run=3)
    assert "Trained in 2.0 hours" in documents.table_to_markdown(TABLE, together)


def test_a_brief_table_has_the_rows_that_were_run(filled):
    text = documents.table_to_markdown(TABLE, filled, is_brief=True)
    assert "Graph VAE" in text
    assert "unrun" not in text
    assert "**B**" not in text


def test_a_table_without_results_says_so():
    nothing = results_lib.Results({"rows": {}, "differences": []}, {})
    assert documents.table_to_markdown(TABLE, nothing, is_brief=True) == "Not run yet.\n"


@pytest.mark.parametrize(
    ("interval", "answer"),
    [
        ([0.1, 2.0], "yes"),
        ([-2.0, -0.1], "no, the opposite"),
        ([-0.1, 2.0], "not shown"),
        (None, "one seed: not decided"),
    ],
)
def test_a_claim_is_answered_by_its_interval(interval, answer):
    assert documents.answer({"interval": interval}) == answer


def test_findings_answer_the_claims_and_no_other_difference(filled):
    text = documents.findings([TABLE], {TABLE.name: filled})
    (line,) = [line for line in text.splitlines() if line.startswith("| Tuning helps.")]
    low, high = filled.document["differences"][0]["interval"]
    assert f"| {low:.2f} to {high:.2f} |" in line
    assert line.endswith("| 3 and 3 | yes |")
    assert text.count("3 and 3") == 1
    assert "claims whose models" not in text


def test_findings_name_the_claims_that_wait_for_models(tmp_path):
    waiting = fill(tmp_path / "results", tmp_path / "runs", names=("graph",))
    text = documents.findings([TABLE], {TABLE.name: waiting})
    assert "No claim has been tested yet." in text
    assert "<summary>1 claims whose models are not all trained and evaluated yet</summary>" in text
    assert "* Tuning helps." in text.splitlines()


def test_learned_graphs_say_how_many_edges_are_open_and_lost_commits_are_told(filled):
    rows = dict(filled.document["rows"])
    seeds = {
        seed: entry | {"open_edges": 2 + place, "possible_edges": 3, "training": entry["training"] | {"commit": None}}
        for place, (seed, entry) in enumerate(rows["graph"]["seeds"].items())
    }
    rows["graph"] = rows["graph"] | {"seeds": seeds}
    changed = filled._replace(document=filled.document | {"rows": rows})
    text = documents.table_to_markdown(TABLE, changed)
    assert "| Graph VAE, 2, 3, 4 of 3 edges open | " in text
    assert "The commit of 3 of these runs was not recorded when they were trained." in text
    fixed = rows["graph"] | {"config": rows["graph"]["config"] | {"model": {"structure": "full"}}}
    changed = filled._replace(document=filled.document | {"rows": rows | {"graph": fixed}})
    assert "edges open" not in documents.table_to_markdown(TABLE, changed)


def test_edges_of_learned_graphs_stand_in_tables_and_findings(tmp_path):
    row = TABLE.row("graph")
    asked = dataclasses.replace(row, evaluation=dataclasses.replace(row.evaluation, edges=True), seeds=(0,))
    table = dataclasses.replace(TABLE, rows=(asked,), differences=())
    filled = fill(tmp_path / "results", tmp_path / "runs", seeds=(0,), names=("graph",), table=table)
    line = (
        "* Graph VAE, seed 0: 1 of 2 open; flipping one alone is worse for 1, better for 0 (by more than two standard "
        "errors over images), by -1.500 +- 0.250 to +0.010 +- 0.020 nats; all open +0.010 +- 0.020, all closed "
        "-1.500 +- 0.250 nats (K=5, 40 images)"
    )
    assert line in documents.table_to_markdown(table, filled).splitlines()
    text = documents.findings([table], {table.name: filled})
    assert "No claim has been tested yet." in text
    assert line in text.splitlines()
    effects = EDGES | {"edges": [EDGES["edges"][0]] * 2}
    whole = {"0": filled.document["rows"]["graph"]["seeds"]["0"] | {"edge_effects": effects}}
    rows = {"graph": filled.document["rows"]["graph"] | {"seeds": whole}}
    text = documents.findings([table], {table.name: filled._replace(document=filled.document | {"rows": rows})})
    assert "seed 0: 2 of 2 open, which is the fully connected graph: nothing was pruned; flipping" in text


def test_evaluations_by_code_that_was_not_committed_are_told(filled):
    assert "not committed" not in documents.table_to_markdown(TABLE, filled)
    rows = dict(filled.document["rows"])
    entry = rows["graph"]["seeds"]["0"]
    seeds = rows["graph"]["seeds"] | {"0": entry | {"evaluation": entry["evaluation"] | {"commit": "abc-dirty"}}}
    changed = filled._replace(document=filled.document | {"rows": rows | {"graph": rows["graph"] | {"seeds": seeds}}})
    text = documents.table_to_markdown(TABLE, changed)
    assert "1 of 6 evaluations: by code with changes that were not committed." in text.splitlines()


def test_tables_that_are_figures_are_drawn_from_the_results(filled, tmp_path, monkeypatch):
    rows = tuple(
        dataclasses.replace(row, curve=("Graph VAE", place) if row.name != "absent" else None)
        for place, row in enumerate(TABLE.rows, 1)
    )
    figure = dataclasses.replace(TABLE, name="graph_vae/curves", rows=rows, axis="place")
    registry = {table.name: table for table in (TABLE, figure)}
    monkeypatch.setattr(documents.tables_lib, "TABLES", registry)
    fill(tmp_path / "results", tmp_path / "runs", table=figure)
    (path,) = documents.write_figures(tmp_path / "results", tmp_path / "figures")
    assert path == tmp_path / "figures/graph_vae-curves.png"
    assert path.stat().st_size > 10_000
    with pytest.raises(ValueError, match="graph_vae/made_up is no figure"):
        documents.write_figures(tmp_path / "results", tmp_path, [TABLE.name])
    with pytest.raises(ValueError, match="graph_vae/curves has no results yet in .*none"):
        documents.write_figures(tmp_path / "none", tmp_path, [figure.name])
    assert documents.write_figures(tmp_path / "none", tmp_path) == []

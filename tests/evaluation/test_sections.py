import pytest

from tests.evaluation.made_up_runs import TABLE
from tests.evaluation.test_results import fill
from tfstruct.evaluation import documents, sections
from tfstruct.models.config import Config
from tfstruct.models.presets import PRESETS
from tfstruct.models.registry import SYSTEMS


def test_marked_parts_of_a_document_are_written_anew_and_nothing_else():
    text = (
        "a\n<!-- generated: x/y -->\nold\n<!-- end of generated -->\nb\n<!-- generated: z -->\n"
        "<!-- end of generated -->\n"
    )
    found = sections.filled(text, lambda name: f"new {name}")
    assert found == (
        "a\n<!-- generated: x/y -->\n\nnew x/y\n\n<!-- end of generated -->\nb\n<!-- generated: z -->\n\nnew z\n\n"
        "<!-- end of generated -->\n"
    )
    assert sections.filled(found, lambda name: f"new {name}") == found


@pytest.mark.parametrize("missing", ["results", "documents"])
def test_documents_are_not_written_from_or_to_a_folder_that_is_not_there(tmp_path, missing):
    folders = {name: tmp_path / name for name in ("results", "documents")}
    for name, folder in folders.items():
        if name != missing:
            folder.mkdir()
    with pytest.raises(FileNotFoundError, match=f"there is no folder .*{missing}' of {missing}"):
        sections.write_all(folders["results"], folders["documents"])
    assert not folders[missing].exists()
    assert not any(any(folder.iterdir()) for folder in tmp_path.iterdir())


def test_an_unknown_section_is_refused_and_nothing_is_written(tmp_path):
    (tmp_path / "results").mkdir()
    page = tmp_path / "README.md"
    page.write_text("<!-- generated: settings/graph_vea -->\n<!-- end of generated -->\n")
    with pytest.raises(ValueError, match="unknown section 'settings/graph_vea'.*settings/graph_vae"):
        sections.write_all(tmp_path / "results", tmp_path)
    assert list(tmp_path.iterdir()) in ([page, tmp_path / "results"], [tmp_path / "results", page])
    assert not any((tmp_path / "results").iterdir())


def test_documents_of_all_folders_are_filled(tmp_path):
    (tmp_path / "results").mkdir()
    page = tmp_path / "docs/guides/data.md"
    page.parent.mkdir(parents=True)
    page.write_text("<!-- generated: data_sets -->\n<!-- end of generated -->\n")
    (tmp_path / "docs/plain.md").write_text("plain\n")
    assert page in sections.write_all(tmp_path / "results", tmp_path)
    assert "| `mnist` | `dynamic`, " in page.read_text()
    assert (tmp_path / "docs/plain.md").read_text() == "plain\n"


@pytest.mark.parametrize("system", SYSTEMS)
def test_settings_stand_in_one_of_two_tables_with_default_choices_and_range(system):
    config = SYSTEMS[system].config.parse({})
    own, common = sections.settings_table(config, Config()), sections.settings_table(Config(), None)
    for name, _ in config.items():
        if name not in ("preset", "system"):
            assert f"| `{name}` |" in own + common
    assert "| `optimizer.beta_1` | `0.9` | at least 0 and below 1; decay of the gradient's average |" in common
    assert "| `optimizer.beta_1` |" not in own
    assert "| `objective.gradient` | `'plain'` | plain or path; " in common


def test_descriptions_are_text_and_no_markdown():
    own = sections.settings_table(SYSTEMS["graph_vae"].config.parse({}), Config())
    (line,) = [line for line in own.splitlines() if "`model.adjacency`" in line]
    assert "&#91;child]&#91;parent]" in line


def test_a_setting_whose_default_a_system_changes_stands_in_its_own_table():
    own = sections.settings_table(SYSTEMS["boltzmann_vae"].config.parse({}), Config())
    assert "| `training.batch_size` | `100` | at least 1 |" in own


def test_the_flags_of_programs_are_those_that_they_declare(tmp_path):
    (tmp_path / "a_b.py").write_text(
        '_A = flags.DEFINE_string("model", None, "A [folder]" " or name.", required=True)\n'
        '_B = flags.DEFINE_enum("split", "test", ["train", "test"], "Rows.")\n'
    )
    (tmp_path / "entry.py").write_text('_C = flags.DEFINE_integer("port", 80, "All.", 1, 99)\n')
    (tmp_path / "no_program.py").write_text("x = 1\n")
    assert sections.flags(tmp_path).splitlines() == [
        "## tfstruct-a-b",
        "",
        "| flag | default | what it is |",
        "| --- | --- | --- |",
        "| `--model` | needed | A &#91;folder] or name. |",
        "| `--split` | `'test'` | train or test; Rows. |",
        "",
        "## Every program",
        "",
        "| flag | default | what it is |",
        "| --- | --- | --- |",
        "| `--port` | `80` | All. |",
    ]


def test_presets_and_analyses_of_a_system_are_listed():
    text = "".join(sections.presets_table(system) for system in SYSTEMS)
    assert all(f"| `{name}` |" in text for name in PRESETS if PRESETS[name].make().system in SYSTEMS)
    assert "| `spvae/mnist_discrete` | mnist/discrete | 20,000 | iwae, K=5 |" in text
    assert "`num_chains=200`" in sections.analyses_table("boltzmann_vae")


def test_the_summary_has_the_best_model_of_each_table(tmp_path, monkeypatch):
    results = fill(tmp_path / "results", tmp_path / "runs")
    monkeypatch.setattr(documents.tables_lib, "TABLES", {TABLE.name: TABLE})
    text = documents.summary({TABLE.name: results}, [TABLE.name])
    rows = results.document["rows"]
    group = TABLE.rows[0].group
    first = [row.name for row in TABLE.rows if row.group == group and row.name in rows]
    best = max(first, key=lambda name: rows[name]["summary"]["log_likelihood"]["mean"])
    assert f"| {TABLE.row(best).title}" in text
    assert f"{rows[best]['summary']['log_likelihood']['mean']:.2f} +- " in text
    nothing = results._replace(document={"rows": {}, "differences": []})
    assert "| `graph_vae/made_up` | not run yet | - | - | - | - |" in documents.summary(
        {TABLE.name: nothing}, [TABLE.name]
    )

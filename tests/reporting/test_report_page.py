"""Pages about runs: what they tell, that they need nothing else, and how a browser shows them."""

import base64
import html.parser
import io
import json
import re
import shutil

import numpy as np
import pytest
from matplotlib import image as pictures

from tests.reporting import browser
from tests.trainers import tiny
from tfstruct.evaluation import foreign, report
from tfstruct.reporting import parts
from tfstruct.training import run as training

SPVAE = (
    "model.likelihood=bernoulli", "model.delta=3", "training.steps=10", "training.steps_per_call=10",
    "training.validate_every=10", "training.validation_images=20", "training.batch_size=8", "training.compiler=graph",
    "evaluation.num_samples=5", "evaluation.chunk=5", "evaluation.batch_size=20",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two evaluated runs of one preset, of which one measured its edges, and one of a circuit, not evaluated."""
    folder = tmp_path_factory.mktemp("report")
    file = tiny.write_rows(folder / "rows.npz", event_shape=(6, 6))
    for name, seed in (("one", 0), ("two <b>&", 1)):
        training.train(tiny.file_config(file, f"training.seed={seed}", "optimizer.learning_rate=0.02"), folder / name)
        report.evaluate(report.TrainedRun(folder / name), edges=name == "one", edge_samples=3, edge_images=20)
    chosen = ["data.name=file", f"data.file={str(file)!r}", "data.variant=none"]
    training.train(tiny.presets.get("spvae/tiny", [*chosen, *SPVAE]), folder / "circuit")
    return folder


@pytest.fixture(scope="module")
def pages(folder):
    """What the program says of several calls, and the pages that it wrote."""
    few = ["--rows=30", "--num_samples=5"]
    two = [f"--workdir={folder / 'one'}", f"--workdir={folder / 'two <b>&'}"]
    calls = {
        "one": [two[0], f"--output={folder / 'one.html'}", *few],
        "both": [*two, f"--output={folder / 'both.html'}", *few],
        "circuit": [
            f"--workdir={folder / 'circuit'}",
            f"--output={folder / 'circuit.html'}",
            *few,
            "--foreign=constant",
        ],
        "mixed": [two[0], f"--workdir={folder / 'circuit'}", f"--output={folder / 'mixed.html'}", *few],
        "no page": [two[0], "--output=page.pdf"],
        "no set": [two[0], f"--output={folder / 'x.html'}", "--foreign=nois"],
        "twice": [two[0], two[0], f"--output={folder / 'x.html'}"],
        "no replica": [two[0], f"--output={folder / 'x.html'}", "--replica=3"],
    }
    return tiny.call_program("report", calls)


class Reader(html.parser.HTMLParser):
    """What stands on a page."""

    def __init__(self, text):
        super().__init__()
        self.images, self.ids, self.links, self.metas, self.cells, self.tags = [], [], [], [], [], []
        self._place = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        if tag == "img":
            self.images.append(found)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.links.append(found["href"])
        if tag == "meta":
            self.metas.append(found)
        self._place = tag

    def handle_data(self, data):
        if self._place in ("td", "th", "h2", "p", "figcaption", "title") and data.strip():
            self.cells.append(data.strip())


def _read(folder, name):
    return Reader((folder / f"{name}.html").read_text("utf-8"))


@pytest.mark.parametrize("name", ["one", "both", "circuit", "mixed"])
def test_a_page_needs_nothing_else(pages, folder, name):
    status, output, errors = pages[name]
    assert status == 0, errors
    assert output.strip().endswith(f"{name}.html")
    text, found = (folder / f"{name}.html").read_text("utf-8"), _read(folder, name)
    assert {"content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'"}.items() <= found.metas[1].items()
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert sorted(link.removeprefix("#") for link in found.links) == sorted(found.ids)
    assert found.images
    for each in found.images:
        assert each["alt"]
        kind, _, content = each["src"].partition(";base64,")
        content = base64.b64decode(content, validate=True)
        if kind == "data:image/png":
            assert pictures.imread(io.BytesIO(content)).ndim == 3
        else:
            assert kind == "data:image/svg+xml"
            assert b"<svg" in content


def test_a_page_tells_what_the_files_tell(pages, folder):
    found = _read(folder, "one")
    result = json.loads((folder / "one/evaluation.json").read_text())
    replica = result["replicas"][0]
    assert f"{replica['log_likelihood']:.2f} ± {replica['std_err']:.2f}" in found.cells
    assert "graph_vae/tiny" in found.cells
    edge = replica["edge_effects"]["edges"][0]
    assert f"{edge['change']:.3f} ± {edge['std_err']:.3f}" in found.cells
    for title in ("Run", "Results", "Training", "Graph", "Samples", "Latents", "Scores"):
        assert title in found.cells
    assert "Inpainting" not in found.cells
    assert any(re.fullmatch(r"\d\.\d{3} \(.* to .*\)", cell) for cell in found.cells)  # noise, told by its scores


def _stand_together(found, *cells):
    """Whether cells follow one another on a page."""
    return any(tuple(found.cells[place : place + len(cells)]) == cells for place in range(len(found.cells)))


def test_numbers_stand_where_their_headings_say(pages, folder):
    found = _read(folder, "one")
    replica = json.loads((folder / "one/evaluation.json").read_text())["replicas"][0]
    numbers = [f"{replica[name]:.2f}" for name in ("elbo", "rate", "distortion")]
    assert len(set(numbers)) == 3
    assert _stand_together(found, "ELBO", "rate", "distortion")
    assert _stand_together(found, *numbers)
    for edge in replica["edge_effects"]["edges"]:
        name = f"z{edge['parent'] + 1} -> z{edge['child'] + 1}"
        change = f"{edge['change']:.3f} ± {edge['std_err']:.3f}"
        assert _stand_together(found, name, "open" if edge["is_open"] else "closed", change)
    both = _read(folder, "both")
    result = json.loads((folder / "two <b>&/evaluation.json").read_text())
    own = result["replicas"][0]
    likelihood = f"{own['log_likelihood']:.2f} ± {own['std_err']:.2f}"
    assert _stand_together(both, f"{result['num_parameters']:,}", "1", likelihood, "-", f"{own['elbo']:.2f}")


def test_latents_and_scores_are_those_of_the_model(pages, folder):
    found = _read(folder, "one")
    run = report.TrainedRun(folder / "one")
    rows = foreign.spread(run.data.test, 30).astype(np.float32)
    active = int(np.sum(run.use(0).encode(rows)["z_mean"].numpy().var(axis=0) > 0.01))
    assert any(cell.startswith(f"{active} of 6 latents are active") for cell in found.cells)
    place = found.cells.index("noise")
    test, noise = (float(found.cells[at].partition(" ")[0]) for at in (place - 1, place + 1))
    assert noise < test  # noise is less probable, and told from test rows by that
    assert float(found.cells[place + 2].partition(" ")[0]) > 0.5


def test_both_sides_of_log_z_are_told(pages, folder, tmp_path):
    shutil.copytree(folder / "one", tmp_path / "run")
    path = tmp_path / "run/evaluation.json"
    result = json.loads(path.read_text())
    for name, value in (("prior_log_partition", 7.0), ("prior_log_partition_upper", 7.5)):
        result["replicas"][0] |= {name: value, f"{name}_std_err": value / 100}
    path.write_text(json.dumps(result))
    found = parts.of_run(report.TrainedRun(tmp_path / "run"), parts.Options())
    text = next(part for part in found if part.title == "Results").text
    expected = (
        "Seed 0: log Z of the prior is estimated from below as 7.000 ± 0.070 and from above as 7.500 ± 0.075 nats."
    )
    assert expected in text


def test_a_circuit_inpaints_and_is_shown_without_an_evaluation(pages, folder):
    found = _read(folder, "circuit")
    assert {"Inpainting", "Scores", "constant"} <= set(found.cells)
    assert any("validation rows" in each["alt"] for each in found.images)
    assert not {"Results", "Graph"} & set(found.cells)


def test_runs_are_compared_where_they_were_evaluated_alike(pages, folder):
    found = _read(folder, "both")
    scores = [np.load(folder / name / "evaluation_log_prob.npz")["log_prob"][0] for name in ("one", "two <b>&")]
    change = (scores[1] - scores[0]).astype(np.float64)
    assert f"{change.mean():.2f} ± {change.std(ddof=1) / np.sqrt(len(change)):.2f}" in found.cells
    assert "b" not in found.tags  # names are no HTML
    assert any(cell.startswith("Likelihoods do not compare: ") for cell in _read(folder, "mixed").cells)


def test_a_page_of_the_same_run_has_the_same_bytes(pages, folder, tmp_path):
    shutil.copy(folder / "one.html", tmp_path)
    again = [f"--workdir={folder / 'one'}", f"--output={folder / 'one.html'}", "--rows=30", "--num_samples=5"]
    assert tiny.call_program("report", {"again": again})["again"][0] == 0
    assert (folder / "one.html").read_bytes() == (tmp_path / "one.html").read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no page", "--output must end with .html, found page.pdf"),
        ("no set", "foreign data 'nois'"),
        ("twice", "a run was given twice"),
        ("no replica", "the run has replicas 0..0, found 3"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(pages, folder, name, message):
    status, _, errors = pages[name]
    assert status == 1
    assert message in errors
    assert not (folder / "x.html").exists()


@pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("is_dark", [False, True])
def test_a_browser_shows_all_of_it_on_a_phone_and_in_the_dark(pages, folder, tmp_path, width, is_dark):
    for name in ("both", "circuit"):
        found = browser.look(folder / f"{name}.html", tmp_path / name, width=width, is_dark=is_dark)
        assert found["images"] == len(_read(folder, name).images)
        assert (found["broken"], found["overflow"], found["errors"]) == (0, 0, [])
        assert found["background"] == ("rgb(23, 24, 26)" if is_dark else "rgb(255, 255, 255)")

"""The documentation is a site that is built without warnings and network, and says what the code has."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.trainers import tiny
from tfstruct.models import presets
from tfstruct.training import run as training

DOCS = tiny.CHECKOUT / "docs"
# What the page of a package need not list: internals of training, evaluation and serving have no page.
PACKAGES = sorted(
    str(path.parent.relative_to(tiny.CHECKOUT / "tfstruct"))
    for path in (tiny.CHECKOUT / "tfstruct").rglob("__init__.py")
    if path.parent != tiny.CHECKOUT / "tfstruct" and "models" not in path.parts[len(tiny.CHECKOUT.parts) :]
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    # A proxy at which nobody listens: whatever asks for the network fails.
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=tiny.CHECKOUT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_built_and_stands_in_the_navigation(site):
    pages = {path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md")}
    built = {page.relative_to(site).parent for page in site.rglob("index.html")}
    assert {page if page.name != "index" else page.parent for page in pages} <= built
    settings = (tiny.CHECKOUT / "mkdocs.yml").read_text()
    assert not [str(page) for page in pages if f": {page.as_posix()}.md\n" not in settings]


def test_pages_fetch_nothing_from_the_network(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe)[^>]* src="(https?:[^"]*)"', text)
        fetched += re.findall(r'<link[^>]* rel="(?:stylesheet|preconnect)"[^>]* href="(https?:[^"]*)"', text)
        assert not fetched, f"{page.relative_to(site)} fetches {fetched}"


def test_equations_are_mathml_and_none_is_left_as_tex(site):
    page = (site / "systems/graph_vae/index.html").read_text(encoding="utf-8")
    assert page.count('display="block"') >= 4
    assert "<mfrac>" in page
    for path in site.rglob("*.html"):
        assert 'class="arithmatex"' not in path.read_text(encoding="utf-8"), path
        assert "merror" not in path.read_text(encoding="utf-8"), path


def test_tables_between_details_are_tables(site):
    page = (site / "results/index.html").read_text(encoding="utf-8")
    folded = re.findall(r"<details>.*?</details>", page, re.S)
    assert len(folded) > 3
    assert all("<table>" in part and "| --- |" not in part for part in folded)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_its_place_in_the_api_reference(package):
    name = "layers" if package == "bijectors" else package.split("/")[0]
    page = (DOCS / f"api/{name}.md").read_text()
    stems = [path.stem for path in (tiny.CHECKOUT / "tfstruct" / package).glob("*.py") if path.stem != "__init__"]
    assert stems
    assert not [stem for stem in stems if f"::: tfstruct.{package.replace('/', '.')}.{stem}\n" not in page]


def test_the_api_reference_shows_members_with_their_signatures(site):
    page = (site / "api/distributions/index.html").read_text(encoding="utf-8")
    assert (
        'id="tfstruct.distributions.restricted_boltzmann_machine.RestrictedBoltzmannMachine.exact_log_partition"'
        in page
    )
    page = (site / "api/models/index.html").read_text(encoding="utf-8")
    assert 'id="tfstruct.models.system.System.terms"' in page


def test_examples_of_the_api_reference_are_code(site):
    pages = {path: path.read_text(encoding="utf-8") for path in (site / "api").rglob("index.html")}
    assert sum("&gt;&gt;&gt;" in page for page in pages.values()) > 3
    assert not [path for path, page in pages.items() if "<blockquote>" in page]


def test_the_readme_is_short_and_pictures_are_small():
    assert len((tiny.CHECKOUT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    pictures = [path for path in DOCS.rglob("*") if path.suffix in (".png", ".svg")]
    shown = "".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    assert pictures
    assert not [path.name for path in pictures if f"pictures/{path.name})" not in shown]
    assert sum(path.stat().st_size for path in pictures) < 4 * 2**20


@pytest.mark.slow
def test_the_pictures_are_drawn_by_the_command_beside_them(tmp_path):
    short = [f"training.{name}=4" for name in ("steps", "steps_per_call", "validate_every")]
    config = presets.get("graph_vae/tiny", [*short, "training.compiler=graph"])
    training.train(config, tmp_path / "run", strategy="none")
    command = [sys.executable, DOCS / "pictures/draw.py", f"--run={tmp_path / 'run'}", f"--output={tmp_path}"]
    subprocess.run(command, env=tiny.ENVIRONMENT, check=True, timeout=240)
    names = ("structure.svg", "gates.svg", "inpainting.png", "overview.png")
    assert all((tmp_path / name).stat().st_size > 5_000 for name in names)


def test_links_of_the_readme_lead_to_files():
    text = (tiny.CHECKOUT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert len(links) > 15
    assert not [link for link in links if not pathlib.Path(tiny.CHECKOUT, link).exists()]

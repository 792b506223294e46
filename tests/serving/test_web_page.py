"""The page of `tfstruct-serve` in a browser without a window."""

import os
import re
import shutil

import httpx
import numpy as np
import pytest

from tests.serving import live

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
WIDTHS = (360, 1280)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of a model of small images with regions, and of one of vectors."""
    models = live.export_all(tmp_path_factory.mktemp("page"), ["spvae", "vae"])
    arguments = [f"--models={name}={path.parent}" for name, path in models.items()]
    with live.Server(*arguments, "--poll_seconds=0", models=models) as started:
        yield started


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(params=WIDTHS)
def page(request, browser, server):
    """The page, opened; the browser may have nothing to complain of, and no request may go elsewhere."""
    context = browser.new_context(viewport={"width": request.param, "height": 800}, color_scheme="dark")
    opened, messages, urls = context.new_page(), [], []
    opened.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.on("request", lambda sent: urls.append(sent.url))
    opened.goto(f"http://{server.rest}/")
    wait(opened, "document.querySelector('#about').textContent !== ''")
    yield opened
    if folder := os.environ.get("TFSTRUCT_SCREENSHOTS"):
        opened.screenshot(path=f"{folder}/page_{request.param}.png", full_page=True)
    context.close()
    assert messages == []
    assert not [url for url in urls if not url.startswith((f"http://{server.rest}/", "data:"))]


def wait(page, condition):
    """Waits for a condition in JavaScript; the browser's own way needs `eval`, which the page may not have."""
    live.wait_for(lambda: page.evaluate(condition))


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_what_is_shown_is_what_the_interface_answers(page, server):
    page.click("#draws")
    wait(page, "!document.querySelector('#samples').hidden")
    page.fill("#seed", "7")
    page.mouse.click(*centre(page, "#draw"))
    page.click("#ask")
    wait(page, "document.querySelectorAll('figure').length === 2")
    shown = page.text_content("[data-name=log_prob]")
    x = page.evaluate("observation()")
    assert np.sum(x) > 0
    inputs = {"x": [x], "seed": [7]}
    content = {"signature_name": "log_prob", "inputs": inputs}
    found = httpx.post(f"http://{server.rest}/v1/models/spvae:predict", json=content).json()["outputs"]
    assert shown == f"{found['log_prob'][0]:.2f} ± {found['std_err'][0]:.2f} nats"
    assert found["bits_per_dim"] == ["NaN"]  # of a model exported without its data: not shown
    assert page.locator("[data-name=bits_per_dim]").count() == 0
    assert page.locator("figure").evaluate_all("figures => figures.map(figure => figure.dataset.name)") == [
        "reconstruction",
        "regions: red fits badly",
    ]
    assert page.text_content("#error") == ""
    assert overflow(page) <= 0


def centre(page, selector):
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_hidden_pixels_are_completed(page, server):
    page.check("#hiding")
    page.mouse.click(*centre(page, "#draw"))
    page.click("#ask")
    wait(page, "document.querySelectorAll('figure').length === 2")
    assert "visible pixels" in page.text_content("#numbers")
    observed = page.evaluate("rows(state.hidden.map((hidden) => !hidden))")
    assert not np.all(observed)
    inputs = {"x": [page.evaluate("observation()")], "observed": [observed], "seed": [0]}
    content = {"signature_name": "marginal_log_prob", "inputs": inputs}
    found = httpx.post(f"http://{server.rest}/v1/models/spvae:predict", json=content).json()["outputs"]
    assert page.text_content("[data-name=log_prob]") == f"{found['log_prob'][0]:.2f} ± {found['std_err'][0]:.2f} nats"
    assert overflow(page) <= 0


def test_a_model_that_the_page_cannot_show_is_said_to_be_one(page):
    page.select_option("#model", "vae")
    wait(page, "document.querySelector('#about').textContent.includes('cannot show it')")
    assert page.is_disabled("#ask")
    assert overflow(page) <= 0


def test_the_page_may_load_nothing_from_elsewhere(server):
    for path in ("/", "/page/page.css", "/page/page.js"):
        reply = httpx.get(f"http://{server.rest}{path}")
        assert reply.status_code == 200
        policy = dict(part.strip().split(" ", 1) for part in reply.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert "unsafe" not in reply.headers["Content-Security-Policy"]
        assert not re.search(r"https?://", reply.text)
    assert httpx.get(f"http://{server.rest}/page/../app.py").status_code == 404

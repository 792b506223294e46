"""Opens a page in headless Chromium, by its DevTools protocol over a pipe: no driver, no port."""

import contextlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
_MEASURE = """JSON.stringify({
  images: document.images.length,
  broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).length,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  background: getComputedStyle(document.body).backgroundColor,
})"""


@contextlib.contextmanager
def _started(profile):
    """A browser, as a function (method, parameters, session) to results and a list of events."""
    to_child, from_parent = os.pipe()
    to_parent, from_child = os.pipe()
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={profile}", "--remote-debugging-pipe",
    ]  # fmt: skip
    shell = f'exec "$@" 3<&{to_child} 4>&{from_child}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *command], pass_fds=(to_child, from_child), stderr=subprocess.DEVNULL
    )
    os.close(to_child)
    os.close(from_child)
    numbers, events, pending = itertools.count(1), [], bytearray()

    def receive():
        while b"\0" not in pending:
            found = os.read(to_parent, 65536)
            assert found, "the browser ended"
            pending.extend(found)
        message, _, rest = bytes(pending).partition(b"\0")
        pending[:] = rest
        return json.loads(message)

    def call(method, session=None, **parameters):
        number = next(numbers)
        message = {"id": number, "method": method, "params": parameters}
        os.write(from_parent, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (answer := receive()).get("id") != number:
            events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def wait(method):
        while not any(event["method"] == method for event in events):
            events.append(receive())

    try:
        yield call, wait, events
    finally:
        process.kill()
        process.wait()
        os.close(from_parent)
        os.close(to_parent)


def look(page, profile, *, width, is_dark):
    """What a browser finds on a page: counts of images, overflow in pixels, background, and messages of errors."""
    with _started(profile) as (call, wait, events):
        target = call("Target.createTarget", url="about:blank")["targetId"]
        session = call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            call(f"{domain}.enable", session)
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        call("Emulation.setDeviceMetricsOverride", session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        call("Emulation.setEmulatedMedia", session, features=[scheme])
        events.clear()
        call("Page.navigate", session, url=pathlib.Path(page).as_uri())
        wait("Page.loadEventFired")
        found = json.loads(call("Runtime.evaluate", session, expression=_MEASURE)["result"]["value"])
    errors = [event for event in events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    return found | {"errors": [json.dumps(event["params"]) for event in errors]}

"""Chromium and Firefox, driven alike: open a file, evaluate, click, and hear what a page complained of or asked of others."""

import json
import re
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
SIZE = {"width": 1280, "height": 1000}


def until(page, script, seconds=60):
    """Wait until an expression holds. A page's own policy may forbid it to evaluate text, but not the driver."""
    end = time.monotonic() + seconds
    while not page.evaluate(script):
        assert time.monotonic() < end, f"waited in vain for {script}"
        time.sleep(0.05)


def leaves(url):
    return not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "file:", "data:", "blob:", "about:"))


@contextmanager
def chromium(timeout=120_000):
    """A page of Chromium, through Playwright."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(timeout)
        page.errors, page.outside = [], []
        page.on("pageerror", lambda error: page.errors.append(error.stack or str(error)))
        page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: page.outside.append(asked.url) if leaves(asked.url) else None)
        page.click_at = lambda x, y: page.mouse.click(x, y)
        page.open = lambda path: page.goto(path.as_uri())
        yield page
        browser.close()


@contextmanager
def firefox(folder):
    """A page of Firefox, which is told by WebDriver BiDi what to do: it speaks it by itself."""
    if FIREFOX is None:
        pytest.skip("no Firefox here: apt-get install firefox-esr")
    websocket = pytest.importorskip("websocket", reason="websocket-client, which comes with Jupyter, is not installed")
    log = folder / "log"
    command = [FIREFOX, "--headless", "--no-remote", "--profile", folder, "--remote-debugging-port=0", "about:blank"]
    with log.open("w") as said:
        browser = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        end, address = time.monotonic() + 120, None
        while address is None and browser.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
            address = re.search(r"BiDi listening on (\S+)", log.read_text(errors="replace"))
        if address is None:
            pytest.fail(f"{FIREFOX} cannot be reached: {log.read_text(errors='replace')[-1000:]}")
        line = websocket.create_connection(f"{address[1]}/session", timeout=120, suppress_origin=True)
        yield _Firefox(line)
        line.close()
    finally:
        browser.terminate()
        browser.wait(30)


class _Firefox:
    def __init__(self, line):
        self.line, self.asked, self.errors, self.outside = line, 0, [], []
        self.do("session.new", capabilities={})
        self.tab = self.do("browsingContext.getTree")["contexts"][0]["context"]
        self.do("session.subscribe", events=["log.entryAdded", "network.beforeRequestSent"], contexts=[self.tab])
        self.do("browsingContext.setViewport", context=self.tab, viewport=SIZE)

    def do(self, method, **params):
        self.asked += 1
        self.line.send(json.dumps({"id": self.asked, "method": method, "params": params}))
        while (answer := json.loads(self.line.recv())).get("id") != self.asked:
            self._hear(answer.get("method"), answer.get("params", {}))
        assert answer["type"] == "success", answer
        return answer["result"]

    def _hear(self, what, said):
        if what == "log.entryAdded" and said["level"] == "error":
            self.errors.append(said["text"])
        if what == "network.beforeRequestSent" and leaves(said["request"]["url"]):
            self.outside.append(said["request"]["url"])

    def open(self, path):
        self.do("browsingContext.navigate", context=self.tab, url=path.as_uri(), wait="complete")

    def evaluate(self, script):
        """The value of an expression, as JSON holds it."""
        asked = f"Promise.resolve({script}).then(value => JSON.stringify(value ?? null))"
        said = self.do("script.evaluate", expression=asked, target={"context": self.tab}, awaitPromise=True)
        assert said["type"] == "success", said
        return json.loads(said["result"]["value"])

    def click_at(self, x, y):
        move = {"type": "pointerMove", "x": round(x), "y": round(y)}
        buttons = [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")]
        source = {"type": "pointer", "id": "mouse", "actions": [move, {"type": "pause", "duration": 100}, *buttons]}
        self.do("input.performActions", context=self.tab, actions=[source])

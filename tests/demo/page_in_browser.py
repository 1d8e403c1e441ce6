"""The page in a real browser: its server, the browser, and what one does there.

`SCA_SHOTS` names a folder for pictures of each state.
"""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest

from sca_hf.data.scenes import scenes


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PORT = 7869
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync")
SCENE = next(scenes("test", 1, 10))


class Server:
    """`sca-hf demo` in a process of its own."""

    def __init__(self, port, *models):
        self.url = f"http://127.0.0.1:{port}"
        self.command = [sys.executable, "-m", "sca_hf", "demo", "--port", str(port), "--device", "cpu", *models]

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        said = self.process.stdout.readline()
        assert said.startswith(f"the page is at {self.url}")
        urllib.request.urlopen(f"{self.url}/health", timeout=5).close()  # what is announced is there
        return self

    def stop(self, by=signal.SIGTERM):
        self.process.send_signal(by)
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def url(browser):
    with tempfile.TemporaryDirectory() as folder:
        from sca_hf.model_names import bundled_model

        other = shutil.copytree(bundled_model("sca-tiny"), Path(folder) / "the-other")
        server = Server(PORT, "--model", "sca-tiny", "--model", str(other)).start()
        yield server.url
        server.stop()


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


class Page:
    """The page with a picture in it."""

    def __init__(self, browser, url, width=1280, theme="light"):
        self.name = f"{width}-{theme}"
        self.errors = []
        self.phone = width < 500
        size = {"width": width, "height": 844 if self.phone else 900}
        self.tab = browser.new_page(viewport=size, has_touch=self.phone, is_mobile=self.phone)
        self.tab.set_default_timeout(30_000)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        local = (url, "data:", "blob:")
        self.tab.on("request", lambda sent: sent.url.startswith(local) or self.errors.append(f"asks {sent.url}"))
        self.tab.goto(f"{url}/?__theme={theme}", wait_until="domcontentloaded")
        self.tab.wait_for_selector(".sca[data-ready]")

    def open(self, picture=None):
        """Opens a file: the scene, where none is named."""
        with tempfile.TemporaryDirectory() as folder:
            if picture is None:
                picture = Path(folder) / "scene.png"
                SCENE.to_pil().save(picture)
            self.tab.set_input_files('[data-id="file"]', picture)
            self.said("Click on something.", "Ready to caption everything.")
        return self

    def said(self, *texts):
        """Waits until the status begins with one of these."""
        self.tab.wait_for_function(
            "texts => texts.some(text => document.querySelector('[data-id=status]').textContent.startsWith(text))",
            arg=texts,
        )

    def tap(self, x, y):
        """Clicks, or taps, on a pixel of the scene."""
        (self.tab.touchscreen.tap if self.phone else self.tab.mouse.click)(*self.at(x, y))

    def place(self, selector="canvas"):
        """Left, top, width and height of what is shown, in the page."""
        return self.tab.evaluate(
            "s => { const r = document.querySelector(s).getBoundingClientRect();"
            " return [r.x + scrollX, r.y + scrollY, r.width, r.height].map(Math.round) }",
            selector,
        )

    def at(self, x, y):
        """Where a pixel of the scene is in the window."""
        bounds = self.tab.locator("canvas").bounding_box()
        height, width = SCENE.labels.shape
        return bounds["x"] + bounds["width"] * x / width, bounds["y"] + bounds["height"] * y / height

    def drag(self, *places):
        self.tab.mouse.move(*self.at(*places[0]))
        self.tab.mouse.down()
        for place in places[1:]:
            self.tab.mouse.move(*self.at(*place), steps=4)
        self.tab.mouse.up()

    def captions(self, count):
        """The captions in the list, once there are so many and none is waited for."""
        self.tab.wait_for_function(
            "n => document.querySelectorAll('.regions .numbers').length === n"
            " && ![...document.querySelectorAll('.regions .caption')].some(c => c.textContent.endsWith('…'))",
            arg=count,
        )
        return self.tab.locator(".regions .caption").all_inner_texts()

    def shot(self, state):
        folder = os.environ.get("SCA_SHOTS")
        if folder:
            self.tab.screenshot(path=f"{folder}/{self.name}-{state}.png", full_page=True)

    def saved(self, button):
        with self.tab.expect_download() as download:
            self.tab.click(f'[data-act="{button}"]')
        return Path(download.value.path()).read_bytes()


def api(url, path, **request):
    buffer = io.BytesIO()
    SCENE.to_pil().save(buffer, "PNG")
    body = {"image": base64.b64encode(buffer.getvalue()).decode(), **request}
    call = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(call, timeout=300) as answer:
        return json.load(answer)["regions"]

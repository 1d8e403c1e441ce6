"""The page in a real browser: what people click, and what they read; the same captions as the HTTP interface gives.

`SCA_SHOTS` names a folder for pictures of each state.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from sca_hf.data.scenes import scenes
from sca_hf.processing.masks_sca import decode_rle


pytest.importorskip("gradio", reason="the extra demo is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]
PORT = 7869
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync")
SCENE = next(scenes("test", 1, 10))


@pytest.fixture(scope="module")
def url():
    command = [sys.executable, "-m", "sca_hf", "demo", "--port", str(PORT), "--device", "cpu"]
    server = subprocess.Popen([*command, "--model", "sca-tiny", "--model", str(other_model())])
    address = f"http://127.0.0.1:{PORT}"
    try:
        for _ in range(600):
            assert server.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(other_model().parent, ignore_errors=True)


def other_model() -> Path:
    """The bundled model under another name."""
    import tempfile

    from sca_hf.model_names import bundled_model

    folder = Path(tempfile.gettempdir()) / f"sca-page-{os.getpid()}" / "the-other"
    if not folder.exists():
        shutil.copytree(bundled_model(), folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


class Page:
    """The page with a picture in it."""

    def __init__(self, browser, url, width=1280, theme="light"):
        self.name = f"{width}-{theme}"
        self.errors = []
        self.tab = browser.new_page(viewport={"width": width, "height": 900}, has_touch=width < 500)
        self.tab.set_default_timeout(180_000)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.goto(f"{url}/?__theme={theme}", wait_until="domcontentloaded")
        self.tab.wait_for_selector(".sca[data-ready]")

    def open_example(self):
        self.tab.click(".examples button >> nth=0")
        self.tab.wait_for_selector("canvas:not([hidden])")
        return self

    def at(self, x, y):
        """Where a pixel of the scene is in the window."""
        self.tab.locator("canvas").scroll_into_view_if_needed()
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
    import io

    buffer = io.BytesIO()
    SCENE.to_pil().save(buffer, "PNG")
    body = {"image": base64.b64encode(buffer.getvalue()).decode(), **request}
    call = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(call, timeout=300) as answer:
        return json.load(answer)["regions"]


def test_points_boxes_and_brushes_give_what_the_interface_gives(browser, url):
    page = Page(browser, url).open_example()
    first, second, third = SCENE.objects[:3]
    page.tab.mouse.click(*page.at(*first.point))
    began = time.monotonic()
    page.captions(1)
    print(f"a click was answered in {time.monotonic() - began:.2f} s")
    page.tab.click('[data-tool="box"]')
    page.drag(second.box[:2], second.box[2:])
    page.captions(2)
    for corner in (second.box[:2], second.box[2:]):  # two clicks do what a drag does
        page.tab.mouse.click(*page.at(*corner))
    dragged, clicked = page.captions(3)[1:]
    assert dragged == clicked
    page.shot("boxes")
    page.tab.click('[data-tool="brush"]')
    x, y = third.point
    page.drag((x - 6, y), (x + 6, y), (x, y + 5))
    told = page.captions(4)
    page.shot("brush")
    kept = json.loads(page.saved("json"))
    assert [region["caption"] for region in kept] == told
    assert kept[0]["segmentation"]["size"] == list(SCENE.labels.shape)
    # The page asked in pixels of the window: what it was told is what the interface says of the same prompts.
    asked = [{"points": kept[0]["point_coords"]}, {"box": kept[1]["box_prompt"]}]
    answers = api(url, "/v1/caption", regions=asked)
    assert [answer["caption"] for answer in answers] == told[:2]
    assert [answer["mask"] for answer in answers] == [region["segmentation"] for region in kept[:2]]
    assert not page.errors


def test_refining_undoing_and_removing(browser, url):
    page = Page(browser, url).open_example()
    x, y = SCENE.objects[0].point
    page.tab.mouse.click(*page.at(x, y))
    (before,) = page.captions(1)
    page.tab.click('[data-tool="negative"]')
    page.tab.mouse.click(*page.at(4, 4))
    page.captions(1)
    assert len(json.loads(page.saved("json"))[0]["point_coords"]) == 2
    page.shot("refined")
    page.tab.click('[data-act="undo"]')
    assert page.captions(1) == [before]
    assert len(json.loads(page.saved("json"))[0]["point_coords"]) == 1
    page.tab.click('.regions [aria-label="Remove region 1"]')
    page.captions(0)
    page.tab.click('[data-act="undo"]')
    assert page.captions(1) == [before]
    page.tab.click('.regions [aria-label^="Mask 1 of region 1"]')
    assert page.tab.get_attribute('.regions [aria-label^="Mask 1 of region 1"]', "aria-pressed") == "true"
    page.tab.click('[data-act="clear"]')
    page.captions(0)
    assert not page.errors


def test_the_keyboard_is_enough(browser, url):
    page = Page(browser, url)
    page.tab.focus(".examples button >> nth=0")
    page.tab.keyboard.press("Enter")
    page.tab.wait_for_selector("canvas:not([hidden])")
    page.tab.focus("canvas")
    page.tab.keyboard.press("ArrowLeft")
    page.tab.keyboard.press("Enter")
    page.captions(1)
    page.shot("keyboard")
    page.tab.focus('[data-tool="point"]')
    page.tab.keyboard.press("ArrowRight")
    assert page.tab.get_attribute('[data-tool="negative"]', "aria-checked") == "true"
    page.tab.focus('[data-mode="prompt"]')
    page.tab.keyboard.press("ArrowRight")
    assert page.tab.get_attribute('[data-mode="anything"]', "aria-selected") == "true"
    unnamed = page.tab.evaluate(
        "() => [...document.querySelectorAll('.sca button, .sca select, .sca input, .sca canvas')].filter(e =>"
        " !e.textContent.trim() && !e.getAttribute('aria-label') && !(e.labels && e.labels.length))"
        ".map(e => e.outerHTML)"
    )
    assert unnamed == [] and not page.errors


def test_everything_is_captioned_listed_linked_and_saved(browser, url):
    page = Page(browser, url).open_example()
    page.tab.click('[data-mode="anything"]')
    page.tab.click('[data-id="run"]')
    expected = api(url, "/v1/anything")
    assert page.captions(len(expected)) == [region["caption"] for region in expected]
    records = json.loads(page.saved("json"))
    assert records == expected
    coco = json.loads(page.saved("coco"))
    assert [a["caption"] for a in coco["annotations"]] == [r["caption"] for r in expected]
    assert page.saved("png").startswith(b"\x89PNG")
    place = np.argwhere(decode_rle(expected[0]["segmentation"])).mean(0)[::-1]
    page.tab.mouse.move(*page.at(*place))
    page.tab.wait_for_selector('[data-id="bubble"]:not([hidden])')
    assert page.tab.inner_text('[data-id="bubble"]') == page.tab.inner_text(".regions .lit .caption")
    page.shot("anything")
    assert not page.errors


def test_another_model_and_other_options(browser, url):
    page = Page(browser, url).open_example()
    page.tab.mouse.click(*page.at(*SCENE.objects[0].point))
    before = page.captions(1)
    page.tab.select_option('[data-id="model"]', "the-other")
    page.tab.wait_for_function("() => document.querySelector('.facts dd').textContent === 'the-other'")
    assert page.captions(1) == before
    page.tab.click(".drawer summary")
    page.tab.select_option('[data-opt="task"]', "recognition")
    page.tab.wait_for_function(
        "text => document.querySelector('.regions .caption').textContent !== text", arg=before[0]
    )
    page.captions(1)
    page.shot("drawer")
    assert not page.errors


def test_a_broken_file_is_a_sentence(browser, url, tmp_path):
    page = Page(browser, url)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"nothing" * 9)
    page.tab.set_input_files('[data-id="file"]', tmp_path / "broken.png")
    page.tab.wait_for_selector(".error:not([hidden])")
    assert page.tab.inner_text(".error").startswith("This is not a picture that can be read")
    page.shot("error")
    SCENE.to_pil().save(tmp_path / "good.png")
    page.tab.set_input_files('[data-id="file"]', tmp_path / "good.png")
    page.tab.wait_for_selector("canvas:not([hidden])")
    assert page.tab.is_hidden(".error") and not page.errors


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_and_looks_right_in_every_state(browser, url, width, theme, tmp_path):
    page = Page(browser, url, width, theme)

    def seen(state):
        page.shot(state)
        assert page.tab.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
        small = "b => b.offsetHeight && b.offsetHeight < 30"
        assert not page.tab.evaluate(f"() => [...document.querySelectorAll('.sca button')].filter({small}).length")

    seen("1-start")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    page.tab.set_input_files('[data-id="file"]', tmp_path / "broken.png")
    page.tab.wait_for_selector(".error:not([hidden])")
    seen("2-error")
    page.open_example()
    for number, one in enumerate(SCENE.objects[:2], 1):
        page.tab.mouse.click(*page.at(*one.point))
        page.captions(number)
    seen("3-points")
    page.tab.click('[data-tool="box"]')
    page.drag(SCENE.objects[1].box[:2], SCENE.objects[1].box[2:])
    page.captions(3)
    seen("4-box")
    page.tab.click('[data-tool="brush"]')
    x, y = SCENE.objects[2].point
    page.drag((x - 6, y), (x + 6, y), (x, y + 5))
    page.captions(4)
    seen("5-brush")
    page.tab.click('[data-mode="anything"]')
    page.tab.click('[data-id="run"]')
    page.tab.wait_for_selector('[data-id="run"]:not([disabled])')
    page.tab.wait_for_selector(".regions .numbers")
    seen("6-anything")
    page.tab.hover(".regions .numbers >> nth=0")
    seen("7-hover")
    page.tab.click(".drawer summary")
    page.tab.select_option('[data-id="model"]', "the-other")
    page.tab.wait_for_function("() => document.querySelector('.facts dd').textContent === 'the-other'")
    seen("8-drawer-other-model")
    assert not page.errors

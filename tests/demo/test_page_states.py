"""The states of the page: waiting, cancelled, wrong, lost, small and dark, for a mouse, a finger and a keyboard.

`SCA_AXE` names the file axe.min.js of the npm package axe-core (`npm pack axe-core`), without which accessibility is
not checked.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from tests.demo.page_in_browser import PORT, SCENE, Page, Server, api


pytestmark = pytest.mark.slow


def test_an_error_goes_when_it_no_longer_holds(browser, url, tmp_path):
    page = Page(browser, url)
    error, modes = page.tab.locator(".error"), page.tab.locator("[data-mode]")
    top = page.place('[data-id="frame"]')
    modes.nth(1).click()
    page.tab.click('[data-id="run"]')
    assert "Choose a picture" in error.inner_text() and page.place('[data-id="frame"]') == top
    modes.nth(0).click()
    assert error.is_hidden()
    page.open()
    page.tab.click('[data-tool="negative"]')
    page.tap(*SCENE.objects[0].point)
    assert "Point at something first" in error.inner_text()
    page.tab.click('[data-tool="point"]')
    page.tap(*SCENE.objects[0].point)
    page.captions(1)
    assert error.is_hidden()
    (tmp_path / "broken.png").write_bytes(b"nothing")
    page.tab.set_input_files('[data-id="file"]', tmp_path / "broken.png")
    error.wait_for(state="visible")
    assert page.captions(1), "what was there before is still there"
    page.tab.click(".error [aria-label=Close]")
    assert error.is_hidden() and not page.errors


def test_an_upload_is_seen_at_once_and_can_be_clicked_on(browser, url):
    page = Page(browser, url)
    page.tab.evaluate(
        "() => { const fetched = fetch; window.fetch = async (...all) => {"
        " await new Promise(done => setTimeout(done, 1500)); return fetched(...all) } }"
    )
    SCENE.to_pil().save(picture := Path(tempfile.mkdtemp()) / "scene.png")
    began = time.monotonic()
    page.tab.set_input_files('[data-id="file"]', picture)
    page.tab.wait_for_selector("canvas:not([hidden])")
    page.tab.wait_for_selector('[data-id="busy"]:not([hidden])')
    assert time.monotonic() - began < 1.2 and "Opening" in page.tab.inner_text('[data-id="busy"]')
    moves = "() => getComputedStyle(document.querySelector('[data-id=progress]')).backgroundPositionX"
    assert page.tab.evaluate(moves) != (page.tab.wait_for_timeout(100) or page.tab.evaluate(moves))
    at = page.place()
    page.tap(*SCENE.objects[0].point)
    page.shot("opening")
    (caption,) = page.captions(1)
    assert page.place() == at and caption == api(url, "/v1/caption", regions=[point_of(page)])[0]["caption"]
    assert not page.errors


def point_of(page):
    return {"points": json.loads(page.saved("json"))[0]["point_coords"]}


def test_nothing_moves_the_picture(browser, url):
    page = Page(browser, url, 390).open()
    at = page.place()
    for tool in ("negative", "box", "brush", "point"):
        page.tab.click(f'[data-tool="{tool}"]')
        assert page.place() == at
    page.tap(*SCENE.objects[0].point)
    assert page.place() == at
    page.captions(1)
    assert page.place() == at
    page.tab.click('[data-mode="anything"]')
    assert page.place() == at
    page.tab.click('[data-id="run"]')
    assert page.place() == at
    page.tab.wait_for_selector(".regions .numbers")
    assert page.place() == at and not page.errors


@pytest.mark.parametrize("width", [1280, 390])
def test_a_tap_shows_the_caption_on_the_picture(browser, url, width):
    page = Page(browser, url, width).open()
    bubble = page.tab.locator('[data-id="bubble"]')

    def shown():
        bubble.wait_for(state="visible")
        box = bubble.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= (844 if page.phone else 900)
        return bubble.inner_text().split(maxsplit=1)

    for number, one in enumerate(SCENE.objects[:2], 1):
        page.tap(*one.point)
        assert shown() == [str(number), page.captions(number)[-1]]
    first = page.tab.locator(".regions .caption").nth(0).inner_text()
    page.tab.evaluate("() => scrollTo(0, 0)")
    middle = page.tab.evaluate(BADGE, 1)
    (page.tab.touchscreen.tap if page.phone else page.tab.mouse.click)(*middle)
    assert shown() == ["1", first] and len(page.captions(2)) == 2, "a number is selected, nothing is added"
    page.tab.click('[data-mode="anything"]')
    page.tab.click('[data-id="run"]')
    page.tab.wait_for_selector(".regions .numbers")
    for one in SCENE.objects[:2]:
        page.tap(*one.point)
        number, caption = shown()
        assert page.tab.inner_text(".regions .lit .mark") == number
        assert page.tab.inner_text(".regions .lit .caption") == caption
    page.shot("tapped")
    page.tab.locator(".regions .pick").last.click()  # far down on a phone, where the picture comes along
    assert shown()[0] == page.tab.locator(".regions .mark").last.inner_text()
    assert not page.errors


def test_a_finger_draws_boxes_and_brushes_and_scrolls_beside_the_picture(browser, url):
    page = Page(browser, url, 390).open()
    touch = page.tab.context.new_cdp_session(page.tab)

    def swipe(*places):
        for kind, place in [("touchStart", places[0]), *(("touchMove", place) for place in places[1:])]:
            points = [dict(zip("xy", page.at(*place), strict=True))]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    page.tab.tap('[data-tool="box"]')
    left, top, right, bottom = SCENE.objects[1].box
    swipe((left, top), (left + 9, top + 9), (right, bottom))
    (caption,) = page.captions(1)
    (kept,) = json.loads(page.saved("json"))
    assert np.abs(np.subtract(kept["box_prompt"], SCENE.objects[1].box)).max() < 1.5
    page.tab.tap('[data-tool="brush"]')
    x, y = SCENE.objects[2].point
    swipe((x - 6, y), (x + 6, y), (x, y + 5))
    assert page.captions(2)[0] == caption
    assert page.tab.evaluate("() => scrollY") == 0, "a drawing finger does not scroll"
    assert not page.errors


# Where the badge of the region with this number is, by its color, in pixels of the window.
BADGE = """number => {
  const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect();
  const mark = document.querySelector(`[data-region="${number}"] .mark`);
  const color = getComputedStyle(mark).backgroundColor.match(/\\d+/g).map(Number);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let best = null, most = 0;
  const is = (x, y) => [0, 1, 2].every(i => data[4 * (y * canvas.width + x) + i] === color[i]);
  for (let y = 8; y < canvas.height - 8; y += 2) for (let x = 8; x < canvas.width - 8; x += 2) {
    let count = 0;
    for (let dy = -8; dy <= 8; dy += 2) for (let dx = -8; dx <= 8; dx += 2) count += is(x + dx, y + dy);
    if (count > most) [best, most] = [[x, y], count];
  }
  return [box.x + best[0] * box.width / canvas.width, box.y + best[1] * box.height / canvas.height];
}"""


def test_everything_is_cancelled_and_presets_come_before_sliders(browser, url):
    page = Page(browser, url, 390).open()
    page.tab.click('[data-mode="anything"]')
    run, preset, slider = (page.place(s)[1] for s in ('[data-id="run"]', "[data-preset]", ".drawer"))
    assert run <= preset < page.place()[1] < slider
    side = page.tab.locator('[data-set="points_per_side"]')
    values = []
    for name in ("sparse", "normal", "dense"):
        page.tab.click(f'[data-preset="{name}"]')
        values.append(int(side.input_value()))
        assert page.tab.get_attribute(f'[data-preset="{name}"]', "aria-checked") == "true"
    assert values[0] < values[1] < values[2]
    page.tab.click('[data-id="run"]')
    page.tab.wait_for_selector('[data-id="busy"]:not([hidden])')
    page.tab.wait_for_function("() => document.querySelector('[data-id=progress]').value > 0.15")
    page.shot("progress")
    page.tab.click('[data-id="cancel"]')
    page.said("Cancelled.")
    assert page.tab.is_visible('[data-id="run"]')
    page.tab.click('[data-preset="sparse"]')
    page.tab.click('[data-id="run"]')  # at once
    page.tab.wait_for_selector(".regions .numbers")
    assert page.tab.is_hidden(".error") and page.tab.is_hidden('[data-id="busy"]')
    page.tab.click(".drawer summary")
    page.tab.locator('[data-set="points_per_side"]').fill("3")
    assert not page.tab.locator('[data-preset][aria-checked="true"]').count() and not page.errors


def test_scores_are_in_words_and_downloads_are_called_so(browser, url):
    page = Page(browser, url).open()
    page.tap(*SCENE.objects[0].point)
    page.captions(1)
    row = page.tab.inner_text(".regions .numbers")
    assert "score" not in row and "IoU" not in row and row.count("%") == 2
    for word in ("Words", "Outline", "estimates"):
        assert word in page.tab.inner_text(".help")
    assert page.tab.inner_text(".downloads").startswith("Download")
    links = page.tab.locator(".links a")
    assert links.all_inner_texts() == ["Paper", "Model card", "Authors' code"]
    card = page.tab.evaluate("() => fetch(document.querySelector('[data-id=card]').href).then(a => a.text())")
    assert "# sca-tiny" in card and not page.errors


@pytest.mark.parametrize("stops", [True, False])
def test_a_lost_server_is_said_and_the_click_is_kept(browser, stops):
    """The server dies and is started again, or hangs and goes on: the region is asked for once more."""
    server = Server(PORT + 1).start()
    try:
        page = Page(browser, server.url).open()
        page.tap(*SCENE.objects[0].point)
        (first,) = page.captions(1)
        if stops:
            server.stop(signal.SIGKILL)
        else:
            server.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        page.tap(*SCENE.objects[1].point)
        page.tab.wait_for_selector(".error:not([hidden])")
        assert time.monotonic() - began < 2.3, "two seconds, and the test's own steps"
        assert "does not respond" in page.tab.inner_text(".error")
        assert page.tab.locator(".regions li").count() == 2, "the click is kept"
        page.shot("lost")
        page.tab.click('[data-act="retry"]')
        page.tab.wait_for_timeout(2500)
        assert page.tab.is_visible(".error") and page.tab.locator(".regions li").count() == 2
        if stops:
            server.start()
        else:
            server.process.send_signal(signal.SIGCONT)
        told = page.captions(2)
        assert told[0] == first and told[1] and page.tab.is_hidden(".error")
        assert not page.errors
    finally:
        server.stop(signal.SIGKILL)


def test_what_is_begun_without_a_server_is_done_when_there_is_one(browser):
    server = Server(PORT + 1).start()
    try:
        page = Page(browser, server.url)
        server.stop(signal.SIGKILL)
        page.tab.click(".examples button >> nth=0")
        page.tab.wait_for_selector(".error:not([hidden])")
        page.tap(*SCENE.objects[0].point)  # on what the browser shows of it
        assert page.tab.locator(".regions li").count() == 1
        page.tab.click('[data-mode="anything"]')
        assert page.tab.is_visible(".error"), "the server is still lost"
        page.tab.click('[data-id="run"]')
        server.start()
        page.tab.wait_for_selector(".regions .numbers")
        page.tab.click('[data-mode="prompt"]')
        assert page.captions(1)[0] and page.tab.is_hidden(".error")
        assert not page.errors
    finally:
        server.stop(signal.SIGKILL)


def test_a_page_opened_before_the_model_is_loaded_paints_and_opens_pictures(browser, tmp_path):
    code = (
        "import sys, time; from sca_hf.serving.engine import Engine; model = Engine.model\n"
        "def slow(self, name=None):\n    time.sleep(6)\n    return model(self, name)\n"
        "Engine.model = slow\n"
        "from sca_hf.demo import serve; serve(port=int(sys.argv[1]), device='cpu', started=lambda *_: print('up'))"
    )
    slow = subprocess.Popen([sys.executable, "-uc", code, str(PORT + 2)], stdout=subprocess.PIPE, text=True)
    try:
        assert slow.stdout.readline() == "up\n"
        began = time.monotonic()
        page = Page(browser, f"http://127.0.0.1:{PORT + 2}")
        painted = page.tab.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime")
        page.tab.click(".examples button >> nth=0")
        page.said("Click on something.")
        print(f"first paint after {painted:.0f} ms, a picture open after {time.monotonic() - began:.1f} s")
        assert painted < 2500 and time.monotonic() - began < 6
        assert "Loading" in page.tab.inner_text('[data-id="busy"]')
        page.shot("loading")
    finally:
        slow.kill()
        slow.communicate()


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_axe_has_nothing_serious_to_say(browser, url, width, theme, tmp_path):
    if not os.environ.get("SCA_AXE"):
        pytest.skip("SCA_AXE names no axe.min.js: npm pack axe-core, unpack it, SCA_AXE=package/axe.min.js")
    page = Page(browser, url, width, theme)
    page.tab.add_script_tag(path=os.environ["SCA_AXE"])

    def check(state):
        found = page.tab.evaluate("() => axe.run(document)")["violations"]
        bad = [
            (v["id"], [n["html"][:120] for n in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")
        ]
        assert not bad, f"{state}: {bad}"
        print(f"{page.name} {state}: {[(v['id'], v['impact']) for v in found]}")

    check("start")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    page.tab.set_input_files('[data-id="file"]', tmp_path / "broken.png")
    page.tab.wait_for_selector(".error:not([hidden])")
    check("error")
    page.open()
    page.tap(*SCENE.objects[0].point)
    page.captions(1)
    page.tab.click(".drawer summary")
    check("point")
    page.tab.click('[data-mode="anything"]')
    page.tab.click('[data-id="run"]')
    check("running")
    page.tab.wait_for_selector(".regions .numbers")
    page.tap(*SCENE.objects[0].point)
    check("found")


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
    page.open()
    for number, one in enumerate(SCENE.objects[:2], 1):
        page.tap(*one.point)
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
    seen("6-running")
    page.tab.wait_for_selector(".regions .numbers")
    page.tap(*SCENE.objects[0].point)
    seen("7-tapped")
    page.tab.click(".drawer summary")
    page.tab.select_option('[data-id="model"]', "the-other")
    page.tab.wait_for_function("() => document.querySelector('.facts dd').textContent === 'the-other'")
    seen("8-drawer-other-model")
    assert not page.errors


def test_a_model_that_learned_lengths_and_languages_has_a_choice_of_them(browser, tmp_path):
    from sca_hf import ScaForConditionalGeneration, ScaProcessor
    from sca_hf.model_names import bundled_model
    from sca_hf.training import add_languages, add_lengths

    model = ScaForConditionalGeneration.from_pretrained(bundled_model("sca-tiny"))
    own = ScaProcessor.from_pretrained(bundled_model("sca-tiny"))
    add_lengths(model, ["short", 12])
    add_languages(model, ["en", "de", "zh-Hans"])
    model.save_pretrained(tmp_path / "long", include_base_models=True)
    processor = ScaProcessor.from_config(model.config, own.tokenizer, own.image_processor, own.anything_settings)
    processor.save_pretrained(tmp_path / "long")
    server = Server(PORT + 3, "--model", str(tmp_path / "long"), "--model", "sca-tiny").start()
    try:
        page, asked = Page(browser, server.url).open(), []
        page.tab.set_default_timeout(120_000)  # everything takes a while where much else runs
        page.tab.on("request", lambda request: asked.append((request.post_data or "").replace(" ", "")))
        length, language, task = (page.tab.locator(f'[data-opt="{one}"]') for one in ("length", "language", "task"))
        assert length.locator("option").all_text_contents() == ["usual", "short", "12"]
        assert language.locator("option").all_text_contents() == ["usual", "English", "Deutsch", "简体中文"]
        assert task.locator("option").all_text_contents() == ["recognition", "caption"]
        choose(length, "12")
        page.tap(*SCENE.objects[0].point)
        assert page.captions(1)[0] and any('"length":"12"' in body and '"language":null' in body for body in asked)
        choose(language, "zh-Hans")
        page.tap(*SCENE.objects[1].point)
        assert all(page.captions(2)) and any('"length":"12","language":"zh-Hans"' in body for body in asked)
        choose(length, "")
        page.tab.locator("[data-mode]").nth(1).click()
        page.tab.click('[data-id="run"]')
        page.said(*(f"{count} regions." for count in range(1, 40)))
        assert any('"everything"' in body and '"language":"zh-Hans"' in body for body in asked)
        choose(task, "recognition")
        for select in (length, language):
            assert select.locator("option").all_text_contents() == ["usual"] and select.is_hidden()
        assert not page.errors
    finally:
        server.stop()


def choose(select, value):
    """Chooses of a list, also where its panel is closed."""
    select.evaluate("(select, value) => { select.value = value; select.dispatchEvent(new Event('change')) }", value)

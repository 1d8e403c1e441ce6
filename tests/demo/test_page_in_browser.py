"""The page in a real browser: what people click, and what they read; the same captions as the HTTP interface gives."""

import json
import time

import numpy as np
import pytest

from sca_hf.processing.masks_sca import decode_rle
from tests.demo.page_in_browser import SCENE, Page, api


pytestmark = pytest.mark.slow


def test_points_boxes_and_brushes_give_what_the_interface_gives(browser, url):
    page = Page(browser, url).open()
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
    page = Page(browser, url).open()
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
    page.tab.click('.regions [aria-label^="Outline 1 of region 1"]')
    assert page.tab.get_attribute('.regions [aria-label^="Outline 1 of region 1"]', "aria-pressed") == "true"
    page.tab.click('[data-act="clear"]')
    page.captions(0)
    assert not page.errors


def test_the_keyboard_is_enough(browser, url):
    page = Page(browser, url)
    page.tab.focus(".examples button >> nth=3")  # blood cells, which sca-tiny knows
    page.tab.keyboard.press("Enter")
    page.said("Click on something.")
    page.tab.focus("canvas")
    page.tab.keyboard.press("ArrowLeft")
    page.tab.keyboard.press("Enter")
    page.captions(1)
    page.shot("keyboard")
    page.tab.focus('[data-tool="brush"]')
    page.tab.keyboard.press("ArrowLeft")
    page.tab.focus("canvas")
    for key in ("Enter", "Shift+ArrowDown", "Shift+ArrowRight", "Enter"):  # the corners of a box
        page.tab.keyboard.press(key)
    page.captions(2)
    page.tab.focus('[data-key="remove2"]')
    page.tab.keyboard.press("Enter")
    page.captions(1)
    assert page.tab.evaluate("() => document.activeElement.dataset.key") == "pick1", "the focus is not lost"
    page.tab.focus('[data-tool="point"]')
    page.tab.keyboard.press("ArrowRight")
    assert page.tab.get_attribute('[data-tool="negative"]', "aria-checked") == "true"
    page.tab.focus('[data-mode="prompt"]')
    page.tab.keyboard.press("ArrowRight")
    assert page.tab.get_attribute('[data-mode="anything"]', "aria-selected") == "true"
    for _ in range(12):  # to the run button by the Tab key alone
        page.tab.keyboard.press("Tab")
        if page.tab.evaluate("() => document.activeElement.dataset.act") == "run":
            break
    page.tab.keyboard.press("Enter")
    assert page.tab.evaluate("() => document.activeElement.dataset.act") == "cancel"
    page.tab.keyboard.press("Enter")
    page.said("Cancelled.")
    assert page.tab.evaluate("() => document.activeElement.dataset.act") == "run"
    page.tab.keyboard.press("Enter")
    page.tab.wait_for_selector(".regions .numbers")
    page.tab.focus("canvas")  # where a cross stands in the middle
    for _ in range(40):
        page.tab.keyboard.press("Enter")
        if page.tab.is_visible('[data-id="bubble"]'):
            break
        page.tab.keyboard.press("ArrowRight")
        page.tab.keyboard.press("ArrowDown")
    assert page.tab.inner_text('[data-id="bubble"]').endswith(page.tab.inner_text(".regions .lit .caption"))
    page.tab.focus(".regions .pick >> nth=0")
    assert page.tab.inner_text('[data-id="bubble"]').startswith("1")
    unnamed = page.tab.evaluate(
        "() => [...document.querySelectorAll('.sca button, .sca select, .sca input, .sca canvas')].filter(e =>"
        " !e.textContent.trim() && !e.getAttribute('aria-label') && !(e.labels && e.labels.length))"
        ".map(e => e.outerHTML)"
    )
    assert unnamed == [] and not page.errors


def test_everything_is_captioned_listed_linked_and_saved(browser, url):
    page = Page(browser, url).open()
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
    assert page.tab.inner_text('[data-id="bubble"]').endswith(page.tab.inner_text(".regions .lit .caption"))
    page.shot("anything")
    assert not page.errors


def test_another_model_and_other_options(browser, url):
    page = Page(browser, url).open()
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
    assert page.tab.inner_text(".error").startswith("This picture cannot be read")
    page.shot("error")
    SCENE.to_pil().save(tmp_path / "good.png")
    page.tab.set_input_files('[data-id="file"]', tmp_path / "good.png")
    page.said("Click on something.")
    assert page.tab.is_hidden(".error") and not page.errors

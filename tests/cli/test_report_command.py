"""`sca-hf report`: one page that needs no other file, its Markdown, and what captions may not do to either."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO

import pytest
import yaml
from PIL import Image

from sca_hf.cli import main
from sca_hf.data.scenes import scenes
from sca_hf.evaluation.predictions import PredictionRecord, write_predictions
from sca_hf.processing.masks_sca import encode_rle


EVIL = '<script>alert(1)</script> & "quoted" | `code`\u2028[a](b)'
DATA = "scenes:split=test,count=4"


def write(path, said, system, **fields):
    records = []
    for scene in scenes("test", 4):
        for k, obj in enumerate(scene.objects):
            if obj.describable:
                records.append(
                    PredictionRecord(
                        image_id=f"scene-{scene.seed}",
                        region_id=f"{scene.seed}-{k}",
                        references=list(obj.captions),
                        candidates=[said(obj, len(records))],
                        box=list(obj.box),
                        mask=encode_rle(scene.mask(k)),
                        category=obj.category,
                        system=system,
                        **fields,
                    )
                )
    write_predictions(records, path)
    return str(path)


class Page(HTMLParser):
    """What a browser would load, run and show."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.shown = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_data(self, data):
        self.shown.append(data)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    pytest.importorskip("jinja2")
    folder = tmp_path_factory.mktemp("report")
    good = write(folder / "good.jsonl", lambda obj, k: obj.captions[0], "good <model>")
    evil = write(folder / "evil.jsonl", lambda obj, k: EVIL if k % 2 else "", "evil")
    arguments = ["report", good, evil, "--data", DATA, "--output", str(folder / "out"), "--examples", "2"]
    assert main([*arguments, "--resamples", "50", "--title", "A <b>title</b>"]) == 0
    return (folder / "out" / "report.html").read_text("utf-8"), (folder / "out" / "report.md").read_text("utf-8")


def test_the_page_loads_nothing_and_runs_nothing(reported):
    page = Page(reported[0])
    assert "script" not in page.tags and "link" not in page.tags and "b" not in page.tags
    assert page.sources and all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "url(" not in reported[0] and "@import" not in reported[0]
    assert any("<script>alert(1)</script>" in text for text in page.shown)
    assert "A <b>title</b>" in page.shown and "good <model>" in page.shown


def test_pictures_are_of_the_regions(reported):
    pictures = [Image.open(BytesIO(base64.b64decode(s.split(",")[1]))) for s in Page(reported[0]).sources]
    assert len(pictures) == 6 and all(picture.size == (560, 420) for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 6


def test_the_markdown_has_the_same_tables(reported):
    text = reported[1]
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for line in tables:
        assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 5), line  # no caption breaks a row
    assert "\\<script\\>" in text and "| CIDEr-D | **" in text and "## Difference from good" in text
    assert "## By category" in text and "## By size" in text and "(nothing)" in text


def test_the_block_for_a_card_is_read_as_one(reported):
    block = re.search(r"```yaml\n---\n(.*?)---\n```", reported[1], re.DOTALL).group(1)
    (model,) = yaml.safe_load(block)["model-index"]
    assert model["name"] == "good <model>"
    (result,) = model["results"]
    assert result["task"]["type"] == "image-text-to-text" and result["dataset"]["name"].startswith(f"{DATA}, ")
    metrics = {metric["type"]: metric for metric in result["metrics"]}
    assert metrics["cider-d"]["args"]["tokenizer"] == "ptb" and metrics["bleu-1"]["value"] == 1
    assert result["dataset"]["args"]["regions"] > 0


def test_without_data_the_page_says_why_there_are_no_pictures(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", lambda obj, k: "a star", None)
    assert main(["report", path, "--output", str(tmp_path / "out"), "--resamples", "0", "--examples", "1"]) == 0
    assert "There are no pictures" in (tmp_path / "out" / "report.html").read_text("utf-8")
    other = ["--data", "scenes:split=validation,count=1"]
    assert main(["report", path, "--output", str(tmp_path / "out"), "--resamples", "0", *other]) == 0
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "is not in the data" in page and "have no picture" in page


def test_a_report_of_one_region_and_of_records_without_boxes(tmp_path):
    rows = [{"id": k, "references": ["a"], "candidates": ["a"]} for k in range(2)]
    for count in (1, 2):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows[:count]))
        assert main(["report", str(path), "--output", str(tmp_path / "out")]) == 0
        assert "By size" not in (tmp_path / "out" / "report.md").read_text()


def test_what_cannot_be_reported_is_said(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", lambda obj, k: "a star", None)
    (tmp_path / "file").write_text("")
    assert main(["report", path, "--output", str(tmp_path / "file")]) == 2
    assert main(["report", path, path, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "expected a folder" in error and "a file was given twice" in error


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_whole(reported, tmp_path, width):
    browsing = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here")
    (tmp_path / "report.html").write_text(reported[0], "utf-8")
    with browsing.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        complaints = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto((tmp_path / "report.html").as_uri())
        loaded = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
        assert len(loaded) == 6 and all(loaded) and not complaints
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # What does not fit is scrolled to within its table; no word of a heading is broken.
        broken = page.evaluate(
            """[...document.querySelectorAll('th')].filter(cell => {
                const range = document.createRange();
                const text = [...cell.childNodes].find(node => node.nodeType === 3);
                return text && [...text.data.matchAll(/\\S+/g)].some(word => {
                    range.setStart(text, word.index), range.setEnd(text, word.index + word[0].length);
                    return word[0].length < 14 && range.getClientRects().length > 1;
                });
            }).map(cell => cell.textContent)"""
        )
        assert broken == []
        browser.close()

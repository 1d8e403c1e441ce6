"""Texts of others reach a terminal, a page and a card as texts: nothing of them is obeyed."""

import io
import json
import sys
from contextlib import suppress

import pytest
from PIL import Image

from sca_hf.card_metadata import markdown_code, markdown_rows, markdown_text
from sca_hf.cli import PlainText, main
from sca_hf.evaluation.predictions import PredictionRecord, write_predictions


EVIL = "a\x1b[2Jb\x9b31mc\x07\x08\x00d\u202egnp\u2066e\x1b]0;title\x07"
CONTROLS = "\x1b\x9b\x07\x08\x00\u202e\u2066"


def printed(text):
    stream = io.StringIO()
    PlainText(stream).write(text)
    return stream.getvalue()


def test_what_controls_a_terminal_is_shown_and_the_rest_stays():
    assert printed("a\x1b[2J\x9b") == "a\\u001b[2J\\u009b"
    assert json.loads(printed('"\x9b\u202e"')) == "\x9b\u202e"
    for text in ("a b\tc\n", "\r 50%|###  |", "\n\n\x1b[A\x1b[A", "café 猫 🙂 ‍ שלום\r\n", ""):
        assert printed(text) == text
    assert printed("name\rforged") == "name\\u000dforged" and printed("\x1b[A\x1b[2J") != "\x1b[A\x1b[2J"


def commands(folder):
    name = "".join(letter for letter in EVIL if letter not in "\x00/") + ".png"
    Image.new("RGB", (60, 40)).save(folder / name)
    records = [PredictionRecord(["a"], ["b"], id=f"{EVIL} {k}", category=EVIL, task="caption") for k in range(3)]
    write_predictions(records, folder / "said.jsonl")
    row = {
        "image": "gone.png",
        "image_id": EVIL,
        "regions": [{"region_id": EVIL, "box": [0, 0, 9, 9], "captions": [EVIL]}],
    }
    (folder / "a.jsonl").write_text(json.dumps(row))
    regions = [{"box": [1, 1, 50, 30], EVIL: EVIL}, {"box": EVIL}]
    (folder / "r.json").write_text(json.dumps(regions[:1]))
    (folder / "bad.json").write_text(json.dumps(regions))
    plain = ["--metrics", "cider-d", "--resamples", "5"]
    return {
        "caption": ["caption", str(folder / name), "--regions", str(folder / "r.json")],
        "caption, bad regions": ["caption", str(folder / name), "--regions", str(folder / "bad.json")],
        "caption, no file": ["caption", f"none{EVIL[:5]}.png"],
        "caption, to the terminal": [
            "caption",
            str(folder / name),
            "--regions",
            str(folder / "r.json"),
            "--json",
            "-",
        ],
        "anything": ["anything", str(folder / name), "--points-per-side", "2"],
        "data": ["data", "check", f"jsonl:path={folder / 'a.jsonl'}"],
        "evaluate": ["evaluate", str(folder / "said.jsonl"), *plain],
        "evaluate, no file": ["evaluate", EVIL.replace("\x00", ""), *plain],
        "info": ["info", EVIL.replace("\x00", "")],
        "unknown": [EVIL.replace("\x00", "")],
    }


@pytest.mark.parametrize(
    "name",
    [
        "caption",
        "caption, bad regions",
        "caption, no file",
        "caption, to the terminal",
        "anything",
        "data",
        "evaluate",
        "evaluate, no file",
        "info",
        "unknown",
    ],
)
def test_no_command_prints_what_controls_a_terminal(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with suppress(SystemExit):
        main(commands(tmp_path)[name])
    said = capsys.readouterr()
    assert not set(said.out + said.err) & set(CONTROLS)
    assert (said.out + said.err).strip() and not isinstance(sys.stdout, PlainText)


def test_reports_hold_no_controls(tmp_path, capsys):
    commands(tmp_path)
    assert (
        main(
            [
                "report",
                str(tmp_path / "said.jsonl"),
                "--output",
                str(tmp_path),
                "--metrics",
                "cider-d",
                "--resamples",
                "5",
            ]
        )
        == 0
    )
    for file in ("report.html", "report.md"):
        text = (tmp_path / file).read_text(encoding="utf-8")
        assert not set(text) & set("\x1b\x9b\x07\x08\x00"), file


def test_markdown_shows_texts_as_they_are():
    evil = "[x](javascript:1) <img src=x> | # `a` **b** & ~~c~~\n# head\x1b"
    assert markdown_text(evil) == (r"\[x\](javascript:1) \<img src=x\> \| # \`a\` \*\*b\*\* &amp; \~\~c\~\~ # head")
    assert markdown_rows(["a|b"], [["c|\nd"]]) == "| a\\|b |\n| --- |\n| c\\| d |"
    assert markdown_code("a `b`\nc") == "`` a `b` c ``"
    assert markdown_code("x\n```\n# out", "yaml") == "````yaml\nx\n```\n# out\n````"

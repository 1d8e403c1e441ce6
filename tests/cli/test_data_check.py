"""`sca-hf data check`, from the outside."""

import json

import pytest
from PIL import Image

from sca_hf.cli import main


XML = """<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height></size>
<object><name>red_light</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{x}</xmax><ymax>20</ymax></bndbox></object>
<object><name>bus</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def root(tmp_path):
    Image.new("RGB", (40, 30), (200, 20, 20)).save(tmp_path / "a.jpg")
    (tmp_path / "a.xml").write_text(XML.format(x=10))
    return tmp_path


def test_a_good_set_is_reported_and_drawn(root, capsys):
    sheet, report = root / "out" / "sheet.png", root / "out" / "report.json"
    assert main(["data", "check", f"voc:root={root}", "--sheet", str(sheet), "--json", str(report), "--images"]) == 0
    printed = capsys.readouterr().out
    assert "red light" in printed and f"sheet: {sheet}" in printed and "0 unreadable" in printed
    assert json.loads(report.read_text())["categories"] == {"red light": 1, "bus": 1}
    assert Image.open(sheet).width > 600


def test_a_bad_set_ends_with_one_and_says_what(root, capsys):
    (root / "a.xml").write_text(XML.format(x=1))
    with pytest.raises(SystemExit) as exit:
        main(["data", "check", f"voc:root={root}"])
    assert exit.value.code == 1
    assert "region a/0: bndbox 1, 1, 1, 20 is empty" in capsys.readouterr().out


def test_a_spec_may_be_a_yaml_file(root, capsys):
    (root / "signs.yaml").write_text(f"format: voc\nroot: {root}\nnames:\n  red_light: stop\nmax_samples: 1\n")
    assert main(["data", "check", str(root / "signs.yaml"), "--max-samples", "5"]) == 0
    assert "stop" in capsys.readouterr().out


def test_tokens_are_counted_as_the_bundled_model_does(root, capsys):
    from sca_hf.model_names import bundled_model

    assert main(["data", "check", f"voc:root={root}", "--tokenizer", str(bundled_model("sca-tiny"))]) == 0
    assert "0 captions are longer than 20" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vok:root=x"], "format is 'vok'"),
        (["voc:root=/nowhere"], "is not a directory"),
        (["voc:path=/nowhere"], "its options are root"),
        (["voc:root=x", "--sheet", "x.txt"], "the name of a picture"),
    ],
)
def test_what_cannot_be_read_is_an_error(arguments, message, capsys):
    assert main(["data", "check", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["data", "check", "--help"])
    assert "sca-hf data check voc:root=signs --sheet signs.png" in capsys.readouterr().out

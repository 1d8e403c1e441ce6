"""`on_error="skip"` skips any bad row of any format, whatever is wrong with it; the others are read as ever."""

import json
import math
import pickle

import pyarrow
import pytest
from valid_sets import MAKERS, records
from valid_sets import read as read_set

from sca_hf.data.region import RegionRecordError, region_features


# Every reader against twenty kinds of bad values.
pytestmark = pytest.mark.slow


BAD = [
    10**400,
    -(10**400),
    math.inf,
    math.nan,
    1e308,
    -1,
    0,
    [1],
    [[1, 2]],
    {"a": 1},
    None,
    True,
    "\ud800",
    "x",
    "",
    "9" * 5000,
]
BAD += [2**31, 2**63, "1" * 400, "../../x", "/etc/passwd", "\0", "a" * 5000, []]


def places(value, path=()):
    """Every place in nested JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


def changed(content, path, value):
    content = json.loads(json.dumps(content))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return content


def storable(found):
    """As they are stored: what the schema cannot hold would stop there."""
    features = region_features()
    rows = [
        features.encode_example({k: v for k, v in row.items() if k in features and k != "image"} | {"image": None})
        for row in found
    ]
    pyarrow.Table.from_pylist(rows, features.arrow_schema)


JSON_SETS = {
    "coco": ("a.json", [("images", 1), ("annotations", 3)]),
    "objects365": ("a.json", [("images", 1), ("annotations", 3)]),
    "lvis": ("a.json", [("images", 1), ("annotations", 3)]),
    "coco_captions": ("a.json", [("images", 1), ("annotations", 3)]),
    "grit": ("a.json", [("images", 1), ("annotations", 3)]),
    "refcoco": ("instances.json", [("images", 1), ("annotations", 3)]),
    "sbu": ("a.json", [(1,)]),
    "label_studio": ("a.json", [(1,)]),
    "visual_genome": ("region_descriptions.json", [(1,)]),
    "labelme": ("2.json", [()]),
    "sa1b": ("sa_2.json", [()]),
    "cvat": ("annotations/instances_default.json", [("images", 1), ("annotations", 3)]),
}


def check(name, options, first, where):
    """Reading with "skip" keeps the first row as it is; "raise" says what is wrong, or nothing is."""
    found, _ = read_set(name, options, "skip")
    assert [row for row in found if row["image_id"] == first["image_id"]] == [first], where
    storable(found)


@pytest.mark.parametrize("name", JSON_SETS)
def test_any_value_in_a_row_costs_no_more_than_the_row(tmp_path, name):
    options = MAKERS[name](tmp_path / "set")
    (first, _), _ = read_set(name, options)
    file, roots = JSON_SETS[name]
    content = json.loads((tmp_path / "set" / file).read_text())
    tried = 0
    for root in roots:
        row = content
        for key in root:
            row = row[key]
        # Of the long lists of numbers, the first few.
        inside = [place for place in places(row) if not any(isinstance(key, int) and key > 2 for key in place)]
        for place in [(), *inside]:
            for value in BAD:
                if not (root or place):
                    continue
                (tmp_path / "set" / file).write_text(json.dumps(changed(content, (*root, *place), value)))
                check(name, options, first, (root, place, str(value)[:40]))
                tried += 1
    assert tried > 50


@pytest.mark.parametrize("name", ["jsonl", "refs"])
def test_any_value_in_a_line_or_a_ref_costs_no_more_than_it(tmp_path, name):
    format = "refcoco" if name == "refs" else name
    options = MAKERS[format](tmp_path / "set")
    (first, _), _ = read_set(format, options)
    path = tmp_path / "set" / ("refs(unc).p" if name == "refs" else "a.jsonl")
    rows = pickle.loads(path.read_bytes()) if name == "refs" else records()
    for place in [(), *places(rows[-1])]:
        for value in BAD:
            if name == "refs" and place in ((), ("split",)):
                continue  # the form of the file
            new = changed(rows, (len(rows) - 1, *place), value)
            lines = "".join(json.dumps(row) + "\n" for row in new)
            path.write_bytes(pickle.dumps(new, 2) if name == "refs" else lines.encode())
            check(format, options, first, (place, str(value)[:40]))


TEXTS = {
    "voc": ("2.xml", ["5", "cat", "40", "2.jpg", "0"]),
    "yolo": ("labels/2.txt", ["0.25", "0 0", "0.4"]),
    "jsonl": ("a.jsonl", ["18", '"a cat"', "[7.0, 8.0]"]),
    "labelme": ("2.json", ["cat", "2.jpg"]),
    "grit": ("a.json", []),
    "coco_captions": ("a.json", []),
    "label_studio": ("a.json", []),
    "sbu": ("a.json", []),
    "multilingual_visual_genome": ("hindi-visual-genome-test.txt", ["2\t5", "5\t6", "a cat", "बिल्ली"]),
}
BYTES = [b"\xff", b"\xc3(", b"\xed\xa0\x80", b"9" * 5000, b"1e999", b"nan", b"-inf", b"<", b"\0", b"", b"\xe9"]


@pytest.mark.parametrize("name", TEXTS)
def test_bytes_that_no_text_has_cost_no_more_than_their_row(tmp_path, name):
    options = MAKERS[name](tmp_path / "set")
    (first, _), _ = read_set(name, options)
    file, targets = TEXTS[name]
    path = tmp_path / "set" / file
    content = path.read_bytes()
    for target in targets:
        for value in BYTES:
            place = content.rindex(target.encode())
            path.write_bytes(content[:place] + value + content[place + len(target) :])
            check(name, options, first, (target, value[:20]))
    # In the last text of the file: no other row has it.
    text = b"a cat"
    if targets == []:
        place = content.rindex(text)
        path.write_bytes(content[:place] + b"caf\xe9" + content[place + len(text) :])
        check(name, options, first, "Latin-1")
        with pytest.raises(RegionRecordError):
            read_set(name, options)

"""What is stored of a data set is what its files hold now, whatever happened to either."""

import json
import shutil

import pytest

from sca_hf.data.loading import load_regions
from sca_hf.testing import tiny_image


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = []
    for number in range(5):
        tiny_image(number).save(tmp_path / f"{number}.png")
        regions = [{"region_id": "0", "box": [1, 2, 30, 40], "captions": [f"a caption of {number}"]}]
        row = {"image": f"{number}.png", "image_id": str(number), "width": 80, "height": 60, "task": "caption"}
        rows.append({**row, "regions": regions})
    (tmp_path / "regions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def load(folder):
    rows = load_regions("jsonl", path=str(folder / "regions.jsonl"))
    return [(row["image"].size, row["regions"][0]["captions"]) for row in rows]


def stored(folder, pattern):
    (path,) = (path for path in (folder / "cache").rglob(pattern) if path.is_file())
    return path


def flip(path):
    data = bytearray(path.read_bytes())
    place = data.find(b"caption of")
    data[place if place >= 0 else len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("pattern", ["*.arrow", "report.json", "manifest.json", "dataset_info.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_named_and_made_again(folder, caplog, damage, pattern):
    before = load(folder)
    path = stored(folder, pattern)
    DAMAGES[damage](path)
    assert load(folder) == before
    if (damage, pattern) != ("gone", "manifest.json"):
        assert "damaged in the cache of data sets" in caplog.text
    caplog.clear()
    assert load(folder) == before and not caplog.text


def test_a_picture_of_another_size_beside_its_annotations_is_seen(folder):
    lines = (folder / "regions.jsonl").read_text().splitlines()
    rows = [{**json.loads(line)} for line in lines]
    for row in rows:
        del row["width"], row["height"]
    (folder / "regions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    load(folder)
    tiny_image(9, (50, 45)).save(folder / "3.png")
    assert load(folder)[3][0] == (50, 45)
    again = load(folder)
    assert [size for size, _ in again] == [(80, 60)] * 3 + [(50, 45), (80, 60)]


def test_a_picture_that_is_gone_is_named_at_once(folder):
    load(folder)
    (folder / "3.png").unlink()
    with pytest.raises((ValueError, OSError), match=r"3\.png"):
        load(folder)
    tiny_image(3).save(folder / "3.png")
    assert len(load(folder)) == 5


def test_a_cache_that_was_cleared_is_filled_again(folder):
    before = load(folder)
    shutil.rmtree(folder / "cache")
    assert load(folder) == before

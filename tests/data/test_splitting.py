"""Splitting by source: seeded, of the share asked for, without a leak between sets; and leaks that are told."""

import hashlib
import json
import random
import shutil

import pytest
from datasets import Dataset
from PIL import Image

from sca_hf.data import load_regions, mix_regions
from sca_hf.data.mixing import hold_out
from sca_hf.data.sources import content_keys, warn_of_leaks


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def images(*names):
    return Dataset.from_dict({"image_id": [str(name) for name in names]})


def draw_picture(path, seed):
    """A picture of noise, so that no two are of the same content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("RGB", (16, 12), random.Random(seed).randbytes(16 * 12 * 3)).save(path)


def coco(folder, names, extra=lambda name: {}, seed=0):
    """A folder of pictures with one box each, as Roboflow's COCO export has it."""
    for place, name in enumerate(names):
        draw_picture(folder / name, f"{seed}-{place}")
    shape = {"width": 16, "height": 12}
    rows = [{"id": place, "file_name": name, **shape, **extra(name)} for place, name in enumerate(names)]
    boxes = [{"id": row["id"], "image_id": row["id"], "category_id": 1, "bbox": [1, 1, 9, 9]} for row in rows]
    content = {"images": rows, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return folder / "_annotations.coco.json"


def copies(count, number=3):
    """Names of Roboflow's augmented copies, and the pictures that they are of."""
    hashes = [hashlib.md5(f"{k} {n}".encode()).hexdigest() for k in range(count) for n in range(number)]
    return [f"{place // number}_jpg.rf.{text}.jpg" for place, text in enumerate(hashes)]


def sides(dataset, name_of, share=0.2, **options):
    (train,), (test,) = hold_out([dataset], share, **options)
    assert len(train) + len(test) == len(dataset)
    return [{name_of(row) for row in part} for part in (train, test)]


def file_name(row):
    return row["image"].filename.rsplit("/", 1)[-1]


def test_the_share_and_the_seed_decide():
    (train,), (test,) = hold_out([images(*range(50))], 0.2, seed=3)
    assert len(test) == 10 and len(train) == 40
    assert set(train["image_id"]).isdisjoint(test["image_id"])
    assert hold_out([images(*range(50))], 0.2, seed=3)[1][0]["image_id"][:] == test["image_id"][:]
    assert set(hold_out([images(*range(50))], 0.2, seed=4)[1][0]["image_id"]) != set(test["image_id"])


def test_the_order_of_records_does_not_matter():
    forth = hold_out([images(*range(30))], 0.3)[1][0]
    back = hold_out([images(*reversed(range(30)))], 0.3)[1][0]
    assert set(forth["image_id"]) == set(back["image_id"])


def test_an_image_is_on_one_side_in_all_its_records_and_sets():
    first, second = images(*range(20), *range(20)), images(*range(15, 60))
    train, test = hold_out([first, second], 0.25)
    trained = {name for part in train for name in part["image_id"]}
    tested = {name for part in test for name in part["image_id"]}
    assert not trained & tested
    assert len(test[0]) == 10, "both records of five images"


def test_each_side_gets_an_image():
    (train,), (test,) = hold_out([images(1, 2)], 0.01)
    assert len(train) == len(test) == 1
    with pytest.raises(ValueError, match="a split needs two or more"):
        hold_out([images(1, 1)], 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        hold_out([images(1, 2)], 1.0)


@pytest.mark.parametrize("count, share, seed", [(50, 0.2, 3), (7, 0.5, 0), (120, 0.05, 11)])
def test_without_groups_the_split_is_the_one_that_figures_were_measured_on(tmp_path, count, share, seed):
    dataset = load_regions("coco", annotations=coco(tmp_path / "set", [f"{k}.png" for k in range(count)]))
    assert "group" not in dataset.column_names
    order = sorted(map(str, range(count)), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())
    (train,), (test,) = hold_out([dataset], share, seed)
    expected = set(order[: round(share * count)])
    assert [row for row in dataset["image_id"] if row in expected] == test["image_id"][:]
    assert [row for row in dataset["image_id"] if row not in expected] == train["image_id"][:]


def test_copies_of_one_picture_are_on_one_side_told_by_their_names(tmp_path):
    names = copies(10)
    coco(tmp_path / "train", names)
    dataset = load_regions("roboflow", root=tmp_path)
    for seed in range(5):
        train, test = sides(dataset, lambda row: file_name(row).split("_jpg")[0], seed=seed)
        assert not train & test and len(test) == 2, "a fifth of ten pictures, with all of their copies"


def test_copies_are_told_by_the_name_of_their_picture_in_the_file(tmp_path):
    name_of = dict(zip((f"{k:02}.png" for k in range(30)), (f"{k % 10}.jpg" for k in range(30)), strict=True))
    dataset = load_regions(
        "coco", annotations=coco(tmp_path, list(name_of), lambda k: {"extra": {"name": name_of[k]}})
    )
    assert set(dataset["group"]) == set(name_of.values())
    train, test = sides(dataset, lambda row: name_of[file_name(row)])
    assert not train & test and len(test) == 2


def test_a_copy_of_a_copy_is_of_the_first_picture(tmp_path):
    first = [f"{k}_jpg.rf.{'ab' * 16}" for k in range(6)]
    names = [f"{name}{rest}.jpg" for rest in ("", f"_jpg.rf.{'cd' * 16}") for name in first]
    dataset = load_regions("coco", annotations=coco(tmp_path, names))
    train, test = sides(dataset, lambda row: file_name(row)[0], 0.34)
    assert not train & test and len(test) == 2


def test_a_column_says_what_belongs_together(tmp_path):
    for k in range(12):
        draw_picture(tmp_path / f"{k}.png", k)
    regions = [{"box": [1, 1, 9, 9], "captions": "a cat"}]
    rows = [{"image": f"{k}.png", "group": k // 4, "regions": regions} for k in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = load_regions("jsonl", path=tmp_path / "rows.jsonl")
    train, test = sides(dataset, lambda row: row["group"], 0.34)
    assert (len(train), len(test)) == (2, 1)
    dataset.to_parquet(tmp_path / "rows.parquet")
    again = load_regions("parquet", path=tmp_path / "rows.parquet")
    assert sides(again, lambda row: row["group"], 0.34) == [train, test], "what is stored keeps its groups"
    films = dataset.rename_column("group", "film")
    assert sides(films, lambda row: row["film"], 0.34, group="film") == [train, test]
    with pytest.raises(ValueError, match=r"group is 'films', but the data sets have .*film"):
        hold_out([films], 0.34, group="films")


def test_an_option_finds_groups_in_paths(tmp_path):
    names = [f"{film}/frame_{k}.png" for film in "abcde" for k in range(4)]
    file = coco(tmp_path, names)
    dataset = load_regions("coco", annotations=file, group=r"(\w+)/frame_\d+")
    train, test = sides(dataset, lambda row: row["image"].filename.split("/")[-2])
    assert not train & test and len(test) == 1
    with pytest.raises(ValueError, match=r"json, image 0: group='patient_.*' does not match .*frame_0.png"):
        load_regions("coco", annotations=file, group=r"patient_\d+")
    with pytest.raises(ValueError, match=r"group is '\(', expected a regular expression"):
        load_regions("coco", annotations=file, group="(")


@pytest.mark.parametrize("stored", ["files", "bytes"])
def test_files_of_the_same_content_are_on_one_side(tmp_path, stored):
    file = coco(tmp_path, [f"{k}.png" for k in range(24)])
    for k in range(12):
        shutil.copy(tmp_path / f"{k}.png", tmp_path / f"{k + 12}.png")
    dataset = load_regions("coco", annotations=file)
    if stored == "bytes":
        dataset.to_parquet(tmp_path / "set.parquet")
        dataset = load_regions("parquet", path=tmp_path / "set.parquet")
    for seed in range(5):
        train, test = sides(dataset, lambda row: int(row["image_id"]) % 12, 0.25, seed=seed)
        assert not train & test and len(test) == 3
    first, second = dataset.select(range(12)), dataset.select(range(12, 24))
    trains, tests = hold_out([first, second], 0.25)
    content = [{int(name) % 12 for part in parts for name in part["image_id"]} for parts in (trains, tests)]
    assert not content[0] & content[1], "in several sets too"


def test_files_that_alone_have_their_length_are_not_read(tmp_path, monkeypatch):
    for k in range(4):
        (tmp_path / f"{k}").write_bytes(b"x" * (k + 1))
    (tmp_path / "4").write_bytes(b"yyyy")
    read = []
    monkeypatch.setattr("sca_hf.data.sources.hash_file", lambda path: read.append(path[-1]) or path)
    rows = [{"image": str(tmp_path / f"{k}")} for k in range(5)]
    (keys, again) = content_keys([rows, rows])
    assert read == ["3", "4"] and keys == again and len(set(keys)) == 5


def test_one_picture_everywhere_says_nothing_and_that_is_said(tmp_path, caplog):
    file = coco(tmp_path, copies(5))
    for name in copies(5):
        shutil.copy(tmp_path / copies(5)[0], tmp_path / name) if name != copies(5)[0] else None
    dataset = load_regions("coco", annotations=file)
    train, test = sides(dataset, lambda row: file_name(row)[0])
    assert not train & test and len(test) == 1
    assert "has the same picture everywhere" in caplog.text


def test_a_set_of_one_source_is_refused(tmp_path):
    dataset = load_regions("coco", annotations=coco(tmp_path, copies(1)))
    with pytest.raises(ValueError, match="has 3 images, but from 1 source: a split needs two or more"):
        hold_out([dataset], 0.2)


def test_the_share_is_one_of_images_and_large_groups_do_not_exceed_it():
    groups = {"group": ["many"] * 8 + ["a", "b", "c", "d"], "image_id": list(map(str, range(12)))}
    for seed in range(4):
        (_,), (test,) = hold_out([Dataset.from_dict(groups)], 0.25, seed)
        assert len(test) == 3 and "many" not in test["group"]
    (_,), (test,) = hold_out([Dataset.from_dict({**groups, "group": ["many"] * 8 + ["few"] * 4})], 0.1)
    assert set(test["group"]) == {"few"}


def test_sets_with_and_without_groups_are_mixed(tmp_path):
    first = load_regions("coco", annotations=coco(tmp_path / "a", copies(2)), group=r"(\d)_jpg")
    second = load_regions("coco", annotations=coco(tmp_path / "b", ["x.png", "y.png"]))
    mixed = mix_regions([first, second], by_size=True)
    assert sorted(map(str, mixed["group"])) == ["0"] * 3 + ["1"] * 3 + ["None"] * 2


def test_what_is_scored_and_trained_on_is_told(tmp_path, caplog):
    first = load_regions("coco", annotations=coco(tmp_path / "a", [f"{k}.png" for k in range(6)], seed=1))
    file = coco(tmp_path / "b", [f"other {k}.png" for k in range(5)], seed=2)
    second = load_regions("coco", annotations=file)
    warn_of_leaks(first, second)
    assert not caplog.records, "ids count from 0 in every file"
    shutil.copy(tmp_path / "a" / "3.png", tmp_path / "b" / "other 1.png")
    shutil.copy(tmp_path / "a" / "5.png", tmp_path / "b" / "other 4.png")
    second = load_regions("coco", annotations=file)
    warn_of_leaks(first, {"boxes": second, "others": first.select([2])})
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith(
        "pictures of the evaluation set boxes that are trained on too: 2 (other 1.png, other 4.png). "
    )
    assert told[1].startswith("pictures of the evaluation set others that are trained on too: 1 (2.png). ")
    caplog.clear()
    warn_of_leaks([{"image": first[0]["image"], "image_id": "1"}], [{"image": first[0]["image"], "image_id": "2"}])
    assert "pictures of the evaluation set that are trained on too: 1 (2). " in caplog.text


def test_copies_of_what_is_trained_on_are_told(tmp_path, caplog):
    names = copies(4)
    train = load_regions("coco", annotations=coco(tmp_path / "train", names[::2], seed=1))
    test = load_regions("coco", annotations=coco(tmp_path / "valid", names[1:2], seed=2))
    warn_of_leaks(train, test)
    assert f"that are from the same source as training pictures: 1 ({names[1]})" in caplog.text


def test_the_fixture_of_three_copies_is_split_by_source(shared):
    dataset = load_regions("roboflow", root=shared("fixtures/exporters/roboflow3x"))
    for seed in range(3):
        train, test = sides(dataset, lambda row: file_name(row).split("_jpg")[0], seed=seed)
        assert not train & test and len(test) == 2

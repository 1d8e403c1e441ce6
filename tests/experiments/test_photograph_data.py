"""The split of photographs: no picture on two sides, no share-alike one trained on, files that the readers read."""

import json
from collections import defaultdict

import pytest
from PIL import Image

from experiments.photographs import data, small_sets
from experiments.photographs.words import SYNONYMS, caption_of, plain_name, says
from sca_hf.data import load_regions
from sca_hf.data.loading import leave_undecoded
from sca_hf.training.recipe.run import build_datasets
from sca_hf.training.recipe.schema import load_recipe
from tests.experiments.photograph_sets import make_sets


@pytest.fixture
def folder(tmp_path):
    return make_sets(tmp_path)


def sides(folder, seed=0):
    return {picture.name: picture.side for picture in data.divided(folder, seed)}


def test_share_alike_pictures_and_shown_ones_are_not_trained_on(folder):
    for seed in range(3):
        for one in data.divided(folder, seed):
            assert one.side != "train" or one.row["license"] != 5
            assert one.name != "coco_permissive/000002.jpg" or one.side == "test"


def test_each_set_has_its_fractions_and_another_seed_another_split(folder):
    found = sides(folder)
    for name in ("coco_permissive_2", "taco_litter"):
        counts = [sum(key.startswith(f"{name}/") and side == one for key, side in found.items()) for one in data.SIDES]
        assert counts == [15, 2, 3]
    assert found == sides(folder) and found != sides(folder, seed=1)


def test_copies_and_shots_of_one_thing_stay_together(folder):
    again = folder / "coco_permissive_2" / "images" / "000105.jpg"
    with Image.open(folder / "coco_permissive" / "images" / "000000.jpg") as copied:
        copied.resize((96, 72)).save(again, quality=60)
    shots = ("batch_1_000010.jpg", "batch_1_000011.jpg")
    content = json.loads((folder / "taco_litter" / "instances.json").read_text())
    content["images"][6]["file_name"] = shots[1]  # the number after the one before it
    (folder / "taco_litter" / "instances.json").write_text(json.dumps(content))
    (folder / "taco_litter" / "images" / "batch_1_000012.jpg").rename(folder / "taco_litter" / "images" / shots[1])
    for seed in range(6):
        found = sides(folder, seed)
        assert found["coco_permissive/000000.jpg"] == found["coco_permissive_2/000105.jpg"]
        assert len({found[f"taco_litter/{name}"] for name in shots}) == 1


def test_files_are_read_with_masks_names_and_captions(folder, tmp_path):
    output = tmp_path / "out"
    data.main(["--output", str(output), "--data", str(folder)])
    seen = defaultdict(set)
    for name in data.SETS:
        for side in data.SIDES:
            if not json.loads((output / f"{name}.{side}.json").read_text())["images"]:
                continue
            files = {"annotations": str(output / f"{name}.{side}.json"), "images": str(folder / name / "images")}
            for record in load_regions("coco", **files):
                seen[side].add((name, record["image_id"]))
                region = record["regions"][0]
                expected = ("plastic bottle", "a plastic bottle") if name == "taco_litter" else ("dog", "a dog")
                assert (region["category"], region["captions"][0]) == expected and region["mask"]["counts"]
    assert not seen["train"] & seen["test"] and sum(map(len, seen.values())) == 60
    described = json.loads((output / "coco_permissive.train_described.json").read_text())
    split = json.loads((output / "split.json").read_text())["pictures"]
    trained = {name for name, found in split.items() if found["side"] == "train"}
    assert bool(described["images"]) == ("coco_permissive/000001.jpg" in trained)
    credits = json.loads((output / "credits.json").read_text())
    assert {row["picture"] for row in credits} == trained and all(row["license_url"] for row in credits)
    assert "BY-SA" not in "".join(row["license"] for row in credits)


@pytest.mark.slow
def test_real_sets_are_divided_by_picture(shared):
    folder = shared("data")
    for seed in range(3):
        found = data.divided(folder, seed)
        assert len(found) == 277 and all(one.side in data.SIDES for one in found)
        assert not {one.unit for one in found if one.side == "train"} & {
            one.unit for one in found if one.side != "train"
        }
        assert sum(one.why == "shown as an example" for one in found) == 6


@pytest.mark.slow
def test_small_sets_are_divided_as_the_recipe_of_sca_tiny_divides_them(shared, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(shared("data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    small_sets.write_small_sets(tmp_path, shared("data"))
    few = [f"--data.train.{place}.count=20" for place in (0, 1)]
    _, expected = build_datasets(load_recipe(small_sets.RECIPE, few).data)
    for name, images in small_sets.IMAGES.items():
        files = {"annotations": str(tmp_path / f"{name}.test.json"), "images": f"data/{images}"}
        found = leave_undecoded(load_regions("coco", **files))
        assert texts_by_picture(found) == texts_by_picture(expected[name])


def texts_by_picture(records):
    names = ("box", "category", "captions")
    return {
        row["image"]["path"].rsplit("/", 1)[-1]: [[region[name] for name in names] for region in row["regions"]]
        for row in records
    }


@pytest.mark.parametrize(
    ("caption", "category", "right"),
    [
        ("a dog", "dog", True),
        ("two dogs on a couch", "dog", True),
        ("a hot dog", "dog", False),
        ("a hot dog and a dog", "dog", True),
        ("a dogma", "dog", False),
        ("a carpet", "car", False),
        ("a woman", "person", True),
        ("people", "person", True),
        ("a Wine Glass", "wine glass", True),
        ("a wine glass", "cup", False),
        ("a glass of beer", "cup", True),
        ("the cherries", "apple", False),
        ("cell phones", "cell phone", True),
        ("an orange cat", "orange", False),
        ("an orange", "orange", True),
        ("knives", "knife", True),
        ("benches", "bench", True),
        ("a bottle cap", "plastic bottle", False),
        ("a teddy bear", "bear", False),
        ("", "person", False),
    ],
)
def test_a_caption_says_a_name_as_words(caption, category, right):
    assert says(caption, category) is right


def test_every_category_has_its_words(shared):
    for name in data.SETS:
        content = json.loads((shared(f"data/{name}") / "instances.json").read_text())
        plain = {plain_name(row["name"]) for row in content["categories"]}
        unknown = plain - set(SYNONYMS) - {"battery", "pizza box"}
        assert not unknown
        assert all(says(caption_of(word), word) for word in plain)

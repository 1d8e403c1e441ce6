"""A folder of downloads as a person has it: what can be read is used, what cannot is listed with the reason."""

import json
import shutil

import pytest
from PIL import Image

from sca_hf.cli import main
from sca_hf.data.readers.common import may_be_picture
from sca_hf.testing import tiny_image


GOOD = ["a\nb.png", "a.jpg", "b (1).JPG", "copy (1).jpg", "copy.jpg", "moving.gif", "photo", "print.jpg"]
GOOD += ["sideways.jpg"]
BAD = ["IMG_0001.HEIC", "cut.jpg", "cut.png", "line.png"]
WHY = ["identify|know", "truncated", "truncated", "too narrow"]
SETTINGS = ["--points-per-side=2", "--pred-iou-thresh=0", "--stability-score-thresh=0", "--box-nms-thresh=1"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    from sca_hf.data import loading

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(loading, "OPENED", [])


@pytest.fixture
def base(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def downloads(tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    pictures = iter(tiny_image(number, (48, 32)) for number in range(20))
    for name in ("a.jpg", "b (1).JPG", "copy.jpg", "cut.jpg", "cut.png", "a\nb.png"):
        next(pictures).save(folder / name)
    for name in ("cut.jpg", "cut.png"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) * 3 // 4])
    (folder / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500))
    next(pictures).convert("CMYK").save(folder / "print.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    next(pictures).save(folder / "sideways.jpg", exif=turned)
    Image.new("RGB", (1, 3000), "red").save(folder / "line.png")
    next(pictures).convert("P").save(
        folder / "moving.gif", save_all=True, append_images=[next(pictures).convert("P") for _ in range(3)]
    )
    next(pictures).save(folder / "photo", format="PNG")
    shutil.copy(folder / "copy.jpg", folder / "copy (1).jpg")
    assert sorted(path.name for path in folder.iterdir()) == sorted(GOOD + BAD) and len(GOOD + BAD) == 13
    for name in ("notes.txt", ".DS_Store", "setup"):
        (folder / name).write_bytes(b"BM is not a picture")
    return folder


def as_jsonl(folder):
    regions = [{"box": [0, 0, 1, 30], "captions": "a thing"}]
    rows = [{"image": name, "image_id": name, "regions": regions} for name in sorted(GOOD + BAD)]
    (folder.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"format": "jsonl", "path": str(folder.parent / "rows.jsonl"), "images": str(folder)}


def as_yolo(folder):
    """Boxes as a tool would write them beside the pictures."""
    for path in [path for path in folder.iterdir() if path.name in GOOD + BAD and path.stem not in ("cut", "copy")]:
        path.with_suffix(".txt").write_text("0 0.5 0.5 1 0.5")
    for name in ("cut", "copy"):
        (folder / f"{name}.txt").write_text("0 0.5 0.5 1 0.5")
    (folder / "classes.txt").write_text("thing\n")
    return {"format": "yolo", "root": str(folder)}


FORMATS = {"jsonl": as_jsonl, "yolo": as_yolo}


def spec_text(spec):
    return f"{spec['format']}:" + ",".join(f"{key}={value}" for key, value in spec.items() if key != "format")


def assert_told(text, patterns=WHY):
    """Each bad file stands in a line of its own with the reason."""
    for name, why in zip(BAD, patterns, strict=True):
        lines = [line for line in text.splitlines() if name in line]
        assert any(word in line for line in lines for word in why.split("|")), f"{name} in:\n{text}"


def test_anything_captions_what_can_be_read_and_lists_the_rest(downloads, base, tmp_path, capsys):
    options = ["--model", base, "--device", "cpu", *SETTINGS]
    assert main(["anything", str(downloads), "--output", str(tmp_path / "out"), "--write", "labelme", *options]) == 1
    said = capsys.readouterr()
    assert_told(said.err)
    assert f"{len(GOOD)} images, " in said.out and f"{len(BAD)} failed" in said.out
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["image"] for line in lines) == sorted(GOOD)
    assert sorted(json.loads((tmp_path / "out" / "failed.json").read_text())) == BAD
    assert len(list((tmp_path / "out" / "labelme").glob("*.json"))) == len(GOOD)


def test_a_few_pictures_are_printed_although_some_cannot_be_read(downloads, base, capsys):
    options = ["--model", base, "--device", "cpu", *SETTINGS]
    assert main(["anything", str(downloads), *options]) == 1
    said = capsys.readouterr()
    for name in GOOD:
        assert f"{name if name.isprintable() else repr(name)}: " in said.out
    assert_told(said.err)
    assert main(["anything", str(downloads / "cut.png"), *options]) == 1, "nothing is left"
    assert main(["anything", str(downloads / "photo"), *options]) == 0, "a file without a suffix"


@pytest.mark.parametrize("name", FORMATS)
def test_predict_describes_what_can_be_read_and_lists_the_rest(downloads, base, tmp_path, capsys, name):
    spec = spec_text({**FORMATS[name](downloads), "on_error": "skip"})
    output = tmp_path / "said.jsonl"
    assert main(["predict", "--data", spec, "--model", base, "--output", str(output), "--device", "cpu"]) == 0
    assert_told(capsys.readouterr().err)
    lines = output.read_text().splitlines()
    assert sorted(json.loads(line)["image_id"] for line in lines) == sorted(GOOD)


@pytest.mark.parametrize("name", FORMATS)
def test_training_uses_what_can_be_read_and_lists_the_rest(downloads, base, tmp_path, capsys, name):
    training = {"max_steps": 1, "use_cpu": True, "disable_tqdm": True, "sample_sheet": 0, "warmup_steps": 0}
    recipe = {
        "model": {"from": base},
        "data": {"train": FORMATS[name](downloads), "holdout": 0.3},
        "training": {**training, "per_device_train_batch_size": 9},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["train", str(tmp_path / "recipe.yaml"), "--data.train.on_error=skip"]) == 0
    assert_told(capsys.readouterr().err)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train"]["train_loss"] > 0 and "eval_loss" in metrics["eval"]


def test_files_are_pictures_by_their_beginning_or_their_suffix(downloads):
    found = {path.name for path in downloads.iterdir() if may_be_picture(path)}
    assert found == {*GOOD, *BAD}

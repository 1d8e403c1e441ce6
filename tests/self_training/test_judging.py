"""The second stage: what the judges say, what is kept and why, and manifests that people edit."""

import json

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from taught import finish, judge_command, kill_when, lines_of, make_pictures, propose_command, start

from sca_hf.captioning import load
from sca_hf.cli import main
from sca_hf.data.region import RegionRecordError
from sca_hf.data.scenes import scenes
from sca_hf.self_training import label_records, read_manifest
from sca_hf.self_training.judges import agreement, build_judges, erased, find_function, judged, word_f1
from sca_hf.self_training.settings import JUDGES


@pytest.fixture(scope="module")
def proposed(model, tmp_path_factory):
    """A folder with finished proposals of six pictures."""
    place = tmp_path_factory.mktemp("proposed")
    make_pictures(place)
    assert main(propose_command(place, place / "proposals", model, "--quiet")) == 0
    return place


@pytest.fixture
def judged_folder(proposed, model, tmp_path):
    assert main(judge_command(proposed / "proposals", tmp_path / "judged", model, "--quiet", "--tiles", "6")) == 0
    return tmp_path / "judged"


def test_the_manifest_has_a_row_per_region_and_a_column_per_judge(judged_folder, proposed, capsys):
    rows = list(read_manifest(judged_folder / "manifest.parquet"))
    assert [(row["image"], row["region"]) for row in rows] == [
        (f"{number}.png", region) for number in range(6) for region in range(1, 2 + number % 3)
    ]
    assert len({row["label_id"] for row in rows}) == len(rows) == 12
    for row in rows:
        assert all(isinstance(row[name], float) for name in ("score", "agreement", "necessity", "stability"))
        alone = row["image"] in ("0.png", "3.png")
        assert row["listener"] is None if alone else 0 < row["listener"] <= 1
        assert (judged_folder / row["file"]).is_file() and row["reason"] and row["class"]
    about = json.loads((judged_folder / "manifest.json").read_text())
    assert about["regions"] == 12 and about["kept"] == sum(row["kept"] for row in rows) > 0
    assert about["run"]["selection"]["coverage"] == 0.5 and len(about["run"]["model"]) == 64
    for name in ("kept.png", "refused.png"):
        with Image.open(judged_folder / name) as sheet:
            assert sheet.width > 600 and len(sheet.convert("RGB").getcolors(1 << 20)) > 50


def test_explain_says_why_a_region_went(judged_folder, proposed, model, capsys):
    command = judge_command(proposed / "proposals", judged_folder, model, "--quiet", "--tiles", "0")
    assert main([*command, "--threshold", "stability=2", "--explain", "1.png:2", "2.png"]) == 0
    said = capsys.readouterr().out
    assert said.count("refused") == 4 and "0 of 12 regions kept (0%)" in said
    assert "1.png, region 2 (" in said and "stability is " in said and ", below 2" in said
    assert "  box " in said and "  smaller " in said


def test_judges_of_ones_own_are_columns_and_their_code_decides_the_run(proposed, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "def wide(picture, regions):\n    return [region['box'][2] / picture.width for region in regions]\n"
    (tmp_path / "own_judge.py").write_text(text)
    command = judge_command(proposed / "proposals", "judged", model, "--judges", "score", "own_judge:wide")
    assert main(command) == 0
    rows = list(read_manifest("judged/manifest.parquet"))
    assert [row["wide"] for row in rows[:3]] == [40 / 80, 40 / 80, 70 / 80] and "agreement" not in rows[0]
    (tmp_path / "own_judge.py").write_text(text + "# another\n")
    assert main(command) == 2
    assert "belongs to a run with other settings: judges was" in capsys.readouterr().err
    for name, fault in {
        "wide": "'wide' is not a judge: expected one of score",
        "own_judge:narrow": "cannot be imported",
        "no_such_module:f": "cannot be imported",
    }.items():
        assert main(judge_command(proposed / "proposals", "other", model, "--judges", name)) == 2
        assert fault in capsys.readouterr().err


@pytest.mark.parametrize(("said", "fault"), [([1.0], "gave 1 numbers for 2"), ([1.0, float("nan")], "gave nan")])
def test_what_a_judge_must_not_say(said, fault):
    record = {"segmentation": {"size": [4, 4], "counts": [16]}, "bbox": [0, 0, 2, 2], "caption": "a"}
    with pytest.raises(ValueError, match=f"the judge own {fault}"):
        judged(Image.new("RGB", (4, 4)), [record, record], {"own": lambda picture, regions: said})


def test_views_agree_by_their_words_whatever_the_order():
    assert word_f1("a striped red circle", "a red striped circle") == 1
    assert word_f1("a red circle", "a blue circle") == pytest.approx(2 / 3)
    assert word_f1("red", "blue") == 0 and word_f1("", "") == 1
    views = [{"caption": "a red circle"}, {"caption": "a red circle"}, {"caption": "a blue ring"}]
    assert agreement({"caption": "a red circle", "views": views}) == pytest.approx((1 + 1 / 3) / 2)
    assert agreement({"caption": "a red circle", "views": views[:1]}) is None


def test_true_captions_are_heard_and_need_their_region():
    """On scenes that sca-tiny knows, captions point to their regions and fall without them; swapped ones do not."""
    model, processor = load(None, "cpu")
    judges = build_judges(("listener", "necessity"), model, processor, None)
    encoded = []
    model.sam.vision_encoder.register_forward_pre_hook(lambda module, args: encoded.append(len(args[0])))
    true, swapped, pictures = [], [], set()
    for scene in scenes("test", 8, 300):
        regions = scene.to_record()["regions"]
        if len(regions) < 2:
            continue
        pictures.add(scene.seed)
        said = [region["captions"][0] for region in regions]
        for captions, found in ((said, true), (said[1:] + said[:1], swapped)):
            records = [
                {"segmentation": r["mask"], "box_prompt": r["box"], "caption": caption}
                for r, caption in zip(regions, captions, strict=True)
            ]
            found += judged(scene.to_pil(), records, judges)
    assert len(true) >= 10
    # Twice in all: each region erased, and each picture, whichever judges ask.
    assert sum(encoded) == 2 * len(true) + 2 * len(pictures)
    for judge in ("listener", "necessity"):
        means = [sum(one[judge] for one in found) / len(found) for found in (true, swapped)]
        assert means[0] > means[1] + 0.5, judge


def test_an_erased_region_has_the_color_of_its_surroundings():
    picture = Image.new("RGB", (20, 20), (10, 200, 30))
    picture.paste((255, 0, 0), (5, 5, 10, 12))
    mask = np.zeros((20, 20), bool)
    mask[5:12, 5:10] = True
    assert set(erased(picture, {"box": [5, 5, 10, 12], "mask": mask}).getdata()) == {(10, 200, 30)}
    without = {"box": [5, 5, 10, 12], "mask": np.zeros((20, 20), bool)}
    assert set(erased(picture, without).getdata()) == {(10, 200, 30)}
    assert erased(picture, {"box": [0, 0, 20, 20], "mask": np.ones((20, 20), bool)}).getpixel((0, 0)) == (128,) * 3


def edit(path, change):
    """Reads a manifest, changes its rows, and writes it, as anyone with a program for tables."""
    table = parquet.read_table(path)
    parquet.write_table(pyarrow.Table.from_pylist(change(table.to_pylist()), table.schema), path)


def test_an_edited_manifest_is_learned_from_as_it_stands_and_never_overwritten(judged_folder, proposed, model, capsys):
    path = judged_folder / "manifest.parquet"

    def change(rows):
        kept = [row for row in rows if row["kept"]][1:]
        kept[0]["caption"] = "a corrected caption"
        return kept

    before = sum(len(record["regions"]) for record in label_records(path))
    edit(path, change)
    edited = path.read_bytes()
    records = label_records(path)
    assert sum(len(record["regions"]) for record in records) == before - 1
    assert records[0]["regions"][0]["captions"] == ["a corrected caption"]
    command = judge_command(proposed / "proposals", judged_folder, model, "--quiet", "--tiles", "6")
    assert main(command) == 0
    assert "edited since it was written: left as it is" in capsys.readouterr().out and path.read_bytes() == edited
    assert main([*command, "--coverage", "0.9"]) == 2
    assert "was edited since it was written, and would be overwritten" in capsys.readouterr().err
    assert path.read_bytes() == edited


def test_without_the_column_kept_all_rows_count(judged_folder, proposed, model, capsys):
    path = judged_folder / "manifest.parquet"
    gone = ["kept", "reason", "views", "mask", "task", "label_id", "score"]
    parquet.write_table(parquet.read_table(path).drop_columns(gone), path)
    assert sum(len(record["regions"]) for record in label_records(path)) == 12
    command = judge_command(proposed / "proposals", judged_folder, model, "--quiet", "--tiles", "6")
    assert main([*command, "--explain", "1.png:2"]) == 0
    assert "1.png, region 2 (None): kept\n  agreement " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda row: row.update(caption=None), r"image \d.png, region \d: caption is None, expected a text"),
        (lambda row: row.update(caption=" "), r"image \d.png, region \d: a text is blank"),
        (lambda row: row.update(box=[5.0, 5.0, 500.0, 30.0]), r"image \d.png, region \d: box .* reaches outside"),
        (lambda row: row.update(file="pictures/gone.png"), r"image \d.png: there is no file"),
        (lambda row: row.update(width=7), r"image \d.png"),
    ],
)
def test_rows_that_are_not_labels_are_named(judged_folder, change, fault):
    path = judged_folder / "manifest.parquet"
    edit(path, lambda rows: [change(row) or row for row in rows if row["kept"]])
    with pytest.raises(RegionRecordError, match=fault):
        label_records(path)


def test_damaged_files_are_named(judged_folder, proposed, model, tmp_path, capsys):
    path = judged_folder / "manifest.parquet"
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content[: len(content) // 2], b"\0" * len(content)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"manifest\.parquet cannot be read as Parquet"):
            label_records(path)
    parquet.write_table(pyarrow.table({"image": ["a"]}), path)
    with pytest.raises(ValueError, match="has no column file, which a manifest needs"):
        label_records(path)
    with pytest.raises(FileNotFoundError, match="there is no manifest"):
        label_records(tmp_path / "none.parquet")
    for text, fault in {"": "nothing was proposed", '{"image": "x"': "line 1 is not a proposal"}.items():
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / "records.jsonl").write_text(text)
        assert main(judge_command(tmp_path / "bad", tmp_path / "no", model)) == 2
        assert fault in capsys.readouterr().err
    assert main(judge_command(tmp_path / "none", tmp_path / "no", model)) == 2
    assert "run `sca-hf self-train propose` to its end" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_damaged_in_a_finished_folder_is_named_or_made_again(judged_folder, proposed, model, capsys):
    command = judge_command(proposed / "proposals", judged_folder, model, "--quiet", "--tiles", "6")
    whole = {path: path.read_bytes() for path in sorted(judged_folder.rglob("*")) if path.is_file()}
    assert len(whole) >= 5
    for path, content in whole.items():
        for damaged in (b"", content[: len(content) // 2], content[:-3] + b"\xff\xfe\n"):
            path.write_bytes(damaged)
            code = main(command)
            said = capsys.readouterr().err
            if code:
                assert path.name in said or path.parent.name in said
                path.write_bytes(content)
                assert main(command) == 0
            assert {one: one.read_bytes() for one in whole if "journal" not in one.parts} == {
                one: held for one, held in whole.items() if "journal" not in one.parts
            }, path


def test_a_threshold_of_a_judge_that_is_not_asked_is_refused(proposed, model, tmp_path, capsys):
    command = judge_command(proposed / "proposals", tmp_path / "out", model, "--judges", "score")
    assert main([*command, "--threshold", "agreement=0.5"]) == 2
    assert "thresholds names agreement, but the judges are score" in capsys.readouterr().err
    assert main([*command, "--coverage", "0"]) == 2
    assert "coverage is 0.0, expected more than 0" in capsys.readouterr().err


@pytest.mark.slow
def test_judging_killed_at_any_line_and_shared_by_two_ends_with_the_same_bytes(proposed, model, tmp_path):
    def command(name):
        return judge_command(proposed / "proposals", tmp_path / name, model)

    finish(start(command("whole"), tmp_path / "cache"))
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir() if path.is_file()}
    assert set(whole) == {"manifest.parquet", "manifest.json", "kept.png", "refused.png"}
    killed = 0
    for reached in (
        lambda: lines_of(tmp_path / "killed") >= 1,
        lambda: lines_of(tmp_path / "killed") >= 4,
        lambda: (tmp_path / "killed" / "manifest.parquet").exists(),
    ):
        killed += kill_when(start(command("killed"), tmp_path / "cache"), reached)
    assert killed >= 2
    finish(start(command("killed"), tmp_path / "cache"))
    assert {name: (tmp_path / "killed" / name).read_bytes() for name in whole} == whole
    finish(*(start(command("two"), tmp_path / "cache", rank, 2) for rank in (0, 1)))
    assert {name: (tmp_path / "two" / name).read_bytes() for name in whole} == whole


def test_every_judge_has_its_name():
    model, processor = load(None, "cpu")
    assert list(build_judges(JUDGES, model, processor, None)) == list(JUDGES)
    assert find_function("math:sqrt")(4) == 2

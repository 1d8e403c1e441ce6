"""`sca-hf evaluate` and `sca-hf compare`, from the outside."""

import json
import math

import pytest

from sca_hf.cli import main
from sca_hf.evaluation.predictions import PredictionRecord, read_predictions, write_predictions


WORDS = ["red", "blue", "star", "ring", "disc", "box"]


def write(path, change=lambda caption, k: caption, count=30, order=1, **fields):
    records = []
    for k in list(range(count))[::order]:
        truth = f"a {WORDS[k % 2]} {WORDS[2 + k % 4]} number {k % 7}"
        fields |= {"image_id": f"image-{k // 3}", "region_id": str(k)}
        records.append(
            PredictionRecord(references=[truth, f"the {truth[2:]}"], candidates=[change(truth, k)], **fields)
        )
    write_predictions(records, path)
    return str(path)


def worse(caption, k):
    return "a thing" if k % 3 == 0 else caption


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_results_say_what_they_were_measured_by(tmp_path, capsys):
    path, out = write(tmp_path / "p.jsonl", worse, system="ours", prompt="box"), tmp_path / "out" / "scores.json"
    code, printed, _ = run(capsys, "evaluate", path, "--json", str(out), "--per-region", "--resamples", "50")
    assert code == 0 and "30 regions, protocol none, tokenizer ptb" in printed and "CIDEr-D" in printed
    results = json.loads(out.read_text())
    assert results["n"] == 30 and results["protocol"] is None and results["tokenizer"].startswith("ptb")
    assert results["command"].startswith("sca-hf ") and {"sca-hf", "numpy"} <= set(results["versions"])
    names = ["CIDEr-D", "BLEU@1", "BLEU@2", "BLEU@3", "BLEU@4", "ROUGE-L"]
    assert list(results["metrics"]) == names and list(results["intervals"]) == names
    for name in names:
        low, high = results["intervals"][name]
        assert low <= results["metrics"][name] <= high
    per_region = results["per_region"]
    assert per_region["id"][:2] == ["image-0/0", "image-0/1"] and len(per_region["ROUGE-L"]) == 30
    assert math.fsum(per_region["CIDEr-D"]) / 30 == pytest.approx(results["metrics"]["CIDEr-D"])
    assert results["system"] == "ours" and results["prompts"] == ["box"]


def test_json_on_the_terminal_and_formats_score_alike(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", worse)
    for suffix in ("json", "parquet"):
        write_predictions(read_predictions(path), tmp_path / f"p.{suffix}")
    found = []
    for suffix in ("jsonl", "json", "parquet"):
        arguments = ("--json", "-", "--resamples", "0", "--metrics", "cider-d,BLEU@4", "exact-match")
        _, printed, _ = run(capsys, "evaluate", str(tmp_path / f"p.{suffix}"), *arguments)
        found.append(json.loads(printed)["metrics"])
    assert list(found[0]) == ["CIDEr-D", "BLEU@4", "exact-match"] and found[0] == found[1] == found[2]
    assert found[0]["exact-match"] == pytest.approx(20 / 30)


def test_what_is_not_a_number_is_null(tmp_path, capsys):
    empty = {"size": [4, 4], "counts": [16]}
    path = write(tmp_path / "p.jsonl", mask=empty, reference_mask=empty)
    _, printed, _ = run(capsys, "evaluate", path, "--metrics", "masks", "--json", "-")
    results = json.loads(printed, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert results["metrics"] == {"mask-mIoU": 1, "mask-mIoU-oracle": 1, "mask-cIoU": None}
    assert results["intervals"]["mask-cIoU"] == [None, None]


def test_images_are_drawn_with_all_their_regions(tmp_path, capsys):
    # Each image has its own mistakes: by image the score varies more.
    path = write(tmp_path / "p.jsonl", lambda caption, k: "x" if k // 3 % 2 else caption)
    widths = {}
    for by in ("region", "image"):
        _, printed, _ = run(capsys, "evaluate", path, "--resample-by", by, "--json", "-", "--metrics", "exact-match")
        low, high = json.loads(printed)["intervals"]["exact-match"]
        widths[by] = high - low
    assert widths["image"] > 1.3 * widths["region"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "nothing"], "there is no metric 'nothing'"),
        (["--metrics", "masks"], "30 of 30 records have no reference_mask"),
        (["--protocol", "vg-full"], "vg-full has 1 reference"),
        (
            ["--protocol", "refcoco-val"],
            "refcoco-val has 1,500 images with 3,811 regions; this data has 10 images with 30",
        ),
        (["--per-region"], "pass --json too"),
        (["--df", "absent.json"], "absent.json: No such file"),
    ],
)
def test_what_cannot_be_scored_is_said(tmp_path, capsys, arguments, message):
    code, printed, error = run(capsys, "evaluate", write(tmp_path / "p.jsonl"), *arguments)
    assert code == 2 and message in error and printed == ""


def test_a_run_that_is_not_complete_is_not_scored(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl.run.json").write_text(json.dumps({"settings": {}, "complete": False}))
    assert "is not complete" in run(capsys, "evaluate", path)[2]
    state = {"settings": {"captioner": {"generation": {"num_beams": 3}}}, "complete": True, "protocol": "vg-5k"}
    (tmp_path / "p.jsonl.run.json").write_text(json.dumps(state))
    assert "vg-5k" in run(capsys, "evaluate", path)[2]  # the run's own protocol must hold
    del state["protocol"]
    (tmp_path / "p.jsonl.run.json").write_text(json.dumps(state))
    assert "beams 3" in run(capsys, "evaluate", path)[1]


def test_paired_files_are_told_apart_whatever_their_order(tmp_path, capsys):
    first, second = write(tmp_path / "a.jsonl", worse), write(tmp_path / "b.jsonl", order=-1)
    code, printed, _ = run(capsys, "compare", first, second, "--json", str(tmp_path / "c.json"))
    assert code == 0 and "B - A" in printed
    results = json.loads((tmp_path / "c.json").read_text())
    found = results["metrics"]["CIDEr-D"]
    assert found["difference"] == pytest.approx(found["b"] - found["a"]) and found["p"] < 0.01
    assert 0 < found["interval"][0] < found["difference"] < found["interval"][1] and results["n"] == 30


def test_the_same_predictions_do_not_differ(tmp_path, capsys):
    first, second = write(tmp_path / "a.jsonl", worse), write(tmp_path / "b.jsonl", worse, order=-1)
    _, printed, _ = run(capsys, "compare", first, second, "--json", "-", "--metrics", "BLEU", "ROUGE-L")
    for found in json.loads(printed)["metrics"].values():
        assert found["difference"] == pytest.approx(0, abs=1e-12) and found["p"] > 0.5


def test_files_of_other_tools_pair_by_image_and_region(tmp_path, capsys):
    first = write(tmp_path / "a.jsonl", worse)
    numbered = [{**record.to_dict(), "_id": k} for k, record in enumerate(read_predictions(first))]
    for row in numbered:
        del row["id"]
    (tmp_path / "b.json").write_text(json.dumps(numbered))
    code, _, error = run(capsys, "compare", first, str(tmp_path / "b.json"))
    assert code == 0, error


def test_files_that_are_not_of_the_same_regions_are_not_compared(tmp_path, capsys):
    first, fewer = write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl", count=28)
    error = run(capsys, "compare", first, fewer)[2]
    assert "do not have the same regions: 2 only in" in error and "image-9/28, image-9/29" in error
    records = read_predictions(first)
    records[3].references = ["something else"]
    write_predictions(records, tmp_path / "c.jsonl")
    error = run(capsys, "compare", first, str(tmp_path / "c.jsonl"))[2]
    assert "record image-1/3 has different references" in error

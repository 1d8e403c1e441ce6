"""Captions of a length that is asked for: how a model gets lengths, learns them, and is asked for one."""

import json

import numpy as np
import pytest
import torch

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.captioning import caption_images
from sca_hf.cli import main
from sca_hf.data.augmentation import _reworded
from sca_hf.data.loading import load_regions
from sca_hf.data.mixing import mix_regions
from sca_hf.data.region import LENGTHS as OF_RECORDS
from sca_hf.data.region import Region, RegionRecord, RegionRecordError, region_features
from sca_hf.data.writers import write_regions
from sca_hf.evaluation.captioners.sca import ScaCaptioner
from sca_hf.modeling import pipeline_sca
from sca_hf.processing.anything_settings_sca import AnythingSettings
from sca_hf.processing.captions_sca import LENGTHS, asked_task
from sca_hf.processing.region_prompts_sca import RegionPrompt
from sca_hf.testing import tiny_config, tiny_image
from sca_hf.training import RegionCollator, ScaTrainer, ScaTrainingArguments, add_lengths
from sca_hf.training.recipe.build import Configurations, build_empty_model
from sca_hf.training.recipe.schema import ModelSection
from tests.training.tiny_runs import written


BOXES = [[[3, 3, 40, 40], [20, 10, 70, 50]]]
CAPTIONS = {"short": "blue triangle", "detailed": "a plain blue triangle left of two green apples on a wooden table"}


@pytest.fixture
def long(model, tokenizer):
    """A tiny model that has lengths, and its processor."""
    add_lengths(model, [*LENGTHS, 5, 10, 50])
    return model, ScaProcessor.from_config(model.config, tokenizer)


def record(**fields):
    region = {"region_id": "0", "box": [3.0, 3.0, 40.0, 40.0], "captions": list(CAPTIONS.values()), **fields}
    picture = {"image": tiny_image(0), "image_id": "0", "width": 80, "height": 60, "task": "caption"}
    return picture | {"regions": [region]}


def test_both_layers_know_the_same_lengths():
    assert LENGTHS == OF_RECORDS


def test_until_it_is_trained_every_length_says_what_the_model_said(make_model, processor, long, tmp_path):
    before = make_model().generate(**processor(tiny_image(0), input_boxes=BOXES), max_new_tokens=12)
    model, ours = long
    assert model.config.mixer_config.tasks[:2] == ["recognition", "caption"]
    for length in (None, "detailed", 10, ["short", None], [["short", 5]]):
        inputs = ours(tiny_image(0), input_boxes=BOXES, length=length)
        assert torch.equal(model.generate(**inputs, max_new_tokens=12).sequences, before.sequences)
    model.save_pretrained(tmp_path)
    ours.save_pretrained(tmp_path)
    again, read = ScaForConditionalGeneration.from_pretrained(tmp_path), ScaProcessor.from_pretrained(tmp_path)
    again.check_processor(read)
    assert read.tasks == ours.tasks and torch.equal(again.mixer.task_tokens.weight, model.mixer.task_tokens.weight)


def test_captions_may_be_as_long_as_there_are_positions(make_model, caplog):
    gpt2, llama = make_model("gpt2"), make_model("smollm")
    assert add_lengths(gpt2) == add_lengths(llama) == ["mixer.task_tokens"]
    assert gpt2.longest_caption() == gpt2.config.max_caption_length == gpt2.generation_config.max_new_tokens == 114
    assert "positions for captions of 114 tokens" in caplog.text
    assert llama.config.max_caption_length == llama.generation_config.max_new_tokens == 200
    gpt2.check_new_tokens()
    assert gpt2.mixer.task_tokens.weight.requires_grad


@pytest.mark.parametrize("length", ["long", 0, True, 300, 2.5])
def test_lengths_that_nobody_could_ask_for_are_refused(model, length):
    with pytest.raises(ValueError, match=r"expected short, sentence, detailed or a number of words"):
        add_lengths(model, [length])


def test_the_nearest_number_counts_and_a_far_one_is_refused(long):
    tasks = long[1].tasks
    assert asked_task("caption", tasks, 11) == asked_task("caption", tasks, "9") == "caption:10"
    for length in (20, "20", 2, -5, 0, True, 7.0, "long", "", "caption"):
        with pytest.raises(ValueError, match=r"this model learned only short, sentence, detailed, 5, 10, 50"):
            asked_task("caption", tasks, length)


def test_lengths_nest_as_tasks_do(long):
    _, ours = long
    two = [tiny_image(0), tiny_image(1)]
    ids = ours(two, input_boxes=BOXES * 2, length=["short", ["detailed", None]])["task_ids"]
    assert [[ours.tasks[i] for i in row] for row in ids] == [["caption:short"] * 2, ["caption:detailed", "caption"]]
    for wrong in (["short"], ["short"] * 3, [["short"], ["short"]], [[["short"]]]):
        with pytest.raises(ValueError, match="length"):
            ours(two, input_boxes=BOXES * 2, length=wrong)
    with pytest.raises(ValueError, match="for the task 'recognition' this model learned none"):
        ours(two, input_boxes=BOXES * 2, task="recognition", length="short")


def test_a_model_without_lengths_says_how_it_gets_some(processor):
    with pytest.raises(ValueError, match=r"learned none \(add_lengths, or model\.lengths in a recipe, adds some\)"):
        processor(tiny_image(0), input_boxes=BOXES, length="detailed")


def test_a_caption_is_learned_as_its_length(long, processor, monkeypatch):
    ours = long[1]
    row = record(lengths=["short", "detailed"])
    batches = [RegionCollator(ours)([row | {"draw": (0, 0, index)}]) for index in range(12)]
    said = {(ours.tasks[b["task_ids"][0, 0]], ours.batch_decode(b["labels"])[0][0]) for b in batches}
    assert said == {(f"caption:{length}", text) for length, text in CAPTIONS.items()}
    warned = []
    monkeypatch.setattr("sca_hf.training.collator.logger.warning_once", warned.append)
    plain, other = (RegionCollator(processor)([one | {"draw": (0, 0, 1)}]) for one in (record(), row))
    assert all(torch.equal(plain[name], other[name]) for name in plain) and "all are learned alike" in warned[0]


@pytest.mark.slow
def test_one_model_says_the_same_region_shortly_and_in_detail(tokenizer, tmp_path):
    model = ScaForConditionalGeneration(tiny_config("smollm"))
    add_lengths(model)
    processor = ScaProcessor.from_config(model.config, tokenizer)
    options = dict(output_dir=str(tmp_path), max_steps=120, learning_rate=5e-3, report_to=[], save_strategy="no")
    options |= dict(preset="mixer+lm", per_device_train_batch_size=4, module_learning_rates={"language_model": 5e-3})
    rows = [record(lengths=["short", "detailed"])] * 4
    ScaTrainer(model, ScaTrainingArguments(**options), rows, None, processor).train()
    model.eval()
    for length, text in CAPTIONS.items():
        outputs = model.generate(**processor(tiny_image(0), input_boxes=[[BOXES[0][0]]], length=length))
        assert processor.batch_decode(outputs) == [[text]]
        assert outputs.sequences.shape[-1] < model.config.max_caption_length, "it ended by itself"


def test_json_lines_say_lengths_in_three_ways(tmp_path):
    given = written(
        tmp_path,
        {"captions": [{"text": "a ring", "length": "short"}, "a red ring"]},
        {"captions": ["a ring", "a red ring"], "lengths": ["short", 3]},
        {"captions": ["a ring", "a red ring"], "length": "short"},
        {"captions": ["a ring"]},
    )
    dataset = load_regions(**given)
    regions = dataset[0]["regions"]
    assert [region["lengths"] for region in regions] == [["short", None], ["short", "3"], ["short"] * 2, None]
    assert regions[0]["captions"] == ["a ring", "a red ring"]
    dataset.to_json(tmp_path / "again.jsonl", lines=True)
    rows = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert [region["lengths"] for region in rows[0]["regions"]] == [region["lengths"] for region in regions]
    with pytest.raises(ValueError, match="which only a stored data set keeps"):
        list(load_regions(**given, streaming=True))


@pytest.mark.parametrize("first", [True, False])
def test_sets_with_and_without_lengths_are_mixed(tmp_path, first):
    plain, said = (load_regions("scenes", count=2, lengths=lengths) for lengths in (False, True))
    mixed = mix_regions([said, plain] if first else [plain, said])
    assert len(mixed) == 4 and {row["regions"][0]["lengths"] is None for row in mixed} == {True, False}
    by_id = {row["regions"][0]["region_id"]: row for row in mixed if row["regions"][0]["lengths"] is None}
    for row in plain:
        (region, *_), (same, *_) = row["regions"], by_id[row["regions"][0]["region_id"]]["regions"]
        assert {**region, "lengths": None} == same
        assert np.array_equal(row["image"], by_id[region["region_id"]]["image"])


def test_data_without_lengths_have_the_schema_that_they_had(tmp_path):
    given = written(tmp_path, {"captions": ["a ring"]})
    assert load_regions(**given).features == region_features()
    assert list(next(iter(load_regions(**given, streaming=True)))["regions"][0]) == list(
        region_features()["regions"].feature
    )


@pytest.mark.parametrize("lengths", [["short"], ["short", "long"], ["short", "0"], "ab", [["short"], "short"]])
def test_lengths_that_do_not_fit_the_captions_are_refused(lengths):
    row = record(lengths=lengths)
    with pytest.raises(RegionRecordError, match="lengths"):
        RegionRecord.from_dict(row)


def test_captions_that_augmentation_drops_take_their_lengths_with_them():
    row = record(captions=["a ring left of a star", "a ring"], lengths=["sentence", "short"])
    (turned,) = _reworded(row["regions"], mirrored=False, angle=90)
    assert (turned["captions"], turned["lengths"]) == (["a ring"], ["short"])
    assert "lengths" not in _reworded(record()["regions"], mirrored=True, angle=0)[0]


@pytest.mark.parametrize("tool", ["cvat", "label_studio", "labelme", "yolo"])
def test_an_annotation_tool_keeps_lengths_or_the_report_counts_them(tmp_path, tool):
    rows, lost = [record(captions=["a ring"], lengths=["short"], category="ring")], tool != "cvat"
    report = write_regions(tool, rows, tmp_path / "out")
    assert report.lost["lengths of captions"] == int(lost)
    if not lost:
        dataset = load_regions("cvat", root=tmp_path / "out")
        assert dataset[0]["regions"][0]["lengths"] == ["short"]
        (label,) = json.loads((tmp_path / "out" / "labels.json").read_text())
        assert [attribute["name"] for attribute in label["attributes"]] == ["caption", "length"]


def test_scenes_have_lengths_where_they_are_asked_for():
    plain = load_regions("scenes", count=3)
    dataset = load_regions("scenes", count=3, lengths=True)
    for row, other in zip(plain, dataset, strict=True):
        for region, more in zip(row["regions"], other["regions"], strict=True):
            assert region["captions"] == more["captions"][:3] and set(more["lengths"]) == set(LENGTHS)
            assert np.array_equal(region["box"], more["box"])


def test_everyone_who_captions_can_ask_for_a_length(long, tmp_path, capsys, monkeypatch):
    model, processor = long
    asked = []
    monkeypatch.setattr(
        type(model.mixer), "prefix", _noting(type(model.mixer).prefix, asked, processor.tasks), raising=True
    )
    prompts = [[RegionPrompt(box=[3.0, 3.0, 40.0, 40.0])]]
    list(caption_images(model, processor, {"a": tiny_image(0)}, prompts, length="short", max_new_tokens=2))
    pipe = pipeline_sca.RegionCaptioningPipeline(model=model, processor=processor)
    pipe(tiny_image(0), input_boxes=[[3, 3, 40, 40]], length="short", max_new_tokens=2)
    processor.caption_anything(
        model, tiny_image(0), boxes=[[3, 3, 40, 40]], settings={"length": "short"}, max_new_tokens=2
    )
    mask = np.zeros((60, 80), bool)
    mask[3:40, 3:40] = True
    processor.caption_video(model, [tiny_image(0)], masklets=[[mask]], length="short", max_new_tokens=2)
    assert ScaCaptioner(model, processor, length="short").settings()["length"] == "short"
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    tiny_image(0).save(tmp_path / "a.png")
    command = ["caption", str(tmp_path / "a.png"), "--model", str(tmp_path / "model"), "--device", "cpu"]
    assert main([*command, "--length", "short", "--json", "-"]) == 0
    assert asked and set(asked) == {"caption:short"} and len(asked) == 5
    assert main([*command, "--length", "20", "--json", "-"]) != 0
    assert "this model learned only short" in capsys.readouterr().err
    assert AnythingSettings(length="short").asked == {"task": None, "length": "short", "language": None}


def _noting(prefix, asked, tasks):
    def note(self, queries, task_ids):
        asked.extend(tasks[index] for index in task_ids.tolist())
        return prefix(self, queries, task_ids)

    return note


def test_a_recipe_adds_lengths(tmp_path):
    section = ModelSection(**{"from": "sca-tiny", "lengths": ["short", 8], "max_caption_length": 40})
    args = ScaTrainingArguments(output_dir=str(tmp_path), report_to=[])
    model = build_empty_model(section, args, Configurations())
    assert model.config.mixer_config.tasks[2:] == ["caption:short", "caption:8"]
    assert model.config.max_caption_length == model.generation_config.max_new_tokens == 40


def test_a_region_keeps_its_lengths_as_texts():
    row = RegionRecord.from_dict(record(lengths=["short", 12]))
    assert row.regions[0].lengths == ["short", "12"] and row.to_dict()["regions"][0]["lengths"] == ["short", "12"]
    assert "lengths" not in RegionRecord.from_dict(record()).to_dict()["regions"][0]
    assert Region("0", [0, 0, 1, 1]).lengths is None

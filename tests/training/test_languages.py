"""Captions in a language that is asked for: tags, records, how a model gets languages, learns them, and is asked."""

import json

import pytest
import torch

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.captioning import caption_images
from sca_hf.cli import main
from sca_hf.data.augmentation import _reworded
from sca_hf.data.loading import load_regions
from sca_hf.data.mixing import mix_regions
from sca_hf.data.region import RegionRecord, RegionRecordError, region_features
from sca_hf.data.writers import write_regions
from sca_hf.modeling import pipeline_sca
from sca_hf.processing.anything_settings_sca import AnythingSettings
from sca_hf.processing.captions_sca import asked_task, learned, task_parts
from sca_hf.processing.languages_sca import find_language, language_tag
from sca_hf.processing.region_prompts_sca import RegionPrompt
from sca_hf.testing import tiny_config, tiny_image
from sca_hf.training import (
    RegionCollator,
    ScaTrainer,
    ScaTrainingArguments,
    add_languages,
    add_lengths,
)
from sca_hf.training.recipe.build import Configurations, build_empty_model
from sca_hf.training.recipe.schema import ModelSection
from tests.training.tiny_runs import written


BOXES = [[[3, 3, 40, 40], [20, 10, 70, 50]]]
CAPTIONS = {"en": "a blue triangle", "de": "ein blaues Dreieck", "zh": "蓝色三角形"}


@pytest.fixture
def spoken(model, tokenizer):
    """A tiny model that has languages, and its processor."""
    add_languages(model, list(CAPTIONS))
    return model, ScaProcessor.from_config(model.config, tokenizer)


def record(**fields):
    region = {"region_id": "0", "box": [3.0, 3.0, 40.0, 40.0], "captions": list(CAPTIONS.values())}
    picture = {"image": tiny_image(0), "image_id": "0", "width": 80, "height": 60, "task": "caption"}
    return picture | {"regions": [{**region, "languages": list(CAPTIONS), **fields}]}


@pytest.mark.parametrize(
    ("given", "tag"),
    [
        ("de", "de"),
        ("DE", "de"),
        ("pt_BR", "pt-BR"),
        ("PT-br", "pt-BR"),
        ("zh-hans", "zh-Hans"),
        ("zh_Hant_TW", "zh-Hant-TW"),
        ("deu", "de"),
        ("ger", "de"),
        ("iw", "he"),
        ("hau", "ha"),
        ("yue", "yue"),
        ("es-419", "es-419"),
        ("de-1996", "de-1996"),
        ("sl-rozaj-biske", "sl-rozaj-biske"),
        (" en ", "en"),
        ("en-US-u-ca-gregory-x-scenes", "en-US-u-ca-gregory-x-scenes"),
    ],
)
def test_a_tag_has_one_spelling(given, tag):
    assert language_tag(given) == tag == language_tag(tag)


@pytest.mark.parametrize(
    "given", ["", "xx", "german", "de-", "de:short", "de DE", "en-US.UTF-8", "d", "12", None, 3, ["de"]]
)
def test_what_is_no_tag_is_refused_with_its_name(given):
    with pytest.raises(ValueError, match=r"language is .*, expected a tag of BCP 47 such as en, de, zh-Hans or pt-BR"):
        language_tag(given)


def test_the_learned_language_that_is_meant_is_found():
    assert find_language("de-AT", ["en", "de"]) == "de" and find_language("pt", ["pt-BR", "de"]) == "pt-BR"
    assert find_language("zh-Hans-CN", ["zh-Hant", "zh-Hans"]) == "zh-Hans"
    assert find_language("pt", ["pt-BR", "pt-PT"]) is None, "several are meant"
    assert find_language("zh-Hant", ["zh", "zh-Hans"]) is None, "another script"
    assert find_language("zh-Hant-TW", ["zh"]) is None and find_language("fr", ["de"]) is None
    assert find_language("en", []) is None


def test_until_it_is_trained_every_language_says_what_the_model_said(make_model, processor, spoken, tmp_path):
    before = make_model().generate(**processor(tiny_image(0), input_boxes=BOXES), max_new_tokens=12)
    model, ours = spoken
    assert model.config.mixer_config.tasks == ["recognition", "caption", *(f"caption:{tag}" for tag in CAPTIONS)]
    for language in (None, "de", "de-AT", ["zh", None], [["en", "zh"]]):
        inputs = ours(tiny_image(0), input_boxes=BOXES, language=language)
        assert torch.equal(model.generate(**inputs, max_new_tokens=12).sequences, before.sequences)
    model.save_pretrained(tmp_path)
    ours.save_pretrained(tmp_path)
    again, read = ScaForConditionalGeneration.from_pretrained(tmp_path), ScaProcessor.from_pretrained(tmp_path)
    again.check_processor(read)
    assert read.tasks == ours.tasks and torch.equal(again.mixer.task_tokens.weight, model.mixer.task_tokens.weight)


def test_languages_that_nobody_could_ask_for_are_refused(model):
    for languages in (["german"], ["de", "xx"], "de"):
        with pytest.raises(ValueError, match="language"):
            add_languages(model, languages)
    assert model.config.mixer_config.tasks == ["recognition", "caption"], "nothing was added on the way"


@pytest.mark.parametrize("order", [(add_lengths, add_languages), (add_languages, add_lengths)])
def test_languages_and_lengths_combine_in_any_order(model, tokenizer, order):
    given = {add_lengths: ["short", 10], add_languages: ["de", "zh-Hans"]}
    for add in order:
        add(model, given[add])
    tasks = model.config.mixer_config.tasks
    assert len(tasks) == len(set(tasks)) == 2 + 2 + 2 + 4
    assert learned(tasks, "language") == ["de", "zh-Hans"] and learned(tasks, "length") == ["short", "10"]
    assert task_parts("caption:zh-Hans:10") == ("caption", "zh-Hans", "10")
    assert asked_task("caption", tasks, 11, "zh") == "caption:zh-Hans:10"
    assert asked_task("caption:short", tasks, None, "de_DE") == "caption:de:short"
    assert asked_task("caption:de", tasks, "short") == "caption:de:short"
    with pytest.raises(ValueError, match=r"length is 'detailed', .* for the task 'caption' in 'de' .* only short, 10"):
        asked_task("caption", tasks, "detailed", "de")
    processor = ScaProcessor.from_config(model.config, tokenizer)
    ids = processor(tiny_image(0), input_boxes=BOXES, length=["short", None], language="de")["task_ids"]
    assert [tasks[i] for i in ids[0]] == ["caption:de:short", "caption:de"]


def test_a_new_language_starts_from_what_the_model_learned_of_lengths(model):
    add_lengths(model, ["short"])
    rows = model.mixer.task_tokens.weight.detach().clone().unflatten(0, (3, -1))
    rows[2] += 1
    model.mixer.task_tokens.weight.data.copy_(rows.flatten(0, 1))
    add_languages(model, ["de"])
    now = model.mixer.task_tokens.weight.unflatten(0, (5, -1))
    assert torch.equal(now[3], rows[1]) and torch.equal(now[4], rows[2])
    assert model.config.mixer_config.tasks[3:] == ["caption:de", "caption:de:short"]


def test_a_language_that_was_not_learned_is_refused(spoken, processor):
    _, ours = spoken
    with pytest.raises(ValueError, match=r"language is 'fr', but of languages .* learned only en, de, zh"):
        ours(tiny_image(0), input_boxes=BOXES, language="fr")
    with pytest.raises(ValueError, match=r"expected a tag of BCP 47"):
        ours(tiny_image(0), input_boxes=BOXES, language="german")
    with pytest.raises(
        ValueError, match=r"learned none \(add_languages, or model\.languages in a recipe, adds some\)"
    ):
        processor(tiny_image(0), input_boxes=BOXES, language="de")
    with pytest.raises(ValueError, match="for the task 'recognition' this model learned none"):
        ours(tiny_image(0), input_boxes=BOXES, task="recognition", language="de")


def test_several_languages_take_one_encoding_and_one_pass_of_the_mixer(spoken, monkeypatch):
    model, ours = spoken
    with torch.no_grad():
        model.mixer.task_tokens.weight.add_(torch.randn_like(model.mixer.task_tokens.weight))
    images, boxes = [tiny_image(0), tiny_image(1)], [*BOXES, [[1, 2, 30, 40]]]
    alone = [
        model.generate(**ours(images, input_boxes=boxes, language=tag), output_caption_scores=True, max_new_tokens=9)
        for tag in CAPTIONS
    ]
    calls = []
    for part in (model.sam.vision_encoder, model.mixer, model.sam.mask_decoder):
        part.register_forward_hook(lambda part, *_: calls.append(type(part).__name__))
    generate = type(model.language_model).generate
    monkeypatch.setattr(
        type(model.language_model), "generate", lambda self, *a, **k: (calls.append("lm"), generate(self, *a, **k))[1]
    )
    inputs = ours(images, input_boxes=boxes, language="en,de,zh")
    assert inputs["task_ids"].shape == (2, 2, 3)
    together = model.generate(**inputs, output_caption_scores=True, max_new_tokens=9)
    assert calls.count("lm") == 1 and len(calls) == len(set(calls)), "each part runs once"
    assert together.sequences.shape[:3] == (2, 2, 3) and together.pred_masks.shape == alone[0].pred_masks.shape
    records = ours.post_process_regions(together, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    for place, one in enumerate(alone):
        assert torch.allclose(together.caption_scores[:, :, place], one.caption_scores, atol=1e-5)
        wanted = ours.batch_decode(one)
        assert [[region["caption"][place] for region in regions] for regions in records] == wanted
    assert len({tuple(region["caption"]) for regions in records for region in regions}) > 1


def test_several_languages_are_asked_of_generate_alone(spoken):
    model, ours = spoken
    inputs = ours(tiny_image(0), input_boxes=BOXES, language="en,de")
    with pytest.raises(ValueError, match="for generate, without a listener"):
        model.generate(**inputs, output_agreements=True)
    with pytest.raises(ValueError, match="for generate, without a listener"):
        model(**ours(tiny_image(0), input_boxes=BOXES, language="en,de", captions=[["a", "b"]]))
    for wrong in ("de,", ",", "de,de-AT", "de,fr", ["de,en", "en"]):
        with pytest.raises(ValueError, match="language"):
            ours(tiny_image(0), input_boxes=BOXES, language=wrong)
    with pytest.raises(ValueError, match="captions are in one language"):
        AnythingSettings(language="en,de")
    bad = inputs["task_ids"].clone()
    bad[0, 1, 0] = 99
    with pytest.raises(ValueError, match="task_ids of image 0, region 1 is 99"):
        model.generate(**{**inputs, "task_ids": bad})


def test_padded_regions_of_another_task_do_not_disturb_several_languages(spoken):
    model, ours = spoken
    images, boxes, tasks = [tiny_image(0), tiny_image(1)], [*BOXES, [[1, 2, 30, 40]]], [["caption"] * 2, ["caption"]]
    inputs = ours(images, input_boxes=boxes, task=tasks, language="de,zh")
    assert [len(texts) for texts in ours.batch_decode(model.generate(**inputs, max_new_tokens=3))] == [2, 1]


def test_a_caption_is_learned_in_its_language(spoken, processor, monkeypatch):
    ours = spoken[1]
    batches = [RegionCollator(ours)([record() | {"draw": (0, 0, index)}]) for index in range(24)]
    said = {(ours.tasks[b["task_ids"][0, 0]], ours.batch_decode(b["labels"])[0][0]) for b in batches}
    assert {task for task, _ in said} == {f"caption:{tag}" for tag in CAPTIONS} and len(said) == 3
    assert ("caption:en", CAPTIONS["en"]) in said
    warned = []
    monkeypatch.setattr("sca_hf.training.collator.logger.warning_once", warned.append)
    RegionCollator(processor)([record() | {"draw": (0, 0, 1)}])
    assert "have languages, but the model has no tasks for them (add_languages" in warned[0]
    with pytest.raises(ValueError, match="learned only en, de, zh"):
        RegionCollator(ours)([record(captions=["un triangle"], languages=["fr"]) | {"draw": (0, 0, 1)}])


def test_json_lines_say_languages_in_three_ways_and_return(tmp_path):
    given = written(
        tmp_path,
        {"captions": [{"text": "ein Ring", "language": "DE", "length": "short"}, "a red ring"]},
        {"captions": ["ein Ring", "um anel"], "languages": ["deu", "pt_BR"]},
        {"captions": ["红色圆环"], "language": "zh_hans"},
        {"captions": ["a ring"]},
    )
    dataset = load_regions(**given)
    regions = dataset[0]["regions"]
    assert [region["languages"] for region in regions] == [["de", None], ["de", "pt-BR"], ["zh-Hans"], None]
    assert [region["lengths"] for region in regions] == [["short", None], None, None, None]
    assert dataset.features == region_features(lengths=True, languages=True)
    dataset.to_json(tmp_path / "again.jsonl", lines=True, force_ascii=False)
    again = json.loads((tmp_path / "again.jsonl").read_text())
    assert [region["languages"] for region in again["regions"]] == [region["languages"] for region in regions]
    with pytest.raises(ValueError, match="lengths and languages, which only a stored data set keeps"):
        list(load_regions(**given, streaming=True))


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        (["de"], "for 3 captions"),
        (["de", "xx", None], "region 0: language is 'xx'"),
        ("german", "language is 'g'"),
        ([["de"], "de", "de"], "expected a tag"),
    ],
)
def test_languages_that_do_not_fit_the_captions_are_refused(languages, message):
    with pytest.raises(RegionRecordError, match=message):
        RegionRecord.from_dict(record(languages=languages))


def test_sets_with_lengths_languages_and_neither_are_mixed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    german = load_regions(**written(tmp_path / "a", {"captions": ["ein Ring"], "language": "de"}))
    short = load_regions(**written(tmp_path / "b", {"captions": ["a ring"], "length": "short"}))
    mixed = mix_regions([load_regions("scenes", count=1), german, short])
    assert mixed.features == region_features(lengths=True, languages=True)
    found = [(row["regions"][0]["lengths"], row["regions"][0]["languages"]) for row in mixed]
    assert sorted(found, key=str) == sorted([(None, None), (None, ["de"]), (["short"], None)], key=str)


def test_captions_in_other_languages_are_not_reworded_by_the_rules_of_english():
    row = record(captions=["a ring left of a star", "ein Ring links vom Stern"], language="en,de")
    (turned,) = _reworded(row["regions"], mirrored=True, angle=0)
    assert (turned["captions"], turned["languages"]) == (["a ring right of a star"], ["en"])
    (same,) = _reworded(row["regions"], mirrored=False, angle=0)
    assert (same["captions"], same["languages"]) == (row["regions"][0]["captions"], ["en", "de"])


@pytest.mark.parametrize("tool", ["cvat", "label_studio", "labelme", "yolo"])
def test_an_annotation_tool_keeps_languages_or_the_report_counts_them(tmp_path, tool):
    rows = [record(captions=["ein Ring"], languages=["de"], category="ring")]
    report = write_regions(tool, rows, tmp_path / "out")
    assert report.lost["languages of captions"] == int(tool != "cvat")
    if tool == "cvat":
        assert load_regions("cvat", root=tmp_path / "out")[0]["regions"][0]["languages"] == ["de"]


def test_everyone_who_captions_can_ask_for_a_language(spoken, tmp_path, capsys, monkeypatch):
    model, processor = spoken
    asked = []
    prefix = type(model.mixer).prefix
    monkeypatch.setattr(
        type(model.mixer),
        "prefix",
        lambda self, queries, ids: (
            asked.append([processor.tasks[i] for i in ids.flatten()]),
            prefix(self, queries, ids),
        )[1],
    )
    prompts = [[RegionPrompt(box=[3.0, 3.0, 40.0, 40.0])]]
    images = {"a": tiny_image(0)}
    list(caption_images(model, processor, images, prompts, language="de", max_new_tokens=2))
    pipe = pipeline_sca.RegionCaptioningPipeline(model=model, processor=processor)
    pipe(tiny_image(0), input_boxes=[[3, 3, 40, 40]], language="de", max_new_tokens=2)
    boxes = [[3, 3, 40, 40]]
    processor.caption_anything(model, tiny_image(0), boxes=boxes, settings={"language": "de"}, max_new_tokens=2)
    mask = torch.zeros(60, 80, dtype=torch.bool)
    mask[3:40, 3:40] = True
    processor.caption_video(model, [tiny_image(0)], masklets=[[mask.numpy()]], language="de", max_new_tokens=2)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    tiny_image(0).save(tmp_path / "a.png")
    command = ["caption", str(tmp_path / "a.png"), "--model", str(tmp_path / "model"), "--device", "cpu"]
    assert main([*command, "--language", "de-DE", "--json", "-"]) == 0
    assert asked == [["caption:de"]] * 5
    capsys.readouterr()
    assert main([*command, "--language", "en,zh", "--json", "-"]) == 0
    assert asked[-1] == ["caption:en", "caption:zh"]
    (said,) = json.loads(capsys.readouterr().out)
    assert said["languages"] == ["en", "zh"] and len(said["caption"]) == len(said["score"]) == 2
    assert main([*command, "--language", "fr", "--json", "-"]) != 0
    assert "this model learned only en, de, zh" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--language", "german"])
    assert "expected a tag of BCP 47" in capsys.readouterr().err
    several = pipe([tiny_image(0), tiny_image(1)], language="en,de", max_new_tokens=2)
    assert [len(regions[0]["caption"]) for regions in several] == [2, 2]


def test_a_recipe_adds_languages(tmp_path):
    section = ModelSection(**{"from": "sca-tiny", "lengths": ["short"], "languages": ["de", "zh_hans"]})
    args = ScaTrainingArguments(output_dir=str(tmp_path), report_to=[])
    tasks = build_empty_model(section, args, Configurations()).config.mixer_config.tasks
    assert tasks[2:] == ["caption:short", "caption:de", "caption:de:short", "caption:zh-Hans", "caption:zh-Hans:short"]


def test_a_recipe_cannot_promise_captions_that_the_language_model_has_no_positions_for(tmp_path):
    section = ModelSection(**{"from": "sca-tiny", "max_caption_length": 60})
    args = ScaTrainingArguments(output_dir=str(tmp_path), report_to=[])
    with pytest.raises(ValueError, match=r"60 tokens \(model\.max_caption_length\) .* at most 50 tokens fit"):
        build_empty_model(section, args, Configurations())


def test_evaluation_asks_for_each_language_and_compares_within_it(spoken, tmp_path, monkeypatch):
    model, processor = spoken
    model.generation_config.max_new_tokens = 4
    rows = [record() | {"image_id": str(number)} for number in range(8)]
    asked = [RegionCollator(processor, training=False)([row])["task_ids"][0, 0].item() for row in rows]
    assert len(set(asked)) == 3, "each language has some pictures"
    assert asked == [RegionCollator(processor, training=False)([row])["task_ids"][0, 0].item() for row in rows]
    monkeypatch.setattr(
        type(processor), "batch_decode", lambda self, output: [[CAPTIONS["de"]]] * len(output.sequences)
    )
    args = ScaTrainingArguments(output_dir=str(tmp_path), report_to=[], per_device_eval_batch_size=3, use_cpu=True)
    scores = ScaTrainer(model, args, rows, rows, processor).evaluate()
    german = sum(processor.tasks[task] == "caption:de" for task in asked)
    assert scores["eval_in_language"] == scores["eval_exact_match"] == pytest.approx(german / 8)
    assert {"eval_cider_d_en", "eval_cider_d_de", "eval_cider_d_zh"} <= set(scores)


@pytest.mark.slow
def test_one_model_says_the_same_region_in_three_languages(tokenizer, tmp_path):
    model = ScaForConditionalGeneration(tiny_config("smollm"))
    add_languages(model, list(CAPTIONS))
    model.config.max_caption_length = model.generation_config.max_new_tokens = 40
    processor = ScaProcessor.from_config(model.config, tokenizer)
    options = dict(output_dir=str(tmp_path), max_steps=250, learning_rate=5e-3, report_to=[], save_strategy="no")
    options |= dict(preset="mixer+lm", per_device_train_batch_size=4, module_learning_rates={"language_model": 5e-3})
    ScaTrainer(model, ScaTrainingArguments(**options), [record()] * 4, None, processor).train()
    model.eval()
    inputs = processor(tiny_image(0), input_boxes=[[BOXES[0][0]]], language=",".join(CAPTIONS))
    texts = [processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) for text in CAPTIONS.values()]
    assert processor.batch_decode(model.generate(**inputs)) == [[texts]]

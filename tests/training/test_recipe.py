"""Runs by a recipe: what they leave behind, resuming after an interruption, stages, changed models."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import records

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.hub.info import describe_repository
from sca_hf.processing.find_sca import FIND_THRESHOLD
from sca_hf.testing import tiny_sam_config, tiny_tokenizer
from sca_hf.training.arguments import ScaTrainingArguments
from sca_hf.training.checkpoint.integrity import CheckpointError
from sca_hf.training.image_size import add_detail_encoder, set_image_size
from sca_hf.training.recipe import run as recipe_module
from sca_hf.training.recipe.run import build_datasets, build_model, run_recipe
from sca_hf.training.recipe.schema import ModelSection, Recipe, load_recipe
from sca_hf.training.trainer import ScaTrainer


TRAINING = {
    "max_steps": 4,
    "save_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 3e-3,
    "warmup_steps": 0,
    "use_cpu": True,
    "disable_tqdm": True,
    "sample_sheet": 0,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def base(make_model, processor, tmp_path):
    """A saved model, whose parts are saved too."""
    folder, model = tmp_path / "base", make_model()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def regions(tmp_path):
    """A file of regions as anyone might write it."""
    return write_regions(tmp_path / "regions.jsonl", records())


def write_regions(path, rows):
    lines = []
    for row in rows:
        row["image"].save(path.with_name(f"{path.stem}-{row['image_id']}.png"))
        lines.append(
            {**row, "image": f"{path.stem}-{row['image_id']}.png", "image_id": f"{path.stem}-{row['image_id']}"}
        )
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def recipe(base, regions, output, model=None, data=None, **training):
    values = {
        "model": model or {"from": str(base)},
        "data": data or {"train": {"format": "jsonl", "path": str(regions)}, "holdout": 0.25},
        "training": {**TRAINING, **training},
        "output": str(output),
    }
    return Recipe.from_mapping(values)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_a_run_leaves_a_model_its_scores_and_its_recipe(base, regions, tmp_path):
    output = tmp_path / "run"
    result = run_recipe(recipe(base, regions, output))
    model = ScaForConditionalGeneration.from_pretrained(result.model)
    ScaProcessor.from_pretrained(result.model)
    assert describe_repository(str(result.model)).kind == "mixer-only" and not model.include_base_models
    before = load_file(base / "model.safetensors")
    assert not torch.equal(model.mixer.task_tokens.weight, before["mixer.task_tokens.weight"])
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["eval"].keys() >= {"eval_loss", "eval_cider_d"} and metrics["train"]["train_loss"] > 0
    assert load_recipe(output / "recipe.yaml") == recipe(base, regions, output)
    card = (result.model / "README.md").read_text()
    assert "library_name: transformers\n" in card and "draft: true\n" in card and "image-text-to-text" in card
    assert f"| loss | {metrics['eval']['eval_loss']:.4f} |" in card
    assert not (result.model / "training_args.bin").exists(), "a pickle"


def test_pictures_that_are_trained_on_and_scored_are_told(base, regions, tmp_path, caplog):
    rows = [json.loads(line) for line in regions.read_text().splitlines()]
    copied = [{**row, "image": f"copy-{row['image']}", "image_id": f"copy {k}"} for k, row in enumerate(rows[:2])]
    for row in copied:
        shutil.copy(tmp_path / row["image"].removeprefix("copy-"), tmp_path / row["image"])
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, copied)))
    train, score = ({"format": "jsonl", "path": str(path)} for path in (regions, tmp_path / "eval.jsonl"))
    run_recipe(recipe(base, regions, tmp_path / "run", data={"train": train, "eval": score}, max_steps=1))
    names = ", ".join(row["image"] for row in copied)
    assert f"pictures of the evaluation set that are trained on too: 2 ({names})" in caplog.text
    caplog.clear()
    run_recipe(recipe(base, regions, tmp_path / "split", max_steps=1))
    assert "trained on too" not in caplog.text


def test_a_finished_run_is_left_as_it_is(base, regions, tmp_path, monkeypatch):
    first = run_recipe(recipe(base, regions, tmp_path / "run"))
    monkeypatch.setattr(recipe_module, "build_model", lambda *_: pytest.fail("began again"))
    again = run_recipe(recipe(base, regions, tmp_path / "run"))
    assert again.found_finished and "already finished" in str(again)
    assert again.metrics["eval"] == first.metrics["eval"]
    with pytest.raises(CheckpointError, match=r"another run \(training.learning_rate was 0.003 and is 0.1\)"):
        run_recipe(recipe(base, regions, tmp_path / "run", learning_rate=0.1))


def test_an_interrupted_run_goes_on_to_the_same_weights(base, regions, tmp_path, monkeypatch):
    run_recipe(recipe(base, regions, tmp_path / "straight"))
    calls, step = [], ScaTrainer.training_step

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(ScaTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe(base, regions, tmp_path / "broken"))
    assert not (tmp_path / "broken" / "model").exists() and (tmp_path / "broken" / "checkpoint-2").exists()
    run_recipe(recipe(base, regions, tmp_path / "broken"))
    assert len(calls) == 6, "two steps from the checkpoint on"
    straight, broken = weights(tmp_path / "straight"), weights(tmp_path / "broken")
    assert straight.keys() == broken.keys()
    assert all(torch.equal(straight[name], value) for name, value in broken.items())


def test_stages_chain_by_path(base, regions, tmp_path):
    names = {"train": {"format": "jsonl", "path": str(regions), "task": "recognition"}}
    run_recipe(recipe(base, regions, tmp_path / "names", data=names))
    chained = {"from": str(tmp_path / "names" / "model")}
    result = run_recipe(recipe(base, regions, tmp_path / "captions", model=chained))
    first, second = weights(tmp_path / "names"), weights(tmp_path / "captions")
    assert first.keys() == second.keys()
    assert not torch.equal(first["mixer.caption_tokens.weight"], second["mixer.caption_tokens.weight"])
    # Both stages stand on the same SAM and language model.
    base_models = json.loads((result.model / "config.json").read_text())["base_model_repos"]
    assert {source["path"] for source in base_models.values()} == {str(base)}


def test_a_recipe_swaps_parts_and_says_what_is_new(base, regions, make_model, tmp_path):
    make_model("open_llama").language_model.save_pretrained(tmp_path / "llama")
    tiny_tokenizer(unk_token=None).save_pretrained(tmp_path / "llama")
    swapped = {"from": str(base), "swap_language_model": str(tmp_path / "llama")}
    result = run_recipe(recipe(base, regions, tmp_path / "run", model=swapped, max_steps=1))
    assert result.metrics["trained_from_scratch"] == ["mixer.language_project", "mixer.task_tokens"]
    assert "mixer.language_project" in str(result)
    loaded = ScaForConditionalGeneration.from_pretrained(result.model)
    assert loaded.config.text_config.model_type == "llama"
    assert ScaProcessor.from_pretrained(result.model).tokenizer.unk_token is None, "the new one's tokenizer"


def test_a_new_mixer_between_two_parts(base, make_model, tmp_path):
    model = make_model("open_llama")
    model.sam.save_pretrained(tmp_path / "sam")
    model.language_model.save_pretrained(tmp_path / "llama")
    tiny_tokenizer().save_pretrained(tmp_path / "llama")
    section = ModelSection(
        sam=str(tmp_path / "sam"),
        language_model=str(tmp_path / "llama"),
        mixer={"num_hidden_layers": 2, "num_attention_heads": 4, "mlp_dim": 64},
        label_smoothing=0.2,
        max_caption_length=7,
    )
    args = ScaTrainingArguments(str(tmp_path), frozen_dtype="bfloat16", use_cpu=True)
    built, processor, new = build_model(section, args)
    assert new == ["mixer"] and len(built.mixer.transformer.layers) == 2
    assert built.language_model.dtype == torch.bfloat16 and built.mixer.dtype == torch.float32
    assert (built.config.label_smoothing, processor.max_caption_length) == (0.2, 7)


def test_weights_stored_in_half_precision_are_trained_in_single(base, tmp_path):
    ScaForConditionalGeneration.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    ScaProcessor.from_pretrained(base).save_pretrained(tmp_path / "half")
    args = ScaTrainingArguments(str(tmp_path), use_cpu=True)
    model, _, new = build_model(ModelSection(**{"from": str(tmp_path / "half")}), args)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and new == []


def test_settings_for_everything_stay_with_their_image_encoder(base, processor, tmp_path):
    processor = copy.copy(processor)
    processor.anything_settings = {"points_per_side": 7}
    processor.save_pretrained(base)
    args = ScaTrainingArguments(str(tmp_path), use_cpu=True)
    closer = ModelSection(**{"from": str(base)}, image_size=128, patch_size=16)
    other = ModelSection(**{"from": str(base)}, swap_image_encoder=str(base))
    for section, points in ((ModelSection(**{"from": str(base)}), 7), (closer, 7), (other, 32)):
        assert build_model(section, args)[1].anything_settings_for().points_per_side == points


def test_the_threshold_of_finding_stays_with_what_is_said(base, processor, make_model, tmp_path):
    make_model("open_llama").language_model.save_pretrained(tmp_path / "llama")
    tiny_tokenizer().save_pretrained(tmp_path / "llama")
    processor = copy.copy(processor)
    processor.find_threshold = -2.5
    processor.save_pretrained(base)
    args = ScaTrainingArguments(str(tmp_path), use_cpu=True)
    other = ModelSection(**{"from": str(base)}, swap_language_model=str(tmp_path / "llama"))
    for section, lowest in ((ModelSection(**{"from": str(base)}), -2.5), (other, FIND_THRESHOLD)):
        assert build_model(section, args)[1].find_threshold == lowest


def test_another_image_size_interpolates_positions(base, regions, tmp_path):
    section = ModelSection(**{"from": str(base)}, image_size=96)
    model, processor, new = build_model(section, ScaTrainingArguments(str(tmp_path), use_cpu=True))
    assert "mixer" in new and processor.mask_size == 48 and not model.base_sources
    vision = model.sam.vision_encoder
    assert vision.pos_embed.shape[1:3] == (12, 12)
    old = ScaForConditionalGeneration.from_pretrained(base).sam.vision_encoder
    # What it was in the middle of the table is there still; all else is untouched.
    torch.testing.assert_close(vision.pos_embed.mean(), old.pos_embed.mean(), atol=0.05, rtol=0)
    assert torch.equal(vision.layers[0].attn.qkv.weight, old.layers[0].attn.qkv.weight)
    result = run_recipe(
        recipe(base, regions, tmp_path / "run", model={"from": str(base), "image_size": 96}, max_steps=1)
    )
    assert ScaForConditionalGeneration.from_pretrained(result.model).config.sam_config.vision_config.image_size == 96


def test_the_same_image_size_changes_nothing_and_a_wrong_one_is_refused(model):
    sam = model.sam
    assert set_image_size(model, tiny_sam_config().vision_config.image_size) == [] and model.sam is sam
    with pytest.raises(ValueError, match="image_size is 65, expected a multiple of the patch size 8"):
        set_image_size(model, 65)


def test_larger_patches_of_a_larger_picture_are_read_as_the_smaller_were(model):
    small = torch.randn(1, 3, 64, 64)
    before = model.sam.get_image_embeddings(small)
    large = small.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert set_image_size(model, 128, patch_size=16) == []
    assert model.config.sam_config.prompt_encoder_config.image_embedding_size == 8
    torch.testing.assert_close(model.sam.get_image_embeddings(large), before, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="patch_size is 24, expected a multiple of the old 16"):
        set_image_size(model, 192, patch_size=24)
    add_detail_encoder(model, [4, 4, 4, 8])
    with pytest.raises(ValueError, match="must keep its patch size"):
        set_image_size(model, 256, patch_size=32)


def test_a_patch_size_alone_and_steps_below_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.patch_size needs model\.image_size"):
        ModelSection(**{"from": "x"}, patch_size=16)
    with pytest.raises(ValueError, match="detail_steps is -1"):
        ScaTrainingArguments(str(tmp_path), detail_steps=-1, use_cpu=True)


def test_a_recipe_teaches_details_first_and_once(base, regions, tmp_path):
    closer = {"from": str(base), "image_size": 128, "patch_size": 16, "detail_widths": [4, 4, 4, 8]}
    given = recipe(base, regions, tmp_path / "run", model=closer, max_steps=2, detail_steps=3, preset="mixer")
    result = run_recipe(given)
    assert result.metrics["trained_from_scratch"] == ["detail_encoder"]
    model = ScaForConditionalGeneration.from_pretrained(result.model)
    assert model.detail_encoder.stem_norm.num_batches_tracked == 3 and model.detail_encoder.projection.weight.any()
    assert ScaProcessor.from_pretrained(result.model).image_processor.size["longest_edge"] == 128
    # A run that was killed before its first checkpoint teaches nothing again, and ends the same.
    taught = tmp_path / "run" / "details"
    other = tmp_path / "again"
    other.mkdir()
    taught.rename(other / "details")
    again = run_recipe(recipe(base, regions, other, model=closer, max_steps=2, detail_steps=3, preset="mixer"))
    weights = ScaForConditionalGeneration.from_pretrained(again.model).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value), name


def test_sets_are_mixed_and_held_out_one_by_one(tmp_path):
    paths = [write_regions(tmp_path / f"{name}.jsonl", records(count)) for name, count in (("a", 8), ("b", 4))]
    train = [{"format": "jsonl", "path": str(path), "as": path.stem, "weight": 1} for path in paths]
    data = Recipe.from_mapping({"model": {"from": "x"}, "data": {"train": train, "holdout": 0.25}, "output": "y"}).data
    mixed, held = build_datasets(data)
    assert {name: len(part) for name, part in held.items()} == {"a": 2, "b": 1}
    tested = {name for part in held.values() for name in part["image_id"]}
    assert tested.isdisjoint(mixed["image_id"]) and len(set(mixed["image_id"])) == 9


def test_evaluation_is_not_repeated_after_the_last_step(base, regions, tmp_path, monkeypatch):
    calls, evaluate = [], ScaTrainer.evaluate
    monkeypatch.setattr(ScaTrainer, "evaluate", lambda *args, **kwargs: calls.append(1) or evaluate(*args, **kwargs))
    options = dict(max_steps=1, eval_strategy="steps", eval_steps=1)
    result = run_recipe(recipe(base, regions, tmp_path / "run", **options))
    assert len(calls) == 1 and result.metrics["eval"]["eval_loss"] > 0


def test_pictures_from_outside_give_a_confidence_and_the_data_a_scope(base, regions, tmp_path, monkeypatch):
    monkeypatch.setattr("sca_hf.training.confidence._STEPS", 50)
    fit = recipe_module.fit_confidence
    monkeypatch.setattr(recipe_module, "fit_confidence", lambda *arguments: fit(*arguments, regions=60))
    names = [
        {**row, "regions": [{**one, "captions": [one["category"]]} for one in row["regions"]]} for row in records()
    ]
    for region in names[0]["regions"]:
        region["category"] = None  # as labels by a model have none
    outside = write_regions(tmp_path / "outside.jsonl", records(6))
    data = {"train": {"as": "farm", "format": "jsonl", "path": str(write_regions(regions, names))}}
    data["outside"] = {"format": "jsonl", "path": str(outside)}
    model = {"from": str(base), "scope": {"limits": "Daylight only."}}
    done = run_recipe(recipe(base, regions, tmp_path / "run", model, data))
    assert done.metrics["confidence"].keys() == {"inside", "outside", "unsure_inside", "unsure_outside"}
    trained = ScaForConditionalGeneration.from_pretrained(done.model)
    assert trained.confidence_head is not None
    scope = {"trained_on": "farm", "knows": "3 names: cat, ring, star", "limits": "Daylight only.", "narrow": True}
    assert trained.config.scope == scope
    # A further stage has learned more, and must measure its confidence again.
    again = run_recipe(recipe(done.model, regions, tmp_path / "again"))
    further = ScaForConditionalGeneration.from_pretrained(again.model)
    assert further.confidence_head is None and "confidence" not in again.metrics
    assert further.config.scope["trained_on"] == "jsonl; before that: farm"


def test_what_a_recipe_says_of_scope_and_outside_is_checked_first(base, regions, tmp_path):
    with pytest.raises(ValueError, match="scope must be a mapping"):
        recipe(base, regions, tmp_path / "run", {"from": str(base), "scope": {"cats": "all"}})
    data = {"train": {"format": "jsonl", "path": str(regions)}, "outside": {"format": "nothing"}}
    with pytest.raises(ValueError, match=r"data\.outside\.0"):
        recipe(base, regions, tmp_path / "run", data=data)

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, Trainer, TrainingArguments, pipeline

from sca_hf import ScaForConditionalGeneration
from sca_hf.testing import tiny_image, tiny_sam_config, tiny_text_config, tiny_tokenizer


MIXER = {"num_hidden_layers": 2, "num_attention_heads": 4, "mlp_dim": 64}


@pytest.fixture
def inputs(processor):
    boxes = [[[3, 3, 40, 40], [20, 10, 70, 50]], [[1, 1, 30, 30]]]
    return processor([tiny_image(0), tiny_image(1)], input_boxes=boxes, return_tensors="pt")


@pytest.fixture
def parts(make_model, tmp_path):
    """Folders of a SAM and of an untied Llama, as anyone would have them."""
    model = make_model("open_llama")
    model.sam.save_pretrained(tmp_path / "sam")
    model.language_model.save_pretrained(tmp_path / "llama")
    return tmp_path / "sam", tmp_path / "llama"


@pytest.fixture
def joined(parts):
    return ScaForConditionalGeneration.from_sam_text_pretrained(*parts, mixer_config=MIXER)


@pytest.fixture
def mixer_only(joined, tmp_path):
    joined.save_pretrained(tmp_path / "mixer", include_base_models=False)
    return tmp_path / "mixer"


def assert_same_output(model, other, inputs):
    ours, theirs = model.generate(**inputs), other.generate(**inputs)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert torch.equal(ours.pred_masks, theirs.pred_masks)


def edit_weights(folder, edit):
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def save(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["gpt2", "open_llama", "gemma3"])
def test_a_whole_repository_gives_the_model_back(make_model, inputs, tmp_path, family):
    model = make_model(family)
    loaded = ScaForConditionalGeneration.from_pretrained(save(model, tmp_path / "whole"))
    assert_same_output(loaded, model, inputs)
    frozen = {name.split(".")[0] for name, weight in loaded.named_parameters() if not weight.requires_grad}
    assert frozen == {"sam", "language_model"} and not loaded.training


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mixer.task_tokens.weight", "missing"),
        ("sam.mask_decoder.iou_token.weight", "missing"),
        ("language_model.transformer.wpe.weight", "missing"),
        ("mixer.surprise.weight", "unexpected"),
        ("mixer.language_project.weight", "mis-shaped"),
    ],
)
def test_weights_that_do_not_fit_are_named(model, tmp_path, name, kind):
    def edit(state):
        if kind == "missing":
            del state[name]
        else:
            state[name] = torch.ones(3, 3)

    edit_weights(save(model, tmp_path / "whole"), edit)
    with pytest.raises(RuntimeError, match=rf"1 weights of .*\n  {kind}: {name}"):
        AutoModel.from_pretrained(tmp_path / "whole")


def test_leniency_is_explicit(model, tmp_path):
    def edit(state):
        state["mixer.language_project.bias"] = torch.ones(3)
        state["surprise"] = torch.ones(1)
        del state["mixer.task_tokens.weight"]

    folder = save(model, tmp_path / "whole")
    edit_weights(folder, edit)
    with pytest.raises(RuntimeError, match="mis-shaped"):
        AutoModel.from_pretrained(folder, strict=False)
    with pytest.raises(RuntimeError, match="missing"):
        AutoModel.from_pretrained(folder, ignore_mismatched_sizes=True)
    loaded, info = AutoModel.from_pretrained(
        folder, strict=False, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert info["missing_keys"] == {"mixer.task_tokens.weight"}
    assert torch.equal(loaded.mixer.caption_tokens.weight, model.mixer.caption_tokens.weight)


def test_joining_parts_changes_neither(parts, inputs):
    alone = AutoModelForCausalLM.from_pretrained(parts[1])
    joined = ScaForConditionalGeneration.from_sam_text_pretrained(*parts, mixer_config=MIXER)
    ids = torch.arange(6)[None]
    logits = joined.language_model(ids).logits
    torch.testing.assert_close(logits, alone(ids).logits)
    # The last token must not be seen from earlier positions.
    changed = torch.cat([ids[:, :-1], ids[:, -1:] + 7], dim=1)
    torch.testing.assert_close(joined.language_model(changed).logits[:, :-1], logits[:, :-1])
    sam = AutoModel.from_pretrained(parts[0])
    torch.testing.assert_close(
        joined.get_image_embeddings(inputs["pixel_values"]), sam.get_image_embeddings(inputs["pixel_values"])
    )
    assert joined.config.sam_config is joined.sam.config and joined.config.text_config is joined.language_model.config


def test_loaded_models_can_be_joined_too(parts, tmp_path):
    sam, llama = AutoModel.from_pretrained(parts[0]), AutoModelForCausalLM.from_pretrained(parts[1])
    before = llama.config._attn_implementation
    model = ScaForConditionalGeneration.from_sam_text_pretrained(sam, llama, mixer_config=MIXER)
    assert model.language_model is llama and llama.config._attn_implementation == before
    # Nobody knows whether they still are what they were when they were loaded.
    with pytest.raises(ValueError, match="passed as loaded models"):
        model.save_pretrained(tmp_path / "mixer", include_base_models=False)


def test_arguments_reach_their_part(parts):
    model = ScaForConditionalGeneration.from_sam_text_pretrained(
        *parts, mixer_config=MIXER, text_dtype=torch.bfloat16, sam_attn_implementation="eager", label_smoothing=0.0
    )
    assert model.language_model.dtype == torch.bfloat16 and model.sam.dtype == model.mixer.dtype == torch.float32
    assert model.sam.config.vision_config._attn_implementation == "eager"
    assert model.language_model.config._attn_implementation == "sdpa"
    assert model.config.label_smoothing == 0.0
    with pytest.raises(TypeError, match="'revison'"):
        ScaForConditionalGeneration.from_sam_text_pretrained(*parts, revison="main")
    with pytest.raises(ValueError, match="model_type 'llama'"):
        ScaForConditionalGeneration.from_sam_text_pretrained(parts[1], parts[1])


def test_a_frozen_language_model_has_no_dropout(make_model, tmp_path):
    text = tiny_text_config("gpt2", resid_pdrop=0.5)
    AutoModelForCausalLM.from_config(text).save_pretrained(tmp_path / "gpt2")
    AutoModel.from_config(tiny_sam_config()).save_pretrained(tmp_path / "sam")
    model = ScaForConditionalGeneration.from_sam_text_pretrained(tmp_path / "sam", tmp_path / "gpt2").train()
    assert {layer.p for layer in model.modules() if isinstance(layer, torch.nn.Dropout)} == {0.0}


def test_end_tokens_of_the_language_model_survive_but_not_its_sampling(parts, tmp_path, inputs):
    sam, text = parts
    settings = {"eos_token_id": [2, 5], "pad_token_id": 0, "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    (text / "generation_config.json").write_text(json.dumps(settings))
    model = ScaForConditionalGeneration.from_sam_text_pretrained(sam, text, mixer_config=MIXER)
    for folder, include_base_models in (("whole", True), ("mixer", False)):
        model.save_pretrained(tmp_path / folder, include_base_models=include_base_models)
        loaded = AutoModel.from_pretrained(tmp_path / folder)
        assert loaded.generation_config.eos_token_id == [2, 5]
        assert not loaded.generation_config.do_sample
        assert_same_output(loaded, model, inputs)


def test_a_mixer_only_repository_holds_the_mixer_only(joined, mixer_only, parts):
    state = load_file(mixer_only / "model.safetensors")
    assert state.keys() == {f"mixer.{name}" for name in joined.mixer.state_dict()}
    repos = json.loads((mixer_only / "config.json").read_text())["base_model_repos"]
    assert repos["sam"]["path"] == str(parts[0]) and len(repos["language_model"]["sha256"]) == 64


def test_a_mixer_only_repository_loads_like_a_whole_one(joined, mixer_only, inputs, tmp_path):
    loaded = AutoModel.from_pretrained(mixer_only, attn_implementation="eager", label_smoothing=0.3)
    assert_same_output(AutoModel.from_pretrained(mixer_only), joined, inputs)
    assert loaded.config.label_smoothing == 0.3
    configs = (loaded.sam.config.vision_config, loaded.mixer.config, loaded.language_model.config)
    assert {config._attn_implementation for config in configs} == {"eager"}
    # It stays of its kind, and can be made whole.
    loaded.save_pretrained(tmp_path / "again")
    assert (
        load_file(tmp_path / "again" / "model.safetensors").keys()
        == load_file(mixer_only / "model.safetensors").keys()
    )
    loaded.save_pretrained(tmp_path / "whole", include_base_models=True)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["base_model_repos"] is None
    assert_same_output(AutoModel.from_pretrained(tmp_path / "whole"), joined, inputs)


def test_the_base_may_be_part_of_a_whole_repository(model, inputs, tmp_path):
    whole = ScaForConditionalGeneration.from_pretrained(save(model, tmp_path / "whole"))
    whole.save_pretrained(tmp_path / "mixer", include_base_models=False)
    repos = json.loads((tmp_path / "mixer" / "config.json").read_text())["base_model_repos"]
    assert repos["sam"]["part"] == "sam" and repos["sam"]["path"] == str(tmp_path / "whole")
    assert_same_output(AutoModel.from_pretrained(tmp_path / "mixer"), model, inputs)
    with pytest.raises(ValueError, match="would overwrite it"):
        whole.save_pretrained(tmp_path / "whole", include_base_models=False)
    other = ScaForConditionalGeneration.from_sam_text_pretrained(
        tmp_path / "whole", tmp_path / "whole", mixer_config=MIXER
    )
    assert torch.equal(other.language_model.lm_head.weight, model.language_model.lm_head.weight)


def test_a_base_of_other_weights_is_refused(mixer_only, parts, joined, inputs):
    edit_weights(parts[1], lambda state: state["lm_head.weight"].add_(1))
    with pytest.raises(ValueError, match=r"not those that .* was trained with \(language_model\)(.|\n)*base_models="):
        AutoModel.from_pretrained(mixer_only)
    given = AutoModel.from_pretrained(mixer_only, base_models={"language_model": joined.language_model})
    assert_same_output(given, joined, inputs)


def test_a_base_that_moved_is_found_beside_the_repository_or_asked_for(mixer_only, parts, joined, inputs, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for folder in (mixer_only, *parts):
        shutil.move(folder, moved / folder.name)
    assert_same_output(AutoModel.from_pretrained(moved / "mixer"), joined, inputs)
    shutil.move(moved / "llama", tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=r"base_models=\{'language_model'"):
        AutoModel.from_pretrained(moved / "mixer")
    found = AutoModel.from_pretrained(moved / "mixer", base_models={"language_model": tmp_path / "away"})
    assert_same_output(found, joined, inputs)


def into_cache(cache, repo_id, commit, folder, is_main):
    """Lay a folder into a Hub cache, as a download of one commit would."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    if is_main:
        (repository / "refs" / "main").write_text(commit)


def test_base_models_from_the_hub_are_pinned_to_their_commits(parts, inputs, tmp_path, make_model):
    cache, old, new = tmp_path / "cache", "a" * 40, "b" * 40
    into_cache(cache, "some/sam", old, parts[0], is_main=True)
    into_cache(cache, "some/llama", old, parts[1], is_main=True)
    model = ScaForConditionalGeneration.from_sam_text_pretrained("some/sam", "some/llama", MIXER, cache_dir=cache)
    model.save_pretrained(tmp_path / "mixer", include_base_models=False)
    assert model.base_sources["sam"] == {"repo_id": "some/sam", "revision": old}
    # Later commits of the base models must not change what the mixer was trained with.
    edit_weights(parts[1], lambda state: state["lm_head.weight"].mul_(-1))
    into_cache(cache, "some/llama", new, parts[1], is_main=True)
    loaded = AutoModel.from_pretrained(tmp_path / "mixer", cache_dir=cache)
    assert_same_output(loaded, model, inputs)


def test_a_mixer_only_save_never_loses_anything(model, joined, tmp_path):
    with pytest.raises(ValueError, match="could not name"):
        model.save_pretrained(tmp_path / "a", include_base_models=False)
    joined.sam.mask_decoder.requires_grad_(True)
    with pytest.raises(ValueError, match=r"sam\.mask_decoder.*include_base_models=True"):
        joined.save_pretrained(tmp_path / "a", include_base_models=False)
    assert not (tmp_path / "a" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["whole", "mixer"])
def test_half_precision_keeps_positions_in_float32(joined, inputs, tmp_path, kind):
    joined.save_pretrained(tmp_path / kind, include_base_models=kind == "whole")
    loaded = AutoModel.from_pretrained(tmp_path / kind, dtype=torch.bfloat16)
    assert {part.dtype for part in (loaded.mixer, loaded.language_model)} == {torch.bfloat16}
    exact = [name for name, weight in loaded.named_parameters() if weight.dtype == torch.float32]
    assert exact == ["sam.shared_image_embedding.positional_embedding"]
    loaded.save_pretrained(tmp_path / "half", include_base_models=kind == "whole")
    loaded = AutoModel.from_pretrained(tmp_path / "half")
    assert (
        loaded.dtype == loaded.language_model.dtype == loaded.sam.mask_decoder.iou_token.weight.dtype == torch.bfloat16
    )
    ours, theirs = loaded.sam.shared_image_embedding, joined.sam.shared_image_embedding
    assert torch.equal(ours.positional_embedding, theirs.positional_embedding)


def test_parts_of_different_precision_come_back_as_they_were(parts, tmp_path):
    model = ScaForConditionalGeneration.from_sam_text_pretrained(*parts, mixer_config=MIXER, text_dtype="bfloat16")
    model.save_pretrained(tmp_path / "mixer", include_base_models=False)
    loaded = AutoModel.from_pretrained(tmp_path / "mixer")
    assert loaded.language_model.dtype == torch.bfloat16
    assert loaded.sam.dtype == loaded.mixer.dtype == torch.float32


def test_swapping_the_language_model_renews_what_speaks_to_it(joined, make_model, inputs, tmp_path):
    queries = joined(**inputs, input_ids=torch.ones(2, 2, 3, dtype=torch.long)).query_embeds
    save_opt = make_model("opt").language_model.save_pretrained
    save_opt(tmp_path / "opt")
    again = joined.swap_language_model(tmp_path / "opt")
    assert again == ["mixer.language_project", "mixer.task_tokens"]
    assert joined.mixer.language_project.out_features == joined.mixer.task_tokens.embedding_dim == 16
    after = joined(**inputs, input_ids=torch.ones(2, 2, 3, dtype=torch.long)).query_embeds
    torch.testing.assert_close(after, queries)
    joined.save_pretrained(tmp_path / "swapped", include_base_models=False)
    assert_same_output(AutoModel.from_pretrained(tmp_path / "swapped"), joined, inputs)


def test_swapping_sam_keeps_the_mixer(joined, make_model, inputs, tmp_path):
    hq = make_model("gpt2", "sam_hq").sam
    hq.save_pretrained(tmp_path / "hq")
    mixer = {name: tensor.clone() for name, tensor in joined.mixer.state_dict().items()}
    assert joined.swap_image_encoder(tmp_path / "hq") == ["mixer"]
    assert joined.config.sam_config.model_type == "sam_hq"
    assert all(torch.equal(tensor, mixer[name]) for name, tensor in joined.mixer.state_dict().items())
    joined.save_pretrained(tmp_path / "swapped")
    assert_same_output(AutoModel.from_pretrained(tmp_path / "swapped"), joined, inputs)
    wide = AutoModel.from_config(tiny_sam_config(width=64))
    with pytest.raises(ValueError, match="64 wide"):
        joined.swap_image_encoder(wide)


def test_a_tokenizer_larger_than_the_language_model_raises(model, tokenizer):
    model.check_tokenizer(tokenizer)
    larger = tiny_tokenizer()
    larger.add_tokens([f"<{i}>" for i in range(model.config.text_config.vocab_size)])
    with pytest.raises(ValueError, match="embeds only"):
        model.check_tokenizer(larger)


def test_the_configuration_names_code_for_every_auto_class(model, tmp_path):
    config = json.loads((save(model, tmp_path / "whole") / "config.json").read_text())
    classes = {"AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForMaskGeneration"}
    assert config["auto_map"].keys() == classes
    pipelines = config["custom_pipelines"]
    assert pipelines["region-captioning"]["impl"] == "pipeline_sca.RegionCaptioningPipeline"
    files = {path.name for path in (tmp_path / "whole").iterdir()}
    named = [reference.split(".")[0] for reference in (*config["auto_map"].values(), "pipeline_sca.x")]
    assert {f"{name}.py" for name in named} <= files


def test_training_checkpoints_hold_the_mixer_and_resume(mixer_only, processor, tmp_path):
    batch = dict(processor(tiny_image(0), captions=["a plain blue triangle"], return_tensors="pt"))

    def train(steps, **kwargs):
        arguments = TrainingArguments(
            tmp_path / f"run{steps}", max_steps=steps, save_steps=2, report_to="none", use_cpu=True, disable_tqdm=True,
            remove_unused_columns=False, label_names=["labels"], learning_rate=1e-2, lr_scheduler_type="constant",
        )  # fmt: skip
        model = AutoModel.from_pretrained(mixer_only)
        data = [{name: value[0] for name, value in batch.items() if value.numel()}] * 4
        collate = lambda rows: {name: row[None] for name, row in rows[0].items()}  # noqa: E731
        trainer = Trainer(model, arguments, train_dataset=data, data_collator=collate, processing_class=processor)
        trainer.args.per_device_train_batch_size = 1
        trainer.train(**kwargs)
        return trainer

    halfway = train(2)
    checkpoint = tmp_path / "run2" / "checkpoint-2"
    assert all(name.startswith("mixer.") for name in load_file(checkpoint / "model.safetensors"))
    resumed, straight = train(4, resume_from_checkpoint=str(checkpoint)), train(4)
    state = straight.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in resumed.model.state_dict().items())
    assert not torch.equal(halfway.model.mixer.task_tokens.weight, straight.model.mixer.task_tokens.weight)
    loaded = AutoModel.from_pretrained(checkpoint)
    assert torch.equal(loaded.mixer.task_tokens.weight, halfway.model.mixer.task_tokens.weight)


def test_model_and_processor_load_from_subfolders(model, processor, inputs, tmp_path):
    model.save_pretrained(tmp_path / "both" / "v2")
    processor.save_pretrained(tmp_path / "both" / "v2")
    loaded = AutoModel.from_pretrained(tmp_path / "both", subfolder="v2")
    assert_same_output(model.eval(), loaded, inputs)
    again = AutoProcessor.from_pretrained(tmp_path / "both", subfolder="v2")
    assert again.to_dict() == processor.to_dict()
    loaded.save_pretrained(tmp_path / "mixers" / "v2", include_base_models=False)
    assert_same_output(model, AutoModel.from_pretrained(tmp_path / "mixers", subfolder="v2"), inputs)
    describe = pipeline("region-captioning", model=str(tmp_path / "both"), model_kwargs={"subfolder": "v2"})
    assert describe(tiny_image())[0]["caption"]


@pytest.mark.parametrize("where", [{}, {"subfolder": "v3"}])
def test_a_folder_without_a_model_is_named_with_those_that_have_one(where, model, tmp_path):
    model.save_pretrained(tmp_path / "v2")
    with pytest.raises(FileNotFoundError, match=f"{where.get('subfolder', '')} holds no config.json; .* one of v2"):
        ScaForConditionalGeneration.from_pretrained(tmp_path, **where)

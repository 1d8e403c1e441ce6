import json
import pickle
import re
import resource
from pathlib import Path

import pytest
import torch
from original_format import original_config, original_state_dict, write_checkpoint
from safetensors.torch import load_file

from sca_hf.files import DiskFullError
from sca_hf.hub.convert import CheckpointError, convert, plan_model
from sca_hf.hub.original import OriginalFormatError, rename_key, split_tensor, translate_config
from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.testing import tiny_tokenizer


FIXTURE = Path(__file__).parents[1] / "fixtures" / "original_sca_gpt2"


def same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_every_published_key_is_accounted_for(shared):
    published = json.loads(shared("fixtures/published_keys_gpt2_large.json").read_text())
    config = translate_config(
        {
            "model_type": "sca",
            "vision_config": published["vision"],
            "mask_caption_decoder_config": published["decoder"],
            "text_config": published["text"],
            "num_task_tokens": published["num_task_tokens"],
        }
    )
    shapes = {name: tuple(key["shape"]) for name, key in published["keys"].items()}

    model, plan = plan_model(config, shapes)

    assert len(plan.targets) == published["num_keys"] == len(model.state_dict())
    assert not plan.dropped and not plan.filled
    trained = {plan.targets[name][0] for name, key in published["keys"].items() if key["trainable"]}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert model.num_parameters(only_trainable=True) == published["parameter_counts"]["gpt2-large"]["trainable"]


def test_the_recorded_original_arrives_unchanged(tmp_path):
    fixture = json.loads((FIXTURE / "fixture.json").read_text())
    state = load_file(FIXTURE / "state_dict.safetensors")
    source = write_checkpoint(tmp_path / "theirs", fixture["original_config"], state)

    report = convert(source, tmp_path / "ours")

    converted = ScaForConditionalGeneration.from_pretrained(tmp_path / "ours").state_dict()
    assert report.renamed == len(state) == len(converted)
    assert all(torch.equal(converted[rename_key(name, "gpt2")[0]], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(("kind", "shards"), [("safetensors", 1), ("safetensors", 3), ("bin", 1), ("bin", 2)])
def test_every_file_layout_gives_the_same_model(model, tmp_path, kind, shards):
    source = write_checkpoint(tmp_path / "a", original_config(model), original_state_dict(model), kind, shards)
    convert(source, tmp_path / "b")
    assert same_weights(ScaForConditionalGeneration.from_pretrained(tmp_path / "b"), model)


@pytest.mark.parametrize("family", ["open_llama", "phi2", "mistral", "stablelm", "gpt_neox", "opt"])
def test_other_language_models_and_two_caption_heads(make_model, tmp_path, family):
    model = make_model(family, mixer_config={"num_caption_heads": 2, "num_caption_tokens": 3})
    source = write_checkpoint(tmp_path / "a", original_config(model), original_state_dict(model))

    convert(source, tmp_path / "b")

    loaded = ScaForConditionalGeneration.from_pretrained(tmp_path / "b")
    assert same_weights(loaded, model)
    assert loaded.config.caption_add_bos == (family in ("open_llama", "mistral"))
    ids = torch.arange(5)[None]
    assert torch.equal(loaded.language_model(ids).logits, model.language_model(ids).logits)


def test_a_tied_head_that_is_absent_is_tied(model, tmp_path):
    state = original_state_dict(model)
    del state["language_model.lm_head.weight"]
    report = convert(write_checkpoint(tmp_path / "a", original_config(model), state), tmp_path / "b")
    assert report.tied == {"language_model.lm_head.weight": "language_model.transformer.wte.weight"}
    assert same_weights(ScaForConditionalGeneration.from_pretrained(tmp_path / "b"), model)


def test_an_untied_head_that_is_absent_is_an_error(make_model, tmp_path):
    model = make_model("open_llama")
    state = original_state_dict(model)
    del state["language_model.lm_head.weight"]
    source = write_checkpoint(tmp_path / "a", original_config(model), state)
    with pytest.raises(OriginalFormatError, match=r"missing: language_model\.lm_head\.weight(.|\n)*head is missing"):
        convert(source, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_head_that_differs_from_its_embedding_is_kept_and_untied(model, tmp_path):
    state = original_state_dict(model)
    state["language_model.lm_head.weight"] = torch.randn_like(state["language_model.lm_head.weight"])
    report = convert(write_checkpoint(tmp_path / "a", original_config(model), state), tmp_path / "b")
    loaded = ScaForConditionalGeneration.from_pretrained(tmp_path / "b")
    assert report.untied and not loaded.config.text_config.tie_word_embeddings
    assert torch.equal(loaded.language_model.lm_head.weight, state["language_model.lm_head.weight"])
    embedding = loaded.language_model.transformer.wte.weight
    assert torch.equal(embedding, state["language_model.transformer.wte.weight"])


def test_stale_buffers_are_dropped_by_name(make_model, tmp_path):
    model = make_model("open_llama")
    state = original_state_dict(model)
    stale = [f"language_model.model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2)]
    stale += ["language_model.transformer.h.0.attn.bias", "language_model.transformer.h.0.attn.masked_bias"]
    state |= {name: torch.ones(4) for name in stale}
    report = convert(write_checkpoint(tmp_path / "a", original_config(model), state), tmp_path / "b")
    assert sorted(report.dropped) == sorted(stale)
    assert same_weights(ScaForConditionalGeneration.from_pretrained(tmp_path / "b"), model)


def test_every_key_that_does_not_fit_is_named(model, tmp_path):
    state = original_state_dict(model)
    state["mask_decoder.surprise.weight"] = torch.ones(2)
    state["extra"] = torch.ones(2)
    state["task_tokens.weight"] = state["task_tokens.weight"][:-1].clone()
    del state["language_project.bias"]
    source = write_checkpoint(tmp_path / "a", original_config(model), state)
    with pytest.raises(OriginalFormatError) as error:
        convert(source, tmp_path / "b")
    text = str(error.value)
    assert "4 weights" in text
    for fault in (
        "mask_decoder.surprise.weight",
        "unknown: extra",
        "mis-shaped: task_tokens",
        "missing: mixer.language_project.bias",
    ):
        assert fault in text


@pytest.mark.parametrize("fused", ["query_key_value", "Wqkv"])
def test_phi_of_2023_keeps_the_outputs_of_its_fused_projection(fused):
    heads, head, width = 4, 3, 12
    weight, bias, hidden = torch.randn(3 * width, width), torch.randn(3 * width), torch.randn(2, width)
    outputs = hidden @ weight.T + bias
    # transformers 4.36 viewed them as (heads, 3, head); Microsoft's own code as (3, heads, head)
    viewed = (
        outputs.view(2, heads, 3, head).transpose(1, 2)
        if fused == "query_key_value"
        else outputs.view(2, 3, heads, head)
    )
    name = f"language_model.model.layers.0.self_attn.{fused}.weight"
    parts = zip(
        split_tensor(name, weight, heads, 3), split_tensor(name.replace("weight", "bias"), bias, heads, 3), strict=True
    )
    for index, (part_weight, part_bias) in enumerate(parts):
        torch.testing.assert_close(hidden @ part_weight.T + part_bias, viewed[:, index].flatten(1))


@pytest.mark.parametrize("fused", ["query_key_value", "Wqkv"])
def test_a_phi_checkpoint_of_2023_converts(make_model, tmp_path, fused):
    model = make_model("phi2")
    heads, state = model.config.text_config.num_attention_heads, original_state_dict(model)
    for layer in range(2):
        for kind in ("weight", "bias"):
            prefix = f"language_model.model.layers.{layer}.self_attn."
            parts = torch.stack([state.pop(f"{prefix}{part}_proj.{kind}") for part in "qkv"])  # (3, D, ...)
            if fused == "query_key_value":
                parts = parts.unflatten(1, (heads, -1)).transpose(0, 1).flatten(1, 2)
            state[f"{prefix}{fused}.{kind}"] = parts.flatten(0, 1).contiguous()
    config = original_config(model)
    if fused == "Wqkv":
        state = {microsoft_name(name): tensor for name, tensor in state.items()}
        config["text_config"] = microsoft_config(model.config.text_config)

    convert(write_checkpoint(tmp_path / "a", config, state), tmp_path / "b")

    loaded = ScaForConditionalGeneration.from_pretrained(tmp_path / "b")
    assert same_weights(loaded, model)
    ids = torch.arange(6)[None]
    assert torch.equal(loaded.language_model(ids).logits, model.language_model(ids).logits)


def microsoft_name(name):
    """A name as in Microsoft's own Phi repositories of 2023."""
    for ours, theirs in (
        ("language_model.model.embed_tokens.", "language_model.transformer.embd.wte."),
        ("language_model.model.final_layernorm.", "language_model.lm_head.ln."),
        ("language_model.lm_head.", "language_model.lm_head.linear."),
        ("language_model.model.layers.", "language_model.transformer.h."),
    ):
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    for ours, theirs in (("input_layernorm", "ln"), ("self_attn.dense", "mixer.out_proj"), ("self_attn", "mixer")):
        name = name.replace(ours, theirs) if name.startswith("language_model.transformer.h.") else name
    return name


def microsoft_config(config):
    return {
        "model_type": "phi-msft",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_position_embeddings,
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_head_kv": None,
        "n_inner": config.intermediate_size,
        "rotary_dim": config.hidden_size // config.num_attention_heads // 2,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.layer_norm_eps,
        "attn_pdrop": 0.0,
        "flash_attn": False,
    }


def test_fields_left_out_have_the_authors_defaults_not_ours():
    config = translate_config({"model_type": "sca"})
    assert (config.mixer_config.num_hidden_layers, config.mixer_config.num_caption_tokens) == (2, 1)
    assert config.text_config.model_type == "gpt2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["ScaMultitaskSplitMixerModel"]}, "an experiment of the authors"),
        ({"model_type": "sca_timm"}, "sca_timm"),
        ({"model_type": "segment_caption_anything"}, "already"),
        ({"text_config": {"model_type": "no_such_model"}}, "no_such_model"),
    ],
)
def test_other_formats_are_refused_by_name(model, tmp_path, change, message):
    config = {**original_config(model), **change}
    source = write_checkpoint(tmp_path / "a", config, original_state_dict(model))
    with pytest.raises(OriginalFormatError, match=message):
        convert(source, tmp_path / "b")


def test_half_precision_may_be_stored(model, tmp_path):
    source = write_checkpoint(tmp_path / "a", original_config(model), original_state_dict(model))
    convert(source, tmp_path / "b", dtype="float16")
    loaded = ScaForConditionalGeneration.from_pretrained(tmp_path / "b")
    assert loaded.mixer.dtype == loaded.language_model.dtype == torch.float16
    ours, theirs = loaded.sam.shared_image_embedding, model.sam.shared_image_embedding
    assert torch.equal(ours.positional_embedding, theirs.positional_embedding)


def test_a_checkpoint_without_a_model_type_is_recognised_by_its_keys(model, tmp_path):
    config = original_config(model)
    del config["model_type"], config["architectures"]
    convert(write_checkpoint(tmp_path / "a", config, original_state_dict(model)), tmp_path / "b")
    assert same_weights(ScaForConditionalGeneration.from_pretrained(tmp_path / "b"), model)


class Intruder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_bin_file_is_refused_and_never_runs(model, tmp_path):
    source = write_checkpoint(tmp_path / "a", original_config(model), {"x": torch.ones(1)}, kind="bin")
    torch.save({"x": Intruder(tmp_path / "ran")}, source / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
        convert(source, tmp_path / "b")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint_says_so(model, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        convert(empty, tmp_path / "b")
    (empty / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no weights"):
        convert(empty, tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"neither a folder nor|no folder"):
        convert(tmp_path / "absent", tmp_path / "b")
    (empty / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../secret.safetensors"}}')
    with pytest.raises(CheckpointError, match="secret"):
        convert(empty, tmp_path / "b")
    source = write_checkpoint(tmp_path / "a", original_config(model), original_state_dict(model))
    with pytest.raises(FileExistsError, match="destroy"):
        convert(source, source)


def test_with_a_tokenizer_the_repository_has_a_processor(model, tmp_path, tokenizer):
    source = write_checkpoint(tmp_path / "a", original_config(model), original_state_dict(model))
    assert "No tokenizer was found" in str(convert(source, tmp_path / "b"))
    tokenizer.save_pretrained(source)
    report = convert(source, tmp_path / "c")
    assert report.tokenizer == str(source)

    from sca_hf import ScaProcessor

    processor = ScaProcessor.from_pretrained(tmp_path / "c")
    assert processor.image_processor.size["longest_edge"] == model.config.sam_config.vision_config.image_size
    assert processor.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_larger_than_the_language_model_is_refused(model, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.add_tokens([f"<{i}>" for i in range(model.config.text_config.vocab_size)])
    source = write_checkpoint(tmp_path / "a", original_config(model), original_state_dict(model))
    with pytest.raises(ValueError, match="embeds only"):
        convert(source, tmp_path / "b", tokenizer=tokenizer)
    assert not (tmp_path / "b").exists()


def test_a_diverged_checkpoint_is_refused_by_name_before_anything_is_written(model, tmp_path):
    state = original_state_dict(model)
    name = next(iter(state))
    state[name] = torch.full_like(state[name], float("nan"))
    source = write_checkpoint(tmp_path / "a", original_config(model), state)
    with pytest.raises(OriginalFormatError, match=f"1 weights of .* hold infinite values or NaN .{re.escape(name)}"):
        convert(source, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_what_was_converted_is_opened_before_it_is_reported(model, tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "a", original_config(model), original_state_dict(model))
    real = ScaForConditionalGeneration.save_pretrained

    def loses(self, folder, *arguments, **options):
        real(self, folder, *arguments, **options)
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-10])

    monkeypatch.setattr(ScaForConditionalGeneration, "save_pretrained", loses)
    with pytest.raises(Exception, match=r"(?i)incomplete|invalid"):
        convert(source, tmp_path / "b")


def test_a_model_that_is_there_is_replaced_as_a_whole_and_nothing_else_is(model, tmp_path, tokenizer):
    source = write_checkpoint(tmp_path / "a", original_config(model), original_state_dict(model))
    tokenizer.save_pretrained(source)
    convert(source, tmp_path / "b")
    assert (tmp_path / "b" / "processor_config.json").is_file()
    for path in [path for path in source.iterdir() if "token" in path.name or path.name == "vocab.json"]:
        path.unlink()
    convert(source, tmp_path / "b")
    convert(source, tmp_path / "c")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(
        path.name for path in (tmp_path / "c").iterdir()
    )
    (tmp_path / "b" / "thesis.docx").write_text("mine")
    with pytest.raises(FileExistsError, match=r"thesis\.docx, which is not of a saved model and would be lost"):
        convert(source, tmp_path / "b")
    with pytest.raises(FileExistsError, match="destroy"):
        convert(source, tmp_path)
    assert (tmp_path / "b" / "thesis.docx").read_text() == "mine"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_full_disk_leaves_the_former_model(model, tmp_path, share):
    source = write_checkpoint(tmp_path / "a", original_config(model), original_state_dict(model))
    convert(source, tmp_path / "b")
    before = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * max(map(len, before.values()))), limits[1]))
    try:
        with pytest.raises(DiskFullError, match="b could not be written, the disk is full"):
            convert(source, tmp_path / "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]

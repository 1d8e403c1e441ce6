"""LoRA on the language model, and another language model: train, save, reload, generate, merge."""

import pytest
import torch
from tiny_runs import parameters, records, saved_model, trainer
from transformers import AutoModel

from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.processing.processing_sca import ScaProcessor
from sca_hf.testing import TEXT_CONFIGS, tiny_model
from sca_hf.training.adapters import add_lora, merge_lora, restore_adapter
from sca_hf.training.collator import RegionCollator


@pytest.fixture
def batch(processor):
    return RegionCollator(processor, training=False)(records(3))


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


def stir(model):
    """Adapters begin at zero; these do something."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(0, 0.3)


@pytest.mark.parametrize("family", TEXT_CONFIGS)
def test_new_adapters_change_nothing_and_merged_ones_say_the_same(make_model, batch, family):
    model = make_model(family)
    before = logits(model, batch)
    assert add_lora(model, rank=4, alpha=8)
    assert torch.equal(logits(model, batch), before)
    stir(model)
    adapted = logits(model, batch)
    assert (adapted - before).abs().max() > 0.01
    merge_lora(model)
    assert not any(".lora_" in name or "base_layer" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(logits(model, batch), adapted, atol=1e-5, rtol=1e-5)


def test_a_lora_run_trains_saves_reloads_and_generates(make_model, processor, batch, tmp_path):
    model = saved_model(make_model, tmp_path / "model")
    before = parameters(model)
    options = dict(preset="mixer+lora", lora_rank=4, lora_alpha=8, save_strategy="steps", save_steps=4)
    run = trainer(model, processor, tmp_path, learning_rate=1e-2, **options)
    run.train()
    frozen = {name for name in before if name.startswith(("sam.", "language_model.")) and "c_attn" not in name}
    assert all(torch.equal(before[name], dict(model.named_parameters())[name]) for name in frozen)
    found = AutoModel.from_pretrained(tmp_path / "checkpoint-4")
    said = run.model.eval().generate(**batch).sequences
    assert torch.equal(found.generate(**batch).sequences, said)
    assert torch.equal(logits(found, batch), logits(run.model, batch))
    merge_lora(found)
    found.save_pretrained(tmp_path / "merged")
    merged = ScaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, batch), logits(run.model, batch), atol=1e-5, rtol=1e-5)
    assert torch.equal(merged.generate(**batch).sequences, said)


def test_a_run_with_another_language_model_trains_saves_reloads_and_generates(make_model, tokenizer, tmp_path):
    tiny_model("smollm").language_model.save_pretrained(tmp_path / "text")
    model = saved_model(make_model, tmp_path / "model", text_config=dict(n_embd=64))
    fresh = model.swap_language_model(tmp_path / "text")
    assert fresh == ["mixer.language_project", "mixer.task_tokens"]
    processor = ScaProcessor.from_config(model.config, tokenizer)
    batch = RegionCollator(processor, training=False)(records(3))
    run = trainer(model, processor, tmp_path, max_steps=12, save_strategy="steps", save_steps=12)
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < before
    found = AutoModel.from_pretrained(tmp_path / "checkpoint-12")
    assert found.config.text_config.model_type == "llama"
    assert torch.equal(logits(found, batch), logits(run.model, batch))
    assert torch.equal(found.generate(**batch).sequences, run.model.generate(**batch).sequences)


def test_adapters_are_never_lost_in_saving(make_model, tmp_path):
    model = saved_model(make_model, tmp_path / "model")
    add_lora(model)
    with pytest.raises(ValueError, match="merge them"):
        model.save_pretrained(tmp_path / "whole", include_base_models=True)
    with pytest.raises(ValueError, match="not upload the adapters"):
        model.save_pretrained(tmp_path / "mixer", include_base_models=False, push_to_hub=True)
    with pytest.raises(ValueError, match="already has adapters"):
        add_lora(model)


def test_adapters_need_a_language_model_that_can_be_named(make_model, processor, tmp_path):
    with pytest.raises(ValueError, match="load it again first"):
        trainer(make_model(), processor, tmp_path, preset="mixer+lora")
    model = saved_model(make_model, tmp_path / "model")
    with pytest.raises(ValueError, match="after training"):
        trainer(model, processor, tmp_path, preset="mixer+lora", save_form="whole")


def test_layers_that_are_not_there_are_named_with_those_that_are(make_model):
    model = make_model()
    with pytest.raises(ValueError, match="linear layers are c_attn, c_fc, c_proj, lm_head"):
        add_lora(model, target_modules=["q_proj"])
    assert add_lora(model, target_modules=["c_fc"]) == ["transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"]


def test_a_head_that_is_tied_takes_no_adapter(make_model):
    with pytest.raises(ValueError, match="tied to the word embeddings"):
        add_lora(make_model("gpt2"), target_modules=["lm_head"])
    assert add_lora(make_model("open_llama"), target_modules=["lm_head"]) == ["lm_head"], "this one has its own"


def test_adapters_of_another_rank_are_refused(make_model, tmp_path):
    model = saved_model(make_model, tmp_path / "model")
    add_lora(model, rank=4)
    model.save_pretrained(tmp_path / "mixer", include_base_models=False)
    other = saved_model(make_model, tmp_path / "model")
    add_lora(other, rank=8)
    with pytest.raises((RuntimeError, ValueError), match=r"size mismatch|are others"):
        restore_adapter(other, tmp_path / "mixer")
    with pytest.raises(FileNotFoundError, match="has no adapters"):
        restore_adapter(other, tmp_path / "model")

"""Precision: autocast, frozen parts held in half precision, gradient checkpointing."""

import pytest
import torch
from tiny_runs import parameters, records, saved_model, trainer

from sca_hf.training.collator import RegionCollator


def dtypes(model, part):
    return {p.dtype for p in part.parameters()}


@pytest.mark.parametrize(("family", "autocast"), [("gpt2", False), ("gpt2", True), ("smollm", False), ("opt", False)])
def test_frozen_parts_in_half_precision_train_a_float32_mixer(make_model, processor, tmp_path, family, autocast):
    model = saved_model(make_model, tmp_path / "model", family=family)
    with torch.no_grad():
        exact = model(**RegionCollator(processor, training=False)(records(5))).loss.item()
    run = trainer(model, processor, tmp_path, frozen_dtype="bfloat16", bf16=autocast)
    assert dtypes(model, model.sam.vision_encoder) == dtypes(model, model.language_model) == {torch.bfloat16}
    assert dtypes(model, model.mixer) == dtypes(model, model.sam.mask_decoder) == {torch.float32}
    before = run.evaluate()["eval_loss"]
    assert before == pytest.approx(exact, rel=0.02)
    run.train()
    assert run.evaluate()["eval_loss"] < before
    assert all(torch.isfinite(p).all() for p in parameters(model.mixer).values())


def test_adapters_stay_in_float32_on_a_half_precision_language_model(make_model, processor, tmp_path):
    model = saved_model(make_model, tmp_path / "model")
    run = trainer(model, processor, tmp_path, preset="mixer+lora", frozen_dtype="bfloat16", max_steps=2)
    run.train()
    kinds = {(".lora_" in name, p.dtype) for name, p in model.language_model.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


def test_a_mixer_trained_beside_half_precision_loads_back_beside_it(make_model, processor, tmp_path):
    model = saved_model(make_model, tmp_path / "model")
    run = trainer(model, processor, tmp_path, frozen_dtype="bfloat16", save_strategy="steps", save_steps=4)
    run.train()
    found = type(model).from_pretrained(tmp_path / "checkpoint-4")
    assert dtypes(found, found.mixer) == {torch.float32}
    batch = RegionCollator(processor, training=False)(records(3))
    with torch.no_grad():
        torch.testing.assert_close(found(**batch).loss, model.eval()(**batch).loss, rtol=0.02, atol=0)


def test_there_must_be_something_frozen_to_hold(make_model, processor, tmp_path):
    with pytest.raises(ValueError, match="is frozen"):
        trainer(make_model(), processor, tmp_path, preset="all", frozen_dtype="bfloat16")


@pytest.mark.parametrize("preset", ["mixer", "mixer+lora"])
def test_gradient_checkpointing_changes_no_result(make_model, processor, tmp_path, preset):
    ends = []
    for checkpointing in (False, True):
        model = saved_model(
            make_model, tmp_path / "model", text_config=dict(resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0)
        )
        options = dict(
            preset=preset, gradient_checkpointing=checkpointing, optim="sgd", prompt_probabilities={"box": 1}
        )
        run = trainer(model, processor, tmp_path, max_steps=2, **options)
        run.train()
        ends.append(parameters(model))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=1e-6, rtol=1e-5, msg=name)

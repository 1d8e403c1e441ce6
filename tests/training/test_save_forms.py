"""What a checkpoint holds and weighs, that it loads back exactly, and that a run goes on from it exactly."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import parameters, records, saved_model, trainer
from transformers import AutoModel, GPT2Config, SamConfig

from sca_hf.model_names import bundled_model
from sca_hf.modeling.configuration_sca import ScaConfig
from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.training.collator import RegionCollator
from sca_hf.training.presets import apply_preset


OVERHEAD = 64 * 1024


def trained_bytes(model, bytes_per_number=None):
    trained = [p for p in model.parameters() if p.requires_grad]
    return sum(p.numel() * (bytes_per_number or p.element_size()) for p in trained)


def test_a_mixer_only_checkpoint_holds_the_mixer_and_loads_back_exactly(make_model, processor, tmp_path):
    run = trainer(
        saved_model(make_model, tmp_path / "model"), processor, tmp_path, save_strategy="steps", save_steps=4
    )
    run.train()
    checkpoint = tmp_path / "checkpoint-4"
    weights = load_file(checkpoint / "model.safetensors")
    assert weights and all(key.startswith("mixer.") for key in weights)
    assert (checkpoint / "model.safetensors").stat().st_size <= trained_bytes(run.model) + OVERHEAD
    found = AutoModel.from_pretrained(checkpoint)
    batch = RegionCollator(processor, training=False)(records(3))
    with torch.no_grad():
        assert torch.equal(found(**batch).logits, run.model.eval()(**batch).logits)
    assert found.config.freeze_base_models and not found.include_base_models
    kept = parameters(found)
    assert all(torch.equal(value, kept[name]) for name, value in parameters(run.model).items())


def test_the_published_mixer_weighs_39_mb_in_half_precision():
    sam = SamConfig(vision_config=dict(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16))
    text = GPT2Config(n_embd=1280, n_layer=36, n_head=20)
    with torch.device("meta"):
        model = ScaForConditionalGeneration(ScaConfig(sam_config=sam, text_config=text))
    apply_preset(model, "mixer")
    # 19.4 M parameters (arXiv 2312.00869, section 3.2).
    assert trained_bytes(model, 2) / 1e6 == pytest.approx(39, abs=0.5)


def test_what_a_preset_changes_decides_what_is_saved(make_model, processor, tmp_path):
    folder = tmp_path / "model"
    assert not trainer(saved_model(make_model, folder), processor, tmp_path).model.include_base_models
    assert trainer(saved_model(make_model, folder), processor, tmp_path, save_form="whole").model.include_base_models
    assert trainer(saved_model(make_model, folder), processor, tmp_path, preset="mixer+lm").model.include_base_models
    assert trainer(make_model(), processor, tmp_path).model.include_base_models, "its parts come from nowhere"
    with pytest.raises(ValueError, match="would lose them"):
        trainer(saved_model(make_model, folder), processor, tmp_path, preset="mixer+lm", save_form="mixer")
    with pytest.raises(ValueError, match="could not name"):
        trainer(make_model(), processor, tmp_path, save_form="mixer")


def test_what_is_trained_from_the_bundled_model_is_whole(processor, tmp_path):
    """It can be moved and published, whatever becomes of the installation that it came with."""
    bundled = ScaForConditionalGeneration.from_pretrained(bundled_model("sca-tiny"))
    assert trainer(bundled, processor, tmp_path).model.include_base_models
    assert not trainer(bundled, processor, tmp_path, save_form="mixer").model.include_base_models
    assert not trainer(bundled, processor, tmp_path, preset="mixer+lora").model.include_base_models


def test_a_quantized_language_model_is_not_saved_even_of_the_bundled_model(processor, tmp_path):
    bundled = ScaForConditionalGeneration.from_pretrained(bundled_model("sca-tiny"))
    layer = bundled.language_model.transformer.h[0].mlp.c_fc
    layer.weight = torch.nn.Parameter(torch.zeros_like(layer.weight, dtype=torch.int8), requires_grad=False)
    assert not trainer(bundled, processor, tmp_path).model.include_base_models


@pytest.mark.parametrize("preset", ["mixer", "mixer+lora", "mixer+lm", "mixer+mask_decoder"])
def test_a_resumed_run_ends_where_an_unbroken_one_does(make_model, processor, tmp_path, preset):
    options = dict(preset=preset, max_steps=4, save_strategy="steps", save_steps=2)
    options |= dict(mask_loss_weight=1.0, train=records(masks=True)) if "mask" in preset else {}
    ends = []
    for resumed in (None, tmp_path / "checkpoint-2"):
        run = trainer(saved_model(make_model, tmp_path / "model"), processor, tmp_path, **options)
        run.train(resume_from_checkpoint=resumed)
        ends.append(parameters(run.model))
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())


def test_the_best_checkpoint_comes_back_at_the_end(make_model, processor, tmp_path):
    model = saved_model(make_model, tmp_path / "model")
    options = dict(
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True
    )
    # The worst is called the best, so that the last one is neither.
    run = trainer(
        model, processor, tmp_path, greater_is_better=True, save_total_limit=2, eval_generate=False, **options
    )
    run.train()
    losses = [log["eval_loss"] for log in run.state.log_history if "eval_loss" in log]
    assert run.evaluate()["eval_loss"] == max(losses) > losses[-1]


def test_a_checkpoint_of_another_run_is_refused(make_model, processor, tmp_path):
    folder = tmp_path / "model"
    options = dict(save_strategy="steps", save_steps=2, max_steps=2)
    trainer(saved_model(make_model, folder), processor, tmp_path / "lora", preset="mixer+lora", **options).train()
    run = trainer(saved_model(make_model, folder), processor, tmp_path / "other", **options)
    with pytest.raises((RuntimeError, ValueError), match=r"another run|another model"):
        run.train(resume_from_checkpoint=str(tmp_path / "lora" / "checkpoint-2"))

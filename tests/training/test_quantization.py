"""A quantized frozen language model: trains the mixer, saves beside the full model, and says what it needs."""

import importlib.util

import pytest
import torch
from tiny_runs import parameters, records, saved_model, trainer

from sca_hf.training.arguments import QUANTIZATIONS
from sca_hf.training.collator import RegionCollator
from sca_hf.training.quantization import is_quantized, quantize_language_model


KINDS = [kind for kind in QUANTIZATIONS if kind]


def needs(kind):
    package = kind.split("-")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def passes_gradients(model):
    """Whether every layer's input gets its gradient, that of the first one's output through all others."""
    layers = [part for part in model.language_model.modules() if any(is_quantized(p) for p in part.parameters(False))]
    answers = []
    for layer in layers:
        x = torch.randn(2, layer.in_features, requires_grad=True)
        layer(x.detach())
        layer(x).sum().backward()
        answers.append(x.grad is not None and bool(x.grad.abs().sum() > 0))
    return bool(answers) and all(answers)


@pytest.mark.parametrize(("family", "preset"), [("gpt2", "mixer+lora"), ("smollm", "mixer")])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mixer_learns_through_a_quantized_language_model(make_model, processor, tmp_path, kind, family, preset):
    needs(kind)
    wide = dict(n_embd=64) if family == "gpt2" else dict(hidden_size=64, intermediate_size=128)
    model = saved_model(make_model, tmp_path / "model", family=family, text_config=wide)
    options = dict(save_strategy="steps", save_steps=6, max_steps=6, preset=preset)
    run = trainer(model, processor, tmp_path, quantize_language_model=kind, **options)
    packed = [name for name, p in model.language_model.named_parameters() if is_quantized(p)]
    assert len(packed) >= 8 and not any("lm_head" in name or "embed" in name or "wte" in name for name in packed)
    before = run.evaluate()["eval_loss"]
    mixer = parameters(model.mixer)
    assert passes_gradients(model)
    run.train()
    assert passes_gradients(model), "also after an evaluation"
    assert run.evaluate()["eval_loss"] < before
    assert any(not torch.equal(mixer[name], value) for name, value in parameters(model.mixer).items())
    with pytest.raises(ValueError, match="already"):
        quantize_language_model(model, kind)
    full = type(model).from_pretrained(tmp_path / "checkpoint-6")
    batch = RegionCollator(processor, training=False)(records(3))
    with torch.no_grad():
        assert full(**batch).loss.item() == pytest.approx(model.eval()(**batch).loss.item(), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_named(model, kind, monkeypatch):
    package = kind.split("-")[0]
    monkeypatch.setitem(__import__("sys").modules, package, None)
    monkeypatch.setitem(__import__("sys").modules, f"{package}.quantization", None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        quantize_language_model(model, kind)


def test_a_quantized_language_model_can_be_neither_trained_nor_saved(make_model, processor, tmp_path):
    with pytest.raises(ValueError, match="cannot be quantized"):
        trainer(make_model(), processor, tmp_path, preset="all", quantize_language_model="torchao-int8")
    with pytest.raises(ValueError, match="is not saved"):
        model = saved_model(make_model, tmp_path / "model")
        trainer(model, processor, tmp_path, save_form="whole", quantize_language_model="torchao-int8")
    with pytest.raises(ValueError, match="is not saved"):
        trainer(make_model(), processor, tmp_path, quantize_language_model="torchao-int8")
    with pytest.raises(ValueError, match="expected one of"):
        quantize_language_model(make_model(), "gguf")

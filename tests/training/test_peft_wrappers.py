"""PEFT as people use it: `get_peft_model` around the model or its language model, with and without a task type."""

import importlib.util
import logging

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from test_adapters import logits, stir
from test_stock_trainer import trainer as stock_trainer
from tiny_runs import records, saved_model, trainer
from transformers import AutoModel
from transformers.utils import logging as hf_logging

from sca_hf.modeling.adapters_sca import has_adapter
from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.training.adapters import merge_lora
from sca_hf.training.collator import RegionCollator


LANGUAGE_MODEL = r"language_model\..*c_attn"


@pytest.fixture
def batch(processor):
    return RegionCollator(processor, training=False)(records(3))


@pytest.fixture
def loaded(make_model, tmp_path):
    """A model whose parts can be named, at its place."""
    return lambda: saved_model(make_model, tmp_path / "model")


def config(targets="all-linear", task_type=None, **options):
    return LoraConfig(r=4, target_modules=targets, task_type=task_type, **options)


def wrap_language_model(model, **options):
    model.language_model = get_peft_model(model.language_model, config(**options))
    return model


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION", "QUESTION_ANS"])
@pytest.mark.parametrize("targets", ["all-linear", LANGUAGE_MODEL])
def test_the_whole_model_wrapped_says_the_same_then_learns_and_is_merged(loaded, batch, tmp_path, task_type, targets):
    before = logits(loaded(), batch)
    wrapped = get_peft_model(loaded(), config(targets, task_type))
    torch.testing.assert_close(logits(wrapped, batch), before, atol=1e-5, rtol=1e-5)
    stir(wrapped)
    wrapped.train()(**batch).loss.backward()
    adapters = {name: p for name, p in wrapped.named_parameters() if ".lora_" in name}
    ours = [name for name in adapters if "sam." not in name]
    assert ours and all(adapters[name].grad.abs().sum() > 0 for name in ours), "none is passed by"
    adapted = logits(wrapped, batch)
    assert (adapted - before).abs().max() > 0.01
    said = wrapped.generate(**batch).sequences
    wrapped.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(loaded(), tmp_path / "adapter")
    torch.testing.assert_close(logits(again, batch), adapted, atol=1e-5, rtol=1e-5)
    assert torch.equal(again.generate(**batch).sequences, said)
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(logits(merged, batch), adapted, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        logits(AutoModel.from_pretrained(tmp_path / "merged"), batch), adapted, atol=1e-4, rtol=1e-4
    )


def test_adapters_on_embeddings_and_copies_of_modules_are_not_passed_by(loaded, batch):
    embeddings = ["task_tokens", "caption_tokens", "mask_tokens", "iou_token", "no_mask_embed"]
    wrapped = get_peft_model(loaded(), config(embeddings, modules_to_save=["language_project"]))
    stir(wrapped)
    adapted = logits(wrapped, batch)
    wrapped.train()(**batch).loss.backward()
    trained = {name: p.grad for name, p in wrapped.named_parameters() if p.requires_grad}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in trained.values()), "every one is used"
    torch.testing.assert_close(logits(wrapped.merge_and_unload(), batch), adapted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_the_language_model_wrapped_is_saved_as_an_adapter_of_it(loaded, batch, tmp_path, task_type):
    model = wrap_language_model(loaded(), task_type=task_type)
    stir(model)
    adapted, said = logits(model, batch), model.generate(**batch).sequences
    model.train()(**batch).loss.backward()
    with pytest.raises(ValueError, match="merge_lora\\) or save with include_base_models=False"):
        model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "mixer", include_base_models=False)
    again = AutoModel.from_pretrained(tmp_path / "mixer")
    assert has_adapter(again.language_model) and torch.equal(logits(again, batch), adapted)
    assert torch.equal(again.generate(**batch).sequences, said)
    merge_lora(model)
    torch.testing.assert_close(logits(model, batch), adapted, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "merged")
    merged = ScaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, batch), adapted, atol=1e-5, rtol=1e-5)


def test_what_peft_merged_is_not_lost_in_a_mixer_only_repository(loaded, batch, tmp_path):
    whole = get_peft_model(loaded(), config(LANGUAGE_MODEL))
    stir(whole)
    part = wrap_language_model(loaded())
    stir(part)
    part.language_model = part.language_model.merge_and_unload()
    for model in (whole.merge_and_unload(), part):
        with pytest.raises(ValueError, match="save with include_base_models=True"):
            model.save_pretrained(tmp_path / "mixer", include_base_models=False)
        with pytest.raises(ValueError, match="save with include_base_models=True"):
            model.include_base_models = False
        model.save_pretrained(tmp_path / "whole")
        again = ScaForConditionalGeneration.from_pretrained(tmp_path / "whole")
        assert torch.equal(logits(again, batch), logits(model, batch))


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("how", ["get_peft_model", "add_adapter", "sam", "mixer"])
def test_adapters_that_our_repository_cannot_hold_are_refused(loaded, tmp_path, how, include):
    model = loaded()
    if how == "get_peft_model":
        get_peft_model(model, config(LANGUAGE_MODEL))
    elif how == "add_adapter":
        model.add_adapter(config())
    else:
        setattr(model, how, get_peft_model(getattr(model, how), config()))
    with pytest.raises(ValueError, match=r"PEFT has added adapters to this model .*merge_and_unload\(\)"):
        model.save_pretrained(tmp_path / "saved", include_base_models=include)
    assert not (tmp_path / "saved").exists()


def test_adapters_of_other_kinds_or_several_are_refused(loaded, tmp_path):
    model = loaded()
    kind = IA3Config(target_modules=["c_attn"], feedforward_modules=[])
    model.language_model = get_peft_model(model.language_model, kind)
    with pytest.raises(ValueError, match="the adapters IA3, but a repository can have only one LORA"):
        model.save_pretrained(tmp_path / "saved", include_base_models=False)
    with pytest.raises(ValueError, match="adapters other than LoRA"):
        merge_lora(model)
    model = wrap_language_model(loaded())
    model.language_model.add_adapter("other", config())
    with pytest.raises(ValueError, match="the adapters LORA, LORA, but"):
        model.save_pretrained(tmp_path / "saved", include_base_models=False)
    model.language_model.delete_adapter("default")
    model.language_model.set_adapter("other")
    model.save_pretrained(tmp_path / "saved", include_base_models=False)
    assert has_adapter(AutoModel.from_pretrained(tmp_path / "saved").language_model)


def test_a_wrapper_that_keeps_the_tasks_to_itself_is_not_silent(loaded, processor, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    hf_logging.warning_once.cache_clear()
    batch = RegionCollator(processor, training=False, task="recognition")(records(2))
    model = loaded().eval()
    with torch.no_grad():
        as_captions = model(**{name: value for name, value in batch.items() if name != "task_ids"}).loss
        assert not caplog.records and model(**batch).loss != as_captions
        assert get_peft_model(model, config(task_type="CAUSAL_LM")).eval()(**batch).loss == pytest.approx(as_captions)
    assert "remove task_type from the LoraConfig" in caplog.text


def test_arguments_of_other_models_are_ignored_where_they_are_none(loaded, batch):
    model = loaded().eval()
    with torch.no_grad():
        assert torch.equal(model(**batch, inputs_embeds=None, decoder_input_ids=None).logits, logits(model, batch))
        with pytest.raises(TypeError, match=r"unknown arguments \['inputs_embeds'\]"):
            model(**batch, inputs_embeds=torch.zeros(1), decoder_input_ids=None)


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_the_stock_trainer_trains_saves_and_resumes_a_wrapped_model(loaded, processor, batch, tmp_path, task_type):
    def run(steps):
        torch.manual_seed(0)
        model = get_peft_model(loaded(), config(task_type=task_type))
        options = dict(max_steps=steps, save_strategy="steps", save_steps=4)
        return stock_trainer(model, processor, tmp_path / "run", records(), **options)

    before = run(8).evaluate()["eval_loss"]
    run(4).train()
    resumed = run(8)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8 and resumed.evaluate()["eval_loss"] < before
    again = PeftModel.from_pretrained(loaded(), tmp_path / "run" / "checkpoint-8")
    torch.testing.assert_close(logits(again, batch), logits(resumed.model, batch), atol=1e-5, rtol=1e-5)


def test_our_trainer_trains_saves_and_resumes_a_wrapped_language_model(loaded, processor, batch, tmp_path):
    def run(**options):
        torch.manual_seed(0)
        model = wrap_language_model(loaded(), task_type="CAUSAL_LM")
        options = dict(preset="mixer+lora", save_strategy="steps", save_steps=2, learning_rate=1e-2, **options)
        return trainer(model, processor, tmp_path / "run", **options)

    whole = run()
    whole.train()
    assert any(p.abs().sum() > 0 for name, p in whole.model.named_parameters() if ".lora_B" in name)
    again = AutoModel.from_pretrained(tmp_path / "run" / "checkpoint-4")
    assert torch.equal(logits(again, batch), logits(whole.model, batch))
    resumed = run()
    resumed.train(resume_from_checkpoint=tmp_path / "run" / "checkpoint-2")
    assert torch.equal(logits(resumed.model, batch), logits(whole.model, batch))


def test_our_trainer_refuses_what_it_could_not_save_and_says_what_it_freezes(
    loaded, processor, tmp_path, monkeypatch, caplog
):
    with pytest.raises(ValueError, match="preset='mixer\\+lora' adapts"):
        trainer(get_peft_model(loaded(), config()), processor, tmp_path / "run")
    model = loaded()
    get_peft_model(model, config())
    with pytest.raises(ValueError, match="PEFT has added adapters to this model"):
        trainer(model, processor, tmp_path / "run")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    trainer(wrap_language_model(loaded()), processor, tmp_path / "run", preset="mixer", save_form="mixer")
    assert "freezes the language model's adapters" in caplog.text


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("package", ["bitsandbytes", "torchao"])
def test_adapters_on_a_quantized_model_train_and_are_saved(make_model, batch, tmp_path, package, whole):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    make_model("smollm", text_config=dict(hidden_size=64, intermediate_size=128)).save_pretrained(tmp_path / "model")
    if package == "bitsandbytes":
        from transformers import BitsAndBytesConfig as Config

        quantized = Config(load_in_4bit=True, llm_int8_skip_modules=["lm_head", "sam", "mixer"])
    else:
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig as Config

        quantized = Config(Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head", "sam", "mixer"])

    def load():
        return ScaForConditionalGeneration.from_pretrained(tmp_path / "model", quantization_config=quantized)

    model, adapters = load(), config(r"(language_model\..*)?.*[qv]_proj", "CAUSAL_LM")
    if whole:
        model = get_peft_model(model, adapters)
    else:
        model.language_model = get_peft_model(model.language_model, adapters)
    stir(model)
    model.train()(**batch).loss.backward()
    grads = [p.grad for name, p in model.named_parameters() if "language_model" in name and ".lora_" in name]
    assert grads and all(grad is not None and grad.abs().sum() > 0 for grad in grads)
    adapted = logits(model, batch)
    model.eval().generate(**batch)
    if whole:
        model.save_pretrained(tmp_path / "adapter")
        again = PeftModel.from_pretrained(load(), tmp_path / "adapter")
    else:
        model.save_pretrained(tmp_path / "adapter", include_base_models=False)
        again = ScaForConditionalGeneration.from_pretrained(tmp_path / "adapter", quantization_config=quantized)
    torch.testing.assert_close(logits(again, batch), adapted, atol=1e-3, rtol=1e-3)

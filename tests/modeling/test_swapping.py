"""Putting another language model or image encoder into a trained model: what stays, what starts from scratch."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.modeling import composing_sca
from sca_hf.testing import tiny_image, tiny_sam_config, tiny_tokenizer
from sca_hf.training import add_detail_encoder


MIXER = {"num_hidden_layers": 2, "num_attention_heads": 4, "mlp_dim": 64}
SIZES = {"base": (32, 2), "large": (48, 3), "huge": (64, 4)}  # widths and depths, in the proportions of SAM's


@pytest.fixture
def trained(make_model, tmp_path):
    """A mixer-only model, loaded as anyone would."""
    model = make_model("gpt2")
    model.sam.save_pretrained(tmp_path / "sam")
    model.language_model.save_pretrained(tmp_path / "gpt2")
    joined = ScaForConditionalGeneration.from_sam_text_pretrained(tmp_path / "sam", tmp_path / "gpt2", MIXER)
    joined.save_pretrained(tmp_path / "trained", include_base_models=False)
    return ScaForConditionalGeneration.from_pretrained(tmp_path / "trained")


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(composing_sca.logger, "warning", said.append)
    return said


def sam_of_size(name, sam_type="sam", image_size=64):
    config = tiny_sam_config(sam_type, image_size)
    width, layers = SIZES[name]
    config.vision_config.hidden_size, config.vision_config.num_hidden_layers = width, layers
    config.vision_config.mlp_dim = 4 * width
    if sam_type == "sam_hq":
        config.mask_decoder_config.vit_dim = width
    torch.manual_seed(width)
    return AutoModel.from_config(config).eval()


def boxes(processor):
    captions = [["a plain blue triangle", "two green apples"]]
    prompts = [[[3, 3, 40, 40], [20, 10, 70, 50]]]
    return processor(tiny_image(0), input_boxes=prompts, captions=captions, return_tensors="pt")


def test_a_frozen_language_model_stays_in_the_precision_that_it_came_in(trained, make_model, processor, tmp_path):
    make_model("open_llama").language_model.to(torch.bfloat16).save_pretrained(tmp_path / "llama")
    trained.swap_language_model(tmp_path / "llama")
    assert trained.language_model.dtype == torch.bfloat16 and trained.mixer.dtype == torch.float32
    trained(**boxes(processor)).loss.backward()
    assert trained.mixer.language_project.weight.grad.abs().sum() > 0
    trained.save_pretrained(tmp_path / "swapped")
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "swapped")
    assert again.language_model.dtype == torch.bfloat16 and again.mixer.dtype == torch.float32
    learns = make_model("gpt2", freeze_base_models=False)
    learns.swap_language_model(tmp_path / "llama")
    assert learns.language_model.dtype == torch.float32, "what learns is as precise as what it replaces"


def test_a_new_language_model_takes_precision_and_attention_of_the_old_one(trained, make_model, tmp_path):
    make_model("open_llama").language_model.save_pretrained(tmp_path / "llama")
    trained.set_attn_implementation("eager")
    trained.language_model.to(torch.bfloat16)
    trained.swap_language_model(tmp_path / "llama")
    assert trained.language_model.dtype == torch.bfloat16, "never wider than the model that it joins"
    assert trained.language_model.config._attn_implementation == "eager"
    trained.swap_language_model(tmp_path / "gpt2", dtype=torch.bfloat16, attn_implementation="sdpa")
    assert trained.language_model.dtype == torch.bfloat16
    assert trained.language_model.config._attn_implementation == "sdpa"


def test_swapping_says_what_to_train_again(trained, make_model, warnings, tmp_path):
    make_model("phi2").language_model.save_pretrained(tmp_path / "phi2")
    assert trained.swap_language_model(tmp_path / "phi2") == ["mixer.language_project", "mixer.task_tokens"]
    assert trained.swap_image_encoder(sam_of_size("large")) == ["mixer"]
    assert "mixer.language_project and mixer.task_tokens" in warnings[0] and "until you train mixer." in warnings[1]


def test_a_swapped_mixer_only_model_stays_one(trained, make_model, processor, tmp_path):
    make_model("mistral").language_model.save_pretrained(tmp_path / "mistral")
    trained.swap_language_model(tmp_path / "mistral")
    assert not trained.include_base_models
    # What the Trainer expects its checkpoints to lack.
    base_keys = {name for name in trained.state_dict() if not name.startswith("mixer.")}
    assert trained._keys_to_ignore_on_save == base_keys
    trained.save_pretrained(tmp_path / "swapped")
    assert all(name.startswith("mixer.") for name in load_file(tmp_path / "swapped" / "model.safetensors"))
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "swapped")
    assert again.config.text_config.model_type == "mistral"
    inputs = boxes(processor)
    torch.testing.assert_close(again(**inputs).loss, trained(**inputs).loss)


def test_a_model_that_was_given_loaded_is_saved_whole(trained, make_model, tmp_path):
    trained.swap_language_model(make_model("opt").language_model)
    assert trained.include_base_models
    trained.save_pretrained(tmp_path / "whole")
    assert any(name.startswith("language_model.") for name in load_file(tmp_path / "whole" / "model.safetensors"))
    ScaForConditionalGeneration.from_pretrained(tmp_path / "whole")


def test_only_the_mixer_learns_after_a_swap(trained, make_model, processor, tmp_path):
    make_model("open_llama").language_model.save_pretrained(tmp_path / "llama")
    trained.train().swap_language_model(tmp_path / "llama")
    trained(**boxes(processor)).loss.backward()
    with_gradient = {name.split(".")[0] for name, p in trained.named_parameters() if p.grad is not None}
    assert with_gradient == {"mixer"}
    assert trained.mixer.language_project.weight.grad.abs().sum() > 0
    assert trained.mixer.task_tokens.weight.grad.abs().sum() > 0
    assert trained.mixer.training and not trained.language_model.training


@pytest.mark.parametrize(("size", "sam_type"), [("large", "sam"), ("huge", "sam"), ("base", "sam_hq")])
def test_image_encoders_of_other_sizes_keep_the_mixer(trained, processor, tmp_path, size, sam_type):
    before = {name: tensor.clone() for name, tensor in trained.mixer.state_dict().items()}
    sam_of_size(size, sam_type).save_pretrained(tmp_path / "other")
    trained.swap_image_encoder(tmp_path / "other")
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.mixer.state_dict().items())
    # The new SAM's masks, at once.
    inputs = boxes(processor)
    sam = AutoModel.from_pretrained(tmp_path / "other")
    with torch.no_grad():
        expected = sam(pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"]).pred_masks
        masks = trained(**{k: v for k, v in inputs.items() if k in ("pixel_values", "input_boxes")}).pred_masks
    torch.testing.assert_close(masks, expected, atol=1e-4, rtol=1e-4)
    trained.save_pretrained(tmp_path / "swapped")
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "swapped")
    assert torch.equal(again.generate(**inputs).sequences, trained.generate(**inputs).sequences)


def test_another_image_size_needs_another_processor(trained, processor):
    trained.swap_image_encoder(sam_of_size("base", image_size=96))
    with pytest.raises(ValueError, match=r"pixel_values must be \(B, 3, 96, 96\)"):
        trained.generate(**boxes(processor))
    rebuilt = ScaProcessor.from_config(trained.config, tiny_tokenizer())
    assert trained.generate(**boxes(rebuilt)).pred_masks.shape[-1] == 48


def test_another_grid_than_the_detail_encoders_is_refused(make_model):
    model = make_model("gpt2")
    add_detail_encoder(model, [8, 8, 16])
    other = sam_of_size("base")
    other.config.vision_config.patch_size = 16
    other.config.prompt_encoder_config.image_embedding_size //= 2
    before = model.sam
    with pytest.raises(ValueError, match="patches of 16 pixels need 4 stages"):
        model.swap_image_encoder(other)
    assert model.sam is before

"""What `sca-hf estimate` accepts and refuses is what training does, in the same words."""

import pytest
from transformers import AutoModel

from sca_hf.testing import save_tiny_model, tiny_model, tiny_sam_config, tiny_tokenizer
from sca_hf.training.arguments import ScaTrainingArguments
from sca_hf.training.presets import prepare_model
from sca_hf.training.recipe.build import build_model
from sca_hf.training.recipe.memory_report import report_recipe
from sca_hf.training.recipe.schema import Recipe


NEW = {"sam": "SAM", "language_model": "LLAMA", "mixer": {"num_hidden_layers": 2, "num_attention_heads": 4}}
ACCEPTED = [
    ({"from": "sca-tiny"}, {}),
    ({"from": "sca-tiny", "detail_widths": [16, 32, 64, 128]}, {"preset": "mixer+lm"}),
    ({"from": "BASE", "image_size": 96}, {}),
    ({"from": "BASE", "image_size": 128, "patch_size": 16, "detail_widths": [4, 4, 4, 8]}, {"preset": "all"}),
    ({"from": "BASE", "swap_language_model": "LLAMA"}, {"frozen_dtype": "bfloat16"}),
    ({"from": "BASE", "swap_image_encoder": "HQ", "label_smoothing": 0.2}, {}),
    ({"from": "BASE", "swap_image_encoder": "BASE"}, {"preset": "mixer+lora"}),
    (NEW, {"preset": "mixer+lora", "frozen_dtype": "bfloat16"}),
    ({**NEW, "max_caption_length": 7}, {"preset": "mixer+mask_decoder", "mask_loss_weight": 1.0}),
]
REFUSED = [
    ({"from": "sca-tiny", "detail_widths": [8, 16, 32, 64]}, {}, "a detail encoder with widths"),
    ({"from": "sca-tiny", "image_size": 384, "patch_size": 32}, {}, "must keep its patch size"),
    ({"from": "BASE", "image_size": 65}, {}, "multiple of the patch size"),
    ({"from": "BASE", "image_size": 96, "patch_size": 12}, {}, "multiple of the old"),
    ({"from": "BASE", "detail_widths": [4, 8]}, {}, "detail_widths"),
    ({"from": "LLAMA"}, {}, "is a 'llama' model"),
    ({"from": "./absent"}, {}, "absent"),
    ({"from": "BASE", "dtype": "int8"}, {}, "model.dtype is 'int8'"),
    ({"from": "BASE", "swap_image_encoder": "LLAMA"}, {}, "which cannot be prompted here"),
    ({"from": "BASE", "swap_image_encoder": "WIDE"}, {}, "wide, but the mixer"),
    ({**NEW, "sam": "LLAMA"}, {}, "which cannot be prompted here"),
    ({**NEW, "mixer": {"num_hidden_layers": 2, "num_attention_heads": 5}}, {}, "num_attention_heads"),
    ({"from": "BASE"}, {"preset": "mixer+mask_decoder"}, "set mask_loss_weight"),
    ({"from": "BASE"}, {"mask_loss_weight": 1.0}, "does not train masks"),
    ({"from": "BASE"}, {"preset": "all", "frozen_dtype": "bfloat16"}, "frozen_dtype"),
    ({"from": "BASE"}, {"preset": "mixer+lora", "save_form": "whole"}, "cannot store adapters"),
    ({"from": "BASE"}, {"preset": "mixer+lora", "lora_target_modules": ["no_such_layer"]}, "linear layers"),
    ({"from": "BASE", "image_size": 96}, {"preset": "mixer+lora"}, "adapters are saved with the name"),
    (NEW, {"preset": "mixer+lm", "quantize_language_model": "torchao-int8"}, "cannot be quantized"),
    (NEW, {"save_form": "whole", "quantize_language_model": "torchao-int8"}, "is not saved"),
    ({"from": "BASE", "image_size": 96}, {"quantize_language_model": "torchao-int8"}, "is not saved"),
    ({"from": "BASE"}, {"preset": "mixture"}, "preset is 'mixture'"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved models by the names that the recipes above give them."""
    root = tmp_path_factory.mktemp("models")
    paths = {name: str(root / name.lower()) for name in ("BASE", "LLAMA", "SAM", "HQ", "WIDE")}
    save_tiny_model(paths["BASE"])
    tiny_model().sam.save_pretrained(paths["SAM"])
    tiny_model("open_llama").language_model.save_pretrained(paths["LLAMA"])
    tiny_tokenizer().save_pretrained(paths["LLAMA"])
    for name, config in (("HQ", tiny_sam_config("sam_hq")), ("WIDE", tiny_sam_config(width=64))):
        AutoModel.from_config(config).save_pretrained(paths[name])
    return paths


def verdicts(folders, model, training, output):
    """What training says before its first step, and what an estimate says; None where it is content."""
    model = {name: folders.get(value, value) if isinstance(value, str) else value for name, value in model.items()}
    data = {"train": {"format": "scenes", "count": 4}}
    recipe = Recipe.from_mapping({"model": model, "data": data, "training": training, "output": str(output)})

    def train():
        args = ScaTrainingArguments(recipe.output, use_cpu=True, **recipe.training)
        prepare_model(build_model(recipe.model, args)[0], args)

    said = []
    for action in (train, lambda: report_recipe(recipe, output, None, None)):
        try:
            action()
            said.append(None)
        except (ValueError, OSError) as error:
            said.append(str(error))
    return said


@pytest.mark.parametrize(("model", "training"), ACCEPTED)
def test_what_can_be_trained_can_be_estimated(folders, tmp_path, model, training):
    assert verdicts(folders, model, training, tmp_path) == [None, None]


@pytest.mark.parametrize(("model", "training", "message"), REFUSED)
def test_what_cannot_be_trained_is_not_estimated_and_the_reason_is_the_same(
    folders, tmp_path, model, training, message
):
    trained, estimated = verdicts(folders, model, training, tmp_path)
    assert trained is not None and message in trained
    assert estimated == trained

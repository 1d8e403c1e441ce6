"""A stage that is interrupted resumes where it stopped, and ends with the weights it would have had."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.sca_tiny.language import KeywordTexts, LanguageSettings, train_language_model, train_tokenizer
from experiments.sca_tiny.segmentation import SegmentationSettings, train_segmentation
from sca_hf.data.scenes import render_scene
from sca_hf.training.checkpoint.integrity import last_checkpoint


SHORT = LanguageSettings(steps=4, batch_size=4, save_steps=2)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    return folder, train_language_model(folder, SHORT)


def test_an_interrupted_stage_ends_with_the_same_weights(language, tmp_path):
    folder, done = language
    shutil.copytree(folder / "checkpoints" / "checkpoint-2", tmp_path / "checkpoints" / "checkpoint-2")
    broken = tmp_path / "checkpoints" / "checkpoint-3"
    broken.mkdir()
    (broken / "trainer_state.json").write_text('{"global_step": 3, "log_hist')
    again = train_language_model(tmp_path, SHORT)
    whole, resumed = (load_file(path / "model.safetensors") for path in (done, again))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_finished_stage_is_not_run_again(language):
    folder, done = language
    stamp = (done / "model.safetensors").stat().st_mtime_ns
    assert train_language_model(folder, SHORT) == done
    assert (done / "model.safetensors").stat().st_mtime_ns == stamp


def test_the_tokenizer_gives_any_text_back(language):
    tokenizer = AutoTokenizer.from_pretrained(language[1])
    texts = [caption for seed in range(20) for obj in render_scene(seed).objects for caption in obj.captions]
    for text in [*texts, "Éa  漢字, x\n"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert AutoModelForCausalLM.from_pretrained(language[1]).config.vocab_size == len(tokenizer)


def test_keyword_texts_ask_for_the_text_only():
    texts = KeywordTexts(train_tokenizer(SHORT), SHORT)
    for item in (texts[k] for k in range(10)):
        assert (item["labels"][:14] == -100).all() and item["labels"][14] == item["input_ids"][14]
        assert (item["labels"] == texts.tokenizer.eos_token_id).sum() == 1


def test_segmentation_runs_to_a_plain_sam(tmp_path):
    settings = SegmentationSettings(train_scenes=8, eval_scenes=4, steps=2, batch_size=2, save_steps=1, eval_steps=1)
    done = train_segmentation(tmp_path / "stage", tmp_path / "scenes", settings)
    assert {path.name for path in done.iterdir()} == {"config.json", "model.safetensors"}
    assert last_checkpoint(tmp_path / "stage" / "checkpoints").name == "checkpoint-2"

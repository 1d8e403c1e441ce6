"""What fuzzing found, one case each: refused in words now, by a file and a field."""

import json
import multiprocessing
import shutil

import numpy as np
import pytest
from valid_sets import MAKERS, read

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.evaluation.predictions import PredictionError, read_predictions
from sca_hf.prompt_arguments import read_mask_file
from sca_hf.testing import save_tiny_model, tiny_image


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds") / "saved"
    save_tiny_model(folder)
    return folder


def setting(file, value, *path):
    def change(folder):
        content = json.loads((folder / file).read_text())
        inner = content
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
        (folder / file).write_text(json.dumps(content))

    return change


def damaged(file, place, value):
    def change(folder):
        content = bytearray((folder / file).read_bytes())
        content[place : place + len(value)] = value
        (folder / file).write_bytes(content)

    return change


SEEDS = {
    "initializer_range": setting("config.json", -1, "text_config", "initializer_range"),
    "pad_token_id": setting("config.json", "LABEL_0", "text_config", "pad_token_id"),
    "layer_norm_eps": setting("config.json", {}, "mixer_config", "layer_norm_eps"),
    "dtype of the configuration is -1": setting("config.json", -1, "dtype"),
    "text_config.dtype": setting("config.json", "halfway", "text_config", "dtype"),
    "model_type": setting("config.json", 3, "sam_config", "model_type"),
    "image_embedding_size": setting("config.json", [], "sam_config", "prompt_encoder_config", "image_embedding_size"),
    "attn_pdrop": setting("config.json", "x", "text_config", "attn_pdrop"),
    "label_smoothing": setting("config.json", [], "label_smoothing"),
    "max_length": setting("generation_config.json", "x", "max_length"),
    "eos_token_id": setting("generation_config.json", {"a": 1}, "eos_token_id"),
    r"pad_token_id is \[\]": setting("generation_config.json", [], "pad_token_id"),
    "num_return_sequences": setting("generation_config.json", [1], "num_return_sequences"),
    "num_beams": setting("generation_config.json", 10**9, "num_beams"),
    "saved": setting("tokenizer_config.json", 7, "unk_token"),
    r"saved/config\.json is not valid JSON": damaged("config.json", 0, b"["),
    r"processor_config\.json is not valid JSON": damaged("processor_config.json", 1, b"\xff"),
    "model.safetensors is cut short or damaged": damaged("model.safetensors", 12, b"\xff\xff\xff"),
}


@pytest.mark.parametrize("words", SEEDS)
def test_folders_that_were_found(saved, tmp_path, words):
    folder = shutil.copytree(saved, tmp_path / "saved")
    SEEDS[words](folder)
    with pytest.raises(ValueError, match=words):
        processor = ScaProcessor.from_pretrained(folder)
        model = ScaForConditionalGeneration.from_pretrained(folder)
        model.generate(**processor(tiny_image(), input_boxes=[[[2, 2, 30, 30]]]), max_new_tokens=2)


def test_settings_that_other_versions_of_transformers_save_are_read(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "saved")
    setting("generation_config.json", "constant", "num_assistant_tokens_schedule")(folder)
    setting("generation_config.json", [2, 3], "eos_token_id")(folder)
    model = ScaForConditionalGeneration.from_pretrained(folder)
    assert model.generation_config.num_assistant_tokens_schedule == "constant"


@pytest.mark.parametrize("mask", [{"counts": "0"}, {"size": 3, "counts": "0"}, {"size": [1], "counts": b"0".decode()}])
def test_predictions_that_were_found(tmp_path, mask):
    row = {"id": "1", "candidates": ["a"], "references": ["b"], "mask": mask}
    (tmp_path / "said.jsonl").write_text(json.dumps(row))
    with pytest.raises(PredictionError, match=r"line 1: .*RLE"):
        read_predictions(tmp_path / "said.jsonl")


def test_scores_that_were_found(tmp_path):
    row = {"id": "1", "candidates": ["a"], "references": ["b"], "scores": [10**400]}
    (tmp_path / "said.jsonl").write_text(json.dumps(row))
    with pytest.raises(PredictionError, match=r"line 1: .*scores"):
        read_predictions(tmp_path / "said.jsonl")
    (tmp_path / "m.json").write_text("3")
    with pytest.raises(ValueError, match=r"m\.json holds a int, expected dict"):
        read_mask_file(tmp_path / "m.json")


def test_arrays_that_were_found(tmp_path):
    np.save(tmp_path / "m.npy", np.ones((4, 5), bool))
    content = (tmp_path / "m.npy").read_bytes()
    (tmp_path / "m.npy").write_bytes(content.replace(b"(4, 5)", b"((((((", 1))
    with pytest.raises(ValueError, match=r"m\.npy is not an array of numbers"):
        read_mask_file(tmp_path / "m.npy")


@pytest.mark.slow
def test_a_damaged_parquet_never_ends_the_process(tmp_path):
    """One byte in what the file says of a column made the library abort."""
    options = MAKERS["parquet"](tmp_path / "set")
    content = options["path"].read_bytes()

    def run():
        for place in range(len(content)):
            options["path"].write_bytes(content[:place] + b"\x3c" + content[place + 1 :])
            try:
                read("parquet", options, "skip")
            except ValueError as error:
                assert "a.parquet" in str(error), error

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(300)
    assert process.exitcode == 0

"""Converted, the authors' model gives what their code gave: every tensor, loss, gradient and id that was recorded.

tests/fixtures/original_sca_gpt2 holds a tiny random model of the authors' code with inputs and results.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sca_hf.hub.convert import convert
from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.modeling.segmentation_sca import SamSegmenter


FIXTURE = Path(__file__).parents[1] / "fixtures" / "original_sca_gpt2"
RECORD = json.loads((FIXTURE / "fixture.json").read_text())
INPUTS = load_file(FIXTURE / "inputs.safetensors")
EXPECTED = load_file(FIXTURE / "expected.safetensors")
TASK_ROWS = {"caption": [[1], [1]], "recognition": [[0], [0]], "mixed": [[1], [0]]}
WITH_TEXT = ("boxes", "points")
# Of the recorded gradients' names, ours.
RENAMED = {
    "mask_decoder.additional_transformer": "mixer.transformer",
    "mask_decoder.caption_tokens": "mixer.caption_tokens",
    "task_tokens": "mixer.task_tokens",
    "language_project": "mixer.language_project",
}

every_case = pytest.mark.parametrize("case", list(RECORD["cases"]))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    source, destination = tmp_path_factory.mktemp("original"), tmp_path_factory.mktemp("ours")
    (source / "config.json").write_text(json.dumps(RECORD["original_config"] | {"model_type": "sca"}))
    save_file(load_file(FIXTURE / "state_dict.safetensors"), source / "model.safetensors")
    convert(source, destination / "model")
    return destination / "model"


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(converted, request):
    return ScaForConditionalGeneration.from_pretrained(converted, attn_implementation=request.param).eval()


def prompts(case):
    names = RECORD["cases"][case]
    return {name: INPUTS[key] for name, key in names.items() if name not in ("input_ids", "attention_mask", "labels")}


def text(case):
    names = RECORD["cases"][case]
    # The authors' labels begin with a filler; ours begin with the caption.
    return {
        "input_ids": INPUTS[names["input_ids"]],
        "attention_mask": INPUTS[names["attention_mask"]],
        "labels": INPUTS[names["labels"]][..., 1:],
    }


def task_ids(case, task):
    images, regions = EXPECTED[f"{case}/iou_scores"].shape[:2]
    return torch.tensor(TASK_ROWS[task])[:images].expand(images, regions)


def assert_recorded(actual, case, name):
    torch.testing.assert_close(actual, EXPECTED[f"{case}/{name}"], atol=1e-4, rtol=1e-4)


@every_case
@torch.no_grad()
def test_masks_and_iou(model, case):
    outputs = model(**prompts(case))
    assert_recorded(outputs.pred_masks, case, "pred_masks")
    assert_recorded(outputs.iou_scores, case, "iou_scores")
    single = model(**prompts(case), multimask_output=False)
    if f"{case}/pred_masks_single" in EXPECTED:
        assert_recorded(single.pred_masks, case, "pred_masks_single")
        assert_recorded(single.iou_scores, case, "iou_scores_single")


@torch.no_grad()
def test_sam_and_mixer_tokens(model, monkeypatch):
    decoded, mixed = [], []
    decode, mix = SamSegmenter.decode, type(model.mixer).forward

    def record_decode(self, group):
        decoded.append(decode(self, group))
        return decoded[-1]

    def record_mix(self, *inputs):
        mixed.append(mix(self, *inputs))
        return mixed[-1]

    monkeypatch.setattr(SamSegmenter, "decode", record_decode)
    monkeypatch.setattr(type(model.mixer), "forward", record_mix)
    outputs = model(**prompts("boxes"), **text("boxes"))
    assert_recorded(outputs.image_embeddings, "boxes", "image_embeddings")
    tokens = torch.cat([regions.tokens for regions in decoded])
    image_tokens = torch.cat([regions.image_tokens for regions in decoded])
    assert_recorded(tokens.unflatten(0, (2, 3)), "boxes", "sam_tokens_out")
    assert_recorded(image_tokens.unsqueeze(1), "boxes", "sam_image_out")
    assert_recorded(torch.cat(mixed)[:, 0], "boxes", "query_logits")


@every_case
@torch.no_grad()
def test_prefix_and_next_token(model, case):
    for task in TASK_ROWS:
        if f"{case}/lm_inputs_{task}" not in EXPECTED:
            continue
        images, regions = EXPECTED[f"{case}/iou_scores"].shape[:2]
        ids = torch.full((images, regions, 1), 5)
        outputs = model(**prompts(case), task_ids=task_ids(case, task), input_ids=ids)
        assert_recorded(outputs.prefix_embeds.flatten(0, 2), case, f"lm_inputs_{task}")
        if task == "caption":
            assert_recorded(outputs.query_embeds.flatten(0, 2), case, "query_logits")
            assert_recorded(outputs.logits.flatten(0, 2), case, "next_token_logits")


@pytest.mark.parametrize("case", WITH_TEXT)
@torch.no_grad()
def test_loss_and_logits(model, case):
    for task in TASK_ROWS:
        outputs = model(**prompts(case), **text(case), task_ids=task_ids(case, task))
        torch.testing.assert_close(outputs.loss, EXPECTED[f"{case}/loss_{task}"][0], atol=1e-4, rtol=0)
    # The recorded logits begin with those of the prefix and end with what follows the last token.
    first = model.config.mixer_config.prefix_length - 1
    recorded = EXPECTED[f"{case}/logits_mixed"][:, first:-1]
    torch.testing.assert_close(outputs.logits.flatten(0, 1), recorded, atol=1e-4, rtol=1e-4)


def test_gradients(model):
    case = "boxes"
    model.zero_grad()
    model(**prompts(case), **text(case), task_ids=task_ids(case, "mixed")).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    atol = 1e-4 * max(gradient.abs().max().item() for gradient in gradients.values())
    recorded = {key.split("/", 2)[2]: key for key in EXPECTED if key.startswith(f"{case}/grad/")}
    norms = {key.split("/", 2)[2]: key for key in EXPECTED if key.startswith(f"{case}/grad_norm/")}
    assert recorded
    assert {rename(name) for name in norms} == set(gradients)
    for name, key in recorded.items():
        torch.testing.assert_close(gradients[rename(name)], EXPECTED[key], atol=atol, rtol=1e-4)
    for name, key in norms.items():
        torch.testing.assert_close(gradients[rename(name)].norm(), EXPECTED[key][0], atol=atol, rtol=1e-4)


def rename(name):
    for theirs, ours in RENAMED.items():
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    raise AssertionError(f"unexpected gradient {name}")


@every_case
def test_generated_ids(model, case):
    end = RECORD["generation_checks"][case]["eos_token_id_for_eos_runs"]
    runs = {
        "greedy_caption": dict(eos_token_id=None),
        "greedy_recognition": dict(eos_token_id=None),
        "beam3_caption": dict(eos_token_id=None, num_beams=3),
        "greedy_eos_caption": dict(eos_token_id=end),
        "greedy_eos_chunk1_caption": dict(eos_token_id=end, region_chunk_size=1, language_model_batch_size=1),
    }
    checked = 0
    for name, options in runs.items():
        if f"{case}/{name}" not in EXPECTED:
            continue
        ids = task_ids(case, name.rsplit("_", 1)[1])
        outputs = model.generate(**prompts(case), task_ids=ids, max_new_tokens=12, pad_token_id=0, **options)
        assert torch.equal(outputs.sequences.unsqueeze(2), EXPECTED[f"{case}/{name}"]), name
        checked += 1
    assert checked >= 3

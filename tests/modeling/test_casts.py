"""Casts of a model that is loaded: what loses positions in half precision stays in float32, and is saved so."""

import copy
import io

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from sca_hf import ScaForConditionalGeneration
from sca_hf.testing import tiny_image


HALF = (torch.bfloat16, torch.float16)
CASTS = {
    "to": lambda model: model.to(torch.bfloat16),
    "to a tensor's": lambda model: model.to(torch.zeros(1, dtype=torch.float16)),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "type": lambda model: model.type(torch.float16),
    "apply": lambda model: model._apply(lambda x: x.half() if x.is_floating_point() else x),
    "parts": lambda model: [part.half() for part in (model.sam, model.mixer, model.language_model)],
    "a copy's": lambda model: copy.deepcopy(model).half(),
    "by way of double": lambda model: model.double().half(),
}


def precise(model):
    """What must keep its values, by name: Fourier features, and frequencies of rotary embeddings."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = {name: tensor for name, tensor in tensors.items() if "positional" in name or "inv_freq" in name}
    assert kept
    return kept


@pytest.fixture
def inputs(processor):
    return processor([tiny_image(0)], input_boxes=[[[3, 3, 40, 40], [20, 10, 70, 50]]], return_tensors="pt")


@pytest.mark.parametrize("sam", ["sam", "sam_hq"])
@pytest.mark.parametrize("cast", CASTS)
def test_positions_survive_every_cast(make_model, inputs, cast, sam):
    model = make_model("llama3", sam)
    before = {name: tensor.detach().clone() for name, tensor in precise(model).items()}
    returned = CASTS[cast](model)
    model = model if isinstance(returned, list) else returned
    for name, tensor in precise(model).items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name])
    others = {weight.dtype for name, weight in model.named_parameters() if name not in before}
    assert len(others) == 1 and others < set(HALF)
    assert model.sam.prompt_encoder.shared_embedding.positional_embedding is (
        model.sam.shared_image_embedding.positional_embedding
    )
    assert torch.isfinite(model.generate(**inputs.to(model.dtype)).caption_scores).all()


def test_a_cast_gives_what_loading_in_that_precision_gives(make_model, inputs, tmp_path):
    make_model("llama3").save_pretrained(tmp_path / "whole")
    loaded = ScaForConditionalGeneration.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    cast = ScaForConditionalGeneration.from_pretrained(tmp_path / "whole").to(torch.bfloat16)
    halves = inputs.to(torch.bfloat16)
    ours, theirs = (model.generate(**halves) for model in (cast, loaded))
    assert torch.equal(ours.pred_masks, theirs.pred_masks) and torch.equal(ours.sequences, theirs.sequences)
    assert torch.equal(ours.caption_scores, theirs.caption_scores)


@pytest.mark.parametrize("kind", ["whole", "mixer"])
def test_saving_after_a_cast_loses_no_positions(make_model, tmp_path, kind):
    make_model("llama3").save_pretrained(tmp_path / "original")
    model = ScaForConditionalGeneration.from_pretrained(tmp_path / "original")
    expected = {name: tensor.detach().clone() for name, tensor in precise(model).items()}
    model.half().save_pretrained(tmp_path / kind, include_base_models=kind == "whole")
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / kind).float()
    for name, tensor in precise(again).items():
        assert torch.equal(tensor, expected[name])


def test_back_in_single_precision_boxes_are_where_they_were(model, inputs):
    before = model.sam.prompt_encoder(None, None, inputs["input_boxes"], None)[0]
    model.half().float()
    # The corners' own vectors have been rounded, by a few thousandths; positions would be off by much more.
    after = model.sam.prompt_encoder(None, None, inputs["input_boxes"], None)[0]
    corners = torch.stack([model.sam.prompt_encoder.point_embed[i].weight[0] for i in (2, 3)])
    torch.testing.assert_close(after, before, atol=float(corners.abs().max()) * 2e-3, rtol=0)


def test_double_precision_is_double(model, inputs):
    expected = model.generate(**inputs)
    found = model.double().generate(**inputs.to(torch.float64))
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.pred_masks.float(), expected.pred_masks, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("part", ["sam", "mixer", "language_model"])
def test_parts_may_differ_in_precision(model, inputs, part):
    expected = model.generate(**inputs).pred_masks
    getattr(model, part).to(torch.bfloat16)
    outputs = model.generate(**inputs)
    assert torch.isfinite(outputs.caption_scores).all()
    assert torch.cosine_similarity(outputs.pred_masks.float().flatten(), expected.flatten(), dim=0) > 0.99
    assert torch.isfinite(model(**inputs, input_ids=torch.ones(1, 2, 4, dtype=torch.long)).logits).all()


def test_positions_are_exact_under_autocast_too(model, inputs):
    seen = []
    embedding = model.sam.shared_image_embedding
    for module in (embedding, model.sam.prompt_encoder.shared_embedding):
        module.register_forward_hook(lambda _, inputs, output: seen.append(output.detach()))
    folded = []
    model.mixer.fold_positions = lambda positions, fold=model.mixer.fold_positions: (
        folded.append(fold(positions)) or (folded[-1])
    )
    model(**inputs, input_ids=torch.ones(1, 2, 4, dtype=torch.long))
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs, input_ids=torch.ones(1, 2, 4, dtype=torch.long))
    plain, cast = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert plain and all(torch.equal(*pair) for pair in zip(plain, cast, strict=True))
    assert torch.equal(folded[0][0].bias, folded[1][0].bias)


def test_accelerate_and_its_mixed_precision_keep_positions(model, inputs):
    before = {name: tensor.detach().clone() for name, tensor in precise(model.bfloat16()).items()}
    # Another test of this process may have chosen a precision for it.
    AcceleratorState._reset_state(reset_partial_state=True)
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    AcceleratorState._reset_state(reset_partial_state=True)
    outputs = prepared(**inputs, input_ids=torch.ones(1, 2, 4, dtype=torch.long))
    assert torch.isfinite(outputs.logits).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in precise(model).items())


def test_a_model_can_still_be_pickled(model, inputs):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False).half()
    assert all(tensor.dtype == torch.float32 for tensor in precise(again).values())
    assert model.dtype == torch.float32

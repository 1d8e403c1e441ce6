"""What runs how often, counted: one encoding, few language model calls, nothing for padding, one host transfer."""

import math

import pytest
import torch

from sca_hf.modeling import generation_sca, grouping_sca
from sca_hf.modeling.generation_sca import language_model_rows
from sca_hf.testing import IMAGE_SIZE


MASK_SIZE = 4 * IMAGE_SIZE // 8


class Counter:
    """Calls of a model's parts, and how many rows (regions) each call had."""

    def __init__(self, model):
        self.rows = {"encoder": [], "mixer": [], "heads": [], "generate": [], "language model": []}
        model.sam.vision_encoder.register_forward_pre_hook(self.count("encoder"))
        model.mixer.register_forward_pre_hook(self.count("mixer"))
        model.sam.mask_decoder.iou_prediction_head.register_forward_pre_hook(self.count("heads"))
        model.language_model.register_forward_pre_hook(self.count("language model"), with_kwargs=True)
        generate = model.language_model.generate

        def counted(**kwargs):
            self.rows["generate"].append(len(kwargs["inputs_embeds"]))
            return generate(**kwargs)

        model.language_model.generate = counted

    def count(self, name):
        def hook(module, args, kwargs=None):
            tensor = next(x for x in (*args, *(kwargs or {}).values()) if isinstance(x, torch.Tensor))
            self.rows[name].append(len(tensor))

        return hook


def make_boxes(images, regions):
    corners = torch.rand(images, regions, 2, 2) * IMAGE_SIZE
    return torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=-1)


def make_pixels(images=1):
    return torch.randn(images, 3, IMAGE_SIZE, IMAGE_SIZE)


@pytest.mark.parametrize("budget", [None, 2 << 20])
def test_a_thousand_regions_encode_the_image_once_and_fill_the_language_models_budget(model, budget, monkeypatch):
    if budget is not None:
        monkeypatch.setattr(generation_sca, "_CPU_LANGUAGE_MODEL_BYTES", budget)
    counter = Counter(model)
    output = model.generate(
        pixel_values=make_pixels(), input_boxes=make_boxes(1, 1000), max_new_tokens=2, output_masks=False
    )
    assert output.sequences.shape == (1, 1000, 2)
    rows = language_model_rows(model.language_model, 14 + 2, 2, keep_logits=False)
    assert counter.rows["encoder"] == [1]
    assert len(counter.rows["generate"]) == math.ceil(1000 / rows)
    assert (rows < 1000) == (budget is not None)
    assert sum(counter.rows["mixer"]) == sum(counter.rows["generate"]) == 1000


def test_language_model_calls_are_regions_by_batch_size(model):
    counter = Counter(model)
    model.generate(
        pixel_values=make_pixels(), input_boxes=make_boxes(1, 7), max_new_tokens=1, language_model_batch_size=3
    )
    assert counter.rows["generate"] == [3, 3, 1]


@pytest.mark.parametrize("chunk", [1, 4, None])
def test_chunks_of_regions_share_the_encoding(model, chunk):
    counter = Counter(model)
    inputs = dict(pixel_values=make_pixels(2), input_boxes=make_boxes(2, 5))
    model.generate(**inputs, max_new_tokens=1, region_chunk_size=chunk)
    assert counter.rows["encoder"] == [2]
    assert counter.rows["generate"] == [10]
    assert counter.rows["mixer"] == (
        [10] if chunk is None else [chunk] * (10 // chunk) + [10 % chunk] * (10 % chunk > 0)
    )


@pytest.mark.parametrize("by", ["region_mask", "prompt_layout"])
def test_padded_regions_cost_no_mixer_and_no_language_model_rows(model, by):
    real = torch.tensor([[True, True, False, False], [True, False, False, False]])
    inputs = dict(pixel_values=make_pixels(2), input_boxes=make_boxes(2, 4))
    inputs[by] = real if by == "region_mask" else real.long()
    counter = Counter(model)
    output = model.generate(**inputs, max_new_tokens=2)
    assert counter.rows["mixer"] == counter.rows["heads"] == counter.rows["generate"] == [3]
    assert counter.rows["language model"] == [3, 3]
    assert torch.equal(output.region_mask, real)
    counter = Counter(model)
    model(**inputs, input_ids=torch.ones(2, 4, 3, dtype=torch.long))
    assert counter.rows["mixer"] == counter.rows["language model"] == [3]


def test_masks_are_not_computed_when_not_asked_for(model):
    inputs = dict(pixel_values=make_pixels(), input_boxes=make_boxes(1, 2))
    counter = Counter(model)
    model.generate(**inputs, max_new_tokens=1, output_masks=False)
    model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=False)
    model(**inputs, input_ids=torch.ones(1, 2, 3, dtype=torch.long))
    assert counter.rows["heads"] == []
    model.generate(**inputs, max_new_tokens=1)
    assert counter.rows["heads"] == [2]


def test_without_text_neither_mixer_nor_language_model_runs(model):
    counter = Counter(model)
    model(pixel_values=make_pixels(), input_boxes=make_boxes(1, 2))
    assert counter.rows["heads"] == [2]
    assert counter.rows["mixer"] == counter.rows["language model"] == []


def test_the_mixer_follows_the_choice_of_attention(model):
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        assert model.mixer.config._attn_implementation == attention
        assert model.sam.config._attn_implementation == attention


@pytest.mark.parametrize("sam_type", ["sam", "sam_hq"])
def test_the_host_reads_the_plan_of_the_regions_in_one_transfer_and_nothing_else(make_model, sam_type, monkeypatch):
    """On the meta device tensors have no values: any `.item()`, `.cpu()` or branch on a value raises."""
    # The library's masks for fused attention look at values; those for eager attention do not.
    model = make_model(sam_type=sam_type).to("meta")
    model.language_model.set_attn_implementation("eager")
    inputs = dict(
        # A box; two points; a mask and a box; padding.
        prompt_layout=torch.tensor([[1, 8, 3, 0]]),
        pixel_values=make_pixels(),
        input_boxes=make_boxes(1, 4),
        input_points=torch.zeros(1, 4, 2, 2),
        input_labels=torch.ones(1, 4, 2, dtype=torch.long),
        input_masks=torch.zeros(1, MASK_SIZE, MASK_SIZE),
        mask_index=torch.tensor([[-1, -1, 0, -1]]),
        task_ids=torch.zeros(1, 4, dtype=torch.long),
        input_ids=torch.ones(1, 4, 3, dtype=torch.long),
        attention_mask=torch.ones(1, 4, 3, dtype=torch.long),
    )
    on_meta = {name: tensor.to("meta") for name, tensor in inputs.items()}
    with pytest.raises(NotImplementedError, match="meta"):
        model(**on_meta)
    transfers = []

    def read(device, **tensors):
        known = dict(inputs, layout=inputs["prompt_layout"])
        transfers.append({name: known[name].flatten().numpy() for name, x in tensors.items() if x is not None})
        return transfers[-1]

    monkeypatch.setattr(grouping_sca, "_read", read)
    output = model(**on_meta, output_masks=True)
    assert len(transfers) == 1
    assert output.logits.shape[:3] == (1, 4, 3)
    assert output.pred_masks.shape == (1, 4, 3, MASK_SIZE, MASK_SIZE)

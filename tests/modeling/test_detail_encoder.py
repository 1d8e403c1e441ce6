"""The convolutional look at regions: nothing until it is trained, part of the model after, and never of masks."""

import copy
import re

import pytest
import torch
from safetensors.torch import load_file

from sca_hf import ScaForConditionalGeneration
from sca_hf.hub.info import describe_repository
from sca_hf.modeling.detail_sca import box_weights, mask_weights
from sca_hf.testing import tiny_image, tiny_model
from sca_hf.training import add_detail_encoder, apply_preset, increase_input_resolution
from sca_hf.training.embedding_cache import EmbeddingCache, EmbeddingCacheError


WIDTHS = [8, 8, 16]
BOXES = [[[3, 3, 40, 40], [20, 10, 60, 50]], [[5, 5, 30, 60], [1, 1, 20, 20]]]


@pytest.fixture(params=["sam", "sam_hq"])
def sam_type(request):
    return request.param


@pytest.fixture
def detailed(sam_type):
    """A model whose branch says something, as after training."""
    model = tiny_model(sam_type=sam_type, detail_widths=WIDTHS)
    with torch.no_grad():
        model.detail_encoder.projection.weight.normal_(std=0.3)
    return model


@pytest.fixture
def plain(detailed, sam_type):
    """The same without it."""
    model = tiny_model(sam_type=sam_type)
    own = {name: value for name, value in detailed.state_dict().items() if not name.startswith("detail_encoder")}
    model.load_state_dict(own)
    return model


def batch(processor, **prompts):
    prompts = prompts or {"input_boxes": BOXES}
    captions = [["a plain blue triangle", "two green apples"]] * 2
    return processor([tiny_image(0), tiny_image(1)], **prompts, captions=captions, return_tensors="pt")


def prefixes(model, inputs):
    with torch.no_grad():
        return model(**inputs).prefix_embeds


def test_a_new_branch_adds_nothing(processor, sam_type):
    plain = tiny_model(sam_type=sam_type)
    model = copy.deepcopy(plain)
    assert add_detail_encoder(model, WIDTHS) == ["detail_encoder"]
    inputs = batch(processor)
    assert torch.equal(prefixes(model, inputs), prefixes(plain, inputs))
    fresh = ScaForConditionalGeneration(tiny_model(sam_type=sam_type, detail_widths=WIDTHS).config)
    for one in (model, fresh):
        assert not one.detail_encoder.projection.weight.any() and not one.detail_encoder.projection.bias.any()
        assert one.detail_encoder.stem.weight.std() > 0.1


def test_it_learns_from_its_first_step(processor):
    model = tiny_model()
    add_detail_encoder(model, WIDTHS)
    apply_preset(model, "mixer")
    inputs = batch(processor)
    optimizer = torch.optim.SGD(model.detail_encoder.parameters(), lr=1e-4)
    losses = []
    for _ in range(2):
        loss = model(**inputs).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[1] < losses[0]
    assert model.detail_encoder.stem.weight.grad.abs().sum() > 0  # from the second step on


@pytest.mark.parametrize(
    "prompts", [{"input_boxes": BOXES}, {"input_points": [[[[20, 20]], [[40, 30]]], [[[15, 30]], [[10, 10]]]]}]
)
def test_captions_see_it_and_masks_do_not(detailed, plain, processor, prompts):
    inputs = batch(processor, **prompts)
    assert (prefixes(detailed, inputs) - prefixes(plain, inputs)).abs().max() > 0.1
    with torch.no_grad():
        seen, unseen = detailed(**inputs, output_masks=True), plain(**inputs, output_masks=True)
    assert torch.equal(seen.pred_masks, unseen.pred_masks) and torch.equal(seen.iou_scores, unseen.iou_scores)


def test_it_does_not_depend_on_company(detailed, processor):
    whole = prefixes(detailed, batch(processor))
    for row in range(2):
        captions = [["a plain blue triangle", "two green apples"]]
        alone = processor(tiny_image(row), input_boxes=[BOXES[row]], captions=captions, return_tensors="pt")
        torch.testing.assert_close(prefixes(detailed, alone)[0], whole[row], rtol=1e-4, atol=1e-4)
        chunked = prefixes(detailed, {**alone, "region_chunk_size": 1})
        torch.testing.assert_close(chunked[0], whole[row], rtol=1e-4, atol=1e-4)
    # Whether masks are asked for must not matter to where a point's features come from.
    points = {"input_points": [[[[20, 20]], [[40, 30]]], [[[15, 30]], [[10, 10]]]]}
    inputs = batch(processor, **points)
    wanted = prefixes(detailed, inputs)
    for multimask in (True, False):
        with torch.no_grad():
            found = detailed(**inputs, output_masks=True, multimask_output=multimask).prefix_embeds
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_an_image_can_be_encoded_once(detailed, processor):
    inputs = batch(processor)
    embeddings, intermediate = detailed.get_image_embeddings(inputs["pixel_values"])
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    given = {"image_embeddings": embeddings, "intermediate_embeddings": intermediate}
    assert torch.equal(prefixes(detailed, {**rest, **given}), prefixes(detailed, inputs))
    with pytest.raises(ValueError, match="needs the intermediate_embeddings"):
        detailed(**rest, image_embeddings=embeddings)


def test_it_is_saved_and_loaded(detailed, processor, tmp_path):
    detailed.save_pretrained(tmp_path / "whole")
    loaded = ScaForConditionalGeneration.from_pretrained(tmp_path / "whole")
    inputs = batch(processor)
    assert torch.equal(prefixes(loaded, inputs), prefixes(detailed, inputs))
    loaded.save_pretrained(tmp_path / "mixer", include_base_models=False)
    keys = load_file(tmp_path / "mixer" / "model.safetensors")
    assert {key.split(".")[0] for key in keys} == {"mixer", "detail_encoder"}
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer")
    assert torch.equal(prefixes(again, inputs), prefixes(detailed, inputs))
    half = ScaForConditionalGeneration.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    assert half.detail_encoder.stem.weight.dtype == torch.bfloat16
    assert half.generate(**inputs).sequences.shape[:2] == (2, 2)
    assert "detail encoder" in str(describe_repository(str(tmp_path / "whole")))


def test_it_is_trained_with_the_mixer(detailed):
    apply_preset(detailed, "mixer")
    assert all(weight.requires_grad for weight in detailed.detail_encoder.parameters())
    assert detailed.config.freeze_base_models


def test_embeddings_on_disk_would_lack_it(detailed, processor, tmp_path):
    with pytest.raises(EmbeddingCacheError, match="detail encoder needs the pixels"):
        EmbeddingCache(tmp_path, detailed, processor)


def test_weights_of_boxes_are_what_is_covered():
    boxes = torch.tensor([[0.0, 0, 8, 8], [8, 8, 24, 16], [4, 0, 12, 8], [5, 5, 5, 5]])  # cells of 8 pixels
    weights = box_weights(boxes, 32, 4)
    torch.testing.assert_close(weights.sum((1, 2)), torch.ones(4))
    assert weights[0, 0, 0] == 1 and weights[1, 1].tolist() == [0, 0.5, 0.5, 0]
    assert weights[2, 0].tolist() == [0.5, 0.5, 0, 0] and weights[3, 0, 0] == 1


def test_weights_of_masks_are_of_the_best():
    masks = torch.full((1, 2, 8, 8), -200.0)
    masks[0, 0, :4, :4] = 200
    masks[0, 1, 4:, :] = 200
    assert mask_weights(masks, torch.tensor([[0.9, 0.1]]))[0].tolist() == [[1, 0], [0, 0]]
    assert mask_weights(masks, torch.tensor([[0.1, 0.9]]))[0].tolist() == [[0, 0], [0.5, 0.5]]


@pytest.mark.parametrize("widths", [[8, 8], [], [8, 8, 8, 8], [8, 0, 8], [8, 8, 10**6]])
def test_stages_that_do_not_end_on_sams_grid_are_refused(widths):
    with pytest.raises(ValueError, match="patches of 8 pixels need 3 stages of 1 to 4096 channels"):
        tiny_model(detail_widths=widths)
    with pytest.raises(ValueError, match="detail_widths"):
        add_detail_encoder(tiny_model(), widths)


def test_sharpening_keeps_masks_and_begins_with_the_same_captions(processor):
    model = tiny_model()
    small = batch(processor)
    before = model.generate(**small)
    processor = copy.copy(processor)
    processor.anything_settings = {"points_per_side": 7}
    sharper = increase_input_resolution(model, processor)
    assert sharper.anything_settings == {"points_per_side": 7}
    assert sharper.image_processor.size["longest_edge"] == 128 and model.config.detail_widths == [16, 32, 64, 128]
    # Each pixel twice: what SAM made of the smaller image. It reads coordinates half a pixel further on.
    doubled = small["pixel_values"].repeat_interleave(2, -1).repeat_interleave(2, -2)
    after = model.generate(**{**small, "pixel_values": doubled, "input_boxes": 2 * small["input_boxes"] + 0.5})
    torch.testing.assert_close(after.pred_masks, before.pred_masks, rtol=1e-3, atol=1e-3)
    assert torch.equal(after.sequences, before.sequences)


def test_another_branch_is_refused_and_the_same_is_kept(detailed, processor):
    encoder = detailed.detail_encoder
    assert add_detail_encoder(detailed, WIDTHS) == [] and detailed.detail_encoder is encoder
    with pytest.raises(ValueError, match=re.escape(f"already has a detail encoder with widths {WIDTHS}")):
        add_detail_encoder(detailed, [*WIDTHS[:-1], WIDTHS[-1] + 8])
    with pytest.raises(ValueError, match="already has a detail encoder: pretrain_detail_encoder trains it further"):
        increase_input_resolution(detailed, processor)

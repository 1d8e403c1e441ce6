"""The convolutional branch beside SAM's image encoder: nothing until it is trained, and part of the model after."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from sca_hf import ScaForConditionalGeneration
from sca_hf.testing import tiny_image, tiny_model
from sca_hf.training import apply_preset
from sca_hf.training.embedding_cache import EmbeddingCache, EmbeddingCacheError
from sca_hf.training.image_encoder import add_detail_encoder


WIDTHS = [8, 8, 16]


@pytest.fixture
def detailed():
    """A model whose branch says something, as after training."""
    model = tiny_model(detail_widths=WIDTHS)
    with torch.no_grad():
        model.detail_encoder.projection.weight.normal_(std=0.3)
    return model


def pixels(processor, *seeds):
    return processor(images=[tiny_image(seed) for seed in seeds])["pixel_values"]


@pytest.mark.parametrize("sam_type", ["sam", "sam_hq"])
def test_a_new_branch_adds_nothing(processor, sam_type):
    plain = tiny_model(sam_type=sam_type)
    model = copy.deepcopy(plain)
    assert add_detail_encoder(model, WIDTHS) == ["detail_encoder"]
    inputs = processor(tiny_image(0), input_boxes=[[[3, 3, 40, 40], [20, 10, 60, 50]]])
    before, after = plain.generate(**inputs), model.generate(**inputs)
    assert torch.equal(before.pred_masks, after.pred_masks) and torch.equal(before.sequences, after.sequences)
    built = tiny_model(sam_type=sam_type, detail_widths=WIDTHS)
    fresh = ScaForConditionalGeneration(built.config)
    for one in (model, fresh):
        assert not one.detail_encoder.projection.weight.any() and not one.detail_encoder.projection.bias.any()
        assert one.detail_encoder.stem.weight.std() > 0.1


def test_it_learns_from_its_first_step(processor):
    model = tiny_model()
    apply_preset(model, "all")
    add_detail_encoder(model, WIDTHS)
    captions = [["a plain blue triangle"]]
    batch = processor(tiny_image(0), input_boxes=[[[3, 3, 40, 40]]], captions=captions)
    optimizer = torch.optim.SGD(model.detail_encoder.parameters(), lr=1e-4)
    losses = []
    for _ in range(2):
        loss = model(**batch).loss  # without dropout
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[1] < losses[0]
    assert model.detail_encoder.stem.weight.grad.abs().sum() > 0  # from the second step on


def test_it_counts_and_does_not_depend_on_other_images(detailed, processor):
    plain = tiny_model()
    plain.load_state_dict({k: v for k, v in detailed.state_dict().items() if not k.startswith("detail_encoder")})
    together = detailed.get_image_embeddings(pixels(processor, 0, 1))
    assert (together - plain.get_image_embeddings(pixels(processor, 0, 1))).abs().max() > 0.1
    torch.testing.assert_close(together[1:], detailed.get_image_embeddings(pixels(processor, 1)), rtol=1e-4, atol=1e-4)


def test_it_is_saved_and_loaded(detailed, processor, tmp_path):
    detailed.save_pretrained(tmp_path / "whole")
    loaded = ScaForConditionalGeneration.from_pretrained(tmp_path / "whole")
    wanted = detailed.get_image_embeddings(pixels(processor, 0))
    assert torch.equal(loaded.get_image_embeddings(pixels(processor, 0)), wanted)
    assert not any(weight.requires_grad for weight in loaded.detail_encoder.parameters())  # as SAM beside it
    loaded.save_pretrained(tmp_path / "mixer", include_bases=False)
    keys = load_file(tmp_path / "mixer" / "model.safetensors")
    assert {key.split(".")[0] for key in keys} == {"mixer", "detail_encoder"}
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer")
    assert torch.equal(again.get_image_embeddings(pixels(processor, 0)), wanted)
    half = ScaForConditionalGeneration.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    assert half.detail_encoder.stem.weight.dtype == torch.bfloat16
    assert half.get_image_embeddings(pixels(processor, 0)).dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "trained"), [("mixer", False), ("all", True)])
def test_it_is_trained_where_sam_is(detailed, name, trained):
    apply_preset(detailed, name, mask_loss_weight=1.0 if trained else None)
    assert all(weight.requires_grad == trained for weight in detailed.detail_encoder.parameters())


def test_cached_embeddings_hold_it(detailed, processor, tmp_path):
    apply_preset(detailed, "mixer")
    cache = EmbeddingCache(tmp_path, detailed, processor)
    embedding = cache.encode(pixels(processor, 0))
    torch.testing.assert_close(
        embedding.float(), detailed.get_image_embeddings(pixels(processor, 0)), rtol=1e-2, atol=1e-2
    )
    with torch.no_grad():
        detailed.detail_encoder.projection.bias += 0.1
    assert EmbeddingCache(tmp_path, detailed, processor).folder != cache.folder
    with pytest.raises(EmbeddingCacheError, match="has changed"):
        cache.encode(pixels(processor, 0))
    detailed.detail_encoder.requires_grad_(True)
    with pytest.raises(EmbeddingCacheError, match="image encoder is trained"):
        EmbeddingCache(tmp_path, detailed, processor)


@pytest.mark.parametrize("widths", [[8, 8], [], [8, 8, 8, 8], [8, 0, 8], [8, 8, 10**6]])
def test_stages_that_do_not_end_on_sams_grid_are_refused(widths):
    with pytest.raises(ValueError, match="patches of 8 pixels need 3 stages of 1 to 4096 channels"):
        tiny_model(detail_widths=widths)
    with pytest.raises(ValueError, match="detail_widths"):
        add_detail_encoder(tiny_model(), widths)


def test_a_second_branch_is_refused(detailed):
    with pytest.raises(ValueError, match="has a detail encoder already"):
        add_detail_encoder(detailed, WIDTHS)

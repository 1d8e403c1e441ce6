"""The mixer's forms of the paper's ablations: each trains, captions, comes back, and reads what it says it reads."""

import json

import pytest
import torch

from sca_hf import ScaConfig, ScaForConditionalGeneration, ScaProcessor
from sca_hf.hub.info import describe_repository
from sca_hf.modeling import validation_sca
from sca_hf.modeling.queries_sca import roi_align
from sca_hf.testing import tiny_config, tiny_image, tiny_tokenizer
from tests.modeling.tiny_segmenters import tiny_model_of


JOINT: dict[str, object] = {}
FORMS = {
    "joint": JOINT,
    "split": dict(token_source="prompt", image_source="encoder"),
    "direct": dict(query_type="mask_tokens"),
    "direct, projection only": dict(query_type="mask_tokens", num_hidden_layers=0),
    "roi": dict(query_type="roi", num_hidden_layers=0, roi_size=2),
    "roi, mixed": dict(query_type="roi", roi_size=2),
    "no tokens": dict(token_source="none"),
    "image of the encoder": dict(image_source="encoder"),
    "tokens of the prompt": dict(token_source="prompt"),
    "one layer": dict(num_hidden_layers=1),
    "two queries": dict(num_caption_tokens=2),
}


def batch(model, **more):
    processor = ScaProcessor.from_config(model.config, tiny_tokenizer())
    boxes, points = [[[5, 5, 60, 50], [20, 10, 70, 55], None]], [[None, None, [[30, 30]]]]
    return processor(tiny_image(0), input_boxes=boxes, input_points=points, **more)


@pytest.mark.parametrize("kind", ["sam", "sam2"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_learns_captions_and_comes_back(form, kind, tmp_path):
    model = tiny_model_of(kind, mixer_config=FORMS[form])
    captions = [["a plain blue triangle", "a star", "a ring"]]
    model.train()
    model(**batch(model, captions=captions)).loss.backward()
    assert all(weight.grad is not None for name, weight in model.mixer.named_parameters() if "final" not in name)
    assert all(weight.grad is None for weight in model.sam.parameters())
    model.eval()
    before = model.generate(**batch(model), max_new_tokens=4)
    model.save_pretrained(tmp_path)
    again = ScaForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.generate(**batch(again), max_new_tokens=4).sequences, before.sequences)
    assert (before.sequences.ndim == 4) == form.startswith("direct")
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == (
        1 if model.config.mixer_config.is_published else 2
    )


def queries(model):
    ids = torch.ones(1, 3, 2, dtype=torch.long)
    with torch.no_grad():
        return model(**batch(model), input_ids=ids).query_embeds


@pytest.mark.parametrize(
    ("form", "moves"), [("joint", True), ("split", False), ("direct", True), ("no tokens", True), ("roi", False)]
)
def test_queries_move_with_the_decoder_where_they_read_it(form, moves):
    model = tiny_model_of("sam", mixer_config=FORMS[form])
    before = queries(model)[:, :2]  # boxes: the box of a mask that is found moves with the decoder
    with torch.no_grad():
        for weight in model.sam.mask_decoder.transformer.parameters():
            weight.mul_(1.1)
    assert torch.equal(before, queries(model)[:, :2]) != moves


def test_a_region_of_a_point_is_pooled_in_the_box_of_its_best_mask():
    model = tiny_model_of("sam", mixer_config=FORMS["roi"])
    inputs = batch(model)
    found = model(**inputs)
    mask = found.pred_masks[0, 2, found.iou_scores[0, 2].argmax()] > 0
    rows, columns = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
    box = torch.tensor([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]) / mask.shape[-1]
    pooled = roi_align(found.image_embeddings, torch.tensor([0]), box, 2)
    assert torch.allclose(queries(model)[0, 2].reshape(pooled.shape), pooled, atol=1e-5)


def test_roi_align_samples_as_torchvision_does():
    """Against the definition, sample by sample: aligned, as many samples as cells of each part."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 9, 7, generator=generator)
    corners = torch.rand(8, 2, 2, generator=generator).sort(dim=1).values
    boxes = torch.cat([corners.flatten(1), torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]])])
    index = torch.arange(10) % 2
    pooled = roi_align(images, index, boxes, 3)

    def at(image, y, x):
        y, x = min(max(y, 0.0), 8.0), min(max(x, 0.0), 6.0)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, 8), min(x0 + 1, 6)
        top = image[:, y0, x0] * (1 - (x - x0)) + image[:, y0, x1] * (x - x0)
        bottom = image[:, y1, x0] * (1 - (x - x0)) + image[:, y1, x1] * (x - x0)
        return top * (1 - (y - y0)) + bottom * (y - y0)

    for row, (x1, y1, x2, y2) in enumerate((boxes * torch.tensor([7.0, 9.0, 7.0, 9.0])).tolist()):
        height, width = (y2 - y1) / 3, (x2 - x1) / 3
        counts = max(1, -int(-height // 1)), max(1, -int(-width // 1))
        for part in range(9):
            i, j = divmod(part, 3)
            samples = [
                at(
                    images[index[row]],
                    y1 + height * (i + (a + 0.5) / counts[0]) - 0.5,
                    x1 + width * (j + (b + 0.5) / counts[1]) - 0.5,
                )
                for a in range(counts[0])
                for b in range(counts[1])
            ]
            assert torch.allclose(pooled[row, part], torch.stack(samples).mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(query_type="learnt"), "query_type is 'learnt', expected 'learned' or 'mask_tokens' or 'roi'"),
        (dict(token_source="encoder"), "token_source is 'encoder'"),
        (dict(image_source="none"), "image_source is 'none'"),
        (dict(num_hidden_layers=0), "num_hidden_layers must be at least 1"),
        (dict(query_type="roi", roi_size=0), "must be at least 1"),
    ],
)
def test_forms_that_there_are_not_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(mixer_config=fields)


def test_older_code_refuses_another_form_in_words(tmp_path, monkeypatch):
    tiny_model_of("sam", mixer_config=FORMS["split"]).save_pretrained(tmp_path)
    monkeypatch.setattr(validation_sca, "FORMAT_VERSION", 1)
    with pytest.raises(ValueError, match="has format 2, but this code supports formats up to 1: update sca-hf"):
        ScaConfig.from_pretrained(tmp_path)


def test_the_form_is_told(tmp_path):
    tiny_model_of("sam", mixer_config=FORMS["split"]).save_pretrained(tmp_path)
    mixer = next(part for part in describe_repository(str(tmp_path)).parts if part.name == "mixer")
    assert mixer.description.endswith("queries learned, tokens of prompt, image of encoder")

import numpy as np
import pytest
import torch
from transformers import SamProcessor

from sca_hf import ScaGenerateOutput
from sca_hf.processing import mask_generation_sca
from sca_hf.testing import tiny_image


SIZES, RESIZED = torch.tensor([[60, 80], [90, 30]]), torch.tensor([[48, 64], [64, 21]])
CAT = "a small striped red circle"


@pytest.fixture
def outputs(tokenizer):
    """Two images of three and one real regions, three mask candidates each."""
    ids = torch.tensor(tokenizer(CAT, add_special_tokens=False)["input_ids"])
    sequences = torch.zeros(2, 3, len(ids) + 2, dtype=torch.int64)
    for image, region in ((0, 0), (0, 1), (0, 2), (1, 0)):
        length = len(ids) - 2 * region
        sequences[image, region, : length + 1] = torch.cat([ids[:length], torch.tensor([tokenizer.eos_token_id])])
    return {
        "sequences": sequences,
        "caption_scores": -torch.arange(6.0).view(2, 3),
        "pred_masks": torch.nn.functional.avg_pool3d(torch.randn(2, 3, 3, 96, 96), (1, 3, 3)) * 9,
        "iou_scores": torch.rand(2, 3, 3),
        "region_mask": torch.tensor([[True] * 3, [True, False, False]]),
    }


def test_decoding_drops_padded_regions_and_padding(processor, outputs):
    texts = processor.batch_decode(outputs)
    assert [len(image) for image in texts] == [3, 1] and texts[0][0] == texts[1][0] == CAT
    assert CAT.startswith(texts[0][2]) and len(texts[0][2]) < len(CAT)
    assert processor.batch_decode(ScaGenerateOutput(**outputs)) == texts
    assert processor.batch_decode(outputs["sequences"], outputs["region_mask"]) == texts
    assert processor.batch_decode(outputs["sequences"])[1] == [CAT, "", ""]


def test_decoding_keeps_the_nesting_of_ids(processor, outputs):
    ids = outputs["sequences"]
    assert processor.batch_decode(ids[0]) == processor.batch_decode(ids)[0]
    several = processor.batch_decode(torch.stack([ids, ids], 2), outputs["region_mask"])
    assert several[0][0] == [CAT, CAT] and [len(image) for image in several] == [3, 1]
    assert processor.batch_decode([[ids[0, 0].tolist(), [5]], [[7, 8, 9]]])[0][0] == CAT
    assert processor.batch_decode(torch.full((1, 2, 0), 0)) == [["", ""]]
    assert processor.decode(ids[0, 0]) == processor.decode(ids[0, 0].tolist()) == CAT
    assert processor.post_process_image_text_to_text(ids) == [
        t for image in processor.batch_decode(ids) for t in image
    ]
    with pytest.raises(ValueError, match="2 to 4 axes"):
        processor.batch_decode(ids[0, 0])
    with pytest.raises(ValueError, match="region_mask and the ids differ"):
        processor.batch_decode(ids, outputs["region_mask"][:, :2])
    with pytest.raises(ValueError, match="no sequences to decode"):
        processor.batch_decode({"pred_masks": outputs["pred_masks"]})


def test_masks_are_those_of_the_librarys_processor(processor, outputs):
    sam = SamProcessor(processor.image_processor)
    theirs = sam.post_process_masks(list(outputs["pred_masks"]), SIZES, RESIZED)
    for ours, their in zip(processor.post_process_masks(outputs["pred_masks"], SIZES, RESIZED), theirs, strict=True):
        assert torch.equal(ours, their) and ours.dtype == torch.bool
    half = processor.post_process_masks(outputs["pred_masks"].bfloat16(), SIZES, RESIZED, binarize=False)
    assert half[0].shape == (3, 3, 60, 80) and half[0].dtype == torch.float32


@pytest.mark.parametrize("pixels", [1, 1 << 26])
def test_a_region_is_a_record_with_its_best_mask(processor, outputs, pixels, monkeypatch):
    monkeypatch.setattr(mask_generation_sca, "_MASK_PIXELS", pixels)
    records = processor.post_process_regions(outputs, SIZES, RESIZED)
    assert [len(image) for image in records] == [3, 1]
    masks = processor.post_process_masks(outputs["pred_masks"], SIZES, RESIZED)
    for image, region in ((0, 0), (0, 2), (1, 0)):
        record, best = records[image][region], outputs["iou_scores"][image, region].argmax()
        assert np.array_equal(record["mask"], masks[image][region, best].numpy())
        assert record["iou"] == pytest.approx(outputs["iou_scores"][image, region].max().item())
        assert record["score"] == outputs["caption_scores"][image, region]
        y, x = np.nonzero(record["mask"])
        assert record["box"] == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert records[1][0]["caption"] == CAT


def test_all_candidates_are_given_when_asked_for(processor, outputs):
    record = processor.post_process_regions(outputs, SIZES, RESIZED, all_masks=True)[1][0]
    assert record["mask"].shape == (3, 90, 30) and len(record["box"]) == 3
    assert record["iou"] == pytest.approx(outputs["iou_scores"][1, 0].tolist())


def test_an_empty_mask_has_no_box(processor, outputs):
    outputs["pred_masks"][0, 1] = -5
    assert processor.post_process_regions(outputs, SIZES, RESIZED)[0][1]["box"] is None


def test_a_box_of_a_record_is_a_legal_prompt(processor, outputs):
    outputs["pred_masks"][:] = 5
    records = processor.post_process_regions(outputs, SIZES, RESIZED)
    assert records[1][0]["box"] == [0, 0, 30, 90]
    boxes = [[record["box"] for record in image] for image in records]
    assert processor(original_sizes=SIZES, input_boxes=boxes)["region_mask"].sum() == 4


def test_what_an_output_lacks_is_none(processor, outputs):
    masks_only = {name: outputs[name] for name in ("pred_masks", "iou_scores")}
    records = processor.post_process_regions(masks_only, SIZES, RESIZED, region_mask=outputs["region_mask"])
    assert [len(image) for image in records] == [3, 1]
    assert records[0][0]["caption"] is records[0][0]["score"] is None and records[0][0]["mask"].any()
    texts_only = {"sequences": outputs["sequences"]}
    record = processor.post_process_regions(texts_only, SIZES, RESIZED)[0][0]
    assert record == {"caption": CAT, "score": None, "confidence": None, "mask": None, "iou": None, "box": None}
    with pytest.raises(ValueError, match="nothing to post-process"):
        processor.post_process_regions({}, SIZES, RESIZED)


def test_sizes_of_another_batch_are_an_error(processor, outputs):
    for arguments in ((SIZES[:1], RESIZED), (SIZES, RESIZED[:1]), (SIZES, RESIZED, torch.ones(1, 3))):
        with pytest.raises(ValueError, match=r"the output has 2 image\(s\) of 3 region\(s\)"):
            processor.post_process_regions(outputs, *arguments)


def test_chosen_regions_are_those_of_real_regions_with_their_places(processor, outputs):
    outputs["iou_scores"][1, 1:] = 1.0  # padding looks best, and must not be chosen
    outputs["pred_masks"][0, 2, 1] = torch.where(torch.arange(32)[:, None] < 12, 9.0, -9.0)
    chosen = processor.select_regions(outputs, SIZES, RESIZED, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    assert set(chosen[1]["region_index"].tolist()) == {0}
    for image, found in enumerate(chosen):
        where = (found["region_index"], found["candidate_index"])
        assert torch.equal(found["masks"], outputs["pred_masks"][image][where])
        assert torch.equal(found["iou_scores"], outputs["iou_scores"][image][where])
        assert (found["iou_scores"].diff() <= 0).all()
    half = (chosen[0]["region_index"] == 2) & (chosen[0]["candidate_index"] == 1)
    assert chosen[0]["boxes"][half].tolist() == [[0, 0, 80, 30]]  # 12 of the 24 rows of cells inside the image


def test_a_grid_prompts_each_point_as_a_region(processor):
    grid = processor.grid_prompts(SIZES, points_per_side=4, task="recognition")
    assert grid["input_points"].shape == (2, 16, 1, 2) and grid["region_mask"].all()
    assert grid["prompt_layout"].unique().tolist() == [1 << 2] and not grid["task_ids"].any()
    assert grid["input_points"][0, 0, 0].tolist() == [8, 6]  # 10, 7.5 in the original of 80 x 60


def test_everything_mode_runs_on_one_encoding(processor, model):
    image = processor(tiny_image())
    embeddings = model.get_image_embeddings(image["pixel_values"])
    sizes = image["original_sizes"], image["reshaped_input_sizes"]
    grid = processor.grid_prompts(sizes[0], points_per_side=4)
    with torch.no_grad():
        masks = model(image_embeddings=embeddings, **grid)
    (chosen,) = processor.select_regions(masks, *sizes, pred_iou_thresh=-1e9, stability_score_thresh=0.0)
    assert 0 < len(chosen["boxes"]) <= 48
    for prompts in ({"input_boxes": [chosen["boxes"]]}, {"input_masks": [chosen["masks"]]}):
        inputs = processor(original_sizes=sizes[0], **prompts)
        output = model.generate(image_embeddings=embeddings, **inputs)
        records = processor.post_process_regions(output, *sizes)
        assert [len(records[0]), records[0][0]["mask"].shape] == [len(chosen["boxes"]), (60, 80)]


def test_mixed_prompts_go_through_the_model_and_back(processor, model):
    images = [tiny_image(0), tiny_image(1, (30, 90))]
    mask = np.zeros((60, 80), bool)
    mask[10:40, 20:50] = True
    inputs = processor(
        images,
        input_boxes=[[[0, 0, 40, 40], None, None], [[0, 0, 30, 90]]],
        input_points=[[None, [[5, 5], [50, 40], [70, 10]], [[30, 30]]], None],
        input_masks=[[None, None, mask], None],
        captions=[["a", "b", "c"], ["d"]],
    )
    output = model.generate(**inputs)
    records = processor.post_process_regions(output, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    assert [[r["mask"].shape for r in image] for image in records] == [[(60, 80)] * 3, [(90, 30)]]
    assert all(isinstance(r["caption"], str) and r["score"] < 0 for image in records for r in image)
    assert torch.isfinite(model(**inputs).loss)

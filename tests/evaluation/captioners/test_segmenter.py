"""SAM alone finds what our whole model finds, whatever prompts come together."""

import numpy as np
import pytest

from sca_hf.evaluation.captioners import ScaCaptioner
from sca_hf.evaluation.captioners.interface import ImageQuery, RegionQuery
from sca_hf.evaluation.captioners.sca import Segmenter
from sca_hf.processing.region_prompts_sca import RegionPrompt
from sca_hf.testing import tiny_image


def asked():
    """Two images with a box, points, a mask, and a point to be drawn in a mask."""
    mask = np.zeros((60, 80), bool)
    mask[20:40, 10:50] = True
    box = [10.0, 5.0, 60.0, 50.0]
    regions = [
        RegionQuery("box", box, RegionPrompt(box=box)),
        RegionQuery("points", box, RegionPrompt(points=[[30.5, 20.0], [1, 1]], labels=[1, 0])),
        RegionQuery("mask", box, RegionPrompt(mask=mask)),
        RegionQuery("drawn", box, RegionPrompt(box=box), resample_point=5),
    ]
    wide = ImageQuery(
        tiny_image(1, (90, 40)), "wide", [RegionQuery("box", box, RegionPrompt(box=[3.0, 3.0, 50.0, 39.0]))]
    )
    return [ImageQuery(tiny_image(0), "first", regions), wide]


@pytest.mark.parametrize("sam_type", ["sam", "sam_hq"])
@pytest.mark.parametrize("at_once", [None, 2])
def test_masks_and_expected_iou_are_those_of_the_whole_model(make_model, processor, sam_type, at_once):
    model, images = make_model(sam_type=sam_type), asked()
    said = ScaCaptioner(model, processor, {"max_new_tokens": 2}).caption_regions(images, with_masks=True)
    found = Segmenter(model.sam, regions_at_once=at_once).segment(images)
    assert [len(regions) for regions in found] == [4, 1]
    for answers, regions, image in zip(said, found, images, strict=True):
        for answer, region in zip(answers, regions, strict=True):
            assert region.masks.shape == (3, image.image.height, image.image.width)
            assert np.array_equal(region.masks, answer.masks)
            assert np.allclose(region.iou_scores, answer.iou_scores, atol=1e-5)
            assert np.array_equal(region.best, answer.best_mask)
    assert not np.array_equal(found[0][0].masks, found[0][3].masks), "another prompt, another mask"


def test_a_segmenter_is_loaded_from_a_sam_and_from_a_whole_model(model, processor, tmp_path):
    model.sam.save_pretrained(tmp_path / "sam")
    model.save_pretrained(tmp_path / "sca")
    one, other = (Segmenter.load(str(tmp_path / name)) for name in ("sam", "sca"))
    found = [segmenter.segment(asked()) for segmenter in (one, other)]
    assert all(
        np.array_equal(a.masks, b.masks) for rows in zip(*found, strict=True) for a, b in zip(*rows, strict=True)
    )
    assert one.source != other.source and len(one.source) == 64

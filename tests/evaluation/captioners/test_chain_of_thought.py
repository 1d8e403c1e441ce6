"""SAM and an image captioner: what is shown and what is asked, with real tiny models."""

import numpy as np
import pytest
from PIL import Image

from sca_hf.evaluation.captioners.crop_captioner import CropCaptioner, CropStyle, cut_region, second_question
from sca_hf.evaluation.captioners.image_text import ImageTextModel
from sca_hf.evaluation.captioners.interface import ImageQuery, RegionQuery
from sca_hf.evaluation.captioners.sca import Segmenter
from sca_hf.processing.region_prompts_sca import RegionPrompt
from sca_hf.testing import tiny_image
from tests.evaluation.tiny_captioners import save


BOXES = ([5, 5, 40, 30], [30, 20, 70, 55], [10, 0, 60, 60])


class Listening(ImageTextModel):
    """A real model that also keeps what it was asked."""

    def answer(self, images, texts=None, **inputs):
        said = super().answer(images, texts, **inputs)
        self.calls.append((list(images), texts, said))
        return said


@pytest.fixture(scope="module")
def git(tmp_path_factory):
    return Listening.load(str(save("git", tmp_path_factory.mktemp("git"))), generation={"max_new_tokens": 5})


@pytest.fixture
def captioner(git, model):
    git.calls = []
    return git, Segmenter(model.sam)


def asked(count=2):
    prompts = [RegionPrompt(box=list(map(float, box))) for box in BOXES]
    return [
        ImageQuery(tiny_image(k), f"picture {k}", [RegionQuery(str(i), p.box, p) for i, p in enumerate(prompts[k:])])
        for k in range(count)
    ]


def same(one, other):
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def cut_all(images, found, style, which):
    return [
        cut_region(image.image, mask.best, region.box, style)[which]
        for image, masks in zip(images, found, strict=True)
        for region, mask in zip(image.regions, masks, strict=True)
    ]


def test_without_a_chain_of_thought_crops_are_shown_and_nothing_is_asked(captioner):
    git, segmenter = captioner
    images = asked()
    answers = CropCaptioner(git, segmenter).caption_regions(images)
    ((shown, texts, said),) = git.calls
    assert texts is None and same(shown, cut_all(images, segmenter.segment(images), CropStyle(), 0))
    assert [answer.candidates for row in answers for answer in row] == [[text] for text in said]
    assert [len(answer.iou_scores) for answer in answers[0]] == [3, 3, 3]


def test_a_chain_of_thought_asks_of_the_region_on_white_and_then_of_the_crop(captioner):
    git, segmenter = captioner
    images = asked()
    answers = CropCaptioner(git, segmenter, CropStyle(background="gray"), vcot=True).caption_regions(images)
    (alone, questions, things), (crops, instructions, said) = git.calls
    found = segmenter.segment(images)
    assert questions == ["What is this?"] * 5
    assert same(alone, cut_all(images, found, CropStyle(background="white"), 1))
    assert instructions == [second_question(thing) for thing in things]
    assert same(crops, cut_all(images, found, CropStyle(), 0)), "the crop as it is"
    assert [answer.candidates for row in answers for answer in row] == [[text] for text in said]


@pytest.mark.parametrize(
    ("thing", "question"),
    [
        (" a red-haired dog. ", "Describe the a redhaired dog in the image."),
        ('"cat", (black)!', "Describe the cat black in the image."),
        ("", "Describe the region in the image."),
        (" ?! ", "Describe the region in the image."),
    ],
)
def test_the_second_question_names_the_first_answer_without_punctuation(thing, question):
    assert second_question(thing) == question


def test_all_masks_of_a_region_may_be_described(captioner):
    git, segmenter = captioner
    images = asked(1)
    (answers,) = CropCaptioner(git, segmenter, heads="all").caption_regions(images, with_masks=True)
    (best,) = CropCaptioner(git, segmenter).caption_regions(images)
    assert [len(answer.candidates) for answer in answers] == [3, 3, 3] and answers[0].masks.shape == (3, 60, 80)
    assert [answer.candidates[answer.best] for answer in answers] == [answer.candidates[0] for answer in best]


def test_crops_of_all_images_go_together_and_change_nothing(captioner):
    git, segmenter = captioner
    images = asked()
    together = CropCaptioner(git, segmenter, vcot=True).caption_regions(images)
    alone = [CropCaptioner(git, segmenter, vcot=True).caption_regions([image])[0] for image in images]
    assert [[a.candidates for a in row] for row in together] == [[a.candidates for a in row] for row in alone]
    assert len(git.calls[0][0]) == 5


def test_without_a_sam_crops_are_along_boxes_or_given_masks(captioner):
    git, _ = captioner
    images = asked(1)
    (answers,) = CropCaptioner(git, None, CropStyle(area="box")).caption_regions(images)
    assert same(git.calls[0][0], [images[0].image.crop(tuple(box)) for box in BOXES])
    assert answers[0].iou_scores is None and answers[0].masks is None
    mask = np.zeros((60, 80), bool)
    mask[10:20, 10:30] = True
    images[0].regions = [RegionQuery("0", [0, 0, 80, 60], RegionPrompt(mask=mask))]
    CropCaptioner(git, None, CropStyle(edges="whole")).caption_regions(images)
    assert same(git.calls[1][0], [images[0].image.crop((10, 10, 30, 20))])
    with pytest.raises(ValueError, match="no mask to crop to"):
        CropCaptioner(git, None).caption_regions(asked(1))


def test_a_box_that_was_not_shown_is_not_cut_along(captioner):
    git, segmenter = captioner
    (image,) = asked(1)
    along_boxes = CropCaptioner(git, segmenter, CropStyle(area="box"))
    image.regions[2].resample_point = 3
    with pytest.raises(ValueError, match="area=box needs a box and the prompt is a point"):
        along_boxes.caption_regions([image])
    image.regions = [RegionQuery("0", [0, 0, 80, 60], RegionPrompt(points=[[5, 5]], labels=[1]))]
    with pytest.raises(ValueError, match="area=box needs a box and the prompt is a point"):
        along_boxes.caption_regions([image])


def test_masks_are_those_of_the_library(model):
    from transformers import SamImageProcessorPil

    processor = SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    (image,) = asked(1)
    features = processor(image.image, return_tensors="pt")
    boxes = np.array([[list(map(float, box)) for box in BOXES]]) * (64 / 80)
    import torch

    outputs = model.sam(features["pixel_values"], input_boxes=torch.tensor(boxes, dtype=torch.float32))
    masks = processor.post_process_masks(outputs.pred_masks, [[60, 80]], [[48, 64]])[0].numpy()
    (found,) = Segmenter(model.sam).segment([image])
    assert np.array_equal(np.stack([region.masks for region in found]), masks)
    assert np.allclose([region.iou_scores for region in found], outputs.iou_scores[0].detach(), atol=1e-5)


def test_our_own_model_may_be_shown_crops(captioner):
    _, segmenter = captioner
    ours = ImageTextModel.load("sca-tiny")
    (question,) = asked(1)
    (answers,) = CropCaptioner(ours, segmenter, CropStyle(area="box")).caption_regions([question])
    alone = [ours.answer([question.image.crop(box)])[0] for box in BOXES]
    assert [answer.candidates[0] for answer in answers] == alone and all(alone)
    assert ours.answer([Image.new("RGB", (30, 20))] * 2) == [ours.answer([Image.new("RGB", (30, 20))])[0]] * 2

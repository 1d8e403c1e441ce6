"""How a box is told to models that read and write: in their own words for places, in numbers, or drawn."""

import numpy as np
import pytest
from PIL import Image

from sca_hf.evaluation.captioners.image_text import new_tokens
from sca_hf.evaluation.captioners.interface import ImageQuery, RegionQuery
from sca_hf.evaluation.captioners.referring import (
    ChatCaptioner,
    Florence2Captioner,
    Kosmos2Captioner,
    draw_box,
)
from sca_hf.processing.region_prompts_sca import RegionPrompt
from tests.evaluation.tiny_captioners import florence2, kosmos2, llava


IMAGE = Image.new("RGB", (200, 100), (10, 20, 30))
BOX = [50.0, 10.0, 150.0, 90.0]


class Asked:
    """Keeps what a model is asked in place of answering; what becomes of it is the real processor's affair."""

    chats = True

    def __init__(self, processor, said="a dog"):
        self.processor, self.said = processor, said

    def answer(self, images, texts, **inputs):
        self.images, self.texts, self.inputs = images, texts, inputs
        return [self.said] * len(images)


def test_kosmos_goes_on_from_the_words_for_the_two_corners():
    processor = kosmos2()[1]
    model = Asked(processor, "<phrase>a dog</phrase><object><patch_index_0008><patch_index_0999></object> on grass")
    assert Kosmos2Captioner(model).answer([IMAGE], [BOX]) == ["a dog on grass"]
    text = processor(images=[IMAGE], text=model.texts, **model.inputs)["input_ids"][0]
    # 32 x 32 patches: from column 8, row 3 to column 23, row 28.
    assert processor.tokenizer.decode(text[-9:]).replace(" ", "") == (
        "<grounding><phrase>It</phrase><object><patch_index_0104><patch_index_0919></object>is"
    )


def test_florence_is_asked_in_thousandths():
    model = Asked(florence2()[1], "a dog<loc_1><loc_2>")
    assert Florence2Captioner(model).answer([IMAGE], [BOX]) == ["a dog"]
    assert model.texts == ["<REGION_TO_DESCRIPTION><loc_250><loc_100><loc_750><loc_900>"]
    Florence2Captioner(model, "category").answer([IMAGE], [[0.0, 0.0, 200.0, 100.0]])
    assert model.texts == ["<REGION_TO_CATEGORY><loc_0><loc_0><loc_999><loc_999>"]
    ids = model.processor(images=[IMAGE], text=model.texts)["input_ids"][0]
    assert "What is the region <loc_0><loc_0><loc_999><loc_999>?" in model.processor.tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("coordinates", "place"),
    [
        ("normalized", "[0.25, 0.10, 0.75, 0.90]"),
        ("thousandths", "[250, 100, 750, 900]"),
        ("pixels", "[50, 10, 150, 90]"),
    ],
)
def test_a_chat_is_told_the_box_in_numbers(coordinates, place):
    model = Asked(llava()[1])
    ChatCaptioner(model, coordinates=coordinates).answer([IMAGE], [BOX])
    assert model.texts == [f"Describe what is in the box {place} of this image in one short phrase."]
    assert model.images == [IMAGE]


def test_or_sees_it_drawn():
    model = Asked(llava()[1])
    ChatCaptioner(model, "drawn_box", question="What?").answer([IMAGE], [BOX])
    drawn = np.asarray(model.images[0])
    red = (drawn == (255, 0, 0)).all(-1)
    assert model.texts == ["What?"] and red[10, 50:150].all() and red[89, 50:150].all() and red[10:90, 149].all()
    assert not red[11:89, 51:149].any() and red.sum() == 2 * 100 + 2 * 78
    assert np.asarray(IMAGE).max() == 30, "the image itself is left as it is"
    assert np.asarray(draw_box(IMAGE, [0.2, 0.2, 0.4, 0.4]))[0, 0].tolist() == [255, 0, 0]


def test_what_makes_no_sense_is_refused():
    model = Asked(llava()[1])
    with pytest.raises(ValueError, match="does not say where to look"):
        ChatCaptioner(model, question="What is this?")
    with pytest.raises(ValueError, match="show is 'arrow'"):
        ChatCaptioner(model, show="arrow")
    point = RegionQuery("1", BOX, RegionPrompt(points=[[60, 20]], labels=[1]))
    with pytest.raises(ValueError, match="chat takes regions as boxes only"):
        ChatCaptioner(model).caption_regions([ImageQuery(IMAGE, "p", [point])])


def test_a_repeated_prompt_is_cut_off_and_an_answer_is_not():
    import torch

    prompt = torch.tensor([[2, 7, 8, 3]])
    assert new_tokens(torch.tensor([[2, 7, 8, 3, 5, 6]]), prompt, "git").tolist() == [[5, 6]]
    assert new_tokens(torch.tensor([[9, 7, 8, 5, 6]]), prompt, "blip").tolist() == [[5, 6]]
    assert new_tokens(torch.tensor([[5, 6]]), prompt, "blip-2").tolist() == [[5, 6]]
    assert new_tokens(torch.tensor([[2, 7, 9, 3, 5]]), prompt, "git").tolist() == [[2, 7, 9, 3, 5]]

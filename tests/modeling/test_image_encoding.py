"""An encoded image is one object: joined, handed on and prompted as often as wanted."""

import numpy as np
import pytest
import torch

from sca_hf.modeling.grouping_sca import read_layout
from sca_hf.modeling.segmentation_sca import ImageEncoding
from sca_hf.processing.prompts_sca import pack_layout
from sca_hf.testing import IMAGE_SIZE


BOXES = torch.tensor([[[4.0, 4.0, 40.0, 30.0]], [[10.0, 2.0, 50.0, 60.0]]])


@pytest.fixture(params=["sam", "sam_hq"])
def encoded(request, make_model):
    model = make_model(sam_type=request.param)
    pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        return model, pixels, model.encode_images(pixels)


def test_an_encoding_stands_for_its_pixels(encoded):
    model, pixels, encoding = encoded
    plain = model.generate(pixel_values=pixels, input_boxes=BOXES)
    again = model.generate(**encoding.as_inputs(), input_boxes=BOXES)
    assert torch.equal(plain.sequences, again.sequences) and torch.equal(plain.pred_masks, again.pred_masks)


def test_encodings_of_single_images_are_joined(encoded):
    model, pixels, encoding = encoded
    with torch.no_grad():
        joined = ImageEncoding.cat([model.encode_images(one[None]) for one in pixels])
    torch.testing.assert_close(joined.image_embeddings, encoding.image_embeddings)
    assert (joined.intermediate_embeddings is None) == (encoding.intermediate_embeddings is None)
    for ours, theirs in zip(joined.intermediate_embeddings or (), encoding.intermediate_embeddings or (), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_get_image_embeddings_gives_tensors_as_the_library_does(encoded):
    model, pixels, encoding = encoded
    with torch.no_grad():
        given = model.get_image_embeddings(pixels)
    if encoding.intermediate_embeddings is None:
        assert torch.equal(given, encoding.image_embeddings)
        assert encoding.as_inputs().keys() == {"image_embeddings"}
    else:
        assert torch.equal(given[0], encoding.image_embeddings) and len(given[1]) > 0


@pytest.mark.parametrize("region", [(0, False, True), (3, True, False), (70, True, True), (1, False, False)])
def test_the_model_reads_the_layout_that_the_processor_writes(region):
    layout = pack_layout(*(np.array([[value]]) for value in region))
    assert read_layout(int(layout[0, 0])) == region

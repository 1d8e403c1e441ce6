"""A region's masks, caption and scores do not depend on its company: other regions, other images, chunks, padding.

The measure is the region alone: its image, its own prompt tensors, no layout, no padding.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sca_hf.testing import IMAGE_SIZE, tiny_model


IMAGES = 2
MASK_SIZE = 4 * IMAGE_SIZE // 8
# Model, attention, fields of the mixer, search.
SETTINGS = {
    "sam-sdpa": ("sam", "sdpa", dict(), dict()),
    "sam-eager": ("sam", "eager", dict(), dict()),
    "hq-sdpa": ("sam_hq", "sdpa", dict(), dict()),
    "hq-eager": ("sam_hq", "eager", dict(), dict()),
    "two-heads-two-beams": (
        "sam",
        "sdpa",
        dict(num_caption_heads=2),
        dict(num_beams=3, num_return_sequences=2, length_penalty=0.5),
    ),
}


@dataclass(frozen=True)
class Region:
    """One prompt in pixels of the resized image; None where it has no prompt of a kind."""

    points: torch.Tensor | None = None  # (P, 2)
    labels: torch.Tensor | None = None  # (P,)
    box: torch.Tensor | None = None  # (4,)
    mask: torch.Tensor | None = None  # (4h, 4w)
    task: int = 1

    @property
    def layout(self):
        count = 0 if self.points is None else len(self.points)
        return count << 2 | (self.mask is not None) << 1 | (self.box is not None)


def make_pool():
    """Regions of every kind."""
    draw = torch.Generator().manual_seed(5)

    def points(count):
        labels = torch.ones(count, dtype=torch.long)
        labels[1::2] = 0
        return dict(points=torch.rand(count, 2, generator=draw) * IMAGE_SIZE, labels=labels)

    def box():
        corners = torch.rand(2, 2, generator=draw) * IMAGE_SIZE
        return dict(box=torch.cat([corners.amin(dim=0), corners.amax(dim=0)]))

    def mask():
        coarse = torch.randn(1, 1, 4, 4, generator=draw)
        return dict(mask=torch.nn.functional.interpolate(coarse, size=(MASK_SIZE, MASK_SIZE))[0, 0] * 5)

    kinds = [box(), box(), *map(points, range(1, 6)), points(1) | box(), points(3) | box(), mask(), mask() | box()]
    kinds += [mask() | points(2), mask() | points(2) | box(), points(2)]
    regions = [Region(**kind) for kind in kinds]
    return regions + [replace(regions[0], task=0), replace(regions[4], task=0)]


POOL = make_pool()
PIXELS = torch.randn(IMAGES, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(6))


def alone(region):
    """Inputs of one region as SAM takes them."""
    inputs = dict(task_ids=torch.tensor([[region.task]]))
    if region.points is not None:
        inputs |= dict(input_points=region.points[None, None], input_labels=region.labels[None, None])
    if region.box is not None:
        inputs["input_boxes"] = region.box[None, None]
    if region.mask is not None:
        inputs |= dict(input_masks=region.mask[None], mask_index=torch.zeros(1, 1, dtype=torch.long))
    return inputs


def together(images):
    """Inputs of [image][region], None for padding; what no region uses is not a number."""
    shape = len(images), max(map(len, images))
    max_points = max(
        (len(r.points) for row in images for r in row if r is not None and r.points is not None), default=0
    )
    points, labels = torch.full((*shape, max_points, 2), torch.nan), torch.full((*shape, max_points), -10)
    boxes, layout = torch.full((*shape, 4), torch.nan), torch.zeros(shape, dtype=torch.long)
    mask_index, task_ids, masks = torch.full(shape, -1), torch.zeros(shape, dtype=torch.long), []
    for i, row in enumerate(images):
        for r, region in enumerate(row):
            if region is None:
                continue
            layout[i, r], task_ids[i, r] = region.layout, region.task
            if region.points is not None:
                points[i, r, : len(region.points)], labels[i, r, : len(region.points)] = region.points, region.labels
            if region.box is not None:
                boxes[i, r] = region.box
            if region.mask is not None:
                mask_index[i, r] = len(masks)
                masks.append(region.mask)
    inputs = dict(prompt_layout=layout, region_mask=layout > 0, task_ids=task_ids, input_boxes=boxes)
    if max_points:
        inputs |= dict(input_points=points, input_labels=labels)
    if masks:
        inputs |= dict(input_masks=torch.stack(masks), mask_index=mask_index)
    return inputs


@pytest.fixture(scope="module", params=SETTINGS)
def setting(request):
    """A model, its search, and the result of every region of the pool alone, in every image."""
    sam_type, attention, mixer, search = SETTINGS[request.param]
    model = tiny_model(sam_type=sam_type, mixer_config=mixer)
    model.set_attn_implementation(attention)
    model.generation_config.max_new_tokens = 10
    free = model.generate(PIXELS, **together([POOL] * IMAGES), eos_token_id=None, **search).sequences.flatten(0, -2)
    # A token that is in about half of the captions ends these early.
    ends = min(free.unique().tolist(), key=lambda token: abs((free == token).any(dim=1).float().mean() - 0.5))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ends, 0
    results = {
        (image, index): model.generate(PIXELS[image : image + 1], **alone(region), **search)
        for image in range(IMAGES)
        for index, region in enumerate(POOL)
    }
    return model, search, results


def test_the_pool_tells_regions_apart(setting):
    _, _, results = setting
    captions = {tuple(result.sequences.flatten().tolist()) for result in results.values()}
    assert len(captions) > len(results) / 2
    assert len({result.sequences.shape[-1] for result in results.values()}) > 1, "some captions end early"


def assert_as_alone(outputs, image, region, expected):
    ids, wanted = outputs.sequences[image, region], expected.sequences[0, 0]
    length = wanted.shape[-1]
    assert torch.equal(ids[..., :length], wanted)
    assert not ids[..., length:].any()
    for name in ("caption_scores", "iou_scores", "pred_masks"):
        torch.testing.assert_close(
            getattr(outputs, name)[image, region], getattr(expected, name)[0, 0], atol=1e-4, rtol=1e-4
        )


one_region = st.none() | st.integers(0, len(POOL) - 1)
crowds = st.lists(st.lists(one_region, min_size=0, max_size=14), min_size=1, max_size=IMAGES).filter(
    lambda images: any(index is not None for row in images for index in row)
)


@given(images=crowds, region_chunk=st.sampled_from([None, 1, 3]), text_batch=st.sampled_from([None, 1, 4]))
@settings(max_examples=12)
def test_any_crowd_any_chunks(setting, images, region_chunk, text_batch):
    model, search, results = setting
    inputs = together([[None if index is None else POOL[index] for index in row] for row in images])
    outputs = model.generate(
        PIXELS[: len(images)],
        **inputs,
        region_chunk_size=region_chunk,
        language_model_batch_size=text_batch,
        output_caption_scores=True,
        **search,
    )
    for i, row in enumerate(images):
        for r in range(inputs["region_mask"].shape[1]):
            index = row[r] if r < len(row) else None
            assert outputs.region_mask[i, r] == (index is not None)
            if index is not None:
                assert_as_alone(outputs, i, r, results[i, index])


def test_each_region_among_forty_of_all_kinds(setting):
    model, search, results = setting
    generator = torch.Generator().manual_seed(7)
    for _ in range(2):
        rows = [(torch.randperm(41, generator=generator) % len(POOL)).tolist() for _ in range(IMAGES)]
        outputs = model.generate(PIXELS, **together([[POOL[k] for k in row] for row in rows]), **search)
        for i, row in enumerate(rows):
            for r, index in enumerate(row):
                assert_as_alone(outputs, i, r, results[i, index])


def test_images_encoded_before_and_now_agree(setting):
    model, search, results = setting
    encoded = model.get_image_embeddings(PIXELS)
    cached = dict(image_embeddings=encoded)
    if isinstance(encoded, tuple):
        cached = dict(image_embeddings=encoded[0], intermediate_embeddings=encoded[1])
    rows = [list(range(len(POOL)))] * IMAGES
    outputs = model.generate(**cached, **together([[POOL[k] for k in row] for row in rows]), **search)
    for i, row in enumerate(rows):
        for r, index in enumerate(row):
            assert_as_alone(outputs, i, r, results[i, index])


def test_masks_alone_are_those_of_the_library(setting):
    model, _, results = setting
    for (image, index), result in results.items():
        inputs = alone(POOL[index])
        inputs.pop("task_ids"), inputs.pop("mask_index", None)
        if "input_masks" in inputs:
            inputs["input_masks"] = inputs["input_masks"][None]
        expected = model.sam(PIXELS[image : image + 1], **inputs)
        torch.testing.assert_close(result.pred_masks, expected.pred_masks, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(result.iou_scores, expected.iou_scores, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_training_tensors_of_a_region_do_not_depend_on_its_company(setting):
    model, _, _ = setting
    rows = [[3, None, 9, 7, 12], [None, 14, 5, None, 2]]
    ids = torch.randint(3, 300, (IMAGES, 5, 6), generator=torch.Generator().manual_seed(0))
    inputs = together([[None if k is None else POOL[k] for k in row] for row in rows])
    outputs = model(PIXELS, input_ids=ids, labels=ids, region_chunk_size=2, **inputs)
    losses = []
    for i, row in enumerate(rows):
        for r, index in enumerate(row):
            if index is None:
                assert not outputs.logits[i, r].any()
                continue
            text = ids[i : i + 1, r : r + 1]
            single = model(PIXELS[i : i + 1], input_ids=text, labels=text, **alone(POOL[index]))
            losses.append(single.loss)
            torch.testing.assert_close(outputs.logits[i, r], single.logits[0, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs.loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)

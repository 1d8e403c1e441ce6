"""What a call may not contain is one clear error, from forward and from generate alike."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sca_hf.testing import IMAGE_SIZE, tiny_model


GRID = IMAGE_SIZE // 8
BOXES = torch.tensor([[[5.0, 5, 30, 30], [10, 10, 50, 60]], [[1, 2, 3, 40], [20, 20, 60, 60]]])
POINTS = torch.tensor([[[[5.0, 5]], [[10, 10]]], [[[1, 2]], [[20, 20]]]])
IDS = torch.full((2, 2, 3), 7)
LOAD = dict(pixel_values=torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE), input_boxes=BOXES)
MASKS = torch.zeros(1, 4 * GRID, 4 * GRID)
EMBEDDINGS = torch.zeros(2, 32, GRID, GRID)

# What is added to LOAD (None takes away), the kind of error, what its message says.
FAULTS = {
    "no image": (dict(pixel_values=None), ValueError, "either pixel_values or image_embeddings"),
    "image twice": (dict(image_embeddings=EMBEDDINGS), ValueError, "either pixel_values or image_embeddings"),
    "image of another size": (
        dict(pixel_values=torch.zeros(2, 3, 32, 32)),
        ValueError,
        "pixel_values must be .*64, 64",
    ),
    "image without batch": (dict(pixel_values=torch.zeros(3, 64, 64)), ValueError, r"pixel_values must be \(B, 3"),
    "gray image": (dict(pixel_values=torch.zeros(2, 1, 64, 64)), ValueError, r"pixel_values must be \(B, 3"),
    "embeddings of another grid": (
        dict(pixel_values=None, image_embeddings=EMBEDDINGS[..., 1:]),
        ValueError,
        r"image_embeddings must be \(B, 32, 8, 8\), got \(2, 32, 8, 7\)",
    ),
    "boxes of one image": (dict(input_boxes=BOXES[:1]), ValueError, "for 2 images"),
    "boxes without images": (dict(input_boxes=BOXES[0]), ValueError, r"input_boxes must be \(B, R, 4\), got \(2, 4\)"),
    "boxes of three numbers": (dict(input_boxes=BOXES[..., :3]), ValueError, r"input_boxes must be \(B, R, 4\)"),
    "points without regions": (dict(input_points=POINTS[:, 0]), ValueError, r"input_points must be \(B, R, P, 2\)"),
    "points for fewer regions": (dict(input_points=POINTS[:, :1]), ValueError, r"agree on \(B, R\)"),
    "half-precision boxes": (dict(input_boxes=BOXES.half()), ValueError, "input_boxes is torch.float16.*float32"),
    "bfloat16 points": (dict(input_points=POINTS.bfloat16()), ValueError, "input_points is torch.bfloat16"),
    "labels without points": (dict(input_labels=torch.ones(2, 2, 1)), ValueError, "one label per point"),
    "labels of other points": (
        dict(input_points=POINTS, input_labels=torch.ones(2, 2, 3)),
        ValueError,
        "one label per point",
    ),
    "no region": (dict(region_mask=torch.zeros(2, 2, dtype=torch.bool)), ValueError, "no region"),
    "no region in the layout": (dict(prompt_layout=torch.zeros(2, 2, dtype=torch.long)), ValueError, "no region"),
    "no room for a region": (dict(input_boxes=BOXES[:, :0]), ValueError, "no region"),
    "region mask for one region": (dict(region_mask=torch.ones(2, 1)), ValueError, r"agree on \(B, R\)"),
    "layout of points that are not there": (dict(prompt_layout=torch.full((2, 2), 4)), ValueError, "have points"),
    "layout of too many points": (
        dict(prompt_layout=torch.full((2, 2), 8), input_points=POINTS),
        ValueError,
        "have 2 points, but input_points has 1",
    ),
    "layout of masks that are not there": (dict(prompt_layout=torch.full((2, 2), 2)), ValueError, "have mask_index"),
    "mask index without masks": (dict(mask_index=torch.zeros(2, 2).long()), ValueError, "input_masks, which were not"),
    "mask index that says none": (
        dict(input_masks=MASKS, mask_index=torch.tensor([[0, 0], [0, -1]])),
        ValueError,
        "mask_index of image 1, region 1 is -1, but there are 1 mask",
    ),
    "mask index beyond the masks": (
        dict(input_masks=MASKS, mask_index=torch.tensor([[0, 1], [0, 0]]), prompt_layout=torch.full((2, 2), 2)),
        ValueError,
        "mask_index of image 0, region 1 is 1",
    ),
    "masks without index": (dict(input_masks=MASKS), ValueError, "with a mask_index"),
    "masks of another size": (
        dict(input_masks=MASKS[:, 1:], mask_index=torch.zeros(2, 2).long()),
        ValueError,
        r"input_masks must be \(K, 32, 32\)",
    ),
    "one mask for two images": (dict(input_masks=MASKS[None]), ValueError, "input_masks must be"),
    "tasks of one image": (
        dict(task_ids=torch.ones(1, 2).long()),
        ValueError,
        r"task_ids must be \(B, R\) = \(2, 2\)",
    ),
    "a task too many": (dict(task_ids=torch.tensor([[1, 1], [0, 2]])), ValueError, "image 1, region 1 is 2.*2 tasks"),
    "a negative task": (dict(task_ids=torch.tensor([[-1, 1], [0, 1]])), ValueError, "image 0, region 0 is -1"),
    "unknown keyword": (dict(input_box=BOXES), TypeError, r"unknown arguments \['input_box'\]"),
}
TEXT_FAULTS = {
    "labels without ids": (dict(labels=IDS), "labels need input_ids"),
    "no token": (dict(input_ids=IDS[..., :0]), "have no tokens"),
    "ids of one image": (dict(input_ids=IDS[:1]), r"\(B, R\) = \(2, 2\)"),
    "ids of fewer regions": (dict(input_ids=IDS[:, :1]), r"\(B, R\) = \(2, 2\)"),
    "ids without regions": (dict(input_ids=IDS[:, 0]), r"\(B, R\) = \(2, 2\)"),
    "labels of another length": (dict(input_ids=IDS, labels=IDS[..., 1:]), "labels.*2, 2, 2"),
    "attention of another length": (dict(input_ids=IDS, attention_mask=IDS[..., 1:]), "attention_mask.*2, 2, 2"),
}


@pytest.fixture(scope="module")
def model():
    return tiny_model(mask_loss_weight=1.0)


@pytest.mark.parametrize("method", ["forward", "generate"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_prompts(model, fault, method):
    changes, kind, message = FAULTS[fault]
    with pytest.raises(kind, match=message):
        getattr(model, method)(**(LOAD | changes))


@pytest.mark.parametrize("fault", TEXT_FAULTS)
def test_faulty_text(model, fault):
    changes, message = TEXT_FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        model(**LOAD, **changes)


def test_mask_labels_of_another_size(model):
    with pytest.raises(ValueError, match=r"mask_labels.*16, 16"):
        model(**LOAD, mask_labels=torch.zeros(2, 2, 16, 16))


def test_max_length_would_count_the_prefix(model):
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.generate(**LOAD, max_length=20)


def test_the_load_itself_is_sound(model):
    outputs = model.generate(**LOAD, labels=IDS, input_ids=IDS, original_sizes=torch.ones(2, 2))
    assert outputs.sequences.shape[:2] == (2, 2)
    assert model(**LOAD, input_ids=IDS, labels=IDS, mask_labels=torch.zeros(2, 2, 32, 32)).loss.isfinite()


def test_padded_regions_may_hold_any_index(model):
    padding = dict(region_mask=torch.tensor([[True, False], [True, True]]), task_ids=torch.tensor([[1, 9], [0, 1]]))
    assert not model.generate(**LOAD, **padding).region_mask[0, 1]


def test_hq_masks_from_a_cache_need_the_early_features():
    model = tiny_model(sam_type="sam_hq")
    embeddings, early = model.get_image_embeddings(LOAD["pixel_values"])
    with pytest.raises(ValueError, match="SAM-HQ needs the intermediate_embeddings"):
        model.generate(image_embeddings=embeddings, input_boxes=BOXES)
    whole = model.generate(image_embeddings=embeddings, intermediate_embeddings=early, input_boxes=BOXES)
    assert torch.equal(
        whole.sequences, model.generate(image_embeddings=embeddings, input_boxes=BOXES, output_masks=False).sequences
    )


def shapes(*form):
    """Of two images and two regions mostly, of anything now and then."""
    near = st.tuples(*(st.sampled_from([size] * 6 + [0, 1, 3]) for size in form))
    return st.none() | near | st.lists(st.integers(0, 3), max_size=4).map(tuple)


@given(
    points=shapes(2, 2, 1, 2),
    labels=shapes(2, 2, 1),
    boxes=shapes(2, 2, 4),
    layout=shapes(2, 2),
    kinds=st.integers(0, 15),
)
@settings(max_examples=150)
def test_shapes_that_do_not_fit_give_nothing_but_value_errors(model, points, labels, boxes, layout, kinds):
    named = dict(input_points=points, input_labels=labels, input_boxes=boxes, prompt_layout=layout)
    prompts = {name: torch.ones(shape) for name, shape in named.items() if shape is not None}
    if layout is not None:
        prompts["prompt_layout"] = prompts["prompt_layout"].long() * kinds
    try:
        outputs = model(LOAD["pixel_values"], **prompts)
    except ValueError:
        return
    assert outputs.pred_masks.isfinite().all()

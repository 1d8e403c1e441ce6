"""Clips: the prompted frame is the picture, objects are followed alone, memory is bounded, mistakes are said."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sca_hf import ScaProcessor
from sca_hf.processing.masks_sca import decode_rle
from sca_hf.testing import tiny_image, tiny_tokenizer
from tests.modeling.tiny_segmenters import VIDEO, tiny_model_of


BOX, OTHER = [5, 5, 60, 50], [20, 10, 70, 55]


@pytest.fixture(scope="module", params=VIDEO)
def tracker(request):
    model = tiny_model_of(request.param)
    return model, ScaProcessor.from_config(model.config, tiny_tokenizer())


@pytest.fixture(scope="module")
def still():
    """A model that is no tracker."""
    model = tiny_model_of("sam")
    return model, ScaProcessor.from_config(model.config, tiny_tokenizer())


def clip(count=6, seed=0):
    """A picture that moves to the right, and comes back on the left."""
    still = np.asarray(tiny_image(seed, (80, 60)))
    return [Image.fromarray(np.roll(still, 3 * k, axis=1)) for k in range(count)]


@torch.no_grad()
@pytest.mark.parametrize(
    "prompt", [{"box": BOX}, {"points": [[30, 30]]}, {"points": [[30, 30], [60, 50]], "labels": [1, 0]}]
)
def test_the_prompted_frame_is_what_the_picture_path_makes_of_it(tracker, prompt):
    model, processor = tracker
    side = model.config.image_frame.side
    frame = clip(1)[0]
    inputs = processor(frame, **processor.region_arguments([prompt], (60, 80)))
    picture = model(**inputs, multimask_output=False)
    queries = model.region_queries(**inputs_of(inputs))
    pixels = inputs["pixel_values"][0]
    followed = model.object_tracker(lambda _: pixels, 1)
    followed.add(
        0,
        inputs["input_points"][0, 0] if "points" in prompt else None,
        inputs["input_labels"][0, 0] if "points" in prompt else None,
        inputs["input_boxes"][0, 0] if "box" in prompt else None,
    )
    _, found = next(followed.follow())
    assert (found[0].queries - queries[0]).abs().max() <= 1e-4 * queries.abs().max()
    three = model(**inputs, multimask_output=True).pred_masks[0, 0]
    scale = three.abs().max()
    # A point has three candidates, of which the tracker takes the best; masks of what is not there are -1024.
    nearest = min((found[0].masks - mask).abs().max() for mask in (*three, picture.pred_masks[0, 0, 0]))
    assert nearest <= 1e-4 * scale or (found[0].object_score <= 0 and bool((found[0].masks == -1024).all()))
    assert side in (56, 64)


def inputs_of(inputs):
    return {key: value for key, value in inputs.items() if key not in ("original_sizes", "reshaped_input_sizes")}


def test_objects_are_followed_alone_and_each_frame_is_encoded_once(tracker):
    model, processor = tracker
    regions = [{"box": BOX}, {"box": OTHER, "frame": 2}]
    calls = []
    handle = model.sam.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    together = processor.caption_video(model, clip(), regions, max_new_tokens=4)
    handle.remove()
    assert len(calls) == 6 + 2, "six forward, two backward for what is prompted later"
    alone = [processor.caption_video(model, clip(), [region], max_new_tokens=4)[0] for region in regions]
    for one, other in zip(together, alone, strict=True):
        assert one["caption"] == other["caption"] and abs(one["score"] - other["score"]) < 1e-5
        assert one["masks"] == other["masks"] and one["object_scores"] == pytest.approx(
            other["object_scores"], abs=1e-4
        )
        assert len(one["masks"]) == 6 and None not in one["object_scores"]


@torch.no_grad()
def test_masks_are_those_of_the_librarys_own_session_over_the_whole_clip(tracker):
    """What is forgotten on the way is nothing that it looks back to."""
    model, processor = tracker
    count, kind = 24, type(model.sam)
    pixels = processor.image_processor(clip(count), return_tensors="pt")["pixel_values"]
    session = getattr(import_module(kind.__module__), kind.__name__.removesuffix("Model") + "InferenceSession")(
        pixels, *pixels.shape[-2:], dtype=torch.float32
    )
    inputs = processor(original_sizes=[(60, 80)], input_boxes=[[BOX]])
    coordinates = inputs["input_boxes"][0, 0].view(1, 1, 2, 2)
    labels = torch.tensor([[[2, 3]]], dtype=torch.int32)
    session.add_point_inputs(session.obj_id_to_idx(0), 3, {"point_coords": coordinates, "point_labels": labels})
    session.obj_with_new_inputs.append(0)
    expected = {frame: model.sam(session, frame_idx=frame) for frame in range(3, count)}
    expected |= {frame: model.sam(session, frame_idx=frame, reverse=True) for frame in (2, 1, 0)}
    tracker = model.object_tracker(lambda frame: pixels[frame], count)
    tracker.add(3, box=inputs["input_boxes"][0, 0])
    for frame, found in tracker.follow():
        theirs = expected[frame]
        assert torch.allclose(found[0].masks, theirs.pred_masks[0, 0], atol=1e-4), frame
        assert found[0].object_score == pytest.approx(float(theirs.object_score_logits.flatten()[0]), abs=1e-4)


def test_a_stream_is_followed_forward_and_gives_the_same_there(tracker):
    model, processor = tracker
    count = 20  # beyond what the tracker looks back to
    whole = processor.caption_video(model, clip(count), [{"box": BOX}], max_new_tokens=4)[0]
    seen = []
    stream = processor.caption_video(
        model, iter(clip(count)), [{"box": BOX}], max_new_tokens=4, progress=lambda done, of: seen.append((done, of))
    )[0]
    assert stream["caption"] == whole["caption"] and stream["masks"] == whole["masks"]
    assert seen == [(k + 1, None) for k in range(count)]


def test_what_is_kept_of_a_frame_can_be_learned_from(tracker):
    """The library follows in inference mode, of which nothing that is taken may be."""
    model, processor = tracker
    inputs = processor(clip(1)[0], input_boxes=[[BOX]])
    followed = model.object_tracker(lambda _: inputs["pixel_values"][0], 1)
    followed.add(0, box=inputs["input_boxes"][0, 0])
    found = next(followed.follow())[1][0]
    assert not found.queries.is_inference() and not found.masks.is_inference()
    weight = torch.ones((), requires_grad=True)
    (found.queries * weight).sum().backward()
    assert weight.grad is not None


def test_an_object_that_the_tracker_never_sees_has_a_caption_of_its_prompted_frame(tracker):
    model, processor = tracker
    head = model.sam.mask_decoder.pred_obj_score_head
    handle = head.register_forward_hook(lambda *call: torch.full_like(call[-1], -9.0))
    record = processor.caption_video(model, clip(3), [{"box": BOX, "frame": 1}], max_new_tokens=3)[0]
    handle.remove()
    assert record["masks"] == [None] * 3 and all(score == -9 for score in record["object_scores"])
    assert np.isfinite(record["score"])


def test_a_mask_prompt_is_taken_as_it_is(tracker):
    model, processor = tracker
    mask = np.zeros((60, 80), bool)
    mask[10:40, 20:60] = True
    record = processor.caption_video(model, clip(2), [{"mask": mask_rle(mask)}], max_new_tokens=4)[0]
    found = decode_rle(record["masks"][0])
    assert (found & mask).sum() / (found | mask).sum() > 0.7


def mask_rle(mask):
    from sca_hf.processing.masks_sca import encode_rle

    return encode_rle(mask)


def test_masklets_caption_any_model_by_visible_area(still):
    model, processor = still
    small, large = np.zeros((60, 80), bool), np.zeros((60, 80), bool)
    small[10:14, 10:14], large[5:50, 5:60] = True, True
    frames = clip(3)
    record = processor.caption_video(model, frames, masklets=[[small, None, large]], max_new_tokens=4)[0]
    assert record["masks"][1] is None and decode_rle(record["masks"][2]).sum() == large.sum()
    both = [
        model.region_queries(**inputs_of(processor(frame, input_boxes=[[box]])))[0]
        for frame, box in ((frames[0], [10, 10, 14, 14]), (frames[2], [5, 5, 60, 50]))
    ]
    areas = float(small.sum()), float(large.sum())
    mean = (both[0] * areas[0] + both[1] * areas[1]) / sum(areas)
    said = model.caption_queries(mean[None], max_new_tokens=4)
    assert record["caption"] == processor.batch_decode(said["sequences"])[0][0]
    by_number = processor.caption_video(model, frames, masklets=[{0: small, 2: large}], max_new_tokens=4)[0]
    assert by_number["caption"] == record["caption"]


def test_one_frame_of_a_masklet_is_the_picture(still):
    model, processor = still
    mask = np.zeros((60, 80), bool)
    mask[5:50, 5:60] = True
    record = processor.caption_video(model, clip(1), masklets=[[mask]], max_new_tokens=4)[0]
    outputs = model.generate(**processor(clip(1)[0], input_boxes=[[BOX]]), max_new_tokens=4)
    assert record["caption"] == processor.batch_decode(outputs)[0][0]
    assert record["score"] == pytest.approx(float(outputs.caption_scores[0, 0]), abs=1e-5)


NOTHING = [None] * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(regions=[{"box": BOX, "frame": 6}]), r"regions\[0\].frame is 6, but the clip has 6 frames, 0 to 5"),
        (dict(regions=[{"box": BOX, "frame": -1}]), "expected the number of a frame, from 0"),
        (dict(regions=[]), "regions is empty"),
        (dict(regions=[{"box": [5, 5, 600, 50]}]), "image"),
        (dict(), "either regions, which a tracker follows, or masklets"),
        (dict(masklets=[{2: np.ones((60, 80), bool), 6: None}]), "has a mask of frame 6, but the clip has 6 frames"),
        (dict(masklets=[NOTHING]), "object 0 is seen in no frame"),
        (dict(masklets=[[None] * 5]), r"masklets\[0\] has 5 entries, but the clip has 6 frames"),
        (dict(masklets=[[np.ones((5, 5), bool), *[None] * 5]]), "the mask is 5 x 5 pixels"),
        (dict(regions=[{"box": BOX}], task="song"), "task"),
    ],
)
def test_what_is_wrong_is_said_in_words(tracker, arguments, message):
    model, processor = tracker
    with pytest.raises(ValueError, match=message):
        processor.caption_video(model, clip(), **arguments)


def test_other_mistakes_are_said_in_words(tracker, still):
    model, processor = tracker
    with pytest.raises(ValueError, match="frame 2 is 40 x 60 pixels, but frame 0 is 80 x 60"):
        processor.caption_video(model, [*clip(2), clip(1)[0].resize((40, 60))], [{"box": BOX}])
    with pytest.raises(ValueError, match="the clip has no frames"):
        processor.caption_video(model, [], [{"box": BOX}])
    with pytest.raises(ValueError, match=r"regions\[0\].frame is 9, but the clip has 3 frames"):
        processor.caption_video(model, iter(clip(3)), [{"box": BOX, "frame": 9}])
    with pytest.raises(ValueError, match="is no tracker: give masks of the objects per frame"):
        still[1].caption_video(still[0], clip(), [{"box": BOX}])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sam2_video"])
def test_memory_does_not_grow_with_the_clip(kind):
    def peak(count):
        program = f"""
import resource
from PIL import Image
import numpy as np
from sca_hf import ScaProcessor
from sca_hf.testing import tiny_tokenizer
from tests.modeling.tiny_segmenters import tiny_model_of
model = tiny_model_of({kind!r})
processor = ScaProcessor.from_config(model.config, tiny_tokenizer())
class Frames:
    def __len__(self): return {count}
    def __getitem__(self, k): return Image.fromarray(np.full((600, 800, 3), k % 255, np.uint8))
processor.caption_video(model, Frames(), [{{"box": [5, 5, 60, 50]}}], max_new_tokens=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
        command = [sys.executable, "-c", program]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)

    assert peak(300) <= 1.3 * peak(30)

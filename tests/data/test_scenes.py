"""The scenes: deterministic, exact, and described by captions that can be read back."""

import numpy as np
import pytest

from sca_hf.data.augmentation import mirrored_text
from sca_hf.data.region import RegionRecord
from sca_hf.data.scene_details import captions_by_length, read_details, true_details
from sca_hf.data.scenes import MIN_VISIBLE, interior_distance, read_caption, render_scene, scene_seed, scenes
from sca_hf.processing.masks_sca import decode_rle


@pytest.fixture(scope="module")
def pictures():
    return list(scenes("validation", 40))


def test_a_seed_always_gives_the_same_scene():
    first, second = render_scene(7), render_scene(7)
    assert (first.image == second.image).all() and (first.labels == second.labels).all()
    assert first.objects == second.objects
    assert (render_scene(8).image != first.image).any()


def test_splits_share_no_seed():
    seeds = [scene_seed(split, index) for split in ("train", "validation", "test") for index in (0, 9_999_999)]
    assert len(set(seeds)) == 6 and sorted(seeds) == seeds
    with pytest.raises(ValueError, match="'dev', expected one of train, validation, test"):
        scene_seed("dev", 0)


def test_boxes_and_points_fit_the_visible_masks(pictures):
    for scene in pictures:
        for index, obj in enumerate(scene.objects):
            mask = scene.mask(index)
            left, top, right, bottom = map(int, obj.box)
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0
            assert mask[top].any() and mask[bottom - 1].any() and mask[:, left].any() and mask[:, right - 1].any()
            assert mask[int(obj.point[1]), int(obj.point[0])]


def test_interior_distance_is_the_distance_to_the_nearest_pixel_outside():
    mask = np.random.default_rng(0).random((9, 14)) < 0.9
    outside = np.argwhere(~np.pad(mask, 1)) - 1
    inside = np.argwhere(mask)
    expected = ((inside[:, None] - outside[None]) ** 2).sum(-1).min(1)
    assert (interior_distance(mask)[mask] == expected).all()
    assert (interior_distance(mask)[~mask] == 0).all()


def test_most_of_every_object_is_visible(pictures):
    for scene in pictures:
        for index, obj in enumerate(scene.objects):
            alone = np.pi * obj.radius**2
            assert scene.mask(index).sum() > MIN_VISIBLE * 0.25 * alone


def test_detailed_captions_are_read_back_exactly_and_mirrored_too(pictures):
    other, counts = {"left": "right", "right": "left"}, []
    for scene in pictures:
        for index, obj in enumerate(scene.objects):
            truth = true_details(obj, scene.objects)
            turned = {
                **truth,
                "place": " ".join(other.get(word, word) for word in truth["place"].split()),
                "neighbours": [(other.get(side, side), *rest) for side, *rest in truth["neighbours"]],
            }
            captions, lengths = captions_by_length(obj, scene.objects, np.random.default_rng(index))
            assert lengths == ["short"] * 2 + ["detailed"] * 3
            for caption, length in zip(captions, lengths, strict=True):
                if length == "short":
                    assert read_caption(caption)["color"] == obj.color and len(caption.split()) == 2
                    continue
                counts.append(len(caption.split()))
                assert read_details(caption) == truth
                assert read_details(mirrored_text(caption)) == turned
    assert min(counts) >= 12 and max(counts) <= 50 and len(counts) > 300


def test_what_a_detailed_caption_gets_wrong_is_read_as_such():
    said = read_details("A small striped red ring is on the left side of the picture. Above it is a plain blue box.")
    assert said["neighbours"] == [("above", "plain", "blue", "square")] and said["place"] == "left"
    both = read_details("A red and blue ring is in the middle of the picture. It is at the top of the picture.")
    assert both["color"] is None and both["place"] is None and both["size"] is None and both["neighbours"] == []


def test_captions_state_what_is_true_and_nothing_else(pictures):
    for obj in (obj for scene in pictures for obj in scene.objects):
        for caption in obj.captions:
            said = read_caption(caption)
            assert (said["color"], said["shape"], said["texture"]) == (obj.color, obj.shape, obj.texture)
            assert said["size"] == (None if obj.size == "medium" else obj.size)
            assert said["relation"] == obj.relation
            if said["reference_color"] is not None:
                named = (said["reference_color"], said["reference_shape"])
                assert named == (obj.reference.color, obj.reference.shape)


def test_at_least_two_captions_in_five_state_a_size_or_a_relation(pictures):
    told = [obj for scene in pictures for obj in scene.objects if obj.describable]
    assert np.mean([obj.size != "medium" or obj.relation is not None for obj in told]) >= 0.4
    assert len({caption for obj in told for caption in obj.captions}) > 2 * len(told)


def test_large_objects_are_described_alone_and_others_by_their_nearest_neighbour(pictures):
    for scene in pictures:
        for obj in (obj for obj in scene.objects if obj.describable):
            assert (obj.relation is None) == (obj.size == "large")
            if obj.reference:
                distances = [
                    np.hypot(*(np.add(*_halves(obj)) - np.add(*_halves(o)))) for o in scene.objects if o is not obj
                ]
                there = np.hypot(*(np.add(*_halves(obj)) - np.add(*_halves(obj.reference))))
                assert there == min(distances)


def _halves(obj):
    return np.array(obj.box[:2]) / 2, np.array(obj.box[2:]) / 2


def test_a_relation_tells_on_which_side_the_neighbour_is(pictures):
    for obj in (obj for scene in pictures for obj in scene.objects if obj.relation):
        here, there = ((np.array(o.box[:2]) + o.box[2:]) / 2 for o in (obj, obj.reference))
        x, y = here - there
        truth = {"left": x < -abs(y), "right": x > abs(y), "above": y < -abs(x), "below": y > abs(x)}
        assert truth[obj.relation]


def test_a_scene_gives_a_valid_region_record(pictures):
    for scene in pictures[:10]:
        record = RegionRecord.from_dict(scene.to_record())
        described = [k for k, obj in enumerate(scene.objects) if obj.describable]
        assert len(record.regions) == len(described)
        for region, index in zip(record.regions, described, strict=True):
            assert (decode_rle(region.mask) == scene.mask(index)).all()


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("a little disc with dots", "shape", "circle"),
        ("a red or green star", "color", None),
        ("something", "texture", None),
        ("a plain star to the right of a big box", "size", None),
        ("a star over the blue box", "relation", "above"),
    ],
)
def test_captions_are_read_by_their_words(text, attribute, value):
    assert read_caption(text)[attribute] == value


def test_some_captions_name_the_neighbour_and_others_do_not(pictures):
    captions = [c for scene in pictures for obj in scene.objects if obj.relation for c in obj.captions]
    unnamed = [caption.endswith("its neighbour") for caption in captions]
    named = [read_caption(caption)["reference_shape"] is not None for caption in captions]
    assert 0.5 < np.mean(unnamed) < 0.7 and all(a != b for a, b in zip(unnamed, named, strict=True))

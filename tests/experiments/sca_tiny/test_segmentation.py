"""Stage 1: its decoder is SAM's, its losses fall, its prompts lie where they should, its recipe is checked."""

import numpy as np
import pytest
import torch
from transformers import SamModel

from experiments.sca_tiny.prompt_sampling import PromptCollator
from experiments.sca_tiny.recipe import read_recipe
from experiments.sca_tiny.scene_cache import ATTRIBUTES, load_scene_arrays
from experiments.sca_tiny.segmentation import (
    SegmentationTrainee,
    decode_regions,
    score_names,
    segmentation_loss,
    tiny_sam_config,
)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return load_scene_arrays(tmp_path_factory.mktemp("scenes"), "train", 6, 96, workers=1)


@pytest.fixture(scope="module")
def trainee():
    torch.manual_seed(0)
    return SegmentationTrainee(tiny_sam_config(depth=1, width=32))


def test_masks_are_those_of_sam(arrays, trainee):
    group = PromptCollator(arrays, 48, training=False)([0, 1])["groups"][0]
    embeddings = trainee.sam.vision_encoder(torch.randn(2, 3, 96, 96)).last_hidden_state
    ours = decode_regions(trainee.sam, embeddings, group)
    for multimask, expected in ((True, ours["masks"][:, :, 1:]), (False, ours["masks"][:, :, :1])):
        sam = trainee.sam(image_embeddings=embeddings, input_boxes=group["input_boxes"], multimask_output=multimask)
        torch.testing.assert_close(sam.pred_masks, expected, rtol=1e-4, atol=1e-5)


def test_mask_loss_prefers_the_true_mask():
    coverage = torch.zeros(1, 1, 8, 8)
    coverage[..., 2:6, 2:6] = 1
    right = (2 * coverage - 1)[:, :, None].expand(-1, -1, 4, -1, -1) * 8
    ious = torch.ones(1, 1, 4)
    for balance in (0.0, 0.5, 1.0):
        wrong = segmentation_loss(-right, ious, coverage, balance)
        assert segmentation_loss(right, ious, coverage, balance) < 0.05 < 0.5 < wrong


def test_a_training_batch_has_gradients_everywhere_but_in_the_positions(arrays, trainee):
    torch.manual_seed(0)
    collator = PromptCollator(arrays, 48)
    for _ in range(8):
        trainee.train()(**collator([0, 1, 2])).get("loss").backward()
    missing = {name for name, p in trainee.named_parameters() if p.requires_grad and p.grad is None}
    # Which prompts are drawn is left to chance, so some of their embeddings may not have been needed.
    assert all(name.startswith("sam.prompt_encoder.") for name in missing)
    assert not trainee.sam.shared_image_embedding.positional_embedding.requires_grad


def test_drawn_points_lie_on_their_side_of_the_mask(arrays):
    torch.manual_seed(1)
    seen = set()
    for _ in range(20):
        group = PromptCollator(arrays, 48)([0, 1, 2])["groups"][0]
        cells = (group["input_points"] * 0.5).long().clamp(0, 47)
        for b, r, p in np.ndindex(*cells.shape[:3]):
            x, y = cells[b, r, p].tolist()
            covered, label = float(group["coverage"][b, r, y, x]), int(group["input_labels"][b, r, p])
            if label < 0:  # an empty slot
                continue
            assert covered > 0 if label else covered < 1
            seen.add(label)
    assert seen == {0, 1}


def test_evaluation_scores_every_object_once(arrays, trainee):
    batch = PromptCollator(arrays, 48, training=False)([0, 1, 2])
    with torch.no_grad():
        scores = trainee.eval()(**batch)["scores"]
    assert scores.shape[-1] == len(score_names())
    objects = (arrays.boxes[:3, :, 2] > 0).sum()
    assert (~scores[..., 0].isnan()).sum() == objects


def test_the_saved_sam_is_a_plain_one(trainee, tmp_path):
    trainee.sam.save_pretrained(tmp_path)
    loaded, info = SamModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.shared_image_embedding.positional_embedding.std() < 1


def test_scene_arrays_are_rendered_once(arrays, tmp_path):
    first = load_scene_arrays(tmp_path, "test", 3, 96, workers=1)
    assert len(first) == 3 and len(first.texts) == 3 and first.attributes.shape[-1] == len(ATTRIBUTES)
    stamp = (tmp_path / "test-3-96" / "pixels.npy").stat().st_mtime_ns
    load_scene_arrays(tmp_path, "test", 3, 96)
    assert (tmp_path / "test-3-96" / "pixels.npy").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("recipe", "message"), [({"masks": {}}, "stages"), ({"captions": {"step": 1}}, "unknown settings")]
)
def test_a_recipe_with_unknown_names_is_refused(recipe, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe)
    assert read_recipe({"captions": {"steps": 5}})["captions"].steps == 5

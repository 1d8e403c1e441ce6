"""Records of cached scenes: what the caption stages train on, drawn by the record alone."""

import numpy as np
import pytest
import torch

from experiments.sca_tiny.captioning import CaptioningSettings
from experiments.sca_tiny.scene_cache import load_scene_arrays
from experiments.sca_tiny.scene_records import RecognitionShare, SceneRecords
from sca_hf.training.collator import RegionCollator
from sca_hf.training.draws import SeededDataset


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    arrays = load_scene_arrays(tmp_path_factory.mktemp("scenes"), "train", 6, 96, workers=1)
    return SceneRecords(arrays, np.zeros((6, 32, 12, 12), np.float16), "train")


def test_a_stage_prompts_by_boxes_points_and_masks(records, processor):
    settings = CaptioningSettings()
    collator = RegionCollator(processor, settings.prompt_shares, settings.regions_per_image, box_jitter=0.04)
    drawn, layouts = SeededDataset(records, seed=0), set()
    for epoch in range(4):
        drawn.set_epoch(epoch)
        batch = collator([drawn[k] for k in range(len(drawn))])
        layouts |= set(batch["prompt_layout"][batch["region_mask"]].tolist())
    assert layouts == {0b001, 0b010, 0b100}
    assert batch["image_embeddings"].dtype == torch.float32 and "pixel_values" not in batch


def test_the_share_of_recognition_is_drawn_by_the_record(records):
    def tasks(share, epoch):
        drawn = SeededDataset(records, 0, RecognitionShare(share))
        drawn.set_epoch(epoch)
        return [drawn[k]["task"] for k in range(len(drawn))]

    assert set(tasks(0.0, 0)) == {"caption"} and set(tasks(1.0, 0)) == {"recognition"}
    mixed = [tasks(0.5, epoch) for epoch in range(8)]
    assert mixed == [tasks(0.5, epoch) for epoch in range(8)] and mixed[0] != mixed[1]
    assert {task for epoch in mixed for task in epoch} == {"caption", "recognition"}

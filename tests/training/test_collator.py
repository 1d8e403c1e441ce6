"""The collator: records in, what the model takes out, the same whether an image or its embedding is given."""

import pytest
import torch

from sca_hf.data.scenes import render_scene, scenes
from sca_hf.training.collator import RegionCollator


@pytest.fixture(scope="module")
def records():
    return [scene.to_record() for scene in scenes("validation", 6) if any(o.describable for o in scene.objects)][:3]


def test_the_loss_of_a_batch_has_gradients_in_the_mixer_only(records, model, processor):
    batch = RegionCollator(processor, max_regions=2, box_jitter=0.05)(records)
    model.train()(**batch).loss.backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"mixer"}


@pytest.mark.parametrize(("kind", "key"), [("box", "input_boxes"), ("point", "input_points"), ("mask", "input_masks")])
def test_every_region_gets_the_kind_asked_for(records, processor, kind, key):
    batch = RegionCollator(processor, {kind: 1.0}, training=False)(records)
    layouts = {"box": 0b001, "point": 0b100, "mask": 0b010}
    assert key in batch and set(batch["prompt_layout"][batch["region_mask"]].tolist()) == {layouts[kind]}
    assert batch["region_mask"].sum(1).tolist() == [len(record["regions"]) for record in records]


def test_a_region_without_points_or_mask_falls_back_to_its_box(records, processor):
    bare = [
        {**r, "regions": [{**x, "points": None, "labels": None, "mask": None} for x in r["regions"]]} for r in records
    ]
    for kind in ("point", "mask"):
        batch = RegionCollator(processor, {kind: 1.0})(bare)
        assert set(batch["prompt_layout"][batch["region_mask"]].tolist()) == {1}


def test_evaluation_takes_the_first_text_in_order(records, processor):
    batch = RegionCollator(processor, training=False)(records)
    for row, record in enumerate(records):
        ids = batch["input_ids"][row][batch["region_mask"][row]]
        first = processor(
            original_sizes=[(192, 192)],
            input_boxes=[[r["box"] for r in record["regions"]]],
            captions=[[r["captions"][0] for r in record["regions"]]],
        )["input_ids"][0]
        assert (ids[:, : first.shape[1]] == first).all()


def test_embeddings_stand_in_for_images(records, model, processor):
    collator = RegionCollator(processor, training=False)
    whole = collator(records)
    embeddings = model.get_image_embeddings(whole["pixel_values"])
    cached = [{**record, "image_embedding": embeddings[k]} for k, record in enumerate(records)]
    batch = collator(cached)
    assert "pixel_values" not in batch
    torch.testing.assert_close(model(**batch).loss, model(**whole).loss)


def test_the_same_seed_draws_the_same_batch(records, processor):
    collator = RegionCollator(processor, max_regions=1, box_jitter=0.1)
    batches = []
    for _ in range(2):
        torch.manual_seed(3)
        batches.append(collator(records))
    assert all((value == batches[1][key]).all() for key, value in batches[0].items())


def test_the_task_decides_between_captions_and_category(records, processor):
    lengths = [RegionCollator(processor, task=task)(records)["task_ids"].unique().tolist() for task in processor.tasks]
    assert lengths == [[0], [1]]
    record = render_scene(0).to_record()
    record["regions"][0]["category"] = None
    with pytest.raises(ValueError, match="has no text for the task 'recognition'"):
        RegionCollator(processor, task="recognition")([record])


def test_unknown_prompt_kinds_are_refused(processor):
    with pytest.raises(ValueError, match="expected positive shares of box, point, mask"):
        RegionCollator(processor, {"scribble": 1.0})

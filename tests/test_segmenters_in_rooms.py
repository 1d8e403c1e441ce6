"""A model around another segmenter than SAM, in every part of the package that reads an image frame."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sca_hf import region_captioning_pipeline
from sca_hf.captioning import load
from sca_hf.cli import main
from sca_hf.evaluation.captioners.interface import ImageQuery, RegionQuery
from sca_hf.evaluation.captioners.sca import Segmenter
from sca_hf.processing.region_prompts_sca import RegionPrompt
from sca_hf.serving import Engine
from sca_hf.testing import save_tiny_model, tiny_image
from sca_hf.training.embedding_cache import CachedRecords, EmbeddingCache, EmbeddingCacheError
from sca_hf.training.image_size import set_image_size
from tests.modeling.tiny_segmenters import tiny_model_of
from tests.training.tiny_runs import BOXES, records


ALL = ("sam2", "sam3_tracker", "sam2_video", "sam3_tracker_video", "edgetam", "edgetam_video")


@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=pytest.mark.slow if k > 2 else ()) for k, kind in enumerate(ALL)]
)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "model"
    save_tiny_model(folder, tiny_model_of(request.param))
    tiny_image(0).save(folder.parent / "image.png")
    return folder


def kind(folder):
    return json.loads((folder / "config.json").read_text())["sam_config"]["model_type"]


def test_info_names_it_and_its_size(folder, capsys):
    assert main(["info", str(folder)]) == 0
    side = 56 if kind(folder).startswith("sam3") else 64
    assert f"{kind(folder)}, " in (out := capsys.readouterr().out) and f"{side} px" in out


def test_commands_caption_a_region_and_everything(folder, tmp_path, capsys):
    image = folder.parent / "image.png"
    regions = tmp_path / "regions.json"
    regions.write_text(json.dumps([{"box": BOXES[0]}, {"points": [[20, 20]]}]))
    output = ["--model", str(folder), "--json", str(tmp_path / "out.json"), "--overlay", str(tmp_path / "out.png")]
    assert main(["caption", str(image), "--regions", str(regions), *output]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert all(isinstance(record["object_score"], float) for record in written)
    assert len(written) == 2 and Image.open(tmp_path / "out.png").size[0] >= 80
    model, processor = load(str(folder))
    inputs = processor(Image.open(image), input_boxes=[[BOXES[0]]])
    assert written[0]["caption"] == processor.batch_decode(model.generate(**inputs))[0][0]


def test_a_recipe_trains_it_and_its_memory_is_estimated(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    rows = []
    for row in records(4):
        row["image"].save(tmp_path / f"{row['image_id']}.png")
        rows.append(json.dumps({**row, "image": f"{row['image_id']}.png"}))
    (tmp_path / "regions.jsonl").write_text("\n".join(rows))
    training = dict(max_steps=2, use_cpu=True, per_device_train_batch_size=2, disable_tqdm=True, sample_sheet=0)
    values = dict(
        model={"from": str(folder)},
        data={"train": {"format": "jsonl", "path": str(tmp_path / "regions.jsonl")}},
        training=training,
        output=str(tmp_path / "run"),
    )
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    assert main(["estimate", str(tmp_path / "recipe.yaml")]) == 0
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    trained, _ = load(str(tmp_path / "run" / "model"))
    assert trained.config.sam_config.model_type == kind(folder)


def test_embeddings_are_cached_with_what_a_tracker_adds(folder, tmp_path):
    model, processor = load(str(folder))
    cache = EmbeddingCache(tmp_path / "cache", model, processor)
    kept = CachedRecords(records(2), cache)[0]["image_embedding"]
    live = model.encode_images(processor(records()[0]["image"])["pixel_values"]).image_embeddings[0]
    assert torch.equal(kept, live.half())
    with torch.no_grad():
        model.sam.no_memory_embedding.add_(1.0)
    assert EmbeddingCache(tmp_path / "cache", model, processor).folder != cache.folder
    with pytest.raises(EmbeddingCacheError, match="needs other features for its masks"):
        EmbeddingCache(tmp_path / "cache", model, processor, mask_loss_weight=1.0)


def test_pipeline_server_and_segmenter_give_what_the_model_gives(folder):
    (model, processor), image = load(str(folder)), Image.open(folder.parent / "image.png").convert("RGB")
    inputs = processor(image, input_boxes=[[BOXES[0]]])
    outputs = model.generate(**inputs)
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    record = processor.post_process_regions(outputs, *sizes, all_masks=True)[0][0]
    described = region_captioning_pipeline(str(folder))(image, input_boxes=[BOXES[0]])
    assert described[0]["caption"] == record["caption"]
    engine = Engine([str(folder)], device="cpu")
    try:
        about = engine.describe()
        assert about["image_size"] == model.config.image_frame.side
        assert about["image_encoder"] == kind(folder)
    finally:
        engine.close()
    asked = ImageQuery(image, "0", [RegionQuery("0", BOXES[0], RegionPrompt(box=tuple(BOXES[0])))])
    segmented = Segmenter.load(str(folder)).segment([asked])[0][0]
    assert np.array_equal(segmented.masks, record["mask"])


def test_a_larger_input_is_refused_in_words(folder):
    with pytest.raises(ValueError, match="keeps the image size that it was trained with"):
        set_image_size(load(str(folder))[0], 128)

"""The second look: what it sees, what it learns, and that server and anything mode show its masks."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import records, trainer

from sca_hf import ScaForConditionalGeneration
from sca_hf.evaluation.captioners.interface import ImageQuery, RegionQuery
from sca_hf.evaluation.captioners.sca import ScaCaptioner
from sca_hf.hub.info import describe_repository
from sca_hf.modeling.second_look_sca import PromptedUNet, Pyramid, expected_iou, mask_extents, windows_around
from sca_hf.processing.mask_generation_sca import paste_masks
from sca_hf.processing.region_prompts_sca import RegionPrompt
from sca_hf.serving.engine import Engine
from sca_hf.testing import tiny_config, tiny_image, tiny_model
from sca_hf.training import add_second_look, apply_preset
from sca_hf.training.embedding_cache import EmbeddingCache, EmbeddingCacheError


SIZE = 32
PROMPTS = [
    {"input_boxes": [[3, 3, 40, 40]]},
    {"input_points": [[[20, 20], [60, 50]]], "input_labels": [[1, 0]]},
    {"input_boxes": [[3, 3, 40, 40]], "input_points": [[[20, 20]]]},
    {"input_masks": [np.eye(60, 80, dtype=bool)]},
]


@pytest.fixture(params=["sam", "sam_hq"])
def sam_type(request):
    return request.param


@pytest.fixture
def looking(sam_type):
    return tiny_model(sam_type=sam_type, second_look_size=SIZE)


def test_a_crop_is_what_is_in_its_window_at_any_scale():
    ramp = torch.arange(64.0).expand(64, 64)
    pyramid = Pyramid(torch.stack([ramp, ramp.T])[None])
    index = torch.zeros(3, dtype=torch.long)
    windows = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.5, 0.75], [-0.5, 0.0, 0.5, 1.0]])
    across, down = pyramid.crops(index, windows, 16, outside=-1.0).unbind(1)
    centers = (torch.arange(16) + 0.5) / 16
    # A ramp is its own mean: exact, but where the edge of the picture is near.
    torch.testing.assert_close(across[0, 8, 1:-1], (64 * centers - 0.5)[1:-1])
    torch.testing.assert_close(across[1, 8], 16 + 16 * centers - 0.5)
    torch.testing.assert_close(down[1, :, 3], 32 + 16 * centers - 0.5)
    assert (across[2, :, :7] == -1).all() and (across[2, :, 9:] >= 0).all()
    # Fine stripes do not turn into coarse ones.
    stripes = Pyramid((torch.arange(64) % 2).float().expand(1, 1, 64, 64))
    assert stripes.crops(index[:1], windows[:1], 16).std() < 1e-6


def test_a_mask_that_is_cut_out_and_pasted_is_itself():
    y, x = np.mgrid[:120, :200] + 0.5
    mask = torch.from_numpy(((x - 150) / 60) ** 2 + ((y - 60) / 40) ** 2 < 1)  # beyond the right edge
    frame = torch.zeros(256, 256)
    frame[:120, :200] = mask
    window = windows_around(mask_extents(frame[None] > 0), 1.5, 0.01)
    crop = Pyramid(frame[None, None]).crops(torch.zeros(1, dtype=torch.long), window, 112)
    pasted = paste_masks(2 * crop[:, 0] - 1, window * 256, (120, 200), 0.0)[0]
    assert (pasted & mask).sum() / (pasted | mask).sum() > 0.99


def test_an_expected_iou_is_sure_of_sure_masks():
    sure, half = torch.full((1, 8, 8), -20.0), torch.full((1, 8, 8), -0.01)
    sure[:, :4], half[:, :4] = 20.0, 20.0
    assert expected_iou(sure) > 0.999 and expected_iou(half) == pytest.approx(32 / (32 + 16), abs=0.01)


@pytest.mark.parametrize("prompts", PROMPTS)
def test_it_gives_masks_beside_those_it_looked_at(looking, processor, prompts):
    inputs = processor(tiny_image(0), **prompts, return_tensors="pt")
    seen, plain = looking.generate(**inputs), looking.generate(**inputs, second_look=False)
    assert torch.equal(seen.pred_masks, plain.pred_masks) and torch.equal(seen.sequences, plain.sequences)
    assert plain.second_masks is None and seen.second_masks.shape == (1, 1, SIZE, SIZE)
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    record = processor.post_process_regions(seen, *sizes)[0][0]
    every = processor.post_process_regions(seen, *sizes, all_masks=True)[0][0]
    first = processor.post_process_regions(plain, *sizes, all_masks=True)[0][0]
    assert record["mask"].shape == (60, 80) and record["iou"] == every["iou"][0]
    assert (every["mask"][0] == record["mask"]).all() and (every["mask"][1:] == first["mask"]).all()
    encoding = looking.encode_images(inputs.pop("pixel_values"))
    again = looking.generate(**inputs, **encoding.as_inputs())
    assert torch.equal(again.second_masks, seen.second_masks)
    maps = (encoding.intermediate_embeddings or [])[:-1]
    with pytest.raises(ValueError, match="needs the intermediate_embeddings"):
        looking.generate(**inputs, image_embeddings=encoding.image_embeddings, intermediate_embeddings=maps)


def test_a_region_alone_is_as_in_company(looking, processor):
    images = [tiny_image(0), tiny_image(1)]
    boxes = [[[3, 3, 40, 40], None, [20, 10, 60, 50]], [None, [1, 1, 20, 20]]]
    points = [[None, [[50, 20]], None], [[[10, 40], [12, 44]], None]]
    together = looking.generate(**processor(images, input_boxes=boxes, input_points=points), region_chunk_size=2)
    for image, row in enumerate(boxes):
        for region, box in enumerate(row):
            kind = {"input_points": [points[image][region]]} if box is None else {"input_boxes": [box]}
            alone = looking.generate(**processor(images[image], **kind))
            difference = (alone.second_masks[0, 0] - together.second_masks[image, region]).abs().max()
            assert difference <= 1e-5 * together.second_masks[image, region].abs().max()
            torch.testing.assert_close(alone.second_boxes[0, 0], together.second_boxes[image, region])


def test_where_there_is_none_it_cannot_be_asked_for(model, processor):
    inputs = processor(tiny_image(0), input_boxes=[[3, 3, 40, 40]])
    with pytest.raises(ValueError, match="needs a model with second_look_size"):
        model.generate(**inputs, second_look=True)
    with pytest.raises(ValueError, match="does not have: give it one with add_second_look"):
        apply_preset(model, "second_look", 1.0)
    with pytest.raises(ValueError, match="second_look_size is 8, expected 32 to"):
        add_second_look(model, 8)


@pytest.mark.parametrize(
    "field",
    [
        {"second_look_size": "a"},
        {"second_look_size": True},
        {"second_look_size": 4096},
        {"second_look_context": None},
        {"second_look_context": float("nan")},
        {"second_look_context": 0.5},
        {"mask_loss_type": None},
        {"mask_loss_type": "dice"},
    ],
)
def test_settings_out_of_range_are_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        tiny_config(**field)


def test_its_training_leaves_the_rest_as_it_was(looking, processor, tmp_path):
    before = {name: value.clone() for name, value in looking.state_dict().items()}
    run = trainer(
        looking, processor, tmp_path, records(masks=True), preset="second_look", mask_loss_weight=1.0, max_steps=3
    )
    run.train()
    moved = {name for name, value in looking.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("second_look.") for name in moved)
    assert "second_look.net.down.0.enter.weight" in moved
    with pytest.raises(EmbeddingCacheError, match=r"needs the pixels|other features for its masks"):
        EmbeddingCache(tmp_path / "cache", looking, processor)


def test_it_learns_to_draw_what_the_first_look_misses(processor, tmp_path):
    torch.manual_seed(0)
    model = tiny_model(second_look_size=SIZE, mask_loss_weight=1.0)
    model.second_look.apply(type(model.second_look).init_weights)
    apply_preset(model, "second_look")
    y, x = np.mgrid[:60, :80]
    disc = (x - 40) ** 2 + (y - 30) ** 2 < 400
    image = Image.fromarray(np.where(disc[..., None], 220, 30).astype(np.uint8).repeat(3, 2))
    inputs = processor(image, input_boxes=[[20, 10, 60, 50]])
    labels = torch.zeros(1, 1, 64, 64)
    labels[0, 0, :48] = torch.from_numpy(
        np.array(Image.fromarray(disc.astype(np.float32)).resize((64, 48), Image.Resampling.BOX))
    )
    optimizer = torch.optim.Adam(model.second_look.parameters(), 2e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(**inputs, mask_labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    record = processor.post_process_regions(
        model.eval().generate(**inputs), inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )[0][0]
    iou = (record["mask"] & disc).sum() / (record["mask"] | disc).sum()
    assert losses[-1] < 0.3 * losses[0] and iou > 0.9 and abs(record["iou"] - iou) < 0.15


@pytest.mark.parametrize("form", ["whole", "mixer"])
def test_it_is_saved_with_the_model(make_model, processor, tmp_path, form):
    make_model().save_pretrained(tmp_path / "parts")
    model = ScaForConditionalGeneration.from_pretrained(tmp_path / "parts")
    add_second_look(model, SIZE)
    model.save_pretrained(tmp_path / form, include_base_models=form == "whole")
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / form)
    assert again.config.format_version == 2
    inputs = processor(tiny_image(0), input_boxes=[[3, 3, 40, 40]])
    assert torch.equal(again.generate(**inputs).second_masks, model.eval().generate(**inputs).second_masks)
    assert ("second look", 1_127_213) in [
        (part.name, part.parameters) for part in describe_repository(str(tmp_path / form)).parts
    ]


def test_u2net_equals_its_published_graph(shared):
    onnx = pytest.importorskip("onnx", reason="onnx, which reads U2-Net's weights, is not installed")
    from onnx.reference import ReferenceEvaluator

    from experiments.photographs.u2net import read_weights

    path = shared("weights/u2net_small") / "u2netp.onnx"
    net = PromptedUNet(3)
    net.load_state_dict(read_weights(path))
    crops = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32))
    graph = ReferenceEvaluator(onnx.load(path))
    with torch.no_grad():
        found = net(crops)
    for logits, expected in zip(found, graph.run(None, {graph.input_names[0]: crops.numpy()}), strict=True):
        assert np.abs(logits.sigmoid().numpy() - expected).max() < 1e-5


def test_published_weights_may_lack_the_channels_of_the_prompts(tmp_path, model):
    from safetensors.torch import save_file

    start = PromptedUNet(3)
    save_file({name: value.half() for name, value in start.state_dict().items()}, tmp_path / "start.safetensors")
    add_second_look(model, SIZE, tmp_path / "start.safetensors")
    crops = torch.rand(1, 6, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(model.second_look.net(crops)[0], start.half().float()(crops[:, :3])[0])


def test_the_server_and_anything_mode_show_its_masks(make_model, processor, tmp_path):
    model = make_model(second_look_size=SIZE)
    # A net that always draws the lower half of its crop.
    with torch.no_grad():
        for weight in model.second_look.parameters():
            weight.zero_()
        model.second_look.net.fuse.bias.fill_(3.0)
    model.save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    image = tiny_image(0)
    found = processor.caption_anything(model, image, boxes=[[20, 15, 40, 35]])
    assert found[0]["bbox"] == [15, 10, 30, 30] and found[0]["predicted_iou"] == pytest.approx(1 / (1 + np.exp(-3.0)))
    off = processor.caption_anything(model, image, boxes=[[20, 15, 40, 35]], second_look=False)
    assert off[0]["bbox"] != found[0]["bbox"] and off[0]["caption"] == found[0]["caption"]
    box = [20.0, 15.0, 40.0, 35.0]
    asked = ImageQuery(image, "0", [RegionQuery("0", box, RegionPrompt(box))])
    said = ScaCaptioner(model, processor).caption_regions([asked], with_masks=True)[0][0]
    assert said.best_mask.sum() == found[0]["area"] and said.iou_scores == [pytest.approx(found[0]["predicted_iou"])]
    engine = Engine([str(tmp_path / "m")])
    stored = engine.open_image(_png(image, tmp_path / "x.png"))
    regions = engine.limits.read_regions([{"box": [20, 15, 40, 35]}], stored.size)
    answer = engine.submit(stored, regions).result(60)[0]
    engine.close()
    assert answer["box"] == [15.0, 10.0, 45.0, 40.0] == answer["masks"][0]["box"] and len(answer["masks"]) == 4
    grid = processor.caption_anything(
        model, image, {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    )
    assert grid and all("caption" in record for record in grid)


def _png(image, path):
    image.save(path)
    return path.read_bytes()

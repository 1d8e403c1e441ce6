"""Every family of segmenters: equal to the library's own model, read as published, and the same in every room."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskGeneration,
    Sam2Config,
    Sam2Model,
    Sam2VideoConfig,
    Sam3VideoModel,
)
from transformers.utils import logging

from sca_hf import ScaConfig, ScaForConditionalGeneration, ScaProcessor
from sca_hf.modeling.families_sca import FAMILIES, PLAIN_ENCODER, as_segmenter, family_of
from sca_hf.modeling.segmenters_sca import SEGMENTERS, encode_images
from sca_hf.testing import tiny_image, tiny_text_config, tiny_tokenizer
from sca_hf.training.arguments import QUANTIZATIONS
from sca_hf.training.presets import apply_preset
from sca_hf.training.quantization import quantize_language_model
from tests.modeling import tiny_pyramid
from tests.modeling.tiny_segmenters import KINDS, SIDE, WIDTH, prompts, segmenter_fields, tiny_model_of, tiny_segmenter


PROMPTS = list(prompts("sam", SIDE))


def tiny_language_model():
    return AutoModelForCausalLM.from_config(tiny_text_config()).eval()


def image(model, count=1, seed=1):
    side = model.config.image_frame.side
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def library(sam, pixel_values, multimask, given):
    """Masks, IoUs and object scores of the library's own call; of a tracker, of what a frame goes through."""
    if not sam.config.model_type.endswith("_video"):
        output = sam(pixel_values=pixel_values, multimask_output=multimask, **given)
        return output.pred_masks, output.iou_scores, output.get("object_score_logits")
    points, labels = given.get("input_points"), given.get("input_labels")
    if points is None and "input_boxes" not in given:
        points, labels = torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1), -1)
    maps = sam.get_image_embeddings(pixel_values)
    sparse, dense = sam.prompt_encoder(points, labels, given.get("input_boxes"), given.get("input_masks"))
    masks, ious, _, objects = sam.mask_decoder(
        image_embeddings=maps[-1],
        image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
        high_resolution_features=maps[:-1],
    )
    return masks, ious, objects


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return tiny_model_of(request.param)


@pytest.fixture
def processor(model):
    return ScaProcessor.from_config(model.config, tiny_tokenizer())


def ragged(processor):
    """Two images with five regions of different kinds."""
    mask = np.zeros((60, 80), bool)
    mask[10:40, 20:60] = True
    return processor(
        [tiny_image(0, (80, 60)), tiny_image(1, (48, 64))],
        input_points=[[[[20, 30]], None, None], [[[10, 10], [30, 40]], None]],
        input_boxes=[[None, [5, 5, 60, 50], None], [None, [4, 4, 40, 60]]],
        input_masks=[[None, None, mask], None],
        captions=[["a plain blue triangle", "red", "green"], ["a circle", "a square"]],
    )


@torch.no_grad()
@pytest.mark.parametrize("multimask", [True, False], ids=["three", "one"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_masks_scores_and_objects_are_the_library_s_own(model, kind, multimask):
    given, pixel_values = (
        prompts(model.config.sam_config.model_type, model.config.image_frame.side)[kind],
        image(model),
    )
    ours = model(pixel_values=pixel_values, multimask_output=multimask, **given)
    masks, ious, objects = library(model.sam, pixel_values, multimask, given)
    bound = 2e-5 if model.config.sam_config.model_type.startswith("sam3") else 1e-5
    assert (ours.pred_masks - masks).abs().max() <= bound * masks.abs().max()
    assert (ours.iou_scores - ious).abs().max() <= bound
    assert (objects is None) == (ours.object_score_logits is None)
    if objects is not None:
        assert (ours.object_score_logits - objects[..., 0]).abs().max() <= bound * objects.abs().max().clamp(min=1)


@torch.no_grad()
def test_regions_in_company_are_what_they_are_alone_and_images_are_encoded_once(model, processor):
    inputs = ragged(processor)
    calls = []
    handle = model.sam.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    together = model.generate(**inputs, max_new_tokens=4)
    handle.remove()
    assert len(calls) == 1
    for row, column in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]:
        alone = processor(
            [[tiny_image(0, (80, 60)), tiny_image(1, (48, 64))][row]],
            input_points=[[[[[20, 30]], None, None], [[[10, 10], [30, 40]], None]][row][column : column + 1]],
            input_boxes=[[[None, [5, 5, 60, 50], None], [None, [4, 4, 40, 60]]][row][column : column + 1]],
            input_masks=[[_mask()]] if (row, column) == (0, 2) else None,
        )
        one = model.generate(**alone, max_new_tokens=4)
        scale = one.pred_masks.abs().max()
        assert (one.pred_masks[0, 0] - together.pred_masks[row, column]).abs().max() <= 1e-5 * scale
        width = one.sequences.shape[-1]  # what ends early is padded in company
        assert torch.equal(one.sequences[0, 0], together.sequences[row, column, :width])
        assert (one.caption_scores[0, 0] - together.caption_scores[row, column]).abs() <= 1e-5
    records = processor.post_process_regions(together, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    assert [[record["mask"].shape for record in regions] for regions in records] == [[(60, 80)] * 3, [(64, 48)] * 2]
    tells = together.object_score_logits is not None
    assert all(("object_score" in record) == tells for regions in records for record in regions)


def _mask():
    mask = np.zeros((60, 80), bool)
    mask[10:40, 20:60] = True
    return mask


def test_the_mixer_learns_and_the_segmenter_does_not(model, processor):
    model.train()
    try:
        model(**ragged(processor)).loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.mixer.transformer.parameters())
        assert all(p.grad is None for p in model.sam.parameters())
    finally:
        model.zero_grad()
        model.eval()


def test_saved_and_loaded_it_says_and_outlines_the_same(model, processor, tmp_path):
    inputs = {name: value for name, value in ragged(processor).items() if name not in ("input_ids", "labels")}
    before = model.generate(**inputs, max_new_tokens=4)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    again, images = ScaForConditionalGeneration.from_pretrained(tmp_path / "whole"), ScaProcessor.from_pretrained
    assert images(tmp_path / "whole").image_processor.size == processor.image_processor.size
    after = again.generate(**inputs, max_new_tokens=4)
    assert torch.equal(before.sequences, after.sequences)
    # The loaded weights lie elsewhere in memory, and sums are taken in another order.
    assert torch.allclose(before.pred_masks, after.pred_masks, atol=1e-5 * float(before.pred_masks.abs().max()))


def test_a_mixer_alone_finds_its_segmenter_again(model, processor, tmp_path):
    for name in ("sam", "language_model"):
        getattr(model, name).save_pretrained(tmp_path / name)
    kind = model.config.sam_config.model_type
    joined = ScaForConditionalGeneration.from_sam_text_pretrained(
        tmp_path / "sam", tmp_path / "language_model", mixer_config=dict(num_hidden_layers=2, num_attention_heads=4)
    )
    read = {"sam2_video": "sam2", "edgetam_video": "edgetam"}.get(kind, kind)
    assert joined.config.sam_config.model_type == read
    joined.save_pretrained(tmp_path / "mixer", include_base_models=False)
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer")
    inputs = {name: value for name, value in ragged(processor).items() if name not in ("input_ids", "labels")}
    assert torch.allclose(joined(**inputs).pred_masks, again(**inputs).pred_masks, atol=1e-4)
    assert torch.allclose(model(**inputs).pred_masks, again(**inputs).pred_masks, atol=1e-4)


@torch.no_grad()
def test_in_half_precision_positions_stay_in_float32(model, tmp_path):
    model.save_pretrained(tmp_path)
    kinds = {
        "whole": ScaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16),
        "parts": ScaForConditionalGeneration.from_sam_text_pretrained(
            tiny_segmenter(model.config.sam_config.model_type), tiny_language_model(), dtype=torch.bfloat16
        ).bfloat16(),
    }
    for name, half in kinds.items():
        features = [m.positional_embedding for m in half.sam.modules() if hasattr(m, "positional_embedding")]
        assert features and all(x.dtype == torch.float32 for x in features), name
        assert half.sam.mask_decoder.iou_token.weight.dtype == torch.bfloat16
        assert torch.isfinite(half(pixel_values=image(half), **prompts("sam", SIDE)["box"]).pred_masks).all()


def test_a_processor_of_another_segmenter_is_refused(model):
    other = tiny_model_of("sam2" if model.config.image_frame.resize == "pad" else "sam").config
    with pytest.raises(ValueError, match="the processor's"):
        model.check_processor(ScaProcessor.from_config(other, tiny_tokenizer()))
    model.check_processor(ScaProcessor.from_config(model.config, tiny_tokenizer()))


def test_anything_mode_finds_and_describes(model, processor):
    settings = dict(points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0, min_mask_region_area=0)
    records = processor.caption_anything(model, tiny_image(0, (80, 60)), settings, max_new_tokens=3)
    assert records and all(record["segmentation"]["size"] == [60, 80] for record in records)


# Published forms.


def published(kind):
    """A segmenter's config.json as repositories of its family have it."""
    model = tiny_segmenter(kind)
    return model, json.loads(model.config.to_json_string(use_diff=False))


@pytest.mark.parametrize("kind", ["sam2", "edgetam"])
def test_a_published_tracker_is_read_as_an_image_model_and_no_weight_is_new(kind, tmp_path):
    tracker = tiny_segmenter(f"{kind}_video")
    tracker.save_pretrained(tmp_path)
    joined = ScaForConditionalGeneration.from_sam_text_pretrained(tmp_path, tiny_language_model())
    assert type(joined.sam).__name__ == {"sam2": "Sam2Model", "edgetam": "EdgeTamModel"}[kind]
    theirs = tracker.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in joined.sam.state_dict().items())
    assert "memory_attention_num_layers" not in joined.config.sam_config.to_dict()
    follows = ScaForConditionalGeneration.from_sam_text_pretrained(tmp_path, tiny_language_model(), sam_video=True)
    assert type(follows.sam) is type(tracker) and follows.config.sam_config.model_type == f"{kind}_video"


def sam3_video(tmp_path):
    """A SAM 3 as published: detector and tracker, which share the vision encoder."""
    fields = segmenter_fields("sam3_tracker_video")
    vision = fields["vision_config"]
    text = dict(model_type="clip_text_model", hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                num_attention_heads=2, vocab_size=20, max_position_embeddings=8, projection_dim=16)  # fmt: skip
    layers = dict(hidden_size=WIDTH, num_attention_heads=2, intermediate_size=16)
    detector = dict(
        vision_config=vision,
        text_config=text,
        geometry_encoder_config=dict(layers, num_layers=1),
        detr_encoder_config=dict(layers, num_layers=1),
        detr_decoder_config=dict(layers, num_layers=1, num_queries=4),
        mask_decoder_config=dict(hidden_size=WIDTH, num_attention_heads=2),
    )
    config = AutoConfig.for_model("sam3_video", tracker_config=fields, detector_config=detector)
    model = Sam3VideoModel(config).eval()
    model.save_pretrained(tmp_path)
    return model


def test_a_published_sam3_gives_its_tracker_and_no_weight_is_new(tmp_path):
    sam3 = sam3_video(tmp_path)
    joined = ScaForConditionalGeneration.from_sam_text_pretrained(tmp_path, tiny_language_model())
    assert joined.config.sam_config.model_type == "sam3_tracker_video"
    theirs = sam3.tracker_model.state_dict()
    own = joined.sam.state_dict()
    compared = [name for name in own if name in theirs]
    assert len(compared) > 50 and all(torch.equal(own[name], theirs[name]) for name in compared)
    backbone = sam3.detector_model.vision_encoder.backbone.state_dict()
    assert all(
        torch.equal(value, backbone[name]) for name, value in joined.sam.vision_encoder.backbone.state_dict().items()
    )


def test_an_image_model_with_the_configuration_of_its_video_model_can_be_saved(tmp_path):
    tiny_segmenter("sam2_video").save_pretrained(tmp_path / "published")
    given = AutoModelForMaskGeneration.from_pretrained(tmp_path / "published")
    joined = ScaForConditionalGeneration.from_sam_text_pretrained(given, tiny_language_model())
    joined.save_pretrained(tmp_path / "whole")
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert type(again.sam) is type(given) is Sam2Model and isinstance(again.sam.config, Sam2Config)
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), again.sam.parameters(), strict=True))


def test_a_dict_in_a_video_configuration_becomes_what_it_is():
    """transformers 5.17 makes a mask decoder's dict into a prompt encoder's."""
    read = as_segmenter(Sam2VideoConfig().to_dict())
    assert read["model_type"] == "sam2"
    config = AutoConfig.for_model(**read)
    assert config.mask_decoder_config.num_multimask_outputs == 3 and config.prompt_encoder_config.image_size == 1024


def test_fresh_positions_of_points_and_image_are_one_matrix():
    for kind in ("sam2", "sam3_tracker", "edgetam_video"):
        sam = ScaForConditionalGeneration(ScaConfig(sam_config=segmenter_fields(kind))).sam
        points, whole = sam.prompt_encoder.shared_embedding, sam.shared_image_embedding
        assert torch.equal(points.positional_embedding, whole.positional_embedding)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "moves"), [("sam3_tracker", False), ("sam3_tracker_video", True), ("sam2", True)])
def test_only_the_image_model_of_sam3_adds_its_vector_of_no_memory_where_nothing_reads(kind, moves):
    """As in the library; that is why a published SAM 3 is read as its tracker."""
    model = tiny_model_of(kind)
    before = encode_images(model.sam, image(model)).image_embeddings
    library_before = model.sam.get_image_embeddings(image(model))[2]
    model.sam.no_memory_embedding.add_(5.0)
    assert not torch.equal(encode_images(model.sam, image(model)).image_embeddings, before) or not moves
    moved = (model.sam.get_image_embeddings(image(model))[2] - library_before).abs().max()
    assert (moved > 4.9) == moves


def test_a_single_mask_of_sam2_is_another_in_training(recwarn):
    model = tiny_model_of("sam2")
    decoder = model.sam.mask_decoder
    given = dict(pixel_values=image(model), multimask_output=False, **prompts("sam2", SIDE)["box"])
    decoder.dynamic_multimask_stability_thresh = 2.0  # none is stable
    best = model(**given | {"multimask_output": True})
    row = best.iou_scores[0, 0].argmax()
    assert torch.allclose(model(**given).pred_masks[0, 0, 0], best.pred_masks[0, 0, row], atol=1e-5)
    decoder.train()
    assert not torch.allclose(model(**given).pred_masks[0, 0, 0], best.pred_masks[0, 0, row], atol=1e-2)


@torch.no_grad()
def test_captions_of_sam2_need_no_finer_maps_and_masks_say_so():
    model = tiny_model_of("sam2")
    encoding, box = encode_images(model.sam, image(model)), prompts("sam2", SIDE)["box"]
    with_maps = model.generate(**encoding.as_inputs(), **box, output_masks=False)
    alone = model.generate(image_embeddings=encoding.image_embeddings, **box, output_masks=False)
    assert torch.equal(with_maps.sequences, alone.sequences) and alone.pred_masks is None
    with pytest.raises(ValueError, match="SAM 2 needs the intermediate_embeddings"):
        model.generate(image_embeddings=encoding.image_embeddings, **box)


# What is refused.


def test_every_family_has_a_class_and_a_version():
    assert FAMILIES.keys() == SEGMENTERS.keys() == {*KINDS, PLAIN_ENCODER}


@pytest.mark.parametrize("kind", ["sam3", "clip", "sam3_lite_text", None])
def test_what_cannot_be_prompted_by_regions_is_refused(kind):
    with pytest.raises(ValueError, match="model_type"):
        ScaConfig(sam_config={"model_type": kind, "vision_config": {}})


def test_a_family_that_the_library_lacks_is_refused_with_the_version_that_has_it(monkeypatch):
    from transformers.models.auto import configuration_auto

    monkeypatch.delitem(configuration_auto.CONFIG_MAPPING_NAMES, "sam3_tracker")
    with pytest.raises(ValueError, match=r"needs transformers 5\.0 or newer"):
        family_of({"model_type": "sam3_tracker"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["prompt_encoder_config"].update(image_size=[64, 48]), "only squares"),
        (lambda f: f["prompt_encoder_config"].update(image_size=60), "multiple of patch_size"),
        (lambda f: f["prompt_encoder_config"].update(patch_size=8), "backbone_feature_sizes"),
        (lambda f: f["vision_config"].update(backbone_feature_sizes=[[8, 8], [4, 4]]), "backbone_feature_sizes"),
        (
            lambda f: f.update(vision_config=tiny_sam_vision()),
            "vision_config is a .sam_vision_model., which is not a part of a .sam2.",
        ),
    ],
    ids=["not square", "no whole patches", "another patch", "another pyramid", "a part of another family"],
)
def test_parts_that_do_not_fit_are_refused_in_words(change, message):
    fields = segmenter_fields("sam2")
    change(fields)
    with pytest.raises(ValueError, match=message):
        ScaConfig(sam_config=fields)


@pytest.mark.parametrize("kind", ["sam", "sam3_tracker", "edgetam_video"])
def test_a_part_of_another_family_is_refused_in_words(kind, tmp_path):
    message = f"'sam2_vision_model', which is not a part of a '{kind.removesuffix('_video')}"
    fields = segmenter_fields(kind) | dict(vision_config=segmenter_fields("sam2")["vision_config"])
    with pytest.raises(ValueError, match=message):
        ScaConfig(sam_config=fields)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=message):
        ScaForConditionalGeneration.from_sam_text_pretrained(tmp_path, tiny_language_model())


def test_a_field_of_another_family_is_said_to_be_ignored(caplog):
    logging.enable_propagation()
    try:
        ScaConfig(sam_config=segmenter_fields("sam") | dict(num_maskmem=7))
    finally:
        logging.disable_propagation()
    assert "num_maskmem is a field of sam2_video and edgetam_video and" in caplog.text


def tiny_sam_vision():
    return segmenter_fields("sam")["vision_config"] | {"model_type": "sam_vision_model"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_three_lines_without_the_package_give_the_same(kind, tmp_path):
    loaded_without_the_package(tiny_model_of(kind), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["edgetam", "edgetam_video"])
def test_three_lines_give_edgetam_with_the_backbone_of_timm(kind, tmp_path):
    pytest.importorskip("timm", reason="timm, which EdgeTAM sees by, is not installed", exc_type=ImportError)
    fields = segmenter_fields(kind)
    backbone = dict(model_type="timm_wrapper", architecture="repvit_m1", model_args=dict(features_only=True))
    fields["vision_config"] |= dict(backbone_config=backbone, backbone_channel_list=[384, 192, 96, 48])
    mixer = dict(num_hidden_layers=2, num_attention_heads=4, mlp_dim=64)
    config = ScaConfig(sam_config=fields, text_config=tiny_text_config(), mixer_config=mixer)
    loaded_without_the_package(ScaForConditionalGeneration(config).eval(), tmp_path)


def loaded_without_the_package(model, tmp_path):
    """Whether a model gives the same in a fresh process that has only its folder."""
    processor = ScaProcessor.from_config(model.config, tiny_tokenizer())
    model.save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    inputs = processor([tiny_image(0, (80, 60))], input_boxes=[[[5, 5, 60, 50], [1, 1, 20, 20]]])
    output = model.generate(**inputs, max_new_tokens=4)
    torch.save((output.sequences, output.pred_masks), tmp_path / "expected.pt")
    tiny_image(0, (80, 60)).save(tmp_path / "image.png")
    program = f"""
import runpy
import sys
sys.modules["sca_hf"] = None
runpy.run_path({tiny_pyramid.__file__!r})  # what timm is to EdgeTAM
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained({str(tmp_path / "m")!r}, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained({str(tmp_path / "m")!r}, trust_remote_code=True)
inputs = processor([Image.open({str(tmp_path / "image.png")!r})], input_boxes=[[[5, 5, 60, 50], [1, 1, 20, 20]]])
output = model.generate(**inputs, max_new_tokens=4)
ids, masks = torch.load({str(tmp_path / "expected.pt")!r})
assert torch.equal(ids, output.sequences)
assert torch.allclose(masks, output.pred_masks, atol=1e-5 * float(masks.abs().max()))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize("quantization", [name for name in QUANTIZATIONS if name])
def test_the_mixer_learns_through_a_quantized_language_model(quantization, model, processor):
    pytest.importorskip(package := quantization.split("-")[0], reason=f"{package} is not installed")
    wide = AutoModelForCausalLM.from_config(tiny_text_config(n_embd=64)).eval()
    mixer = dict(num_hidden_layers=2, num_attention_heads=4, mlp_dim=64)
    model = ScaForConditionalGeneration.from_sam_text_pretrained(model.sam, wide, mixer)
    before = {name: value.clone() for name, value in model.sam.state_dict().items()}
    assert quantize_language_model(model, quantization) >= 4
    model.train()
    model(**ragged(processor)).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.mixer.transformer.parameters())
    inputs = {name: value for name, value in ragged(processor).items() if name not in ("input_ids", "labels")}
    masks = model.eval().generate(**inputs, max_new_tokens=3).pred_masks
    assert torch.isfinite(masks).all() and all(
        torch.equal(value, before[n]) for n, value in model.sam.state_dict().items()
    )


@pytest.mark.parametrize("kind", ["sam2", "sam2_video", "sam3_tracker_video", "edgetam"])
def test_with_its_mask_decoder_trained_every_trained_weight_has_a_gradient(kind):
    """Under DDP nothing may idle: the head for objects and a tracker's memory are not taught by pictures."""
    model = tiny_model_of(kind)
    processor = ScaProcessor.from_config(model.config, tiny_tokenizer())
    apply_preset(model, "mixer+mask_decoder", 1.0)
    model.train()
    inputs = ragged(processor)
    side = model.config.image_frame.mask_side
    model(**inputs, mask_labels=(torch.rand(*inputs["region_mask"].shape, side, side) > 0.5).float()).loss.backward()
    idle = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert idle == [] and any(weight.grad is not None for weight in model.sam.mask_decoder.conv_s0.parameters())

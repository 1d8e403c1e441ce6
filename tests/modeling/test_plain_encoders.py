"""Plain image encoders in SAM's place: patches in order, only the neck and the mixer learn, saved and loaded."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, SamModel

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.modeling.detail_sca import box_weights
from sca_hf.modeling.encoder_sca import ScaEncoderModel
from sca_hf.modeling.mixer_sca import ClassReader
from sca_hf.testing import tiny_image, tiny_sam_config, tiny_tokenizer
from sca_hf.training.arguments import ScaTrainingArguments
from sca_hf.training.embedding_cache import EmbeddingCache, EmbeddingCacheError
from sca_hf.training.trainer import ScaTrainer
from tests.modeling.test_segmenters import tiny_language_model
from tests.modeling.test_towers import formula_towers
from tests.training.tiny_runs import records


SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
ENCODERS = {
    "clip": dict(model_type="clip_vision_model", image_size=32, patch_size=8, projection_dim=16, **SIZES),
    "siglip": dict(model_type="siglip_vision_model", image_size=32, patch_size=8, vision_use_head=False, **SIZES),
    "dinov2": dict(model_type="dinov2", image_size=32, patch_size=8, **SIZES),
    "dinov2 with registers": dict(model_type="dinov2_with_registers", image_size=32, patch_size=8, **SIZES),
    "dinov3": dict(model_type="dinov3_vit", image_size=32, patch_size=8, **SIZES),
    "mae": dict(model_type="vit_mae", image_size=32, patch_size=8, **SIZES),
    "i-jepa": dict(model_type="ijepa", image_size=32, patch_size=8, **SIZES),
    "vit": dict(model_type="vit", image_size=32, patch_size=8, **SIZES),
    "convnext": dict(model_type="convnext", image_size=32, patch_size=2, hidden_sizes=[8, 16, 24], depths=[1, 1, 1],
                     num_stages=3),
    "convnextv2": dict(model_type="convnextv2", image_size=32, patch_size=2, hidden_sizes=[8, 16, 24],
                       depths=[1, 1, 1], num_stages=3),
    "swin": dict(model_type="swin", image_size=64, patch_size=2, embed_dim=8, depths=[1, 1, 1], num_heads=[2, 2, 2],
                 window_size=4),
    "resnet": dict(model_type="resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "hiera": dict(model_type="hiera", image_size=[64, 64], embed_dim=8, depths=[1, 1], num_heads=[1, 1],
                  embed_dim_multiplier=2.0, query_stride=[2, 2], num_query_pool=1, masked_unit_size=[2, 2]),
    "pvt": dict(model_type="pvt", image_size=64, hidden_sizes=[8, 16], depths=[1, 1], num_attention_heads=[1, 1],
                num_encoder_blocks=2, sequence_reduction_ratios=[2, 1], patch_sizes=[4, 2], strides=[4, 2],
                mlp_ratios=[2, 2]),
    "pvt v2": dict(model_type="pvt_v2", image_size=64, hidden_sizes=[8, 16], depths=[1, 1], num_attention_heads=[1, 1],
                   num_encoder_blocks=2, sr_ratios=[2, 1], patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2]),
    "beit": dict(model_type="beit", image_size=64, patch_size=8, **SIZES),
}  # fmt: skip


def encoder(name):
    fields = dict(ENCODERS[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModel.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).eval()


def sam_of(name, image_size=64):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ScaEncoderModel.from_encoder(encoder(name), SamModel(tiny_sam_config()), image_size)


def whole(name, **overrides):
    mixer = dict(num_hidden_layers=2, num_attention_heads=4, mlp_dim=64) | overrides
    return ScaForConditionalGeneration.from_sam_text_pretrained(sam_of(name), tiny_language_model(), mixer)


def batch(model, **more):
    processor = ScaProcessor.from_config(model.config, tiny_tokenizer())
    return processor(tiny_image(0), input_boxes=[[[5, 5, 60, 50], None]], input_points=[[None, [[30, 30]]]], **more)


@pytest.mark.parametrize("form", ["decoder", "roi"])
@pytest.mark.parametrize("name", ENCODERS)
def test_it_learns_by_its_neck_captions_and_comes_back(name, form, tmp_path):
    wiring = {} if form == "decoder" else dict(query_type="roi", num_hidden_layers=0, roi_size=2)
    model = whole(name, **wiring)
    assert model.config.image_frame.resize == "stretch" and model.config.image_frame.side == 64
    model.train()
    model(**batch(model, captions=[["a star", "a ring"]])).loss.backward()
    learned = {key for key, weight in model.sam.named_parameters() if weight.grad is not None}
    assert learned and all(key.startswith("vision_encoder.neck.") for key in learned)
    assert not model.sam.vision_encoder.encoder.training and model.sam.vision_encoder.neck.training
    model.eval()
    before = model.generate(**batch(model), max_new_tokens=4)
    model.save_pretrained(tmp_path)
    again = ScaForConditionalGeneration.from_pretrained(tmp_path)
    after = again.generate(**batch(again), max_new_tokens=4)
    assert torch.equal(before.sequences, after.sequences)
    assert torch.allclose(before.pred_masks, after.pred_masks, atol=1e-5)


def with_features(features, classes):
    """NanoDet with weights by a formula: it finds something everywhere."""
    model = formula_towers(towers=["nanodet_g"])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sam = ScaEncoderModel.from_encoder(model, SamModel(tiny_sam_config()))
    sam.config.class_channels, sam.config.feature_channels = classes, features
    mixer = dict(num_hidden_layers=2, num_attention_heads=4, mlp_dim=64)
    return ScaForConditionalGeneration.from_sam_text_pretrained(sam, tiny_language_model(), mixer)


def with_classes():
    return with_features(0, 80)


def matched(found, box):
    """Class scores of what is found, (m, 84), added up by the sixth power of its IoU with a box in fractions."""
    total = torch.zeros(80)
    for left, top, right, bottom, *scores in found.tolist():
        wide = max(0.0, min(right, box[2]) - max(left, box[0]))
        both = wide * max(0.0, min(bottom, box[3]) - max(top, box[1]))
        areas = (right - left) * (bottom - top) + (box[2] - box[0]) * (box[3] - box[1])
        total += (both / (areas - both)) ** 6 * torch.tensor(scores)
    return total


def test_a_mixer_that_reads_class_scores_learns_and_comes_back(tmp_path):
    model = with_classes().train()
    model(**batch(model, captions=[["a star", "a ring"]])).loss.backward()
    assert all(weight.grad.any() for weight in model.mixer.class_reader.parameters())
    model.eval().save_pretrained(tmp_path)
    again = ScaForConditionalGeneration.from_pretrained(tmp_path)
    one, other = (each.generate(**batch(each), max_new_tokens=4) for each in (model, again))
    assert torch.equal(one.sequences, other.sequences)
    assert torch.allclose(one.pred_masks, other.pred_masks, atol=1e-5)
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == 2


@torch.no_grad()
def test_classes_of_what_fits_a_region_are_added_to_its_queries():
    model = with_classes().eval()
    reader, inputs = model.mixer.class_reader, batch(model)

    def queries():
        return model(**batch(model), input_ids=torch.ones(1, 2, 2, dtype=torch.long), output_masks=True)

    torch.manual_seed(0)
    vectors = torch.randn_like(reader.vectors.weight)
    reader.vectors.weight.zero_()
    before = queries()
    reader.vectors.weight.copy_(vectors)
    after = (queries().query_embeds - before.query_embeds)[0]
    embeddings, (found,) = model.get_image_embeddings(inputs["pixel_values"])
    assert found.shape == (1, 8**2 + 4**2 + 2**2, 84)
    # A point's region is where the best of its first masks is.
    place = (before.pred_masks[0, 1, before.iou_scores[0, 1].argmax()] > 0).nonzero()
    low, high = place.amin(0).flip(0), place.amax(0).flip(0) + 1
    side = before.pred_masks.shape[-1]
    for index, box in enumerate([inputs["input_boxes"][0, 0] / 64, torch.cat([low, high]) / side]):
        scores = matched(found[0], box.tolist())
        expected = vectors @ (scores / scores.sum())
        assert torch.allclose(after[index], expected.expand(1, 8, -1), atol=1e-4)
    prompts = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with pytest.raises(ValueError, match="or that reads class scores or features"):
        model.generate(**prompts, image_embeddings=embeddings)
    given = model.generate(**prompts, image_embeddings=embeddings, intermediate_embeddings=[found], max_new_tokens=4)
    assert torch.equal(given.sequences, model.generate(**inputs, max_new_tokens=4).sequences)


@torch.no_grad()
def test_things_of_other_images_do_not_count():
    reader = ClassReader(3, 5)
    torch.manual_seed(0)
    low = torch.rand(2, 7, 2) / 2
    found, index = torch.cat([low, low + 0.4, torch.rand(2, 7, 3)], -1), torch.tensor([0, 1, 1])
    boxes = found[index, torch.tensor([0, 0, 3]), :4]
    apart = [reader(found[image : image + 1], index[:1], box[None]) for image, box in zip(index, boxes, strict=True)]
    assert torch.allclose(reader(found, index, boxes), torch.cat(apart), atol=1e-6)
    nothing = reader(found, index[:1], torch.tensor([[0.95, 0.95, 1.0, 1.0]]))
    assert torch.allclose(nothing, reader.vectors.weight.mean(1)[None], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("classes", [0, 80])
def test_features_of_the_middle_of_a_region_are_added_to_its_queries(classes, tmp_path):
    model = with_features(16, classes).eval()
    mixer, inputs = model.mixer, batch(model)
    reader, ids = mixer.feature_reader, torch.ones(1, 2, 2, dtype=torch.long)
    combine = mixer.combine
    mixer.combine = lambda named, means: torch.zeros(2, 32)
    before = model(**batch(model), input_ids=ids).query_embeds
    mixer.combine = combine
    assert not reader.weight.any()
    torch.nn.init.normal_(reader.weight, generator=torch.Generator().manual_seed(0))
    reader.bias.fill_(0.5)
    _, (*found, features) = model.get_image_embeddings(inputs["pixel_values"])
    assert features.shape[1] == 16 and len(found) == bool(classes)
    box = inputs["input_boxes"][0, :1].float()
    weights = box_weights(box + 0.2 * (box[:, [2, 3, 0, 1]] - box), 64, features.shape[-1])
    expected = reader(torch.einsum("nyx,cyx->nc", weights, features[0]))
    if classes:  # the last output says how much the classes count
        expected, share = expected[:, :-1], expected[:, -1:].sigmoid()
        named = mixer.class_reader(found[0], torch.zeros(1, dtype=torch.long), box / 64)
        expected = (1 - share) * expected + share * named
    after = model(**batch(model), input_ids=ids).query_embeds
    assert torch.allclose((after - before)[0, 0], expected[:, None].expand(1, 8, -1), atol=1e-4)
    model.save_pretrained(tmp_path)
    again = ScaForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.allclose(again(**batch(again), input_ids=ids).query_embeds, after, atol=1e-5)
    width = model.config.sam_config.vision_config.hidden_size
    model.config.sam_config.feature_channels = width + 1
    with pytest.raises(ValueError, match=f"the encoder has {width} features, which cannot give {width + 1} channels"):
        type(model.sam)(model.config.sam_config)


def test_an_encoder_that_finds_nothing_has_no_classes():
    config = sam_of("dinov2").config
    config.class_channels = 80
    with pytest.raises(ValueError, match=r"class_channels is 80, but the encoder \(dinov2\) finds nothing"):
        ScaEncoderModel(config)


def test_class_scores_are_not_in_the_embedding_cache(tmp_path):
    model = with_classes()
    with pytest.raises(EmbeddingCacheError, match="a mixer that reads class scores or features needs those"):
        EmbeddingCache(tmp_path, model, ScaProcessor.from_config(model.config, tiny_tokenizer()))


def test_a_mixer_reads_as_many_classes_as_there_are():
    with pytest.raises(ValueError, match=r"mixer_config\.class_channels=5 does not fit the other parts, which need 0"):
        whole("dinov2", class_channels=5)


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_each_patch_is_where_it_is_in_the_image(name):
    """A change of one part of the image changes the feature of that part most."""
    sam, seen = sam_of(name), []
    sam.vision_encoder.neck.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    plain = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    for row, column in ((0, 0), (0, 7), (7, 0), (5, 2)):
        marked = plain.clone()
        marked[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = torch.randn(3, 8, 8)
        sam.vision_encoder(marked), sam.vision_encoder(plain)
        moved = (seen[-2] - seen[-1]).norm(dim=-1)
        found = divmod(int(moved.argmax()), moved.shape[1])
        beside = max(abs(found[0] - row), abs(found[1] - column))
        assert beside <= (name in ("resnet", "pvt v2")), name  # whose patches overlap


def test_a_decoder_is_that_of_the_sam():
    sam, other = SamModel(tiny_sam_config()).eval(), None
    other = ScaEncoderModel.from_encoder(encoder("vit"), sam, 64)
    for name in ("prompt_encoder", "mask_decoder"):
        theirs = getattr(sam, name).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in getattr(other, name).state_dict().items())


def test_colors_are_the_encoders_own():
    sam = ScaEncoderModel.from_encoder(encoder("vit"), SamModel(tiny_sam_config()), 64, [0.5] * 3, [0.25] * 3)
    model = ScaForConditionalGeneration.from_sam_text_pretrained(sam, tiny_language_model())
    images = ScaProcessor.from_config(model.config, tiny_tokenizer()).image_processor
    assert list(images.image_mean) == [0.5] * 3 and list(images.image_std) == [0.25] * 3


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("vit", 60, "image_size is 60, which the 7 x 7 patches of the encoder .vit, patch_size 8. do not divide"),
        ("convnext", 36, "image_size is 36, which the 4 x 4 patches"),
        ("swin", 60, "image_size is 60, which the 8 x 8 patches"),
        ("resnet", 36, "image_size is 36, which the 5 x 5 patches"),
    ],
)
def test_an_image_that_patches_do_not_divide_is_refused(name, side, message):
    with pytest.raises(ValueError, match=message):
        ScaEncoderModel.from_encoder(encoder(name), None, side)


@pytest.mark.parametrize(
    ("fields", "side", "message"),
    [
        (
            dict(model_type="vit", image_size=[32, 64], patch_size=8, **SIZES),
            None,
            r"no image_size of one number .*64",
        ),
        (dict(model_type="vit", image_size=32, patch_size=[8, 16], **SIZES), None, "has patches of .8, 16. pixels"),
        (dict(model_type="siglip2_vision_model", patch_size=8, **SIZES), 64, "pixel_attention_mask"),
        (dict(model_type="vit", image_size=32, patch_size=8, num_channels=1, **SIZES), None, "3 channels"),
    ],
    ids=["not square", "patches not square", "more inputs", "gray"],
)
def test_an_encoder_that_cannot_be_used_is_refused_before_training(fields, side, message):
    kind = fields.pop("model_type")
    alone = AutoModel.from_config(AutoConfig.for_model(kind, **fields))
    with pytest.raises(ValueError, match=message):
        ScaEncoderModel.from_encoder(alone, None, side)


def clip_with_text():
    text = dict(SIZES, vocab_size=20, max_position_embeddings=8, bos_token_id=0, eos_token_id=1)
    vision = dict(SIZES, image_size=32, patch_size=8)
    config = AutoConfig.for_model("clip", text_config=text, vision_config=vision, projection_dim=16)
    return AutoModel.from_config(config).eval()


def test_of_a_model_with_a_text_tower_the_vision_tower_is_taken(tmp_path, caplog):
    whole = clip_with_text()
    whole.save_pretrained(tmp_path)
    fields = dict(image_processor_type="CLIPImageProcessor", image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.2])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    seen = torch.randn(1, 3, 32, 32)
    expected = whole.vision_model(seen).last_hidden_state
    for given in (whole, str(tmp_path)):
        sam = ScaEncoderModel.from_encoder(given)
        assert type(sam.vision_encoder.encoder).__name__ == "CLIPVisionModel"
        assert torch.equal(sam.vision_encoder.encoder(seen).last_hidden_state, expected)
    assert sam.config.image_mean == [0.5, 0.4, 0.3] and sam.config.image_std == [0.2] * 3
    assert ScaEncoderModel.from_encoder(tmp_path, image_mean=[0.1] * 3).config.image_mean == [0.1] * 3


def test_a_model_with_a_head_is_refused_and_its_folder_taken_without(tmp_path):
    fields = dict(ENCODERS["vit"])
    labeled = AutoModelForImageClassification.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    with pytest.raises(
        ValueError, match="is a ViTForImageClassification, expected a ViTModel as AutoModel loads it: only one has"
    ):
        ScaEncoderModel.from_encoder(labeled)
    labeled.save_pretrained(tmp_path)
    sam = ScaEncoderModel.from_encoder(tmp_path)  # which has no pooler, and none is missed
    theirs = labeled.vit.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in sam.vision_encoder.encoder.state_dict().items()
               if "pooler" not in key)  # fmt: skip
    weights = load_file(tmp_path / "model.safetensors")
    save_file({key: value for key, value in weights.items() if "layernorm.weight" not in key},
              tmp_path / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(RuntimeError, match=r"missing: .*layernorm\.weight"):
        ScaEncoderModel.from_encoder(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "arguments", "side", "patch", "width"),
    [
        ("eva02_tiny_patch14_224", dict(depth=1, img_size=56), 56, 14, 192),
        ("vit_tiny_patch16_224", dict(depth=1, dynamic_img_size=True), 64, 16, 192),
        ("swin_tiny_patch4_window7_224", dict(depths=[1, 1, 1, 1]), 224, 32, 768),
        ("resnet18", {}, 64, 32, 512),
    ],
)
def test_encoders_of_timm_are_tried_as_others_are(architecture, arguments, side, patch, width, tmp_path):
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    config = AutoConfig.for_model("timm_wrapper", architecture=architecture, model_args=arguments)
    alone = AutoModel.from_config(config).eval()
    sam = ScaEncoderModel.from_encoder(alone, SamModel(tiny_sam_config()), side)
    vision = sam.config.vision_config
    assert (vision.patch_size, vision.hidden_size) == (patch, width)
    sam.save_pretrained(tmp_path)
    seen = torch.randn(1, 3, side, side)
    again = ScaEncoderModel.from_pretrained(tmp_path).vision_encoder(seen)[0]
    assert torch.equal(sam.vision_encoder(seen)[0], again) and again.shape[2] == side // patch
    with pytest.raises(ValueError, match="has no image_size of one number"):
        ScaEncoderModel.from_encoder(alone)
    if architecture.startswith("eva"):
        with pytest.raises(ValueError, match="takes square images of 64 pixels"):
            ScaEncoderModel.from_encoder(alone, None, 64)


def test_what_gives_no_grid_is_refused():
    with pytest.raises(ValueError, match="has no image_size of one number"):
        ScaEncoderModel.from_encoder(tiny_language_model())
    with pytest.raises(ValueError, match="must be an image encoder that takes square images"):
        ScaEncoderModel.from_encoder(tiny_language_model(), image_size=64)
    sam = sam_of("vit")
    sam.vision_encoder.encoder = encoder("convnext")
    with pytest.raises(ValueError, match="expected a grid of 8 x 8"):
        sam.vision_encoder.encoder.config.patch_size = 8
        sam.vision_encoder(torch.zeros(1, 3, 48, 48))


def test_a_run_trains_the_neck_and_saves_it(tmp_path):
    model = whole("vit")
    args = ScaTrainingArguments(output_dir=tmp_path, max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True)
    processor = ScaProcessor.from_config(model.config, tiny_tokenizer())
    before = {name: value.clone() for name, value in model.sam.state_dict().items()}
    trainer = ScaTrainer(model, args, train_dataset=records(4), processing_class=processor)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "model").sam.state_dict()
    moved = {name for name, value in again.items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("vision_encoder.neck.") for name in moved)


# Mixer-only: all but the encoder itself is saved, and the encoder is named.


@pytest.fixture
def from_folders(tmp_path):
    """A model whose encoder and language model come from folders; its decoder is a SAM's."""
    encoder("dinov2").save_pretrained(tmp_path / "encoder")
    tiny_language_model().save_pretrained(tmp_path / "language_model")
    sam = ScaEncoderModel.from_encoder(tmp_path / "encoder", SamModel(tiny_sam_config()), 64)
    mixer = dict(num_hidden_layers=2, num_attention_heads=4, mlp_dim=64)
    return ScaForConditionalGeneration.from_sam_text_pretrained(sam, tmp_path / "language_model", mixer)


def same(one, other, **inputs):
    ours, theirs = (model.generate(**inputs, max_new_tokens=4) for model in (one, other))
    assert torch.equal(ours.sequences, theirs.sequences)
    assert torch.allclose(ours.pred_masks, theirs.pred_masks, atol=1e-5)


def test_a_mixer_alone_holds_the_neck_and_names_the_encoder(from_folders, tmp_path):
    model = from_folders
    with torch.no_grad():
        for weight in model.sam.vision_encoder.neck.parameters():
            weight.add_(0.1)  # it has learned
    model.save_pretrained(tmp_path / "mixer", include_base_models=False)
    stored = load_file(tmp_path / "mixer" / "model.safetensors")
    assert not any(key.startswith(("sam.vision_encoder.encoder.", "language_model.")) for key in stored)
    assert torch.equal(stored["sam.vision_encoder.neck.conv1.weight"], model.sam.vision_encoder.neck.conv1.weight)
    repos = json.loads((tmp_path / "mixer" / "config.json").read_text())["base_model_repos"]
    assert repos["sam"]["path"] == str(tmp_path / "encoder") and len(repos["sam"]["sha256"]) == 64
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer")
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    same(model, again, **batch(model))
    assert not again.include_base_models
    learns = {name for name, weight in again.sam.named_parameters() if weight.requires_grad}
    assert learns and all(name.startswith("vision_encoder.neck.") for name in learns)
    again.save_pretrained(tmp_path / "again")  # mixer-only, as it came
    same(model, ScaForConditionalGeneration.from_pretrained(tmp_path / "again"), **batch(model))
    half = ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer", dtype=torch.bfloat16)
    assert half.sam.vision_encoder.neck.conv1.weight.dtype == torch.bfloat16
    assert half.sam.shared_image_embedding.positional_embedding.dtype == torch.float32


@pytest.mark.slow
def test_a_mixer_alone_is_loaded_without_the_package(from_folders, tmp_path):
    model = from_folders
    model.save_pretrained(tmp_path / "mixer", include_base_models=False)
    ScaProcessor.from_config(model.config, tiny_tokenizer()).save_pretrained(tmp_path / "mixer")
    output = model.generate(**batch(model), max_new_tokens=4)
    torch.save((dict(batch(model)), output.sequences, output.pred_masks), tmp_path / "expected.pt")
    program = f"""
import sys
sys.modules["sca_hf"] = None
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained({str(tmp_path / "mixer")!r}, trust_remote_code=True).eval()
inputs, ids, masks = torch.load({str(tmp_path / "expected.pt")!r})
output = model.generate(**inputs, max_new_tokens=4)
assert torch.equal(ids, output.sequences) and torch.allclose(masks, output.pred_masks, atol=1e-5)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]


def test_a_segmenter_that_was_saved_whole_is_named_as_well_as_its_encoder(tmp_path):
    sam_of("vit").save_pretrained(tmp_path / "eyes")
    tiny_language_model().save_pretrained(tmp_path / "language_model")
    model = ScaForConditionalGeneration.from_sam_text_pretrained(
        tmp_path / "eyes", tmp_path / "language_model", dict(num_hidden_layers=2, num_attention_heads=4)
    )
    with torch.no_grad():
        model.sam.vision_encoder.neck.conv1.weight.add_(0.1)
    model.save_pretrained(tmp_path / "mixer", include_base_models=False)
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer")
    same(model, again, **batch(model))
    elsewhere = encoder("vit")  # a copy of the encoder will do
    elsewhere.load_state_dict(model.sam.vision_encoder.encoder.state_dict())
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer", base_models={"sam": elsewhere})
    same(model, again, **batch(model))


def test_what_a_mixer_alone_cannot_name_is_refused(from_folders, tmp_path):
    with pytest.raises(ValueError, match="could not name this model's SAM"):
        whole("vit").save_pretrained(tmp_path / "mixer", include_base_models=False)
    model = from_folders
    model.save_pretrained(tmp_path / "mixer", include_base_models=False)
    encoder("vit").save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="model_type 'vit' instead of 'dinov2'"):
        ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer", base_models={"sam": tmp_path / "other"})
    with pytest.raises(ValueError, match="is loaded on one device"):
        places = {"sam": "cpu", "mixer": "cpu", "language_model": "disk"}
        ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer", device_map=places, offload_folder=tmp_path)
    one = ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer", device_map={"": "cpu"})
    same(model, one, **batch(model))
    with torch.no_grad():
        next(model.sam.vision_encoder.encoder.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="have changed since they were loaded"):
        model.save_pretrained(tmp_path / "changed", include_base_models=False)
    model.sam.vision_encoder.encoder.requires_grad_(True)
    with pytest.raises(ValueError, match="weights of SAM or the language model are trainable"):
        model.save_pretrained(tmp_path / "trained", include_base_models=False)
    encoder("dinov2").half().save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="are not those that"):
        ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer")


def test_a_run_saves_mixer_and_neck_and_resumes(from_folders, tmp_path):
    model = from_folders
    processor = ScaProcessor.from_config(model.config, tiny_tokenizer())
    options = dict(use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="steps", save_steps=2)

    def run(model, steps, resume=False):
        args = ScaTrainingArguments(output_dir=tmp_path / "run", max_steps=steps, **options)
        trainer = ScaTrainer(model, args, train_dataset=records(4), processing_class=processor)
        trainer.train(resume_from_checkpoint=resume)
        return {name: value.clone() for name, value in trainer.model.state_dict().items()}

    start = {name: value.clone() for name, value in model.state_dict().items()}
    whole_run = run(model, 4)
    stored = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    assert torch.equal(
        stored["sam.vision_encoder.neck.conv1.weight"], whole_run["sam.vision_encoder.neck.conv1.weight"]
    )
    assert not any("vision_encoder.encoder" in name for name in stored)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    model.load_state_dict(start)
    resumed = run(model, 4, resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in whole_run.items())

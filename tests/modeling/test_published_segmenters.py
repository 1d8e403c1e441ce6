"""Segmenters in the forms in which they are published: read into the right parts, no weight is new, none is lost."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from sca_hf import ScaForConditionalGeneration
from sca_hf.modeling.families_sca import image_frame, segmenter_config
from tests.modeling.test_segmenters import tiny_language_model
from tests.modeling.tiny_segmenters import segmenter_fields


PUBLISHED = json.loads((Path(__file__).parents[1] / "fixtures" / "published_segmenters.json").read_text())
SAM2, SAM3, EDGETAM = "facebook/sam2.1-hiera-tiny", "facebook/sam3", "yonigozlan/EdgeTAM-hf"
REPOSITORIES = [SAM2, *PUBLISHED["differences"], SAM3, EDGETAM]
# Repository -> what it is read as, for pictures and to follow objects.
READ = {
    SAM2: ("sam2", "sam2_video"),
    SAM3: ("sam3_tracker_video", "sam3_tracker_video"),
    EDGETAM: ("edgetam", "edgetam_video"),
}


def merged(fields, changes):
    """Fields with some changed, in any depth."""
    return fields | {
        name: merged(fields[name], value) if isinstance(value, dict) and isinstance(fields.get(name), dict) else value
        for name, value in changes.items()
    }


def published(repository):
    """The config.json of a repository."""
    if repository in PUBLISHED["differences"]:
        return merged(copy.deepcopy(PUBLISHED[SAM2]), PUBLISHED["differences"][repository])
    fields = copy.deepcopy(PUBLISHED[repository])
    return with_every_field(fields) if repository == SAM3 else fields


def with_every_field(fields):
    """With what the library of that time wrote into each part."""
    inner = {name: with_every_field(value) if isinstance(value, dict) else value for name, value in fields.items()}
    return PUBLISHED["every_part"] | inner if "model_type" in fields else inner


def kind_of(repository):
    return READ[SAM2 if repository in PUBLISHED["differences"] else repository]


def shrunk(repository):
    """The same with widths that a test can build, everything else as it is published."""
    fields, video = published(repository), kind_of(repository)[1]
    small = segmenter_fields(video)
    if repository == EDGETAM:  # timm is not at hand
        fields["vision_config"]["backbone_config"] = {}
    for name in ("prompt_encoder_config", "mask_decoder_config"):
        small[name].pop("model_type", None)
    if repository != SAM3:
        return merged(fields, {**small, "model_type": fields["model_type"]})
    layers = dict(hidden_size=128, num_attention_heads=2, intermediate_size=16)
    text = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20,
                max_position_embeddings=8, projection_dim=16, bos_token_id=0, eos_token_id=1)  # fmt: skip
    detector = dict(
        vision_config=small["vision_config"],
        text_config=text,
        geometry_encoder_config=dict(layers, num_layers=1),
        detr_encoder_config=dict(layers, num_layers=1),
        detr_decoder_config=dict(layers, num_layers=1, num_queries=4),
        mask_decoder_config=dict(hidden_size=128, num_attention_heads=2),
    )
    return merged(fields, dict(tracker_config=small, detector_config=detector))


def publish(repository, folder):
    """A repository with the published config.json, of random weights; returns them by their names in it."""
    fields = shrunk(repository)
    known = {name: value for name, value in fields.items() if name != "model_type"}
    for name in ("prompt_encoder_config", "mask_decoder_config"):
        known.get(name, {}).pop("model_type", None)
    AutoModel.from_config(AutoConfig.for_model(fields["model_type"], **known)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(fields))
    return load_file(folder / "model.safetensors")


def compose(folder, **more):
    return ScaForConditionalGeneration.from_sam_text_pretrained(folder, tiny_language_model(), **more)


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_its_square_is_read_from_the_right_parts(repository):
    for video, kind in zip((False, True), kind_of(repository), strict=True):
        config = segmenter_config(published(repository), repository, video)
        frame = image_frame(config)
        assert config.model_type == kind
        sizes = (1008, 14, (0.5, 0.5, 0.5)) if repository == SAM3 else (1024, 16, (0.485, 0.456, 0.406))
        assert (frame.side, frame.patch, frame.image_mean) == sizes and frame.width == 256


@pytest.mark.parametrize(
    ("repository", "image", "video"),
    [
        (SAM2, 31.4, 38.9),
        ("facebook/sam2.1-hiera-small", 38.5, 46.0),
        ("facebook/sam2.1-hiera-base-plus", 73.3, 80.8),
        ("facebook/sam2.1-hiera-large", 216.9, 224.4),
        (SAM3, 465.8, 465.8),
    ],
)
def test_it_has_the_published_number_of_weights(repository, image, video):
    """In millions; those of SAM 2's video models are what its authors name, of SAM 3 the detector is left out."""
    for follow, millions in ((False, image), (True, video)):
        with torch.device("meta"):
            model = AutoModel.from_config(segmenter_config(published(repository), repository, follow))
        assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.15)


@pytest.mark.parametrize("repository", [SAM2, SAM3, EDGETAM])
@pytest.mark.parametrize("video", [False, True])
def test_no_weight_is_new_and_others_are_left_out_by_name(repository, video, tmp_path):
    theirs = publish(repository, tmp_path)
    model = compose(tmp_path, sam_video=video)
    assert model.config.sam_config.model_type == kind_of(repository)[video]
    own, found = model.sam.state_dict(), 0
    for name, value in own.items():
        # SAM 3 keeps its tracker beside the detector, which has the vision encoder that both see by.
        names = [name, f"tracker_model.{name}", f"tracker_model.tracker_model.{name}"]
        names += [f"detector_model.{name}", f"tracker_neck.{name.removeprefix('vision_encoder.neck.')}"]
        match = [theirs[one] for one in names if one in theirs]
        found += bool(match)
        assert not match or any(torch.equal(value, one) for one in match), name
    tied = {"shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"}
    assert found >= len(own.keys() - tied)


@pytest.mark.parametrize("repository", [SAM2, EDGETAM])
def test_a_weight_of_no_known_part_is_refused_by_its_name(repository, tmp_path):
    weights = publish(repository, tmp_path)
    save_file(weights | {"another_head.weight": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"unexpected: another_head\.weight"):
        compose(tmp_path)
    weights.pop("mask_decoder.iou_token.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"missing: mask_decoder\.iou_token\.weight"):
        compose(tmp_path)


def test_both_forms_of_the_tracker_s_names_are_read(tmp_path):
    """The library doubles their prefix when it saves a SAM 3."""
    weights = publish(SAM3, tmp_path)
    single, double = "tracker_model.", "tracker_model.tracker_model."
    plain = {name.replace(double, single): value for name, value in weights.items()}
    read = []
    for prefix in (single, double):
        named = {prefix + name.removeprefix(single) if name.startswith(single) else name: value
                 for name, value in plain.items()}  # fmt: skip
        save_file(named, tmp_path / "model.safetensors", {"format": "pt"})
        read.append(compose(tmp_path).sam.state_dict())
    assert any(name.startswith("mask_decoder.") for name in read[0])
    assert all(torch.equal(value, read[1][name]) for name, value in read[0].items())
    of_decoder = plain["tracker_model.mask_decoder.iou_token.weight"]
    assert torch.equal(read[0]["mask_decoder.iou_token.weight"], of_decoder)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_edgetam_without_timm_is_an_error_that_names_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(published(EDGETAM)))
    save_file({"no_memory_embedding": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ImportError, match="pip install timm"):
        compose(tmp_path)


def test_edgetam_is_read_with_the_backbone_of_timm(tmp_path):
    pytest.importorskip("timm", reason="timm, which EdgeTAM sees by, is not installed", exc_type=ImportError)
    fields = published(EDGETAM)
    for video, kind in zip((False, True), READ[EDGETAM], strict=True):
        model = AutoModel.from_config(segmenter_config(fields, EDGETAM, video)).eval()
        model.save_pretrained(tmp_path / kind)
        joined = compose(tmp_path / kind, sam_video=video)
        assert joined.config.sam_config.model_type == kind
        seen = torch.zeros(1, 3, 1024, 1024)
        assert joined.encode_images(seen).image_embeddings.shape == (1, 256, 64, 64)

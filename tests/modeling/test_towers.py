"""Pretrained convolutional encoders: equal to those who made them, alone and together, and ordinary in every room."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, SamModel

from experiments.photographs.towers import (
    LITE0,
    build_towers,
    fold_lite0,
    main,
    nanodet_folder,
    nanodet_state,
    read_checked,
)
from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.cli import main as command_line
from sca_hf.modeling.encoder_configuration_sca import ScaTowersConfig
from sca_hf.modeling.encoder_sca import ScaEncoderModel
from sca_hf.modeling.towers_sca import ScaTowersModel
from sca_hf.testing import tiny_image, tiny_sam_config, tiny_tokenizer
from tests.modeling.test_segmenters import tiny_language_model
from tests.modeling.tower_references import (
    NanoDetGraph,
    formula_weights,
    lite0_maps,
    lite0_reference,
    needs_lite0,
    needs_nanodet,
    sample,
    wave,
)
from tests.training.tiny_runs import records


GOLDEN = Path(__file__).parents[1] / "fixtures" / "towers.json"
BOTH = ["nanodet_g", "efficientnet_lite0"]
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def formula_towers(**fields):
    model = ScaTowersModel(ScaTowersConfig(**{"image_size": 64, **fields})).eval()
    for tower in model.towers.values():
        tower.load_state_dict(formula_weights(tower))
    return model


def photographs(side, count=2):
    """Real pictures (count, 3, side, side) in [0, 1]: of the shared data."""
    names = ("cyclist_on_road.jpg", "vintage_kitchen.jpg")
    return torch.stack([picture(name, side) for name in names[:count]])


def picture(name, side):
    needs_nanodet()
    opened = Image.open(nanodet_folder().parents[1] / "data" / "photos" / name).convert("RGB")
    return torch.from_numpy(np.array(opened.resize((side, side)))).permute(2, 0, 1).float() / 255


def near(found, expected, tolerance=1e-5):
    """Largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    return (found - expected).abs().max() <= tolerance * expected.abs().max()


@torch.no_grad()
def test_golden_numbers_of_the_references():
    """The graph of NanoDet and the package of Lite0 gave these for weights by a formula: no file is needed."""
    golden, pixels = json.loads(GOLDEN.read_text()), wave((1, 3, 96, 96), 1.0)
    towers = formula_towers(classifier=True).towers
    found = [values for *_, all_of in towers["nanodet_g"].outputs(pixels) for values in all_of.split([80, 44], 1)]
    lite0 = towers["efficientnet_lite0"]
    maps = lite0.outputs(pixels).values()
    for name, values in (("nanodet_g", found), ("efficientnet_lite0", [*maps, lite0.classify(pixels)])):
        assert len(values) == len(golden[name])
        for one, expected in zip(values, golden[name], strict=True):
            assert sample(one) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("side", [256, 320, 416])
def test_nanodet_equals_its_graph(side):
    needs_nanodet()
    graph, pixels = NanoDetGraph(), (photographs(side) - MEAN) / STD
    tower = build_towers(ScaTowersConfig(towers=["nanodet_g"])).towers["nanodet_g"]
    for one in pixels[:, None]:
        for (*_, found), expected in zip(tower.outputs(one), graph(one.flip(1)), strict=True):
            assert near(found, torch.cat(expected, 1))


@torch.no_grad()
@pytest.mark.parametrize("side", [224, 320, 384])
def test_lite0_equals_its_package(side):
    """In float64 to the last digits; in float32 as far as its own rounding lets, large after few layers."""
    needs_lite0()
    pictures, reference = photographs(side, 1), lite0_reference()
    model = build_towers(ScaTowersConfig(towers=["efficientnet_lite0"], classifier=True))
    tower, seen = model.towers["efficientnet_lite0"], model._seen("efficientnet_lite0", (pictures - MEAN) / STD)
    maps, logits = lite0_maps(reference, (pictures - 0.498) / 0.502)
    for found, expected in zip(tower.outputs(seen).values(), maps, strict=True):
        assert (found - expected).norm() < 1e-5 * expected.norm()
    assert near(model.classify((pictures - MEAN) / STD), logits.softmax(-1))
    exact = ((pictures - 0.498) / 0.502).double()
    tower.double().load_state_dict(fold_lite0(reference.double().state_dict(), classifier=True))
    maps, logits = lite0_maps(reference, exact)
    for found, expected in zip(tower.outputs(exact).values(), maps, strict=True):
        assert near(found, expected, 1e-12)
    assert near(tower.classify(exact), logits, 1e-12)


@torch.no_grad()
def test_nanodet_finds_the_cyclist():
    """Its highest score is the cyclist's, and the box of that cell goes from the helmet to the shoe."""
    needs_nanodet()
    model = build_towers(ScaTowersConfig(towers=["nanodet_g"]))
    seen = (picture("cyclist_on_road.jpg", 384)[None] - MEAN) / STD
    (found,) = model(seen, output_detections=True).detections
    assert found.shape == (48**2 + 24**2 + 12**2, 84) and model(seen).detections is None
    best, name = divmod(int(found[:, 4:].argmax()), 80)
    assert name == 0 and found[best, 4] > 0.7  # a person
    assert (384 * found[best, :4]).tolist() == pytest.approx([216, 133, 291, 353], abs=3)


@torch.no_grad()
@pytest.mark.parametrize("towers", [BOTH[:1], BOTH[1:], BOTH, BOTH[::-1]])
@pytest.mark.parametrize(("side", "patch"), [(64, 8), (96, 16), (96, 32)])
def test_maps_lie_on_the_grid_and_each_picture_alone(towers, side, patch):
    model = formula_towers(towers=towers, patch_size=patch)
    pictures = wave((3, 3, side, side), 2.0)
    features = model(pictures).last_hidden_state
    assert features.shape == (3, model.config.hidden_size, side // patch, side // patch)
    assert near(model(pictures[1:2]).last_hidden_state, features[1:2])
    model.train()  # which changes nothing: there are no statistics
    assert torch.equal(model(pictures).last_hidden_state, features)


@torch.no_grad()
def test_other_colors_are_told_to_the_towers():
    pictures = wave((1, 3, 64, 64), 2.0).abs()
    half = formula_towers(image_mean=[0.5] * 3, image_std=[0.25] * 3)
    expected = formula_towers()((pictures - MEAN) / STD).last_hidden_state
    assert near(half((pictures - 0.5) / 0.25).last_hidden_state, expected, 1e-4)


@torch.no_grad()
def test_padding_leaves_far_features_alone_and_adds_nothing_wild():
    needs_nanodet()
    model = build_towers(ScaTowersConfig(towers=["nanodet_g"]))
    whole = (photographs(384, 1) - MEAN) / STD
    padded = whole.clone()
    padded[:, :, 256:] = 0  # the mean color
    kept, seen = model(whole).last_hidden_state, model(padded).last_hidden_state
    assert (kept - seen)[:, :, :4].abs().max() < 0.5 * (kept - seen)[:, :, 16:].abs().max()
    assert seen[:, :, 16:].pow(2).mean() < 1.5 * kept.pow(2).mean()
    scores = model(padded, output_detections=True).detections[0, : 48**2, 4:].reshape(48, 48, 80)
    assert scores[36:].max() < 0.2  # nothing is found in it


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(towers=["resnet"]), "expected some of 'nanodet_g', 'efficientnet_lite0'"),
        (dict(towers=[]), "expected some of"),
        (dict(towers=["nanodet_g", "nanodet_g"]), "each once"),
        (dict(image_size=400), "image_size is 400, expected a multiple of 32"),
        (dict(patch_size=12), "patch_size is 12, expected 8, 16 or 32"),
        (dict(towers=["nanodet_g"], classifier=True), "classifier needs the tower"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ScaTowersConfig(**fields)


def test_what_towers_cannot_do_is_refused():
    model = formula_towers(towers=["efficientnet_lite0"])
    with pytest.raises(ValueError, match="multiples of 32, got \\(1, 3, 48, 64\\)"):
        model(torch.zeros(1, 3, 48, 64))
    with pytest.raises(ValueError, match="needs the tower 'nanodet_g'"):
        model(torch.zeros(1, 3, 64, 64), output_detections=True)
    with pytest.raises(ValueError, match="without a classifier"):
        model.classify(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="image_size is 80, expected a multiple of 32"):
        ScaEncoderModel.from_encoder(model, image_size=80)
    with pytest.raises(ValueError, match=r"image_mean is \[0.5, 0.5, 0.5\], but the encoder"):
        ScaEncoderModel.from_encoder(model, image_mean=[0.5] * 3)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="it comes in the npm package"):
        nanodet_state(tmp_path)
    name = next(iter(LITE0))
    (tmp_path / name).write_bytes(b"another file")
    with pytest.raises(ValueError, match=r"has sha256 .*, expected 57934424"):
        read_checked(tmp_path, LITE0, "a package")


def whole(**fields):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sam = ScaEncoderModel.from_encoder(formula_towers(**fields), SamModel(tiny_sam_config()))
        mixer = dict(num_hidden_layers=2, num_attention_heads=4, mlp_dim=64)
        return ScaForConditionalGeneration.from_sam_text_pretrained(sam, tiny_language_model(), mixer)


def batch(model, **more):
    processor = ScaProcessor.from_config(model.config, tiny_tokenizer())
    return processor(tiny_image(0), input_boxes=[[[5, 5, 60, 50], None]], input_points=[[None, [[30, 30]]]], **more)


@pytest.mark.parametrize("towers", [BOTH[:1], BOTH[1:], BOTH])
def test_only_neck_and_mixer_learn_and_a_saved_model_says_the_same(towers, tmp_path):
    model = whole(towers=towers)
    model.train()
    model(**batch(model, captions=[["a star", "a ring"]])).loss.backward()
    learned = {key for key, weight in model.sam.named_parameters() if weight.grad is not None}
    assert learned and all(key.startswith("vision_encoder.neck.") for key in learned)
    assert any(weight.grad is not None for weight in model.mixer.parameters())
    model.eval()
    before = model.generate(**batch(model), max_new_tokens=4)
    model.save_pretrained(tmp_path)
    again = ScaForConditionalGeneration.from_pretrained(tmp_path)
    after = again.generate(**batch(again), max_new_tokens=4)
    assert torch.equal(before.sequences, after.sequences) and torch.equal(before.pred_masks, after.pred_masks)


def test_a_mixer_only_repository_names_the_folder_of_the_towers(tmp_path):
    formula_towers().save_pretrained(tmp_path / "towers")
    tiny_language_model().save_pretrained(tmp_path / "lm")
    sam = ScaEncoderModel.from_encoder(str(tmp_path / "towers"), SamModel(tiny_sam_config()))
    mixer = dict(num_hidden_layers=2, num_attention_heads=4, mlp_dim=64)
    model = ScaForConditionalGeneration.from_sam_text_pretrained(sam, str(tmp_path / "lm"), mixer)
    model.save_pretrained(tmp_path / "mixer", include_base_models=False)
    assert (tmp_path / "mixer" / "model.safetensors").stat().st_size < 4_000_000  # the towers have 27 MB
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer")
    expected = model.generate(**batch(model), max_new_tokens=4)
    found = again.generate(**batch(again), max_new_tokens=4)
    assert torch.equal(found.sequences, expected.sequences)
    assert near(found.pred_masks, expected.pred_masks)


@torch.no_grad()
def test_half_precision(tmp_path):
    model = whole()
    expected = model.get_image_embeddings(batch(model)["pixel_values"])
    found = model.to(torch.bfloat16).get_image_embeddings(batch(model)["pixel_values"])
    assert found.dtype == torch.bfloat16 and near(found.float(), expected, 0.1)


@pytest.mark.slow
def test_a_saved_model_needs_no_package(tmp_path):
    from tests.test_remote_code import assert_same, run_without_package

    model, folder = whole(), tmp_path / "model"
    model.save_pretrained(folder)
    ScaProcessor.from_config(model.config, tiny_tokenizer()).save_pretrained(folder)
    assert (folder / "towers_sca.py").is_file()
    assert_same(run_without_package(folder, tmp_path), folder)


@pytest.mark.slow
def test_it_is_described_estimated_and_trained_as_any_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    model, folder = whole(), tmp_path / "model"
    model.save_pretrained(folder)
    ScaProcessor.from_config(model.config, tiny_tokenizer()).save_pretrained(folder)
    assert command_line(["info", str(folder)]) == 0
    assert "64 px" in capsys.readouterr().out
    rows = []
    for row in records(2):
        row["image"].save(tmp_path / f"{row['image_id']}.png")
        rows.append(json.dumps({**row, "image": f"{row['image_id']}.png"}))
    (tmp_path / "regions.jsonl").write_text("\n".join(rows))
    values = dict(
        model={"from": str(folder)},
        data={"train": {"format": "jsonl", "path": str(tmp_path / "regions.jsonl")}},
        training=dict(max_steps=1, save_form="whole", use_cpu=True, disable_tqdm=True, sample_sheet=0),
        output=str(tmp_path / "run"),
    )
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    assert command_line(["estimate", str(tmp_path / "recipe.yaml")]) == 0
    assert command_line(["train", str(tmp_path / "recipe.yaml")]) == 0
    trained = ScaForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    kept = trained.sam.vision_encoder.encoder.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in formula_towers().state_dict().items())


@torch.no_grad()
def test_the_script_writes_an_ordinary_model(tmp_path):
    """In half precision with half the bytes, float32 once loaded; NanoDet was published in half, and loses nothing."""
    needs_nanodet()
    main(["--output", str(tmp_path / "m"), "--towers", "nanodet_g", "--image-size", "64", "--half"])
    model = AutoModel.from_pretrained(tmp_path / "m")
    assert isinstance(model, ScaTowersModel) and model.dtype == torch.float32 and not model.training
    assert (tmp_path / "m" / "model.safetensors").stat().st_size < 7_700_000
    expected = build_towers(ScaTowersConfig(towers=["nanodet_g"])).state_dict()
    assert all(torch.equal(values, expected[name]) for name, values in model.state_dict().items())
    with pytest.raises(FileExistsError, match="exists; remove it"):
        main(["--output", str(tmp_path / "m"), "--towers", "nanodet_g"])
    shutil.rmtree(tmp_path / "m")


@torch.no_grad()
def test_towers_may_see_means_of_the_pixels():
    coarse = formula_towers()
    fine = formula_towers(image_size=128, patch_size=32, reduction=2)
    pixels = wave((1, 3, 64, 64), 1.0)
    same = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert near(fine(same).last_hidden_state, coarse(pixels).last_hidden_state)
    found = [model(seen, output_detections=True).detections for model, seen in ((fine, same), (coarse, pixels))]
    assert near(*found)
    with pytest.raises(ValueError, match="patch_size is 8, expected 16, 32 or 64"):
        ScaTowersConfig(image_size=128, patch_size=8, reduction=2)

"""The table of placements in docs/distributed.md: those that work give the same results, the others are refused."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import accelerate
import pytest
import torch
from transformers import AutoModel

from sca_hf import ScaForConditionalGeneration
from sca_hf.modeling import placement_sca
from sca_hf.modeling.placement_sca import check_blocks, place_of, resolve_device_map
from sca_hf.testing import tiny_config, tiny_image, tiny_model


PARTS = ("sam", "detail_encoder", "mixer", "language_model")
CPU = dict.fromkeys(PARTS, "cpu")
# By what the page calls them.
WORK = {
    '`"auto"`, `"balanced"`, `"balanced_low_0"`, `"sequential"`': ["auto", "balanced", "balanced_low_0", "sequential"],
    'the same, with too little `max_memory`': ["auto 300KB", "auto 0KB", "sequential 300KB"],
    "one device": [torch.device("cpu"), {"": "cpu"}, dict.fromkeys(PARTS, torch.device("cpu")) | {"mixer": "cpu:0"}],
    'all on disk': ["disk"],
    "a part on disk, or on the CPU beside an accelerator": [CPU | {part: "disk"} for part in PARTS],
    "parts on several accelerators": [],
    "pieces of SAM's encoder or of the language model anywhere": [
        {
            "sam.vision_encoder": "disk", "sam.mask_decoder": "cpu", "sam.prompt_encoder": "cpu",
            "sam.shared_image_embedding": "cpu", "detail_encoder": "cpu", "mixer": "cpu",
            "language_model.transformer.wte": "cpu", "language_model.lm_head": "cpu",
            "language_model.transformer.wpe": "disk", "language_model.transformer.h.0": "disk",
            "language_model.transformer.h.1": "cpu", "language_model.transformer.ln_f": "disk",
        }
    ],
    "everything but some pieces, which lie elsewhere": [
        {"": "cpu", "mixer": "disk"}, {"": "disk", "sam.vision_encoder": "cpu"},
    ],
    "pieces of the mixer or of SAM's mask decoder on disk or on the CPU": [
        CPU | {"mixer.transformer.layers.1": "disk", "sam.mask_decoder.iou_token": "disk"},
        CPU | {"mixer": "disk", "mixer.task_tokens": "cpu", "sam.prompt_encoder": "disk"},
        CPU | {"sam.shared_image_embedding": "disk", "language_model.lm_head": "disk"},
    ],
    "without `detail_encoder`, which then follows `sam`": [
        {"sam": "disk", "mixer": "cpu", "language_model": "cpu"}
    ],
}  # fmt: skip
MAPS = [placement for placements in WORK.values() for placement in placements]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placements")
    tiny_model(detail_widths=[4, 4, 8]).save_pretrained(folder / "whole")
    whole = ScaForConditionalGeneration.from_pretrained(folder / "whole")
    whole.save_pretrained(folder / "mixer", include_base_models=False)
    return folder


@pytest.fixture
def inputs(processor):
    """Prompts of every kind, whose masks tell the detail encoder where they are."""
    boxes = [[[3, 3, 40, 40], None], [[1, 1, 30, 30], None]]
    points = [[None, [[20, 30]]], [None, [[25, 30], [5, 5]]]]
    return processor([tiny_image(0), tiny_image(1)], input_boxes=boxes, input_points=points, return_tensors="pt")


@pytest.fixture
def expected(folders, inputs):
    return results(ScaForConditionalGeneration.from_pretrained(folders / "whole"), inputs)


@torch.no_grad()
def results(model, inputs):
    outputs = model.generate(**inputs, num_beams=2)
    ids = torch.ones(*inputs["region_mask"].shape, 5, dtype=torch.long)
    read = model(**inputs, input_ids=ids, labels=ids)
    again = model.generate(**model.encode_images(inputs["pixel_values"]).as_inputs(), **without_pixels(inputs))
    return (outputs.sequences, outputs.pred_masks, outputs.caption_scores, read.logits, read.loss, again.sequences)


def without_pixels(inputs):
    return {name: value for name, value in inputs.items() if name != "pixel_values"}


def assert_same(found, expected):
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def load(folder, placement, tmp_path, **arguments):
    if isinstance(placement, str) and " " in placement:
        placement, memory = placement.split()
        arguments["max_memory"] = {"cpu": memory, "disk": "1GB"}
    return AutoModel.from_pretrained(folder, device_map=placement, offload_folder=tmp_path / "off", **arguments)


@pytest.mark.parametrize("kind", ["whole", "mixer"])
@pytest.mark.parametrize("placement", MAPS, ids=str)
def test_placements_that_work_give_the_same(folders, inputs, expected, tmp_path, placement, kind):
    model = load(folders / kind, placement, tmp_path)
    away = {name for name, weight in model.named_parameters() if weight.is_meta}
    assert bool(away) == ("disk" in str(placement) or "KB" in str(placement))
    assert_same(results(model, inputs), expected)
    assert torch.equal(model.generate(**inputs, num_beams=2).sequences, expected[0])
    assert {name for name, weight in model.named_parameters() if weight.is_meta} >= away
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize("kind", ["whole", "mixer"])
def test_what_lies_on_disk_can_be_saved(folders, inputs, expected, tmp_path, kind):
    model = load(folders / "whole", CPU | {"mixer": "disk", "language_model": "disk"}, tmp_path)
    model.save_pretrained(tmp_path / kind, include_base_models=kind == "whole")
    assert_same(results(AutoModel.from_pretrained(tmp_path / kind), inputs), expected)


@pytest.mark.parametrize("kind", ["whole", "mixer"])
def test_half_precision_from_disk_is_half_precision(folders, inputs, tmp_path, kind):
    model = load(folders / kind, {"": "disk"}, tmp_path, dtype=torch.bfloat16)
    plain = AutoModel.from_pretrained(folders / kind, dtype=torch.bfloat16)
    assert_same(results(model, inputs), results(plain, inputs))


OFFLOADS = {
    "cpu_offload": lambda model, folder: accelerate.cpu_offload(model, "cpu"),
    "cpu_offload, buffers too": lambda model, folder: accelerate.cpu_offload(model, "cpu", offload_buffers=True),
    "cpu_offload, preloaded": lambda model, folder: accelerate.cpu_offload(
        model, "cpu", preload_module_classes=["ScaTextFeatureMixer", "SamMaskDecoder"]
    ),
    "disk_offload": lambda model, folder: accelerate.disk_offload(model, folder, "cpu"),
    "cpu_offload_with_hook": lambda model, folder: accelerate.cpu_offload_with_hook(model, "cpu")[0],
    "dispatch_model": lambda model, folder: accelerate.dispatch_model(
        model, CPU | {"mixer": "disk", "sam.mask_decoder": "disk"} | {"sam.vision_encoder": "cpu"}, offload_dir=folder
    ),
    "dispatch_model, with hooks alone": lambda model, folder: accelerate.dispatch_model(
        model, {"": "cpu"}, force_hooks=True
    ),
    "parts": lambda model, folder: [
        accelerate.cpu_offload(part, "cpu") for part in (model.sam, model.mixer, model.language_model)
    ] and model,
}  # fmt: skip


@pytest.mark.parametrize("offload", OFFLOADS)
def test_accelerates_own_offloading_gives_the_same(folders, inputs, expected, tmp_path, offload):
    model = OFFLOADS[offload](AutoModel.from_pretrained(folders / "whole"), str(tmp_path / "off"))
    assert_same(results(model, inputs), expected)
    assert torch.equal(model.generate(**inputs, num_beams=2).sequences, expected[0])


def test_an_error_leaves_nothing_loaded(folders, inputs):
    model = accelerate.cpu_offload(AutoModel.from_pretrained(folders / "whole"), "cpu")
    with pytest.raises(ValueError, match="Prompts must agree"):
        model.generate(**{**inputs, "region_mask": inputs["region_mask"][:1]})
    assert all(weight.is_meta for weight in model.parameters())


REFUSED = {
    "the mixer on two accelerators": (
        {"mixer.transformer.layers.0": 0, "mixer": 1, "sam": 0, "language_model": 0}, "divides the mixer"
    ),
    "SAM's mask decoder on two accelerators": (
        {"sam": 0, "sam.mask_decoder.iou_token": "cuda:1", "mixer": 0, "language_model": 0}, "divides SAM's mask"
    ),
    "its prompt encoder elsewhere": (
        {"sam": 0, "sam.prompt_encoder": 1, "mixer": 0, "language_model": 0}, "divides SAM's mask decoder"
    ),
    "the mixer half on disk, beside several accelerators": (
        {"sam": 0, "mixer": 1, "mixer.transformer.layers.0": "disk", "language_model": 0}, "divides the mixer"
    ),
    "a weight on disk without its module": (
        CPU | {"sam.vision_encoder.pos_embed": "disk"}, "puts sam.vision_encoder.pos_embed on disk"
    ),
    "a part that is not there": (CPU | {"text_model": "cpu"}, "names 'text_model'.*its parts are"),
    "a part left out": ({"sam": "cpu", "mixer": "cpu"}, "leaves out language_model"),
    "the meta device": (CPU | {"mixer": "meta"}, "puts mixer on 'meta'"),
    "something else": (CPU | {"mixer": "floppy"}, "puts mixer on 'floppy'; expected a device"),
    "an accelerator that is not there": (CPU | {"language_model": 7}, "puts language_model on 7, but torch finds"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["whole", "mixer"])
@pytest.mark.parametrize("name", REFUSED)
def test_placements_that_cannot_work_are_refused_before_weights_are_read(folders, tmp_path, monkeypatch, name, kind):
    placement, sentence = REFUSED[name]
    if "7" not in str(placement):
        monkeypatch.setattr(placement_sca, "_check_place", _any_accelerator(placement_sca._check_place))
    monkeypatch.setattr(ScaForConditionalGeneration, "_load_pretrained_model", lambda *args: pytest.fail("was loaded"))
    with pytest.raises(ValueError, match=f"device_map {sentence}"):
        ScaForConditionalGeneration.from_pretrained(folders / kind, device_map=placement)


def _any_accelerator(check):
    """The check of a machine with accelerators enough."""
    return lambda name, place: None if str(place) in ("0", "1", "cuda:1") else check(name, place)


def test_a_division_by_accelerate_itself_is_refused_when_it_runs(folders, inputs):
    model = AutoModel.from_pretrained(folders / "whole")
    model.hf_device_map = {"": 0, "mixer.language_project": 1}
    with pytest.raises(ValueError, match="divides the mixer"):
        model.generate(**inputs)


def test_a_sam_that_is_given_divided_is_refused(model):
    model.sam.hf_device_map = {"vision_encoder": 0, "mask_decoder": 0, "prompt_encoder": 1}
    with pytest.raises(ValueError, match="divides SAM's mask decoder"):
        ScaForConditionalGeneration.from_sam_text_pretrained(model.sam, model.language_model)


def test_parts_that_are_joined_may_lie_on_disk(folders, inputs, tmp_path):
    """The mixer, which is new, computes where SAM does."""
    for name in ("sam", "language_model"):
        part = getattr(AutoModel.from_pretrained(folders / "whole"), name)
        part.save_pretrained(tmp_path / name)
    models = []
    for places in ({}, {"device_map": "disk"}):
        places = {f"{part}_{name}": {"": place} for part in ("sam", "text") for name, place in places.items()}
        torch.manual_seed(0)
        models.append(
            ScaForConditionalGeneration.from_sam_text_pretrained(
                tmp_path / "sam",
                tmp_path / "language_model",
                {"num_attention_heads": 4, "num_hidden_layers": 2},
                **places,
            )
        )
    assert any(weight.is_meta for weight in models[1].parameters())
    assert_same(results(models[1], inputs), results(models[0], inputs))


@pytest.mark.parametrize("way", ["auto", "balanced", "balanced_low_0", "sequential"])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.34, 0.5])
def test_auto_divides_no_block(monkeypatch, way, share):
    """As on a machine with three accelerators, of which each holds a share of the model."""
    with torch.device("meta"):
        model = ScaForConditionalGeneration(tiny_config(detail_widths=[4, 4, 8]))
    size = int(sum(weight.numel() * 4 for weight in model.parameters()) * share)
    monkeypatch.setattr(placement_sca, "_check_place", _any_accelerator(lambda name, place: None))
    memory = {0: size, 1: size, 2: size, "cpu": size, "disk": 10 * size}
    inferred = resolve_device_map(model, way, memory)
    check_blocks(inferred)
    assert all(place_of(inferred, name) is not None for name in model.state_dict())


def test_parts_on_accelerators_of_their_own_mix_no_devices():
    script = Path(__file__).with_name("several_devices.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 16


def test_nothing_is_different_where_nothing_is_placed(model, inputs):
    plain, copied = results(model, inputs), copy.deepcopy(model)
    assert_same(results(copied, inputs), plain)
    assert not hasattr(model, "hf_device_map") and not any(hasattr(part, "_hf_hook") for part in model.modules())


def test_the_page_has_the_table():
    page = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
    table = page.split("## Where the parts lie")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| (works|refused) \|", table, re.MULTILINE)
    assert [row for row, verdict in rows if verdict == "works"] == list(WORK)
    assert {row for row, verdict in rows if verdict == "refused"} == set(REFUSED)

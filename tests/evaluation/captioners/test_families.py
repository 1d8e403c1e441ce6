"""Each family of captioners, end to end: saved as anyone would find it, loaded, and run over a data set."""

import re

import pytest

from sca_hf.evaluation.captioners import CropCaptioner, Florence2Captioner, load_captioner
from sca_hf.evaluation.captioners.crop_captioner import CropStyle
from sca_hf.evaluation.captioners.interface import Captioner
from sca_hf.evaluation.predict import PredictSettings, predict
from sca_hf.evaluation.predictions import read_predictions
from tests.evaluation.region_files import write_regions
from tests.evaluation.tiny_captioners import save


CASES = {
    "crop-blip": ("blip", dict(kind="crop", sam="sca-tiny")),
    "crop-blip-vcot": ("blip", dict(kind="crop", sam="sca-tiny", vcot=True, background="white")),
    "crop-blip2": ("blip2", dict(kind="crop", sam="sca-tiny", vcot=True)),
    "crop-git": ("git", dict(kind="crop", sam="sca-tiny", heads="all", margin=0.2)),
    "crop-llava": ("llava", dict(kind="crop", area="box")),
    "kosmos2": ("kosmos2", dict(kind="kosmos2")),
    "florence2": ("florence2", dict(kind="florence2")),
    "florence2-category": ("florence2", dict(kind="florence2", task="category")),
    "chat": ("llava", dict(kind="chat")),
    "chat-drawn": ("llava", dict(kind="chat", show="drawn_box")),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of tiny random models, made when first asked for."""
    folders = {}

    def find(family):
        if family not in folders:
            folders[family] = str(save(family, tmp_path_factory.mktemp(family)))
        return folders[family]

    return find


@pytest.fixture
def load(saved):
    def load(case, **options):
        family, own = CASES[case]
        generation = {"max_new_tokens": 6, "num_beams": 2 if case == "kosmos2" else 1}
        return load_captioner(model=saved(family), device="cpu", generation=generation, **(own | options))

    return load


@pytest.mark.parametrize("case", CASES)
def test_a_family_describes_every_region_of_a_data_set(case, load, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    captioner = load(case)
    assert isinstance(captioner, Captioner)
    data = write_regions(tmp_path / "data", images=4)
    path = predict(captioner, data, tmp_path / "said.jsonl", PredictSettings(batch_size=3), progress=False)
    records = read_predictions(path)
    assert [record.region_id for record in records] == ["0-0", "1-0", "1-1"]
    assert sum(bool(record.caption) for record in records) >= 2, "not all of them empty"
    assert not any(re.search(r"<loc_|<patch_index|<s>|\[CLS\]|USER", record.caption) for record in records)
    assert len({record.system for record in records}) == 1
    segments = case.startswith("crop") and CASES[case][1].get("sam") is not None
    assert [len(record.iou_scores or []) for record in records] == [3 if segments else 0] * 3
    assert [len(record.candidates) for record in records] == [3 if case == "crop-git" else 1] * 3


def test_company_changes_no_answer(load):
    from sca_hf.evaluation.predict import build_query
    from sca_hf.testing import tiny_image
    from tests.evaluation.region_files import tiny_record

    rows = [{**tiny_record(number), "image": tiny_image(number), "task": "caption"} for number in (0, 1, 4)]
    for case in ("crop-blip-vcot", "florence2", "kosmos2", "chat"):
        captioner = load(case)
        together = captioner.caption_regions([build_query(row) for row in rows])
        alone = [captioner.caption_regions([build_query(row)])[0] for row in rows]
        assert [[a.candidates for a in row] for row in together] == [[a.candidates for a in row] for row in alone]


def test_settings_tell_what_changes_an_answer(load):
    crops, florence = load("crop-git"), load("florence2")
    assert re.fullmatch(r"[0-9a-f]{64}", crops.settings()["model"]) and len(crops.settings()["sam"]) == 64
    for change in (dict(vcot=True), dict(style=CropStyle(margin=0.3)), dict(heads="best")):
        arguments = dict(style=crops.style, vcot=crops.vcot, heads=crops.heads)
        assert CropCaptioner(crops.captioner, crops.segmenter, **arguments).settings() == crops.settings()
        assert CropCaptioner(crops.captioner, crops.segmenter, **arguments | change).settings() != crops.settings()
    assert Florence2Captioner(florence.model, "category").settings() != florence.settings()


def test_unknown_options_and_captioners_are_named(saved):
    with pytest.raises(ValueError, match="the captioner is 'grit', expected one of sca, crop"):
        load_captioner("grit")
    with pytest.raises(ValueError, match=r"captioner crop: .*'cot'.*; its options are model, sam, vcot"):
        load_captioner("crop", model="x", cot=True)
    with pytest.raises(ValueError, match="has no chat template"):
        load_captioner("chat", model=saved("git"))

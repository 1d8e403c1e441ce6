"""A score stands under the name of a protocol only where images, regions and prompts are the protocol's."""

from pathlib import Path

import pytest

from sca_hf.evaluation.predict import PredictSettings, predict
from sca_hf.evaluation.predictions import PredictionRecord
from sca_hf.evaluation.protocols import PROTOCOLS, ProtocolError, check_counts, check_protocol
from tests.evaluation.predict_runs import tiny_captioner
from tests.evaluation.region_files import write_regions


def records(images, regions, references=1, **fields):
    """So many records, spread over so many images."""
    for number in range(regions):
        yield PredictionRecord(
            ["a dog"] * references, ["a cat"], image_id=str(number % images), region_id=str(number), **fields
        )


@pytest.mark.parametrize(("regions", "edition"), [(232_935, "GRiT's test.json"), (238_069, "densecap's test split")])
def test_the_whole_test_split_has_two_editions(regions, edition):
    assert check_counts("vg-full", 5_000, regions) == edition


@pytest.mark.parametrize(("images", "regions"), [(5_000, 5_000), (4_999, 232_935), (5_000, 232_934), (0, 0)])
def test_other_counts_have_no_place_under_its_name(images, regions):
    with pytest.raises(ProtocolError, match=f"this data has {images:,} images with {regions:,} regions"):
        check_counts("vg-full", images, regions)


def test_predictions_of_a_protocol_may_be_printed_under_its_name():
    check = check_protocol("refcoco-testA", records(750, 1_975, references=3, prompt="box"))
    assert str(check) == "refcoco-testA: 750 images, 1,975 regions, prompted by box"
    assert check_protocol("vg-5k", records(5_000, 5_000)).regions == 5_000


def test_others_may_not():
    with pytest.raises(
        ProtocolError, match=r"refcoco-testB has 750 images with 1,810 regions; this data has 750 images"
    ):
        check_protocol("refcoco-testB", records(750, 1_975))
    with pytest.raises(ProtocolError, match="refcoco-testA prompts with box; record 0/0 used center_point"):
        check_protocol("refcoco-testA", records(750, 1_975, prompt="center_point"))
    with pytest.raises(ProtocolError, match=r"vg-5k has 1 reference\(s\) for each region; record 0/0 has 2"):
        check_protocol("vg-5k", records(5_000, 5_000, references=2))
    with pytest.raises(ProtocolError, match="the id 3 occurs twice"):
        check_protocol("vg-5k", [PredictionRecord(["a"], ["b"], image_id=str(i), id="3") for i in range(2)])
    with pytest.raises(ProtocolError, match="does not name its image"):
        check_protocol("vg-5k", [PredictionRecord(["a"], ["b"], id="3")])
    with pytest.raises(ProtocolError, match="there is no protocol 'vg'; known are vg-full, vg-5k"):
        check_protocol("vg", [])


def test_one_image_with_all_regions_is_not_five_thousand():
    with pytest.raises(ProtocolError, match="this data has 1 images with 5,000 regions"):
        check_protocol("vg-5k", records(1, 5_000))


def test_nothing_is_predicted_under_a_name_that_does_not_hold(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data, output = write_regions(tmp_path / "data", images=5), tmp_path / "said.jsonl"
    with pytest.raises(
        ProtocolError, match="refcoco-val has 1,500 images with 3,811 regions; this data has 3 images with 4"
    ):
        predict(tiny_captioner(), data, output, PredictSettings(protocol="refcoco-val"), progress=False)
    assert not list(tmp_path.glob("said*"))
    with pytest.raises(ValueError, match="vg-full shows regions by box, not by point"):
        PredictSettings(protocol="vg-full", prompt="point")
    assert PredictSettings(protocol="vg-full-random-point-in-mask").shown_by == "random_point_in_mask"


def test_the_ablation_has_a_protocol_for_each_prompt():
    shown = {protocol.prompt for name, protocol in PROTOCOLS.items() if name.startswith("vg-full")}
    assert shown == {"box", "center_point", "random_point_in_box", "random_point_in_mask"}


def table():
    lines = ["| protocol | what | images | regions |", "|---|---|---|---|"]
    for name, protocol in PROTOCOLS.items():
        counts = ", ".join(
            f"{count:,}" + (f" ({edition})" if edition else "") for count, edition in protocol.regions.items()
        )
        lines.append(f"| `{name}` | {protocol.title} | {protocol.images:,} | {counts} |")
    return "\n".join(lines) + "\n"


def test_the_page_lists_them_all():
    page = Path(__file__).parents[2] / "docs" / "prediction.md"
    assert table() in page.read_text(encoding="utf-8")

"""The options of `sca-hf anything` are the fields of AnythingSettings, and no list of their own."""

from dataclasses import fields

import pytest

from sca_hf.cli import main, parse
from sca_hf.processing.anything_settings_sca import AnythingSettings


def option(name):
    return f"--{name.replace('_', '-')}"


def test_every_setting_is_an_option_with_its_explanation_and_range(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(["anything", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for setting in fields(AnythingSettings):
        assert option(setting.name) in shown and setting.metadata["help"] in shown
    assert "(0 to 1; SAM: 0.88)" in shown and "(at least 0; SAM: 0)" in shown


def test_options_have_the_kind_of_their_setting_and_leave_the_rest_to_the_model():
    options = vars(parse(["anything", "x.png", "--crop-n-layers", "1", "--min-area", "0.1", "--no-unique-captions"]))
    given = {s.name: options[s.name] for s in fields(AnythingSettings) if options[s.name] is not None}
    assert given == {"crop_n_layers": 1, "min_area": 0.1, "unique_captions": False}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pred_iou_thresh", "7", "pred_iou_thresh is 7.0, expected 0 to 1."),
        ("points_per_batch", "0", "points_per_batch is 0, expected at least 1."),
        ("mask_threshold", "nan", "mask_threshold is nan, expected a number."),
    ],
)
def test_a_value_out_of_its_range_is_refused_before_anything_is_loaded(name, value, said, capsys):
    assert main(["anything", "missing.png", option(name), value]) == 2
    assert capsys.readouterr().err == f"sca-hf anything: error: {said}\n"

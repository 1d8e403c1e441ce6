"""The command line: what it writes, and one clear sentence for each mistake."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sca_hf.cli import build_parser, main
from sca_hf.processing.masks_sca import decode_rle, encode_rle
from sca_hf.testing import save_tiny_model, tiny_image, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "picture.png"
    tiny_image(3, (80, 60)).save(path)
    return str(path)


def caption(model, *arguments) -> int:
    return main(["caption", "--model", model, "--device", "cpu", *map(str, arguments)])


def test_caption_writes_table_json_and_overlay(model, image, tmp_path, capsys):
    records, overlay = tmp_path / "deep" / "out.json", tmp_path / "out.png"
    prompts = ["--box", "10,10,60,50", "--point", "30,20", "--point", "2,2,0"]
    assert caption(model, image, *prompts, "--json", records, "--overlay", overlay) == 0
    first, second = json.loads(records.read_text())
    assert first.keys() == {"image", "region", "caption", "score", "confidence", "iou", "box", "prompt", "mask"}
    assert first["prompt"] == {"box": [10, 10, 60, 50]} and first["region"] == 1
    assert second["prompt"] == {"points": [[30, 20], [2, 2]], "labels": [1, 0]} and second["image"] == image
    assert decode_rle(second["mask"]).shape == (60, 80)
    assert Image.open(overlay).size[0] >= 900
    table = capsys.readouterr().out
    assert "box 10,10,60,50" in table and "2 points" in table and str(overlay) in table


def test_without_prompts_the_whole_image_is_one_region(model, image, capsys):
    assert caption(model, image, "--json", "-") == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["prompt"] == {"box": [0, 0, 80, 60]}


def test_masks_and_regions_files_are_prompts_too(model, image, tmp_path, capsys):
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:60] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", mask)
    (tmp_path / "mask.json").write_text(json.dumps(encode_rle(mask)))
    (tmp_path / "regions.json").write_text(
        json.dumps({"picture.png": [{"mask": "mask.png"}, {"box": [1, 2, 30, 40]}]})
    )
    files = [part for kind in ("png", "npy", "json") for part in ("--mask", tmp_path / f"mask.{kind}")]
    assert caption(model, image, *files, "--regions", tmp_path / "regions.json", "--json", "-") == 0
    records = json.loads(capsys.readouterr().out)
    assert len(records) == 5
    assert [record["prompt"] for record in records[:4]] == [{"mask": True}] * 4
    assert len({record["mask"]["counts"] for record in records[:4]}) == 1
    assert len({record["caption"] for record in records[:4]}) == 1


def test_several_images_share_the_prompts_and_get_an_overlay_each(model, image, tmp_path, capsys):
    other = tmp_path / "other.png"
    tiny_image(4, (50, 70)).save(other)
    prompts = ["--box", "10,10,40,50", "--batch-size", "1"]
    assert caption(model, image, other, *prompts, "--json", "-", "--overlay", tmp_path / "o.png") == 0
    assert (tmp_path / "o-picture.png").is_file() and (tmp_path / "o-other.png").is_file()
    alone = json.loads(capsys.readouterr().out.split("\noverlay")[0])
    assert caption(model, image, other, *prompts[:2], "--json", "-") == 0
    together = json.loads(capsys.readouterr().out)
    assert [record["caption"] for record in alone] == [record["caption"] for record in together]


def test_options_reach_the_model(model, image, capsys):
    results = []
    for extra in ([], ["--task", "recognition"], ["--num-beams", "3"]):
        assert caption(model, image, "--box", "10,10,60,50", "--json", "-", *extra) == 0
        results.append(json.loads(capsys.readouterr().out)[0])
    greedy, recognition, beams = (result["caption"] for result in results)
    assert recognition != greedy and beams != greedy
    assert results[2]["mask"] == results[0]["mask"]


def test_info_counts_the_parameters(model, capsys):
    assert main(["info", model]) == 0
    out = capsys.readouterr().out
    tiny = tiny_model()
    assert "whole repository" in out
    assert f"{tiny.num_parameters():,}" in out and f"{tiny.num_parameters(only_trainable=True):,}" in out
    assert "F32" in out


def test_info_names_the_bases_of_a_mixer_only_repository(model, tmp_path, capsys):
    from sca_hf import ScaForConditionalGeneration

    ScaForConditionalGeneration.from_pretrained(model).save_pretrained(tmp_path / "mixer", include_base_models=False)
    assert main(["info", str(tmp_path / "mixer")]) == 0
    out = capsys.readouterr().out
    assert "mixer-only repository" in out and f"{model} @ " in out


def test_scene_is_rendered_with_prompts_that_caption_takes(model, tmp_path, capsys):
    picture, prompts = tmp_path / "scene.png", tmp_path / "scene.json"
    assert main(["scene", str(picture), "--seed", "7", "--regions", str(prompts)]) == 0
    assert capsys.readouterr().out == f"picture: {picture}\nregions: {prompts}\n"
    assert main(["scene", str(picture), "--seed", "7", "--regions", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(prompts.read_text())
    assert caption(model, picture, "--regions", prompts, "--json", "-") == 0
    assert len(json.loads(capsys.readouterr().out)) == len(json.loads(prompts.read_text()))


def test_convert_makes_a_model_that_info_takes(tmp_path, capsys):
    fixture = Path(__file__).parents[1] / "fixtures" / "original_sca_gpt2"
    theirs, ours, words = tmp_path / "theirs", tmp_path / "ours", tmp_path / "words"
    theirs.mkdir()
    shutil.copy(fixture / "state_dict.safetensors", theirs / "model.safetensors")
    config = json.loads((fixture / "fixture.json").read_text())["original_config"]
    (theirs / "config.json").write_text(json.dumps(config))
    tiny_tokenizer().save_pretrained(words)
    # The fixture's vocabulary is smaller than this tokenizer's.
    assert main(["convert", str(theirs), str(ours), "--tokenizer", str(words)]) == 2
    assert str(config["text_config"]["vocab_size"]) in capsys.readouterr().err
    assert main(["convert", str(theirs), str(ours)]) == 0
    assert "weights converted" in capsys.readouterr().out
    assert main(["info", str(ours)]) == 0
    assert "whole repository" in capsys.readouterr().out


MISTAKES = {
    "a box of three numbers": (["--box", "1,2,3"], "--box 1,2,3: expected x1,y1,x2,y2"),
    "a box of words": (["--box", "a,b,c,d"], "expected numbers in the form x1,y1,x2,y2"),
    "a label of 2": (["--point", "3,4,2"], "1 (inside) or 0 (outside)"),
    "only a point outside": (["--point", "3,4,0"], "needs a region before it"),
    "no such mask": (["--mask", "missing.png"], "missing.png"),
    "no such regions": (["--regions", "missing.json"], "missing.json"),
    "an unknown task": (["--task", "poetry"], "poetry"),
    "no picture's name": (["--overlay", "out.txt"], ".png"),
    "an output that is a folder": (["--json", "."], "is a directory"),
}


MISFITS = {
    "an inverted box": (["--box", "50,10,20,40"], "--box 50,10,20,40"),
    "a box outside": (["--box", "500,500,600,600"], "--box 500,500,600,600"),
    "a point that is NaN": (["--point", "nan,3"], "--point nan,3: point 0"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_prompt_that_does_not_fit_its_image_fails_for_it(misfit, model, image, capsys):
    arguments, expected = MISFITS[misfit]
    assert caption(model, image, *arguments, "--quiet") == 1
    output = capsys.readouterr()
    assert output.err.startswith(f"sca-hf caption: failed: {image}: ") and expected in output.err and not output.out


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_clear_error(mistake, model, image, capsys):
    arguments, expected = MISTAKES[mistake]
    assert caption(model, image, *arguments, "--quiet") == 2
    output = capsys.readouterr()
    assert output.err.startswith("sca-hf caption: error: ") and expected in output.err
    assert "Traceback" not in output.err and not output.out


REGION_FILES = {
    "no JSON": ("{", "is not JSON"),
    "no list": ("3", "must contain a list"),
    "an unknown key": ('[{"bbox": [1, 2, 3, 4]}]', "write `box`"),
    "no prompt": ("[{}]", "has no prompt"),
    "a box of strings": ('[{"box": ["1", 2, 3, 4]}]', "four finite numbers"),
    "labels missing": (
        '[{"points": [[1, 2], [3, 4]], "labels": [1]}]',
        "1 (inside) or 0 (outside) for each of 2 point(s)",
    ),
    "another image": ('{"cat.png": [{"box": [1, 2, 3, 4]}]}', "names 'cat.png'"),
    "a broken RLE": ('[{"mask": {"size": [60, 80], "counts": [9]}}]', "RLE"),
}


@pytest.mark.parametrize("fault", REGION_FILES)
def test_a_bad_regions_file_names_file_and_place(fault, model, image, tmp_path, capsys):
    content, expected = REGION_FILES[fault]
    (tmp_path / "bad.json").write_text(content)
    # A mask is unpacked once its image is there.
    assert caption(model, image, "--regions", tmp_path / "bad.json") == (1 if fault == "a broken RLE" else 2)
    error = capsys.readouterr().err
    assert "bad.json" in error and expected in error


@pytest.mark.parametrize("name", ["./missing", "/missing/too", "a/b/c", "missing"])
@pytest.mark.parametrize("command", ["caption", "info"])
def test_a_model_that_is_not_there_is_named(command, name, image, capsys):
    arguments = ["info", name] if command == "info" else ["caption", image, "--model", name]
    assert main(arguments) == 2
    assert f"error: {name} is neither a folder" in capsys.readouterr().err


def test_a_picture_that_is_none_is_named(model, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no picture")
    assert caption(model, tmp_path / "text.jpg") == 1
    assert "text.jpg" in capsys.readouterr().err


def test_debug_shows_the_traceback(model, image):
    with pytest.raises(ValueError, match="expected x1,y1"):
        caption(model, image, "--box", "1", "--debug")


@pytest.mark.parametrize("command", ["caption", "info", "convert", "scene"])
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        build_parser().parse_args([command, "--help"])
    assert f"example:\n  sca-hf {command} " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["paint"], ["caption"], ["caption", "x.png", "--num-beams", "0"]])
def test_a_wrong_call_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and "error" in capsys.readouterr().err

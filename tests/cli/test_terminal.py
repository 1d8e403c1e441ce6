"""What people do at a terminal: many images, some broken; pipes both ways; names of all kinds; Ctrl-C."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch

from sca_hf.captioning import load
from sca_hf.cli import COMMANDS, main, parse
from sca_hf.run_log import RunMismatchError
from sca_hf.testing import save_tiny_model, tiny_image


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The working directory, with pictures in two folders and a broken one."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a/one.png", "a/two.png", "b/one.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tiny_image(number, (40, 30)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes((tmp_path / "a/one.png").read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    return tmp_path


def run(command, saved, *arguments):
    settings = ["--points-per-side=2", "--pred-iou-thresh=0"] if command == "anything" else []
    return main([command, *map(str, arguments), "--model", saved, "--device", "cpu", *settings])


def images(text):
    return list(dict.fromkeys(record["image"] for record in json.loads(text)))


def piped(monkeypatch, data):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("batch", ["1", "2", "8"])
def test_bad_files_never_stop_the_others_and_make_the_exit_code_1(batch, saved, photos, capsys):
    names = ["a/one.png", "broken.png", "missing.png", "a/two.png", "empty", "none*.png", "b/one.png"]
    assert run("caption", saved, *names, "--json", "-", "--batch-size", batch) == 1
    told = capsys.readouterr()
    assert images(told.out) == ["a/one.png", "a/two.png", "b/one.png"]
    for line in (
        "failed: broken.png: cannot be read",
        "failed: missing.png: missing.png is not there.",
        "failed: empty: there is no image in empty.",
        "failed: none*.png: nothing matches none*.png.",
        "4 of 7 images failed",
    ):
        assert f"sca-hf caption: {line}" in told.err


def test_a_region_outside_one_of_the_images_stops_no_other(saved, photos, capsys):
    tiny_image(5, (90, 90)).save("large.png")
    assert run("caption", saved, "large.png", "a/one.png", "--box", "60,60,80,80", "--json", "-") == 1
    told = capsys.readouterr()
    assert images(told.out) == ["large.png"] and "failed: a/one.png: --box 60,60,80,80" in told.err


def test_an_error_of_the_model_is_blamed_on_its_image(saved, photos, capsys, monkeypatch):
    import sca_hf.captioning as captioning

    real = captioning.ScaForConditionalGeneration.generate

    def generate(self, *arguments, **keywords):
        if len(keywords["pixel_values"]) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(captioning.ScaForConditionalGeneration, "generate", generate)
    assert run("caption", saved, "a", "b", "--json", "-") == 0
    assert len(images(capsys.readouterr().out)) == 3


@pytest.mark.parametrize("output", [(), ("--output", "out"), ("--json", "-")])
def test_anything_with_failures_exits_with_1(output, saved, photos, capsys):
    assert run("anything", saved, "a", "broken.png", *output) == 1
    told = capsys.readouterr()
    assert "sca-hf anything: failed: broken.png: " in told.err and "1 of 3 images failed" in told.err
    if "--json" in output:
        assert images(told.out) == ["one.png", "two.png"]


def test_patterns_folders_and_files_are_one_list_with_each_file_once(saved, photos, capsys):
    assert run("caption", saved, "b/one.png", "*/one.png", "a", "--json", "-") == 0
    assert images(capsys.readouterr().out) == ["b/one.png", "a/one.png", "a/two.png"]
    (photos / "x[1].png").write_bytes((photos / "a/one.png").read_bytes())
    assert run("caption", saved, "x[1].png", "--json", "-") == 0  # a name, though it looks like a pattern
    assert images(capsys.readouterr().out) == ["x[1].png"]


@pytest.mark.parametrize("command", ["caption", "anything"])
def test_a_picture_comes_through_a_pipe(command, saved, photos, capsys, monkeypatch):
    data = (photos / "a/one.png").read_bytes()
    piped(monkeypatch, data)
    assert run(command, saved, "-", "b/one.png", "--json", "-") == 0
    first, second = [entry["image"] for entry in json.loads(capsys.readouterr().out)]
    assert first.startswith("stdin-") and second.endswith("one.png")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the standard input is empty"),
        (b"no picture at all", "cannot be read"),
        (b"a/one.png\na/two.png\n", "the standard input contains file names; pass them with xargs"),
    ],
)
def test_what_is_piped_in_and_no_picture_stops_no_other(data, said, saved, photos, capsys, monkeypatch):
    piped(monkeypatch, data)
    assert run("caption", saved, "-", "a/one.png", "--json", "-") == 1
    told = capsys.readouterr()
    assert images(told.out) == ["a/one.png"] and said in told.err


def test_names_that_begin_with_a_dash_are_names(saved, photos, capsys):
    for name in ("-x.png", "--y.png"):
        (photos / name).write_bytes((photos / "a/one.png").read_bytes())
    assert run("caption", saved, "-x.png", "a/one.png", "--y.png", "--json", "-") == 0
    assert images(capsys.readouterr().out) == ["./-x.png", "a/one.png", "./--y.png"]
    assert run("caption", saved, "*.png", "--json", "-") == 1  # broken.png; a pattern gives such names too
    assert images(capsys.readouterr().out) == ["--y.png", "-x.png"]


def test_files_of_one_name_in_several_folders_stay_apart(saved, photos, capsys):
    (photos / "b/one-1.png").write_bytes((photos / "a/two.png").read_bytes())
    (photos / "b/ONE.jpg").write_bytes((photos / "a/two.png").read_bytes())
    names = ["a/one.png", "b/one.png", "b/one-1.png", "b/ONE.jpg"]
    assert run("caption", saved, *names, "--json", "-", "--overlay", "drawn.png") == 0
    told = capsys.readouterr()
    assert images(told.out) == names and len({path.name.lower() for path in photos.glob("drawn-*.png")}) == 4
    assert told.err.count("overlay: drawn-") == 4
    assert run("anything", saved, "a", "b", "--output", "out", "--overlays") == 0
    entries = [json.loads(line) for line in (photos / "out/records.jsonl").read_text().splitlines()]
    assert [entry["image"] for entry in entries] == ["a/one.png", "two.png", "ONE.jpg", "one-1.png", "b/one.png"]


def test_regions_of_a_name_that_two_images_have_are_refused(saved, photos, capsys):
    (photos / "r.json").write_text(json.dumps({"one.png": [{"box": [1, 1, 9, 9]}]}))
    assert run("caption", saved, "a", "b", "--regions", "r.json") == 2
    assert "names 'one.png', but several IMAGEs have that name; include their folders" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("caption", ["a/one.png", "--overlay", "drawn.png"]),
        ("anything", ["a/one.png"]),
    ],
)
def test_stdout_holds_only_json_if_that_is_where_it_goes(command, arguments, saved, photos, capsys):
    assert run(command, saved, *arguments, "--json", "-") == 0
    json.loads(capsys.readouterr().out)
    assert not (photos / "-").exists()


def test_the_report_on_data_goes_to_stdout_as_json_alone(photos, capsys):
    assert main(["data", "check", "scenes:split=test,count=3", "--json", "-", "--sheet", "s.png"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) and "images      3" in told.err and not (photos / "-").exists()


@pytest.mark.parametrize("option", ["--overlays", "--retry", "--write=cvat", "--ray=2"])
def test_options_of_a_folder_are_refused_without_one(option, photos, capsys):
    assert main(["anything", "a", option]) == 2
    assert "needs an output folder: add --output FOLDER" in capsys.readouterr().err


def test_quiet_says_nothing_but_results_and_errors(saved, photos, capfd):
    assert run("caption", saved, "a", "--json", "r.json", "--quiet") == 0
    assert run("anything", saved, "a", "--output", "out", "--quiet") == 0
    assert run("anything", saved, "a", "--json", "s.json", "--quiet") == 0
    assert tuple(capfd.readouterr()) == ("", "")
    assert run("caption", saved, "a/one.png", "broken.png", "--quiet") == 1
    told = capfd.readouterr()
    assert told.out.startswith("a/one.png\n") and told.err.startswith("sca-hf caption: failed: broken.png: ")
    assert run("caption", saved, "a/one.png") == 0
    assert capfd.readouterr().err == f"sca-hf caption: loading {saved}\n"


def interrupted_after(monkeypatch, place, count):
    """Presses Ctrl-C in a function's call after the first `count`."""
    module, _, name = place.rpartition(".")
    real, calls = getattr(sys.modules[module], name), []

    def call(*arguments, **keywords):
        calls.append(1)
        if len(calls) > count:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(place, call)


def test_ctrl_c_keeps_what_is_captioned_and_says_what_is_left(saved, photos, capsys, monkeypatch):
    import sca_hf.cli.caption  # noqa: F401

    interrupted_after(monkeypatch, "sca_hf.cli.caption._format_table", 1)
    assert run("caption", saved, "a", "b", "--json", "r.json") == 130
    assert capsys.readouterr().err.endswith(
        "sca-hf: interrupted: 1 of 3 images are done; to resume, give the others, from a/two.png\n"
    )
    assert images((photos / "r.json").read_text()) == ["a/one.png"]


def test_ctrl_c_says_how_to_resume_and_the_same_command_does(saved, photos, capsys, monkeypatch):
    import sca_hf.anything.folder  # noqa: F401

    with monkeypatch.context() as patch:
        interrupted_after(patch, "sca_hf.anything.folder.caption_each", 1)
        assert run("anything", saved, "a", "b", "--batch-size=1", "--output", "out") == 130
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(
        "sca-hf: interrupted: to resume, run the same command: sca-hf anything a b --batch-size=1 --output out "
    )
    interrupted_after(monkeypatch, "sca_hf.anything.folder.caption_each", 2)  # one is done: two are left
    assert run("anything", saved, "a", "b", "--batch-size=1", "--output", "out") == 0
    monkeypatch.setattr("sca_hf.evaluation.predict._fill", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    data = ["--data", "scenes:split=test,count=3", "--output", "p.jsonl"]
    assert main(["predict", *data, "--model", saved, "--device", "cpu"]) == 130
    assert "to resume, run the same command: sca-hf predict --data" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["evaluate", "--help"], ["train", "finetune_voc", "--help"]])
def test_a_reader_that_has_gone_ends_it_without_a_word(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sca_hf", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=BUFFERED)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_an_error():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "sca_hf", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=BUFFERED)
    assert done.returncode == 2
    assert done.stderr == "sca-hf: error: cannot write the output: No space left on device.\n"


LOADING = {
    "caption": ["x.png"],
    "anything": ["x.png"],
    "predict": ["--data", "x", "--output", "x.jsonl"],
    "serve": [],
    "demo": [],
}


@pytest.mark.parametrize("command", LOADING)
def test_every_command_that_loads_a_model_can_be_told_how(command):
    given = ["--dtype", "bfloat16", "--revision", "v1", "--device", "cpu", "--quiet"]
    options = parse([command, *LOADING[command], *given])
    assert (options.dtype, options.revision, options.device, options.quiet) == ("bfloat16", "v1", "cpu", True)


def test_the_precision_reaches_the_model(saved, photos, capsys):
    assert load(saved, "cpu", "bfloat16")[0].dtype == torch.bfloat16 and load(saved, "cpu")[0].dtype == torch.float32
    scores = []
    for dtype in ("bfloat16", "float32"):
        assert run("caption", saved, "a/one.png", "--dtype", dtype, "--json", "r.json") == 0
        scores.append(json.loads((photos / "r.json").read_text())[0]["score"])
    assert scores[0] != scores[1] and abs(scores[0] - scores[1]) < 0.2
    assert run("anything", saved, "a/one.png", "--dtype", "bfloat16", "--output", "out") == 0
    with pytest.raises(RunMismatchError, match="dtype was 'bfloat16' and is None"):
        run("anything", saved, "a/one.png", "--output", "out", "--debug")
    run_file = ["--data", "scenes:split=test,count=2", "--output", "p.jsonl", "--dtype", "bfloat16"]
    assert main(["predict", *run_file, "--model", saved, "--device", "cpu"]) == 0
    assert "bfloat16" in (photos / "p.jsonl.run.json").read_text()


@pytest.mark.parametrize("command", ["caption", "anything", "predict", "info", "estimate", "serve"])
def test_a_revision_of_a_folder_is_refused(command, saved, photos, capsys):
    arguments = {
        "caption": ["a"],
        "anything": ["a"],
        "info": [saved],
        "estimate": [saved],
        "serve": ["--model", saved],
    }
    arguments["predict"] = ["--data", "scenes:split=test,count=2", "--output", "p.jsonl"]
    more = ["--model", saved] if command in ("caption", "anything", "predict") else []
    assert main([command, *arguments[command], *more, "--revision", "v1"]) == 2
    assert "revision" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_points_to_what_is_not_there(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        parse([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "see above" not in text and "see below" not in text and "from above" not in text
    if "--metrics" in text:
        assert "CIDEr-D BLEU ROUGE-L" in text and "METEOR by its own program: pip install" in text
    assert "sca-hf[" not in text

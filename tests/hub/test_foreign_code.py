"""No code but that of the repository itself is ever named, fetched, asked for or run: every file, every door."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
from original_format import original_config, original_state_dict, write_checkpoint
from publishing import save_mixer, save_whole

import sca_hf
from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.captioning import load
from sca_hf.evaluation.captioners import load_captioner
from sca_hf.hub.convert import convert
from sca_hf.hub.info import check_saved_model
from sca_hf.hub.publish import check_folder
from sca_hf.modeling.validation_sca import check_base_models
from sca_hf.serving.engine import Engine
from sca_hf.testing import tiny_model, tiny_tokenizer


FILES = ("config.json", "processor_config.json", "tokenizer_config.json", "preprocessor_config.json")
FILES += ("generation_config.json", "chat.json")
REFERENCES = {
    "another repository": {"auto_map": {"AutoTokenizer": "evil/x--run.Tokenizer"}},
    "another repository, in a list": {"auto_map": {"AutoTokenizer": [None, "evil/x--run.Tokenizer"]}},
    "a folder above": {"auto_map": {"AutoProcessor": "../run.Processor"}},
    "deep inside": {"image_processor": {"auto_map": {"AutoImageProcessor": "evil--x.Y"}}},
    "a pipeline": {"custom_pipelines": {"any": {"impl": "evil/x--run.Pipe"}}},
    "kernels": {"attn_implementation": "someone/kernels"},
    "kernels of a revision": {"_attn_implementation": "someone/kernels@main:f"},
    "kernels of a part": {"text_config": {"attn_implementation": {"": "sdpa", "text": "someone/kernels"}}},
    "experts": {"experts_implementation": "someone/kernels"},
    "a quantization of a stranger": {"quantization_config": {"quant_method": "awq"}},
    "a quantization with more": {"quantization_config": {"quant_method": "bitsandbytes", "modules": "evil"}},
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save_whole(tmp_path_factory.mktemp("original") / "whole")


@pytest.fixture
def asked(monkeypatch):
    """What was asked of a person: nothing may be."""
    questions = []
    monkeypatch.setattr("builtins.input", lambda *text: questions.append(text) or "y")
    return questions


def change(folder, file, fields):
    path = folder / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    for key, value in fields.items():
        content[key] = {**content[key], **value} if isinstance(content.get(key), dict) else value
    path.write_text(json.dumps(content))


DOORS = {
    "load": lambda folder: load(str(folder), "cpu"),
    "model": lambda folder: ScaForConditionalGeneration.from_pretrained(folder),
    "captioner": lambda folder: load_captioner("sca", "cpu", model=str(folder)),
    "server and page": lambda folder: Engine([str(folder)], "cpu").model(),
    "publish": check_folder,
    "saved": check_saved_model,
}


@pytest.mark.parametrize("file", FILES)
def test_no_file_may_name_code_elsewhere(original, tmp_path, asked, file):
    for number, (what, fields) in enumerate(REFERENCES.items()):
        folder = shutil.copytree(original, tmp_path / str(number))
        change(folder, file, fields)
        with pytest.raises(ValueError) as error:
            ScaForConditionalGeneration.from_pretrained(folder, trust_remote_code=bool(number % 2))
        assert re.search("auto_map|custom_pipelines|_implementation|quantization_config", str(error.value)), what
    assert asked == []


@pytest.mark.parametrize("door", DOORS)
def test_every_door_goes_through_the_gate(original, tmp_path, asked, door):
    DOORS[door](original)
    for number, file in enumerate(FILES):
        folder = shutil.copytree(original, tmp_path / str(number))
        change(folder, file, REFERENCES["another repository"])
        with pytest.raises(ValueError, match=r"auto_map"):
            DOORS[door](folder)
    assert asked == []


@pytest.mark.parametrize("trust", [None, True, False])
def test_a_processor_alone_runs_no_code_of_another_repository(original, tmp_path, asked, trust):
    for number, file in enumerate(("processor_config.json", "tokenizer_config.json", "preprocessor_config.json")):
        folder = shutil.copytree(original, tmp_path / str(number))
        change(folder, file, REFERENCES["another repository, in a list"])
        with pytest.raises(ValueError, match=rf"{file}: auto_map\['AutoTokenizer'\] is 'evil/x--run"):
            ScaProcessor.from_pretrained(folder, trust_remote_code=trust)
    assert asked == []


def test_code_in_the_repository_itself_is_not_asked_for(original, tmp_path, asked):
    folder = shutil.copytree(original, tmp_path / "own")
    (folder / "run.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\n")
    change(folder, "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["run.Tokenizer", None]}})
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\n")
    for door in (load, ScaProcessor.from_pretrained):
        try:
            door(str(folder))
        except (ValueError, OSError) as error:
            assert str(error)
    assert asked == [] and not (tmp_path / "RAN").exists()


def test_convert_runs_nothing_asks_nothing_and_looks_nothing_up(tmp_path, asked, monkeypatch, model):
    config = original_config(model)
    config["text_config"]["_name_or_path"] = str(tmp_path / "secret")
    tiny_tokenizer().save_pretrained(tmp_path / "secret")
    source = write_checkpoint(tmp_path / "theirs", config, original_state_dict(model))
    report = convert(source, tmp_path / "one")
    assert report.tokenizer is None and "if you trust that" in str(report)
    tiny_tokenizer().save_pretrained(source)
    change(
        source, "tokenizer_config.json", {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["run.T", None]}}
    )
    (source / "run.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\nclass T: pass\n")
    convert(source, tmp_path / "two")
    assert asked == [] and not (tmp_path / "RAN").exists()
    assert "auto_map" not in "".join(path.read_text() for path in (tmp_path / "two").glob("*tokenizer_config.json"))


@pytest.mark.parametrize(
    "revision", ["main", "HEAD", "v1", "abc1234", "A" * 40, "a" * 39, "a" * 41, "refs/pr/1", "g" * 40]
)
def test_only_a_whole_commit_is_a_pin(revision):
    pinned = {"repo_id": "org/sam", "revision": "a" * 40}
    check_base_models({"sam": pinned, "language_model": pinned})
    with pytest.raises(ValueError, match=r"base_model_repos\['sam'\] is not pinned: its revision"):
        check_base_models({"sam": {**pinned, "revision": revision}, "language_model": pinned})


@pytest.fixture
def mixer(tmp_path):
    model = tiny_model()
    model.sam.save_pretrained(tmp_path / "sam")
    model.language_model.save_pretrained(tmp_path / "lm")
    return save_mixer(tmp_path / "mixer", tmp_path / "sam", tmp_path / "lm")


def nan(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


CHANGES = {
    "settings": lambda folder: change(folder, "config.json", {"initializer_range": 0.5}),
    "weights": nan,
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_pin_of_a_folder_covers_all_that_decides(mixer, tmp_path, what):
    (tmp_path / "sam" / "README.md").write_text("of no matter")
    # Code of a base model is never run.
    (tmp_path / "sam" / "modeling_x.py").write_text("raise SystemExit")
    ScaForConditionalGeneration.from_pretrained(mixer)
    CHANGES[what](tmp_path / "sam")
    with pytest.raises(ValueError, match="are not those that"):
        ScaForConditionalGeneration.from_pretrained(mixer)


def test_weights_of_a_base_model_are_finite(mixer, tmp_path):
    nan(tmp_path / "sam")
    with pytest.raises(ValueError, match=r"of .*sam holds infinite values or NaN"):
        ScaForConditionalGeneration.from_pretrained(mixer, base_models={"sam": tmp_path / "sam"})


@pytest.mark.parametrize("length", [1, 2])
def test_a_mixer_that_names_itself_or_a_ring_is_refused(mixer, tmp_path, length):
    from sca_hf.modeling.base_models_sca import hash_folder

    ring = [mixer, shutil.copytree(mixer, tmp_path / "second")][:length]
    for place, folder in enumerate(ring):
        content = json.loads((folder / "config.json").read_text())
        after = ring[(place + 1) % length]
        # The hash of before the settings counted, which a ring can fulfill.
        source = {"path": str(after), "sha256": hash_folder(after, ()), "part": "sam"}
        content["base_model_repos"] = {"sam": source, "language_model": {**source, "part": "language_model"}}
        (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="a repository must not name itself"):
        ScaForConditionalGeneration.from_pretrained(mixer)


# Our own classes go through the gate; these two are what a published repository is used by.
OURS = ("ScaForConditionalGeneration", "ScaProcessor", "ScaConfig")
TRUSTING = ("templates/handler.py", "hub/probe.py")


def test_every_load_says_that_it_trusts_no_code():
    root = Path(sca_hf.__file__).parent
    silent = []
    for path in root.rglob("*.py"):
        if "assets" in path.parts or str(path).endswith(TRUSTING):
            continue
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
            if not named or call.func.attr != "from_pretrained" or isinstance(call.func.value, ast.Call):
                continue
            owner = ast.unparse(call.func.value)
            known = owner in OURS or any(k.arg in ("trust_remote_code", None) for k in call.keywords)
            if not known:
                silent.append(f"{path.relative_to(root)}:{call.lineno} {owner}")
    assert silent == []

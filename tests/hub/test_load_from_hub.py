"""Three lines from the Hub, whole and mixer-only, online and from the cache; what is said where a base is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from remote_code_check import describe
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.testing import tiny_config, tiny_model, tiny_sam_config, tiny_text_config, tiny_tokenizer


CHECK = Path(__file__).with_name("hub_load_check.py")
MIXER = dict(num_hidden_layers=3, num_attention_heads=4, mlp_dim=64)


def describe_in_a_fresh_process(folder, endpoint, *repositories, **environment):
    """What `hub_load_check.py` finds, with a cache of its own in `folder`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1", **environment}
    command = [sys.executable, str(CHECK), str(folder / "found.npz"), *repositories]
    done = subprocess.run(command, cwd=folder, env=inherited | own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(folder / "found.npz"))


def assert_same(found, name, expected):
    assert str(found[f"{name}/module"]).startswith("transformers_modules.")
    assert np.array_equal(found[f"{name}/ids"], expected["ids"])
    assert list(found[f"{name}/captions"]) == list(expected["captions"])
    np.testing.assert_allclose(found[f"{name}/masks"], expected["masks"], atol=1e-5)


@pytest.fixture
def processor_of_test():
    return ScaProcessor.from_config(tiny_config(), tiny_tokenizer())


@pytest.fixture
def published(online, processor_of_test):
    """A whole repository, and a mixer-only one whose base models lie in two others, at a branch and a tag."""
    api = HfApi(online.url)
    whole = tiny_model()
    whole.push_to_hub("org/whole")
    processor_of_test.push_to_hub("org/whole")
    for seed, branch in ((1, "v1"), (2, "main")):
        made = tiny_model(seed=seed)
        for name, part in (("org/sam", made.sam), ("org/lm", made.language_model)):
            api.create_repo(name, exist_ok=True)
            part.push_to_hub(name, revision=branch)
    api.create_tag("org/lm", tag="first", revision="v1")
    mixer = ScaForConditionalGeneration.from_sam_text_pretrained(
        "org/sam", "org/lm", mixer_config=MIXER, sam_revision="v1", text_revision="first"
    )
    mixer.include_base_models = False
    mixer.push_to_hub("org/mixer")
    processor_of_test.push_to_hub("org/mixer")
    return {"org/whole": whole, "org/mixer": mixer}


@pytest.mark.slow  # tests/test_remote_code.py does as much from folders
def test_three_lines_from_the_hub_and_from_the_cache(published, online, processor_of_test, tmp_path):
    revisions = [f"{name}@{online.repository(name).resolve('main').id}" for name in published]
    online.break_downloads("GET /cdn/", after=20_000)
    first = describe_in_a_fresh_process(tmp_path, online.url, *revisions)
    for name, model in published.items():
        assert_same(first, name, describe(model, processor_of_test))
    held = {path: file.size for path, file in online.repository("org/mixer").resolve("main").files.items()}
    assert (
        held["model.safetensors"] < online.repository("org/whole").resolve("main").files["model.safetensors"].size / 2
    )
    # The Hub is gone; everything, the base models too, is in the cache.
    again = describe_in_a_fresh_process(tmp_path, "http://127.0.0.1:9", *revisions, HF_HUB_OFFLINE="1")
    assert again.keys() == first.keys() and all(np.array_equal(again[key], first[key]) for key in first)


@pytest.fixture(scope="module")
def base_models(hub):
    return {}


@pytest.fixture
def mixer_only(online, base_models, tmp_path):
    """`org/errors`, whose base models are `org/a-sam` and `org/an-lm`; made once for the tests below."""
    if not base_models:
        made = tiny_model()
        made.sam.push_to_hub("org/a-sam")
        made.language_model.push_to_hub("org/an-lm")
        mixer = ScaForConditionalGeneration.from_sam_text_pretrained("org/a-sam", "org/an-lm", mixer_config=MIXER)
        mixer.include_base_models = False
        mixer.push_to_hub("org/errors")
        base_models["model"] = mixer
        # The cache of this test is not that of the others.
    return "org/errors"


def load(name, cache, **options):
    return ScaForConditionalGeneration.from_pretrained(name, cache_dir=cache, **options)


@pytest.fixture
def lm(online):
    """The language model's repository, put back as it was."""
    repository = online.repository("org/an-lm")
    kept = dict(vars(repository), branches=dict(repository.branches), commits=dict(repository.commits))
    yield repository
    online.store.repositories.pop(("model", repository.name), None)
    vars(repository).update(kept)
    online.store.repositories["model", "org/an-lm"] = repository
    online.store.moved.clear()


def test_a_renamed_base_is_followed(mixer_only, online, lm, tmp_path):
    online.store.move("model", "org/an-lm", "org/renamed")
    assert load(mixer_only, tmp_path / "new").language_model.config.model_type == "gpt2"


@pytest.mark.parametrize(
    "fault, message",
    [
        ("gated", r"gated: accept its terms"),
        ("removed", r"the Hub has no such repository"),
        ("rewritten", r"no longer has this revision"),
        ("down", r"cannot be reached|cannot be had"),
    ],
)
def test_a_base_that_is_not_there_is_named_with_the_mend(mixer_only, online, lm, tmp_path, fault, message):
    if fault == "gated":
        lm.gated, lm.readers = True, {"somebody"}
    elif fault == "removed":
        del online.store.repositories["model", "org/an-lm"]
    elif fault == "rewritten":
        newest = lm.branches["main"]
        lm.commits["f" * 40] = lm.commits.pop(newest)
        lm.branches["main"] = "f" * 40
    else:
        online.refuse("(GET|HEAD) /org/an-lm/", 403, times=100)
    try:
        with pytest.raises(OSError, match=message) as error:
            load(mixer_only, tmp_path / "new")
    finally:
        online.forgive()
    told = str(error.value)
    assert "org/errors needs its language_model from org/an-lm at revision" in told
    assert "base_models={'language_model': a folder or repository id}" in told


def test_offline_without_a_cache_says_what_to_load_once(mixer_only, online, tmp_path, monkeypatch):
    load_only = {"cache_dir": tmp_path / "new"}
    HfApi(online.url).snapshot_download("org/errors", **load_only)
    with pytest.raises(OSError, match=r"sam from org/a-sam .* is not in the cache .* load it online once"):
        ScaForConditionalGeneration.from_pretrained("org/errors", local_files_only=True, **load_only)


@pytest.mark.parametrize(
    "family, message", [("llama3", "model_type 'llama' instead of 'gpt2'"), ("wide", "n_embd|hid")]
)
def test_a_base_of_another_architecture_is_refused_before_its_weights_come(
    mixer_only, online, tmp_path, family, message
):
    config = tiny_text_config("gpt2", n_embd=64) if family == "wide" else tiny_text_config(family)
    AutoModelForCausalLM.from_config(config).push_to_hub(f"org/other-{family}")
    before = len(online.requests)
    with pytest.raises(ValueError, match=rf"another architecture than the language_model.*({message})"):
        load(mixer_only, tmp_path / "new", base_models={"language_model": f"org/other-{family}"})
    assert not [path for _, path in online.requests[before:] if f"other-{family}" in path and "safetensors" in path]


def test_a_sam_of_another_size_is_refused(mixer_only, online, tmp_path):
    AutoModel.from_config(tiny_sam_config(image_size=128)).save_pretrained(tmp_path / "sam")
    with pytest.raises(ValueError, match=r"another architecture than the sam .*image_size 128 instead of 64"):
        load(mixer_only, tmp_path / "new", base_models={"sam": tmp_path / "sam"})


def test_code_in_a_base_repository_is_never_run(mixer_only, online, lm, tmp_path, base_models):
    """Not even though the mixer's own code is trusted: a base that changed hands must not matter."""
    trap = "from pathlib import Path\nPath({!r}).touch()\n".format(str(tmp_path / "ran"))
    HfApi(online.url).upload_file(repo_id="org/an-lm", path_in_repo="modeling_trap.py", path_or_fileobj=trap.encode())
    config = online.store.content(lm.resolve("main").files["config.json"]).decode()
    trapped = config.replace("{", '{"auto_map": {"AutoModelForCausalLM": "modeling_trap.Trap"},', 1)
    commit = HfApi(online.url).upload_file(
        repo_id="org/an-lm", path_in_repo="config.json", path_or_fileobj=trapped.encode()
    )
    model = base_models["model"]
    model.base_sources = {**model.base_sources, "language_model": {"repo_id": "org/an-lm", "revision": commit.oid}}
    model.save_pretrained(tmp_path / "mixer")
    loaded = AutoModel.from_pretrained(tmp_path / "mixer", trust_remote_code=True, cache_dir=tmp_path / "new")
    assert type(loaded.language_model).__module__.startswith("transformers.models.gpt2")
    assert not (tmp_path / "ran").exists()


def test_a_folder_for_a_base_is_not_looked_for_on_behalf_of_the_hub(mixer_only, online, tmp_path, base_models):
    made = tiny_model()
    made.sam.save_pretrained(tmp_path / "sam")
    made.language_model.save_pretrained(tmp_path / "lm")
    local = ScaForConditionalGeneration.from_sam_text_pretrained(tmp_path / "sam", tmp_path / "lm", mixer_config=MIXER)
    local.save_pretrained(tmp_path / "mixer", include_base_models=False)
    HfApi(online.url).create_repo("org/of-a-folder")
    HfApi(online.url).upload_folder(repo_id="org/of-a-folder", folder_path=tmp_path / "mixer")
    with pytest.raises(ValueError, match=r"org/of-a-folder takes its sam from a folder on the machine"):
        load("org/of-a-folder", tmp_path / "new")
    with pytest.raises(ValueError, match=r"would name folders on this machine .*push"):
        local.push_to_hub("org/never-made", include_base_models=False)
    assert ("model", "org/never-made") not in online.store.repositories


def test_the_client_fetches_no_code_from_above_a_repository(mixer_only, online, tmp_path):
    config = json.loads(online.store.content(online.repository(mixer_only).resolve("main").files["config.json"]))
    config["auto_map"]["AutoConfig"] = "../escaped.ScaConfig"
    api = HfApi(online.url)
    api.create_repo("org/above")
    api.upload_file(repo_id="org/above", path_in_repo="config.json", path_or_fileobj=json.dumps(config).encode())
    with pytest.raises((OSError, ValueError)):
        AutoConfig.from_pretrained("org/above", trust_remote_code=True, cache_dir=tmp_path / "new")
    assert not list(tmp_path.rglob("*escaped*"))

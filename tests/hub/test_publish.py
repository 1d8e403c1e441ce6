"""`sca-hf publish`: what it refuses, what it uploads, and what a cut upload leaves."""

import json
import os
import random
import re
import subprocess
import sys

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from publishing import save_mixer, save_whole, upload_alone, upload_and_kill
from safetensors.torch import load_file, save_file

import sca_hf.hub.publish as publishing_module
from sca_hf.cli import main
from sca_hf.hub.publish import PublishError, check_folder, publish, staged_model
from sca_hf.testing import tiny_image, tiny_model


EVALUATION = {
    "n": 1234,
    "protocol": "scenes test, box prompts",
    "tokenizer": "PTB",
    "command": "sca-hf evaluate predictions.jsonl --json scores.json",
    "versions": {"sca-hf": "0.1.0"},
    "metrics": {"CIDEr-D": 1.2345678, "BLEU@4": 0.321, "mask mIoU": 0.9},
}


@pytest.fixture
def whole(tmp_path):
    return save_whole(tmp_path / "whole")


@pytest.fixture
def quick(monkeypatch):
    """Leave out the fresh process, which other tests here have: it takes seconds."""
    monkeypatch.setattr(publishing_module, "check_loads_alone", lambda folder: ["a caption"])


@pytest.fixture
def evaluation(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(EVALUATION))
    return path


def snippet_of(card):
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


def run_snippet(card, folder, hub):
    """Run a card's lines in a fresh process where this package cannot be imported, as a stranger would."""
    tiny_image(1, (200, 160)).save(folder / "image.png")
    (folder / "snippet.py").write_text("import sys; sys.modules['sca_hf'] = None\n" + snippet_of(card))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "snippet.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_the_command_publishes_what_a_stranger_can_run(online, whole, evaluation, tmp_path, capsys):
    (whole / "optimizer.pt").write_bytes(b"state")
    assert main(["publish", str(whole), "ann/told", "--evaluation", str(evaluation), "--debug"]) == 0
    said = capsys.readouterr().out
    repository = online.repository("ann/told")
    newest, made, first = repository.history()
    assert made.id in said and "left out optimizer.pt: not part of a saved model" in said
    assert newest.title == f"Describe {made.id[:12]}" and set(newest.files) - set(made.files) == {"README.md"}
    assert (
        set(first.files) < set(made.files) >= {"handler.py", "requirements.txt", "modeling_sca.py", "tokenizer.json"}
    )
    card = online.store.content(newest.files["README.md"]).decode()
    assert f'revision="{made.id}"' in snippet_of(card)
    captions = run_snippet(card, tmp_path, online)
    model, processor = publishing_module.ScaForConditionalGeneration, publishing_module.ScaProcessor
    inputs = processor.from_pretrained(whole)(
        tmp_path / "image.png", input_boxes=[[31, 25, 99, 103], [86, 62, 180, 155]]
    )
    expected = processor.from_pretrained(whole).batch_decode(model.from_pretrained(whole).generate(**inputs))
    assert captions == str(expected)


def test_the_card_has_the_numbers_of_the_files(online, quick, whole, evaluation):
    publish(whole, "ann/card", evaluations=[evaluation], api=HfApi(online.url))
    card = ModelCard.load("ann/card")
    card.validate()
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-text-to-text")
    results = {result.metric_name: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == EVALUATION["metrics"]
    assert all(result.dataset_args == {"regions": 1234} for result in results.values())
    assert results["CIDEr-D"].metric_args["command"] == EVALUATION["command"]
    model = tiny_model()
    trainable = model.num_parameters(only_trainable=True)
    assert f"| total |  | {trainable:,} | {model.num_parameters() - trainable:,} |" in card.text
    assert "1,234 regions" in card.text and "| CIDEr-D | 1.235 |" in card.text


def test_the_folder_is_left_as_it_was(online, quick, whole):
    """Weights are linked into the staging folder: what is written there must not reach them, nor anything else."""
    (whole / "requirements.txt").write_text("mine\n")
    (whole / "README.md").write_text("# Mine\n")
    before = {path: path.read_bytes() for path in whole.rglob("*")}
    done = publish(whole, "ann/untouched", api=HfApi(online.url))
    assert done.left_out == {"requirements.txt": "replaced by what the code needs"}
    assert {path: path.read_bytes() for path in whole.rglob("*")} == before
    assert not list(whole.parent.glob(".publish-*"))
    assert ModelCard.load("ann/untouched").text.strip() == "# Mine"


def test_publishing_again_changes_nothing(online, quick, whole):
    first = publish(whole, "ann/again", api=HfApi(online.url))
    sent = online.received
    second = publish(whole, "ann/again", api=HfApi(online.url))
    assert second.commit == first.commit and len(online.repository("ann/again").history()) == 3
    assert online.received - sent < 100_000


def test_weights_of_before_are_not_left_beside_the_new_ones(online, quick, tmp_path):
    sharded = tmp_path / "sharded"
    save_whole(sharded)
    (sharded / "model.safetensors").unlink()
    tiny_model().save_pretrained(sharded, max_shard_size="100KB")
    publish(sharded, "ann/shards", api=HfApi(online.url))
    shards = [name for name in online.repository("ann/shards").resolve("main").files if "-of-" in name]
    HfApi(online.url).upload_file(repo_id="ann/shards", path_in_repo="notes.md", path_or_fileobj=b"mine")
    publish(save_whole(tmp_path / "one"), "ann/shards", api=HfApi(online.url))
    files = set(online.repository("ann/shards").resolve("main").files)
    assert len(shards) > 1 and not files & {*shards, "model.safetensors.index.json"}
    assert {"model.safetensors", "notes.md"} <= files


@pytest.fixture
def base_models(online):
    for name, part in (("ann/the-sam", tiny_model().sam), ("ann/the-lm", tiny_model().language_model)):
        part.push_to_hub(name)
    HfApi(online.url).upload_file(
        repo_id="ann/the-lm", path_in_repo="README.md", path_or_fileobj=b"---\nlicense: mit\n---\n# an LM\n"
    )
    return "ann/the-sam", "ann/the-lm"


@pytest.mark.slow
def test_a_mixer_is_published_with_its_base_models_pinned_and_their_licences(online, base_models, tmp_path):
    done = publish(save_mixer(tmp_path / "mixer", *base_models), "ann/mixer", api=HfApi(online.url))
    card = ModelCard.load("ann/mixer")
    pins = {name: online.repository(name).resolve("main").id for name in base_models}
    assert card.data.base_model == list(base_models) and card.data.base_model_revisions == pins
    assert card.data.licenses == {"language_model": "mit"}
    assert (
        "| language model | frozen | mit |" in card.text and "| SAM | frozen | not stated by its author |" in card.text
    )
    assert all(f"`{name}` at `{commit}`" in card.text for name, commit in pins.items())
    files = online.repository("ann/mixer").resolve(done.commit).files
    assert files["model.safetensors"].size < 600_000 and len(done.captions) == 4
    with pytest.raises(PublishError, match="is whole and does not name the source"):
        publish(save_whole(tmp_path / "w"), "ann/never", kind="mixer", api=HfApi(online.url))
    publish_whole = staged_model(tmp_path / "mixer", "whole")
    with publish_whole as facts:
        assert facts.kind == "whole" and any(
            key.startswith("sam.") for key in load_file(facts.folder / "model.safetensors")
        )


def test_base_models_that_others_cannot_have_are_refused(online, base_models, tmp_path):
    for name, part in (("sam", tiny_model().sam), ("lm", tiny_model().language_model)):
        part.save_pretrained(tmp_path / name)
    api = HfApi(online.url)
    local = save_mixer(tmp_path / "local", tmp_path / "sam", tmp_path / "lm")
    with pytest.raises(PublishError, match="a folder that nobody else has: publish with --kind whole"):
        publish(local, "ann/never", api=api)
    mixer = save_mixer(tmp_path / "mixer", *base_models)
    config = json.loads((mixer / "config.json").read_text())
    for revision, message in (("main", "is not a commit"), ("e" * 40, "cannot be found")):
        config["base_model_repos"]["sam"]["revision"] = revision
        (mixer / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            publish(mixer, "ann/never", api=api)
    config["base_model_repos"]["sam"]["revision"] = online.repository("ann/the-sam").resolve("main").id
    (mixer / "config.json").write_text(json.dumps(config))
    online.repository("ann/the-sam").readers = {"ann"}
    with pytest.raises(PublishError, match="is private: others could not load"):
        publish(mixer, "ann/never", api=api)
    assert ("model", "ann/never") not in online.store.repositories


def test_the_bundled_model_can_be_published_by_its_name(online, quick):
    done = publish("sca-tiny", "ann/tiny", api=HfApi(online.url))
    files = online.repository("ann/tiny").resolve(done.commit).files
    assert {"model.safetensors", "modeling_sca.py", "handler.py"} <= set(files) and done.left_out == {}


def spoil_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["mixer.task_tokens.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


FAULTS = {
    "a link out of the folder": (lambda f: (f / "LICENSE").symlink_to("/etc/hostname"), "publish copies, not links"),
    "a handler of others": (lambda f: (f / "handler.py").write_text("print('run')"), "differs from this package's"),
    "changed code": (lambda f: (f / "losses_sca.py").open("a").write("\n# x"), "differs from this package's"),
    "code that is absent": (
        lambda f: (f / "validation_sca.py").unlink(),
        "is missing the code files validation_sca.py",
    ),
    "no processor": (lambda f: (f / "processor_config.json").unlink(), "has no processor"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
    "cut weights": (lambda f: os.truncate(f / "model.safetensors", 5000), "cannot be read"),
    "weights that are no numbers": (
        spoil_weights,
        r"mixer\.task_tokens\.weight holds values that are not finite numbers",
    ),
    "no configuration": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "another model": (lambda f: (f / "config.json").write_text('{"model_type": "gpt2"}'), "is a 'gpt2' model"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_must_not_be_published_is_refused_by_name(whole, fault):
    spoil, message = FAULTS[fault]
    check_folder(whole)
    spoil(whole)
    with pytest.raises(PublishError, match=message):
        check_folder(whole)


def test_a_bad_card_is_found_before_anything_is_uploaded(online, quick, whole, evaluation, tmp_path):
    template = tmp_path / "card.md"
    for text, message in (
        ("---\nlicense: {a: b}\n---\n# x", "is neither a name nor a list of names"),
        ("---\nlicense: MIT!\n---\n# x", "must be a lower-case name"),
        ("---\nlicense: mit\n---\n$price", "uses 'price'"),
        ("# no head", "must begin with metadata"),
    ):
        template.write_text(text)
        with pytest.raises(ValueError, match=message):
            publish(whole, "ann/never", template=template, api=HfApi(online.url))
    evaluation.write_text(json.dumps(EVALUATION | {"metrics": {"CIDEr-D": float("nan")}}))
    with pytest.raises(ValueError, match="not a number"):
        publish(whole, "ann/never", evaluations=[evaluation], api=HfApi(online.url))
    assert ("model", "ann/never") not in online.store.repositories


@pytest.mark.slow
def test_another_model_in_the_fresh_process_stops_it(online, whole, monkeypatch):
    monkeypatch.setattr(publishing_module, "describe_probe", lambda *a: {"ids": [[1]], "captions": [["other"]]})
    with pytest.raises(PublishError, match="instead of"):
        publish(whole, "ann/never", api=HfApi(online.url))
    assert ("model", "ann/never") not in online.store.repositories


@pytest.mark.slow
def test_a_cut_upload_shows_nothing_and_goes_on(online, tmp_path):
    """Ten times SIGKILL, each after a random number of bytes; then what a clean upload gives, history and all."""
    old = save_whole(tmp_path / "old")
    api = HfApi(online.url)
    with staged_model(save_whole(tmp_path / "new", seed=1)) as facts:

        def repository(name):
            """One that holds the old model; of the new one nothing is on the Hub."""
            api.create_repo(name)
            upload_alone(online.url, name, old)
            before = online.repository(name).resolve("main").id
            online.store.objects = {oid: kept for oid, kept in online.store.objects.items() if oid in known}
            return before

        api.create_repo("ann/old")
        upload_alone(online.url, "ann/old", old)
        known = set(online.store.objects)
        before = repository("ann/clean")
        start = online.received
        upload_alone(online.url, "ann/clean", facts.folder)
        total, clean = online.received - start, online.repository("ann/clean").resolve("main").id
        for number, after in enumerate(random.Random(7).sample(range(total), 10)):
            name = f"ann/cut-{number}"
            assert repository(name) == before
            assert upload_and_kill(online, name, facts.folder, after)
            assert online.repository(name).resolve("main").id in (before, clean)
            upload_alone(online.url, name, facts.folder)
            assert online.repository(name).resolve("main").id == clean
    assert not list(tmp_path.glob(".publish-*"))


HOME = "/home/ann/hospital"
KEY = "hf_" + "Ab1" * 11
# Files that no saved model has: none leaves, each is named.
STRANGERS = {
    "token.txt": KEY,
    "passwords.txt": "ann: secret",
    "notes.md": "to do",
    "patient-1.png": "a picture",
    "patients/two.JPG": "a picture",
    "optimizer.safetensors": "a state",
    "optimizer.pt": "a state",
    "rng_state.pth": "a state",
    "training_args.bin": "a pickle",
    "checkpoint-5/trainer_state.json": "{}",
    "adapter_config.json": "{}",
    "extra.pkl": "a pickle",
    "evil.py": "print('run')",
    "modeling_sca.py.orig": "print('run')",
    ".env": f"HF_TOKEN={KEY}",
    ".git/config": "x",
    "__pycache__/x.pyc": "x",
    "runs/events.out": "x",
    "model-00001-of-00002.safetensors": "not of this model",
    "run.sh": "rm -r",
    "language_model_adapter/notes.txt": "to do",
    "wandb/latest\nrun.log": "x",
}
# What is shortened in files that a saved model has.
LOCAL = {
    "config.json": {"_name_or_path": f"{HOME}/base"},
    "generation_config.json": {"note": [f"file://{HOME}/x y/z"]},
    "tokenizer_config.json": {"name_or_path": "C:\\Users\\ann\\hospital\\tok", "vocab_file": "~/hospital/vocab"},
    "metrics.json": {f"{HOME}/val": 1.5, "command": f"sca-hf evaluate {HOME}/p.jsonl --to=/Users/ann"},
    "evaluation.json": {
        "share": "\\\\hospital\\patients\\p.jsonl",
        "up": "../../home/ann/x",
        "us": "https://a.org/b/c",
    },
    "recipe.yaml": f"output: {HOME}/the files/run\ndata:\n- path: '{HOME}/ann.json' # in {HOME}/b\nrate: 1e-4\n",
    "README.md": f"# Mine\nTrained on [these]({HOME}/scans), see https://huggingface.co/ann/x and `{HOME}/a b/c`.\n",
    "LICENSE": f"as in {HOME}/LICENSE\n",
}


def test_a_folder_full_of_private_things_is_published_without_any(online, quick, whole):
    for name, content in STRANGERS.items():
        (whole / name).parent.mkdir(exist_ok=True)
        (whole / name).write_text(content)
    (whole / "link.txt").symlink_to("/etc/hostname")
    for name, content in LOCAL.items():
        if isinstance(content, dict):
            known = json.loads((whole / name).read_text()) if (whole / name).exists() else {}
            content = json.dumps(known | content)
        (whole / name).write_text(content)
    done = publish(whole, "ann/private", api=HfApi(online.url), include=["notes.md"])
    left = {*STRANGERS, "link.txt"} - {"notes.md"}
    assert set(done.left_out) == left and f"left out {len(left)} files" in str(done)
    assert all(f"left out {name.encode('unicode_escape').decode()}" in str(done).replace("'", "") for name in left)
    assert set(done.cleaned) == set(LOCAL) - {"README.md"}
    files = online.repository("ann/private").resolve("main").files
    assert not left & set(files) and {"notes.md", *LOCAL} <= set(files)
    held = {name: online.store.content(file).decode(errors="replace") for name, file in files.items()}
    texts = {name: text for name, text in held.items() if not name.endswith((".py", ".safetensors"))}
    assert not [name for name, text in texts.items() if re.search(r"hospital|/home|Users|ann/hos|Ab1Ab1", text)]
    assert json.loads(held["evaluation.json"])["us"] == "https://a.org/b/c"
    assert "https://huggingface.co/ann/x" in held["README.md"] and "rate: 1e-4" in held["recipe.yaml"]
    assert json.loads(held["tokenizer.json"]) == json.loads((whole / "tokenizer.json").read_text())


SECRETS = {
    "config.json": {"auth_token": "abc-def-ghi"},
    "generation_config.json": {"note": KEY},
    "metrics.json": {"wandb": {"password": "tulip"}},
    "evaluation.json": {"url": "https://ann:tulip@host.org/x"},
    "tokenizer.json": {"note": "-----BEGIN OPENSSH PRIVATE KEY-----"},
    "recipe.yaml": "hub:\n  token: a1b2c3d4e5f6g7h8\n",
    "LICENSE": "AKIAABCDEFGHIJKLMNOP",
    "NOTICE": "Authorization: Bearer abcdef0123456789abcd",
    "notes.md": "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG",
}


def test_secrets_in_what_would_be_published_are_refused_each_by_its_file(online, quick, whole):
    for name, content in SECRETS.items():
        if isinstance(content, dict):
            known = json.loads((whole / name).read_text()) if (whole / name).exists() else {}
            content = json.dumps(known | content)
        (whole / name).write_text(content)
    weights = load_file(whole / "model.safetensors")
    save_file(weights, whole / "model.safetensors", metadata={"format": "pt", "from": f"{HOME}/run"})
    with pytest.raises(PublishError) as refused:
        publish(whole, "ann/never", api=HfApi(online.url), include=["*.md"])
    told = str(refused.value)
    assert all(f"{whole / name}: a" in told for name in [*SECRETS, "model.safetensors"])
    assert "tulip" not in told and KEY not in told
    assert ("model", "ann/never") not in online.store.repositories


def test_a_secret_in_a_card_is_refused(online, quick, whole, tmp_path):
    template = tmp_path / "card.md"
    template.write_text(f"---\nlicense: mit\n---\n# Log in with {KEY}\n")
    with pytest.raises(PublishError, match=r"the card of .*: a token of the Hub"):
        publish(whole, "ann/never", template=template, api=HfApi(online.url))
    assert ("model", "ann/never") not in online.store.repositories


@pytest.mark.parametrize("name", ["evil.py", "extra.pkl", "optimizer.safetensors", "nothing.md", ".env", "run.sh"])
def test_what_could_be_loaded_or_run_cannot_be_included(whole, name):
    if name != "nothing.md":
        (whole / name).write_text("x")
    with pytest.raises(PublishError, match=r"cannot be included|has no file"):
        check_folder(whole, include=[name])


OLD = ["evil.py", "modeling_old.py", "pytorch_model.bin", "x/optimizer.pkl", "model.bin.index.json", "tf_model.h5"]
OLD += ["adapter_config.json", "adapter_model.safetensors", "v1/model.safetensors", "custom_generate/generate.py"]
OLD += ["vocab.txt", "chat_template.json", "model.onnx", "flax_model.msgpack", "language_model_adapter/x.safetensors"]


def test_what_an_older_repository_would_load_or_run_is_gone_in_the_same_commit(online, quick, whole, capsys):
    api, kept = HfApi(online.url), ["notes.md", "samples/a.png", "LICENSE"]
    api.create_repo("ann/old-files")
    for name in [*OLD, *kept]:
        api.upload_file(repo_id="ann/old-files", path_in_repo=name, path_or_fileobj=b"old")
    said = []
    done = publish(whole, "ann/old-files", api=api, say=said.append)
    files = online.repository("ann/old-files").resolve(done.commit).files
    assert not set(OLD) & set(files) and set(kept) <= set(files)
    assert online.repository("ann/old-files").resolve(done.commit).title == "Upload model"
    assert all(any(name in text for text in said) for name in OLD)

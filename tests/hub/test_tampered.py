"""Tampered and broken repositories: each is refused by a message of its own; nothing runs, nothing is written."""

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from publishing import save_mixer, save_whole
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.modeling.adapters_sca import load_adapter
from sca_hf.testing import tiny_model, tiny_text_config


CHECK = Path(__file__).with_name("tampered_check.py")
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    save_whole(folder / "whole")
    model = tiny_model()
    model.sam.save_pretrained(folder / "sam")
    model.language_model.save_pretrained(folder / "lm")
    save_mixer(folder / "mixer", folder / "sam", folder / "lm")
    return folder


class Touch:
    """What a hostile pickle does when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def config(**changes):
    """A change of config.json: fields by name, nested ones with a double underscore."""

    def change(folder):
        content = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            *path, last = name.split("__")
            inner = content
            for part in path:
                inner = inner[part]
            inner[last] = value
        (folder / "config.json").write_text(json.dumps(content))

    return change


def base_models(**changes):
    """A change of where the mixer's SAM comes from."""

    def change(folder):
        content = json.loads((folder / "config.json").read_text())
        source = {"repo_id": "org/sam", "revision": "a" * 40, **changes}
        content["base_model_repos"]["sam"] = {key: value for key, value in source.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(content))

    return change


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def sharded(shard):
    def change(folder):
        names = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}))

    return change


def weights(edit):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def pickled(name):
    def change(folder):
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Touch(folder.parent / "RAN")))

    return change


def processor(image_processor=None, **changes):
    def change(folder):
        content = json.loads((folder / "processor_config.json").read_text())
        content["image_processor"] |= image_processor or {}
        (folder / "processor_config.json").write_text(json.dumps(content | changes))

    return change


def huge_header(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + content[8:])


BIG = {"longest_edge": 10**9}
# What is changed, in which of the two repositories, and what is said.
WHOLE = {
    "code outside the repository": (config(auto_map__AutoModel="../RAN.Model"), r"auto_map\['AutoModel'\]"),
    "code of another repository": (config(auto_map__AutoModel="evil/x--run.Model"), "a file of the same repository"),
    "a pipeline outside the repository": (
        config(custom_pipelines={"region-captioning": {"impl": "../RAN.Pipe"}}),
        r"custom_pipelines\['region-captioning'\]",
    ),
    "an auto_map that is none": (
        config(auto_map=["x"]),
        "must be a mapping|does not recognize",
    ),
    "not a number": (config(label_smoothing=float("nan")), "label_smoothing .* is not a number"),
    "not a number, deep inside": (
        config(sam_config__vision_config__layer_norm_eps=float("nan")),
        "sam_config.vision_config.layer_norm_eps .* is not a number",
    ),
    "a million layers": (
        config(mixer_config__num_hidden_layers=10**6),
        "mixer_config.num_hidden_layers .* is 1000000",
    ),
    "an endless vocabulary": (config(text_config__vocab_size=2**40), "text_config.vocab_size .* no model has more"),
    "a negative size": (config(mixer_config__mlp_dim=-64), "mixer_config.mlp_dim .* is -64"),
    "more parameters than there are weights": (
        config(sam_config__vision_config__hidden_size=4096, sam_config__vision_config__num_hidden_layers=64),
        r"describes [\d,]+ parameters, but its weight files hold",
    ),
    "a part that is no configuration": (config(sam_config="../sam"), "sam_config must be a configuration or a dict"),
    "a SAM that is none": (config(sam_config__model_type="gpt2"), "sam_config has model_type 'gpt2'"),
    "newer than this code": (config(format_version=3), "has format 3, but this code supports formats up to 2: update"),
    "a format that is none": (config(format_version="one"), "format_version 'one', expected a whole number"),
    "a configuration that is no JSON": (
        text("config.json", "{'a': __import__('os')}"),
        "valid JSON|property name",
    ),
    "weights in a folder outside": (sharded("../outside.safetensors"), "weights must be .safetensors files next to"),
    "weights in pickles": (sharded("model.bin"), "weights must be .safetensors files next to"),
    "an index that is none": (
        lambda f: [(f / "model.safetensors").unlink(), (f / INDEX).write_text('{"weight_map": [1]}')],
        "is not an index of weight files",
    ),
    "cut weights": (lambda f: os.truncate(f / "model.safetensors", 9000), "(?i)header|incomplete|invalid"),
    "a header without end": (huge_header, "(?i)header"),
    "a pickle for weights": (pickled("pytorch_model.bin"), "no file named model.safetensors"),
    "a pickle under the weights' name": (pickled("model.safetensors"), "(?i)header"),
    "missing weights": (weights(lambda w: w.pop("mixer.task_tokens.weight")), "missing: mixer.task_tokens.weight"),
    "foreign weights": (weights(lambda w: w.update(evil=torch.ones(1))), "unexpected: evil"),
    "weights of another shape": (
        weights(lambda w: w.update({"mixer.task_tokens.weight": torch.ones(3, 3)})),
        "mis-shaped: mixer.task_tokens.weight",
    ),
    "weights that are not numbers": (
        weights(lambda w: w["mixer.task_tokens.weight"].view(-1)[:1].fill_(float("nan"))),
        "mixer.task_tokens.weight of .* holds infinite values or NaN",
    ),
    "infinite weights of a base model": (
        weights(lambda w: w["language_model.transformer.h.0.ln_1.weight"].fill_(float("-inf"))),
        "language_model.transformer.h.0.ln_1.weight of .* holds infinite values or NaN",
    ),
    **{
        f"weights of {dtype}": (
            weights(lambda w, d=dtype: w.update({"mixer.task_tokens.weight": w["mixer.task_tokens.weight"].to(d)})),
            f"mixer.task_tokens.weight of .* holds {dtype}, expected floating-point numbers",
        )
        for dtype in (torch.int64, torch.int8, torch.bool, torch.complex64)
    },
    **{
        f"{name} of {value}": (config(**{field: value}), f"{name} of the configuration is {value!r}")
        for name, field, value in (
            ("layer_norm_eps", "mixer_config__layer_norm_eps", -1e-6),
            ("layer_norm_eps", "sam_config__vision_config__layer_norm_eps", float("inf")),
            ("layer_norm_epsilon", "text_config__layer_norm_epsilon", "1e-5"),
        )
    },
    **{
        f"{name} of {value}": (processor(image_processor={name: value}), f"the image processor's {name} is")
        for name, value in (
            ("image_mean", [0.5, float("nan"), 0.5]),
            ("image_mean", "mean"),
            ("image_std", [0.2, 0.0, 0.2]),
            ("image_std", [-0.2, 0.2, 0.2]),
            ("rescale_factor", float("inf")),
            ("rescale_factor", 0),
        )
    },
    **{
        f"{field} of {value!r}": (config(**{field: value}), said)
        for field, value, said in (
            ("text_config__n_head", 0, "text_config.n_head of the configuration is 0, expected at least 1"),
            ("text_config__n_embd", "32", "text_config.n_embd of the configuration is '32', expected a whole number"),
            ("text_config__n_layer", 1.5, "text_config.n_layer of the configuration is 1.5, expected a whole"),
            ("text_config__attn_pdrop", "0.1", "text_config.attn_pdrop of the configuration is '0.1', expected"),
            ("text_config__activation_function", 7, "activation_function"),
            ("sam_config__vision_config__patch_size", 0, "patch_size of the configuration is 0, expected at least"),
            ("sam_config__vision_config__image_size", "48", "image_size of the configuration is '48', expected"),
            ("sam_config__vision_config__num_attention_heads", 0, "num_attention_heads of the configuration is 0"),
            ("mixer_config__attention_downsample_rate", 0, "attention_downsample_rate of the configuration is 0"),
            ("mixer_config__hidden_act", None, "mixer_config|the configuration describes"),
        )
    },
    "a caption length that is a text": (processor(max_caption_length="20"), "max_caption_length is '20'"),
    "a task that is a number": (processor(tasks=[1, 2]), "tasks are a list of at least one name"),
    "an image size without end": (processor(image_processor={"size": BIG}), "longest_edge is 1000000000"),
    "a processor newer than this code": (processor(format_version=2), "the processor's settings have format 2"),
}
MIXER = {
    "a base that is a path": (base_models(repo_id="../../etc"), "is not a repository id"),
    "a base in a folder above": (base_models(subfolder="../../secret"), "points outside the repository"),
    "a base that is not pinned": (base_models(revision=None), "is not pinned: it has no revision"),
    "a base with code": (base_models(trust_remote_code="yes"), r"unknown fields \['trust_remote_code'\]"),
    "a base that is two": (base_models(path="/etc"), "either a repo_id or a path"),
    "a base that is missing": (config(base_model_repos={"sam": {}}), "must say where 'sam' and 'language_model'"),
    "base models that are no texts": (base_models(repo_id=["org/sam"]), "must be a mapping of texts"),
}
ALL = {
    **{name: ("whole", *rest) for name, rest in WHOLE.items()},
    **{n: ("mixer", *rest) for n, rest in MIXER.items()},
}


def make(originals, folder, name):
    """A tampered copy, beside a module that shows by a file if it is ever run."""
    kind, change, _ = ALL[name]
    shutil.copytree(originals / kind, folder / "repository")
    (folder / "RAN.py").write_text(f"open({str(folder / 'RAN')!r}, 'w')\n")
    change(folder / "repository")
    return folder / "repository"


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ALL)
def test_tampered_repositories_are_refused(originals, tmp_path, name):
    repository = make(originals, tmp_path, name)
    before = listing(tmp_path)
    with pytest.raises(Exception, match=ALL[name][2]) as error:
        ScaProcessor.from_pretrained(repository)
        ScaForConditionalGeneration.from_pretrained(repository)
    assert len(str(error.value)) > 10
    assert listing(tmp_path) == before


@pytest.mark.parametrize("reference", ["../RAN.Config", "evil/x--run.Config"])
def test_with_the_package_not_even_the_configuration_class_is_the_repositorys(originals, tmp_path, reference):
    """Without it, trust_remote_code has the library run that class before any code of ours: hence pinned revisions."""
    shutil.copytree(originals / "whole", tmp_path / "repository")
    config(auto_map__AutoConfig=reference)(tmp_path / "repository")
    with pytest.raises(ValueError, match=r"auto_map\['AutoConfig'\]"):
        ScaForConditionalGeneration.from_pretrained(tmp_path / "repository")


def test_every_message_is_its_own():
    assert len(ALL) >= 30 and len({pattern for *_, pattern in ALL.values()}) >= 25


@pytest.mark.slow
def test_they_are_refused_without_the_package_too(originals, tmp_path):
    """Three lines with trust_remote_code: the code is genuine, what it is told is not."""
    for number, name in enumerate(ALL):
        (tmp_path / str(number)).mkdir()
        make(originals, tmp_path / str(number), name)
    before = listing(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path.parent / "home-of-tampered"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(CHECK), *(str(tmp_path / str(number) / "repository") for number in range(len(ALL)))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    messages = json.loads(done.stdout.splitlines()[-1])
    assert [name for name, message in zip(ALL, messages, strict=True) if message is None] == []
    said = dict(zip(ALL, messages, strict=True))
    assert {name: message for name, message in said.items() if not re.search(ALL[name][2], message)} == {}
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"peft_type": "PREFIX_TUNING"}', "does not describe a LoRA adapter"),
        ('{"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "RAN"}', "has megatron_config"),
        ('{"peft_type": "LORA", "auto_mapping": {"parent_library": "RAN"}}', "has auto_mapping"),
        ("[1", "is not JSON"),
    ],
)
def test_adapters_that_would_import_are_refused(tmp_path, content, message):
    (tmp_path / "language_model_adapter").mkdir()
    (tmp_path / "language_model_adapter" / "adapter_config.json").write_text(content)
    (tmp_path / "language_model_adapter" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        load_adapter(GPT2LMHeadModel(tiny_text_config()), tmp_path, {})

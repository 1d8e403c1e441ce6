"""`--revision`: every door loads the state of a repository that was asked for."""

import json

import pytest
import torch
from huggingface_hub import HfApi

from sca_hf import ScaProcessor
from sca_hf.captioning import load
from sca_hf.cli import main
from sca_hf.evaluation.captioners.sca import ScaCaptioner
from sca_hf.hub.info import read_config
from sca_hf.serving import Engine
from sca_hf.testing import tiny_config, tiny_image, tiny_model, tiny_tokenizer


@pytest.fixture
def tagged(online):
    """`org/two`, with one model at the tag v1 and another at main."""
    made = {}
    for revision, seed in (("v1", 1), ("main", 2)):
        made[revision] = tiny_model(seed=seed)
        made[revision].push_to_hub("org/two")
        ScaProcessor.from_config(tiny_config(), tiny_tokenizer()).push_to_hub("org/two")
        if revision == "v1":
            HfApi(online.url).create_tag("org/two", tag="v1")
    return made


def test_every_door_loads_the_state_that_was_asked_for(tagged, online, tmp_path, capsys):
    def weight(model):
        return next(model.mixer.parameters())

    engine = Engine(["org/two", "sca-tiny"], "cpu", revision="v1")
    captioner = ScaCaptioner.load("org/two", revision="v1")
    for model in (load("org/two", "cpu", revision="v1")[0], engine.model()[0], captioner.model):
        assert torch.equal(weight(model), weight(tagged["v1"]))
    engine.close()
    assert torch.equal(weight(load("org/two", "cpu")[0]), weight(tagged["main"]))
    assert captioner.source == f"org/two@{online.repository('org/two').resolve('v1').id}"
    assert read_config("org/two", "v1").model_type
    with pytest.raises(OSError, match="v9"):
        read_config("org/two", "v9")
    tiny_image(1, (40, 30)).save(tmp_path / "a.png")
    said = []
    for revision in ("v1", "main"):
        options = ["--model", "org/two", "--revision", revision, "--device", "cpu", "--json", "-"]
        assert main(["caption", str(tmp_path / "a.png"), *options]) == 0
        said.append(json.loads(capsys.readouterr().out)[0]["score"])
    assert said[0] != said[1]
    assert main(["caption", str(tmp_path / "a.png"), "--model", "org/two", "--revision", "v9", "--device", "cpu"]) == 2
    assert "v9" in capsys.readouterr().err


def test_a_revision_is_of_one_repository():
    with pytest.raises(
        ValueError, match="the revision v1 applies to one repository, but 0 of the models are repositories"
    ):
        Engine(["sca-tiny"], revision="v1")
    with pytest.raises(ValueError, match="but 2 of the models are repositories"):
        Engine(["org/a", "org/b"], revision="v1")

"""A processor that is not its model's is refused by every door that loads both, before a word is said."""

import json

import pytest
from test_tampered import processor

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.captioning import load
from sca_hf.cli import main
from sca_hf.evaluation.captioners import load_captioner
from sca_hf.modeling.pipeline_sca import RegionCaptioningPipeline
from sca_hf.serving.engine import Engine
from sca_hf.testing import save_tiny_model, tiny_image


@pytest.fixture
def saved(tmp_path):
    save_tiny_model(tmp_path / "model")
    return tmp_path / "model"


def permuted(folder):
    """The words of a tokenizer in another order: every id says another word."""
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    names = list(words)
    content["model"]["vocab"] = dict(zip(names, [words[name] for name in names[1:] + names[:1]], strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(content))


CHANGES = {
    "tasks swapped": (processor(tasks=["caption", "recognition"]), "the processor's tasks is .* but the model needs"),
    "another task": (processor(tasks=["caption"]), "the processor's tasks is"),
    "another size": (processor({"size": {"longest_edge": 48}}), "the processor's size is"),
    "another padding": (processor({"pad_size": {"height": 96, "width": 96}}), "the processor's pad_size is"),
    "another mask size": (processor(mask_size=20), "the processor's mask_size is"),
    "words permuted": (permuted, "the tokenizer has other words or ids"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_processor_of_another_model_is_refused(saved, name):
    load(str(saved), "cpu")
    change, words = CHANGES[name]
    change(saved)
    with pytest.raises(ValueError, match=words):
        load(str(saved), "cpu")


def run_pipeline(folder):
    model, processor = ScaForConditionalGeneration.from_pretrained(folder), ScaProcessor.from_pretrained(folder)
    RegionCaptioningPipeline(model, processor=processor)


DOORS = {
    "load": lambda folder: load(str(folder)),
    "pipeline": run_pipeline,
    "captioner": lambda folder: load_captioner("sca", "cpu", model=str(folder)),
    "server and page": lambda folder: Engine([str(folder)], "cpu").model(),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_that_loads_both_refuses_it(saved, door):
    DOORS[door](saved)
    CHANGES["tasks swapped"][0](saved)
    with pytest.raises(ValueError, match="the processor's tasks is"):
        DOORS[door](saved)


def test_a_changed_tokenizer_that_is_saved_with_its_processor_loads(saved):
    processor = ScaProcessor.from_pretrained(saved)
    processor.tokenizer.add_tokens(["<new>"])
    processor.save_pretrained(saved)
    assert len(ScaProcessor.from_pretrained(saved).tokenizer) == len(processor.tokenizer)


def test_commands_say_it_in_words(saved, tmp_path, capsys):
    CHANGES["tasks swapped"][0](saved)
    tiny_image().save(tmp_path / "one.png")
    assert main(["caption", str(tmp_path / "one.png"), "--model", str(saved)]) == 2
    assert "it is another model's processor" in capsys.readouterr().err

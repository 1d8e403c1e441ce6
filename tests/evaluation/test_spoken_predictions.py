"""Predictions in a language: asked for in it, compared with references in it alone, written and read with its tag."""

import json

import pytest

from sca_hf.cli import main
from sca_hf.data.loading import load_regions
from sca_hf.evaluation.captioners import ScaCaptioner
from sca_hf.evaluation.predict import PredictSettings, predict, write_for_tool
from sca_hf.evaluation.predictions import PredictionError, PredictionRecord, read_predictions
from sca_hf.evaluation.protocols import PROTOCOLS, ProtocolError, check_protocol
from sca_hf.processing.processing_sca import ScaProcessor
from sca_hf.testing import tiny_image
from sca_hf.training import add_languages


SAID = [
    [("a ring", "en"), ("ein Ring", "de"), ("ein Kreis", "de-AT")],
    [("a star", "en"), ("星", "zh-Hans"), ("a big star", None)],
    [("ein Stern", "de")],
]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two pictures: the second has a caption in German alone."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    regions = [
        {"box": [3, 3, 40, 40], "captions": [{"text": text, "language": tag} if tag else text for text, tag in said]}
        for said in SAID
    ]
    rows = [{"image": "0.png", "regions": regions[:2]}, {"image": "1.png", "regions": regions[2:]}]
    for number in (0, 1):
        tiny_image(number).save(tmp_path / f"{number}.png")
    (tmp_path / "regions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"format": "jsonl", "path": str(tmp_path / "regions.jsonl")}


@pytest.fixture
def captioner(model, tokenizer):
    add_languages(model, ["en", "de", "zh"])
    processor = ScaProcessor.from_config(model.config, tokenizer)
    return ScaCaptioner(model, processor, {"max_new_tokens": 4}, "tiny", "tiny")


def predicted(captioner, data, output, **settings):
    return read_predictions(
        predict(captioner, data, output, PredictSettings(**settings), progress=False, num_workers=0)
    )


def asked_of(captioner, monkeypatch):
    """The tasks that the language model is asked for."""
    asked, prefix = [], type(captioner.model.mixer).prefix

    def heard(self, queries, task_ids):
        asked.extend(self.config.tasks[i] for i in task_ids.flatten())
        return prefix(self, queries, task_ids)

    monkeypatch.setattr(type(captioner.model.mixer), "prefix", heard)
    return asked


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".json"])
def test_only_references_in_the_asked_language_count(captioner, data, tmp_path, monkeypatch, caplog, suffix):
    asked = asked_of(captioner, monkeypatch)
    german = predicted(captioner, data, tmp_path / f"german{suffix}", language="DE")
    assert [record.references for record in german] == [["ein Ring", "ein Kreis"], ["ein Stern"]]
    assert {record.language for record in german} == {"de"} and set(asked) == {"caption:de"}
    assert "1 of 3 regions have no caption in de and are left out" in caplog.text
    chinese = predicted(captioner, data, tmp_path / f"chinese{suffix}", language="zh")
    assert [(record.references, record.id[-2:]) for record in chinese] == [(["星"], "/1")]
    with pytest.raises(
        ValueError, match=r"language is 'fr', but captions of these data are in de, de-AT, en, zh-Hans"
    ):
        predicted(captioner, data, tmp_path / f"french{suffix}", language="fr")


def test_the_language_of_the_captioner_counts_too_and_several_are_refused(captioner, data, tmp_path, caplog):
    captioner.language = "de"
    own = predicted(captioner, data, tmp_path / "own.jsonl")
    assert [record.references for record in own] == [["ein Ring", "ein Kreis"], ["ein Stern"]]
    assert {record.language for record in own} == {"de"}
    with pytest.raises(ValueError, match="language is 'en,de', expected a tag"):
        PredictSettings(language="en,de")
    with pytest.raises(ValueError, match="language is 'en,de', expected a tag"):
        ScaCaptioner(captioner.model, captioner.processor, language="en,de")
    captioner.language = None
    (every, _, _) = predicted(captioner, data, tmp_path / "all.jsonl")
    assert every.language is None and every.references == ["a ring", "ein Ring", "ein Kreis"]
    assert "captions are in de, de-AT, en, zh-Hans; each region is compared with all of its own" in caplog.text


def test_data_that_say_no_language_are_taken_to_be_in_the_asked_one(captioner, data, tmp_path):
    row = {"image": "0.png", "regions": [{"box": [3, 3, 40, 40], "captions": ["ein Ring"]}]}
    (tmp_path / "plain.jsonl").write_text(json.dumps(row))
    plain = {"format": "jsonl", "path": str(tmp_path / "plain.jsonl")}
    (record,) = predicted(captioner, plain, tmp_path / "said.jsonl", language="de")
    assert (record.references, record.language) == (["ein Ring"], "de")


def test_what_was_said_goes_to_a_tool_in_its_language(captioner, data, tmp_path):
    predicted(captioner, data, tmp_path / "said.jsonl", language="zh")
    write_for_tool(tmp_path / "said.jsonl", data, tmp_path / "cvat", "cvat")
    ((region,),) = [row["regions"] for row in load_regions("cvat", root=tmp_path / "cvat")]
    assert region["languages"] == ["zh"]


def test_the_command_asks_for_a_language(captioner, data, tmp_path, capsys):
    captioner.model.save_pretrained(tmp_path / "model")
    captioner.processor.save_pretrained(tmp_path / "model")
    command = ["predict", "--model", str(tmp_path / "model"), "--device", "cpu", "--max-new-tokens", "4", "--quiet"]
    command += ["--data", f"jsonl:path={data['path']}", "--num-workers", "0"]
    assert main([*command, "--output", str(tmp_path / "a.jsonl"), "--language", "de-AT"]) in (0, None)
    assert {record.language for record in read_predictions(tmp_path / "a.jsonl")} == {"de-AT"}
    assert main([*command, "--output", str(tmp_path / "b.jsonl"), "--language", "german"]) == 2
    assert "expected a tag of BCP 47" in capsys.readouterr().err


def test_a_record_whose_language_is_none_is_refused():
    assert PredictionRecord(["a"], ["b"], id="1", language="PT_br").language == "pt-BR"
    with pytest.raises(PredictionError, match="record 1: language is 'german'"):
        PredictionRecord(["a"], ["b"], id="1", language="german")


@pytest.mark.parametrize(("name", "tag"), [("hindi", "hi"), ("bengali", "bn"), ("malayalam", "ml"), ("hausa", "ha")])
def test_translations_of_visual_genome_have_protocols_in_their_language(name, tag):
    for split, count in (("dev", 998), ("test", 1_595), ("challenge", 1_400)):
        settings = PredictSettings(protocol=f"{name}-vg-{split}")
        assert settings.language == tag and f"language={tag},split={split}" in PROTOCOLS[settings.protocol].data
        said = [PredictionRecord(["x"], ["y"], image_id=str(i), region_id="1", language=tag) for i in range(count)]
        assert check_protocol(settings.protocol, said).regions == count
    with pytest.raises(ProtocolError, match=rf"{name}-vg-dev has captions in {tag}; record 0/1 is in de"):
        check_protocol(f"{name}-vg-dev", [PredictionRecord(["x"], ["y"], image_id="0", region_id="1", language="de")])
    with pytest.raises(ValueError, match=f"{name}-vg-dev has captions in {tag}, not in de"):
        PredictSettings(protocol=f"{name}-vg-dev", language="de")

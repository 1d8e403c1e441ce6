"""Names are scored as names: what decides it, what leads, which regions are the worst; captions stay as they are."""

import pytest

from sca_hf.cli import main
from sca_hf.evaluation.naming import NAME_METRICS, NAMES_NOTE, are_names
from sca_hf.evaluation.predictions import PredictionRecord, write_predictions
from sca_hf.evaluation.report import build_contents
from sca_hf.evaluation.scoring import DEFAULT_METRICS, Bootstrap, score_file, score_records


def said(pairs, **fields):
    """Records of (truth, what was said)."""
    return [
        PredictionRecord(id=str(k), references=[truth], candidates=[caption], **fields)
        for k, (truth, caption) in enumerate(pairs)
    ]


# Six ships, five of them named; two anchors, one named; one lighthouse, not named: accuracy 6/9, macro recall 4/9.
BOATS = [("ship", "ship")] * 5 + [("ship", "anchor")] + [("anchor", "Anchor."), ("anchor", "ship"), ("lighthouse", "")]
ACCURACY, RECALL = 6 / 9, (5 / 6 + 1 / 2 + 0) / 3


@pytest.mark.parametrize(
    ("references", "fields", "names"),
    [
        (["traffic light"], {"category": "traffic_light"}, True),
        (["person with a hard hat and a vest"], {"category": "Person with a hard hat and a vest"}, True),
        (["small striped red ring"], {"task": "recognition"}, True),
        (["hair drier"], {}, True),
        (["ship", "Ship"], {}, True),
        (["a ship"], {}, False),
        (["ship", "the white one"], {}, False),
        (["ship that leaves harbor"], {}, False),
        (["red ship"], {"category": "ship"}, False),
        (["ship", "a ship at sea"], {"category": "ship"}, False),
        (["一只红色的猫坐在垫子上"], {}, False),
        (["猫"], {"category": "猫"}, True),
        (["!"], {}, False),
    ],
)
def test_names_are_known_from_the_data_or_by_their_length(references, fields, names):
    record = PredictionRecord(id="x", references=references, candidates=["ship"], **fields)
    assert are_names([record]) is names
    caption = PredictionRecord(id="y", references=["a ship that leaves the harbor"], candidates=["ship"])
    assert not are_names([record, caption]) and not are_names([])


def test_accuracy_and_macro_recall_lead_the_scores_of_names():
    evaluation = score_records(said(BOATS))
    assert tuple(evaluation.metrics) == (*NAME_METRICS, *DEFAULT_METRICS)
    assert list(evaluation.metrics.values())[:2] == pytest.approx([ACCURACY, RECALL])
    assert evaluation.notes["names"] == NAMES_NOTE and "\n" not in NAMES_NOTE
    right = score_records(said([(truth, truth) for truth, _ in BOATS]))
    assert right.metrics["category-macro-recall"] == 1 and right.metrics["CIDEr-D"] == pytest.approx(2.5)
    drawn = evaluation.intervals(200)["category-macro-recall"]
    assert 0 <= drawn.low < RECALL < drawn.high <= 1


def test_captions_are_scored_as_before_and_metrics_that_are_asked_for_keep_their_order():
    captions = score_records(said([("a ship that leaves the harbor", "a ship")], category="ship"))
    assert tuple(captions.metrics) == DEFAULT_METRICS and captions.notes == {"cider_df": "corpus"}
    asked = score_records(said(BOATS), ["BLEU@1", "category-accuracy"])
    assert list(asked.metrics) == ["BLEU@1", "category-accuracy"] and "names" not in asked.notes


def test_files_of_which_one_knows_its_classes_are_compared_by_what_both_have(tmp_path, capsys):
    truth = "person with a hard hat"
    write_predictions(said([(truth, truth), (truth, "person")], category=truth), tmp_path / "a.jsonl")
    write_predictions(said([(truth, truth), (truth, truth)]), tmp_path / "b.jsonl")
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert main(["compare", *paths, "--resamples", "20"]) == 0
    assert main(["report", *reversed(paths), "--output", str(tmp_path / "out"), "--resamples", "20"]) == 0
    assert "CIDEr-D" in capsys.readouterr().out


def test_the_terminal_says_why_cider_is_low_under_accuracy(tmp_path, capsys):
    write_predictions(said(BOATS), tmp_path / "p.jsonl")
    assert main(["evaluate", str(tmp_path / "p.jsonl"), "--resamples", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["category-accuracy", "category-macro-recall", "CIDEr-D"]
    assert lines[2].endswith("0.6667") and lines[-1] == NAMES_NOTE


def test_worst_regions_are_wrong_ones_first_of_the_class_that_is_known_least(tmp_path):
    write_predictions(said(BOATS), tmp_path / "p.jsonl")
    none = Bootstrap(resamples=0)
    contents = build_contents([score_file(tmp_path / "p.jsonl", bootstrap=none)], none, examples=8)
    shown = {kind: [(e.record.references[0], e.record.caption) for e in es] for kind, es in contents.examples.items()}
    assert shown["worst"] == [("lighthouse", ""), ("anchor", "ship"), ("ship", "anchor")]
    assert shown["best"] == [("ship", "ship")] * 3
    assert [part.name for part in contents.breakdowns["category"]] == ["ship", "anchor", "lighthouse"]
    assert contents.metric == "category-accuracy" and contents.notes == [NAMES_NOTE]
    write_predictions(said([(truth, truth) for truth, _ in BOATS]), tmp_path / "right.jsonl")
    right = build_contents([score_file(tmp_path / "right.jsonl", bootstrap=none)], none)
    assert "worst" not in right.examples, "no right region is among the worst"


def test_a_report_leads_with_accuracy_and_says_why(tmp_path):
    write_predictions(said(BOATS), tmp_path / "p.jsonl")
    assert main(["report", str(tmp_path / "p.jsonl"), "--output", str(tmp_path), "--resamples", "0"]) == 0
    text = (tmp_path / "report.md").read_text()
    assert text.index(f"> {NAMES_NOTE}") < text.index("| category-accuracy |") < text.index("| CIDEr-D |")
    assert "The lowest category-accuracy of p." in text and NAMES_NOTE in (tmp_path / "report.html").read_text()

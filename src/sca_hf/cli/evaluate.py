"""`sca-hf evaluate`: scores of predictions, with all that makes them comparable."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from ..environment import install_command
from ..files import to_json, write_whole
from .parsing import command, look, natural, notice, prepare


if TYPE_CHECKING:
    from ..evaluation.scoring import Bootstrap, ScoredFile, ScoringTools

_EVALUATE_HELP = """\
score predictions of region captions

PREDS is a file written by `sca-hf predict` (.jsonl, .parquet), or the original authors' .json. Each region is one pair
of a caption and its references; of several candidates, the one with the best predicted IoU counts.

$METRICS
A protocol defines what a score is measured on (sca-hf predict --help lists them); predictions with other counts of
images and regions are refused.
"""
_METRICS_HELP = """\
Metrics; the default is the first three, after accuracy and macro recall if all references are class names. Only
METEOR and SPICE need Java:
  CIDEr-D  BLEU  ROUGE-L         of captions; CIDEr-D from 0 to 10, all others from 0 to 1
  METEOR                         by its own program: $java
  SPICE                          by its own program: $spice
                                 or the folder SPICE_HOME
  chrF  in-language              character n-grams; share of captions in their language. With the default ones where
                                 predictions say their language (sca-hf predict --language)
  exact-match                    fraction of captions that equal a reference
  content-recall                 share of the references' nouns and verbs in the captions: $spacy
  masks  IoU-error               mIoU, oracle mIoU (best of the kept masks), cIoU; error of the predicted IoU
  category-accuracy  category-macro-recall  semantic-IoU  semantic-similarity
                                 of captions that should name the region's category
"""
_EVALUATE_EXAMPLE = """\
examples:
  sca-hf evaluate predictions.jsonl --json scores.json --per-region
  sca-hf evaluate vg.jsonl --protocol vg-full --metrics CIDEr-D METEOR masks --resample-by image
"""


def add(commands: Any) -> None:
    """Declares the command."""
    declared = command(commands, "evaluate", run, with_metrics(_EVALUATE_HELP), _EVALUATE_EXAMPLE)
    declared.add_argument("predictions", metavar="PREDS", help="file of predictions")
    add_scoring(declared)
    declared.add_argument("--json", metavar="OUT", help="write the results, raw scales; - for the terminal")
    declared.add_argument("--per-region", action="store_true", help="add the scores of every region to the JSON")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    if options.per_region and options.json is None:
        raise ValueError("--per-region adds to the JSON: pass --json too.")
    prepare([options.json], inputs_of_scoring(options, options.predictions))
    notice(options, f"reading {options.predictions}")
    from ..evaluation.scoring import score_file

    scored = score_file(
        options.predictions, names(options), scoring_tools(options), bootstrap(options), options.protocol
    )
    results = scored.to_dict(options.line, options.per_region)
    if options.json == "-":
        print(to_json(results), end="")
        return
    print(_format_scores(scored))
    if options.json:
        write_whole(options.json, to_json(results))
        look(options.json)
        print(f"results: {options.json}")


def with_metrics(text: str) -> str:
    """Fills the list of metrics into a help text, in the place of $METRICS."""
    extras = {extra: install_command(extra) for extra in ("java", "spice", "spacy")}
    return text.replace("$METRICS", Template(_METRICS_HELP).substitute(extras))


def add_scoring(declared: Any) -> None:
    """Declares what scoring commands have in common."""
    declared.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="names from the list above, separated by spaces or commas",
    )
    declared.add_argument(
        "--protocol", metavar="NAME", help="the protocol the predictions must follow (default: their run's)"
    )
    declared.add_argument(
        "--resamples", type=natural, default=1000, metavar="N", help="bootstrap draws; 0: no intervals (%(default)s)"
    )
    declared.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    declared.add_argument("--level", type=_fraction, default=0.95, help="of the intervals (default: %(default)s)")
    declared.add_argument(
        "--resample-by",
        choices=("region", "image"),
        default="region",
        help="draw regions (the default), or images with all their regions, which are correlated",
    )
    declared.add_argument("--df", metavar="FILE", help="document frequencies for CIDEr-D (default: these references)")
    declared.add_argument("--spacy-model", default="en_core_web_lg", metavar="NAME", help="(default: %(default)s)")
    declared.add_argument("--encoder", metavar="MODEL", help="sentence encoder for semantic-similarity")
    declared.add_argument("--spice-cache", metavar="FILE", help="file that caches SPICE scores")


def inputs_of_scoring(options: argparse.Namespace, *predictions: str) -> list[str | None]:
    """The files that scoring reads."""
    runs = [f"{path}.run.json" for path in predictions]
    return [*predictions, *runs, options.df, options.spice_cache, options.encoder]


def names(options: argparse.Namespace) -> list[str] | None:
    """The metrics that are asked for."""
    if options.metrics is None:
        return None
    return [name for part in options.metrics for name in part.split(",") if name]


def scoring_tools(options: argparse.Namespace) -> "ScoringTools":
    """What some metrics use."""
    from ..evaluation.metrics import DocumentFrequency
    from ..evaluation.scoring import ScoringTools

    return ScoringTools(
        df="corpus" if options.df is None else DocumentFrequency.load(options.df),
        spacy_model=options.spacy_model,
        encoder=options.encoder,
        spice_cache=None if options.spice_cache is None else Path(options.spice_cache),
    )


def bootstrap(options: argparse.Namespace) -> "Bootstrap":
    """How intervals are made."""
    from ..evaluation.scoring import Bootstrap

    return Bootstrap(options.resamples, options.seed, options.level, options.resample_by)


def _format_scores(scored: "ScoredFile") -> str:
    """A table of scores, under a line that says what they were measured on."""
    rows: list[Sequence[str]] = []
    for name, value in scored.evaluation.metrics.items():
        rows.append((name, f"{value:.4f}", *span(scored.intervals.get(name))))
    level = f"{100 * scored.bootstrap.level:g} % interval, by {scored.bootstrap.by}" if scored.intervals else ""
    lines = [measured_on(scored), align(rows, ("metric", "value", level))]
    return "\n".join([*lines, *names_note(scored)])


def names_note(scored: "ScoredFile") -> list[str]:
    """The line on names, where they are scored."""
    note = scored.evaluation.notes.get("names")
    return [note] if note else []


def measured_on(scored: "ScoredFile") -> str:
    """What a score was measured on, in a line."""
    protocol = "none" if scored.protocol is None else str(scored.protocol)
    beams = "" if scored.beams is None else f", beams {scored.beams}"
    language = "" if scored.evaluation.language is None else f", language {scored.evaluation.language}"
    how = f"tokenizer {scored.tokenizer}{language}{beams}"
    return f"{scored.path}: {len(scored.records):,} regions, protocol {protocol}, {how}"


def span(interval: Sequence[float] | None) -> list[str]:
    """An interval as a cell, none where there is none."""
    return [] if interval is None else [f"{interval[0]:.4f} to {interval[1]:.4f}"]


def align(rows: Sequence[Sequence[str]], titles: Sequence[str]) -> str:
    """Rows of cells as lines with even columns."""
    lines = [titles[: max(map(len, rows))], *rows]
    widths = [max(len(line[k]) for line in lines if k < len(line)) for k in range(max(map(len, lines)))]
    return "\n".join("  ".join(cell.ljust(widths[k]) for k, cell in enumerate(line)).rstrip() for line in lines)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a fraction between 0 and 1, got {text!r}")
    return value

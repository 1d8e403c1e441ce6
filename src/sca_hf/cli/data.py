"""`sca-hf data`: looks at data sets of regions."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..files import save_picture, to_json, write_whole
from .parsing import check_picture_name, command, look, notice, positive, prepare, quiet


_CHECK_HELP = """\
read a data set as training would, and report its contents and errors

SPEC is a format with its options, as voc:root=signs,task=caption, or a YAML file with a mapping of them, as
  format: coco
  annotations: instances.json
  images: photos

The exit code is 1 if images or regions are bad (training would stop there, or skip them with on_error: skip) or if
nothing is left. It warns if a rule leaves out all of a class, or 5 % of the regions.
"""
_CHECK_EXAMPLE = """\
examples:
  sca-hf data check voc:root=signs --sheet signs.png
  sca-hf data check visual_genome.yaml --max-samples 1000 --images --tokenizer gpt2 --json report.json
"""


def add(commands: Any) -> None:
    """Declares the command."""
    text = "inspect data sets of regions"
    data = commands.add_parser("data", help=text, description=text)
    inner = data.add_subparsers(title="commands", dest="data_command", required=True, metavar="COMMAND")
    check = command(inner, "check", run, _CHECK_HELP, _CHECK_EXAMPLE)
    check.add_argument("spec", metavar="SPEC", help="format:option=value,... or a YAML file")
    check.add_argument("--sheet", metavar="OUT.png", help="draw some regions with their captions")
    check.add_argument("--tiles", type=positive, default=24, metavar="N", help="regions of the sheet (%(default)s)")
    check.add_argument("--seed", type=int, default=0, help="draws other regions (default: %(default)s)")
    check.add_argument("--json", metavar="OUT", help="write the report; - for stdout, and nothing else")
    check.add_argument("--max-samples", type=positive, metavar="N", help="the first N images (default: all)")
    check.add_argument("--images", action="store_true", help="also decode every picture (slower)")
    check.add_argument("--tokenizer", metavar="MODEL", help="count caption tokens with this tokenizer")


def run(options: argparse.Namespace) -> None:
    """Runs the command; exits with 1 where the data are bad."""
    if options.sheet:
        check_picture_name(Path(options.sheet))
    prepare([options.sheet, options.json], [options.spec])
    notice(options, f"reading {options.spec}")
    quiet()
    from ..data.inspection import RegionSample, check_data, draw_contact_sheet, format_report

    sample = RegionSample(options.tiles if options.sheet else 0, options.seed)
    report = check_data(
        options.spec,
        tokenizer=_tokenizer(options.tokenizer),
        images=options.images,
        max_samples=options.max_samples,
        watch=sample.add if options.sheet else None,
    )
    out = sys.stderr if options.json == "-" else sys.stdout
    print(format_report(report), file=out)
    if options.json == "-":
        print(to_json(report.to_dict(), indent=2), end="")
    elif options.json:
        write_whole(options.json, to_json(report.to_dict(), indent=2))
        look(options.json)
        print(f"report: {options.json}")
    if options.sheet:
        title = f"{report.read.source}: {report.read.records} images, {report.read.regions} regions"
        save_picture(draw_contact_sheet(sample, title), options.sheet)
        look(options.sheet)
        print(f"sheet: {options.sheet}", file=out)
    report.read.require_records()
    if report.bad:
        raise SystemExit(1)


def _tokenizer(name: str | None) -> Any:
    if name is None:
        return None
    from transformers import AutoTokenizer

    from ..model_names import resolve_model

    return AutoTokenizer.from_pretrained(resolve_model(name), trust_remote_code=False)

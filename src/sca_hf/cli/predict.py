"""`sca-hf predict`: what a captioner says of every region of a data set."""

import argparse
from pathlib import Path
from typing import Any

from ..model_names import DEFAULT_MODEL
from .parsing import (
    add_agreement,
    add_loading,
    add_tools,
    add_workers,
    command,
    look,
    notice,
    notice_scope,
    positive,
    prepare,
    print_skipped,
    process_device,
    quiet,
    resumable,
    wrapped,
)


_PREDICT_HELP = """\
caption every region of a data set, to be scored

The captioner is our model (--model) or --captioner NAME:option=value,... (or a YAML file with `captioner:`):
  sca          model=...                  the same as --model
  crop         model=GIT, BLIP, BLIP-2 or any image-text-to-text model, sam=...; the region is cut out along SAM's mask
               vcot=true (visual chain-of-thought), heads=all, background=white|gray|black, margin=0.1, area=box,
               edges=whole
  kosmos2      model=...                  prompted with the box as location tokens
  florence2    model=..., task=category   the same
  chat         model=..., show=drawn_box|coordinates, question=..., coordinates=normalized|thousandths|pixels
  predictions  path=FILE, shuffle=SEED    captions from a file; shuffled among regions: a control

One record per region is written as soon as it is predicted. After a kill, the same command resumes and ends with
the same records; it refuses other settings. Under torchrun the processes divide the work.

--write TOOL also writes the regions and their captions to a folder next to OUT, named after both, for people to
correct; masks are those of the data, or the predicted ones with --masks best.

A protocol defines what a score is measured on. Each accepts only data with its counts of images and regions:
"""
_PREDICT_EXAMPLE = """\
examples:
  sca-hf predict --data scenes:split=test,count=100 --output predictions.jsonl
  sca-hf predict --model ./sca-gpt2-large --protocol vg-full --data grit:annotations=test.json,images=VG \\
      --output vg.jsonl
  sca-hf predict --captioner crop:model=./git-base,sam=./sam-vit-huge,vcot=true --data coco.yaml --output crops.jsonl
  torchrun --nproc-per-node 8 -m sca_hf predict --model ./my-model --data coco.yaml --output coco.parquet
"""


def add(commands: Any) -> None:
    """Declares the command."""
    from ..data.prompts import PROMPT_KINDS
    from ..evaluation.protocols import PROTOCOLS

    declared = command(commands, "predict", run, _PREDICT_HELP + wrapped(PROTOCOLS), _PREDICT_EXAMPLE)
    who = declared.add_mutually_exclusive_group()
    who.add_argument("--model", help="our model: folder, repository id or sca-photo (default)")
    who.add_argument("--captioner", metavar="SPEC", help="another captioner: NAME:option=value,..., or a YAML file")
    declared.add_argument("--data", required=True, metavar="SPEC", help="as for sca-hf data check (docs/data.md)")
    declared.add_argument("--output", required=True, metavar="OUT", help=".jsonl, .parquet, or the authors' .json")
    declared.add_argument(
        "--protocol", metavar="NAME", choices=list(PROTOCOLS), help="one of the names listed before the options"
    )
    declared.add_argument(
        "--prompt", choices=PROMPT_KINDS, help="how regions are shown (default: box, or the protocol's)"
    )
    declared.add_argument(
        "--language",
        metavar="TAG",
        help="caption in this language, such as de, if the model learned it, and compare with references in it alone",
    )
    declared.add_argument("--control", choices=("blank",), help="blank: show gray pictures instead of the images")
    declared.add_argument("--masks", choices=("none", "best", "all"), default="none", help="predicted masks to keep")
    declared.add_argument("--num-beams", type=positive, metavar="N", help="beams (default: 1, or the protocol's)")
    declared.add_argument("--max-new-tokens", type=positive, default=20, metavar="N", help="(default: %(default)s)")
    add_workers(declared, 8)
    add_agreement(declared)
    add_tools(declared)
    declared.add_argument("--max-samples", type=positive, metavar="N", help="the first N images")
    declared.add_argument("--seed", type=int, default=0, help="seed of random points (default: %(default)s)")
    declared.add_argument("--system", metavar="NAME", help="name of the captioner in the records")
    add_loading(declared)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    output = Path(options.output)
    prepare([output, f"{output}.run.json"], [options.data, options.model, options.captioner], inside=False)
    notice(options, f"loading {options.captioner or options.model or DEFAULT_MODEL}")
    quiet(downloads=not options.quiet)
    if options.captioner is None:
        notice_scope(options, options.model)
    from ..data.loading import parse_spec
    from ..evaluation.captioners import CONTROLS, load_captioner
    from ..evaluation.predict import PredictSettings, predict, write_for_tool
    from ..evaluation.predictions import check_output
    from ..evaluation.protocols import find_protocol
    from ..run_log import torchrun_rank
    from ..yaml_files import parse_options

    check_output(output)
    names = ("prompt", "protocol", "seed", "batch_size", "masks", "system", "language")
    settings = PredictSettings(**{name: getattr(options, name) for name in names})
    data = parse_spec(options.data)
    if options.max_samples is not None:
        data["max_samples"] = options.max_samples
    beams = options.num_beams or (find_protocol(options.protocol).num_beams if options.protocol else 1)
    generation = {"num_beams": beams, "max_new_tokens": options.max_new_tokens}
    asked = {"captioner": "sca"} | ({} if options.model is None else {"model": options.model})
    if options.revision is not None and options.captioner is not None:
        raise ValueError("--revision is for --model; name that of another captioner in --captioner.")
    if options.revision is not None:
        asked["revision"] = options.revision
    if options.captioner is not None:
        asked = parse_options(options.captioner, "captioner", "captioner")
    if "captioner" not in asked:
        raise ValueError(f"{options.captioner} does not say which captioner: put `captioner: NAME` into it.")
    if options.agreement and asked["captioner"] != "sca":
        raise ValueError(f"--agreement is for our model: {asked['captioner']} has no listener.")
    generation |= {"output_agreements": True} if options.agreement else {}
    captioner = load_captioner(
        asked.pop("captioner"), process_device(options.device), options.dtype, generation, **asked
    )
    if options.control is not None:
        captioner = CONTROLS[options.control](captioner)
    with resumable(options):
        written = predict(
            captioner, data, output, settings, options.line, not options.quiet, num_workers=options.num_workers
        )
    if torchrun_rank()[0] == 0 and not options.quiet:
        print(f"predictions: {written}")
    if torchrun_rank()[0] == 0:
        for tool in dict.fromkeys(options.write):
            folder = output.with_name(f"{output.stem}_{tool}")
            report = None if folder.exists() else write_for_tool(written, data, folder, tool, options.shapes)
            look(*([] if report is None else [report.path]))
            print(f"{tool}: {report or f'{folder} is left as it is; remove or rename it to have it written again'}")
        print_skipped()

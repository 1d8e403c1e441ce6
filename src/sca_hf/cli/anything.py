"""`sca-hf anything`: masks and captions of everything in images, folders and data sets."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..files import in_one_line
from ..processing.anything_settings_sca import AnythingSettings, range_text
from .parsing import add_tools, command, positive, process_device, quiet


_HELP = """\
caption everything in images

SOURCE is an image, a folder with all folders in it, or a data spec as `sca-hf data check` takes it
(coco:annotations=instances.json,images=photos). Each image is encoded once; a grid of points gives masks; masks that
pass the thresholds are kept, of those that overlap the best one; only these are captioned. A model is saved with the
settings that suit it; options change single ones.

--output is a folder, which holds in the end
  records.jsonl   one line per image: its records, with the fields of SAM's automatic masks and caption, score
  coco.json       COCO JSON, one caption per annotation; masks as RLE
  failed.json     images that could not be read, and why
  overlays/       with --overlays, each image with its regions drawn
  TOOL/           with --write, what an annotation tool imports; never written over, it may hold corrections
  journal/        what is done so far: the same command resumes a run that was stopped

Several processes share a run under torchrun, on one machine or on several that share the folder; --ray uses a Ray
cluster. The result does not depend on their number.
"""
_EXAMPLE = """\
examples:
  sca-hf anything street.jpg
  sca-hf anything photos --output captions --points-per-side 16 --overlays
  torchrun --nproc-per-node 8 -m sca_hf anything photos --output captions
  sca-hf anything photos --boxes detections.json --min-score 0.4 --output captions
  sca-hf anything photos --output captions --write label_studio
"""


def add(commands: Any) -> None:
    """Declares the command."""
    declared = command(commands, "anything", run, _HELP, _EXAMPLE)
    declared.add_argument("sources", nargs="+", metavar="SOURCE", help="image, folder or data spec")
    declared.add_argument("--output", metavar="FOLDER", help="folder of the result; required for more than 16 images")
    declared.add_argument("--model", help="folder, repository id or sca-tiny (default)")
    declared.add_argument(
        "--boxes",
        metavar="FILE.json",
        help="caption the boxes of a detector; `data` takes those of the data set",
    )
    declared.add_argument("--min-score", type=float, default=0.0, metavar="X", help="leave out boxes of lower scores")
    declared.add_argument("--num-beams", type=positive, metavar="N", help="beams to search with (default: greedy)")
    declared.add_argument("--overlays", action="store_true", help="draw each image with its regions")
    add_tools(declared)
    declared.add_argument("--retry", action="store_true", help="retry images that failed before")
    declared.add_argument("--ray", type=positive, metavar="N", help="caption with N actors of a Ray cluster")
    declared.add_argument("--device", help="for instance cpu or cuda:1 (default: cuda where present)")
    group = declared.add_argument_group("settings", "where left out, those that the model is saved with, else SAM's")
    for setting in fields(AnythingSettings):
        _add_setting(group, setting)


def _add_setting(group: Any, setting: Any) -> None:
    """Declares an option for a setting; left out, the model's own value holds."""
    option, kind, text = f"--{setting.name.replace('_', '-')}", type(setting.default), setting.metadata["help"]
    if kind is bool:
        group.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
    elif kind in (int, float):
        text = f"{text} ({range_text(setting)}; SAM: {setting.default:.3g})"
        group.add_argument(option, type=kind, metavar="N" if kind is int else "X", help=text)
    else:
        group.add_argument(option, choices=setting.metadata["choices"], help=text)


def run(options: argparse.Namespace) -> None:
    """Runs the command; exits with 1 where no image could be captioned."""
    quiet()
    from ..anything.folder import FolderRun, run_folder, write_for_tool
    from ..anything.sources import find_images, read_boxes
    from ..run_log import torchrun_rank

    values = {setting.name: getattr(options, setting.name) for setting in fields(AnythingSettings)}
    settings = {name: value for name, value in values.items() if value is not None}
    AnythingSettings(**settings)  # raises now, not after the model is loaded
    items = find_images(options.sources)
    boxes = options.boxes if options.boxes in (None, "data") else read_boxes(options.boxes, options.min_score)
    generation = {} if options.num_beams is None else {"num_beams": options.num_beams}
    if options.write and options.output is None:
        raise ValueError("--write needs a folder for the result: say --output FOLDER.")
    if options.output is None:
        _print_images(options, items, settings, boxes, generation)
        return
    folder = FolderRun(
        options.output,
        options.model,
        settings,
        generation,
        boxes,
        options.overlays,
        options.retry,
        process_device(options.device),
    )
    rank, world = torchrun_rank()
    caption = None
    if options.ray:
        from ..anything.folder import ray_captions

        caption = ray_captions(folder, options.ray)
    result = run_folder(folder, items, rank, world, caption)
    if result is None:
        return
    for name, error in result.failed.items():
        print(f"failed: {in_one_line(name)}: {error}", file=sys.stderr)
    failed = f", {len(result.failed)} failed" if result.failed else ""
    print(f"{result.images} images, {result.regions} regions{failed}: {Path(options.output) / 'coco.json'}")
    if not result.images:
        raise SystemExit(1)
    for tool in dict.fromkeys(options.write):
        report = write_for_tool(options.output, items, tool, options.shapes)
        kept = f"{Path(options.output) / tool} is left as it is; remove or rename it to have it written again"
        print(f"{tool}: {kept if report is None else report}")


def _print_images(
    options: argparse.Namespace, items: list[Any], settings: dict[str, Any], boxes: Any, generation: dict[str, Any]
) -> None:
    """Prints a table for each of a few images."""
    if len(items) > 16:
        raise ValueError(f"{len(items)} images are too many to print; name a folder for the result with --output.")
    from ..anything.folder import FolderRun, ImageCaptioner
    from ..captioning import one_line

    captioner = ImageCaptioner(FolderRun("", options.model, settings, generation, boxes, device=options.device))
    failed: list[str] = []
    for item in items:
        entry = captioner(item)
        name = in_one_line(item.name)
        if "error" in entry:
            failed.append(f"{name}: {entry['error']}")
            continue
        print(f"{name}: {len(entry['records'])} regions")
        for number, record in enumerate(entry["records"], 1):
            x, y, width, height = record["bbox"]
            place = f"{x:g},{y:g},{x + width:g},{y + height:g}"
            print(f"{number:4}  iou {record['predicted_iou']:.2f}  {place:20}  {one_line(record['caption'])}")
    if len(failed) == len(items):
        raise ValueError("; ".join(failed))
    for text in failed:
        print(f"failed: {text}", file=sys.stderr)

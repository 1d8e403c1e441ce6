"""`sca-hf anything`: masks and captions of everything in images, folders and data sets."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import in_one_line, refuse_inputs
from ..processing.anything_settings_sca import AnythingSettings, range_text
from .parsing import (
    Failures,
    add_agreement,
    add_loading,
    add_tools,
    add_workers,
    begin_loading,
    command,
    look,
    notice,
    positive,
    prepare,
    process_device,
    resumable,
    write_json,
)


if TYPE_CHECKING:
    from ..anything.folder import FolderRun
    from ..anything.sources import ImageItem

# Without a folder for the result, so many images have a table each.
_MAX_PRINTED = 16

_HELP = """\
caption everything in images

SOURCE is an image, its address, a folder with its subfolders, a pattern such as 'photos/*.jpg', - for an image on
stdin, or a data spec as `sca-hf data check` takes it (coco:annotations=instances.json,images=photos).

Each image is encoded once, and a grid of points gives masks. Masks that pass the thresholds are kept, only the best of
overlapping ones; these are captioned. A model brings its own default settings; options override them.

--output is a folder, which in the end contains
  records.jsonl   one line per image: its records, with the fields of SAM's automatic masks and caption, score
  coco.json       COCO JSON, one caption per annotation; masks as RLE
  failed.json     images that could not be read, and why
  overlays/       with --overlays, each image with its regions drawn
  TOOL/           with --write, files for an annotation tool; never overwritten, they may hold corrections
  journal/        progress so far: the same command resumes a stopped run

An image that fails is reported on stderr and does not stop the others; the exit code is then 1.

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
    declared.add_argument("sources", nargs="+", metavar="SOURCE", help="image, folder, pattern, - or data spec")
    declared.add_argument("--output", metavar="FOLDER", help="output folder; required for more than 16 images")
    declared.add_argument(
        "--json",
        metavar="OUT",
        help="write the records of all images to one file; - for stdout, and nothing else",
    )
    declared.add_argument("--model", help="folder, repository id or sca-photo (default)")
    add_loading(declared)
    declared.add_argument(
        "--boxes",
        metavar="FILE.json",
        help="caption the boxes of a detector; `data` takes those of the data set",
    )
    declared.add_argument("--min-score", type=float, metavar="X", help="drop boxes with lower scores")
    declared.add_argument("--num-beams", type=positive, metavar="N", help="beams to search with (default: greedy)")
    add_agreement(declared)
    declared.add_argument("--overlays", action="store_true", help="draw each image with its regions")
    add_tools(declared)
    declared.add_argument("--retry", action="store_true", help="retry images that failed before")
    add_workers(declared, None)
    declared.add_argument("--ray", type=positive, metavar="N", help="caption with N actors of a Ray cluster")
    add_settings(declared)


def add_settings(declared: Any, without: tuple[str, ...] = ()) -> None:
    """Declares the settings of anything mode as options."""
    group = declared.add_argument_group("settings", "defaults: those saved with the model, otherwise SAM's")
    for setting in fields(AnythingSettings):
        if setting.name not in without:
            _add_setting(group, setting)


def read_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings that differ from the model's own, checked."""
    values = {setting.name: getattr(options, setting.name, None) for setting in fields(AnythingSettings)}
    settings = {name: value for name, value in values.items() if value is not None}
    AnythingSettings(**settings)  # raises now, not after the model is loaded
    return settings


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


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns 1 where an image could not be captioned."""
    from ..anything.sources import find_images
    from ..run_log import torchrun_rank

    settings = read_settings(options)
    _check_outputs(options)
    items = find_images(options.sources, output=options.output)
    if options.output is None and options.json is None and len(items) > _MAX_PRINTED:
        raise ValueError(f"{len(items)} images are too many to print; pass an output folder with --output.")
    boxes = boxes_for(options, items)
    begin_loading(options, options.model, before=f"{len(items)} image{'s' * (len(items) != 1)}, ")
    from ..anything.folder import FolderRun, run_folder, wait_and_finish, write_for_tool

    folder = FolderRun(
        options.output or "",
        options.model,
        settings,
        _generation(options),
        boxes,
        options.overlays,
        options.retry,
        process_device(options.device),
        options.dtype,
        options.revision,
        options.batch_size,
        options.num_workers,
    )
    failures = Failures(options, len(items))
    if options.output is None:
        return _print_images(options, folder, items, failures)
    caption = None
    if options.ray:
        from ..anything.folder import ray_captions

        caption = ray_captions(folder, options.ray)
    with resumable(options):
        result = run_folder(folder, items, *torchrun_rank(), caption, progress=not options.quiet)
        if result is None:
            result = wait_and_finish(folder, items, torchrun_rank()[0])
    if result is None:
        return 0
    for name, error in result.failed.items():
        failures.add(name, error)
    failed = f", {failures.count} failed" if failures.count else ""
    if not options.quiet:
        print(f"{result.images} images, {result.regions} regions{failed}: {Path(options.output) / 'coco.json'}")
    for tool in dict.fromkeys(options.write if result.images else ()):
        report = write_for_tool(options.output, items, tool, options.shapes)
        look(*([] if report is None else [report.path]))
        kept = f"{Path(options.output) / tool} is left as it is; remove or rename it to write it again"
        if report is None or not options.quiet:
            print(f"{tool}: {kept if report is None else report}")
    return failures.exit_code()


def boxes_for(options: argparse.Namespace, items: "list[ImageItem]") -> Any:
    """Returns what `--boxes` names, and says of how many images a detector's file has nothing.

    Raises:
        ValueError: It has none of the images, so it is of others, or names them in another way.
    """
    from ..anything.sources import boxes_of, read_boxes

    if options.boxes in (None, "data"):
        return options.boxes
    boxes = read_boxes(options.boxes, options.min_score)
    without = [item.name for item in items if boxes_of(boxes, item.name) is None]
    if len(without) == len(items):
        named = ", ".join(list(boxes)[:3]) or "no image"
        raise ValueError(
            f"{options.boxes} has no boxes for any of the images, such as {without[0]}; it names {named}."
        )
    if without:
        notice(
            options, f"{options.boxes} has no boxes for {len(without)} of {len(items)} images, such as {without[0]}"
        )
    return boxes


def _generation(options: argparse.Namespace) -> dict[str, Any]:
    beams = {} if options.num_beams is None else {"num_beams": options.num_beams}
    return beams | ({"output_agreements": True} if options.agreement else {})


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuses options that would have no effect on where the result goes."""
    reads = [*options.sources, options.boxes, options.model]
    prepare([options.json], reads, inside=False)
    if options.output is not None:
        files = [Path(options.output, name) for name in ("records.jsonl", "coco.json", "failed.json")]
        refuse_inputs([options.output, *files], [one for one in reads if one], inside=False)
    if options.output is not None and options.json is not None:
        raise ValueError("--output already writes records.jsonl: omit --json.")
    for name in ("write", "overlays", "retry", "ray"):
        if options.output is None and getattr(options, name):
            raise ValueError(f"--{name} needs an output folder: add --output FOLDER.")


def _print_images(options: argparse.Namespace, run: "FolderRun", items: "list[ImageItem]", failures: Failures) -> int:
    """Captions images, and prints a table for each as it is there, or writes them as JSON."""
    from ..anything.folder import ImageCaptioner
    from ..captioning import one_line, with_doubt

    described = ImageCaptioner(run).captions(items)
    entries: list[dict[str, Any]] = []
    try:
        for item, entry in zip(items, described, strict=True):
            name = in_one_line(item.name)
            if "error" in entry:
                failures.add(item.name, entry["error"])
                continue
            entries.append(entry)
            if options.json is not None:
                continue
            print(f"{name}: {len(entry['records'])} regions")
            for number, record in enumerate(entry["records"], 1):
                x, y, width, height = record["bbox"]
                place = f"{x:g},{y:g},{x + width:g},{y + height:g}"
                said = with_doubt(one_line(record["caption"]), record.get("confidence"))
                agreed = f"agreement {record['agreement']:.2f}  " if "agreement" in record else ""
                print(f"{number:4}  iou {record['predicted_iou']:.2f}  {agreed}{place:20}  {said}")
            sys.stdout.flush()
    except KeyboardInterrupt as interruption:
        done = len(entries) + failures.count
        interruption.args = (f"after {done} of {len(items)} images; with --output FOLDER a run can be resumed",)
        raise
    if options.json is not None:
        write_json(entries, options.json)
        look(options.json)
        if options.json != "-" and not options.quiet:
            print(f"records: {options.json}")
    return failures.exit_code()

"""`sca-hf caption`: masks and captions for regions of image files."""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parsing import check_picture_name, command, positive, prepare, quiet, write_json


if TYPE_CHECKING:
    from ..captioning import CaptionedRegion
    from ..processing.region_prompts_sca import RegionPrompt

_CAPTION_HELP = """\
caption regions of images

Where to look, in pixels of the image (x to the right, y down); repeat for more regions:
  --box 20,30,120,90                the thing in this box
  --point 60,45                     the thing at this point
  --point "60,45;80,50"             one thing, at both points
  --point 60,45 --point 10,10,0     the thing at the first point, without the second (label 0: outside)
  --box "20,30,120,90;60,45"        a box and a point for one thing
  --mask region.png                 the thing in this mask: white in a picture, true in an .npy, an RLE in a .json
  --regions prompts.json            [{"box": [20, 30, 120, 90]}, {"points": [[60, 45], [10, 10]], "labels": [1, 0]},
                                     {"mask": RLE or file name}], or {"image name": [...], ...}
They hold for every IMAGE. Without any, the whole image is one region. Keys of your own in a regions file ("id",
"category", ...) come back in the records of --json; those that records have too ("caption", ...) in their "input".

In the result, score is the mean log-probability of the caption's tokens (nearer to 0 is surer) and iou is the model's
own estimate of its mask's IoU.
"""
_CAPTION_EXAMPLE = """\
example:
  sca-hf caption street.jpg --box 40,60,210,300 --point 320,180 --json street.json --overlay street-captions.png
"""


def add(commands: Any) -> None:
    """Declares the command."""
    declared = command(commands, "caption", run, _CAPTION_HELP, _CAPTION_EXAMPLE)
    declared.add_argument("images", nargs="+", metavar="IMAGE", help="file or URL")
    declared.add_argument("--model", help="folder, repository id or sca-tiny (default)")
    for kind, form in (("box", "X1,Y1,X2,Y2"), ("point", "X,Y[,LABEL]"), ("mask", "FILE")):
        declared.add_argument(
            f"--{kind}", action=_Prompts, dest="prompts", metavar=form, help=f"a region by its {kind}"
        )
    declared.add_argument("--regions", metavar="FILE.json", help="regions from a file")
    declared.add_argument("--task", help="a task of the model, usually caption (the default) or recognition")
    declared.add_argument("--num-beams", type=positive, metavar="N", help="beams to search with (default: greedy)")
    declared.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="images at a time (default: %(default)s)"
    )
    declared.add_argument("--device", help="for instance cpu or cuda:1 (default: cuda where present)")
    declared.add_argument("--json", metavar="OUT", help="write the records, masks as COCO RLE; - for the terminal")
    declared.add_argument(
        "--overlay", metavar="OUT.png", help="draw the result; several images go to OUT-<image name>.png"
    )


class _Prompts(argparse.Action):
    """Keeps boxes, points and masks in the order in which they stand."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.prompts = [*(namespace.prompts or []), ((option_string or "").lstrip("-"), values)]


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    overlays = _overlay_paths(options.overlay, options.images)
    if options.json not in (None, "-"):
        prepare(Path(options.json))
    prompts = _prompts_per_image(options)
    quiet()

    from ..captioning import caption_images, draw_captions, load

    model, processor = load(options.model, options.device)
    generation = {} if options.num_beams is None else {"num_beams": options.num_beams}
    records = []
    results = caption_images(model, processor, options.images, prompts, options.task, options.batch_size, **generation)
    for index, (picture, regions) in enumerate(results):
        if options.json != "-":
            print(_format_table(options.images[index], regions, shutil.get_terminal_size((119, 24)).columns))
        if overlays:
            draw_captions(picture, regions).save(overlays[index])
        records += [region.to_json() for region in regions] if options.json else []
    if options.json == "-":
        write_json(records, sys.stdout)
    elif options.json:
        with Path(options.json).open("w", encoding="utf-8") as file:
            write_json(records, file)
        print(f"records: {options.json}")
    for path in overlays:
        print(f"overlay: {path}")


def _format_table(image: str, regions: "Sequence[CaptionedRegion]", width: int) -> str:
    """The regions of one image as lines of at most `width` characters, captions at least 24."""
    rows = [
        (
            str(region.number),
            region.prompt.describe(),
            _figures(region.score, ".2f"),
            f"{region.iou:.2f}",
            "empty" if region.box is None else ",".join(f"{value:g}" for value in region.box),
            region.text,
        )
        for region in regions
    ]
    titles = ("#", "prompt", "score", "iou", "mask within", "caption")
    widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(5)]
    indent = sum(widths) + 2 * len(widths)
    lines = [image]
    for row in [titles, *rows]:
        start = "".join(f"{cell:<{size}}  " for cell, size in zip(row, widths, strict=False))
        text = textwrap.wrap(row[5], max(24, width - indent)) or [""]
        lines += [start + text[0], *(" " * indent + more for more in text[1:])]
    return "\n".join(lines)


def _prompts_per_image(options: argparse.Namespace) -> "list[list[RegionPrompt]]":
    from ..processing.region_prompts_sca import RegionPrompt
    from ..prompt_arguments import parse_prompt, read_mask_file, read_regions_file

    shared: list[RegionPrompt] = []
    for kind, text in options.prompts or []:
        if kind == "mask":
            shared.append(RegionPrompt(mask=read_mask_file(text)))
        else:
            parse_prompt(kind, text, shared)
    if not options.regions:
        return [shared] * len(options.images)
    by_name = read_regions_file(options.regions)
    for name, regions in by_name.items():
        if not regions:
            raise ValueError(f"{options.regions}: {name or 'regions'} is empty; give at least one region.")
    shared = shared + by_name.pop(None, [])
    names = [image if image in by_name else Path(image).name for image in options.images]
    if unknown := set(by_name) - set(names):
        raise ValueError(
            f"{options.regions} names {sorted(map(str, unknown))[0]!r}, which is not an IMAGE of this call."
        )
    return [shared + by_name.get(name, []) for name in names]


def _overlay_paths(overlay: str | None, images: Sequence[str]) -> list[Path]:
    if overlay is None:
        return []
    path = Path(overlay)
    check_picture_name(path)
    prepare(path)
    if len(images) == 1:
        return [path]
    stems = [Path(image).stem for image in images]
    named = [stem if stems.count(stem) == 1 else f"{stem}-{number}" for number, stem in enumerate(stems, 1)]
    return [path.with_name(f"{path.stem}-{stem}{path.suffix}") for stem in named]


def _figures(value: float | list[float] | None, form: str) -> str:
    if value is None:
        return "-"
    return " ".join(format(v, form) for v in ([value] if isinstance(value, float) else value))

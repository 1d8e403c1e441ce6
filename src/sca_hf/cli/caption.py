"""`sca-hf caption`: masks and captions for regions of image files."""

import argparse
import shutil
import sys
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import save_picture
from .parsing import (
    Failures,
    add_agreement,
    add_loading,
    add_prompts,
    begin_loading,
    check_picture_name,
    command,
    languages,
    look,
    positive,
    prepare,
    write_json,
)


if TYPE_CHECKING:
    from ..anything.sources import ImageItem
    from ..captioning import CaptionedRegion
    from ..processing.region_prompts_sca import RegionPrompt

_CAPTION_HELP = """\
caption regions of images

Regions, in pixels of the image (x to the right, y down); repeat an option for more regions:
  --box 20,30,120,90                the thing in this box
  --point 60,45                     the thing at this point
  --point "60,45;80,50"             one thing, at both points
  --point 60,45 --point 10,10,0     the thing at the first point, without the second (label 0: outside)
  --box "20,30,120,90;60,45"        a box and a point for one thing
  --mask region.png                 the thing in this mask: white in a picture, true in an .npy, an RLE in a .json
  --regions prompts.json            [{"box": [20, 30, 120, 90]}, {"points": [[60, 45], [10, 10]], "labels": [1, 0]},
                                     {"mask": RLE or file name}], or {"image name": [...], ...}
They apply to every IMAGE. Without any, the whole image is one region; `sca-hf anything` finds and captions everything
in it. Your own keys in a regions file ("id", "category", ...) come back in the records of --json, or in their "input"
if records use the key themselves ("caption", ...).

A folder means all images in it. An image that fails is reported on stderr and does not stop the others; the exit
code is then 1.

(unsure) after a caption: the region is unlike the training data and the caption is a guess. score is the mean
log-probability of the caption's tokens (closer to 0 is surer), iou the model's own estimate of its mask's IoU.
"""
_CAPTION_EXAMPLE = """\
example:
  sca-hf caption street.jpg --box 40,60,210,300 --point 320,180 --json street.json --overlay street-captions.png
  curl -s https://example.org/street.jpg | sca-hf caption - --json - | jq -r '.[].caption'
"""


def add(commands: Any) -> None:
    """Declares the command."""
    declared = command(commands, "caption", run, _CAPTION_HELP, _CAPTION_EXAMPLE)
    declared.add_argument(
        "images", nargs="+", metavar="IMAGE", help="file, URL, folder, pattern such as 'photos/*.jpg', or - for stdin"
    )
    declared.add_argument("--model", help="folder, repository id or sca-photo (default)")
    add_loading(declared)
    add_prompts(declared, "a region")
    declared.add_argument("--regions", metavar="FILE.json", help="regions from a file")
    declared.add_argument("--task", help="one of the model's tasks, usually caption (the default) or recognition")
    declared.add_argument(
        "--length", help="of the captions: short, sentence, detailed or a number of words, if the model learned it"
    )
    declared.add_argument(
        "--language",
        type=languages,
        metavar="TAG[,TAG]",
        help="of the captions, such as de, if the model learned it; of several, each region gets a caption in each",
    )
    declared.add_argument("--num-beams", type=positive, metavar="N", help="beams to search with (default: greedy)")
    add_agreement(declared)
    declared.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="images at a time (default: %(default)s)"
    )
    declared.add_argument(
        "--json", metavar="OUT", help="write the records, masks as COCO RLE; - for stdout, and nothing else"
    )
    declared.add_argument(
        "--overlay", metavar="OUT.png", help="draw the result; several images go to OUT-<image name>.png"
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns 1 where an image could not be captioned."""
    from ..anything.sources import find_images

    images = {_shown_name(item): item.image for item in find_images(options.images, specs=False)}
    overlays = _overlay_paths(options.overlay, list(images))
    masks = [text for kind, text in options.prompts or [] if kind == "mask"]
    reads = [*images.values(), options.regions, options.model, *masks]
    prepare([options.json, *overlays.values()], reads)
    prompts = _prompts_per_image(options, list(images))
    begin_loading(options, options.model)

    from ..captioning import caption_images, draw_captions, image_error, load

    model, processor = load(options.model, options.device, options.dtype, options.revision)
    generation: dict[str, Any] = {"length": options.length, "language": options.language}
    generation |= {} if options.num_beams is None else {"num_beams": options.num_beams}
    generation |= {"output_agreements": True} if options.agreement else {}
    failures, left = Failures(options, len(images)), list(images)

    def failed(name: str, error: BaseException) -> None:
        failures.add(name, image_error(error))
        left.remove(name)

    results = caption_images(model, processor, images, prompts, options.task, options.batch_size, failed, **generation)
    records, drawn = [], []
    try:
        for picture, regions in results:
            name = regions[0].image
            if options.json != "-" and not (options.quiet and (options.json or overlays)):
                print(_format_table(name, regions, shutil.get_terminal_size((119, 24)).columns), flush=True)
            if overlays:
                save_picture(draw_captions(picture, regions), overlays[name])
                drawn.append(overlays[name])
            records += [region.to_json() for region in regions] if options.json else []
            left.remove(name)
    except KeyboardInterrupt as interruption:
        rest = f"; to resume, give the others, from {left[0]}" if left else ""
        interruption.args = (f"{len(images) - len(left)} of {len(images)} images are done{rest}",)
        if records:
            write_json(records, options.json)
        raise
    if options.json:
        write_json(records, options.json)
    look(*([options.json] if options.json else []), *drawn)
    files = [f"records: {options.json}"] if options.json not in (None, "-") else []
    for line in [] if options.quiet else [*files, *(f"overlay: {path}" for path in drawn)]:
        print(line, file=sys.stderr if options.json == "-" else sys.stdout)
    return failures.exit_code()


def _shown_name(item: "ImageItem") -> str:
    """What an image is called in the result: its file as it was given."""
    return item.image if isinstance(item.image, str) else item.name


def _format_table(image: str, regions: "Sequence[CaptionedRegion]", width: int) -> str:
    """The regions of one image as lines of at most `width` characters, captions at least 24."""
    rows = [
        (
            str(region.number),
            region.prompt.describe(),
            _figures(region.score, ".2f"),
            *([] if region.agreement is None else [_figures(region.agreement, ".2f")]),
            f"{region.iou:.2f}",
            "empty" if region.box is None else ",".join(f"{value:g}" for value in region.box),
            region.text,
        )
        for region in regions
    ]
    asked = ["agreement"] if any(region.agreement is not None for region in regions) else []
    titles = ("#", "prompt", "score", *asked, "iou", "mask within", "caption")
    widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles) - 1)]
    indent = sum(widths) + 2 * len(widths)
    lines = [image]
    for row in [titles, *rows]:
        start = "".join(f"{cell:<{size}}  " for cell, size in zip(row, widths, strict=False))
        text = textwrap.wrap(row[-1], max(24, width - indent)) or [""]
        lines += [start + text[0], *(" " * indent + more for more in text[1:])]
    return "\n".join(lines)


def _prompts_per_image(options: argparse.Namespace, images: list[str]) -> "list[list[RegionPrompt]]":
    from ..prompt_arguments import read_prompts

    by_name = read_prompts(options.prompts, options.regions)
    shared = by_name.pop(None)
    names = [image if image in by_name else Path(image).name for image in images]
    if unknown := set(by_name) - set(names):
        raise ValueError(f"{options.regions} names {sorted(map(str, unknown))[0]!r}, which is not among the IMAGEs.")
    for name in by_name:
        if names.count(str(name)) > 1 and name not in images:
            raise ValueError(
                f"{options.regions} names {name!r}, but several IMAGEs have that name; include their folders."
            )
    return [shared + by_name.get(name, []) for name in names]


def _overlay_paths(overlay: str | None, images: Sequence[str]) -> dict[str, Path]:
    """The file of each image's overlay, no two alike, on file systems without upper and lower case too."""
    if overlay is None:
        return {}
    path = Path(overlay)
    check_picture_name(path)
    if len(images) == 1:
        return {images[0]: path}
    # As file systems compare names that know neither case nor forms of Unicode, and short enough for all.
    stems = [unicodedata.normalize("NFKC", Path(image).stem)[:40] for image in images]
    counts = Counter(stem.casefold() for stem in stems)
    taken = {stem for stem, count in counts.items() if count == 1}
    paths = {}
    for number, (image, stem) in enumerate(zip(images, stems, strict=True), 1):
        name = stem
        if counts[stem.casefold()] > 1:
            name = f"{stem}-{number}"
            while name.casefold() in taken:
                name += "-"
            taken.add(name.casefold())
        paths[image] = path.with_name(f"{path.stem}-{name}{path.suffix}")
    return paths


def _figures(value: float | list[float] | None, form: str) -> str:
    if value is None:
        return "-"
    return " ".join(format(v, form) for v in ([value] if isinstance(value, float) else value))

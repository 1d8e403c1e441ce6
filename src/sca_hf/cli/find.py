"""`sca-hf find`: the region of an image that a text is of."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from ..files import in_one_line, save_picture
from .anything import add_settings, read_settings
from .parsing import add_loading, begin_loading, check_picture_name, command, look, positive, prepare, write_json


_HELP = """\
find what a text is of, in an image

Everything in IMAGE is found as by `sca-hf anything`; the regions are ranked by how likely the text is to begin their
caption. match is that log-probability (closer to 0 is surer), agreement the probability that this region is meant and
no other. Where no match reaches the threshold, it says that there is none, and the exit code is 1.

Words and their order should be those that the model was trained to say: sca-tiny knows `a small striped red circle`.
"""
_EXAMPLE = """\
examples:
  sca-hf find street.jpg "a dog on a leash" --overlay found.png
  sca-hf find scene.png "the striped red circle" --top 3 --json - | jq '.[].bbox'
"""


def add(commands: Any) -> None:
    """Declares the command."""
    declared = command(commands, "find", run, _HELP, _EXAMPLE)
    declared.add_argument("image", metavar="IMAGE", help="file, URL, or - for stdin")
    declared.add_argument("text", metavar="TEXT", help="what to find")
    declared.add_argument("--model", help="folder, repository id or sca-photo (default)")
    add_loading(declared)
    declared.add_argument(
        "--top", type=positive, default=1, metavar="N", help="regions at most (default: %(default)s)"
    )
    declared.add_argument(
        "--threshold", type=float, metavar="X", help="the lowest match that counts (default: see docs/listener.md)"
    )
    declared.add_argument(
        "--json", metavar="OUT", help="write the records, masks as COCO RLE; - for stdout, and nothing else"
    )
    declared.add_argument("--overlay", metavar="OUT.png", help="draw what was found")
    add_settings(declared)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns 1 where nothing in the image is meant."""
    from ..anything.sources import find_images

    settings = read_settings(options)
    if not options.text.strip():
        raise ValueError("TEXT is empty: say what to find.")
    items = find_images([options.image], specs=False)
    if len(items) != 1:
        raise ValueError(f"{options.image} has {len(items)} images; find looks into one.")
    if options.overlay is not None:
        check_picture_name(Path(options.overlay))
    prepare([options.json, options.overlay], [items[0].image, options.model])
    begin_loading(options, options.model)

    from ..anything.folder import draw_records
    from ..captioning import load, one_line

    model, processor = load(options.model, options.device, options.dtype, options.revision)
    picture = items[0].load()
    ranked = processor.find(model, picture, options.text, settings, threshold=-math.inf)
    lowest = processor.find_threshold if options.threshold is None else options.threshold
    found = [record for record in ranked if record["match"] >= lowest][: options.top]
    if options.json is not None:
        write_json([{"image": items[0].name, "text": options.text, **record} for record in found], options.json)
        look(options.json)
    if options.overlay is not None:
        save_picture(draw_records(picture, found), options.overlay)
        look(options.overlay)
    name = in_one_line(items[0].name)
    if not found:
        best = (
            f"the best match is {ranked[0]['match']:.2f}, the threshold {lowest:g}" if ranked else "it has no regions"
        )
        print(f"{name}: there is no {one_line(options.text)!r} ({best})", file=sys.stderr)
        return 1
    for record in found if options.json != "-" else ():
        x, y, width, height = record["bbox"]
        place = f"{x:g},{y:g},{x + width:g},{y + height:g}"
        figures = f"match {record['match']:.2f}  agreement {record['agreement']:.2f}"
        print(f"{name}: {figures}  {place:20}  {one_line(record['caption'])}")
    return 0

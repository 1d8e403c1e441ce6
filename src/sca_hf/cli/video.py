"""`sca-hf video`: masks through time and one caption for each object of a clip."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .parsing import add_loading, add_prompts, begin_loading, command, look, natural, positive, prepare, write_json


_HELP = """\
caption objects of a clip

CLIP is a video file (with the extra `video`, which brings PyAV) or a folder with a picture per frame. Each object is
prompted on one frame, as in `sca-hf caption`, and followed through the clip by the model's tracker; its caption is
made from all frames that show it. Trackers are the video models of SAM 2, SAM 3 and EdgeTAM.

Any other model, sca-tiny among them, captions objects whose masks are given frame by frame:
  --masklets masks.json    per object a list of COCO RLE, null where it is not seen, or the records of --json
  --masklets Annotations   a folder as DAVIS has it: a picture per frame, whose values number the objects

A regions file (--regions) may name a frame for each object: [{"box": [20, 30, 120, 90], "frame": 12}, ...].
"""
_EXAMPLE = """\
examples:
  sca-hf video clip.mp4 --model ./sca-sam2 --box 40,60,210,300 --json objects.json --overlay captioned.mp4
  sca-hf video frames/ --masklets Annotations/bear --json bear.json
"""


def add(commands: Any) -> None:
    """Declares the command."""
    declared = command(commands, "video", run, _HELP, _EXAMPLE)
    declared.add_argument("clip", metavar="CLIP", help="video file, or folder of frames")
    declared.add_argument("--model", help="folder, repository id or sca-tiny (default)")
    add_loading(declared)
    add_prompts(declared, "an object")
    declared.add_argument("--frame", type=natural, default=0, metavar="N", help="frame of these prompts (default: 0)")
    declared.add_argument("--regions", metavar="FILE.json", help="objects from a file")
    declared.add_argument("--masklets", metavar="PATH", help="masks of the objects, in place of prompts")
    declared.add_argument("--task", default="caption", help="one of the model's tasks (default: %(default)s)")
    declared.add_argument("--num-beams", type=positive, metavar="N", help="beams to search with (default: greedy)")
    declared.add_argument("--json", metavar="OUT", help="write the records, masks as COCO RLE; - for stdout")
    declared.add_argument("--overlay", metavar="OUT", help="draw the clip: .mp4, .mkv, .mov, or a folder of pictures")
    declared.add_argument("--masks", metavar="FOLDER", help="write masks as DAVIS has them")


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    from ..data.clips import check_clip_name, open_clip, read_masklets, write_clip, write_masklets

    reads = [options.clip, options.regions, options.masklets, options.model]
    prepare([options.json], reads, inside=False)
    if options.overlay:
        check_clip_name(Path(options.overlay))
    for name in ("overlay", "masks"):
        _check_folder(getattr(options, name), reads)
    clip = open_clip(options.clip)
    masklets = None if options.masklets is None else read_masklets(options.masklets)
    regions = _regions(options)
    if (masklets is None) == (not regions):
        raise ValueError("name the objects by --box, --point, --mask or --regions, or give their masks by --masklets.")
    begin_loading(options, options.model, before=f"{len(clip)} frames, ")

    from tqdm import tqdm

    from ..captioning import load

    model, processor = load(options.model, options.device, options.dtype, options.revision)
    generation = {} if options.num_beams is None else {"num_beams": options.num_beams}
    with tqdm(desc="frames", unit=" frames", disable=True if options.quiet else None) as bar:
        records = processor.caption_video(
            model,
            clip,
            regions or None,
            masklets,
            options.task,
            progress=lambda done, total: bar.update(done - bar.n),
            **generation,
        )
    for number, record in enumerate(records, 1):
        record["object"] = number
        seen = sum(mask is not None for mask in record["masks"])
        if options.json != "-" and not options.quiet:
            print(f"{number}  in {seen} of {len(clip)} frames  {record['caption']}")
    written = [path for path in (options.json, options.overlay, options.masks) if path not in (None, "-")]
    if options.json:
        write_json(records, options.json)
    if options.masks:
        size = next(mask["size"] for record in records for mask in record["masks"] if mask is not None)
        write_masklets(options.masks, records, (size[0], size[1]))
    if options.overlay:
        write_clip(options.overlay, _drawn(clip, records), clip.rate or 25.0)
    look(*written)
    for path in [] if options.quiet else written:
        print(f"written: {path}", file=sys.stderr if options.json == "-" else sys.stdout)
    return 0


def _check_folder(output: str | None, reads: list[Any]) -> None:
    """Refuses a folder of pictures that would replace something else."""
    if output is None:
        return
    if Path(output).suffix:
        prepare([output], reads, inside=False)
        return
    from ..files import refuse_inputs

    refuse_inputs([output], [one for one in reads if one], inside=False)
    folder = Path(output)
    if folder.exists() and not (folder.is_dir() and all(path.suffix == ".png" for path in folder.iterdir())):
        raise ValueError(f"{folder} holds other files than pictures of a clip; name a new folder.")


def _regions(options: argparse.Namespace) -> list[Any]:
    """The prompted objects, each with the frame that its prompt is on."""
    from dataclasses import replace

    from ..processing.region_prompts_sca import RegionPrompt
    from ..prompt_arguments import parse_prompt, read_mask_file, read_regions_file

    found: list[RegionPrompt] = []
    for kind, text in options.prompts or []:
        if kind == "mask":
            found.append(RegionPrompt(mask=read_mask_file(text)))
        else:
            parse_prompt(kind, text, found)
    found = [replace(prompt, extra={"frame": options.frame}) for prompt in found]
    if options.regions:
        by_name = read_regions_file(options.regions)
        if set(by_name) != {None}:
            raise ValueError(f"{options.regions} names images; the objects of a clip are one list.")
        found += by_name[None]
    return found


def _drawn(clip: Any, records: list[dict[str, Any]]) -> Iterator[Any]:
    """The frames with what is seen in them."""
    from ..drawing.overlay import DrawnRegion, draw_regions
    from ..processing.images_sca import as_image
    from ..processing.masks_sca import decode_rle

    for frame in range(len(clip)):
        picture = as_image(clip[frame])
        seen = [
            DrawnRegion(record["caption"], decode_rle(record["masks"][frame]), number=record["object"])
            for record in records
            if record["masks"][frame] is not None
        ]
        yield draw_regions(picture, seen)

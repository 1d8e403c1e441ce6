"""`sca-hf anything`: masks and captions of everything in images, folders and data sets."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .parsing import command, positive, quiet


_HELP = """\
caption everything in images

SOURCE is an image, a folder with all folders in it, or a data spec as `sca-hf data check` takes it
(coco:annotations=instances.json,images=photos). Each image is encoded once; a grid of points gives masks; only those
that pass the thresholds and overlap no better one are captioned. What a model finds good thresholds is saved with it;
options change single ones.

--output is a folder, and holds in the end
  records.jsonl   one line per image: its records, with the fields of SAM's automatic masks and caption, score
  coco.json       COCO JSON, one caption per annotation; masks as RLE
  failed.json     images that could not be read, and why
  overlays/       with --overlays, each image with its regions drawn
  journal/        what is done so far: a run that was stopped goes on when the same command is given again

Several processes share a run under torchrun, on one machine or on several that share the folder; --ray uses a Ray
cluster. The result does not depend on their number.
"""
_EXAMPLE = """\
examples:
  sca-hf anything street.jpg
  sca-hf anything photos --output captions --points-per-side 16 --overlays
  torchrun --nproc-per-node 8 -m sca_hf.cli anything photos --output captions
  sca-hf anything photos --boxes detections.json --min-score 0.4 --output captions
"""
_FLOATS = ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "mask_nms_thresh", "min_area", "max_area")


def add(commands: Any) -> None:
    """Declares the command."""
    declared = command(commands, "anything", run, _HELP, _EXAMPLE)
    declared.add_argument("sources", nargs="+", metavar="SOURCE", help="image, folder or data spec")
    declared.add_argument("--output", metavar="FOLDER", help="where the result goes (needed but for single images)")
    declared.add_argument("--model", help="folder, repository id or sca-tiny (default)")
    declared.add_argument("--points-per-side", type=positive, metavar="N", help="the grid has N x N points")
    declared.add_argument(
        "--points-per-batch", type=positive, metavar="N", help="points at once; less takes less memory"
    )
    declared.add_argument(
        "--crop-n-layers", type=int, metavar="N", help="1: also look at the 4 quarters; 2: and 16 parts"
    )
    for name in _FLOATS:
        declared.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=_FLOAT_HELP[name])
    declared.add_argument(
        "--min-mask-region-area", type=int, metavar="PIXELS", help="fill smaller holes, drop smaller specks"
    )
    declared.add_argument("--caption-prompt", choices=("point", "box", "mask"), help="what captions are asked by")
    declared.add_argument("--unique-captions", action="store_true", help="of regions of one caption keep the best")
    declared.add_argument(
        "--boxes", metavar="FILE.json", help="caption a detector's boxes instead; data: the data set's"
    )
    declared.add_argument("--min-score", type=float, default=0.0, metavar="X", help="leave out boxes of a lower score")
    declared.add_argument("--task", help="a task of the model, usually caption (the default) or recognition")
    declared.add_argument("--num-beams", type=positive, metavar="N", help="beams to search with (default: greedy)")
    declared.add_argument("--overlays", action="store_true", help="draw each image with its regions")
    declared.add_argument("--retry", action="store_true", help="try images again that failed before")
    declared.add_argument("--ray", type=positive, metavar="N", help="caption with N actors of a Ray cluster")
    declared.add_argument("--device", help="for instance cpu or cuda:1 (default: cuda where present)")


_FLOAT_HELP = {
    "pred_iou_thresh": "least IoU that the model expects of a mask",
    "stability_score_thresh": "least stability of a mask",
    "box_nms_thresh": "of boxes that overlap more (IoU), the better one stays",
    "mask_nms_thresh": "the same of masks",
    "min_area": "least share of the image that a mask covers",
    "max_area": "largest share",
}
_SETTINGS = (
    "points_per_side",
    "points_per_batch",
    "crop_n_layers",
    *_FLOATS,
    "min_mask_region_area",
    "caption_prompt",
    "task",
)


def run(options: argparse.Namespace) -> None:
    """Runs the command; exits with 1 where no image could be captioned."""
    quiet()
    from ..anything.folder import FolderRun, process_of_torchrun, run_folder
    from ..anything.sources import find_images, read_boxes
    from ..processing.anything_sca import AnythingSettings

    settings = {name: getattr(options, name) for name in _SETTINGS if getattr(options, name) is not None}
    settings |= {"unique_captions": True} if options.unique_captions else {}
    AnythingSettings(**settings)  # complains now, not after the model is loaded
    items = find_images(options.sources)
    boxes = options.boxes if options.boxes in (None, "data") else read_boxes(options.boxes, options.min_score)
    generation = {} if options.num_beams is None else {"num_beams": options.num_beams}
    if options.output is None:
        _print_images(options, items, settings, boxes, generation)
        return
    folder = FolderRun(
        options.output, options.model, settings, generation, boxes, options.overlays, options.retry, options.device
    )
    rank, world = process_of_torchrun()
    if world > 1 and options.device is None:
        folder.device = _device_of_process()
    caption = None
    if options.ray:
        from ..anything.folder import ray_captions

        caption = ray_captions(folder, options.ray)
    result = run_folder(folder, items, rank, world, caption)
    if result is None:
        return
    for name, error in result.failed.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    failed = f", {len(result.failed)} failed" if result.failed else ""
    print(f"{result.images} images, {result.regions} regions{failed}: {Path(options.output) / 'coco.json'}")
    if not result.images:
        raise SystemExit(1)


def _print_images(
    options: argparse.Namespace, items: list[Any], settings: dict[str, Any], boxes: Any, generation: dict[str, Any]
) -> None:
    """A table per image; for a look at a few of them."""
    if len(items) > 16:
        raise ValueError(f"{len(items)} images: name a folder for the result with --output.")
    from ..anything.folder import FolderRun, ImageCaptioner

    captioner = ImageCaptioner(FolderRun("", options.model, settings, generation, boxes, device=options.device))
    for item in items:
        entry = captioner(item)
        if "error" in entry:
            raise ValueError(f"{item.name}: {entry['error']}")
        print(f"{item.name}: {len(entry['records'])} regions")
        for number, record in enumerate(entry["records"], 1):
            x, y, width, height = record["bbox"]
            place = f"{x:g},{y:g},{x + width:g},{y + height:g}"
            text = " ".join("".join(c if c.isprintable() else " " for c in record["caption"]).split())
            print(f"{number:4}  iou {record['predicted_iou']:.2f}  {place:20}  {text}")


def _device_of_process() -> str:
    import os

    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"

"""`sca-hf video`: masks through time and one caption for each object of a clip."""

import argparse
import glob
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import digest_of, hash_file, json_line, refuse_inputs
from .parsing import (
    Failures,
    add_loading,
    add_prompts,
    begin_loading,
    command,
    look,
    natural,
    positive,
    prepare,
    resumable,
    write_json,
)


if TYPE_CHECKING:
    from ..run_log import RunLog


_HELP = """\
caption objects of clips

CLIP is a video file (with the extra `video`, which brings PyAV) or a folder with a picture per frame. Each object is
prompted on one frame, as in `sca-hf caption`, and followed through the clip by the model's tracker; its caption is
made from all frames that show it. Trackers are the video models of SAM 2, SAM 3 and EdgeTAM.

Any other model, sca-photo among them, captions objects whose masks are given frame by frame:
  --masklets masks.json      per object a list of COCO RLE, null where it is not seen, or the records of --json
  --masklets Annotations     a folder as DAVIS and YouTube-VOS have it: pictures of frames, whose values number the
                             objects; or with such a folder, or a .json, for each clip by its name
  --masklets mask_dict.json  MeViS (with meta_expressions.json beside it), or a .json of VideoRefer

A regions file (--regions) may name a frame for each object: [{"box": [20, 30, 120, 90], "frame": 12}, ...], and have
such a list for each clip: {"clip name": [...], ...}.

Of several clips, all records are in one --json, while overlays and masks have the clip's name in theirs. A clip that
fails does not stop the others; the exit code is then 1. Interrupted or killed, the same command resumes with the clip
that it was at, provided that --json names a file.
"""
_EXAMPLE = """\
examples:
  sca-hf video clip.mp4 --model ./sca-sam2 --box 40,60,210,300 --json objects.json --overlay captioned.mp4
  sca-hf video frames/ --masklets Annotations/bear --json bear.json
  sca-hf video JPEGImages/* --masklets Annotations --json davis.json --masks predicted
"""


def add(commands: Any) -> None:
    """Declares the command."""
    declared = command(commands, "video", run, _HELP, _EXAMPLE)
    declared.add_argument("clips", nargs="+", metavar="CLIP", help="video file, or folder of frames")
    declared.add_argument("--model", help="folder, repository id or sca-photo (default)")
    add_loading(declared)
    add_prompts(declared, "an object")
    declared.add_argument("--frame", type=natural, default=0, metavar="N", help="frame of these prompts (default: 0)")
    declared.add_argument("--regions", metavar="FILE.json", help="objects from a file")
    declared.add_argument("--masklets", metavar="PATH", help="masks of the objects, in place of prompts")
    declared.add_argument("--task", default="caption", help="one of the model's tasks (default: %(default)s)")
    declared.add_argument(
        "--length", help="of the captions: short, sentence, detailed or a number of words, if the model learned it"
    )
    declared.add_argument("--language", metavar="TAG", help="of the captions, such as de, if the model learned it")
    declared.add_argument("--num-beams", type=positive, metavar="N", help="beams to search with (default: greedy)")
    declared.add_argument("--json", metavar="OUT", help="write the records, masks as COCO RLE; - for stdout")
    declared.add_argument("--overlay", metavar="OUT", help="draw the clip: .mp4, .mkv, .mov, or a folder of pictures")
    declared.add_argument("--masks", metavar="OUT", help="write masks as DAVIS (a folder) or MeViS (a .json) has them")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns 1 where one of several clips could not be captioned."""
    from ..data.clips import open_clip

    clips = _named(options.clips)
    reads = [*clips.values(), options.regions, options.masklets, options.model]
    prepare([options.json], reads, inside=False)
    for name in clips:
        masks, overlay = _outputs(options, name, clips)
        _check_output(masks, reads, is_clip=False)
        _check_output(overlay, reads, is_clip=True)
    regions = _regions(options, clips)
    frames = sum(len(open_clip(path)) for path in clips.values())
    for name in clips if options.masklets else ():
        _masklets(options, name, clips)
    begin_loading(options, options.model, before=f"{frames} frames, ")

    failures = Failures(options, len(clips), "clips")
    with resumable(options), ExitStack() as stack:
        log = stack.enter_context(_log(options)) if len(clips) > 1 and options.json not in (None, "-") else None
        records = _caption_all(options, clips, regions, log, failures)
        if options.json:
            write_json([record for found in records.values() for record in found], options.json)
        if log is not None:
            log.close()
            for file in (log.part, _run_file(options)):
                Path(str(file)).unlink()
    written = [str(one) for name in records for one in _outputs(options, name, clips) if one is not None]
    written += [options.json] if options.json not in (None, "-") else []
    look(*written)
    for path in [] if options.quiet else written:
        print(f"written: {path}", file=sys.stderr if options.json == "-" else sys.stdout)
    return failures.exit_code()


def _caption_all(
    options: argparse.Namespace,
    clips: dict[str, Path],
    regions: dict[str, list[Any]],
    log: "RunLog | None",
    failures: Failures,
) -> dict[str, list[dict[str, Any]]]:
    """Captions all clips that the log has not, and returns the records of each that did not fail."""
    from ..captioning import load

    done, records = {} if log is None else log.lines(), {}
    model, processor = load(options.model, options.device, options.dtype, options.revision)
    for name, path in clips.items():
        line, stamp = done.get(name), digest_of([_stamps(path), _stamps(_masklets(options, name, clips))])
        whole = all(output is None or output.exists() for output in _outputs(options, name, clips))
        if log is not None and line is not None and line.about == stamp and whole:
            records[name] = next(iter(log.entries([line])))["records"]
            continue
        try:
            found = _caption(options, model, processor, name, clips, regions[name])
        except (ValueError, OSError) as error:
            if len(clips) == 1:
                raise
            failures.add(name, str(error))
            continue
        records[name] = found if len(clips) == 1 else [{"clip": name, **record} for record in found]
        if log is not None:
            log.append([json_line({"clip": name, "stamp": stamp, "records": records[name]})])
    return records


def _caption(
    options: argparse.Namespace,
    model: Any,
    processor: Any,
    name: str,
    clips: dict[str, Path],
    regions: list[Any],
) -> list[dict[str, Any]]:
    """Captions one clip and writes its masks and overlay; returns its records."""
    from tqdm import tqdm

    from ..data.clips import open_clip, read_masklets, write_clip, write_masklets

    clip, source = open_clip(clips[name]), _masklets(options, name, clips)
    masklets = None if source is None else read_masklets(source, clip)
    generation = {} if options.num_beams is None else {"num_beams": options.num_beams}
    with tqdm(desc=name, unit=" frames", disable=True if options.quiet else None) as bar:
        found: list[dict[str, Any]] = processor.caption_video(
            model,
            clip,
            regions or None,
            masklets,
            options.task,
            progress=lambda done, total: bar.update(done - bar.n),
            length=options.length,
            language=options.language,
            **generation,
        )
    if options.json != "-" and not options.quiet and len(clips) > 1:
        print(name)
    for number, record in enumerate(found, 1):
        record["object"] = number
        seen = sum(mask is not None for mask in record["masks"])
        if options.json != "-" and not options.quiet:
            print(f"{number}  in {seen} of {len(clip)} frames  {record['caption']}", flush=True)
    masks, overlay = _outputs(options, name, clips)
    if masks:
        write_masklets(masks, found, clip.names)
    if overlay:
        write_clip(overlay, _drawn(clip, found), clip.rate or 25.0)
    return found


def _named(paths: list[str]) -> dict[str, Path]:
    """Clips by their names: a folder's, or a file's without what is behind the dot."""
    clips: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"there is no clip {path}; give video files or folders of frames.")
        name = path.resolve().name if path.is_dir() else path.stem
        if former := next((clips[known] for known in clips if known.casefold() == name.casefold()), None):
            raise ValueError(f"{former} and {path} are both called {name}; give one of them another name.")
        clips[name] = path
    return clips


def _outputs(options: argparse.Namespace, name: str, clips: dict[str, Path]) -> tuple[Path | None, Path | None]:
    """Where masks and overlay of one clip go."""

    def of_clip(output: str | None) -> Path | None:
        path = None if output is None else Path(output)
        if path is None or len(clips) == 1:
            return path
        return path.with_name(f"{path.stem}-{name}{path.suffix}") if path.suffix else path / name

    return of_clip(options.masks), of_clip(options.overlay)


def _check_output(output: Path | None, reads: list[Any], is_clip: bool) -> None:
    """Refuses a name that cannot be written, and a folder of pictures that would replace something else."""
    from ..data.clips import check_clip_name

    if output is None:
        return
    if is_clip:
        check_clip_name(output)
    elif output.suffix not in ("", ".json"):
        raise ValueError(f"{output}: masks are written into a folder or a .json file.")
    if output.suffix:
        prepare([output], reads, inside=False)
        return
    refuse_inputs([output], [one for one in reads if one], inside=False)
    if output.exists() and not (output.is_dir() and all(path.suffix == ".png" for path in output.iterdir())):
        raise ValueError(f"{output} holds other files than pictures of a clip; name a new folder.")
    output.parent.mkdir(parents=True, exist_ok=True)


def _regions(options: argparse.Namespace, clips: dict[str, Path]) -> dict[str, list[Any]]:
    """The prompted objects of each clip, each with the frame that its prompt is on."""
    from dataclasses import replace

    from ..prompt_arguments import read_prompts

    shared = [replace(prompt, extra={"frame": options.frame}) for prompt in read_prompts(options.prompts)[None]]
    by_name = read_prompts(None, options.regions)
    shared += by_name.pop(None)
    if unknown := sorted(map(str, set(by_name) - set(clips))):
        raise ValueError(f"{options.regions} names {unknown[0]!r}, which is not among the CLIPs.")
    found = {name: shared + by_name.get(name, []) for name in clips}
    for name, regions in found.items():
        if (options.masklets is None) == (not regions):
            where = f" of {name}" if len(clips) > 1 else ""
            raise ValueError(
                f"name the objects{where} by --box, --point, --mask or --regions, or give their masks by --masklets."
            )
    return found


def _masklets(options: argparse.Namespace, name: str, clips: dict[str, Path]) -> Path | None:
    """Where the masks of one clip are."""
    if options.masklets is None:
        return None
    whole = Path(options.masklets)
    found = next((path for path in (whole / name, whole / f"{name}.json") if path.exists()), None)
    if found is None and len(clips) > 1 and whole.is_dir():
        raise FileNotFoundError(f"{whole} has neither {name} nor {name}.json, the masks of {clips[name]}.")
    return found or whole


def _stamps(path: Path | None) -> dict[str, str]:
    """What tells files from others of the same name."""
    from ..data.pictures import picture_stamp

    files = [] if path is None else sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: picture_stamp(str(file)) for file in files}


def _run_file(options: argparse.Namespace) -> Path:
    return Path(options.json + ".run.json")


def _log(options: argparse.Namespace) -> "RunLog":
    """What is done of a run over several clips."""
    from ..run_identity import model_identity, versions
    from ..run_log import RunLog

    output = Path(options.json)
    files = [options.regions, *(text for kind, text in options.prompts or [] if kind == "mask")]
    settings = {name: getattr(options, name) for name in ("prompts", "frame", "task", "num_beams", "dtype")}
    asked = {"length": options.length, "language": options.language}
    settings |= {name: value for name, value in asked.items() if value is not None}
    settings |= {"model": model_identity(options.model, options.revision), "versions": versions()}
    settings["files"] = [hash_file(file) for file in files if file]

    def head(line: bytes) -> tuple[str, str]:
        entry = json.loads(line)
        if not isinstance(entry, dict) or not {"clip", "stamp", "records"} <= entry.keys():
            raise ValueError("not a clip")
        return entry["clip"], entry["stamp"]

    part = output.with_name(output.name + ".part-0")
    return RunLog(output, _run_file(options), settings, part, glob.escape(output.name) + ".part-*", head)


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

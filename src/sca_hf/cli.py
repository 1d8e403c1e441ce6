"""The command line, `sca-hf`. Each command imports what it needs, so that one does not wait for the others."""

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO


if TYPE_CHECKING:
    from .captioning import CaptionedRegion
    from .prompt_arguments import RegionPrompt

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
They hold for every IMAGE. Without any, the whole image is one region.

What comes back: score is the mean log-probability of the caption's tokens (the nearer to 0, the surer), iou what the
model expects its mask to reach.
"""
_CAPTION_EXAMPLE = """\
example:
  sca-hf caption street.jpg --box 40,60,210,300 --point 320,180 --json street.json --overlay street-captions.png
"""
_INFO_EXAMPLE = """\
example:
  sca-hf info ./my-model
"""
_CONVERT_EXAMPLE = """\
example:
  sca-hf convert ./authors-checkpoint ./sca-gpt2-large --tokenizer gpt2-large --sam facebook/sam-vit-huge
"""
_SCENE_EXAMPLE = """\
example:
  sca-hf scene scene.png --seed 20000010 --regions scene.json
  sca-hf caption scene.png --regions scene.json --overlay captions.png
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, or 2 after an error."""
    options = build_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        # A caption may hold letters that the terminal's encoding has not.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        options.run(options)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if options.debug:
            raise
        print(f"sca-hf {options.command}: error: {_sentence(error)}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="sca-hf",
        description="Segment and Caption Anything: point, box or mask in; mask and caption out.",
        epilog="sca-hf COMMAND --help explains a command, with an example.",
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    _add_caption(commands)
    _add_info(commands)
    _add_convert(commands)
    _add_scene(commands)
    return parser


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


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str, example: str) -> Any:
    command = commands.add_parser(
        name,
        help=text.split("\n", 1)[0],
        description=text,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(run=run)
    return command


def _add_caption(commands: Any) -> None:
    command = _command(commands, "caption", _caption, _CAPTION_HELP, _CAPTION_EXAMPLE)
    command.add_argument("images", nargs="+", metavar="IMAGE", help="file or URL")
    command.add_argument("--model", help="folder or repository id (default: the bundled sca-tiny)")
    for kind, form in (("box", "X1,Y1,X2,Y2"), ("point", "X,Y[,LABEL]"), ("mask", "FILE")):
        command.add_argument(
            f"--{kind}", action=_Prompts, dest="prompts", metavar=form, help=f"a region by its {kind}"
        )
    command.add_argument("--regions", metavar="FILE.json", help="regions from a file")
    command.add_argument("--task", help="a task of the model, usually caption (the default) or recognition")
    command.add_argument("--num-beams", type=_positive, metavar="N", help="beams to search with (default: greedy)")
    command.add_argument(
        "--batch-size", type=_positive, default=8, metavar="N", help="images at a time (default: %(default)s)"
    )
    command.add_argument("--device", help="for instance cpu or cuda:1 (default: cuda where present)")
    command.add_argument("--json", metavar="OUT", help="write the records, masks as COCO RLE; - for the terminal")
    command.add_argument(
        "--overlay", metavar="OUT.png", help="draw the result; several images go to OUT-<image name>.png"
    )


def _add_info(commands: Any) -> None:
    text = "show what a saved model consists of: parts, parameters, precision, kind of repository"
    command = _command(commands, "info", _info, text, _INFO_EXAMPLE)
    command.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder or repository id (default: the bundled sca-tiny)"
    )


def _add_convert(commands: Any) -> None:
    text = "convert a checkpoint of the original authors into a model that loads in three lines"
    command = _command(commands, "convert", _convert, text, _CONVERT_EXAMPLE)
    command.add_argument("source", metavar="SRC", help="folder or repository id in the authors' format")
    command.add_argument("destination", metavar="DST", help="folder to write")
    command.add_argument(
        "--tokenizer", metavar="PATH_OR_ID", help="of the language model (default: as SRC says, or in SRC itself)"
    )
    command.add_argument("--sam", metavar="PATH_OR_ID", help="where to take the image processor from (default: SAM's)")


def _add_scene(commands: Any) -> None:
    text = "render a picture of the synthetic data set `scenes`, which the bundled model knows"
    command = _command(commands, "scene", _scene, text, _SCENE_EXAMPLE)
    command.add_argument("output", metavar="OUT.png", help="picture to write")
    command.add_argument("--seed", type=int, default=20_000_000, help="20000000 and up: the unseen test scenes")
    command.add_argument("--regions", metavar="OUT.json", help="write prompts of its objects, for caption --regions")


def _caption(options: argparse.Namespace) -> None:
    overlays = _overlay_paths(options.overlay, options.images)
    if options.json not in (None, "-"):
        _prepare(Path(options.json))
    prompts = _prompts_per_image(options)
    _quiet()

    from .captioning import caption_images, draw_captions, load

    model, processor = load(options.model, options.device)
    generation = {} if options.num_beams is None else {"num_beams": options.num_beams}
    records = []
    results = caption_images(model, processor, options.images, prompts, options.task, options.batch_size, **generation)
    for index, (picture, regions) in enumerate(results):
        if options.json != "-":
            print(format_table(options.images[index], regions, shutil.get_terminal_size((119, 24)).columns))
        if overlays:
            draw_captions(picture, regions).save(overlays[index])
        records += [region.to_json() for region in regions] if options.json else []
    if options.json == "-":
        _write_json(records, sys.stdout)
    elif options.json:
        with Path(options.json).open("w", encoding="utf-8") as file:
            _write_json(records, file)
        print(f"records: {options.json}")
    for path in overlays:
        print(f"overlay: {path}")


def _info(options: argparse.Namespace) -> None:
    _quiet()
    from .captioning import bundled_model
    from .repository_info import describe_repository

    print(describe_repository(options.model or str(bundled_model())))


def _convert(options: argparse.Namespace) -> None:
    from .hub.convert import convert

    print(convert(options.source, options.destination, tokenizer=options.tokenizer, sam=options.sam))


def _scene(options: argparse.Namespace) -> None:
    from .data.scenes import render_scene

    if options.seed < 0:
        raise ValueError(f"--seed is {options.seed}, expected 0 or more.")
    scene = render_scene(options.seed)
    output = Path(options.output)
    _check_picture_name(output)
    _prepare(output)
    scene.to_pil().save(output)
    if options.regions:
        _prepare(Path(options.regions))
        # Boxes and points by turns, so that both are seen at work.
        prompts = [
            {"points": [list(thing.point)]} if index % 2 else {"box": list(thing.box)}
            for index, thing in enumerate(scene.objects)
        ]
        truth = [
            {**prompt, "category": thing.category, "captions": list(thing.captions)}
            for prompt, thing in zip(prompts, scene.objects, strict=True)
        ]
        with Path(options.regions).open("w", encoding="utf-8") as file:
            _write_json(truth, file)


def format_table(image: str, regions: "Sequence[CaptionedRegion]", width: int) -> str:
    """The regions of one image as lines of at most `width` characters, where that leaves the captions room."""
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
        start = "".join(f"{cell:<{room}}  " for cell, room in zip(row, widths, strict=False))
        text = textwrap.wrap(row[5], max(24, width - indent)) or [""]
        lines += [start + text[0], *(" " * indent + more for more in text[1:])]
    return "\n".join(lines)


def _prompts_per_image(options: argparse.Namespace) -> "list[list[RegionPrompt]]":
    from .prompt_arguments import RegionPrompt, parse_prompt, read_mask_file, read_regions_file

    shared: list[RegionPrompt] = []
    for kind, text in options.prompts or []:
        if kind == "mask":
            shared.append(RegionPrompt(mask=read_mask_file(text)))
        else:
            parse_prompt(kind, text, shared)
    if not options.regions:
        return [shared] * len(options.images)
    by_name = read_regions_file(options.regions)
    shared = shared + by_name.pop(None, [])
    names = [image if image in by_name else Path(image).name for image in options.images]
    if unknown := set(by_name) - set(names):
        raise ValueError(f"{options.regions} names {sorted(map(str, unknown))[0]!r}, which is no IMAGE of this call.")
    return [shared + by_name.get(name, []) for name in names]


def _overlay_paths(overlay: str | None, images: Sequence[str]) -> list[Path]:
    if overlay is None:
        return []
    path = Path(overlay)
    _check_picture_name(path)
    _prepare(path)
    if len(images) == 1:
        return [path]
    stems = [Path(image).stem for image in images]
    named = [stem if stems.count(stem) == 1 else f"{stem}-{number}" for number, stem in enumerate(stems, 1)]
    return [path.with_name(f"{path.stem}-{stem}{path.suffix}") for stem in named]


def _check_picture_name(path: Path) -> None:
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"{path}: name a picture as .png, .jpg or .webp.")


def _prepare(path: Path) -> None:
    """Makes the folder of an output now, so that a wrong name is not found out after the work."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a file to write.")
    path.parent.mkdir(parents=True, exist_ok=True)


def _write_json(records: list[dict[str, Any]], file: TextIO) -> None:
    """A JSON list with one record on each line."""
    file.write("[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]\n")


def _figures(value: float | list[float] | None, form: str) -> str:
    if value is None:
        return "-"
    return " ".join(format(v, form) for v in ([value] if isinstance(value, float) else value))


def _sentence(error: Exception) -> str:
    """What an error says; its kind too where it was not raised for users to read."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) and error.filename:
        text = f"{error.filename}: {error.strerror}."
    known = isinstance(error, ValueError | OSError | RuntimeError | TypeError | ImportError)
    return text if known else f"{type(error).__name__}: {text} (--debug shows where)"


def _quiet() -> None:
    """Leaves the terminal to the result: no progress bars of loading, no retries announced."""
    import huggingface_hub
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

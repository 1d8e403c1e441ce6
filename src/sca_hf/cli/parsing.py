"""What the commands have in common: how they are declared, the types of their options, how output is written."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

from ..files import in_one_line, refuse_inputs, write_whole
from ..model_names import DEFAULT_MODEL, resolve_model
from ..yaml_files import read_yaml


_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def command(commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], text: str, example: str) -> Any:
    """Declares a command; the first line of `text` is its summary."""
    added = commands.add_parser(
        name,
        help=text.split("\n", 1)[0],
        description=text,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    added.add_argument("--debug", action="store_true", help="show the traceback of an error")
    added.set_defaults(run=run)
    return added


def add_loading(declared: Any) -> None:
    """Declares the options of commands that load a model."""
    add_revision(declared)
    declared.add_argument("--device", help="for instance cpu or cuda:1 (default: cuda if available)")
    add_dtype(declared, "dtype of the weights (default: as saved)")
    add_quiet(declared)


def add_revision(declared: Any) -> None:
    """Declares which state of a repository on the Hub is meant."""
    declared.add_argument("--revision", metavar="REV", help="branch, tag or commit of the repository")


def add_dtype(declared: Any, text: str) -> None:
    """Declares a precision."""
    declared.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help=text)


def add_agreement(declared: argparse.ArgumentParser) -> None:
    """Declares `--agreement`."""
    declared.add_argument(
        "--agreement",
        action="store_true",
        help="also say how surely a listener finds each region by its caption, among those of its image (0 to 1)",
    )


def add_workers(declared: Any, batch_size: int | None) -> None:
    """Declares `--batch-size`, which None leaves to the device, and `--num-workers`."""
    declared.add_argument(
        "--batch-size",
        type=positive,
        default=batch_size,
        metavar="N",
        help=f"images captioned together (default: {batch_size or 'up to 8'})",
    )
    declared.add_argument(
        "--num-workers",
        type=natural,
        metavar="N",
        help="processes that share the model on a CPU, 0 for none (default: one per thread, if memory allows)",
    )


def add_prompts(declared: Any, what: str) -> None:
    """Declares the options that show where something is: all in one list, `prompts`, in the order of the line."""
    for kind, form in (("box", "X1,Y1,X2,Y2"), ("point", "X,Y[,LABEL]"), ("mask", "FILE")):
        declared.add_argument(
            f"--{kind}",
            action="append",
            type=partial(_prompt, kind),
            dest="prompts",
            metavar=form,
            help=f"{what} by its {kind}",
        )


def _prompt(kind: str, text: str) -> tuple[str, str]:
    return kind, text


def add_quiet(declared: Any) -> None:
    """Declares the option that `notice` heeds."""
    declared.add_argument("--quiet", action="store_true", help="print only results and errors")


def notice(options: argparse.Namespace, text: str) -> None:
    """Tells on stderr what goes on, once for all processes of a run, unless the command was asked to be quiet."""
    if not getattr(options, "quiet", False) and os.environ.get("RANK", "0") == "0":
        print(f"sca-hf {options.command}: {text}", file=sys.stderr, flush=True)


def notice_scope(options: argparse.Namespace, *models: str | None) -> None:
    """Tells what models know, if that is little."""
    if options.quiet:
        return
    from ..hub.info import read_config, scope_notice

    for model in models or (None,):
        name = model or DEFAULT_MODEL
        revision = None if os.path.isdir(resolve_model(name)) else options.revision
        text = scope_notice(name, read_config(name, revision).scope)
        if text is not None:
            notice(options, text)


def begin_loading(options: argparse.Namespace, *models: str | None, before: str = "") -> None:
    """Tells which model is loaded, and what the models know if that is little; `before` goes in front."""
    notice(options, f"{before}loading {(models or (None,))[0] or DEFAULT_MODEL}")
    quiet(downloads=not options.quiet)
    notice_scope(options, *models)


@contextmanager
def resumable(options: argparse.Namespace) -> Iterator[None]:
    """Within, Ctrl-C says how to resume."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        interruption.args = interruption.args or (f"to resume, run the same command: {options.line}",)
        raise


class Failures:
    """What could not be done, told as it happens; the others go on, and the command ends with 1."""

    def __init__(self, options: argparse.Namespace, total: int, what: str = "images") -> None:
        self._options, self._total, self._what, self.count = options, total, what, 0

    def add(self, name: str, why: str) -> None:
        """Tells of one."""
        self.count += 1
        print(f"sca-hf {self._options.command}: failed: {in_one_line(name)}: {why}", file=sys.stderr, flush=True)

    def exit_code(self) -> int:
        """Returns 0 without any, else 1."""
        if self.count and self._total > 1:
            notice(self._options, f"{self.count} of {self._total} {self._what} failed")
        return int(self.count > 0)


def positive(text: str) -> int:
    """Reads a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def languages(text: str) -> str:
    """Reads the tag of a language, or several between commas."""
    from ..processing.languages_sca import language_tag

    try:
        return ",".join(map(language_tag, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def natural(text: str) -> int:
    """Reads a whole number, 0 or more."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)


def size(text: str) -> int:
    """Reads a size such as 24GB as bytes; of memory, makers write GB for what is 2**30 bytes."""
    units = {"gib": 2**30, "gb": 2**30, "mib": 2**20, "mb": 2**20}
    lower = text.lower().replace(" ", "")
    unit = next((name for name in units if lower.endswith(name)), None)
    try:
        bytes_ = float(lower.removesuffix(unit)) * units[unit] if unit else 0.0
    except ValueError:
        bytes_ = 0.0
    if not 0 < bytes_ < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a size such as 24GB, got {text!r}")
    return int(bytes_)


def add_tools(declared: Any) -> None:
    """Declares the options that write for annotation tools."""
    declared.add_argument(
        "--write",
        action="append",
        default=[],
        choices=("cvat", "label_studio", "labelme", "yolo"),
        metavar="TOOL",
        help="also write a folder for cvat, label_studio, labelme or yolo to import (docs/correction.md); repeatable",
    )
    declared.add_argument(
        "--shapes",
        choices=("pixels", "polygons", "boxes"),
        default="pixels",
        help="how regions are written: masks in pixels, polygons or boxes (default: %(default)s)",
    )


def check_picture_name(path: Path) -> None:
    """Raises unless a picture can be saved under this name."""
    if path.suffix.lower() not in _PICTURES:
        raise ValueError(f"{path}: the name of a picture must end with .png, .jpg or .webp.")


def prepare(outputs: Iterable[str | Path | None], inputs: Any, inside: bool = True) -> None:
    """Makes the folders of files to write before the work starts, so that a wrong name is reported early.

    Args:
        outputs: The files; None and `-` are none.
        inputs: Paths and data specs that are read; no output may be one of them, see [`refuse_inputs`].
        inside: Whether a file that is there already, in a folder that is read, is one of its files too.
    """
    files = [Path(output) for output in outputs if output is not None and str(output) != "-"]
    inputs = [one for one in inputs if one is not None]
    specs = [one for one in inputs if str(one).endswith((".yaml", ".yml")) and os.path.isfile(one)]
    refuse_inputs(files, [inputs, [read_yaml(one) for one in specs]], inside)
    for path in files:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a directory, expected a file to write.")
        path.parent.mkdir(parents=True, exist_ok=True)


def write_json(records: list[dict[str, Any]], output: str) -> None:
    """Writes a JSON list with one record on each line; `-` stands for stdout."""
    text = "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]\n"
    if output == "-":
        print(text, end="")
    else:
        write_whole(output, text)


def look(*outputs: str | Path) -> None:
    """Opens files that a command wrote, before it says so; raises where one is gone, empty or damaged."""
    for path in (Path(output) for output in outputs if str(output) != "-"):
        if path.exists() and not path.is_file() and not path.is_dir():
            continue  # a device or a pipe
        if path.is_dir() and any(path.iterdir()):
            continue
        if not path.is_file() or not path.stat().st_size:
            state = "empty" if path.is_file() else "gone"
            raise OSError(f"{path} was written, but is {state} now: something else changed it. Run the command again.")
        try:
            if path.suffix.lower() == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix.lower() in _PICTURES:
                from PIL import Image

                with Image.open(path) as picture:
                    picture.verify()
        except (OSError, ValueError, SyntaxError) as error:
            raise OSError(f"{path} was written, but cannot be read ({error}). Run the command again.") from error


def wrapped(names: Iterable[str]) -> str:
    """Names as indented lines of a help text."""
    indent = "  "
    return fill(", ".join(names), 115, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False) + "\n"


def process_device(device: str | None) -> str | None:
    """Returns the device as given, or, under torchrun, the GPU of this process where there is one; else None."""
    local = os.environ.get("LOCAL_RANK")
    if device is not None or local is None:
        return device
    import torch

    return f"cuda:{local}" if torch.cuda.is_available() else None


def print_skipped() -> None:
    """Tells what was left out of the data that the command opened, and why, where it is not too early to be read."""
    from ..data.loading import OPENED

    for report in OPENED:
        for line in report.skipped():
            print(line, file=sys.stderr)


def quiet(downloads: bool = False) -> None:
    """Keeps progress bars of loading and notices of retries off the terminal.

    Args:
        downloads: whether progress of downloads is shown where stderr is a terminal, and that of reading data sets.
    """
    if not downloads:
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
        if "datasets" in sys.modules:
            sys.modules["datasets"].disable_progress_bars()
    shown = downloads and sys.stderr.isatty()
    if not shown and "transformers" not in sys.modules:  # they read these where they are imported, which takes long
        os.environ |= dict.fromkeys(("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"), "error")
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        return
    import huggingface_hub
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    if shown:
        huggingface_hub.utils.enable_progress_bars()

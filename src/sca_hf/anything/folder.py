"""A run over many images: shared by processes, resumable, finished by whoever is last.

On a Ray cluster, Ray Data hands images to actors that hold the model, and the driver keeps the log.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..captioning import IMAGE_ERRORS, image_error, load, with_doubt
from ..data.writers import Shapes, WriteReport, write_coco, write_regions
from ..drawing import DrawnRegion, draw_regions
from ..environment import install_command
from ..files import encode, json_line, save_picture, to_json, write_whole
from ..model_names import DEFAULT_MODEL
from ..parallel import count_workers, images_at_once, run_ahead
from ..processing.anything_sca import caption_each
from ..processing.masks_sca import decode_rle
from ..run_identity import model_identity, versions
from ..run_log import Line, RunLog, RunLogError
from .sources import OVERLAYS, Boxes, ImageItem, boxes_of


_SUM = ', "sum": '


@dataclass
class FolderRun:
    """What decides the result of a run.

    Attributes:
        output: The folder for `records.jsonl`, `coco.json`, `failed.json` and the journal.
        model: folder or repository id; None is the bundled one.
        settings: Fields of [`AnythingSettings`] that differ from the model's own.
        generation: Arguments of `generate`.
        boxes: Boxes by image name, in place of the grid; "data" takes those of the data set.
        overlays: Whether each image is also drawn into `output`/overlays.
        retry: Whether failed images are tried again.
        device: The device to run on; None takes CUDA where it is present.
        dtype: The precision of the weights, for instance "bfloat16"; None: as saved.
        revision: The branch, tag or commit of `model`, where it is a repository id.
        batch_size: How many images are captioned together; None fits the device. Results differ at most in their last
            bits by this.
        num_workers: How many processes caption them; None: see [`count_workers`].
    """

    output: str
    model: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    boxes: Boxes | str | None = None
    overlays: bool = False
    retry: bool = False
    device: str | None = None
    dtype: str | None = None
    revision: str | None = None
    batch_size: int | None = None
    num_workers: int | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed; each picture is compared by its own line of the log."""
        boxes = self.boxes
        if boxes is not None and not isinstance(boxes, str):
            boxes = f"sha256 {hashlib.sha256(json.dumps(boxes, sort_keys=True).encode()).hexdigest()}"
        return {
            "model": model_identity(self.model, self.revision),
            "versions": versions(),
            "dtype": self.dtype,
            "settings": self.settings,
            "generation": self.generation,
            "boxes": boxes,
            "overlays": self.overlays,
        }

    def boxes_of(self, item: ImageItem) -> list[list[float]] | None:
        """Returns the boxes of an image, none where a detector's file has none; None where a grid is to find some."""
        if self.boxes is None or isinstance(self.boxes, str):
            return None if self.boxes is None else item.boxes()
        return boxes_of(self.boxes, item.name) or []

    def overlay_of(self, item: ImageItem) -> Path:
        """Returns where the drawing of an image goes."""
        return Path(self.output) / OVERLAYS / f"{file_name(item.name)}.png"


class ImageCaptioner:
    """A loaded model that turns images of a run into lines of its log."""

    def __init__(self, run: FolderRun) -> None:
        self.run = run
        self.model, self.processor = load(run.model, run.device, run.dtype, run.revision)
        self.settings = self.processor.anything_settings_for(run.settings)
        asked = self.processor(original_sizes=[(8, 8)], **self.settings.asked)  # what is unknown is no image's fault
        self.task = self.processor.tasks[int(asked["task_ids"][0, 0])]
        self.batch_size = run.batch_size or images_at_once(self.model)

    def captions(self, items: Sequence[ImageItem]) -> Iterator[dict[str, Any]]:
        """Yields what [`__call__`] returns of all images, in order; worker processes are ahead of the reader."""
        workers = count_workers(self.run.num_workers, self.model)
        workers = min(workers, len(items)) if len(items) > 1 else 0
        # Few images are divided more finely, for all workers to have some.
        size = max(1, min(self.batch_size, len(items) // (2 * workers))) if workers else self.batch_size
        starts = range(0, len(items), size)
        for entries in run_ahead(lambda start: self(items[start : start + size]), starts, workers):
            yield from entries

    def __call__(self, items: Sequence[ImageItem]) -> list[dict[str, Any]]:
        """Captions images together; what is wrong with one is part of its own result."""
        opened = [self._opened(item) for item in items]
        described = iter(self._described([one for one in opened if not isinstance(one, Exception)]))
        entries = []
        for item, one in zip(items, opened, strict=True):
            known = {"image": item.name, "picture": item.stamp}
            records = one if isinstance(one, Exception) else next(described)
            if isinstance(records, Exception):
                entries.append({**known, "error": image_error(records)})
                continue
            picture = one[0]
            if self.run.overlays:  # what cannot be drawn for want of room is no fault of the picture
                path = self.run.overlay_of(item)
                path.parent.mkdir(parents=True, exist_ok=True)
                save_picture(draw_records(picture, records), path)
            entries.append({**known, "width": picture.width, "height": picture.height, "records": records})
        return entries

    def _opened(self, item: ImageItem) -> Any:
        """Returns an image with its boxes, or what is wrong with it."""
        try:
            return item.load(), self.run.boxes_of(item)
        except IMAGE_ERRORS as error:
            return error

    def _described(self, opened: list[tuple[Any, Any]]) -> list[Any]:
        """Returns the records of each image, or what is wrong with it: then each is captioned by itself."""
        if not opened:
            return []
        pictures, boxes = zip(*opened, strict=True)
        given = None if self.run.boxes is None else boxes
        try:
            return caption_each(self.model, self.processor, pictures, self.settings, given, **self.run.generation)
        except IMAGE_ERRORS as error:
            if len(opened) == 1:
                return [error]
        return [records for one in opened for records in self._described([one])]


def file_name(name: str) -> str:
    """Returns a file's name for an image's, which may be a path or hold anything; no two images have the same."""
    safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "-" for letter in name)
    if safe == name and len(name) <= 100 and not name.startswith("."):
        return name
    return f"{safe[:100].lstrip('.')}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def draw_records(picture: Any, records: Iterable[dict[str, Any]]) -> Any:
    """Draws the masks and captions of an image, numbered in their order, large ones below small ones."""
    ordered = sorted(enumerate(records, 1), key=lambda numbered: -numbered[1]["area"])
    drawn = [
        DrawnRegion(with_doubt(one["caption"], one.get("confidence")), decode_rle(one["segmentation"]), number=number)
        for number, one in ordered
    ]
    return draw_regions(picture, drawn)


@dataclass
class FolderResult:
    """What all processes of a run came to.

    Attributes:
        images: How many images were captioned.
        regions: How many regions they have.
        failed: What went wrong, by image.
    """

    images: int
    regions: int
    failed: dict[str, str]


def run_folder(
    run: FolderRun,
    items: list[ImageItem],
    rank: int = 0,
    world: int = 1,
    caption: Callable[[list[ImageItem]], Iterable[dict[str, Any]]] | None = None,
    progress: bool = True,
) -> FolderResult | None:
    """Captions the images of one process that are not done yet, and writes the result once all images are done.

    Args:
        run: What to do.
        items: All images; process `rank` of `world` takes every `world`-th.
        rank: The number of this process.
        world: How many processes share the run.
        caption: Captions a list of images in any order; by default [`ImageCaptioner.captions`].
        progress: Whether a bar shows how far the run is.

    Returns:
        What all processes together came to, or None where some images are not done yet.
    """
    fill_log(run, items, rank, world, caption or (lambda todo: ImageCaptioner(run).captions(todo)), progress)
    result = finish(run, items)
    if result is None and world == 1:
        raise RunLogError(f"{run.output}: some images came to no result; give the same command once more.")
    return result


def fill_log(
    run: FolderRun,
    items: list[ImageItem],
    rank: int,
    world: int,
    caption: Callable[[list[ImageItem]], Iterable[dict[str, Any]]],
    progress: bool,
) -> None:
    """Has the log hold a line for each image of one process, see [`run_folder`]."""
    own = items[rank::world]
    with open_log(run, rank) as log:
        lines = log.lines()
        todo = [item for item in own if _is_to_do(run, item, lines.get(item.key))]
        done = len(own) - len(todo)
        with tqdm(
            total=len(own), initial=done, unit="image", disable=rank != 0 or not progress, dynamic_ncols=True
        ) as bar:
            for entry in caption(todo) if todo else ():
                log.append([log_line(entry)])
                bar.update()


def _is_to_do(run: FolderRun, item: ImageItem, line: Line | None) -> bool:
    """Whether an image is not captioned as it is now, is to be tried again, or has lost its overlay."""
    if line is None or line.about:
        return line is None or run.retry
    return run.overlays and not run.overlay_of(item).is_file()


def finish(run: FolderRun, items: list[ImageItem]) -> FolderResult | None:
    """Writes the result in the order of the images if every one of them is done.

    Whoever is last does this; where two are, both write the same.
    """
    if not (Path(run.output) / "journal" / "run.json").is_file():
        raise RunLogError(f"{run.output} was removed while the run wrote to it: start it again.")
    log = open_log(run)
    found = log.lines()
    if any(item.key not in found for item in items):
        return None
    lines = [found[item.key] for item in items]
    good = [line for line in lines if not line.about]
    if run.overlays:
        drawn = [run.overlay_of(item) for item, line in zip(items, lines, strict=True) if not line.about]
        if gone := next((path for path in drawn if not path.is_file() or not path.stat().st_size), None):
            raise RunLogError(f"{gone} was removed while the run wrote to it: give the same command once more.")
    failed = {entry["image"]: entry["error"] for entry in log.entries(line for line in lines if line.about)}
    regions = 0

    def records() -> Iterator[str]:
        nonlocal regions
        for entry in log.entries(good):
            regions += len(entry["records"])
            yield json_line({key: entry[key] for key in entry if key not in ("picture", "sum")}) + "\n"

    output = Path(run.output)
    write_whole(output / "records.jsonl", records())
    write_whole(output / "coco.json", write_coco(lambda: log.entries(good)))
    write_whole(output / "failed.json", to_json(failed))
    _look(output, len(good), regions, len(failed))
    log.update(complete=True, images=len(good))
    return FolderResult(len(good), regions, failed)


def wait_and_finish(run: FolderRun, items: list[ImageItem], rank: int = 0) -> FolderResult | None:
    """Waits until the other processes have done their parts; process 0 then returns what they all came to.

    Raises:
        RunLogError: The others do not get on, see [`RunLog.wait_for`].
    """
    open_log(run).wait_for({item.key for item in items})
    return finish(run, items) if rank == 0 else None


def _look(output: Path, images: int, regions: int, failed: int) -> None:
    """Raises unless what was written is there and whole; line by line, as it may be larger than the memory."""
    # What a line begins with, and how many of these there are.
    expected = {"records.jsonl": ('{"image"', images), "coco.json": ('{"id"', images + regions)}
    expected |= {"failed.json": (' "', failed)}
    for name, (start, count) in expected.items():
        with (output / name).open(encoding="utf-8", newline="\n") as lines:
            last, found = "}\n", 0
            for last in lines:
                found += last.startswith(start)
        if found != count or not last.endswith("}\n"):
            raise RunLogError(
                f"{output / name} does not hold what was written to it: it was changed meanwhile. Nothing is marked "
                "as complete; give the same command once more."
            )


def write_for_tool(
    output: str | Path, items: Iterable[ImageItem], tool: str, shapes: Shapes = "pixels"
) -> WriteReport | None:
    """Writes the records of a finished run as an annotation tool imports them, into `output`/`tool`.

    Args:
        output: The folder of the run.
        items: The images of the run.
        tool: A key of `WRITERS`.
        shapes: What regions are, see [`write_regions`].

    Returns:
        What was written, or None where the folder exists, which may hold corrections.
    """
    folder = Path(output) / tool
    if folder.exists():
        return None
    by_name = {item.name: item for item in items}

    def records() -> Iterator[dict[str, Any]]:
        with (Path(output) / "records.jsonl").open(encoding="utf-8") as lines:
            for entry in map(json.loads, lines):
                image = by_name[entry["image"]].image
                if isinstance(image, str) and not Path(image).is_file():  # an address
                    image = by_name[entry["image"]].load()
                # A data set's id is not a name for a file, but its picture has one.
                named = (
                    {"image": image["image"]} if isinstance(image, dict) else {"image": image, "name": entry["image"]}
                )
                size = {"width": entry["width"], "height": entry["height"]}
                regions = [_written(record, shapes == "boxes") for record in entry["records"]]
                yield {"image_id": entry["image"], **named, **size, "regions": regions}

    return write_regions(tool, records(), folder, shapes)


def _written(record: dict[str, Any], box_alone: bool) -> dict[str, Any]:
    """Returns a record of anything mode as a region for the writers; alone, a detector's box is the region's."""
    x, y, width, height = record["bbox"]
    box = record.get("box_prompt") if box_alone else None
    place = {"box": box or [x, y, x + width, y + height], "mask": record["segmentation"]}
    return {**place, "captions": [record["caption"]], "score": record["predicted_iou"]}


def open_log(run: FolderRun, rank: int | None = None) -> RunLog:
    """Opens what a run has done so far: a line per image, which begins with the image and then its error, if any.

    Args:
        run: What is being done.
        rank: The process that appends to it; None only reads.
    """
    folder = Path(run.output) / "journal"
    part = None if rank is None else folder / f"part-{rank:05d}.jsonl"
    # A failure never takes the place of a success.
    return RunLog(
        Path(run.output),
        folder / "run.json",
        run.identity,
        part,
        "part-*.jsonl",
        _key_and_failed,
        notes={"model": run.model or DEFAULT_MODEL, "revision": run.revision},
        replaces=lambda was_failed, failed: was_failed or not failed,
    )


def log_line(entry: dict[str, Any]) -> str:
    """Returns what a run says of an image as a line of its log, with a sum of the line at its end."""
    line = json_line(entry)
    return f"{line[:-1]}{_SUM}{zlib.crc32(encode(line))}}}"


def _key_and_failed(line: bytes) -> tuple[str, bool]:
    """Returns [`ImageItem.key`] of a line, and whether it failed, without parsing the masks."""
    body, _, number = line.rpartition(_SUM.encode())
    if int(number.rstrip(b"}\n")) != zlib.crc32(body + b"}"):
        raise ValueError("not as it was written")
    text, decoder = line.decode(), json.JSONDecoder()
    name, end = decoder.raw_decode(text, len('{"image": '))
    stamp, end = decoder.raw_decode(text, end + len(', "picture": '))
    return f"{name}\n{stamp}", text.startswith(', "error"', end)


def ray_captions(run: FolderRun, workers: int) -> Callable[[list[ImageItem]], Iterator[dict[str, Any]]]:
    """Returns what `run_folder` takes as `caption`.

    Args:
        run: As in `run_folder`; paths must be readable on all machines.
        workers: The number of actors, each with a copy of the model.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError:
        raise ImportError(f"Captioning on a Ray cluster needs ray: {install_command('ray')}") from None

    class Actor:
        def __init__(self) -> None:
            self.captioner = ImageCaptioner(run)

        def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
            return {"entry": [json_line(entry) for entry in self.captioner(list(rows["item"]))]}

    def captions(items: list[ImageItem]) -> Iterator[dict[str, Any]]:
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False  # ours is the one that counts images
        wants_gpu = run.device is None and ray.cluster_resources().get("GPU", 0) >= workers
        rows = ray.data.from_items(
            [{"item": item} for item in items], override_num_blocks=min(len(items), 4 * workers)
        )
        mapped = rows.map_batches(
            Actor, batch_size=run.batch_size or 8, concurrency=workers, num_gpus=1 if wants_gpu else 0
        )
        for row in mapped.iter_rows():
            yield json.loads(row["entry"])

    return captions

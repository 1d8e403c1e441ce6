"""Opens data sets of regions in any format that we know as `datasets` objects, mapped from disk or streamed."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from struct import pack, unpack
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin, get_type_hints

from ..environment import install_command
from ..files import (
    digest_of,
    file_sizes,
    hash_file,
    named_paths,
    naming_full_disk,
    read_json,
    to_json,
    write_whole,
)
from ..yaml_files import parse_options
from .notes import NOTES, NotedCaptionsError, without_notes
from .pictures import check_picture, check_place, picture_stamp
from .read_report import ReadReport, check_records
from .region import TASKS, RegionRecordError, load_names, naming, region_features


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

# Of a stored data set: the sums of its files, and what was left out.
_MANIFEST, _REPORT = "manifest.json", "report.json"
# Reports of the data sets that this process has opened whole, for a command to tell at its end what was skipped.
OPENED: list[ReadReport] = []
OnError = Literal["raise", "skip"]
# Of a data spec, what is no option of its reader.
_OF_SOURCES = ("on_error", "task", "max_samples", "keep_empty", "group")
Reader = Callable[..., Iterator[dict[str, Any] | RegionRecordError]]

# format -> "module of readers/:function", imported when first used, or a reader of your own
READERS: dict[str, str | Reader] = {
    "coco": "coco:read_coco",
    "lvis": "coco:read_lvis",
    **dict.fromkeys(("objects365", "v3det"), "coco:read_boxes"),
    "coco_captions": "whole_images:read_coco_captions",
    "sbu": "whole_images:read_sbu",
    "sa1b": "sa1b:read_sa1b",
    "voc": "voc:read_voc",
    "yolo": "yolo:read_yolo",
    "label_studio": "label_studio:read_label_studio",
    "labelme": "labelme:read_labelme",
    "visual_genome": "visual_genome:read_visual_genome",
    "grit": "visual_genome:read_grit",
    "multilingual_visual_genome": "visual_genome:read_multilingual_visual_genome",
    "refcoco": "refer:read_refcoco",
    "jsonl": "tables:read_jsonl",
    "parquet": "tables:read_parquet",
    "hub": "hub:read_hub",
    "cvat": "tools:read_cvat",
    "roboflow": "tools:read_roboflow",
    "fiftyone": "tools:read_fiftyone",
    "via": "tools:read_via",
    "scenes": "common:read_scenes",
}


def find_reader(format: str) -> Reader:
    """Returns the reader of a format, importing it on first use."""
    if format not in READERS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(READERS)}")
    reader = READERS[format]
    if isinstance(reader, str):
        module, function = reader.split(":")
        reader = cast(Reader, getattr(import_module(f".readers.{module}", __package__), function))
        READERS[format] = reader
    return reader


@dataclass(frozen=True)
class RecordSource:
    """A data set before it is opened: a format, its options, and what to do with bad records.

    group: a regular expression that finds in each picture's path what group it is of.
    is_part: Whether it is one of the `parts` of another, and may be empty.
    decode: Whether to decode every picture as it is read, so that one that cannot be is bad now rather than later.
    """

    format: str
    options: Mapping[str, Any]
    on_error: OnError = "raise"
    task: str | None = None
    max_samples: int | None = None
    keep_empty: bool = False
    group: str | None = None
    is_part: bool = False
    decode: bool = False

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f'on_error is {self.on_error!r}, expected "raise" or "skip"')
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}, expected one of {', '.join(TASKS)}")
        if self.max_samples is not None and (not isinstance(self.max_samples, int) or self.max_samples < 1):
            raise ValueError(f"max_samples is {self.max_samples!r}, expected a positive number or None")
        try:
            re.compile(self.group or "")
        except (TypeError, re.error) as error:
            raise ValueError(f"group is {self.group!r}, expected a regular expression ({error})") from None
        texts = text_options(find_reader(self.format))
        numbers = {key: str(value) for key, value in self.options.items() if key in texts and _is_number(value)}
        object.__setattr__(self, "options", {**self.options, **numbers})  # a folder may be called 2007
        reader, given = find_reader(self.format), self._reader_options()
        try:
            inspect.signature(reader).bind(**given)
        except TypeError as error:
            names = ", ".join(inspect.signature(reader).parameters)
            raise ValueError(f"{self.format}: {error}; its options are {names}") from None
        check_choices(reader, given)

    @property
    def name(self) -> str:
        """The format and the first path, for messages."""
        first = next((str(value) for value in self.options.values() if isinstance(value, str | os.PathLike)), None)
        return f"{self.format} {first}" if first else self.format

    def records(self, report: ReadReport) -> Iterator[dict[str, Any]]:
        """Yields the checked records and counts them, and what is wrong, in `report`."""
        found = find_reader(self.format)(**self._reader_options())
        checked = check_records(self._sift(found, report), self.name, self.on_error, report)
        for record in islice(checked, self.max_samples):
            report.classes.update(region.category for region in record.regions if region.category)
            yield {**vars(record), "regions": [_as_stored(vars(region)) for region in record.regions]}

    def parts(self) -> list[RecordSource]:
        """Splits the data set by its files, so that workers may share it; one part where it cannot be split."""
        split = getattr(find_reader(self.format), "parts", None)
        options = split(**self.options) if split and self.max_samples is None else []
        if len(options) < 2:
            return [self]
        return [replace(self, options={**self.options, **part}, is_part=True) for part in options]

    def _sift(self, found: Iterable[Any], report: ReadReport) -> Iterator[Any]:
        """Counts what the reader left out, drops images without regions, and checks the pictures of the others."""
        folders = [Path(path) for path in self._paths()]
        folders = [path if path.is_dir() else path.parent for path in folders]
        for values in found:
            if isinstance(values, RegionRecordError):
                yield values
                continue
            values = dict(values)
            for what, left in (values.pop("left_out", None) or {}).items():
                report.leave_out(what, left)
            if not values.get("regions") and not self.keep_empty:
                report.left_out["images without regions"] += 1
                continue
            # A stored data set is read again from other folders.
            try:
                with naming(f"{values.get('source') or self.name}, image {values.get('image_id')}"):
                    if isinstance(values.get("image"), str | os.PathLike):
                        values["image"] = os.path.abspath(values["image"])
                        check_place(Path(values["image"]), folders)
                    values["group"] = self._group_of(values)
                    values = check_picture(values, self.decode)
            except RegionRecordError as error:
                yield error
                continue
            report.remark(values.pop("notes", ()))
            yield values

    def _group_of(self, values: Mapping[str, Any]) -> str | None:
        """Returns what an image is of, as the option or its own `group` says."""
        given = values.get("group")
        if self.group is None:
            return None if given is None else str(given)
        image = values.get("image")
        path = image.get("path") if isinstance(image, Mapping) else image
        name = Path(path).as_posix() if isinstance(path, str | os.PathLike) else str(values.get("image_id"))
        found = re.search(self.group, name)
        if found is None:
            where = f"{values.get('source') or self.name}, image {values.get('image_id')}"
            raise RegionRecordError(f"{where}: group={self.group!r} does not match {name}")
        return found[1 if found.re.groups else 0]

    def _reader_options(self) -> dict[str, Any]:
        given: dict[str, Any] = {}
        if self.task is not None:
            given["task"] = self.task
        if "names" in self.options:
            given["names"] = load_names(self.options["names"])
        return {**self.options, **given}

    def _paths(self) -> list[str]:
        """What the options name on this disk, and what the reader looks for beside it, absolute."""
        beside = getattr(find_reader(self.format), "paths", None)
        return [*named_paths(self.options), *(named_paths(beside(**self.options)) if beside else ())]

    def identity(self) -> str:
        """Returns a key of the records that needs none of them: options and files (names, sizes, times) decide it.

        Where the files are does not.
        """
        plain = {name: value for name, value in self.options.items() if not any(named_paths(value))}
        files = [_stamp(path)[1:] for path in self._paths()]
        return digest_of({**asdict(self), "options": plain, "files": files})

    def cache_key(self) -> str:
        """Returns a key that changes with the options, the files they name (names, sizes, times) and our own code."""
        reader = find_reader(self.format)
        more = getattr(reader, "cache_key", None)
        parts = {
            "source": {**asdict(self), "options": dict(self.options)},
            "folder": os.getcwd(),
            "files": [_stamp(path) for path in self._paths()],
            "code": _code_stamp(reader),
            "more": more(**self.options) if more else None,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def load_regions(
    format: str,
    *,
    streaming: bool = False,
    on_error: OnError = "raise",
    task: str | None = None,
    max_samples: int | None = None,
    keep_empty: bool = False,
    group: str | None = None,
    **options: Any,
) -> Dataset | IterableDataset:
    """Opens a data set of regions, rows as `data.region.region_features` has them; pictures are opened on access.

    Args:
        format: One of `READERS`.
        streaming: Whether to read the files on each pass rather than once into the cache of `datasets`.
        on_error: "skip" leaves out bad regions, and images that are bad themselves, and logs how many and which first;
            every picture is decoded once to find out.
        task: What to train on, "caption" or "recognition"; None leaves it to the reader.
        max_samples: How many images to read, from the start.
        keep_empty: Whether to keep images without regions.
        group: A regular expression that finds in each picture's path (in its `image_id` where it has none) what it is
            of; its first pair of parentheses counts, where there is one. [`hold_out`] keeps groups together.
        options: The options of the reader, such as paths and names (docs/data.md).
    """
    try:
        from datasets import IterableDataset
    except ModuleNotFoundError:
        raise ImportError(f"Data sets of regions need datasets: {install_command('train')}") from None
    source = RecordSource(format, options, on_error, task, max_samples, keep_empty, group, decode=on_error == "skip")
    if streaming:
        arguments = {"sources": source.parts()}
        return IterableDataset.from_generator(_streamed_records, features=region_features(), gen_kwargs=arguments)
    return _load_stored(source)


def _load_stored(source: RecordSource) -> Dataset:
    from datasets import Dataset, Features, Value, config
    from datasets.exceptions import DatasetGenerationError
    from filelock import FileLock

    folder = Path(config.HF_DATASETS_CACHE) / "sca_hf" / source.cache_key()

    def stored(notes: tuple[str, ...] = ()) -> Dataset:
        try:
            return Dataset.from_generator(
                _stored_records,
                features=Features({**region_features(**dict.fromkeys(notes, True)), "group": Value("string")}),
                cache_dir=str(folder),
                gen_kwargs={"source": source, "folder": folder, **({"notes": notes} if notes else {})},
            )
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, NotedCaptionsError):
                return stored((*notes, *error.__cause__.fields))
            with naming_full_disk(folder):  # the library's own error says only that there was an error
                raise (error.__cause__ or error) from None

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _is_as_stored(folder):
            shutil.rmtree(folder, ignore_errors=True)
        dataset = stored()
        # Pictures may have been replaced beside their annotations.
        if _manifest(folder, dataset) != read_json(folder / _MANIFEST):
            shutil.rmtree(folder, ignore_errors=True)
            dataset = stored()
            _manifest(folder, dataset)
    report = ReadReport.read(folder / _REPORT)
    report.log()
    OPENED.append(report)
    if dataset.data.column("group").null_count == len(dataset):
        return dataset.remove_columns("group")
    return dataset


def leave_undecoded(dataset: Any) -> Any:
    """Returns the same rows with pictures left as files: `record_image` opens them, and names one that is bad."""
    features = getattr(dataset, "features", None)
    if not features or type(features.get("image")).__name__ != "Image":
        return dataset
    return dataset.cast_column("image", type(features["image"])(decode=False))


def _streamed_records(sources: list[RecordSource]) -> Iterator[dict[str, Any]]:
    """Yields the records of a worker's share of the parts: `datasets` divides lists among its workers."""
    for source in sources:
        report = ReadReport(source=source.name)
        for record in without_notes(source.records(report)):
            yield {key: value for key, value in record.items() if key != "group"}  # streams are not split
        if not source.is_part:
            report.require_records()
        report.log()


def _is_as_stored(folder: Path) -> bool:
    """Whether a stored data set is as it was stored; says so where something has changed it since."""
    try:
        sums = read_json(folder / _MANIFEST)["sha256"]
        changed = [name for name, sha256 in sums.items() if hash_file(folder / name) != sha256]
    except FileNotFoundError as error:
        changed = [error.filename] if (folder / _MANIFEST).exists() else []
        if not changed:
            return False  # not stored yet, or not to the end
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        changed = [_MANIFEST]
    if changed:
        logger.warning("%s is damaged in the cache of data sets (%s): it is made again.", folder, changed[0])
    return not changed


def _manifest(folder: Path, dataset: Dataset) -> dict[str, Any]:
    """Returns the sums of the files of a stored data set, and of its pictures now; writes those of a new one."""
    import pyarrow.compute  # type: ignore[import-untyped]

    pictures = hashlib.sha256()
    for chunk in dataset.data.column("image").chunks:
        alone = chunk.field("path").filter(pyarrow.compute.is_null(chunk.field("bytes")))
        pictures.update("".join(f"{path} {picture_stamp(path)}\n" for path in alone.to_pylist()).encode())
    file = folder / _MANIFEST
    if file.exists():
        return {**read_json(file), "pictures": pictures.hexdigest()}
    files = [name for name in file_sizes(folder) if not name.endswith(".lock")]
    found = {"sha256": {name: hash_file(folder / name) for name in files}, "pictures": pictures.hexdigest()}
    write_whole(file, to_json(found))
    return found


def _stored_records(source: RecordSource, folder: Path, notes: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    report = ReadReport(source=source.name)
    yield from without_notes(source.records(report), but=notes)
    report.require_records()
    # Before the data set is complete, so that a stored one always has its report.
    report.write(folder / _REPORT)


def load_spec(spec: Mapping[str, Any]) -> Dataset | IterableDataset:
    """Opens what a mapping describes: `{"format": "voc", "root": ..., "task": "caption"}`."""
    return load_regions(**_named(spec))


def spec_source(spec: Mapping[str, Any], **more: Any) -> RecordSource:
    """Returns what a mapping describes, not yet opened; `more` are fields of [`RecordSource`]."""
    options = _named(spec)
    options.pop("streaming", None)
    more = {name: options.pop(name) for name in _OF_SOURCES if name in options} | more
    return RecordSource(options.pop("format"), options, **more)


def _named(spec: Mapping[str, Any]) -> dict[str, Any]:
    options = {str(key): value for key, value in spec.items()}
    if "format" not in options:
        raise ValueError(f"a data spec needs a format, one of {', '.join(READERS)}; got {sorted(options)}")
    return options


def parse_spec(text: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a data spec from the command line, see [`parse_options`]: `voc:root=signs,task=caption`."""
    return parse_options(text, "format", "data spec", lambda name: text_options(find_reader(name)))


def text_options(reader: Reader) -> set[str]:
    """Returns the options of a reader that are paths or texts: 2007 is the name of a folder there."""
    kinds = {name: str(parameter.annotation) for name, parameter in inspect.signature(reader).parameters.items()}
    texts = {name for name, kind in kinds.items() if re.search(r"\b(str|Path)\b", kind)}
    return {name for name in texts if not re.search(r"\b(int|float|Mapping|Sequence)\b", kinds[name])}


def check_choices(reader: Reader, options: Mapping[str, Any]) -> None:
    """Raises where an option has none of the values that its annotation, a `Literal`, admits."""
    try:
        kinds = get_type_hints(reader)
    except (NameError, TypeError):  # a reader of your own may be annotated as it likes
        return
    for name, value in options.items():
        kind = kinds.get(name)
        admitted = [one for part in (kind, *get_args(kind)) if get_origin(part) is Literal for one in get_args(part)]
        if admitted and value not in admitted and not (value is None and type(None) in get_args(kind)):
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(admitted)}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_stored(region: dict[str, Any]) -> dict[str, Any]:
    """Returns a region with its coordinates as the schema's float32 has them: the same whether stored or streamed."""
    points = region["points"]
    return {
        **{name: value for name, value in region.items() if name not in NOTES or value is not None},
        "box": list(unpack("4f", pack("4f", *region["box"]))),
        "points": None if points is None else [list(unpack("2f", pack("2f", *point))) for point in points],
    }


def _stamp(path: str) -> list[Any]:
    """Returns what tells one state of a file, or of all files of a folder, from another."""
    if not os.path.isdir(path):
        status = os.stat(path)
        return [path, status.st_size, status.st_mtime_ns]
    digest = hashlib.sha256()
    folders, seen = [path], set()
    while folders:
        folder = folders.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.is_file():
                    status = entry.stat()
                    name = os.path.relpath(entry.path, path)
                    digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="replace"))
    return [path, digest.hexdigest()]


def _code_stamp(reader: Reader) -> str:
    """Returns a hash of the code that makes records, ours and the reader's own."""
    here = Path(__file__).parent
    files = sorted({*here.glob("*.py"), *here.glob("readers/*.py"), Path(inspect.getfile(reader))})
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()

"""Reads Visual Genome: its own region descriptions, with densecap's splits, GRiT's files of them, and translations."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from ..pictures import image_size
from ..region import RegionRecordError, naming
from .coco import xywh_box
from .common import (
    Clip,
    FolderIndex,
    Record,
    find_file,
    has_id,
    image_fields,
    inside,
    read_annotations,
    read_json_list,
    region_fields,
    rows_by_id,
)


# Of each language, how files are named: the language, and the set of ambiguous words that is called "challenge" here.
_TRANSLATIONS = {
    "hi": ("hindi", "challenge-test-set"),
    "bn": ("bengali", "challenge-test-set"),
    "ml": ("malayalam", "chtest"),
    "ha": ("hausa", "challenge-test-set"),
}
_COLUMNS = ("image_id", "X", "Y", "Width", "Height", "the English caption", "its translation")
# The two archives of pictures; whoever unpacks them into one folder is understood too.
_FOLDERS = ("", "VG_100K", "VG_100K_2")


def read_visual_genome(
    root: str | Path | None = None,
    images: str | Path | None = None,
    region_descriptions: str | Path | None = None,
    image_data: str | Path | None = None,
    splits: str | Path | None = None,
    split: str | None = None,
    task: Literal["caption"] = "caption",
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per image of region_descriptions.json, in its order; a region has one phrase, as written.

    The file is read image by image: Visual Genome's 700 MB take little memory.

    Args:
        root: the folder that holds what the next arguments do not name.
        images: the folder with VG_100K and VG_100K_2, or with the pictures themselves (default: root, root/images).
        region_descriptions, image_data: the JSON files (default: of these names, in root). Images that image_data does
            not list are errors: their size is unknown.
        splits: densecap_splits.json (default: in root). Needed for `split` alone.
        split: train, val or test of densecap (default: all images).
        task: "caption"; phrases are not categories.
        clip: Visual Genome's boxes often reach out of their image. "rounding" cuts what does so by at most a pixel,
            the rest are bad regions; "image" cuts all. Cut ones are counted.
    """
    regions_file = _file(root, region_descriptions, "region_descriptions")
    pictures = _image_table(_file(root, image_data, "image_data"))
    chosen = _split_ids(_file(root, splits, "densecap_splits"), split) if split is not None else None
    folders = _image_folders(root, images)
    for entry in read_json_list(regions_file):
        try:
            with naming(f"{regions_file}: an entry has no id, or no regions: {str(entry)[:60]}"):
                image_id = entry["id"] if "id" in entry else entry["image_id"]
                rows = list(entry["regions"])
                if chosen is not None and image_id not in chosen:
                    continue
                picture = pictures.get(image_id)
            where = f"{regions_file}, image {image_id}"
            if picture is None:
                raise RegionRecordError(f"{where}: image_data.json does not list this image")
            with naming(where):
                record = _record(picture, str(image_id), _names_in_url(picture), folders, where)
        except RegionRecordError as error:
            yield error
            continue
        size = (record["width"], record["height"])
        regions = [_region(row, size, clip, where) for row in rows]
        yield {**record, "task": task, "regions": regions, "source": str(regions_file)}


def read_grit(
    annotations: str | Path,
    images: str | Path,
    image_data: str | Path | None = None,
    task: Literal["caption"] = "caption",
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per image of GRiT's train.json or test.json, in its order; a region has one phrase.

    Args:
        annotations: the file, COCO's form with a `caption` in each annotation.
        images: the folder with the pictures, or with VG_100K and VG_100K_2.
        image_data: Visual Genome's image_data.json, if the two archives are not to be searched by name.
        task: "caption"; phrases are not categories.
        clip: "rounding" cuts boxes that reach out of the image by at most a pixel, "image" all.
    """
    source = Path(annotations)
    content = read_annotations(source)
    pictures = _image_table(Path(image_data)) if image_data is not None else {}
    folders = _image_folders(None, images)
    try:
        entries = content["images"]
        rows: dict[Any, list[Mapping[str, Any]]] = {key: [] for key in rows_by_id(entries)}
        strays: list[Mapping[str, Any]] = []
        for row in content["annotations"]:
            (rows.get(row["image_id"], strays) if has_id(row, "image_id") else strays).append(row)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source} is not in GRiT's format: {error} is missing.") from None
    del content
    for row in strays:
        key, image = (row.get("id"), row.get("image_id")) if isinstance(row, Mapping) else (str(row)[:60], "of it")
        yield RegionRecordError(f"{source}, region {key}: there is no image {image}")
    for entry in entries:
        where = f"{source}, image {str(entry)[:60]}"
        try:
            with naming(where):
                where = f"{source}, image {entry['id']}"
                names = _names_in_url(pictures[entry["id"]]) if entry["id"] in pictures else []
                record = _record(entry, str(entry["id"]), [*names, str(entry.get("file_name", ""))], folders, where)
        except RegionRecordError as error:
            yield error
            continue
        size = (record["width"], record["height"])
        # Taken out, so that memory is given back on the way.
        regions = [_region(row, size, clip, where) for row in rows.pop(entry["id"], [])]
        yield {**record, "task": task, "regions": regions, "source": str(source)}


def read_multilingual_visual_genome(
    root: str | Path,
    language: Literal["hi", "bn", "ml", "ha"],
    split: Literal["train", "dev", "test", "challenge"] = "train",
    images: str | Path | None = None,
    english: bool = True,
    task: Literal["caption"] = "caption",
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per image of Hindi, Bengali, Malayalam or Hausa Visual Genome; most have one region.

    A region is called by the number of its line, and has the translated caption and the English one, with languages.

    Args:
        root: the folder with `hindi-visual-genome-train.txt` or below which it lies, seven columns between tabs.
        language: of the captions.
        split: challenge has English words that the picture makes plain.
        images: the folder with, or above, `hindi-visual-genome-train.images`, or of all pictures (default: root).
        english: whether to read the English captions too.
        task: "caption"; there are no categories.
        clip: "rounding" cuts boxes that reach out of the image by at most a pixel, "image" all.
    """
    name, challenge = _TRANSLATIONS[language]
    stem = f"{name}-visual-genome-{challenge if split == 'challenge' else split}"
    source = FolderIndex(Path(root), [".txt"]).find(f"{stem}.txt")
    if source is None:
        raise ValueError(f"root: there is no {stem}.txt in {root}; unpack {stem}.txt.gz there.")
    rows: dict[str, list[tuple[int, list[str]]]] = {}
    for number, line in enumerate(source.read_bytes().removeprefix(BOM_UTF8).split(b"\n"), 1):
        columns = line.decode("utf-8", "surrogateescape").strip("\r\n").split("\t")
        if columns == [""]:
            continue
        if len(columns) != len(_COLUMNS) or not (columns[0].isascii() and columns[0].isdigit()):
            listed = f"{', '.join(_COLUMNS[:-1])} and {_COLUMNS[-1]}"
            problem = f"expected {listed} between tabs, image_id a number; got {line[:60]!r}"
            yield RegionRecordError(f"{source}, line {number}: {problem}")
            continue
        rows.setdefault(columns[0], []).append((number, columns))
    pictures = FolderIndex(Path(root if images is None else images))
    tags: list[str] = [language, "en"] if english else [language]
    for image_id, lines in rows.items():
        where = f"{source}, image {image_id}"
        try:
            with naming(where):
                path = pictures.find(f"{stem}.images/{image_id}.jpg") or pictures.find(f"{image_id}.jpg")
                if path is None:
                    raise RegionRecordError(f"the picture {image_id}.jpg is not in {pictures.folder}")
                size = image_size(path)
        except RegionRecordError as error:
            yield error
            continue
        regions = [_translated(columns, tags, number, size, clip, where) for number, columns in lines]
        yield image_fields(path, image_id, size, source, task=task, regions=regions)


def _translated(
    columns: list[str], tags: list[str], number: int, size: tuple[int, int], clip: Clip, where: str
) -> dict[str, Any] | RegionRecordError:
    """Reads a line: the captions of `tags`, the translation first."""
    try:
        with naming(f"{where}, line {number}"):
            captions = [columns[-1].strip(), columns[-2].strip()][: len(tags)]
            fields = {"captions": captions, "languages": tags}
            return region_fields(str(number), xywh_box(columns[1:5]), size, clip, **fields)
    except RegionRecordError as error:
        return error


def _file(root: str | Path | None, path: str | Path | None, name: str) -> Path:
    if path is None and root is None:
        raise ValueError(f"{name}: pass the path of {name}.json, or root=FOLDER.")
    found = Path(path) if path is not None else Path(root or "") / f"{name}.json"
    if not found.is_file():
        raise ValueError(f"{name}: there is no file {found}.")
    return found


def _image_folders(root: str | Path | None, images: str | Path | None) -> list[Path]:
    if images is None and root is None:
        raise ValueError("images: pass the folder of the pictures.")
    folders = [Path(images)] if images is not None else [Path(root or ""), Path(root or "") / "images"]
    if not any(folder.is_dir() for folder in folders):
        raise ValueError(f"images: there is no folder {folders[0]}.")
    return folders


def _image_table(path: Path) -> dict[Any, Mapping[str, Any]]:
    try:
        rows = read_annotations(path, list)
        return rows_by_id(rows) | rows_by_id(rows, "image_id")
    except TypeError:
        raise ValueError(f"{path}: expected Visual Genome's list of images, each with its image_id.") from None


def _split_ids(path: Path, split: str) -> set[Any]:
    splits = read_annotations(path)
    if not isinstance(splits, dict) or not isinstance(splits.get(split), list):
        there = ", ".join(splits) if isinstance(splits, dict) else "no splits"
        raise ValueError(f"split is {split!r}, {path} has {there}.")
    return set(splits[split])


def _names_in_url(picture: Mapping[str, Any]) -> list[str]:
    """Returns where a picture may lie by its address: .../rak248/VG_100K_2/1.jpg is VG_100K_2/1.jpg, or 1.jpg."""
    path = PurePosixPath(urlsplit(str(picture.get("url", ""))).path)
    return ["/".join(path.parts[-2:]), path.name] if path.name else []


def _record(
    row: Mapping[str, Any], image_id: str, names: list[str], folders: list[Path], where: str
) -> dict[str, Any]:
    with naming(f"{where}: width or height is missing or not a number"):
        width, height = int(row["width"]), int(row["height"])
    names = [name for name in names if name] or [f"{image_id}.jpg"]
    path = find_file(folders, names)
    if path is None:
        path = find_file([folder / part for folder in folders for part in _FOLDERS[1:]], [Path(names[-1]).name])
    if path is None:
        refused = all(inside(folders[0], name) is None for name in names)
        problem = "points outside the folder" if refused else "is not"
        raise RegionRecordError(f"{where}: the picture {names[0]!r} {problem} in {folders[0]}")
    return {"image": str(path), "image_id": image_id, "width": width, "height": height}


def _region(row: Any, size: tuple[int, int], clip: Clip, where: str) -> dict[str, Any] | RegionRecordError:
    """Reads a region of either form: x, y, width, height, phrase; or bbox, caption."""
    region_id: Any = "?"
    try:
        with naming():
            region_id = row["region_id"] if "region_id" in row else row["id"]
            grit = "bbox" in row
            box = xywh_box(row["bbox"] if grit else [row[key] for key in ("x", "y", "width", "height")])
            phrase = row["caption"] if grit else row["phrase"]
            if not isinstance(phrase, str):
                raise ValueError(f"the phrase is {phrase!r}, expected text")
            return region_fields(str(region_id), box, size, clip, captions=[phrase])
    except RegionRecordError as error:
        return RegionRecordError(f"{where}, region {region_id}: {error}")
